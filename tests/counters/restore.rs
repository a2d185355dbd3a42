//! What of a snapshot comes back under another layout: counters that are new, raised, lost, of other keys, in other places, or pruned.

use keepcount::{Batch, Counter, Def, Error, KeyRange, Layout, MemoryStore, Next, Snapshot};
use serde_json::{Value, json};

const VOTES: Counter<i64> = Counter::new("setlist.votes");
const LIKES: Counter<i64> = Counter::new("setlist.likes");
const LINK: Counter<(i64, i64)> = Counter::new("setlist.show");
const SHOW_VOTES: Counter<i64> = Counter::new("show.votes").sum_of(VOTES, LINK);
const BILLING: Counter<(i64, i64)> = Counter::new("show.artist");
const ARTIST_VOTES: Counter<i64> = Counter::new("artist.votes").sum_of(SHOW_VOTES, BILLING);
const DAYS: Counter<(i64, i32)> = Counter::new("setlist.days");
const SHOW_DAYS: Counter<(i64, i32)> = Counter::new("show.days").sum_of_tail(DAYS, LINK);

const ALL: Layout = Layout::new(&[
    VOTES.table(),
    LINK.table(),
    BILLING.table(),
    DAYS.table(),
    SHOW_VOTES.table(),
    ARTIST_VOTES.table(),
    SHOW_DAYS.table(),
]);

/// Setlist 1 of show 70 of artist 700 has 5 votes, on two days.
fn sample(layout: &Layout) -> MemoryStore {
    let store = MemoryStore::new(layout);
    let known = |counter: Def| layout.position(&counter).is_ok();
    let mut batch = Batch::new();
    for counter in [VOTES, LIKES] {
        if known(counter.def()) {
            batch.add(counter, 1, 5);
        }
    }
    for (counter, key) in [(LINK, (1, 70)), (BILLING, (70, 700))] {
        if known(counter.def()) {
            batch.add(counter, key, 1);
        }
    }
    if known(DAYS.def()) {
        batch.add(DAYS, (1, 10), 2);
        batch.add(DAYS, (1, 20), 3);
    }
    store.apply(&mut batch).unwrap();
    store
}

/// Every counter of a layout: how many totals it has, and whether it may be read.
fn states(store: &MemoryStore, layout: &Layout) -> Vec<(&'static str, usize, bool)> {
    let state = |def: Def| (def.name(), store.len(def).unwrap(), store.is_ready(def).unwrap());
    layout.counters().iter().map(|placed| state(placed.def())).collect()
}

#[track_caller]
fn refused(layout: &Layout, snapshot: &Snapshot, reason: &str) {
    let error = MemoryStore::restore(layout, snapshot).expect_err(reason);
    assert!(matches!(error, Error::Snapshot { .. }), "{error:?}");
    assert_eq!((error.to_string(), error.next()), (format!("snapshot: {reason}"), Next::Fix));
}

#[test]
fn a_new_counter_comes_up_empty_and_is_not_read() {
    const OLD: Layout = Layout::new(&[VOTES.table(), LINK.table()]);
    let store = MemoryStore::restore(&ALL, &sample(&OLD).snapshot()).unwrap();
    let expected = [
        ("setlist.votes", 1, true),
        ("setlist.show", 1, true),
        ("show.artist", 0, false),
        ("setlist.days", 0, false),
        // What it sums is there, and it is not: its truth is 5.
        ("show.votes", 0, false),
        ("artist.votes", 0, false),
        ("show.days", 0, false),
    ];
    assert_eq!(states(&store, &ALL), expected);
    assert_eq!(store.total(VOTES, 1).unwrap(), 5);
    for counter in [SHOW_VOTES, ARTIST_VOTES] {
        assert!(matches!(store.total(counter, 70), Err(Error::NotReady { .. })));
    }
    // Hooks count all the same.
    let mut batch = Batch::new();
    batch.add(VOTES, 1, 1);
    store.apply(&mut batch).unwrap();
    assert_eq!(store.range(SHOW_VOTES.def(), &KeyRange::ALL, 1).unwrap_err().next(), Next::Fix);
    assert_eq!(store.len(SHOW_VOTES.def()).unwrap(), 1);
}

