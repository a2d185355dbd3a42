//! Boards in PostgreSQL: one table and one index each, written in the transaction that changes their counters, many keys a statement.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{GenericClient, Row};

use super::{Board, BoardDef, Cell, Ranked, Score};
use crate::counter::{Def, Placed};
use crate::decay::Decayed;
use crate::error::{Error, Result};
use crate::key::{AsKey, Key, KeyBuf};
use crate::range::KeyRange;
use crate::sql::{self, Dialect, Query, Value};
use crate::store::postgres::{
    AsyncWork, Failed, PostgresStore, Session, Whose, failed, failed_on, queries, read_parts, read_total,
};

impl<C: GenericClient + Send + Sync> PostgresStore<'_, C> {
    /// The first lines of a board: one range of its index.
    ///
    /// # Errors
    ///
    /// What the database says; [`Error::Key`] for a key that is none of the board's type; [`Error::NotReady`] while the board came new and is
    /// not [rebuilt](Self::rebuild), or a counter that it is made of is not ready.
    pub async fn top<K: Key, S: Score>(&mut self, board: Board<K, S>, limit: usize) -> Result<Vec<Ranked<K, S>>> {
        let query = lines(&board.def(), "", Vec::new(), limit);
        let rows = self.session().when_board_ready(&board.def(), &[query]).await?;
        ranked(board, 0, rows.iter().flatten(), limit)
    }

    /// The lines behind one that was read before: ranks go on from its rank, whatever has changed meanwhile.
    ///
    /// # Errors
    ///
    /// As [`top`](Self::top).
    pub async fn top_after<K: Key + AsKey<K>, S: Score>(
        &mut self,
        board: Board<K, S>,
        after: &Ranked<K, S>,
        limit: usize,
    ) -> Result<Vec<Ranked<K, S>>> {
        let def = board.def();
        let (key, score, rank) = (KeyBuf::of::<K>(&after.key), after.score.to_cell(), after.rank);
        let score = Param(&score);
        // Those of its score behind its key, then those of lower scores: each a range of the index.
        let mut values = vec![score.value()];
        values.extend(sql::key_values(Dialect::Postgres, def.id(), &key)?);
        let (own, params) = own_keys(&def, 2);
        let tied = format!(r#"WHERE t."score" = {} AND ({own}) > ({params})"#, score.param());
        let lower = format!(r#"WHERE t."score" < {}"#, score.param());
        let queries = [lines(&def, &tied, values, limit), lines(&def, &lower, vec![score.value()], limit)];
        let rows = self.session().when_board_ready(&def, &queries).await?;
        ranked(board, rank, rows.iter().flatten(), limit)
    }

    /// The line of one key; none where it is not listed. Counts the lines before it: costs O(rank).
    ///
    /// # Errors
    ///
    /// As [`top`](Self::top).
    pub async fn rank<K: Key, S: Score>(
        &mut self,
        board: Board<K, S>,
        key: impl AsKey<K>,
    ) -> Result<Option<Ranked<K, S>>> {
        let (def, raw) = (board.def(), KeyBuf::of::<K>(key));
        let (own, params) = own_keys(&def, 1);
        let (keys, table) = (sql::key_columns(def.parts()).join(", "), def.table_name());
        let text = format!(
            r#"SELECT s."score", (SELECT count(*) FROM "{table}" AS t WHERE t."score" > s."score")
                + (SELECT count(*) FROM "{table}" AS t WHERE t."score" = s."score" AND ({own}) < ({params}))
            FROM "{table}" AS s WHERE ({keys}) = ({params})"#
        );
        let query = Query { text, values: sql::key_values(Dialect::Postgres, def.id(), &raw)? };
        let rows = self.session().when_board_ready(&def, &[query]).await?;
        let Some(row) = rows.iter().flatten().next() else { return Ok(None) };
        let before: i64 = row.try_get(1).map_err(|error| reading(&def, error))?;
        let key = raw.decode().map_err(|cause| Error::key(def.id(), &raw, cause))?;
        let score = score_of(&def, cell(row, 0).ok_or_else(|| foreign(&def))?)?;
        Ok(Some(Ranked { rank: before.unsigned_abs() + 1, key, score }))
    }

    /// How many keys a board lists.
    ///
    /// # Errors
    ///
    /// As [`top`](Self::top).
    pub async fn listed<K: Key, S: Score>(&mut self, board: Board<K, S>) -> Result<u64> {
        let def = board.def();
        let query = Query { text: format!(r#"SELECT count(*) FROM "{}""#, def.table_name()), values: Vec::new() };
        let rows = self.session().when_board_ready(&def, &[query]).await?;
        let count = rows.iter().flatten().next().map_or(Ok(0), |row| row.try_get::<_, i64>(0));
        count.map(i64::unsigned_abs).map_err(|error| reading(&def, error))
    }

    /// Makes every score of a board anew from totals, in one transaction, and the board ready to be read; says how many lines were not as they should
    /// be. Needed once for a board that came new to a database, after a board's version was raised, which it writes into the catalogue, and after
    /// totals were changed behind keepcount's back. Writers of the board's counters wait for it.
    ///
    /// Whoever calls it states that every process which writes has this board in its layout by now: one that has not leaves lines as they are.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn rebuild<K: Key, S: Score>(&mut self, board: Board<K, S>) -> Result<u64> {
        let board = board.def();
        self.transact(|| format!("rebuilding board {}", board.name()), Rebuild(board)).await
    }
}

struct Rebuild(BoardDef);

impl AsyncWork<u64> for Rebuild {
    async fn run<C: GenericClient + Send + Sync>(&self, session: &Session<'_, C>) -> Result<u64, Failed> {
        session.lock_boards(&[self.0]).await?;
        session.refuse_snapshot().await?;
        let changed = session.rescore_all(&self.0).await?;
        let enlisted = session.client.batch_execute(&super::enlist_anew(&self.0, true)).await;
        enlisted.map_err(|error| {
            failed(Whose::Table(sql::CATALOGUE), &format!("rebuilding board {}", self.0.name()), error)
        })?;
        Ok(changed)
    }
}

/// Keys that a rebuild scores at once.
const KEYS_PAGE: usize = 1024;

impl<C: GenericClient + Send + Sync> Session<'_, C> {
    /// Brings boards along with a batch that was written, whose keys are held; gives how many lines changed.
    pub(crate) async fn follow(&self, moved: &[(BoardDef, BTreeSet<KeyBuf>)]) -> Result<u64> {
        let mut changed = 0;
        for (board, keys) in moved.iter().filter(|(_, keys)| !keys.is_empty()) {
            let keys: Vec<KeyBuf> = keys.iter().cloned().collect();
            for keys in keys.chunks(KEYS_PAGE) {
                changed += self.rescore(board, keys).await?;
            }
        }
        Ok(changed)
    }

    /// Makes writers of these boards' counters wait until the transaction ends.
    pub(crate) async fn lock_boards(&self, boards: &[BoardDef]) -> Result<()> {
        if boards.is_empty() {
            return Ok(());
        }
        // In the order in which batches write them.
        let is_of = |def: &Def| boards.iter().any(|board| board.counters().iter().any(|of| of.same(def)));
        let counters = self.layout.counters().iter().map(Placed::def).filter(is_of).map(|def| def.table_name());
        let mut lines: Vec<String> = boards.iter().map(BoardDef::table_name).collect();
        lines.sort_unstable();
        for table in counters.chain(lines) {
            let lock = format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", sql::quote(&table));
            let locked = self.client.batch_execute(&lock).await;
            locked.map_err(|error| failed(Whose::Table(&table), "locking boards", error))?;
        }
        Ok(())
    }

    /// Scores every key that has a total or a line, a page at a time; the board is locked.
    pub(crate) async fn rescore_all(&self, board: &BoardDef) -> Result<u64> {
        // Lines first: those whose totals are gone come up nowhere else.
        let mut changed = 0;
        let mut after: Option<KeyBuf> = None;
        loop {
            let page = self.listed_keys(board, after.as_ref()).await?;
            let full = page.len() == KEYS_PAGE;
            after = page.last().cloned();
            changed += self.follow(&[(*board, page.into_iter().collect())]).await?;
            if !full {
                break;
            }
        }
        for counter in board.counters() {
            changed += self.rescore_counted(board, counter).await?;
        }
        Ok(changed)
    }

    /// Scores every key that has a total of this counter.
    async fn rescore_counted(&self, board: &BoardDef, counter: &Def) -> Result<u64> {
        let mut changed = 0;
        let mut range = KeyRange::ALL;
        loop {
            let query = sql::range(Dialect::Postgres, self.layout.placed(counter)?, &range, KEYS_PAGE)?;
            let rows = self.query(&query).await.map_err(|error| failed_on("reading totals", counter, error))?;
            let page = rows.iter().map(|row| Ok(read_total(counter, row)?.0)).collect::<Result<Vec<KeyBuf>>>()?;
            let keys = page.iter().map(|key| board.key_of(counter, key)).collect::<Result<_>>()?;
            changed += self.follow(&[(*board, keys)]).await?;
            match page.last() {
                Some(last) if page.len() == KEYS_PAGE => range = KeyRange::after(Some(last)),
                _ => return Ok(changed),
            }
        }
    }

    async fn listed_keys(&self, board: &BoardDef, after: Option<&KeyBuf>) -> Result<Vec<KeyBuf>> {
        let (own, params) = own_keys(board, 1);
        let behind = if after.is_some() { format!("WHERE ({own}) > ({params})") } else { String::new() };
        let table = board.table_name();
        let text = format!(r#"SELECT {own} FROM "{table}" AS t {behind} ORDER BY {own} LIMIT {KEYS_PAGE}"#);
        let values = after.map_or(Ok(Vec::new()), |after| sql::key_values(Dialect::Postgres, board.id(), after))?;
        let rows = self.query(&Query { text, values }).await.map_err(|error| reading(board, error))?;
        rows.iter().map(|row| read_parts(board.name(), board.parts().as_slice(), row, 0)).collect()
    }

    /// Compares stored scores with what totals say, and writes where they differ.
    async fn rescore(&self, board: &BoardDef, keys: &[KeyBuf]) -> Result<u64> {
        let (own, table) = (own_keys(board, 1).0, board.table_name());
        let among = sql::among(board.parts(), "ON");
        let stored = Query {
            text: format!(r#"SELECT {own}, t."score" FROM "{table}" AS t JOIN {among}"#),
            values: queries::key_arrays(board.id(), keys)?,
        };
        let heads: Vec<&KeyBuf> = keys.iter().collect();
        let mut queries = vec![stored];
        for counter in board.counters() {
            queries.push(queries::read_under(self.layout.placed(counter)?, board.parts().len(), &heads)?);
        }
        let rows = self.query_all(&queries).await.map_err(|(at, error)| {
            match at.checked_sub(1).and_then(|at| board.counters().get(at)) {
                Some(counter) => failed_on("reading totals", counter, error),
                None => reading(board, error),
            }
        })?;
        let mut rows = rows.into_iter();
        let mut lines: BTreeMap<KeyBuf, Option<Cell>> = BTreeMap::new();
        for row in rows.next().unwrap_or_default() {
            let key = read_parts(board.name(), board.parts().as_slice(), &row, 0)?;
            lines.insert(key, cell(&row, row.len().saturating_sub(1)));
        }
        let mut totals: Vec<BTreeMap<KeyBuf, i64>> = Vec::new();
        for (counter, rows) in board.counters().iter().zip(rows) {
            totals.push(rows.iter().map(|row| read_total(counter, row)).collect::<Result<_>>()?);
        }
        let (mut written, mut gone) = (Vec::new(), Vec::new());
        for key in keys {
            let score = board.score_of(key, &totals_at(board, key, &totals))?;
            match (score, lines.get(key)) {
                (Some(score), Some(Some(line))) if score == *line => {}
                (Some(score), _) => written.push((key.clone(), score)),
                (None, Some(_)) => gone.push(key.clone()),
                (None, None) => {}
            }
        }
        self.write_lines(board, &written).await?;
        if !gone.is_empty() {
            let text = format!(r#"DELETE FROM "{table}" AS t USING {}"#, sql::among(board.parts(), "WHERE"));
            let query = Query { text, values: queries::key_arrays(board.id(), &gone)? };
            self.execute(&query).await.map_err(|error| writing(board, error))?;
        }
        Ok((written.len() + gone.len()) as u64)
    }

    async fn write_lines(&self, board: &BoardDef, lines: &[(KeyBuf, Cell)]) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let keys: Vec<KeyBuf> = lines.iter().map(|(key, _)| key.clone()).collect();
        let mut values = queries::key_arrays(board.id(), &keys)?;
        values.push(if board.has_epochs() {
            Value::Blobs(lines.iter().map(|(_, score)| Param(score).bytes()).collect())
        } else {
            Value::Integers(lines.iter().map(|(_, score)| Param(score).integer()).collect())
        });
        let kind = super::score_column(Dialect::Postgres, board);
        let (columns, table) = (sql::key_columns(board.parts()).join(", "), board.table_name());
        let text = format!(
            r#"INSERT INTO "{table}" AS t ({columns}, "score") SELECT * FROM unnest({}, ${}::{kind}[]) ON CONFLICT ({columns}) DO UPDATE SET "score" = excluded."score""#,
            sql::arrays(board.parts(), false),
            values.len()
        );
        self.execute(&Query { text, values }).await.map(drop).map_err(|error| writing(board, error))
    }
}

/// What a key's score is made of.
fn totals_at(board: &BoardDef, key: &KeyBuf, totals: &[BTreeMap<KeyBuf, i64>]) -> Vec<(KeyBuf, i64)> {
    if board.has_epochs() {
        let under = totals.iter().flat_map(|totals| totals.range(key.clone()..));
        let under = under.take_while(|(whole, _)| whole.as_bytes().starts_with(key.as_bytes()));
        return under.map(|(whole, total)| (whole.clone(), *total)).collect();
    }
    totals.iter().map(|totals| (key.clone(), totals.get(key).copied().unwrap_or(0))).collect()
}

/// The query of a board's lines under a condition, whose parameters are `values`.
fn lines<'a>(board: &BoardDef, condition: &str, mut values: Vec<Value<'a>>, limit: usize) -> Query<'a> {
    let own = own_keys(board, 1).0;
    values.push(Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX)));
    let text = format!(
        r#"SELECT {own}, t."score" FROM "{}" AS t {condition} ORDER BY t."score" DESC, {own} LIMIT ${}"#,
        board.table_name(),
        values.len()
    );
    Query { text, values }
}

