//! Rollups whose keys have other shapes, against plain arrays.

use std::collections::BTreeMap;

use keepcount::reconcile::{Ask, Audit, MemoryAudit, Mend, SqliteAudit};
use keepcount::{Batch, Def, KeyBuf, Layout, MemoryStore, SqliteStore, Store};
use rusqlite::Connection;

use super::Random;
use super::subjects::plant_in_memory;

/// A rollup whose keys have another shape: how to add to child, parent and tail number so many, of two each.
pub struct Shape {
    pub layout: Layout,
    pub rollup: Def,
    pub finer: fn(&mut Batch, usize, usize, i64),
    pub link: fn(&mut Batch, usize, usize, i64),
    pub key: fn(usize, usize) -> KeyBuf,
    /// How many children, parents and tails there are.
    pub sizes: [usize; 3],
}

/// Random deltas; the rollup is what plain arrays say, and audits with pages of one key say and mend the same.
pub fn check_shape(shape: &Shape) {
    let Shape { layout, rollup, finer, link, key, sizes: [children, parents, tails] } = shape;
    let mut random = Random(7);
    let mut memory = MemoryStore::new(layout);
    let conn = Connection::open_in_memory().unwrap();
    SqliteStore::new(&conn, layout).create().unwrap();
    let (mut fine, mut links) = ([[0_i64; 2]; 2], [[0_i64; 2]; 2]);
    let mut below = |most: usize| usize::try_from(random.below(most as u64)).unwrap();
    for round in 0..60 {
        let mut batch = Batch::new();
        for _ in 0..below(4) {
            let (child, amount) = (below(*children), i64::try_from(below(6)).unwrap() - 2);
            if below(2) == 0 {
                let tail = below(*tails);
                finer(&mut batch, child, tail, amount);
                fine[child][tail] += amount;
            } else {
                let parent = below(*parents);
                link(&mut batch, child, parent, amount);
                links[child][parent] += amount;
            }
        }
        let mut sums = BTreeMap::new();
        for (parent, tail) in (0..*parents).flat_map(|parent| (0..*tails).map(move |tail| (parent, tail))) {
            let sum: i64 = (0..*children).map(|child| fine[child][tail] * links[child][parent]).sum();
            sums.insert(key(parent, tail), sum);
        }
        sums.retain(|_, sum| *sum != 0);
        memory.apply(&mut batch.clone()).unwrap();
        SqliteStore::new(&conn, layout).apply(&mut batch).unwrap();
        let in_memory = memory.page(*rollup, None, 9).unwrap();
        assert_eq!(in_memory.into_iter().collect::<BTreeMap<_, _>>(), sums, "in memory");
        let mut in_sqlite = SqliteStore::new(&conn, layout).page(*rollup, None, 9).unwrap();
        in_sqlite.retain(|(_, total)| *total != 0);
        assert_eq!(in_sqlite.into_iter().collect::<BTreeMap<_, _>>(), sums, "in SQLite");
        if round < 30 {
            continue;
        }

        let lost: Vec<KeyBuf> = sums.keys().cloned().collect();
        audit_shape(&mut MemoryAudit::new(&mut memory), *rollup, &[]);
        audit_shape(&mut SqliteAudit::new(&conn, layout).unwrap(), *rollup, &[]);
        for key in &lost {
            plant_in_memory(&mut memory, layout, rollup.name(), key, 0);
        }
        conn.execute(&format!("DELETE FROM \"{}\"", rollup.name()), ()).unwrap();
        audit_shape(&mut MemoryAudit::new(&mut memory), *rollup, &lost);
        audit_shape(&mut SqliteAudit::new(&conn, layout).unwrap(), *rollup, &lost);
    }
}

/// Measures by pages of one key: exactly these are missing. Mends them.
fn audit_shape(audit: &mut impl Audit, counter: Def, missing: &[KeyBuf]) {
    let (mut after, mut found) = (None, Vec::new());
    loop {
        let measured = audit.measure(&Ask { counter, after, until: None, keys: 1 }).unwrap();
        found.extend(measured.drifts.into_iter().map(|drift| drift.key));
        after = measured.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, missing);
    let mended = audit.mend(&Mend { counter, keys: found }).unwrap();
    assert_eq!(mended.corrected, missing.len() as u64);
}
