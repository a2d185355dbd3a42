//! What these tests share with keepcount's own.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::pedantic)]

#[path = "../../../../tests/support/audits/mod.rs"]
pub mod audits;
#[path = "../../../../tests/support/postgres/mod.rs"]
pub mod postgres;