#[test]
fn a_raised_version_is_another_counter_and_its_rollups_begin_with_it() {
    const RAISED: Counter<i64> = VOTES.version(2);
    const SHOW: Counter<i64> = Counter::new("show.votes").sum_of(RAISED, LINK);
    const ARTIST: Counter<i64> = Counter::new("artist.votes").sum_of(SHOW, BILLING);
    const NEW: Layout = Layout::new(&[
        RAISED.table(),
        LINK.table(),
        BILLING.table(),
        DAYS.table(),
        SHOW.table(),
        ARTIST.table(),
        SHOW_DAYS.table(),
    ]);
    let mut snapshot = sample(&ALL).snapshot();
    refused(&NEW, &snapshot, "counter setlist.votes is not in the layout; `Snapshot::forget` gives its totals up");
    assert_eq!(snapshot.lost(&NEW), ["setlist.votes"]);
    snapshot.forget("setlist.votes").unwrap();
    assert!(snapshot.lost(&NEW).is_empty());
    refused(
        &NEW,
        &snapshot,
        "counter show.votes is placed as \"table, sum of setlist.votes along setlist.show\", and as \"table, sum of setlist.votes.v2 \
         along setlist.show\" in the layout; `Snapshot::forget` gives its totals up",
    );
    snapshot.forget("show.votes").unwrap();
    let store = MemoryStore::restore(&NEW, &snapshot).unwrap();
    let expected = [
        ("setlist.votes", 0, false),
        ("setlist.show", 1, true),
        ("show.artist", 1, true),
        ("setlist.days", 2, true),
        ("show.votes", 0, false),
        // The sum of nothing: what a backfill below lets climb would come on top of what the snapshot has.
        ("artist.votes", 0, false),
        ("show.days", 2, true),
    ];
    assert_eq!(states(&store, &NEW), expected);
    let mut batch = Batch::new();
    batch.add(RAISED, 1, 3);
    store.apply(&mut batch).unwrap();
    let json = serde_json::to_value(store.snapshot()).unwrap();
    let artist = json["counters"].as_array().unwrap().iter().find(|known| known["name"] == "artist.votes").unwrap();
    assert_eq!(artist["totals"][0][1], json!(3));
    // It is named with its version.
    assert_eq!(store.snapshot().lost(&ALL), ["setlist.votes.v2"]);
}

#[test]
fn a_raised_version_beside_the_old_one_leaves_it_alone() {
    const SHOW: Counter<i64> = SHOW_VOTES.version(2).sum_of(VOTES.version(2), LINK);
    const BOTH: Layout =
        Layout::new(&[VOTES.table(), VOTES.version(2).table(), LINK.table(), SHOW_VOTES.table(), SHOW.table()]);
    const OLD: Layout = Layout::new(&[VOTES.table(), LINK.table(), SHOW_VOTES.table()]);
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
    assert_eq!(store.snapshot().lost(&OLD), ["setlist.votes.v2", "show.votes.v2"]);
}

#[test]
fn a_lost_counter_is_named_and_forgotten_on_demand() {
    const MORE: Layout = Layout::new(&[LIKES.version(3).table(), VOTES.table(), LINK.table()]);
    const FEWER: Layout = Layout::new(&[VOTES.table()]);
    let mut snapshot = MemoryStore::new(&MORE).snapshot();
    assert_eq!(snapshot.lost(&FEWER), ["setlist.likes.v3", "setlist.show"]);
    assert!(snapshot.lost(&MORE).is_empty());
    refused(&FEWER, &snapshot, "counter setlist.likes.v3 is not in the layout; `Snapshot::forget` gives its totals up");
    for name in ["setlist.likes", "setlist.likes.v2", "", "votes"] {
        let error = snapshot.forget(name).unwrap_err();
        assert!(matches!(&error, Error::UnknownCounter { counter, .. } if counter == name), "{error}");
    }
    for lost in snapshot.lost(&FEWER) {
        snapshot.forget(&lost).unwrap();
    }
    assert_eq!(states(&MemoryStore::restore(&FEWER, &snapshot).unwrap(), &FEWER), [("setlist.votes", 0, true)]);
}

const PLAIN: Layout = Layout::new(&[VOTES.table()]);
const TEXTS: Layout = Layout::new(&[Counter::<String>::new("setlist.votes").table()]);

