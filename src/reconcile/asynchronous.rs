//! The audit, runtime and driver for asynchronous databases: what `audit` and `driver` are for
//! blocking ones.

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

/// Rows and totals behind a connection; [`Audit`](super::Audit) specifies each method and its
/// errors.
///
/// If you drop a future before it is ready, its work may be done or not; asking again is harmless.
pub trait AsyncAudit: Send {
    /// As [`Audit::identity`](super::Audit::identity).
    ///
    /// # Errors
    ///
    /// Errors of the database.
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
    /// Errors of the database.
    fn recall(&mut self, token: &Token) -> impl Future<Output = Result<Option<Token>>> + Send {
        let _ = token;
        async { Ok(None) }
    }

    /// As [`Audit::keep`](super::Audit::keep).
    ///
    /// # Errors
    ///
    /// Errors of the database.
    fn keep(&mut self, ask: &Keep) -> impl Future<Output = Result<Kept>> + Send {
        let _ = ask;
        async { Ok(Kept::Nowhere) }
    }

    /// As [`Audit::ready`](super::Audit::ready).
    ///
    /// # Errors
    ///
    /// Errors of the database.
    fn ready(&mut self, ask: &Ready) -> impl Future<Output = Result<Kept>> + Send {
        let _ = ask;
        async { Ok(Kept::Nowhere) }
    }
}

/// The runtime of an asynchronous run, as [`Runtime`](super::Runtime) is of a blocking one. A
/// throttle may query a database.
pub trait AsyncRuntime: Send {
    /// Returns the time since some fixed moment; it never goes back.
    fn now(&mut self) -> Duration;

    /// Waits about this long, or until the run is to stop.
    fn wait(&mut self, time: Duration, reason: &str) -> impl Future<Output = ()> + Send;

    /// Returns whether the run is to stop before its next page.
    fn stopped(&mut self) -> bool {
        false
    }

    /// Returns a reason not to compare a page now, if there is one, such as load or replication
    /// lag.
    fn throttle(&mut self) -> impl Future<Output = Option<String>> + Send {
        async { None }
    }

    /// Receives the progress, as [`Runtime::progress`](super::Runtime::progress) does.
    fn progress(&mut self, progress: &Progress) {
        let _ = progress;
    }
}

/// Runs a reconciler's steps until it ends, as [`run`](super::run) does.
///
/// If you drop the future, the run stays between two steps, or in one that may be done. Drive it
/// again, and it continues there.
///
/// # Errors
///
/// The first error that no retry fixes; [`Reconciler::report`] then says how far the run came and
/// where to resume.
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

    /// Only what every runtime must have.
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
