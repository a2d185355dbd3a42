//! What stands between an application and its server, keeps its transactions, takes its disk away,
//! or takes its place: rows and totals stay one.

mod full_disk;
mod pooler;
mod standby;
mod two_phase;