fn ranked<'r, K: Key, S: Score>(
    board: Board<K, S>,
    mut rank: u64,
    rows: impl Iterator<Item = &'r Row>,
    limit: usize,
) -> Result<Vec<Ranked<K, S>>> {
    let def = board.def();
    let line = |row: &Row| {
        let raw = read_parts(def.name(), def.parts().as_slice(), row, 0)?;
        let key = raw.decode().map_err(|cause| Error::key(def.id(), &raw, cause))?;
        let cell = cell(row, row.len().saturating_sub(1)).ok_or_else(|| foreign(&def))?;
        rank += 1;
        Ok(Ranked { rank, key, score: score_of(&def, cell)? })
    };
    rows.take(limit).map(line).collect()
}

/// A score as a parameter.
struct Param<'s>(&'s Cell);

impl<'s> Param<'s> {
    fn bytes(&self) -> Cow<'s, [u8]> {
        match self.0 {
            Cell::Integer(score) => Cow::Owned(score.to_be_bytes().to_vec()),
            Cell::Decayed(score) => Cow::Owned(score.to_bytes()),
        }
    }

    const fn integer(&self) -> i64 {
        match self.0 {
            Cell::Integer(score) => *score,
            Cell::Decayed(_) => 0,
        }
    }

    fn value(&self) -> Value<'s> {
        match self.0 {
            Cell::Integer(score) => Value::Integer(*score),
            Cell::Decayed(_) => Value::Blobs(vec![self.bytes()]),
        }
    }

    /// The first parameter as a score: bytes come as an array of one.
    const fn param(&self) -> &'static str {
        match self.0 {
            Cell::Integer(_) => "$1",
            Cell::Decayed(_) => "($1::bytea[])[1]",
        }
    }
}

