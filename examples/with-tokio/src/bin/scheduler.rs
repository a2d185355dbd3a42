//! Repairs by a cron scheduler, the crate `tokio-cron-scheduler`: one part every second. The
//! scheduler starts a run even if the last one has not ended, so a run that finds another in
//! progress does nothing.
//!
//! `cargo run --bin scheduler` is the demonstration, `cargo run --bin scheduler -- DB [ROUNDS]`
//! takes a database.

use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;

use keepcount::Cause;
use keepcount_with_tokio::{Asked, exit};
use tokio::signal::ctrl_c;
use tokio::sync::{Mutex, mpsc};
use tokio::task::spawn_blocking;
use tokio_cron_scheduler::{Job, JobScheduler};

/// Seconds come first. This often for the demonstration only; `0 */10 * * * *` is every ten
/// minutes.
const WHEN: &str = "* * * * * *";

#[tokio::main]
async fn main() -> ExitCode {
    exit(job().await)
}

async fn job() -> Result<(), Cause> {
    let asked = Asked::of_process()?;
    let at_work = Arc::new(Mutex::new(()));
    let (parts, mut done) = mpsc::channel(1);
    let job = Job::new_async(WHEN, {
        let (repair, at_work) = (asked.repair.clone(), Arc::clone(&at_work));
        move |_, _| {
            let (repair, at_work, parts) = (repair.clone(), Arc::clone(&at_work), parts.clone());
            Box::pin(async move {
                let Ok(_alone) = at_work.try_lock() else { return };
                let part = spawn_blocking(move || repair.part()).await;
                // It fails if there is no receiver any more, because the process ends.
                let _ = parts.send(part).await;
            })
        }
    })?;
    let mut scheduler = JobScheduler::new().await?;
    scheduler.add(job).await?;
    scheduler.start().await?;

    let mut interrupted = pin!(ctrl_c());
    let mut result = Ok(());
    for _ in 0..asked.rounds {
        tokio::select! {
            Some(part) = done.recv() => match part.map_err(Cause::from).flatten() {
                Ok(report) => println!("{report}"),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            },
            _ = &mut interrupted => break,
        }
    }
    asked.repair.stop();
    drop(done); // before waiting for a part, which may be waiting for a receiver
    scheduler.shutdown().await?;
    drop(at_work.lock().await);
    result
}
