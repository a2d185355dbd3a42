//! The aims of this crate as ratios, each against its peer: interleaved round by round in one run, compared by medians.
//!
//! `cargo bench --bench aims` prints one table; `-- --test` runs a round of each.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss, missing_docs)]

#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod common;

use std::time::{Duration, Instant};

use common::{KEEPERS, Keeper, Peers, Random, Votes, batch, only_tested, rounds};
use keepcount::reconcile::Options;

/// One thing that is timed: a name, how many it does a call, and the call, which gives its time.
struct Side<'a> {
    name: &'static str,
    each: u64,
    run: Box<dyn FnMut() -> Duration + 'a>,
}

/// Runs the sides in turn, and gives each side's median time for one of what it does, in nanoseconds.
fn interleaved(times: usize, sides: &mut [Side<'_>]) -> Vec<f64> {
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
fn table(title: &str, sides: &[Side<'_>], medians: &[f64]) {
    println!("\n{title}");
    for (side, time) in sides.iter().zip(medians) {
        let against = sides.iter().zip(medians).filter(|(peer, _)| peer.name != side.name);
        let ratios: Vec<String> = against.map(|(peer, other)| format!("{:.2}x {}", other / time, peer.name)).collect();
        println!("  {:28} {:>12.1} ns   {}", side.name, time, ratios.join(", "));
    }
}

fn memory(times: usize) {
    for keys in [1_000_u64, 1_000_000] {
        let Peers { store, dash, map } = Peers::filled(keys);
        for threads in [1, 2] {
            // So many deltas a round: a batch, or singles few enough to be as near as a batch that was just built.
            for (what, size, repeat) in [("batches of 1,024", 1024, 64), ("single deltas", 32, 512)] {
                let singles = size == 32;
                let each = size * repeat;
                let mut sides = vec![
                    Side {
                        name: "keepcount",
                        each,
                        run: Box::new(|| {
                            let build = |random: &mut Random| {
                                let keys = random.keys(size, keys);
                                if singles {
                                    keys.iter().map(|key| batch(&[*key])).collect()
                                } else {
                                    vec![batch(&keys)]
                                }
                            };
                            rounds(threads, repeat, build, |batches| {
                                for batch in batches {
                                    store.apply(batch).unwrap();
                                }
                            })
                        }),
                    },
                    Side {
                        name: "dashmap",
                        each,
                        run: Box::new(|| {
                            rounds(
                                threads,
                                repeat,
                                |random| random.keys(size, keys),
                                |list| {
                                    for key in list {
                                        *dash.entry(*key).or_insert(0) += 1;
                                    }
                                },
                            )
                        }),
                    },
                ];
                if threads == 1 {
                    sides.push(Side {
                        name: "hashbrown",
                        each,
                        run: Box::new(|| {
                            rounds(
                                1,
                                repeat,
                                |random| random.keys(size, keys),
                                |list| {
                                    let mut map = map.lock();
                                    for key in list {
                                        *map.entry(*key).or_insert(0) += 1;
                                    }
                                },
                            )
                        }),
                    });
                }
                let medians = interleaved(times, &mut sides);
                table(
                    &format!("memory, {keys} keys, {threads} thread(s), {what}: a delta of each thread"),
                    &sides,
                    &medians,
                );
            }
        }
    }
}

#[allow(clippy::disallowed_methods)]
fn timed(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

fn transactions(times: usize) {
    for (size, repeat) in [(1, 40), (100, 10), (10_000, 1)] {
        let folder = tempfile::tempdir().unwrap();
        let mut keepers: Vec<(Keeper, &str, Votes)> =
            KEEPERS.iter().map(|(keeper, name)| (*keeper, *name, Votes::open(folder.path(), *keeper))).collect();
        let mut sides: Vec<Side<'_>> = keepers
            .iter_mut()
            .map(|(_, name, votes)| Side {
                name,
                each: size * repeat,
                run: Box::new(|| timed(|| (0..repeat).for_each(|_| votes.transaction(size)))),
            })
            .collect();
        let medians = interleaved(times, &mut sides);
        table(&format!("sqlite, transactions of {size}: a vote"), &sides, &medians);
    }
}

fn verification(times: usize, rows: u64, each: u64) {
    let folder = tempfile::tempdir().unwrap();
    let votes = Votes::settled(folder.path(), rows, each);
    let mut sides = [
        Side {
            name: "verify",
            each: rows,
            run: Box::new(|| timed(|| assert_eq!(votes.verify(Options::default()).rows, rows))),
        },
        Side {
            name: "verify, pages of 1,000",
            each: rows,
            run: Box::new(|| timed(|| assert_eq!(votes.verify(Options::default().page(1000)).drift(), 0))),
        },
        Side {
            name: "one GROUP BY",
            each: rows,
            run: Box::new(|| timed(|| assert_eq!(votes.group_by().unsigned_abs(), rows))),
        },
    ];
    let medians = interleaved(times, &mut sides);
    table(&format!("verify, {rows} votes of {} setlists: a vote", rows / each), &sides, &medians);
}

fn main() {
    let (times, rows) = if only_tested() { (1, 20_000) } else { (15, 2_000_000) };
    memory(times * 2);
    transactions(times);
    for each in [100, 10, 1] {
        verification(times, rows, each);
    }
}
