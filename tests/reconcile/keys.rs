//! Runs over single keys of a counter, in memory and on SQLite.

use std::time::Duration;

use crate::support::world::World;
use keepcount::reconcile::{
    Audit, Columns, Freshness, GracePeriod, MemoryAudit, Mode, Options, Outcome, Reconciler,
    Report, Run, SqliteAudit, SqliteRows, SystemRuntime, repair, verify,
};
use keepcount::{
    Batch, Counter, CounterId, Error, KeyBuf, MemoryStore, Record, Schema, SqliteStore, Store,
    Tally,
};
use rusqlite::Connection;

const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
const SONG_VOTES: Counter<(String, i64)> = Counter::new("song.votes");
const MEMBERSHIP: Counter<(i64, i64)> = Counter::new("show.artist");
const ARTIST_VOTES: Counter<i64> = Counter::new("artist.votes").sum_of(SHOW_VOTES, MEMBERSHIP);
const SCHEMA: Schema = Schema::new(&[
    SHOW_VOTES.table(),
    SONG_VOTES.table(),
    MEMBERSHIP.table(),
    ARTIST_VOTES.table(),
]);

const SONGS: [&str; 6] = ["", "a", "a\u{10ffff}", "ab", "b", "b c"];

/// The counters that votes add to.
const OF_VOTES: [CounterId; 3] = [SHOW_VOTES.id(), SONG_VOTES.id(), MEMBERSHIP.id()];

#[derive(Debug, Clone)]
struct Vote {
    show: i64,
    song: String,
    night: i64,
}

impl Record for Vote {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SHOW_VOTES, self.show, 1);
        to.add(SONG_VOTES, (&self.song, self.night), 1);
        if self.night == 0 && self.song == "a" {
            to.add(MEMBERSHIP, (self.show, self.show / 10), 1);
        }
    }
}

fn votes() -> Vec<Vote> {
    let all = (-20..20).flat_map(|show| SONGS.map(|song| (show, song)));
    all.map(|(show, song)| Vote { show, song: song.to_owned(), night: show.rem_euclid(3) - 1 })
        .collect()
}

/// Deltas without rows, which make every total wrong.
fn drift_batch() -> Batch {
    let mut batch = Batch::new();
    for vote in votes() {
        batch.add(SHOW_VOTES, vote.show, 1);
        batch.add(SONG_VOTES, (&vote.song, vote.night), 1);
    }
    batch.add(SHOW_VOTES, 1_000, 7);
    batch
}

fn sqlite() -> Connection {
    let conn = Connection::open_in_memory().unwrap();
    conn.execute_batch(
        "CREATE TABLE votes (show INTEGER, song TEXT, night INTEGER);
         CREATE INDEX by_show ON votes (show); CREATE INDEX by_song ON votes (song, night)",
    )
    .unwrap();
    for vote in votes() {
        let values = (vote.show, &vote.song, vote.night);
        conn.execute("INSERT INTO votes VALUES (?1, ?2, ?3)", values).unwrap();
    }
    SqliteStore::new(&conn, &SCHEMA).create().unwrap();
    conn
}

fn add_votes_and_drift(batch: &mut Batch) {
    for vote in votes() {
        batch.insert(&vote);
    }
    let mut more = drift_batch();
    batch.merge(&mut more);
}

fn sqlite_audit(conn: &Connection) -> SqliteAudit<'_> {
    let rows = SqliteRows::of("votes", |row| {
        Ok(Vote { show: row.get(0)?, song: row.get(1)?, night: row.get(2)? })
    });
    let mut audit = SqliteAudit::new(conn, &SCHEMA).unwrap();
    let (shows, songs) = (Columns::of(["show"]).count(), Columns::of(["song", "night"]).count());
    audit.add(rows.key(SHOW_VOTES, shows).key(SONG_VOTES, songs)).unwrap();
    audit
}

