//! A verify, repair or backfill in one expression, for the usual case.

use super::audit::{AsyncAudit, Audit};
use super::options::{Mode, Options};
use super::reconciler::Reconciler;
use super::report::Report;
use super::run_loop;
use super::runtime::{AsyncRuntime, Runtime, SystemRuntime};
use super::token::Token;
#[cfg(feature = "tokio")]
use super::tokio_runtime::TokioRuntime;
use crate::counter::{Counter, CounterId};
use crate::error::{Error, Result, shortened};
use crate::key::{AsKey, Key, KeyBuf};
use crate::schema::Schema;

/// A verify: compares totals with rows, and changes none.
///
/// # Examples
///
/// ```
/// use keepcount::reconcile::{Audit, verify};
/// # use keepcount::{Counter, Schema};
/// # const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// # const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
///
/// fn is_right(audit: &mut impl Audit) -> keepcount::Result<bool> {
///     let report = verify(&SCHEMA).run(audit)?;
///     Ok(report.complete() && report.drift() == 0)
/// }
/// ```
pub fn verify(schema: &Schema) -> Run<'_> {
    Run::new(Mode::Verify, schema)
}

/// A repair: compares totals with rows, and adds what totals lack.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use keepcount::reconcile::{Audit, Options, Report, repair};
/// # use keepcount::{Counter, Schema};
/// # const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// # const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
///
/// fn nightly(audit: &mut impl Audit) -> keepcount::Result<Report> {
///     let options = Options::default().duty_percent(25).max_time(Duration::from_secs(3600));
///     repair(&SCHEMA).options(options).run(audit)
/// }
/// ```
pub fn repair(schema: &Schema) -> Run<'_> {
    Run::new(Mode::Repair, schema)
}

/// A backfill: fills new counters from their rows, and makes them ready.
///
/// **Run a backfill only after every writer runs these hooks: nothing can check that for you.**
///
/// # Examples
///
/// ```
/// use keepcount::reconcile::{Audit, Report, backfill};
/// # use keepcount::{Counter, Schema, Store};
/// # const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// # const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
///
/// fn fill(unready: &[keepcount::CounterId], audit: &mut impl Audit) -> keepcount::Result<Report> {
///     backfill(&SCHEMA).counters(unready).run(audit)
/// }
/// ```
pub fn backfill(schema: &Schema) -> Run<'_> {
    Run::new(Mode::Backfill, schema)
}

/// A run that is described, and not begun: what [`verify`], [`repair`] and [`backfill`] return.
///
/// You can run it more than once; each run is a new one.
#[derive(Debug, Clone)]
#[must_use = "it does nothing until it is run"]
pub struct Run<'a> {
    mode: Mode,
    schema: &'a Schema,
    options: Options,
    /// `None` for all of the schema.
    counters: Option<Vec<CounterId>>,
    keys: Vec<(CounterId, Wanted)>,
    resume: Option<Token>,
}

/// A key as the caller gives it.
#[derive(Debug, Clone)]
enum Wanted {
    Key(KeyBuf),
    Text(String),
}

impl Wanted {
    fn of(&self, counter: &CounterId) -> Result<KeyBuf> {
        match self {
            Self::Key(key) => Ok(key.clone()),
            Self::Text(text) => counter.parse_key(text).map_err(|cause| Error::Key {
                counter: counter.name(),
                key: shortened(text),
                cause,
            }),
        }
    }
}

impl<'a> Run<'a> {
    /// Describes a run of this mode over a schema, where the mode is known only when it runs.
    pub fn new(mode: Mode, schema: &'a Schema) -> Self {
        Self {
            mode,
            schema,
            options: Options::default(),
            counters: None,
            keys: Vec::new(),
            resume: None,
        }
    }

    /// Sets the options.
    pub const fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Restricts the run to these counters, as [`Reconciler::scoped`] does. The default is all
    /// counters of the schema.
    pub fn counters(mut self, counters: &[CounterId]) -> Self {
        self.counters = Some(counters.to_vec());
        self
    }

    /// Restricts the run to this key of one counter, as [`Reconciler::keys`] does. Call it again
    /// for more keys of the same counter.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::reconcile::{Audit, Report, repair};
    /// # use keepcount::{Counter, Schema};
    /// # const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
    /// # const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
    ///
    /// fn repair_show(show: i64, audit: &mut impl Audit) -> keepcount::Result<Report> {
    ///     repair(&SCHEMA).key(SHOW_VOTES, show).run(audit)
    /// }
    /// ```
    pub fn key<K: Key>(mut self, counter: Counter<K>, key: impl AsKey<K>) -> Self {
        self.keys.push((counter.id(), Wanted::Key(KeyBuf::of::<K>(key))));
        self
    }

