//! Snapshots restored under another schema, in which counters are new, of a raised version,
//! missing, of another key or placement, or pruned.

use keepcount::{Batch, Counter, CounterId, Error, MemoryStore, Recovery, Schema, Snapshot};
use serde_json::{Value, json};

const VOTES: Counter<i64> = Counter::new("setlist.votes");
const LIKES: Counter<i64> = Counter::new("setlist.likes");
const MEMBERSHIP: Counter<(i64, i64)> = Counter::new("setlist.show");
const SHOW_VOTES: Counter<i64> = Counter::new("show.votes").sum_of(VOTES, MEMBERSHIP);
const BILLING: Counter<(i64, i64)> = Counter::new("show.artist");
const ARTIST_VOTES: Counter<i64> = Counter::new("artist.votes").sum_of(SHOW_VOTES, BILLING);
const DAYS: Counter<(i64, i32)> = Counter::new("setlist.days");
const SHOW_DAYS: Counter<(i64, i32)> = Counter::new("show.days").sum_of_suffix(DAYS, MEMBERSHIP);

const ALL: Schema = Schema::new(&[
    VOTES.table(),
    MEMBERSHIP.table(),
    BILLING.table(),
    DAYS.table(),
    SHOW_VOTES.table(),
    ARTIST_VOTES.table(),
    SHOW_DAYS.table(),
]);

/// Setlist 1 of show 70 of artist 700 has 5 votes, on two days.
fn sample(schema: &Schema) -> MemoryStore {
    let store = MemoryStore::new(schema);
    let known = |counter: CounterId| schema.position(&counter).is_ok();
    let mut batch = Batch::new();
    for counter in [VOTES, LIKES] {
        if known(counter.id()) {
            batch.add(counter, 1, 5);
        }
    }
    for (counter, key) in [(MEMBERSHIP, (1, 70)), (BILLING, (70, 700))] {
        if known(counter.id()) {
            batch.add(counter, key, 1);
        }
    }
    if known(DAYS.id()) {
        batch.add(DAYS, (1, 10), 2);
        batch.add(DAYS, (1, 20), 3);
    }
    store.apply(&mut batch).unwrap();
    store
}

/// Every counter of a schema: its name, the number of its totals, and whether it is ready.
fn states(store: &MemoryStore, schema: &Schema) -> Vec<(&'static str, usize, bool)> {
    let state = |id: CounterId| (id.name(), store.len(id).unwrap(), store.is_ready(id).unwrap());
    schema.counters().iter().map(|spec| state(spec.id())).collect()
}

#[track_caller]
fn assert_refused(schema: &Schema, snapshot: &Snapshot, reason: &str) {
    let error = MemoryStore::restore(schema, snapshot).expect_err(reason);
    assert!(matches!(error, Error::Snapshot { .. }), "{error:?}");
    assert_eq!(
        (error.to_string(), error.recovery()),
        (format!("snapshot: {reason}"), Recovery::Permanent)
    );
}

#[test]
fn new_counter_is_restored_empty_and_not_ready() {
    const OLD: Schema = Schema::new(&[VOTES.table(), MEMBERSHIP.table()]);
    let store = MemoryStore::restore(&ALL, &sample(&OLD).snapshot()).unwrap();
    let expected = [
        ("setlist.votes", 1, true),
        ("setlist.show", 1, true),
        ("show.artist", 0, false),
        ("setlist.days", 0, false),
        // Its base and its membership are restored, but it is not: its true total is 5.
        ("show.votes", 0, false),
        ("artist.votes", 0, false),
        ("show.days", 0, false),
    ];
    assert_eq!(states(&store, &ALL), expected);
    assert_eq!(store.total(VOTES, 1).unwrap(), 5);
    for counter in [SHOW_VOTES, ARTIST_VOTES] {
        assert!(matches!(store.total(counter, 70), Err(Error::NotReady { .. })));
    }
    // Hooks still count.
    let mut batch = Batch::new();
    batch.add(VOTES, 1, 1);
    store.apply(&mut batch).unwrap();
    assert_eq!(store.range(SHOW_VOTES.all(), 1).unwrap_err().recovery(), Recovery::Permanent);
    assert_eq!(store.len(SHOW_VOTES.id()).unwrap(), 1);
}

