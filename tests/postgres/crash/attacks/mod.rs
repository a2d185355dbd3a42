//! Poolers, two-phase commit, full disks and standbys that take over: rows and totals stay
//! consistent.

mod full_disk;
mod pooler;
mod standby;
mod two_phase;
