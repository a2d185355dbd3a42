//! What a reconciler asks of its driver, and the answers.

use std::time::Duration;

use super::audit::{
    Keep, Kept, PageDiff, PageRequest, Probe, ProbeResult, Ready, RepairRequest, Repaired,
};
use super::token::Token;
use crate::error::Error;

/// What a driver does next. All steps but the last two have an [`Answer`], which it passes to
/// [`Reconciler::handle`](super::Reconciler::handle).
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // a run has one at a time
pub enum Step {
    /// Ask the audit: [`Audit::answer`](super::Audit::answer) gives the answer.
    Ask(Request),
    /// Ask the throttles, if there are any, and answer [`Answer::Throttled`]. It comes before each
    /// page.
    Throttle,
    /// Wait this long for this reason, then call only
    /// [`Reconciler::next`](super::Reconciler::next).
    Wait(Duration, String),
    /// Nothing is left to do: [`Reconciler::report`](super::Reconciler::report) is final.
    End,
}

/// A request to an audit. Each one has a method of [`Audit`](super::Audit).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// [`Audit::identity`](super::Audit::identity).
    Identify,
    /// [`Audit::recall`](super::Audit::recall).
    Recall(Token),
    /// [`Audit::probe`](super::Audit::probe).
    Probe(Probe),
    /// [`Audit::compare`](super::Audit::compare).
    Compare(PageRequest),
    /// [`Audit::repair`](super::Audit::repair).
    Repair(RepairRequest),
    /// [`Audit::ready`](super::Audit::ready).
    Ready(Ready),
    /// [`Audit::keep`](super::Audit::keep).
    Keep(Keep),
}

/// The answer to a [`Step`].
#[derive(Debug)]
pub enum Answer {
    /// To [`Request::Identify`].
    Identified(u64),
    /// To [`Request::Recall`].
    Recalled(Option<Token>),
    /// To [`Request::Probe`].
    Probed(ProbeResult),
    /// To [`Request::Compare`].
    Compared(PageDiff),
    /// To [`Request::Repair`].
    Repaired(Repaired),
    /// To [`Request::Ready`].
    Readied(Kept),
    /// To [`Request::Keep`].
    Kept(Kept),
    /// To [`Step::Throttle`]: a reason not to compare a page now, if there is one.
    Throttled(Option<String>),
    /// To any request: the error instead of an answer.
    Failed(Error),
}
