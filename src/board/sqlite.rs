//! Boards in SQLite: one table and one index each, written in the transaction that changes their counters.

use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{OptionalExtension as _, params_from_iter};

use super::{Board, BoardDef, Cell, Ranked, Score};
use crate::batch::Batch;
use crate::decay::Decayed;
use crate::error::{Error, Result};
use crate::key::{AsKey, Key, KeyBuf};
use crate::sql::{self, Dialect, Value};
use crate::store::sqlite::{SqliteStore, Unready, failed, read_parts, transaction};

impl SqliteStore<'_> {
    /// The first lines of a board: one range of its index.
    ///
    /// # Errors
    ///
    /// What the database says; [`Error::Key`] for a key that is none of the board's type; [`Error::NotReady`] while the board came new and is
    /// not [rebuilt](Self::rebuild), or a counter that it is made of is not ready.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Batch, Board, Counter, Layout, SqliteStore, Store};
    ///
    /// const VOTES: Counter<i64> = Counter::new("song.votes");
    /// const SONGS: Board<i64> = Board::new("song.board", &[VOTES.def()], |totals| totals.first().copied().filter(|votes| *votes > 0));
    /// const LAYOUT: Layout = Layout::new(&[VOTES.table()]).boards(&[SONGS.def()]);
    ///
    /// let conn = rusqlite::Connection::open_in_memory()?;
    /// let mut store = SqliteStore::new(&conn, &LAYOUT);
    /// store.create()?;
    /// let mut batch = Batch::new();
    /// batch.add(VOTES, 7_i64, 2);
    /// batch.add(VOTES, 8_i64, 5);
    /// store.apply(&mut batch)?;
    /// let top = store.top(SONGS, 10)?;
    /// assert_eq!(top.iter().map(|line| (line.rank, line.key, line.score)).collect::<Vec<_>>(), [(1, 8, 5), (2, 7, 2)]);
    /// assert_eq!(store.rank(SONGS, 7_i64)?.map(|line| line.rank), Some(2));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn top<K: Key, S: Score>(&self, board: Board<K, S>, limit: usize) -> Result<Vec<Ranked<K, S>>> {
        self.when_board_ready(&board.def(), || self.lines(board, None, limit))
    }

    /// The lines behind one that was read before: ranks go on from its rank, whatever has changed meanwhile.
    ///
    /// # Errors
    ///
    /// As [`top`](Self::top).
    pub fn top_after<K: Key + AsKey<K>, S: Score>(
        &self,
        board: Board<K, S>,
        after: &Ranked<K, S>,
        limit: usize,
    ) -> Result<Vec<Ranked<K, S>>> {
        let key = KeyBuf::of::<K>(&after.key);
        let after = (after.rank, after.score.to_cell(), key);
        self.when_board_ready(&board.def(), || self.lines(board, Some(&after), limit))
    }

    /// The line of one key; none where it is not listed. Counts the lines before it: costs O(rank).
    ///
    /// # Errors
    ///
    /// As [`top`](Self::top).
    pub fn rank<K: Key, S: Score>(&self, board: Board<K, S>, key: impl AsKey<K>) -> Result<Option<Ranked<K, S>>> {
        let key = KeyBuf::of::<K>(key);
        self.when_board_ready(&board.def(), || self.line_of(board, &key))
    }

    fn line_of<K: Key, S: Score>(&self, board: Board<K, S>, raw: &KeyBuf) -> Result<Option<Ranked<K, S>>> {
        let def = board.def();
        let cell = match self.stored_score(&def, raw)? {
            Stored::Score(cell) => cell,
            Stored::Nothing => return Ok(None),
            Stored::Foreign => return Err(foreign(&def)),
        };
        let (keys, params) = own_keys(&def, 2);
        let text = format!(
            r#"SELECT (SELECT count(*) FROM "{0}" AS t WHERE t."score" > ?1)
                    + (SELECT count(*) FROM "{0}" AS t WHERE t."score" = ?1 AND ({keys}) < ({params}))"#,
            def.table_name()
        );
        let values = std::iter::once(Param::Score(&cell)).chain(key_params(&def, raw)?).collect::<Vec<_>>();
        let before = self
            .conn()
            .prepare_cached(&text)
            .and_then(|mut count| count.query_row(params_from_iter(values), |row| row.get::<_, i64>(0)));
        let before = before.map_err(|error| reading(&def, error))?;
        let key = raw.decode().map_err(|cause| Error::key(def.id(), raw, cause))?;
        let score = score_of::<S>(&def, cell)?;
        Ok(Some(Ranked { rank: before.unsigned_abs() + 1, key, score }))
    }

    /// How many keys a board lists.
    ///
    /// # Errors
    ///
    /// As [`top`](Self::top).
    pub fn listed<K: Key, S: Score>(&self, board: Board<K, S>) -> Result<u64> {
        let text = format!(r#"SELECT count(*) FROM "{}""#, board.def().table_name());
        self.when_board_ready(&board.def(), || {
            let count = self.conn().query_row(&text, (), |row| row.get::<_, i64>(0));
            count.map(i64::unsigned_abs).map_err(|error| reading(&board.def(), error))
        })
    }

    /// Makes every score of a board anew from totals, in one transaction, and the board ready to be read; says how many lines were not as they should
    /// be. Needed once for a board that came new to a database, after a board's version was raised, which it writes into the catalogue, and after
    /// totals were changed behind keepcount's back.
    ///
    /// Whoever calls it states that every process which writes has this board in its layout by now: one that has not leaves lines as they are.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub fn rebuild<K: Key, S: Score>(&self, board: Board<K, S>) -> Result<u64> {
        let def = board.def();
        self.transact(|| format!("rebuilding board {}", def.name()), |_| self.remake(&def))
    }

    /// Scores every key, and says in the catalogue that this is what the board is now.
    fn remake(&self, board: &BoardDef) -> Result<u64> {
        let changed = self.rescore_all(board)?;
        let enlist = self.conn().prepare(&super::enlist_anew(board, true));
        let enlisted = enlist.and_then(|mut enlist| transaction::write(self.conn(), &mut enlist, ()));
        enlisted.map_err(|error| failed(&format!("rebuilding board {}", board.name()), error))?;
        Ok(changed)
    }

    /// Scores every key that has a total or a line.
    pub(crate) fn rescore_all(&self, board: &BoardDef) -> Result<u64> {
        let mut changed = 0;
        // Lines first: those whose totals are gone come up nowhere else.
        let mut after: Option<KeyBuf> = None;
        loop {
            let page = self.listed_keys(board, after.as_ref())?;
            for key in &page {
                changed += u64::from(self.rescore(board, key)?);
            }
            match page.last() {
                Some(last) if page.len() == LINES_PAGE => after = Some(last.clone()),
                _ => break,
            }
        }
        board.each_key(&mut Unready(*self), |_, key| {
            changed += u64::from(self.rescore(board, &key)?);
            Ok(())
        })?;
        Ok(changed)
    }

    /// Brings all boards along with a batch that was written; gives how many lines changed.
    pub(crate) fn follow(&self, batch: &Batch) -> Result<u64> {
        let mut changed = 0;
        for board in self.layout().board_defs() {
            for key in board.changed(batch.deltas())? {
                changed += u64::from(self.rescore(board, &key)?);
            }
        }
        Ok(changed)
    }

    /// Compares a key's stored score with what its totals say, and writes where they differ.
    fn rescore(&self, board: &BoardDef, key: &KeyBuf) -> Result<bool> {
        let score = board.score(&mut Unready(*self), key)?;
        let same = match self.stored_score(board, key)? {
            Stored::Score(stored) => Some(stored) == score,
            Stored::Nothing => score.is_none(),
            Stored::Foreign => false,
        };
        if same {
            return Ok(false);
        }
        let (keys, table) = (sql::key_columns(board.parts()).join(", "), board.table_name());
        let (own, params) = own_keys(board, 1);
        let mut values = key_params(board, key)?;
        let text = if let Some(score) = &score {
            values.push(Param::Score(score));
            format!(
                r#"INSERT INTO "{table}" AS t ({keys}, "score") VALUES ({params}, ?{}) ON CONFLICT ({keys}) DO UPDATE SET "score" = excluded."score""#,
                values.len()
            )
        } else {
            format!(r#"DELETE FROM "{table}" AS t WHERE ({own}) = ({params})"#)
        };
        let write = self.conn().prepare_cached(&text);
        let written = write.and_then(|mut write| transaction::write(self.conn(), &mut write, params_from_iter(values)));
        written.map_err(|error| failed(&format!("writing board {}", board.name()), error))?;
        Ok(true)
    }

    fn stored_score(&self, board: &BoardDef, key: &KeyBuf) -> Result<Stored> {
        let (keys, params) = own_keys(board, 1);
        let text = format!(r#"SELECT t."score" FROM "{}" AS t WHERE ({keys}) = ({params})"#, board.table_name());
        let values = key_params(board, key)?;
        let found = self
            .conn()
            .prepare_cached(&text)
            .and_then(|mut read| read.query_row(params_from_iter(values), |row| Ok(cell(row.get_ref(0)?))).optional());
        Ok(match found.map_err(|error| reading(board, error))? {
            None => Stored::Nothing,
            Some(None) => Stored::Foreign,
            Some(Some(score)) => Stored::Score(score),
        })
    }

    fn listed_keys(&self, board: &BoardDef, after: Option<&KeyBuf>) -> Result<Vec<KeyBuf>> {
        let (keys, params) = own_keys(board, 1);
        let behind = if after.is_some() { format!("WHERE ({keys}) > ({params})") } else { String::new() };
        let text =
            format!(r#"SELECT {keys} FROM "{}" AS t {behind} ORDER BY {keys} LIMIT {LINES_PAGE}"#, board.table_name());
        let values = after.map_or(Ok(Vec::new()), |after| key_params(board, after))?;
        let failed = |error| reading(board, error);
        let mut statement = self.conn().prepare_cached(&text).map_err(failed)?;
        let mut rows = statement.query(params_from_iter(values)).map_err(failed)?;
        let mut listed = Vec::new();
        while let Some(row) = rows.next().map_err(failed)? {
            listed.push(read_parts(board.name(), board.parts().as_slice(), row, 0)?);
        }
        Ok(listed)
    }

    /// Lines from the first on, or behind one: those of its score behind its key, then those of lower scores, each a range of the index.
    fn lines<K: Key, S: Score>(
        &self,
        board: Board<K, S>,
        after: Option<&(u64, Cell, KeyBuf)>,
        limit: usize,
    ) -> Result<Vec<Ranked<K, S>>> {
        let mut lines = Vec::new();
        let Some((rank, score, key)) = after else {
            self.read_lines(board, "", Vec::new(), limit, 0, &mut lines)?;
            return Ok(lines);
        };
        let (keys, params) = own_keys(&board.def(), 2);
        let tied = format!(r#"WHERE t."score" = ?1 AND ({keys}) > ({params})"#);
        let mut values = vec![Param::Score(score)];
        values.extend(key_params(&board.def(), key)?);
        self.read_lines(board, &tied, values, limit, *rank, &mut lines)?;
        let (left, rank) = (limit - lines.len(), rank + lines.len() as u64);
        if left > 0 {
            self.read_lines(board, r#"WHERE t."score" < ?1"#, vec![Param::Score(score)], left, rank, &mut lines)?;
        }
        Ok(lines)
    }

    fn read_lines<K: Key, S: Score>(
        &self,
        board: Board<K, S>,
        condition: &str,
        mut values: Vec<Param<'_>>,
        limit: usize,
        mut rank: u64,
        to: &mut Vec<Ranked<K, S>>,
    ) -> Result<()> {
        let def = board.def();
        let (keys, _) = own_keys(&def, 1);
        values.push(Param::Key(Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX))));
        let text = format!(
            r#"SELECT {keys}, t."score" FROM "{}" AS t {condition} ORDER BY t."score" DESC, {keys} LIMIT ?{}"#,
            def.table_name(),
            values.len()
        );
        let failed = |error| reading(&def, error);
        let mut statement = self.conn().prepare_cached(&text).map_err(failed)?;
        let score_at = statement.column_count() - 1;
        let mut rows = statement.query(params_from_iter(values)).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let raw = read_parts(def.name(), def.parts().as_slice(), row, 0)?;
            let key = raw.decode().map_err(|cause| Error::key(def.id(), &raw, cause))?;
            let cell = cell(row.get_ref(score_at).map_err(failed)?).ok_or_else(|| foreign(&def))?;
            rank += 1;
            to.push(Ranked { rank, key, score: score_of(&def, cell)? });
        }
        Ok(())
    }
}

/// What a board's table has for a key.
enum Stored {
    Nothing,
    Score(Cell),
    /// A cell that is none of this board's; a rebuild writes over it.
    Foreign,
}

/// Lines that a rebuild reads at once.
const LINES_PAGE: usize = 1024;

/// The key columns with their table's name, and parameters for them from `first` on.
fn own_keys(board: &BoardDef, first: usize) -> (String, String) {
    let columns: Vec<String> = sql::key_columns(board.parts()).iter().map(|column| format!("t.{column}")).collect();
    let params: Vec<String> = (first..first + columns.len()).map(|at| format!("?{at}")).collect();
    (columns.join(", "), params.join(", "))
}

fn key_params<'a>(board: &BoardDef, key: &'a KeyBuf) -> Result<Vec<Param<'a>>> {
    Ok(sql::key_values(Dialect::Sqlite, board.id(), key)?.into_iter().map(Param::Key).collect())
}

fn cell(value: ValueRef<'_>) -> Option<Cell> {
    match value {
        ValueRef::Integer(score) => Some(Cell::Integer(score)),
        ValueRef::Blob(bytes) => Decayed::from_bytes(bytes).map(Cell::Decayed),
        _ => None,
    }
}

fn score_of<S: Score>(board: &BoardDef, cell: Cell) -> Result<S> {
    S::from_cell(cell).ok_or_else(|| foreign(board))
}

fn foreign(board: &BoardDef) -> Error {
    Error::Schema { table: board.table_name(), reason: "a score in it is none of this board's; rebuild it".to_owned() }
}

fn reading(board: &BoardDef, error: rusqlite::Error) -> Error {
    failed(&format!("reading board {}", board.name()), error)
}

/// A parameter: part of a key, or a score.
enum Param<'a> {
    Key(Value<'a>),
    Score(&'a Cell),
}

impl ToSql for Param<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match self {
            Self::Key(value) => value.to_sql(),
            Self::Score(Cell::Integer(score)) => Ok(ToSqlOutput::from(*score)),
            Self::Score(Cell::Decayed(score)) => Ok(ToSqlOutput::from(score.to_bytes())),
        }
    }
}
