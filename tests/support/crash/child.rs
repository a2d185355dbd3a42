//! Child processes that are killed: a test binary that runs itself, a record of what the child was
//! doing when it died, and what its database file shows of that.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The child's task: words, of which the last is the site's directory.
const CHILD: &str = "KEEPCOUNT_CRASH_CHILD";
/// A limit that no child reaches, on any machine.
const LONGEST: Duration = Duration::from_secs(2 * 60);
const SIGKILL: i32 = 9;

/// The task of this process. None in a process that is not a child.
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

/// Like [`command`], with a limit on file size: writing beyond this many blocks of 512 bytes of any
/// file is an error.
pub fn command_with_file_limit(test: &str, words: &[&str], dir: &Path, blocks: u64) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; ulimit -f \"$0\"; exec \"$@\"", &blocks.to_string()]);
    command.arg(std::env::current_exe().unwrap());
    as_child(&mut command, test, words, dir);
    command
}

fn as_child(command: &mut Command, test: &str, words: &[&str], dir: &Path) {
    // A child that fails prints the reason on the test's standard error.
    command.args(["--exact", test, "--quiet", "--nocapture"]).stdout(Stdio::null());
    command.env(CHILD, format!("{} {}", words.join(" "), dir.display()));
}

/// A running child, killed when dropped.
pub struct Running(Child);

impl Running {
    pub fn start(mut command: Command) -> Self {
        Self(command.spawn().unwrap())
    }

    /// Kills the child. Fails if it had ended before.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        let status = self.0.wait().unwrap();
        assert_eq!(status.signal(), Some(SIGKILL), "the child ended before the kill: {status}");
    }

    /// Waits until the child ends by itself.
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

#[allow(clippy::disallowed_methods, reason = "a test that kills processes needs the clock")]
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

/// The progress of a child, in a file that outlives it: its phase, and for each of its two streams
/// the last event that it knows to be applied and the last that it is trying to apply.
pub struct ChildProgress {
    file: File,
    /// The phase, the last known event of both streams, the last tried of both; written in one
    /// piece.
    now: [u64; 5],
}

impl ChildProgress {
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

    /// Records that events up to `last` may be applied from here on.
    pub fn tries(&mut self, phase: Phase, stream: usize, last: u64) {
        self.now[3 + stream] = last;
        self.at(phase);
    }

    /// Records that what was tried is applied.
    pub fn applied(&mut self, stream: usize) {
        self.now[1 + stream] = self.tried(stream);
        self.at(Phase::Between);
    }

    /// Records that what was tried is not applied.
    pub fn refused(&mut self, stream: usize) {
        self.now[3 + stream] = self.known(stream);
        self.at(Phase::Between);
    }
}

/// The unfinished transaction that a dead process left in its database, with some of its pages
/// written.
pub fn unfinished(path: &Path) -> Option<&'static str> {
    let beside = |end: &str| fs::read(format!("{}{end}", path.display())).unwrap_or_default();
    if beside("-journal").starts_with(&[0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7]) {
        return Some("a hot journal");
    }
    let wal = beside("-wal");
    let page = u32::from_be_bytes(wal.get(8..12)?.try_into().unwrap());
    let frames = wal.get(32..)?.chunks_exact(24 + usize::try_from(page).unwrap());
    // The frames of the current log carry its salt. The last frame of a transaction has the size of
    // the database in pages.
    let ours = frames.take_while(|frame| frame[8..16] == wal[16..24]);
    let last = ours.last()?;
    (last[4..8] == [0; 4]).then_some("a log without a commit at its end")
}
