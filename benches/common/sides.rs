//! Peers that are measured in turn within one run, and compared by their medians.

#![allow(clippy::print_stdout, clippy::cast_precision_loss)]

use std::time::Duration;

/// One thing that is timed: a name, how many it does a call, and the call, which gives its time.
pub struct Side<'a> {
    pub name: &'static str,
    pub each: u64,
    pub run: Box<dyn FnMut() -> Duration + 'a>,
}

/// Runs the sides in turn, and gives each side's median time for one of what it does, in
/// nanoseconds.
pub fn interleaved(times: usize, sides: &mut [Side<'_>]) -> Vec<f64> {
    let mut taken = vec![Vec::new(); sides.len()];
    for round in 0..=times {
        for (side, taken) in sides.iter_mut().zip(&mut taken) {
            let time = (side.run)();
            if round > 0 {
                taken.push(time.as_nanos() as f64 / side.each as f64);
            }
        }
    }
    let median = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
    };
    taken.into_iter().map(median).collect()
}

/// Prints a line for each side, with its rate against those of the peers named last.
pub fn table(title: &str, sides: &[Side<'_>], medians: &[f64]) {
    println!("\n{title}");
    for (side, time) in sides.iter().zip(medians) {
        let against = sides.iter().zip(medians).filter(|(peer, _)| peer.name != side.name);
        let ratios: Vec<String> =
            against.map(|(peer, other)| format!("{:.2}x {}", other / time, peer.name)).collect();
        println!("  {:28} {:>12.1} ns   {}", side.name, time, ratios.join(", "));
    }
}