#[test]
fn raised_version_is_another_counter_and_its_rollups_are_not_ready() {
    const RAISED: Counter<i64> = VOTES.version(2);
    const SHOW: Counter<i64> = Counter::new("show.votes").sum_of(RAISED, MEMBERSHIP);
    const ARTIST: Counter<i64> = Counter::new("artist.votes").sum_of(SHOW, BILLING);
    const NEW: Schema = Schema::new(&[
        RAISED.table(),
        MEMBERSHIP.table(),
        BILLING.table(),
        DAYS.table(),
        SHOW.table(),
        ARTIST.table(),
        SHOW_DAYS.table(),
    ]);
    let mut snapshot = sample(&ALL).snapshot();
    assert_refused(
        &NEW,
        &snapshot,
        "counter setlist.votes is not in the schema; to give up its totals, call `Snapshot::drop_counter`",
    );
    assert_eq!(snapshot.orphaned(&NEW), ["setlist.votes"]);
    snapshot.drop_counter("setlist.votes").unwrap();
    assert!(snapshot.orphaned(&NEW).is_empty());
    assert_refused(
        &NEW,
        &snapshot,
        "counter show.votes is stored as \"table, sum of setlist.votes along setlist.show\", and as \"table, sum of setlist.votes.v2 \
         along setlist.show\" in the schema; to give up its totals, call `Snapshot::drop_counter`",
    );
    snapshot.drop_counter("show.votes").unwrap();
    let store = MemoryStore::restore(&NEW, &snapshot).unwrap();
    let expected = [
        ("setlist.votes", 0, false),
        ("setlist.show", 1, true),
        ("show.artist", 1, true),
        ("setlist.days", 2, true),
        ("show.votes", 0, false),
        // Empty, because its base is: what a backfill propagates must not be added to the sum in
        // the snapshot.
        ("artist.votes", 0, false),
        ("show.days", 2, true),
    ];
    assert_eq!(states(&store, &NEW), expected);
    let mut batch = Batch::new();
    batch.add(RAISED, 1, 3);
    store.apply(&mut batch).unwrap();
    let json = serde_json::to_value(store.snapshot()).unwrap();
    let artist = json["counters"]
        .as_array()
        .unwrap()
        .iter()
        .find(|known| known["name"] == "artist.votes")
        .unwrap();
    assert_eq!(artist["totals"][0][1], json!(3));
    // It is named with its version.
    assert_eq!(store.snapshot().orphaned(&ALL), ["setlist.votes.v2"]);
}

#[test]
fn raised_version_beside_the_old_one_leaves_the_old_one_unchanged() {
    const SHOW: Counter<i64> = SHOW_VOTES.version(2).sum_of(VOTES.version(2), MEMBERSHIP);
    const BOTH: Schema = Schema::new(&[
        VOTES.table(),
        VOTES.version(2).table(),
        MEMBERSHIP.table(),
        SHOW_VOTES.table(),
        SHOW.table(),
    ]);
    const OLD: Schema = Schema::new(&[VOTES.table(), MEMBERSHIP.table(), SHOW_VOTES.table()]);
    let store = MemoryStore::restore(&BOTH, &sample(&OLD).snapshot()).unwrap();
    let expected = [
        ("setlist.votes", 1, true),
        ("setlist.votes", 0, false),
        ("setlist.show", 1, true),
        ("show.votes", 1, true),
        ("show.votes", 0, false),
    ];
    assert_eq!(states(&store, &BOTH), expected);
    assert_eq!(store.total(SHOW_VOTES, 70).unwrap(), 5);
    assert_eq!(store.snapshot().orphaned(&OLD), ["setlist.votes.v2", "show.votes.v2"]);
}

#[test]
fn counter_missing_from_the_schema_is_named_and_can_be_dropped() {
    const MORE: Schema =
        Schema::new(&[LIKES.version(3).table(), VOTES.table(), MEMBERSHIP.table()]);
    const FEWER: Schema = Schema::new(&[VOTES.table()]);
    let mut snapshot = MemoryStore::new(&MORE).snapshot();
    assert_eq!(snapshot.orphaned(&FEWER), ["setlist.likes.v3", "setlist.show"]);
    assert!(snapshot.orphaned(&MORE).is_empty());
    assert_refused(
        &FEWER,
        &snapshot,
        "counter setlist.likes.v3 is not in the schema; to give up its totals, call `Snapshot::drop_counter`",
    );
    for name in ["setlist.likes", "setlist.likes.v2", "", "votes"] {
        let error = snapshot.drop_counter(name).unwrap_err();
        assert!(
            matches!(&error, Error::UnknownCounter { counter, .. } if counter == name),
            "{error}"
        );
    }
    for lost in snapshot.orphaned(&FEWER) {
        snapshot.drop_counter(&lost).unwrap();
    }
    assert_eq!(
        states(&MemoryStore::restore(&FEWER, &snapshot).unwrap(), &FEWER),
        [("setlist.votes", 0, true)]
    );
}

const PLAIN: Schema = Schema::new(&[VOTES.table()]);
const TEXTS: Schema = Schema::new(&[Counter::<String>::new("setlist.votes").table()]);

const SUM: Schema =
    Schema::new(&[VOTES.table(), LIKES.table(), MEMBERSHIP.table(), SHOW_VOTES.table()]);
