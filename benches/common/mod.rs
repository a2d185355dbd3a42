//! The workloads that benches share: random keys, threads that start together, votes in SQLite.

#![allow(dead_code)] // each bench uses a part

pub mod sides;

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use hashbrown::HashMap;
use keepcount::reconcile::{Columns, Options, Report, SqliteAudit, SqliteRows, verify};
use keepcount::{Batch, Counter, MemoryStore, Record, Schema, SqliteStore, Store, Tally};
use parking_lot::Mutex;
use rusqlite::{Connection, TransactionBehavior};

/// Splitmix64 (Steele, Lea, Flood): keys without a pattern that a data structure could exploit.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn keys(&mut self, count: u64, below: u64) -> Vec<u64> {
        (0..count).map(|_| self.next() % below).collect()
    }
}

/// The next seed. Every thread of every measurement draws different keys, because repeated keys
/// would still be in the nearest cache.
static SEEDS: AtomicU64 = AtomicU64::new(1);

/// Returns the time that the slowest of `threads` spends in `work`, summed over `rounds`.
///
/// In each round every thread calls `prepare`, which is not timed. Then all threads start `work` on
/// its results together.
pub fn time_rounds<T>(
    threads: u64,
    rounds: u64,
    prepare: impl Fn(&mut Random) -> T + Sync,
    work: impl Fn(&mut T) + Sync,
) -> Duration {
    let arrived = AtomicUsize::new(0);
    let count = usize::try_from(threads).unwrap();
    let run = |thread: u64| {
        let mut random = Random(SEEDS.fetch_add(1, Ordering::Relaxed) << 32 | thread);
        let mut spent = Duration::ZERO;
        for round in 1..=usize::try_from(rounds).unwrap() {
            let mut prepared = prepare(&mut random);
            arrived.fetch_add(1, Ordering::AcqRel);
            while arrived.load(Ordering::Acquire) < round * count {
                std::hint::spin_loop();
            }
            let begun = Instant::now();
            work(&mut prepared);
            spent += begun.elapsed();
        }
        spent
    };
    std::thread::scope(|scope| {
        let run = &run;
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).max().unwrap()
    })
}

/// The counter of the benches in memory.
pub const TOTAL: Counter<u64> = Counter::new("bench.total");
const SCHEMA: Schema = Schema::new(&[TOTAL.table()]);

/// A memory store and the maps that it is compared with, all with the same keys.
pub struct Peers {
    pub store: MemoryStore,
    pub dash: DashMap<u64, i64, foldhash::fast::RandomState>,
    pub map: Mutex<HashMap<u64, i64, foldhash::fast::RandomState>>,
}

impl Peers {
    pub fn filled(keys: u64) -> Self {
        let store = MemoryStore::new(&SCHEMA);
        let all: Vec<u64> = (0..keys).collect();
        store.apply(&mut batch(&all)).unwrap();
        let map = all.iter().map(|key| (*key, 1)).collect();
        Self { store, dash: all.iter().map(|key| (*key, 1)).collect(), map: Mutex::new(map) }
    }
}

/// A batch that adds 1 to each of these keys.
pub fn batch(keys: &[u64]) -> Batch {
    let mut batch = Batch::new();
    for key in keys {
        batch.add(TOTAL, key, 1);
    }
    batch
}

/// What keeps the counters of votes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeper {
    /// Nothing: this measures the rows alone.
    NoCounters,
    Hooks,
    /// An AFTER INSERT trigger on the same tables.
    Trigger,
    /// The trigger with `temp_store = MEMORY`, which speeds up large transactions and slows down
    /// small ones.
    TriggerInMemory,
}

pub const KEEPERS: [(Keeper, &str); 4] = [
    (Keeper::NoCounters, "no counters"),
    (Keeper::Hooks, "hooks"),
    (Keeper::Trigger, "trigger"),
    (Keeper::TriggerInMemory, "trigger, temp in memory"),
];

const SETLIST_VOTES: Counter<String> = Counter::new("setlist.votes");
const SETLIST_UPVOTES: Counter<String> = Counter::new("setlist.upvotes");
const SETLIST_SCORE: Counter<String> = Counter::new("setlist.score");
const USER_VOTES: Counter<String> = Counter::new("user.votes");
/// Counters that a trigger can keep as well, so no rollups.
const VOTES: Schema = Schema::new(&[
    SETLIST_VOTES.table(),
    SETLIST_UPVOTES.table(),
    SETLIST_SCORE.table(),
    USER_VOTES.table(),
]);

pub struct VoteRow {
    pub id: String,
    pub setlist_id: String,
    pub user_id: String,
    pub up: bool,
}

impl Record for VoteRow {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SETLIST_VOTES, &self.setlist_id, 1);
        if self.up {
            to.add(SETLIST_UPVOTES, &self.setlist_id, 1);
        }
        to.add(SETLIST_SCORE, &self.setlist_id, if self.up { 1 } else { -1 });
        to.add(USER_VOTES, &self.user_id, 1);
    }
}

/// An SQLite file with votes, four counters of them, and what keeps those counters.
pub struct Votes {
    conn: Connection,
    keeper: Keeper,
    random: Random,
    written: u64,
}

