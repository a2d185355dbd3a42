//! What stands between an application and its server, or keeps its transactions, or takes its disk away: rows and totals stay one.

mod full_disk;
mod pooler;
mod two_phase;
