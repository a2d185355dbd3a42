//! Replaces the example's progress display.

use std::fs::File;
use std::io::Read;

pub struct Progress;

impl Progress {
    #[allow(clippy::unused_self)] // as in the example
    pub fn watch(&mut self, file: File, _bytes: u64) -> impl Read + use<> {
        file
    }
}
