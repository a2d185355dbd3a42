//! Event files. Any bytes, plain or gzip, are read as a naive split at newlines reads them, up to
//! the first line that is refused. A truncated file is distinguished from one that ends. Reading
//! resumes at a position only if the lines before it are unchanged.
#![no_main]
#![allow(clippy::unwrap_used, dead_code)] // modules of the example, of which this uses a part

#[path = "../../../../examples/concert/event.rs"]
mod event;
#[path = "../../../../examples/concert/lines.rs"]
mod lines;
#[path = "../../../../examples/concert/rows.rs"]
mod rows;

mod error;
mod progress;

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::LazyLock;

use flate2::Compression;
use flate2::write::GzEncoder;
use libfuzzer_sys::fuzz_target;
use sha2::{Digest as _, Sha256};

use event::Event;
use lines::{Lines, Position, Refused};
use progress::Progress;

/// The directory of the files: in memory if possible.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let shared = PathBuf::from("/dev/shm");
    let folder = if shared.is_dir() { shared } else { std::env::temp_dir() };
    let folder = folder.join(format!("keepcount-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
});

/// The result of reading a file: its events, the position after each, and why it ended.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    events: Vec<(String, Position)>,
    end: Position,
    refused: Option<(i64, String)>,
}

fuzz_target!(|data: &[u8]| {
    let whole = read_naively(data);
    assert_eq!(read_all(Lines::made(data.to_vec())), whole);
    let begins_as_gzip = data.starts_with(&[0x1f, 0x8b]);
    let (plain, named) = (read_all(open("plain", data)), read_all(open("named.gz", data)));
    if begins_as_gzip {
        assert_eq!(plain, named);
    } else {
        assert_eq!(plain, whole);
        assert!(named.events.is_empty() && named.refused.is_some(), "{named:?}");
    }
    check_gzip(data, &whole);
    check_positions(data, &whole);
});

/// Two gzip members read like the plain file. A truncated file is refused at its end.
fn check_gzip(data: &[u8], whole: &Read) {
    let (one, two) = data.split_at(data.len() / 2);
    let [first, second] = [one, two].map(gzip);
    let members = [first.as_slice(), &second].concat();
    assert_eq!(read_all(open("whole", &members)), *whole);
    let cut = some_place(data, members.len());
    if cut > 0 && cut != first.len() {
        let found = read_all(open("cut.gz", &members[..cut]));
        assert!(whole.events.starts_with(&found.events), "{found:?}, {whole:?}");
        let (line, _) = found.refused.expect("a truncated file is refused");
        assert!(line <= whole.end.lines + 1, "{line}");
    }
}

/// Reading resumes at a position, unless the lines before it have changed or are missing.
fn check_positions(data: &[u8], whole: &Read) {
    let Some((_, position)) = whole.events.get(some_place(data, whole.events.len())) else {
        return;
    };
    let skipped = |data: &[u8]| {
        let mut lines = Lines::made(data.to_vec());
        lines.skip_to(position, "a").map(|()| lines)
    };
    let rest = read_all(skipped(data).unwrap());
    let left: Vec<&(String, Position)> =
        whole.events.iter().filter(|(_, at)| at.lines > position.lines).collect();
    assert!(rest.events.iter().eq(left) && rest.refused == whole.refused, "{rest:?}, {whole:?}");
    let lines = usize::try_from(position.lines).unwrap();
    let read: usize =
        data.split_inclusive(|byte| *byte == b'\n').take(lines).map(<[u8]>::len).sum();
    assert!(skipped(&data[..read - 1]).is_err() || data[read - 1] == b'\n', "a line is missing");
    let mut changed = data.to_vec();
    changed[some_place(data, read)] ^= 1;
    assert!(skipped(&changed).is_err());
}

/// A number below `most` that depends on the input.
fn some_place(data: &[u8], most: usize) -> usize {
    let mixed = data.iter().fold(data.len(), |sum, byte| (sum * 31 + usize::from(*byte)) % 65_521);
    mixed % most.max(1)
}

fn read_naively(data: &[u8]) -> Read {
    let mut read = Read { events: Vec::new(), end: Position::default(), refused: None };
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let hash = Sha256::digest([read.end.hash.as_slice(), line].concat()).into();
        read.end = Position { lines: read.end.lines + 1, hash };
        let parsed = match std::str::from_utf8(line) {
            Ok(text) if text.trim_ascii().is_empty() => continue,
            Ok(text) => Event::parse(text),
            Err(error) => Err(format!("not UTF-8: {error}")),
        };
        match parsed {
            Ok(event) => read.events.push((format!("{event:?}"), read.end)),
            Err(reason) => {
                read.refused = Some((read.end.lines, reason));
                return read;
            }
        }
    }
    read
}

fn read_all(mut lines: Lines) -> Read {
    let mut events = Vec::new();
    let refused = loop {
        match lines.next_event() {
            Ok(Some(event)) => events.push((format!("{event:?}"), lines.position())),
            Ok(None) => break None,
            Err(Refused { line, reason }) => break Some((line, reason)),
        }
    };
    Read { events, end: lines.position(), refused }
}

fn open(name: &str, data: &[u8]) -> Lines {
    let path = FOLDER.join(name);
    fs::write(&path, data).unwrap();
    Lines::open(&path, &mut Progress).unwrap()
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut writer = GzEncoder::new(Vec::new(), Compression::fast());
    writer.write_all(data).unwrap();
    writer.finish().unwrap()
}
