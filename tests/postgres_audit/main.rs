//! Verify, repair and backfill live on PostgreSQL: exact for every kind of key and size of page, beside writers, on every level; and which sources and
//! servers are refused.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod items;
mod levels;
mod live;
mod pages;
#[path = "../postgres_common/mod.rs"]
mod postgres_common;
mod sight;
mod sources;
