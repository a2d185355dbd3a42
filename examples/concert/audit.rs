//! Verify and repair: the source of each counter, a run over the sources, and its report.

use std::io::{self, Write};

use keepcount::concert::{Concert, Trends};
use keepcount::reconcile::{
    Columns, Mode, Options, Reconciler, Report, SqliteAudit, SqliteRows, Token,
};
use rusqlite::Connection;

use crate::cli::Outcome;
use crate::error::{Error, Result};
use crate::rows::{ArtistRow, SetlistRow, ShowRow, VoteRow};
use crate::schema::C;
use crate::site::Site;

/// The scope of a run. An option that is `None` has keepcount's default.
#[derive(Debug, Default)]
pub struct Scope {
    /// All counters if empty.
    pub counters: Vec<String>,
    pub page: Option<u32>,
    pub max_pages: Option<u64>,
    pub samples: Option<u32>,
    pub force: bool,
    /// Where a stopped run ended; the token contains all of the above except `max_pages`.
    pub resume: Option<String>,
}

/// Declares the sources: for each kind of row its table and how a row is read, and for each counter
/// its key columns, amount and filter, in SQL, which must agree with the row's tally. Every repair
/// first checks that on a sample of rows. SQL cannot express how votes decay, so their rows are
/// recounted by the tally itself. Rollups have no rows of their own.
///
/// Both databases share these declarations: `$read` reads a row of that database, `$wait` is
/// `await` if adding a source waits for an answer, and `$trends` are the half-lives that are
/// counted.
macro_rules! declare_sources {
    ($audit:ident, $Rows:ident, $read:ident, $trends:expr $(, $wait:tt)?) => {{
        let upcoming = "status = 'upcoming'";
        let fame = "followers / 1000000 + popularity / 10";
        let score = "CASE kind WHEN 'up' THEN 1 ELSE -1 END";

        let artists = $Rows::of("artists", |row| Ok(ArtistRow::$read(row)?))
            .columns(ArtistRow::COLUMNS)
            .key(C::ARTIST_LISTED, Columns::of(["id"]).count())
            .key(C::ARTIST_FAME, Columns::of(["id"]).sum(fame));
        let shows = $Rows::of("shows", |row| Ok(ShowRow::$read(row)?))
            .columns(ShowRow::COLUMNS)
            .key(C::ARTIST_SHOWS, Columns::of(["artist_id"]).count())
            .key(C::ARTIST_UPCOMING_SHOWS, Columns::of(["artist_id"]).count().filter(upcoming))
            .key(C::ARTIST_SHOWS_AHEAD, Columns::of(["artist_id", "date"]).count())
            .key(C::SHOW_UPCOMING, Columns::of(["date", "id"]).count().filter(upcoming))
            .key(C::SHOW_ARTIST, Columns::of(["id", "artist_id"]).count().parent("artists", ["id"]));
        let setlists = $Rows::of("setlists", |row| Ok(SetlistRow::$read(row)?))
            .columns(SetlistRow::COLUMNS)
            .key(C::SHOW_SETLISTS, Columns::of(["show_id"]).count())
            .key(C::SETLIST_SHOW, Columns::of(["id", "show_id"]).count().parent("shows", ["id"]));
        let mut votes = $Rows::of("votes", |row| Ok(VoteRow::$read(row)?))
            .columns(VoteRow::COLUMNS)
            .key(C::SETLIST_VOTES, Columns::of(["setlist_id"]).count())
            .key(C::SETLIST_UPVOTES, Columns::of(["setlist_id"]).count().filter("kind = 'up'"))
            .key(C::SETLIST_SCORE, Columns::of(["setlist_id"]).sum(score))
            .key(C::USER_VOTES, Columns::of(["user_id"]).count());
        for trend in $trends {
            let epochs = Columns::of(["setlist_id", "created_at"]).per(trend.half_life.as_seconds());
            votes = votes.key(trend.setlists, epochs);
        }

        $audit.add(artists)$(.$wait)??;
        $audit.add(shows)$(.$wait)??;
        $audit.add(setlists)$(.$wait)??;
        $audit.add(votes)$(.$wait)??;
    }};
}

pub(crate) use declare_sources;

pub fn sources<T: Trends<String>>(conn: &Connection) -> Result<SqliteAudit<'_>> {
    let mut audit = SqliteAudit::new(conn, &Concert::<String, T>::SCHEMA)?;
    declare_sources!(audit, SqliteRows, read, T::TRENDS);
    Ok(audit)
}

/// Runs from the beginning, or resumes where a stopped run ended.
pub fn run(site: &mut impl Site, mode: Mode, scope: &Scope) -> Result<Report> {
    site.audit(&mut reconciler(mode, scope)?)
}

/// Returns the result of a run. After an error, it first prints the report so far and the token:
/// the pages before the error are done, and the run can be resumed from there.
pub fn finish(run: &Reconciler, result: keepcount::Result<Report>) -> Result<Report> {
    result.map_err(|error| {
        let report = run.report();
        let token =
            report.token.as_ref().map(|token| format!("\nresume {token}")).unwrap_or_default();
        let _ = writeln!(io::stderr(), "{report}{token}");
        error.into()
    })
}

fn reconciler(mode: Mode, scope: &Scope) -> Result<Reconciler> {
    let mut options = Options::default().force(scope.force);
    if let Some(pages) = scope.max_pages {
        options = options.max_pages(pages);
    }
    if let Some(token) = &scope.resume {
        let token: Token = token.parse()?;
        return Ok(Reconciler::resume(mode, &C::SCHEMA, &token, options)?);
    }
    if let Some(keys) = scope.page {
        options = options.page(keys as usize);
    }
    if let Some(keys) = scope.samples {
        options = options.samples(keys as usize);
    }
    if scope.counters.is_empty() {
        return Ok(Reconciler::new(mode, &C::SCHEMA, options)?);
    }
    let counters = scope
        .counters
        .iter()
        .map(|name| C::SCHEMA.find(name))
        .collect::<keepcount::Result<Vec<_>>>()?;
    Ok(Reconciler::scoped(mode, &C::SCHEMA, &counters, options)?)
}

/// Prints a report, for programs or for people.
pub fn print(out: &mut impl Write, report: &Report, json: bool) -> Result<()> {
    if json {
        serde_json::to_writer(&mut *out, report).map_err(std::io::Error::from)?;
        writeln!(out)?;
        return Ok(());
    }
    writeln!(out, "{}", report.table())?;
    if let Some(token) = &report.token {
        writeln!(out, "resume {token}")?;
    }
    Ok(())
}

/// Returns the outcome that decides the exit code. A stopped run is reported as stopped, whatever
/// it found. Counters that could not be compared are an error, because resuming would not help.
pub fn outcome(mode: Mode, report: &Report) -> Result<Outcome> {
    if report.outcome == keepcount::reconcile::Outcome::Incomplete {
        let failures = report.counters.iter().filter_map(|counter| counter.failure.as_deref());
        return Err(Error::said(format!(
            "not compared: {}",
            failures.collect::<Vec<_>>().join("; ")
        )));
    }
    Ok(match mode {
        _ if !report.complete() => Outcome::Stopped,
        Mode::Verify if report.drift() > 0 => Outcome::Drift,
        Mode::Verify | Mode::Repair | Mode::Backfill => Outcome::Clean,
    })
}
