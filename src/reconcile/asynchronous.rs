//! Audit, control and driver for databases that are asked over a connection: what `audit` and `drive` are, with waits.

use std::future::Future;
use std::time::Duration;

use super::audit::{Ask, Keep, Kept, Look, Looked, Measured, Mend, Mended, Ready};
use super::drive::{Answer, counter_of, ended, take};
use super::machine::{Reconciler, Step};
use super::progress::Progress;
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

    /// As [`Audit::look`](super::Audit::look).
    ///
    /// # Errors
    ///
    /// As [`Audit::look`](super::Audit::look).
    fn look(&mut self, ask: &Look) -> impl Future<Output = Result<Looked>> + Send;

    /// As [`Audit::measure`](super::Audit::measure).
    ///
    /// # Errors
    ///
    /// As [`Audit::measure`](super::Audit::measure).
    fn measure(&mut self, ask: &Ask) -> impl Future<Output = Result<Measured>> + Send;

    /// As [`Audit::mend`](super::Audit::mend): in a database, all of the keys or none.
    ///
    /// # Errors
    ///
    /// As [`Audit::mend`](super::Audit::mend).
    fn mend(&mut self, ask: &Mend) -> impl Future<Output = Result<Mended>> + Send;

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

/// The world around a run that waits; what [`Control`](super::Control) is for one that blocks. A gate may ask the database.
pub trait AsyncControl: Send {
    /// The time since some moment; never goes back.
    fn now(&mut self) -> Duration;

    /// Waits about this long, or until the run is to stop.
    fn wait(&mut self, time: Duration, reason: &str) -> impl Future<Output = ()> + Send;

    /// Whether the run is to stop before its next page.
    fn stopped(&mut self) -> bool {
        false
    }

    /// Why no page may be measured just now, if so: a load, a lag.
    fn gate(&mut self) -> impl Future<Output = Option<String>> + Send {
        async { None }
    }

    /// Told what [`Control::progress`](super::Control::progress) is told.
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
/// The first error that no retry mends; [`Reconciler::report`] then says how far the run came, and from where to go on.
pub async fn run_async(
    run: &mut Reconciler,
    audit: &mut impl AsyncAudit,
    control: &mut impl AsyncControl,
) -> Result<Report> {
    observe::run_async(run.mode(), drive(run, audit, control)).await
}

async fn drive(run: &mut Reconciler, audit: &mut impl AsyncAudit, control: &mut impl AsyncControl) -> Result<Report> {
    loop {
        if control.stopped() {
            run.stop();
        }
        let step = run.next(control.now());
        let counter = counter_of(&step);
        let answer = match step {
            Step::Identify => audit.identity().await.map(Answer::Identity),
            Step::Recall(token) => audit.recall(&token).await.map(Answer::Recalled),
            Step::Look(look) => audit.look(&look).await.map(Answer::Looked),
            Step::Measure(ask) => {
                if let Some(reason) = control.gate().await {
                    run.held(reason, control.now());
                    continue;
                }
                run.passed(control.now());
                audit.measure(&ask).await.map(Answer::Measured)
            }
            Step::Mend(mend) => audit.mend(&mend).await.map(Answer::Mended),
            Step::Ready(ready) => audit.ready(&ready).await.map(Answer::Ready),
            Step::Keep(keep) => audit.keep(&keep).await.map(Answer::Kept),
            Step::Wait(time, reason) => {
                control.wait(time, &reason).await;
                continue;
            }
            Step::End => return Ok(ended(run)),
        };
        match take(run, counter, answer, control.now()) {
            Ok(progress) => progress.iter().for_each(|progress| control.progress(progress)),
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

    impl AsyncControl for Plain {
        fn now(&mut self) -> Duration {
            Duration::ZERO
        }

        async fn wait(&mut self, _: Duration, _: &str) {}
    }

    #[tokio::test]
    async fn a_control_neither_stops_nor_holds_unless_it_says_so() {
        assert!(!Plain.stopped());
        assert_eq!(Plain.gate().await, None);
    }
}
