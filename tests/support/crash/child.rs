//! Processes that are killed: a test binary that runs itself, what such a child was doing when it
//! died, and what its database file shows of that.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What a child is to do: words, of which the last is the site's folder.
const CHILD: &str = "KEEPCOUNT_CRASH_CHILD";
/// No child needs as long on any machine.
const LONGEST: Duration = Duration::from_secs(2 * 60);
const SIGKILL: i32 = 9;

/// What this process is to do as a child; none where it is a test.
pub fn words() -> Option<Vec<String>> {
    let words = std::env::var(CHILD).ok()?;
    Some(words.split(' ').map(str::to_owned).collect())
}

/// A command that runs one test of this binary as a child.
pub fn command(test: &str, words: &[&str], dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    as_child(&mut command, test, words, dir);
    command
}

/// As [`command`]; what the child writes behind this many blocks of 512 bytes of any file is an
/// error.
pub fn limited(test: &str, words: &[&str], dir: &Path, blocks: u64) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; ulimit -f \"$0\"; exec \"$@\"", &blocks.to_string()]);
    command.arg(std::env::current_exe().unwrap());
    as_child(&mut command, test, words, dir);
    command
}

fn as_child(command: &mut Command, test: &str, words: &[&str], dir: &Path) {
    // A child that fails says why, on the test's own standard error.
    command.args(["--exact", test, "--quiet", "--nocapture"]).stdout(Stdio::null());
    command.env(CHILD, format!("{} {}", words.join(" "), dir.display()));
}

/// A child at work; killed when dropped.
pub struct Running(Child);

impl Running {
    pub fn start(mut command: Command) -> Self {
        Self(command.spawn().unwrap())
    }

    /// Kills it; it was to run until then.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        let status = self.0.wait().unwrap();
        assert_eq!(status.signal(), Some(SIGKILL), "it ended by itself: {status}");
    }

    /// Waits until it has ended by itself.
    pub fn finish(mut self) {
        let until = now() + LONGEST;
        let status = loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                break status;
            }
            assert!(now() < until, "a child does not end");
            thread::sleep(Duration::from_millis(1));
        };
        assert!(status.success(), "a child failed: {status}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the crate must not look at a clock; a test that kills processes may"
)]
pub fn now() -> Instant {
    Instant::now()
}

/// What a child is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Starting,
    Between,
    Rows,
    Apply,
    Commit,
    Alone,
    Prune,
    Rebuild,
    Checkpoint,
    Reopen,
    Compare,
    Repair,
    Ready,
    Token,
}

impl Phase {
    const ALL: [Self; 14] = [
        Self::Starting,
        Self::Between,
        Self::Rows,
        Self::Apply,
        Self::Commit,
        Self::Alone,
        Self::Prune,
        Self::Rebuild,
        Self::Checkpoint,
        Self::Reopen,
        Self::Compare,
        Self::Repair,
        Self::Ready,
        Self::Token,
    ];
}

/// What a child says of itself, in a file that outlives it: what it does, and of each of its two
/// streams the last event that it knows to be applied and the last that it is trying to apply.
pub struct Told {
    file: File,
    /// Phase, known of both, tried of both; written in one piece.
    now: [u64; 5],
}

impl Told {
    pub fn open(path: &Path) -> Self {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .unwrap();
        let mut bytes = [0; 40];
        if file.metadata().unwrap().len() == 40 {
            file.read_exact_at(&mut bytes, 0).unwrap();
        }
        let mut now = [0; 5];
        for (word, bytes) in now.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().unwrap());
        }
        Self { file, now }
    }

    fn write(&self) {
        self.file.write_all_at(&self.now.map(u64::to_le_bytes).concat(), 0).unwrap();
    }

    pub fn phase(&self) -> Phase {
        Phase::ALL[usize::try_from(self.now[0]).unwrap()]
    }

    pub fn known(&self, stream: usize) -> u64 {
        self.now[1 + stream]
    }

    pub fn tried(&self, stream: usize) -> u64 {
        self.now[3 + stream]
    }

    pub fn at(&mut self, phase: Phase) {
        self.now[0] = phase as u64;
        self.write();
    }

    /// From here on, events up to `last` may be applied.
    pub fn tries(&mut self, phase: Phase, stream: usize, last: u64) {
        self.now[3 + stream] = last;
        self.at(phase);
    }

    /// What was tried is applied.
    pub fn applied(&mut self, stream: usize) {
        self.now[1 + stream] = self.tried(stream);
        self.at(Phase::Between);
    }

    /// What was tried is not applied.
    pub fn refused(&mut self, stream: usize) {
        self.now[3 + stream] = self.known(stream);
        self.at(Phase::Between);
    }
}

/// What a process that died left in its database: nothing, or a transaction whose pages were partly
/// written.
pub fn unfinished(path: &Path) -> Option<&'static str> {
    let beside = |end: &str| fs::read(format!("{}{end}", path.display())).unwrap_or_default();
    if beside("-journal").starts_with(&[0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7]) {
        return Some("a hot journal");
    }
    let wal = beside("-wal");
    let page = u32::from_be_bytes(wal.get(8..12)?.try_into().unwrap());
    let frames = wal.get(32..)?.chunks_exact(24 + usize::try_from(page).unwrap());
    // Those of this log begin with its salt; the last of a transaction says how many pages the file
    // has then.
    let ours = frames.take_while(|frame| frame[8..16] == wal[16..24]);
    let last = ours.last()?;
    (last[4..8] == [0; 4]).then_some("a log without a commit at its end")
}