    /// Restricts the run to a key like [`key`](Self::key), given as the text that
    /// [`CounterId::show`] gives: an operator's input, for example. A text that is no key is an
    /// error when it is run.
    pub fn key_text(mut self, counter: &CounterId, key: impl Into<String>) -> Self {
        self.keys.push((*counter, Wanted::Text(key.into())));
        self
    }

    /// Resumes from this token, if there is one, as [`Reconciler::resume`] does. The token knows
    /// the counters.
    ///
    /// # Examples
    ///
    /// A job that does a hundred pages at a time, and keeps its token in between:
    ///
    /// ```
    /// use keepcount::reconcile::{Audit, Options, SystemRuntime, Token, repair, run};
    /// # use keepcount::{Counter, Schema};
    /// # const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
    /// # const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
    ///
    /// fn job(audit: &mut impl Audit, token: &mut Option<Token>) -> keepcount::Result<()> {
    ///     let options = Options::default().max_pages(100);
    ///     let mut part = repair(&SCHEMA).options(options).resume(token.as_ref()).reconciler()?;
    ///     let done = run(&mut part, audit, &mut SystemRuntime::new());
    ///     *token = part.token(); // also after an error: the pages before it are done
    ///     println!("{}", done?);
    ///     Ok(())
    /// }
    /// ```
    pub fn resume(mut self, token: Option<&Token>) -> Self {
        self.resume = token.cloned();
        self
    }

    /// Returns the reconciler of a new run, to drive it yourself, or to ask it for its report and
    /// token after an error.
    ///
    /// # Errors
    ///
    /// Those of [`Reconciler::new`], [`Reconciler::scoped`], [`Reconciler::keys`] and
    /// [`Reconciler::resume`]; [`Error::InvalidUse`] for keys of several counters, and for keys
    /// together with counters or a token.
    pub fn reconciler(&self) -> Result<Reconciler> {
        let (mode, schema, options) = (self.mode, self.schema, self.options);
        match (self.keys.first(), &self.resume, &self.counters) {
            (None, Some(token), _) => Reconciler::resume(mode, schema, token, options),
            (None, None, Some(counters)) => Reconciler::scoped(mode, schema, counters, options),
            (None, None, None) => Reconciler::new(mode, schema, options),
            (Some((counter, _)), None, None)
                if self.keys.iter().all(|(other, _)| other == counter) =>
            {
                let keys = self
                    .keys
                    .iter()
                    .map(|(_, key)| key.of(counter))
                    .collect::<Result<Vec<KeyBuf>>>()?;
                Reconciler::keys(mode, schema, *counter, &keys, options)
            }
            (Some(_), ..) => {
                let reason = "a run over keys has one counter, no list of counters and no token";
                Err(Error::invalid_use("keys", reason))
            }
        }
    }

    /// Runs it, with a [`SystemRuntime`].
    ///
    /// # Errors
    ///
    /// Those of [`reconciler`](Self::reconciler), and the first error that no retry fixes.
    pub fn run(&self, audit: &mut (impl Audit + ?Sized)) -> Result<Report> {
        self.run_with(audit, &mut SystemRuntime::new())
    }

    /// Runs it with a runtime of yours: a stop flag, throttles, a progress callback.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn run_with(
        &self,
        audit: &mut (impl Audit + ?Sized),
        runtime: &mut (impl Runtime + ?Sized),
    ) -> Result<Report> {
        run_loop::run(&mut self.reconciler()?, audit, runtime)
    }

    /// Runs it, with a [`TokioRuntime`].
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    #[cfg(feature = "tokio")]
    pub async fn run_async(&self, audit: &mut impl AsyncAudit) -> Result<Report> {
        self.run_async_with(audit, &mut TokioRuntime::new()).await
    }

    /// Runs it with an asynchronous runtime of yours.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub async fn run_async_with(
        &self,
        audit: &mut impl AsyncAudit,
        runtime: &mut impl AsyncRuntime,
    ) -> Result<Report> {
        run_loop::run_async(&mut self.reconciler()?, audit, runtime).await
    }
}
