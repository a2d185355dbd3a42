//! Verify, repair and backfill on PostgreSQL: exact for every kind of key and size of page, beside
//! writers, and on every level. And which sources and servers are refused.

mod cases;
mod items;
mod keys;
mod levels;
mod live;
mod pages;
mod sight;
mod sources;