/// Calls `each` with an audit of every kind, over totals that are all wrong.
fn with_each_audit(mut each: impl FnMut(&str, &mut dyn Audit)) {
    let mut batch = Batch::new();
    let mut store = MemoryStore::new(&SCHEMA);
    add_votes_and_drift(&mut batch);
    store.apply(&mut batch).unwrap();
    let mut memory = MemoryAudit::new(&mut store);
    memory.rows(&OF_VOTES, votes).unwrap();
    each("memory", &mut memory);

    let store = MemoryStore::new(&SCHEMA);
    add_votes_and_drift(&mut batch);
    store.begin(&mut batch).unwrap().commit().unwrap();
    let mut live =
        MemoryAudit::live(&store, GracePeriod::after(Duration::from_secs(1)), SystemRuntime::new());
    live.rows(&OF_VOTES, votes).unwrap();
    each("memory, live", &mut live);

    let conn = sqlite();
    add_votes_and_drift(&mut batch);
    SqliteStore::new(&conn, &SCHEMA).apply(&mut batch).unwrap();
    each("SQLite", &mut sqlite_audit(&conn));
}

fn found(report: &Report) -> Vec<(String, i64, i64)> {
    let samples = report.counters.iter().flat_map(|counter| &counter.samples);
    samples.map(|sample| (sample.key_text(), sample.stored, sample.expected)).collect()
}

fn verify_all(audit: &mut dyn Audit) -> Vec<(String, i64, i64)> {
    let counters = [SHOW_VOTES.id(), SONG_VOTES.id()];
    found(
        &verify(&SCHEMA)
            .counters(&counters)
            .options(Options::default().samples(1_000))
            .run(audit)
            .unwrap(),
    )
}

#[test]
fn run_over_a_key_reports_and_repairs_that_key_alone() {
    with_each_audit(|kind, audit| {
        let mut left = verify_all(audit);
        assert_eq!(left.len(), 41 + SONGS.len() * 3, "{kind}");
        for (counter, key) in [
            (SHOW_VOTES.id(), "-20"),
            (SHOW_VOTES.id(), "7"),
            (SHOW_VOTES.id(), "19"),
            (SHOW_VOTES.id(), "1000"),
            (SONG_VOTES.id(), ",-1"),
            (SONG_VOTES.id(), "a\u{10ffff},0"),
            (SONG_VOTES.id(), "ab,1"),
            (SONG_VOTES.id(), "b c,-1"),
        ] {
            let at = left.iter().position(|(known, ..)| known == key).unwrap();
            let wanted = vec![left.remove(at)];
            let report = verify(&SCHEMA).key_text(&counter, key).run(audit).unwrap();
            assert_eq!(
                (found(&report), &report.outcome),
                (wanted.clone(), &Outcome::Complete),
                "{kind}, {key}"
            );
            let report = repair(&SCHEMA).key_text(&counter, key).run(audit).unwrap();
            assert_eq!(
                (found(&report), report.counters[0].corrected),
                (wanted, 1),
                "{kind}, {key}"
            );
            assert!(
                verify(&SCHEMA).key_text(&counter, key).run(audit).unwrap().drift() == 0,
                "{kind}, {key}"
            );
            assert_eq!(verify_all(audit), left, "{kind}, {key}: nothing else is repaired");
        }
    });
}

#[test]
fn run_over_several_keys_takes_each_once_in_any_order() {
    with_each_audit(|kind, audit| {
        let of = |mode| {
            Run::new(mode, &SCHEMA)
                .key(SHOW_VOTES, 7)
                .key(SHOW_VOTES, -20)
                .key_text(&SHOW_VOTES.id(), "7")
        };
        let report = of(Mode::Repair).key(SHOW_VOTES, 55).run(audit).unwrap();
        assert_eq!(found(&report), [("-20".to_owned(), 12, 6), ("7".to_owned(), 12, 6)], "{kind}");
        assert_eq!(
            (report.counters[0].corrected, report.pages),
            (2, 3),
            "{kind}: 55 has no rows and no total"
        );
        assert!(found(&of(Mode::Verify).run(audit).unwrap()).is_empty(), "{kind}");
        // A run over keys stops at its limits between two keys, without a token.
        let report = of(Mode::Verify).options(Options::default().max_pages(1)).run(audit).unwrap();
        assert_eq!(
            (report.outcome, report.pages, report.token),
            (Outcome::Limit("pages"), 1, None),
            "{kind}"
        );
    });
}