const SHOW_LIKES: Counter<i64> = Counter::new("show.votes").sum_of(LIKES, MEMBERSHIP);
const OTHER_SUM: Schema =
    Schema::new(&[VOTES.table(), LIKES.table(), MEMBERSHIP.table(), SHOW_LIKES.table()]);
const NO_SUM: Schema = Schema::new(&[
    VOTES.table(),
    LIKES.table(),
    MEMBERSHIP.table(),
    Counter::<i64>::new("show.votes").table(),
]);

#[test]
fn counter_of_another_key_or_placement_is_refused_and_named() {
    let there = "counter setlist.votes has the key (i64), and (text) in the schema; to give up its totals, call `Snapshot::drop_counter`";
    assert_refused(&TEXTS, &sample(&PLAIN).snapshot(), there);

    let sum = "table, sum of setlist.votes along setlist.show";
    for (schema, place) in
        [(OTHER_SUM, "table, sum of setlist.likes along setlist.show"), (NO_SUM, "table")]
    {
        let here = format!(
            "counter show.votes is stored as {sum:?}, and as {place:?} in the schema; to give up its totals, call `Snapshot::drop_counter`"
        );
        assert_refused(&schema, &sample(&SUM).snapshot(), &here);
        let there = format!(
            "counter show.votes is stored as {place:?}, and as {sum:?} in the schema; to give up its totals, call `Snapshot::drop_counter`"
        );
        assert_refused(&SUM, &sample(&schema).snapshot(), &there);
    }
}

const BARE: Schema = Schema::new(&[DAYS.table(), MEMBERSHIP.table(), SHOW_DAYS.table()]);
const PRUNED: Schema =
    Schema::new(&[DAYS.table().prunable(), MEMBERSHIP.table(), SHOW_DAYS.table().prunable()]);
const NO_ROLLUP: Schema = Schema::new(&[DAYS.table().prunable(), MEMBERSHIP.table()]);

fn totals_added_below_the_cutoff(store: &MemoryStore) -> usize {
    let before = store.len(SHOW_DAYS.id()).unwrap();
    let mut batch = Batch::new();
    batch.add(DAYS, (1, 3), 1);
    store.apply(&mut batch).unwrap();
    store.len(SHOW_DAYS.id()).unwrap() - before
}

#[test]
fn counter_may_become_prunable_and_stop_being_so_until_its_first_prune() {
    let store = MemoryStore::restore(&PRUNED, &sample(&BARE).snapshot()).unwrap();
    assert!(MemoryStore::restore(&BARE, &store.snapshot()).is_ok());
    assert_eq!(store.prune(DAYS, 15).unwrap(), 2);
    let snapshot = store.snapshot();
    assert_refused(
        &BARE,
        &snapshot,
        "counter setlist.days was pruned at 0x8000000f, which is not a time of this counter",
    );
    let back = MemoryStore::restore(&PRUNED, &snapshot).unwrap();
    assert_eq!(back.snapshot(), snapshot);
    assert_eq!(totals_added_below_the_cutoff(&back), 0);
}

/// Its base has no totals below the cutoff, so the rollup gets the same cutoff.
#[test]
fn new_rollup_of_a_pruned_counter_gets_its_cutoff() {
    let store = sample(&NO_ROLLUP);
    store.prune(DAYS, 15).unwrap();
    let store = MemoryStore::restore(&PRUNED, &store.snapshot()).unwrap();
    let cutoff = |counter: usize| {
        serde_json::to_value(store.snapshot()).unwrap()["counters"][counter]["cutoff"].clone()
    };
    assert_eq!(
        (cutoff(0), cutoff(1), cutoff(2)),
        (json!("8000000f"), Value::Null, json!("8000000f"))
    );
    assert_eq!(totals_added_below_the_cutoff(&store), 0);
}

#[test]
fn cutoff_that_does_not_fit_its_counter_is_refused() {
    let store = sample(&PRUNED);
    store.prune(DAYS, 15).unwrap();
    for (counter, cutoff) in [(0, "80"), (0, ""), (0, "8000000f00"), (1, "8000000f")] {
        let mut json = serde_json::to_value(store.snapshot()).unwrap();
        json["counters"][counter]["cutoff"] = json!(cutoff);
        let snapshot = serde_json::from_value(json).unwrap();
        let name = PRUNED.counters()[counter].id().name();
        assert_refused(
            &PRUNED,
            &snapshot,
            &format!(
                "counter {name} was pruned at 0x{cutoff}, which is not a time of this counter"
            ),
        );
    }
}

#[test]
fn store_pending_backfill_is_not_ready_after_a_restore() {
    let store =
        MemoryStore::restore(&ALL, &MemoryStore::pending_backfill(&ALL).snapshot()).unwrap();
    assert!(states(&store, &ALL).iter().all(|(_, _, ready)| !ready));
    assert!(matches!(store.total(VOTES, 1), Err(Error::NotReady { .. })));
}
