//! What the integration tests share. Each test binary compiles all of it and uses a part.
#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

pub mod audits;
pub mod concert;
#[cfg(unix)]
pub mod crash;
pub mod offsets;
#[cfg(unix)]
pub mod postgres;
#[cfg(unix)]
pub mod postgres_app;
pub mod random;
pub mod rollups;
pub mod standings;
pub mod world;

/// The full name of a test of the same module, for a process that runs this test alone:
/// `full_test_name(module_path!(), "child_that_is_killed")`.
pub fn full_test_name(module: &str, name: &str) -> String {
    let within = module.split_once("::").map_or(String::new(), |(_, within)| format!("{within}::"));
    format!("{within}{name}")
}

/// A temporary folder: in memory where there is room, because most of what these tests would wait
/// for is a disk that syncs. A process that is killed loses nothing there either.
pub fn temp_dir() -> tempfile::TempDir {
    static IN_MEMORY: std::sync::LazyLock<bool> = std::sync::LazyLock::new(has_room_in_memory);
    if *IN_MEMORY { tempfile::tempdir_in(MEMORY) } else { tempfile::tempdir() }.unwrap()
}

const MEMORY: &str = "/dev/shm";
const ROOM_KIB: u64 = 4 << 20;

fn has_room_in_memory() -> bool {
    // POSIX names the fourth column: blocks of 1 KiB that are available.
    let df = std::process::Command::new("df").args(["-Pk", MEMORY]).output();
    let told = df.map(|df| String::from_utf8_lossy(&df.stdout).into_owned()).unwrap_or_default();
    let available = told.lines().nth(1).and_then(|line| line.split_whitespace().nth(3));
    available.and_then(|kib| kib.parse().ok()).is_some_and(|kib: u64| kib >= ROOM_KIB)
}
