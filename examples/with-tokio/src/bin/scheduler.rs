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
use keepcount_with_tokio::{Arguments, exit_code};
use tokio::signal::ctrl_c;
use tokio::sync::{Mutex, mpsc};
use tokio::task::spawn_blocking;
use tokio_cron_scheduler::{Job, JobScheduler};

/// The first field is the second. Every second is for the demonstration only; `0 */10 * * * *` is
/// every ten minutes.
const SCHEDULE: &str = "* * * * * *";

#[tokio::main]
async fn main() -> ExitCode {
    exit_code(repair_on_schedule().await)
}

async fn repair_on_schedule() -> Result<(), Cause> {
    let arguments = Arguments::from_env()?;
    let running = Arc::new(Mutex::new(()));
    let (sender, mut results) = mpsc::channel(1);
    let job = Job::new_async(SCHEDULE, {
        let (repair, running) = (arguments.repair.clone(), Arc::clone(&running));
        move |_, _| {
            let (repair, running, sender) = (repair.clone(), Arc::clone(&running), sender.clone());
            Box::pin(async move {
                let Ok(_guard) = running.try_lock() else { return };
                let report = spawn_blocking(move || repair.run_part()).await;
                // Fails only if the process ends and has dropped the receiver.
                let _ = sender.send(report).await;
            })
        }
    })?;
    let mut scheduler = JobScheduler::new().await?;
    scheduler.add(job).await?;
    scheduler.start().await?;

    let mut interrupted = pin!(ctrl_c());
    let mut result = Ok(());
    for _ in 0..arguments.rounds {
        tokio::select! {
            Some(report) = results.recv() => match report.map_err(Cause::from).flatten() {
                Ok(report) => println!("{report}"),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            },
            _ = &mut interrupted => break,
        }
    }
    arguments.repair.stop();
    // Drop the receiver before waiting for a part, which may itself wait for room in the channel.
    drop(results);
    scheduler.shutdown().await?;
    drop(running.lock().await);
    result
}
