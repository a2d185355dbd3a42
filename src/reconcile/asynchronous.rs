//! Audit, control and driver for databases that are asked over a connection: what `audit` and `drive` are, with waits.

use std::future::Future;
use std::time::Duration;

use super::audit::{Keep, Kept, PageDiff, PageRequest, Probe, ProbeResult, Ready, RepairRequest, Repaired};
use super::driver::{Answer, counter_of, ended, take};
use super::progress::Progress;
use super::reconciler::{Reconciler, Step};
use super::report::Report;
use super::token::Token;
use crate::error::Result;
use crate::observe;

/// Rows and totals in one value, asked over a connection; [`Audit`](super::Audit) says what each method does and how it fails.
///
/// A future that is dropped before it is ready has done what it was to do, or not; to ask again is harmless.
pub trait AsyncAudit: Send {
    /// As [`Audit::identity`](super::Audit::identity).
    ///
    /// # Errors
    ///
    /// What the database says.
    fn identity(&mut self) -> impl Future<Output = Result<u64>> + Send;

    /// As [`Audit::probe`](super::Audit::probe).
    ///
    /// # Errors
    ///
    /// As [`Audit::probe`](super::Audit::probe).
    fn probe(&mut self, ask: &Probe) -> impl Future<Output = Result<ProbeResult>> + Send;

    /// As [`Audit::compare`](super::Audit::compare).
    ///
    /// # Errors
    ///
    /// As [`Audit::compare`](super::Audit::compare).
    fn compare(&mut self, ask: &PageRequest) -> impl Future<Output = Result<PageDiff>> + Send;

    /// As [`Audit::repair`](super::Audit::repair): in a database, all of the keys or none.
    ///
    /// # Errors
    ///
    /// As [`Audit::repair`](super::Audit::repair).
    fn repair(&mut self, ask: &RepairRequest) -> impl Future<Output = Result<Repaired>> + Send;

    /// As [`Audit::recall`](super::Audit::recall).
    ///
    /// # Errors
    ///
    /// What the database says.
    fn recall(&mut self, token: &Token) -> impl Future<Output = Result<Option<Token>>> + Send {
        let _ = token;
        async { Ok(None) }
    }

    /// As [`Audit::keep`](super::Audit::keep).
    ///
    /// # Errors
    ///
    /// What the database says.
    fn keep(&mut self, ask: &Keep) -> impl Future<Output = Result<Kept>> + Send {
        let _ = ask;
        async { Ok(Kept::Nowhere) }
    }

    /// As [`Audit::ready`](super::Audit::ready).
    ///
    /// # Errors
    ///
    /// What the database says.
    fn ready(&mut self, ask: &Ready) -> impl Future<Output = Result<Kept>> + Send {
        let _ = ask;
        async { Ok(Kept::Nowhere) }
    }
}

/// The world around a run that waits; what [`Runtime`](super::Runtime) is for one that blocks. A throttle may ask the database.
pub trait AsyncRuntime: Send {
    /// The time since some moment; never goes back.
    fn now(&mut self) -> Duration;

    /// Waits about this long, or until the run is to stop.
    fn wait(&mut self, time: Duration, reason: &str) -> impl Future<Output = ()> + Send;

    /// Whether the run is to stop before its next page.
    fn stopped(&mut self) -> bool {
        false
    }

    /// Why no page may be measured just now, if so: a load, a lag.
    fn throttle(&mut self) -> impl Future<Output = Option<String>> + Send {
        async { None }
    }

    /// Told what [`Runtime::progress`](super::Runtime::progress) is told.
    fn progress(&mut self, progress: &Progress) {
        let _ = progress;
    }
}

/// Does a run's steps until it ends, as [`run`](super::run) does.
///
/// A future that is dropped leaves the run between two steps, or in one that may be done: to drive it again goes on where it was.
///
/// # Errors
///
/// The first error that no retry repairs; [`Reconciler::report`] then says how far the run came, and from where to go on.
pub async fn run_async(
    run: &mut Reconciler,
    audit: &mut impl AsyncAudit,
    runtime: &mut impl AsyncRuntime,
) -> Result<Report> {
    observe::run_async(run.mode(), drive(run, audit, runtime)).await
}

async fn drive(run: &mut Reconciler, audit: &mut impl AsyncAudit, runtime: &mut impl AsyncRuntime) -> Result<Report> {
    loop {
        if runtime.stopped() {
            run.stop();
        }
        let step = run.next(runtime.now());
        let counter = counter_of(&step);
        let answer = match step {
            Step::Identify => audit.identity().await.map(Answer::Identity),
            Step::Recall(token) => audit.recall(&token).await.map(Answer::Recalled),
            Step::Probe(probe) => audit.probe(&probe).await.map(Answer::Probed),
            Step::Compare(ask) => {
                if let Some(reason) = runtime.throttle().await {
                    run.throttled(reason, runtime.now());
                    continue;
                }
                run.passed(runtime.now());
                audit.compare(&ask).await.map(Answer::Compared)
            }
            Step::Repair(repair) => audit.repair(&repair).await.map(Answer::Repaired),
            Step::Ready(ready) => audit.ready(&ready).await.map(Answer::Ready),
            Step::Keep(keep) => audit.keep(&keep).await.map(Answer::Kept),
            Step::Wait(time, reason) => {
                runtime.wait(time, &reason).await;
                continue;
            }
            Step::End => return Ok(ended(run)),
        };
        match take(run, counter, answer, runtime.now()) {
            Ok(progress) => progress.iter().for_each(|progress| runtime.progress(progress)),
            Err(error) => {
                if let Some(keep) = run.keep_now()
                    && let Ok(kept) = audit.keep(&keep).await
                {
                    run.kept_now(keep, kept);
                }
                return Err(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What every control must have, and no more.
    struct Plain;

    impl AsyncRuntime for Plain {
        fn now(&mut self) -> Duration {
            Duration::ZERO
        }

        async fn wait(&mut self, _: Duration, _: &str) {}
    }

    #[tokio::test]
    async fn a_runtime_neither_stops_nor_holds_unless_it_says_so() {
        assert!(!Plain.stopped());
        assert_eq!(Plain.throttle().await, None);
    }
}