/// The key columns with their table's name, and parameters for them from `first` on.
fn own_keys(board: &BoardDef, first: usize) -> (String, String) {
    let columns = sql::own_key_columns(board.parts());
    let params: Vec<String> = (first..first + columns.len()).map(|at| format!("${at}")).collect();
    (columns.join(", "), params.join(", "))
}

/// A score; none where it is none of a board's.
fn cell(row: &Row, at: usize) -> Option<Cell> {
    if let Ok(score) = row.try_get::<_, i64>(at) {
        return Some(Cell::Integer(score));
    }
    let bytes: Vec<u8> = row.try_get(at).ok()?;
    Decayed::from_bytes(&bytes).map(Cell::Decayed)
}

fn score_of<S: Score>(board: &BoardDef, cell: Cell) -> Result<S> {
    S::from_cell(cell).ok_or_else(|| foreign(board))
}

fn foreign(board: &BoardDef) -> Error {
    Error::Schema { table: board.table_name(), reason: "a score in it is none of this board's; rebuild it".to_owned() }
}

fn reading(board: &BoardDef, error: tokio_postgres::Error) -> Error {
    failed(Whose::Table(&board.table_name()), &format!("reading board {}", board.name()), error)
}

fn writing(board: &BoardDef, error: tokio_postgres::Error) -> Error {
    failed(Whose::Table(&board.table_name()), &format!("writing board {}", board.name()), error)
}
