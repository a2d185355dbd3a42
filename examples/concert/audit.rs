//! Verify and repair: where each counter's rows are, a run over them, and its report.

use std::io::{self, Write};

use keepcount::concert::{Concert, Trends};
use keepcount::reconcile::{Mode, Options, Reconciler, Report, Source, SqliteAudit, Token};
use rusqlite::Connection;

use crate::cli::Outcome;
use crate::error::{Error, Result};
use crate::rows::{ArtistRow, SetlistRow, ShowRow, VoteRow};
use crate::schema::C;
use crate::site::Site;

/// The scope of a run; what is not given has keepcount's default.
#[derive(Debug, Default)]
pub struct Scope {
    /// Empty for all of them.
    pub counters: Vec<String>,
    pub page: Option<u32>,
    pub max_pages: Option<u64>,
    pub samples: Option<u32>,
    pub force: bool,
    /// Where a stopped run ended; the token contains all of the above except `max_pages`.
    pub resume: Option<String>,
}

/// Declares the sources: for each counter its table, key columns, amount and filter, in SQL, and
/// the row whose tally they must agree with. Every repair first checks a sample of rows. SQL cannot
/// say how votes decay: their rows are recounted by the tally itself. Rollups have no rows of their
/// own.
///
/// Both databases share these declarations: `$read` reads a row of that database, `$wait` is
/// `await` if adding a source waits for an answer, and `$trends` are the half-lives that are
/// counted.
macro_rules! declare_sources {
    ($audit:ident, $Source:ident, $read:ident, $trends:expr $(, $wait:tt)?) => {{
        let shows = || $Source::table("shows", ["artist_id"]);
        let setlists = || $Source::table("setlists", ["show_id"]);
        let votes = || $Source::table("votes", ["setlist_id"]);
        let votes_of_users = || $Source::table("votes", ["user_id"]);
        let upcoming = shows().filter("status = 'upcoming'");
        let up = votes().filter("kind = 'up'");
        let score = votes().amount("CASE kind WHEN 'up' THEN 1 ELSE -1 END");

        let artists = || $Source::table("artists", ["id"]);
        let fame = artists().amount("followers / 1000000 + popularity / 10");
        let dates = $Source::table("shows", ["artist_id", "date"]);
        let upcoming_dates = $Source::table("shows", ["date", "id"]).filter("status = 'upcoming'");
        let show_artists = $Source::table("shows", ["id", "artist_id"]).parent("artists", ["id"]);
        let setlist_shows = $Source::table("setlists", ["id", "show_id"]).parent("shows", ["id"]);

        $audit.add(C::ARTIST_LISTED, artists().rows(ArtistRow::COLUMNS, ArtistRow::$read))$(.$wait)??;
        $audit.add(C::ARTIST_FAME, fame.rows(ArtistRow::COLUMNS, ArtistRow::$read))$(.$wait)??;
        $audit.add(C::ARTIST_SHOWS_AHEAD, dates.rows(ShowRow::COLUMNS, ShowRow::$read))$(.$wait)??;
        $audit.add(C::SHOW_UPCOMING, upcoming_dates.rows(ShowRow::COLUMNS, ShowRow::$read))$(.$wait)??;
        $audit.add(C::SHOW_ARTIST, show_artists.rows(ShowRow::COLUMNS, ShowRow::$read))$(.$wait)??;
        $audit.add(C::SETLIST_SHOW, setlist_shows.rows(SetlistRow::COLUMNS, SetlistRow::$read))$(.$wait)??;
        $audit.add(C::ARTIST_SHOWS, shows().rows(ShowRow::COLUMNS, ShowRow::$read))$(.$wait)??;
        $audit.add(C::ARTIST_UPCOMING_SHOWS, upcoming.rows(ShowRow::COLUMNS, ShowRow::$read))$(.$wait)??;
        $audit.add(C::SHOW_SETLISTS, setlists().rows(SetlistRow::COLUMNS, SetlistRow::$read))$(.$wait)??;
        $audit.add(C::SETLIST_VOTES, votes().rows(VoteRow::COLUMNS, VoteRow::$read))$(.$wait)??;
        $audit.add(C::SETLIST_UPVOTES, up.rows(VoteRow::COLUMNS, VoteRow::$read))$(.$wait)??;
        $audit.add(C::SETLIST_SCORE, score.rows(VoteRow::COLUMNS, VoteRow::$read))$(.$wait)??;
        $audit.add(C::USER_VOTES, votes_of_users().rows(VoteRow::COLUMNS, VoteRow::$read))$(.$wait)??;
        for trend in $trends {
            let epochs = $Source::table("votes", ["setlist_id", "created_at"]).per(trend.half_life.as_seconds());
            $audit.add(trend.setlists, epochs.rows(VoteRow::COLUMNS, VoteRow::$read).by_tally())$(.$wait)??;
        }
    }};
}

pub(crate) use declare_sources;

pub fn sources<T: Trends<String>>(conn: &Connection) -> Result<SqliteAudit<'_>> {
    let mut audit = SqliteAudit::new(conn, &Concert::<String, T>::SCHEMA)?;
    declare_sources!(audit, Source, read, T::TRENDS);
    Ok(audit)
}

/// Runs from the beginning, or resumes where a stopped run ended.
pub fn run(site: &mut impl Site, mode: Mode, scope: &Scope) -> Result<Report> {
    site.audit(&mut reconciler(mode, scope)?)
}

/// Ends a run. After an error, what was done before stays done, and the run can be resumed from
/// there.
pub fn ended(run: &Reconciler, done: keepcount::Result<Report>) -> Result<Report> {
    done.map_err(|error| {
        let report = run.report();
        let token = report.token.as_ref().map(|token| format!("\nresume {token}")).unwrap_or_default();
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
    let counters = scope.counters.iter().map(|name| C::SCHEMA.find(name)).collect::<keepcount::Result<Vec<_>>>()?;
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

/// Returns the outcome that decides the exit code; a stopped run is reported as stopped, whatever
/// it found. Counters that were left out are an error: to resume would not help.
pub fn outcome(mode: Mode, report: &Report) -> Result<Outcome> {
    if report.outcome == keepcount::reconcile::Outcome::Incomplete {
        let failures = report.counters.iter().filter_map(|counter| counter.failure.as_deref());
        return Err(Error::said(format!("not compared: {}", failures.collect::<Vec<_>>().join("; "))));
    }
    Ok(match mode {
        _ if !report.complete() => Outcome::Stopped,
        Mode::Verify if report.drift() > 0 => Outcome::Drift,
        Mode::Verify | Mode::Repair | Mode::Backfill => Outcome::Clean,
    })
}
