//! Repairs by `tokio::time::interval`: one part a second on a blocking thread. Ticks that come
//! during a part are skipped, and Ctrl-C ends a part between two pages.
//!
//! `cargo run --bin interval` is the demonstration, `cargo run --bin interval -- DB [ROUNDS]` takes
//! a database.

use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use keepcount::Cause;
use keepcount_with_tokio::{Asked, exit};
use tokio::signal::ctrl_c;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

/// This often for the demonstration only; every few minutes is enough for most counters.
const EVERY: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> ExitCode {
    exit(job().await)
}

async fn job() -> Result<(), Cause> {
    let asked = Asked::of_process()?;
    let mut ticks = interval(EVERY);
    // By default, missed ticks are made up for in a burst.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut interrupted = pin!(ctrl_c());
    for _ in 0..asked.rounds {
        tokio::select! {
            biased; // so that Ctrl-C is listened to before the first part begins
            _ = &mut interrupted => break,
            _ = ticks.tick() => {}
        }
        let repair = asked.repair.clone();
        let mut part = spawn_blocking(move || repair.part());
        tokio::select! {
            report = &mut part => println!("{}", report??),
            _ = &mut interrupted => {
                asked.repair.stop();
                // What was done is kept, and the token too.
                println!("{}", part.await??);
                break;
            }
        }
    }
    Ok(())
}
