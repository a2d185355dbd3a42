//! Measures several sides in turn within one run, and compares them by their medians.

#![allow(clippy::print_stdout, clippy::cast_precision_loss)]

use std::time::Duration;

/// One side of a comparison.
pub struct Side<'a> {
    pub name: &'static str,
    /// The number of operations that one call of `run` does.
    pub operations: u64,
    /// Returns the time that the operations took.
    pub run: Box<dyn FnMut() -> Duration + 'a>,
}

/// Runs the sides in turn, `times` rounds after one that warms up. Returns each side's median time
/// for one operation, in nanoseconds.
pub fn interleaved_medians(times: usize, sides: &mut [Side<'_>]) -> Vec<f64> {
    let mut taken = vec![Vec::new(); sides.len()];
    for round in 0..=times {
        for (side, taken) in sides.iter_mut().zip(&mut taken) {
            let time = (side.run)();
            if round > 0 {
                taken.push(time.as_nanos() as f64 / side.operations as f64);
            }
        }
    }
    let median = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
    };
    taken.into_iter().map(median).collect()
}

/// Prints a line for each side: its time, and how many times faster it is than each other side.
pub fn print_table(title: &str, sides: &[Side<'_>], medians: &[f64]) {
    println!("\n{title}");
    for (side, time) in sides.iter().zip(medians) {
        let against = sides.iter().zip(medians).filter(|(peer, _)| peer.name != side.name);
        let ratios: Vec<String> =
            against.map(|(peer, other)| format!("{:.2}x {}", other / time, peer.name)).collect();
        println!("  {:28} {:>12.1} ns   {}", side.name, time, ratios.join(", "));
    }
}
