//! Repairs by `tokio::time::interval`: one part a second on a blocking thread. Ticks that come
//! during a part are skipped, and Ctrl-C ends a part between two pages.
//!
//! `cargo run --bin interval` is the demonstration, `cargo run --bin interval -- DB [ROUNDS]` takes
//! a database.

use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use keepcount::Cause;
use keepcount_with_tokio::{Arguments, exit_code};
use tokio::signal::ctrl_c;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

/// One second is for the demonstration only; a few minutes suit most counters.
const PERIOD: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> ExitCode {
    exit_code(repair_periodically().await)
}

async fn repair_periodically() -> Result<(), Cause> {
    let arguments = Arguments::from_env()?;
    let mut ticks = interval(PERIOD);
    // By default, a burst makes up for missed ticks.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut interrupted = pin!(ctrl_c());
    for _ in 0..arguments.rounds {
        tokio::select! {
            biased; // polls `ctrl_c` first, so that it is handled from before the first part on
            _ = &mut interrupted => break,
            _ = ticks.tick() => {}
        }
        let repair = arguments.repair.clone();
        let mut part = spawn_blocking(move || repair.run_part());
        tokio::select! {
            report = &mut part => println!("{}", report??),
            _ = &mut interrupted => {
                arguments.repair.stop();
                // The part keeps what it repaired, and saves its token.
                println!("{}", part.await??);
                break;
            }
        }
    }
    Ok(())
}
