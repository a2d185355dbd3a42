//! What the integration tests share. Each binary has all of it and uses a part.
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

/// A test's whole name, by which a process of its own runs it: `test_of(module_path!(),
/// "a_child_that_is_killed")`.
pub fn test_of(module: &str, name: &str) -> String {
    let within = module.split_once("::").map_or(String::new(), |(_, within)| format!("{within}::"));
    format!("{within}{name}")
}