#[test]
fn run_over_a_key_of_a_rollup_compares_it_with_what_it_sums() {
    with_each_audit(|kind, audit| {
        // The rollup includes the drift of its base, so it has none of its own.
        let report = verify(&SCHEMA).key(ARTIST_VOTES, 1).run(audit).unwrap();
        assert_eq!((report.drift(), report.counters.len(), report.pages), (0, 1, 1), "{kind}");
    });
    let conn = sqlite();
    let mut batch = Batch::new();
    add_votes_and_drift(&mut batch);
    SqliteStore::new(&conn, &SCHEMA).apply(&mut batch).unwrap();
    conn.execute("UPDATE artist_votes SET total = total + 1", ()).unwrap();
    let report = repair(&SCHEMA).key(ARTIST_VOTES, 1).run(&mut sqlite_audit(&conn)).unwrap();
    assert_eq!((report.drift(), report.counters[0].corrected), (1, 1));
    let report = verify(&SCHEMA)
        .key(ARTIST_VOTES, 0)
        .key(ARTIST_VOTES, 1)
        .run(&mut sqlite_audit(&conn))
        .unwrap();
    assert_eq!(report.drift(), 1);
}

#[test]
fn run_over_a_key_does_not_verify_its_counter() {
    with_each_audit(|kind, audit| {
        let mut freshness = Freshness::new(&SCHEMA);
        repair(&SCHEMA).options(Options::default().samples(0)).run(audit).unwrap();
        let report = verify(&SCHEMA).key(SHOW_VOTES, 7).run(audit).unwrap();
        let counter = &report.counters[0];
        assert!(
            report.complete() && !counter.complete && !counter.clean && !counter.begun,
            "{kind}"
        );
        freshness.observe(&report, 1_000);
        assert_eq!(freshness.age(&SHOW_VOTES.id(), 1_000), None, "{kind}");
    });
}

#[test]
fn invalid_keys_and_combinations_are_refused() {
    let run = |run: Run<'_>| run.reconciler().map(drop).unwrap_err();
    let (votes, songs) = (SHOW_VOTES.id(), SONG_VOTES.id());
    assert!(matches!(run(verify(&SCHEMA).key_text(&votes, "seven")), Error::Key { .. }));
    assert!(matches!(run(verify(&SCHEMA).key_text(&songs, "a")), Error::Key { .. }));
    let backfill = keepcount::reconcile::backfill(&SCHEMA).key(SHOW_VOTES, 7);
    for refused in [
        backfill,
        verify(&SCHEMA).key(SHOW_VOTES, 7).key(SONG_VOTES, ("a", 1)),
        verify(&SCHEMA).key(SHOW_VOTES, 7).counters(&[votes]),
    ] {
        assert!(matches!(run(refused), Error::InvalidUse { .. }));
    }
    let keys = |keys: &[KeyBuf]| {
        Reconciler::keys(Mode::Verify, &SCHEMA, votes, keys, Options::default()).unwrap_err()
    };
    assert!(matches!(keys(&[]), Error::InvalidUse { .. }));
    assert!(matches!(keys(&[KeyBuf::of::<String>("x")]), Error::Key { .. }));
    // An empty source with many totals that are not 0 is refused, even for a run over one key.
    let mut store = MemoryStore::new(&SCHEMA);
    let mut batch = Batch::new();
    (0..150).for_each(|show: i64| batch.add(SHOW_VOTES, show, 1));
    store.apply(&mut batch).unwrap();
    let mut audit = MemoryAudit::new(&mut store);
    audit.rows(&OF_VOTES, Vec::<Vote>::new).unwrap();
    let refused = repair(&SCHEMA).key(SHOW_VOTES, 7).run_with(&mut audit, &mut World::default());
    assert!(matches!(refused, Err(Error::SourceEmpty { .. })));
}
