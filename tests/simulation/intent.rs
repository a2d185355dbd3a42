//! A writer's intent: the rows that it locks, and what it writes once it has the locks.

use std::rc::Rc;

use super::domain::{ARTISTS, DAYS, Row, RowId, SETLISTS, SHOWS, Tables, USERS, add_row};
use super::facts::Change;
use super::world::World;

#[derive(Debug, Clone, Copy)]
pub enum Intent {
    Put(RowId, Row),
    Edit(RowId, Edit),
    /// With all its descendants.
    Delete(RowId),
}

#[derive(Debug, Clone, Copy)]
pub enum Edit {
    Stars(i64),
    Day(i64),
    Spam,
    Listed,
    /// To another setlist, show or artist.
    Move(i64),
}

impl Intent {
    pub fn any(world: &World<'_>) -> Self {
        let facts = world.facts.borrow();
        let below = |most: u64| world.below(most) as i64;
        let known = |is: fn(&RowId) -> bool| {
            let ids: Vec<RowId> = facts.rows.keys().filter(|id| is(id)).copied().collect();
            (!ids.is_empty()).then(|| ids[world.below(ids.len() as u64) as usize])
        };
        let vote = known(|id| matches!(id, RowId::Vote(_)));
        let setlist = known(|id| matches!(id, RowId::Setlist(_)));
        let show = known(|id| matches!(id, RowId::Show(_)));
        let wanted = match world.below(20) {
            0 | 1 => vote.map(Self::Delete),
            2 => setlist.map(Self::Delete),
            3 if world.one_in(3) => show.map(Self::Delete),
            3 | 4 => vote.map(|id| Self::Edit(id, Edit::Stars(1 + below(5)))),
            5 => vote.map(|id| Self::Edit(id, Edit::Spam)),
            6 => vote.map(|id| Self::Edit(id, Edit::Day(below(DAYS)))),
            7 | 8 => vote.map(|id| Self::Edit(id, Edit::Move(below(SETLISTS)))),
            9 | 10 => setlist.map(|id| Self::Edit(id, Edit::Move(below(SHOWS)))),
            11 => setlist.map(|id| Self::Edit(id, Edit::Listed)),
            12 => show.map(|id| Self::Edit(id, Edit::Move(below(ARTISTS)))),
            13 => {
                let id = below(SETLISTS);
                Some(Self::Put(
                    RowId::Setlist(id),
                    Row::Setlist { id, show: below(SHOWS), listed: world.one_in(2) },
                ))
            }
            14 => {
                let id = below(SHOWS);
                Some(Self::Put(RowId::Show(id), Row::Show { id, artist: below(ARTISTS) }))
            }
            _ => None,
        };
        wanted.unwrap_or_else(|| {
            let (setlist, user, day) = (below(SETLISTS), below(USERS), below(DAYS));
            let row = Row::Vote { setlist, user, day, stars: 1 + below(5), spam: world.one_in(6) };
            Self::Put(RowId::Vote(below(1_000_000)), row)
        })
    }

    /// The rows to lock, as they depend on each other now.
    pub fn ids(&self, rows: &Tables) -> Vec<RowId> {
        let root = match *self {
            Self::Put(id, _) | Self::Edit(id, _) => return vec![id],
            Self::Delete(id) => id,
        };
        let mut ids = vec![root];
        let mut at = 0;
        while let Some(parent) = ids.get(at).copied() {
            at += 1;
            ids.extend(rows.iter().filter(|(_, row)| is_child_of(row, parent)).map(|(id, _)| *id));
        }
        ids
    }

    /// The change to these rows. `seen` has the old rows that the hooks are given.
    pub fn change(&self, ids: &[RowId], rows: &Tables, seen: &Tables) -> Change {
        let (mut writes, mut hooked) = (Vec::new(), Vec::new());
        for id in ids {
            let (old, seen) = (rows.get(id).copied(), seen.get(id).copied());
            let new = self.of(old);
            if new != old {
                writes.push((*id, new));
            }
            // A hook with other old rows than its write found counts in any case.
            if new != old || seen != old {
                hooked.push((seen, self.of(seen)));
            }
        }
        Change::new(writes, hooked)
    }

    /// The new state of a row.
    fn of(&self, old: Option<Row>) -> Option<Row> {
        match *self {
            Self::Put(_, row) => Some(row),
            Self::Edit(_, edit) => old.map(|old| edit.of(old)),
            Self::Delete(_) => None,
        }
    }
}

impl Edit {
    fn of(self, mut row: Row) -> Row {
        match (&mut row, self) {
            (Row::Vote { stars, .. }, Self::Stars(new)) => *stars = new,
            (Row::Vote { day, .. }, Self::Day(new)) => *day = new,
            (Row::Vote { spam, .. }, Self::Spam) => *spam = !*spam,
            (Row::Setlist { listed, .. }, Self::Listed) => *listed = !*listed,
            (
                Row::Vote { setlist: parent, .. }
                | Row::Setlist { show: parent, .. }
                | Row::Show { artist: parent, .. },
                Self::Move(to),
            ) => *parent = to,
            _ => {}
        }
        row
    }
}

fn is_child_of(row: &Row, parent: RowId) -> bool {
    match (*row, parent) {
        (Row::Vote { setlist, .. }, RowId::Setlist(id)) => setlist == id,
        (Row::Setlist { show, .. }, RowId::Show(id)) => show == id,
        _ => false,
    }
}

impl World<'_> {
    /// Changes a row that is not locked, without hooks.
    pub fn plant_row(&self) {
        let intent = Intent::any(self);
        let mut facts = self.facts.borrow_mut();
        let ids = intent.ids(&facts.rows);
        if ids.iter().any(|id| facts.locks.contains_key(id)) {
            return;
        }
        let rows = Rc::clone(&facts.rows);
        let change = intent.change(&ids, &rows, &rows);
        facts.write_unguarded(&change);
        self.note(&format!("planted rows: {intent:?}"));
        self.count("planted rows");
    }

    /// Changes totals without changing a row.
    pub fn plant_total(&self) {
        let mut batch = keepcount::Batch::new();
        let mut deltas = super::domain::Totals::new();
        let facts = self.facts.borrow();
        let Some((_, row)) =
            facts.rows.iter().nth(self.below(facts.rows.len().max(1) as u64) as usize)
        else {
            return;
        };
        batch.insert(row);
        add_row(&mut deltas, Some(row), 1);
        drop(facts);
        let Some(pending_write) = self.try_begin(self.batch(batch)) else { return };
        pending_write.commit().unwrap();
        self.note(&format!("planted totals: {}", super::domain::show_all(&deltas)));
        self.facts.borrow_mut().shift(&deltas, 1);
        self.count("planted totals");
    }
}
