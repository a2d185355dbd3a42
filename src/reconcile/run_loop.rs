//! The driver: it runs a reconciler's steps on an audit, blocking or not, in one loop.

use super::active_runs::Driven;
use super::audit::{AsyncAudit, Audit};
use super::reconciler::Reconciler;
use super::report::Report;
use super::runtime::{AsyncRuntime, Runtime};
use super::step::{Answer, Step};
use crate::error::Result;
use crate::observe;

/// The loop. It is a macro, since a blocking audit need not be `Send` and an asynchronous one must
/// be: no function is generic over both.
macro_rules! drive {
    ($run:ident, $audit:ident, $runtime:ident $(, $wait:tt)?) => {{
        let mut driven = Driven::new();
        loop {
            driven.list($run);
            if $runtime.stopped() {
                $run.stop();
            }
            let answer = match $run.next($runtime.now()) {
                Step::Ask(request) => $audit.answer(&request)$(.$wait)?,
                Step::Throttle => Answer::Throttled($runtime.throttle()$(.$wait)?),
                Step::Wait(time, reason) => {
                    $runtime.wait(time, &reason)$(.$wait)?;
                    continue;
                }
                Step::End => return Ok($run.report()),
            };
            if let Some(progress) = $run.handle(answer, $runtime.now())? {
                $runtime.progress(&progress);
            }
        }
    }};
}

/// Runs a reconciler's steps until it ends.
///
/// # Errors
///
/// The first error that no retry fixes; [`Reconciler::report`] then says how far the run came and
/// where to resume.
pub fn run(
    run: &mut Reconciler,
    audit: &mut (impl Audit + ?Sized),
    runtime: &mut (impl Runtime + ?Sized),
) -> Result<Report> {
    let _span = observe::run(run.mode());
    drive!(run, audit, runtime)
}

/// Runs a reconciler's steps until it ends, as [`run`] does.
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
    let mode = run.mode();
    // Boxed, since it holds an audit's futures, which are large, and you may hold it in your own.
    let driven = Box::pin(async { drive!(run, audit, runtime, await) });
    observe::run_async(mode, driven).await
}
