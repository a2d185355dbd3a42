//! Runs a test binary with one fault, until its first test fails.

use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::tree::Suite;

/// The result of a test binary with a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    Failed,
    TimedOut,
}

/// Ten times what any of the crate's tests needs.
const MEMORY_KIB: u64 = 8 << 20;

/// Runs a test binary with settings in its environment, for at most `most`.
pub fn run(
    tree: &Path,
    suite: &Suite,
    worker: usize,
    settings: &[(&str, String)],
    most: Duration,
) -> io::Result<(Verdict, Duration)> {
    let scratch =
        std::env::temp_dir().join(format!("keepcount-mutants-{}-{worker}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    let begun = Instant::now();
    let mut child = Command::new("sh")
        .arg("-c")
        .arg(format!("ulimit -v {MEMORY_KIB}; exec \"$0\" \"$@\""))
        .arg(&suite.path)
        .args(Some(&suite.within).filter(|within| !within.is_empty()))
        .current_dir(tree)
        .envs(settings.iter().map(|(name, value)| (name, value)))
        .env("PROPTEST_MAX_SHRINK_ITERS", "0")
        .env("KEEPCOUNT_CRASH_ROUNDS", "3")
        .env("KEEPCOUNT_REQUIRE_SERVERS", "1")
        .env("CARGO_MANIFEST_DIR", tree)
        .env("TMPDIR", &scratch)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    let (send, lines) = mpsc::channel();
    let reader = child.stdout.take().map(|out| {
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if line.ends_with("... FAILED") && send.send(()).is_err() {
                    break;
                }
            }
        })
    });
    let verdict = match lines.recv_timeout(most) {
        Ok(()) => Some(Verdict::Failed),
        Err(RecvTimeoutError::Timeout) => Some(Verdict::TimedOut),
        Err(RecvTimeoutError::Disconnected) => None,
    };
    if verdict.is_some() {
        // Kills the whole process group, with the processes that it started.
        let group = format!("-{}", child.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
    }
    let passed = child.wait()?.success();
    if let Some(reader) = reader {
        let _ = reader.join();
    }
    let _ = std::fs::remove_dir_all(&scratch);
    Ok((verdict.unwrap_or(if passed { Verdict::Passed } else { Verdict::Failed }), begun.elapsed()))
}
