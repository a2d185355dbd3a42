//! What the integration tests share. Each test binary compiles all of it and uses a part.
#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

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