impl Votes {
    pub fn open(folder: &Path, keeper: Keeper) -> Self {
        let conn = Connection::open(folder.join(format!("{keeper:?}.db"))).unwrap();
        conn.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -65536;
             CREATE TABLE votes (id TEXT PRIMARY KEY, setlist_id TEXT, user_id TEXT NOT NULL, kind TEXT NOT NULL);
             CREATE INDEX votes_by_setlist ON votes (setlist_id);
             CREATE INDEX votes_by_user ON votes (user_id);",
        )
        .unwrap();
        conn.set_prepared_statement_cache_capacity(64);
        SqliteStore::new(&conn, &VOTES).create().unwrap();
        let mut votes = Self { conn, keeper: Keeper::Hooks, random: Random(7), written: 0 };
        votes.transaction(20_000);
        votes.keeper = keeper;
        if keeper == Keeper::TriggerInMemory {
            votes.conn.execute_batch("PRAGMA temp_store = MEMORY").unwrap();
        }
        if matches!(keeper, Keeper::Trigger | Keeper::TriggerInMemory) {
            let upsert = |table: &str, key: &str, amount: &str, when: &str| {
                format!(
                    "INSERT INTO {table} SELECT new.{key}, {amount} WHERE {when}
                     ON CONFLICT (key) DO UPDATE SET total = total + excluded.total;"
                )
            };
            let score = "iif(new.kind = 'up', 1, -1)";
            let body = [
                upsert("setlist_votes", "setlist_id", "1", "new.setlist_id IS NOT NULL"),
                upsert(
                    "setlist_upvotes",
                    "setlist_id",
                    "1",
                    "new.kind = 'up' AND new.setlist_id IS NOT NULL",
                ),
                upsert("setlist_score", "setlist_id", score, "new.setlist_id IS NOT NULL"),
                upsert("user_votes", "user_id", "1", "true"),
            ];
            let trigger = format!(
                "CREATE TRIGGER counted AFTER INSERT ON votes BEGIN {} END",
                body.join("\n")
            );
            votes.conn.execute_batch(&trigger).unwrap();
        }
        votes
    }

    /// Inserts this many votes in one transaction, by 10,000 users for 2,000 setlists, of which
    /// those with low numbers are hot.
    pub fn transaction(&mut self, votes: u64) {
        let transaction =
            self.conn.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
        let mut batch = Batch::new();
        {
            let mut insert =
                transaction.prepare_cached("INSERT INTO votes VALUES (?1, ?2, ?3, ?4)").unwrap();
            for _ in 0..votes {
                self.written += 1;
                let setlist = (self.random.next() % 2000) * (self.random.next() % 2000) / 2000;
                let row = VoteRow {
                    id: format!("v{}", self.written),
                    setlist_id: format!("se{setlist}"),
                    user_id: format!("u{}", self.random.next() % 10_000),
                    up: !self.random.next().is_multiple_of(4),
                };
                let kind = if row.up { "up" } else { "down" };
                insert.execute((&row.id, &row.setlist_id, &row.user_id, kind)).unwrap();
                if self.keeper == Keeper::Hooks {
                    batch.insert(&row);
                }
            }
        }
        SqliteStore::new(&transaction, &VOTES).apply(&mut batch).unwrap();
        transaction.commit().unwrap();
    }

    /// Creates a file of this many votes, `per_setlist` for each setlist, all counted.
    pub fn filled(folder: &Path, votes: u64, per_setlist: u64) -> Self {
        let all = Self::open(folder, Keeper::Hooks);
        all.conn
            .execute_batch("PRAGMA synchronous = OFF; DELETE FROM votes; DELETE FROM setlist_votes")
            .unwrap();
        let fill = "WITH RECURSIVE n (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM n WHERE n < ?1)
                    INSERT INTO votes SELECT 'v' || n, 'se' || (n * 7919 % max(?1 / ?2, 1)), 'u' || (n % 1000), 'up' FROM n";
        let counts = [votes, per_setlist].map(|count| i64::try_from(count).unwrap());
        all.conn.execute(fill, counts).unwrap();
        let count =
            "INSERT INTO setlist_votes SELECT setlist_id, count(*) FROM votes GROUP BY setlist_id";
        all.conn.execute_batch(count).unwrap();
        all
    }

    /// Counts the votes of all setlists in one statement, and reads every row of its result: the
    /// peer of a verification. Returns the sum of the counts.
    pub fn group_by(&self) -> i64 {
        let text = "SELECT setlist_id, count(*) FROM votes GROUP BY setlist_id";
        let mut statement = self.conn.prepare_cached(text).unwrap();
        let counts = statement
            .query_map((), |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))
            .unwrap();
        counts.map(|count| count.unwrap().1).sum()
    }

    pub fn verify(&self, options: Options) -> Report {
        let mut audit = SqliteAudit::new(&self.conn, &VOTES).unwrap();
        let votes = SqliteRows::of("votes", |row| {
            Ok(VoteRow {
                id: row.get(0)?,
                setlist_id: row.get(1)?,
                user_id: row.get(2)?,
                up: row.get(3)?,
            })
        });
        let votes = votes.columns("id, setlist_id, user_id, kind = 'up'");
        audit.add(votes.key(SETLIST_VOTES, Columns::of(["setlist_id"]).count())).unwrap();
        let scope = [SETLIST_VOTES.id()];
        verify(&VOTES).counters(&scope).options(options).run(&mut audit).unwrap()
    }
}

/// Returns whether this is a test run (`cargo bench -- --test`), whose sizes are small.
pub fn is_test_run() -> bool {
    std::env::args().any(|arg| arg == "--test")
}
