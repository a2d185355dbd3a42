//! Verify, repair and backfill live on PostgreSQL: exact for every kind of key and size of page,
//! beside writers, on every level; and which sources and servers are refused.

mod items;
mod keys;
mod levels;
mod live;
mod pages;
mod sight;
mod sources;
