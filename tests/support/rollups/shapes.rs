//! Rollups whose keys have other shapes, compared with plain arrays.

use std::collections::BTreeMap;

use keepcount::backend::KeyRange;
use keepcount::reconcile::audit::{PageRequest, RepairRequest};
use keepcount::reconcile::{Audit, MemoryAudit, SqliteAudit};
use keepcount::{Batch, CounterId, KeyBuf, MemoryStore, Schema, SqliteStore, Store};
use rusqlite::Connection;

use super::Random;
use super::subjects::plant_in_memory;

/// A rollup with another shape of key. The functions take the number of a child, parent or suffix,
/// of which there are at most two each.
pub struct Shape {
    pub schema: Schema,
    pub rollup: CounterId,
    pub base: fn(&mut Batch, usize, usize, i64),
    pub membership: fn(&mut Batch, usize, usize, i64),
    pub key: fn(usize, usize) -> KeyBuf,
    /// How many children, parents and suffixes there are.
    pub sizes: [usize; 3],
}

/// Applies random deltas. The rollup must equal plain arrays, and audits with pages of one key must
/// find and repair the same.
pub fn check_shape(shape: &Shape) {
    let Shape { schema, rollup, base, membership, key, sizes: [children, parents, suffixes] } =
        shape;
    let mut random = Random(7);
    let mut memory = MemoryStore::new(schema);
    let conn = Connection::open_in_memory().unwrap();
    SqliteStore::new(&conn, schema).create().unwrap();
    let (mut fine, mut memberships) = ([[0_i64; 2]; 2], [[0_i64; 2]; 2]);
    let mut below = |most: usize| usize::try_from(random.below(most as u64)).unwrap();
    for round in 0..60 {
        let mut batch = Batch::new();
        for _ in 0..below(4) {
            let (child, amount) = (below(*children), i64::try_from(below(6)).unwrap() - 2);
            if below(2) == 0 {
                let suffix = below(*suffixes);
                base(&mut batch, child, suffix, amount);
                fine[child][suffix] += amount;
            } else {
                let parent = below(*parents);
                membership(&mut batch, child, parent, amount);
                memberships[child][parent] += amount;
            }
        }
        let mut sums = BTreeMap::new();
        for (parent, suffix) in
            (0..*parents).flat_map(|parent| (0..*suffixes).map(move |suffix| (parent, suffix)))
        {
            let sum: i64 =
                (0..*children).map(|child| fine[child][suffix] * memberships[child][parent]).sum();
            sums.insert(key(parent, suffix), sum);
        }
        sums.retain(|_, sum| *sum != 0);
        memory.apply(&mut batch.clone()).unwrap();
        SqliteStore::new(&conn, schema).apply(&mut batch).unwrap();
        let in_memory = (&memory).read_range(*rollup, &KeyRange::ALL, 9).unwrap();
        assert_eq!(in_memory.into_iter().collect::<BTreeMap<_, _>>(), sums, "in memory");
        let mut in_sqlite =
            SqliteStore::new(&conn, schema).read_range(*rollup, &KeyRange::ALL, 9).unwrap();
        in_sqlite.retain(|(_, total)| *total != 0);
        assert_eq!(in_sqlite.into_iter().collect::<BTreeMap<_, _>>(), sums, "in SQLite");
        if round < 30 {
            continue;
        }

        let lost: Vec<KeyBuf> = sums.keys().cloned().collect();
        audit_shape(&mut MemoryAudit::new(&mut memory), *rollup, &[]);
        audit_shape(&mut SqliteAudit::new(&conn, schema).unwrap(), *rollup, &[]);
        for key in &lost {
            plant_in_memory(&mut memory, schema, rollup.name(), key, 0);
        }
        conn.execute(&format!("DELETE FROM \"{}\"", rollup.name()), ()).unwrap();
        audit_shape(&mut MemoryAudit::new(&mut memory), *rollup, &lost);
        audit_shape(&mut SqliteAudit::new(&conn, schema).unwrap(), *rollup, &lost);
    }
}

/// Compares by pages of one key. Fails unless exactly these keys are missing. Repairs them.
fn audit_shape(audit: &mut impl Audit, counter: CounterId, missing: &[KeyBuf]) {
    let (mut after, mut found) = (None, Vec::new());
    loop {
        let diff = audit.compare(&PageRequest { counter, after, until: None, keys: 1 }).unwrap();
        found.extend(diff.drifts.into_iter().map(|drift| drift.key));
        after = diff.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, missing);
    let repaired = audit.repair(&RepairRequest { counter, keys: found }).unwrap();
    assert_eq!(repaired.corrected, missing.len() as u64);
}