const SUM: Layout = Layout::new(&[VOTES.table(), LIKES.table(), LINK.table(), SHOW_VOTES.table()]);
const SHOW_LIKES: Counter<i64> = Counter::new("show.votes").sum_of(LIKES, LINK);
const OTHER_SUM: Layout = Layout::new(&[VOTES.table(), LIKES.table(), LINK.table(), SHOW_LIKES.table()]);
const NO_SUM: Layout =
    Layout::new(&[VOTES.table(), LIKES.table(), LINK.table(), Counter::<i64>::new("show.votes").table()]);

#[test]
fn other_keys_and_other_places_are_refused_by_name() {
    let there =
        "counter setlist.votes has the key (i64), and (text) in the layout; `Snapshot::forget` gives its totals up";
    refused(&TEXTS, &sample(&PLAIN).snapshot(), there);

    let sum = "table, sum of setlist.votes along setlist.show";
    for (layout, place) in [(OTHER_SUM, "table, sum of setlist.likes along setlist.show"), (NO_SUM, "table")] {
        let here = format!(
            "counter show.votes is placed as {sum:?}, and as {place:?} in the layout; `Snapshot::forget` gives its totals up"
        );
        refused(&layout, &sample(&SUM).snapshot(), &here);
        let there = format!(
            "counter show.votes is placed as {place:?}, and as {sum:?} in the layout; `Snapshot::forget` gives its totals up"
        );
        refused(&SUM, &sample(&layout).snapshot(), &there);
    }
}

const BARE: Layout = Layout::new(&[DAYS.table(), LINK.table(), SHOW_DAYS.table()]);
const PRUNED: Layout = Layout::new(&[DAYS.table().prunable(), LINK.table(), SHOW_DAYS.table().prunable()]);
const NO_ROLLUP: Layout = Layout::new(&[DAYS.table().prunable(), LINK.table()]);

fn below_the_cut(store: &MemoryStore) -> usize {
    let before = store.len(SHOW_DAYS.def()).unwrap();
    let mut batch = Batch::new();
    batch.add(DAYS, (1, 3), 1);
    store.apply(&mut batch).unwrap();
    store.len(SHOW_DAYS.def()).unwrap() - before
}

#[test]
fn a_counter_may_become_prunable_and_cease_to_be_until_it_is_pruned() {
    let store = MemoryStore::restore(&PRUNED, &sample(&BARE).snapshot()).unwrap();
    assert!(MemoryStore::restore(&BARE, &store.snapshot()).is_ok());
    assert_eq!(store.prune(DAYS, 15).unwrap(), 2);
    let snapshot = store.snapshot();
    refused(&BARE, &snapshot, "counter setlist.days was pruned at 0x8000000f, and cannot be so here");
    let back = MemoryStore::restore(&PRUNED, &snapshot).unwrap();
    assert_eq!(back.snapshot(), snapshot);
    assert_eq!(below_the_cut(&back), 0);
}

/// What it sums is nothing below the cut, so neither is it.
#[test]
fn a_new_rollup_of_a_pruned_counter_is_pruned_with_it() {
    let store = sample(&NO_ROLLUP);
    store.prune(DAYS, 15).unwrap();
    let store = MemoryStore::restore(&PRUNED, &store.snapshot()).unwrap();
    let cut = |counter: usize| serde_json::to_value(store.snapshot()).unwrap()["counters"][counter]["cut"].clone();
    assert_eq!((cut(0), cut(1), cut(2)), (json!("8000000f"), Value::Null, json!("8000000f")));
    assert_eq!(below_the_cut(&store), 0);
}

#[test]
fn a_cut_that_is_none_of_its_counter_is_refused() {
    let store = sample(&PRUNED);
    store.prune(DAYS, 15).unwrap();
    for (counter, cut) in [(0, "80"), (0, ""), (0, "8000000f00"), (1, "8000000f")] {
        let mut json = serde_json::to_value(store.snapshot()).unwrap();
        json["counters"][counter]["cut"] = json!(cut);
        let snapshot = serde_json::from_value(json).unwrap();
        let name = PRUNED.counters()[counter].def().name();
        refused(&PRUNED, &snapshot, &format!("counter {name} was pruned at 0x{cut}, and cannot be so here"));
    }
}

#[test]
fn a_store_over_rows_is_not_ready_after_its_snapshot_either() {
    let store = MemoryStore::restore(&ALL, &MemoryStore::over_rows(&ALL).snapshot()).unwrap();
    assert!(states(&store, &ALL).iter().all(|(_, _, ready)| !ready));
    assert!(matches!(store.total(VOTES, 1), Err(Error::NotReady { .. })));
}
