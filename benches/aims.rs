//! Measures the aims of this crate as ratios to its peers: interleaved round by round in one run,
//! compared by medians.
//!
//! `cargo bench --bench aims` prints one table; `-- --test` runs one round of each.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss, missing_docs)]

#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod common;

use std::time::{Duration, Instant};

use common::sides::{Side, interleaved_medians, print_table};
use common::{KEEPERS, Keeper, Peers, Random, Votes, batch, is_test_run, time_rounds};
use keepcount::reconcile::Options;

fn memory(times: usize) {
    for keys in [1_000_u64, 1_000_000] {
        let Peers { store, dash, map } = Peers::filled(keys);
        for threads in [1, 2] {
            // The deltas of one round: one batch, or single deltas. These are few, so that their
            // batches are as warm in the caches as one that was just built.
            for (what, size, repeat) in [("batches of 1,024", 1024, 64), ("single deltas", 32, 512)]
            {
                let singles = size == 32;
                let operations = size * repeat;
                let mut sides = vec![
                    Side {
                        name: "keepcount",
                        operations,
                        run: Box::new(|| {
                            let build = |random: &mut Random| {
                                let keys = random.keys(size, keys);
                                if singles {
                                    keys.iter().map(|key| batch(&[*key])).collect()
                                } else {
                                    vec![batch(&keys)]
                                }
                            };
                            time_rounds(threads, repeat, build, |batches| {
                                for batch in batches {
                                    store.apply(batch).unwrap();
                                }
                            })
                        }),
                    },
                    Side {
                        name: "dashmap",
                        operations,
                        run: Box::new(|| {
                            time_rounds(
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
                        operations,
                        run: Box::new(|| {
                            time_rounds(
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
                let medians = interleaved_medians(times, &mut sides);
                print_table(
                    &format!(
                        "memory, {keys} keys, {threads} thread(s), {what}: a delta of each thread"
                    ),
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
        let mut keepers: Vec<(Keeper, &str, Votes)> = KEEPERS
            .iter()
            .map(|(keeper, name)| (*keeper, *name, Votes::open(folder.path(), *keeper)))
            .collect();
        let mut sides: Vec<Side<'_>> = keepers
            .iter_mut()
            .map(|(_, name, votes)| Side {
                name,
                operations: size * repeat,
                run: Box::new(|| timed(|| (0..repeat).for_each(|_| votes.transaction(size)))),
            })
            .collect();
        let medians = interleaved_medians(times, &mut sides);
        print_table(&format!("sqlite, transactions of {size}: a vote"), &sides, &medians);
    }
}

fn verification(times: usize, rows: u64, per_setlist: u64) {
    let folder = tempfile::tempdir().unwrap();
    let votes = Votes::filled(folder.path(), rows, per_setlist);
    let mut sides = [
        Side {
            name: "verify",
            operations: rows,
            run: Box::new(|| timed(|| assert_eq!(votes.verify(Options::default()).rows, rows))),
        },
        Side {
            name: "verify, pages of 1,000",
            operations: rows,
            run: Box::new(|| {
                timed(|| assert_eq!(votes.verify(Options::default().page(1000)).drift(), 0))
            }),
        },
        Side {
            name: "one GROUP BY",
            operations: rows,
            run: Box::new(|| timed(|| assert_eq!(votes.group_by().unsigned_abs(), rows))),
        },
    ];
    let medians = interleaved_medians(times, &mut sides);
    print_table(
        &format!("verify, {rows} votes of {} setlists: a vote", rows / per_setlist),
        &sides,
        &medians,
    );
}

fn main() {
    let (times, rows) = if is_test_run() { (1, 20_000) } else { (15, 2_000_000) };
    memory(times * 2);
    transactions(times);
    for per_setlist in [100, 10, 1] {
        verification(times, rows, per_setlist);
    }
}
