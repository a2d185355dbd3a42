//! What one transaction does: leaves out what is pruned, climbs under locks, writes totals in order, brings boards along, moves the mark.
//!
//! Locks come in one order for all: the stream's mark, cuts, the children of rollups by level and link, the keys of boards, then totals by counter and
//! key. So transactions that apply once never wait for each other in a circle.

use std::borrow::Cow;
use std::collections::BTreeSet;

use tokio_postgres::{GenericClient, Row};

use super::{AsyncWork, Session, Whose, at_once, failed, failed_on, queries, read_total, totals_in_order};
use crate::batch::Batch;
use crate::board::BoardDef;
use crate::counter::{Def, Placed};
use crate::error::{Error, Result, chain};
use crate::key::KeyBuf;
use crate::mark::Mark;
use crate::prune;
use crate::rollup::{self, Climb, Question};
use crate::sql::{self, Dialect, Query, Value};
use crate::store::Applied;
use crate::store::catalogue;

/// Why nothing was written.
pub(crate) enum Failed {
    Known(Error),
    /// A total of this counter would leave 64 bits; the server does not say which. The batch has climbed.
    Overflow(Def, Box<Batch>),
}

impl Failed {
    /// Where the transaction is the caller's, nobody can look which total it is.
    pub(crate) fn unnamed(self) -> Error {
        match self {
            Self::Known(error) => error,
            Self::Overflow(counter, batch) => {
                let keys: Vec<&KeyBuf> = of_counter(&batch, &counter).map(|(key, _)| key).collect();
                match keys.as_slice() {
                    [key] => Error::overflow(&counter, key, "total"),
                    [first, ..] => {
                        let key = format!("{} or another of {}", counter.show(first), keys.len());
                        Error::Overflow { counter: counter.name(), key, what: "total" }
                    }
                    [] => Error::Overflow { counter: counter.name(), key: String::new(), what: "total" },
                }
            }
        }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Known(error)
    }
}

fn of_counter<'b>(batch: &'b Batch, counter: &Def) -> impl Iterator<Item = (&'b KeyBuf, i128)> {
    let counter = *counter;
    batch.deltas().filter(move |(of, ..)| of.same(&counter)).map(|(_, key, delta)| (key, delta))
}

/// Which keys of which boards a batch may move.
type Moved = Vec<(BoardDef, BTreeSet<KeyBuf>)>;

/// What applying a batch does, for errors.
pub(super) fn doing(batch: &Batch, mark: Option<&Mark<'_>>) -> String {
    match mark {
        Some(mark) if batch.is_empty() => format!("moving the mark of stream {}", mark.stream()),
        _ => {
            let mut names: Vec<_> = batch.deltas().map(|(counter, ..)| counter.full_name()).collect();
            names.sort_unstable();
            names.dedup();
            format!("writing totals of counter {}", names.join(", "))
        }
    }
}

/// Refuses a stream's name that PostgreSQL cannot hold.
pub(super) fn check_stream(stream: &str) -> Result<()> {
    if stream.contains('\0') {
        return Err(Error::setting("stream", format!("{stream:?} has a zero byte, which PostgreSQL cannot hold")));
    }
    Ok(())
}

/// Reads a stream's mark.
pub(super) fn mark_of(stream: &str, row: &Row) -> Result<u64> {
    let foreign = |what: String| {
        let reason = format!("the mark of stream {stream} is {what}; somebody else wrote it");
        Error::Schema { table: sql::MARKS.to_owned(), reason }
    };
    let last: i64 = row.try_get(0).map_err(|error| foreign(chain(&error)))?;
    u64::try_from(last).map_err(|_| foreign(format!("{last}, below 0")))
}

/// Statements that write totals, with what comes before and behind them.
pub(super) struct Writes<'b> {
    pub(super) queries: Vec<Query<'b>>,
    /// How many of the queries come before those of totals.
    before: usize,
    /// The counter of each that writes totals, and how many it has to write.
    pub(super) totals: Vec<(Def, Option<u64>)>,
}

impl Writes<'_> {
    pub(super) fn failed(
        &self,
        at: usize,
        batch: &Batch,
        mark: Option<&Mark<'_>>,
        error: tokio_postgres::Error,
    ) -> Failed {
        match at.checked_sub(self.before).and_then(|at| self.totals.get(at)) {
            Some((counter, _)) if super::session::overflowed(&error) => {
                Failed::Overflow(*counter, Box::new(batch.clone()))
            }
            Some((counter, _)) => failed_on("writing totals", counter, error).into(),
            // Locks of boards come before, the mark behind.
            None => {
                let table = if at < self.before { sql::LOCKS } else { sql::MARKS };
                failed(Whose::Table(table), &doing(batch, mark), error).into()
            }
        }
    }

    /// Refuses a write of fewer totals than were sent.
    pub(super) fn check(&self, written: &[u64]) -> Result<()> {
        for ((counter, wanted), written) in self.totals.iter().zip(written.iter().skip(self.before)) {
            if wanted.is_some_and(|wanted| wanted != *written) {
                let reason = "a write to it was skipped; it must have no triggers or rules".to_owned();
                return Err(Error::Schema { table: counter.table_name(), reason });
            }
        }
        Ok(())
    }
}

impl<C: GenericClient + Send + Sync> Session<'_, C> {
    /// Writes a batch in the transaction at hand; does nothing where its events were applied before.
    pub(super) async fn write(&self, batch: &Batch, mark: Option<&Mark<'_>>) -> Result<Applied, Failed> {
        if let Some(mark) = mark
            && !self.follows(batch, mark).await?
        {
            return Ok(Applied::skipped());
        }
        self.write_following(batch, mark).await
    }

    /// Whether the events of a mark come next, and were not applied before; whoever applies the same stream waits here, and then sees what was applied.
    async fn follows(&self, batch: &Batch, mark: &Mark<'_>) -> Result<bool> {
        check_stream(mark.stream())?;
        let hold = Query { text: sql::hold_mark(), values: vec![Value::Text(mark.stream().into())] };
        let rows = self.query(&hold).await;
        let rows = rows.map_err(|error| failed(Whose::Table(sql::MARKS), &doing(batch, Some(mark)), error))?;
        mark.follows(rows.first().map_or(Ok(0), |row| mark_of(mark.stream(), row))?)
    }

    /// Writes a batch whose events come next.
    async fn write_following(&self, batch: &Batch, mark: Option<&Mark<'_>>) -> Result<Applied, Failed> {
        let plain = self.layout.is_plain() && self.layout.board_defs().is_empty();
        if plain {
            return self.write_all(batch, mark, false).await;
        }
        let climbed = self.climb(self.above_cuts(batch).await?).await?;
        let applied = self.write_all(&climbed, mark, false).await?;
        Ok(applied.of(climbed))
    }

    /// Writes a batch that has climbed: board locks, totals, the mark, and what boards say then.
    async fn write_all(&self, batch: &Batch, mark: Option<&Mark<'_>>, far: bool) -> Result<Applied, Failed> {
        let moved = self.moved(batch)?;
        let mut writes = self.writes(batch, far)?;
        let locks = board_locks(&moved);
        writes.before = locks.len();
        writes.queries.splice(0..0, locks);
        if let Some(mark) = mark {
            let last = i64::try_from(mark.last()).unwrap_or(i64::MAX); // `Mark::new` refuses more
            let values = vec![Value::Text(mark.stream().into()), Value::Integer(last)];
            writes.queries.push(Query { text: sql::set_mark(Dialect::Postgres), values });
        }
        let written = self.execute_all(&writes.queries).await;
        let written = written.map_err(|(at, error)| writes.failed(at, batch, mark, error))?;
        let scores = match writes.check(&written) {
            Ok(()) => self.follow(&moved).await,
            Err(error) => Err(error),
        };
        if scores.is_err() {
            // Totals are written: within the caller's transaction nothing of it may be committed, whoever found the error.
            let _ = self.client.batch_execute("SELECT 1 / 0").await;
        }
        Ok(Applied::new(batch.len() as u64, writes.totals.len() as u64 + scores?))
    }

    /// The statements that write a batch's totals.
    pub(super) fn writes<'b>(&self, batch: &'b Batch, far: bool) -> Result<Writes<'b>> {
        let mut writes = Writes { queries: Vec::new(), before: 0, totals: Vec::new() };
        for statement in sql::statements(Dialect::Postgres, self.layout, batch, far)? {
            for row in statement.rows() {
                writes.queries.push(Query { text: statement.text.clone(), values: row.to_vec() });
                writes.totals.push((statement.counter, statement.adds.then(|| row.first().map_or(1, Value::len))));
            }
        }
        Ok(writes)
    }

    fn moved(&self, batch: &Batch) -> Result<Moved> {
        let mut boards = self.layout.board_defs().to_vec();
        // As processes with other layouts lock them.
        boards.sort_unstable_by_key(BoardDef::name);
        boards.into_iter().map(|board| Ok((board, board.changed(batch.deltas())?))).collect()
    }

    /// The encoded last parts below which these counters were pruned; `hold` keeps them from being pruned until the transaction ends.
    pub(crate) async fn cuts(&self, counters: &[Def], hold: bool) -> Result<Vec<(Def, KeyBuf)>> {
        let prunable = counters.iter().filter(|def| self.layout.placed(def).is_ok_and(Placed::is_prunable));
        let prunable: Vec<Def> = prunable.copied().collect();
        if prunable.is_empty() {
            return Ok(Vec::new());
        }
        let ends = if hold { " FOR SHARE" } else { "" };
        let query = Query {
            text: format!(
                r#"SELECT c."name", c."cut" FROM "{}" AS c WHERE c."name" = ANY($1) ORDER BY c."name"{ends}"#,
                sql::CATALOGUE
            ),
            values: vec![Value::Texts(prunable.iter().map(Def::full_name).collect())],
        };
        let doing = |error| failed(Whose::Table(sql::CATALOGUE), "reading cuts", error);
        let mut cuts = Vec::new();
        for row in self.query(&query).await.map_err(doing)? {
            let name: String = row.try_get(0).map_err(doing)?;
            let cut: Option<Vec<u8>> = row.try_get(1).map_err(doing)?;
            let Some(def) = prunable.iter().find(|def| def.full_name() == name) else { continue };
            let Some(cut) = cut.map(|cut| KeyBuf::from_bytes(&cut)) else { continue };
            // A cut that is no last part would let anything through, or nothing.
            catalogue::tail_value(Dialect::Postgres, def, &cut)?;
            cuts.push((*def, cut));
        }
        Ok(cuts)
    }

    /// These counters, all that they feed, and what else the boards that they move are made of.
    pub(crate) fn read_with(&self, counters: Vec<Def>) -> Vec<Def> {
        let mut all = self.layout.with_fed(counters);
        let is_moved = |board: &&BoardDef| board.counters().iter().any(|of| all.iter().any(|def| def.same(of)));
        let moved: Vec<Def> =
            self.layout.board_defs().iter().filter(is_moved).flat_map(|board| board.counters().to_vec()).collect();
        all.extend(moved);
        all
    }

    /// The batch without what is below a cut; reads nothing where neither a counter of it is prunable nor one that it feeds: a link that moves takes
    /// totals along, which must not be pruned meanwhile.
    async fn above_cuts(&self, batch: &Batch) -> Result<Batch> {
        let cuts = self.cuts(&self.read_with(batch.defs()), true).await?;
        if cuts.is_empty() {
            return Ok(batch.clone());
        }
        let cut_of = |counter: &Def| cuts.iter().find(|(known, _)| known.same(counter)).map(|(_, cut)| cut);
        Ok(batch.filtered(|counter, key| cut_of(counter).is_none_or(|cut| prune::keeps(counter, key, cut))))
    }

    /// Carries a batch up to rollups. Each child whose links or finer totals change is locked first, then read in a later statement: what was read
    /// stands still until the transaction ends.
    async fn climb(&self, batch: Batch) -> Result<Batch> {
        if self.layout.is_plain() || rollup::first_fed(self.layout, &batch).is_none() {
            return Ok(batch);
        }
        let mut climb = Climb::of(self.layout, batch);
        loop {
            let questions = climb.next_all()?;
            let Some(first) = questions.first() else { return Ok(climb.into_batch()) };
            let mut children: Vec<&KeyBuf> = questions.iter().map(|question| &question.child).collect();
            children.dedup();
            let children = children.iter().map(|child| Cow::Borrowed(child.as_bytes())).collect();
            let mut queries = vec![sql::lock(&first.link.full_name(), first.level, children)];
            let asked = self.asked(&questions)?;
            queries.extend(asked.iter().map(|(_, query)| query.clone()));
            let answers = self.query_all(&queries).await.map_err(|(at, error)| {
                match at.checked_sub(1).and_then(|at| asked.get(at)) {
                    Some((counter, _)) => failed_on("climbing by totals", counter, error),
                    None => failed(Whose::Table(sql::LOCKS), "climbing", error),
                }
            })?;
            for ((counter, _), rows) in asked.iter().zip(answers.iter().skip(1)) {
                for row in rows {
                    let (key, total) = read_total(counter, row)?;
                    climb.take_of(counter, &key, total)?;
                }
            }
        }
    }

    /// One query for each counter that is asked for.
    fn asked<'q>(&self, questions: &'q [Question]) -> Result<Vec<(Def, Query<'q>)>> {
        let mut counters: Vec<(Def, Vec<&'q KeyBuf>)> = Vec::new();
        for question in questions {
            match counters.iter_mut().find(|(counter, _)| counter.same(&question.counter)) {
                Some((_, children)) => children.push(&question.child),
                None => counters.push((question.counter, vec![&question.child])),
            }
        }
        let query = |(counter, children): (Def, Vec<&'q KeyBuf>)| {
            let parts = questions.first().map_or(0, |question| question.child_parts);
            Ok((counter, queries::read_under(self.layout.placed(&counter)?, parts, &children)?))
        };
        counters.into_iter().map(query).collect()
    }

    /// Reads totals, ready or not.
    pub(crate) async fn totals_of(&self, counter: &Def, keys: &[KeyBuf]) -> Result<Vec<i64>> {
        let reads = queries::read_many(self.layout.placed(counter)?, keys)?;
        let rows = self.query_all(&reads).await.map_err(|(_, error)| failed_on("reading totals", counter, error))?;
        totals_in_order(counter, keys, &rows.iter().flatten().collect::<Vec<_>>())
    }

    /// Holds what a mend of these keys will change above them: the locks that a change of each would take, before any total is held.
    pub(crate) async fn hold_above(&self, counter: &Def, keys: &[KeyBuf]) -> Result<()> {
        let mut any = Batch::new();
        for key in keys {
            any.add_raw(*counter, &mut key.clone(), 1);
        }
        let climbed = match self.climb(any.clone()).await {
            // There is no room above, so the mend will not climb either.
            Err(Error::Overflow { .. }) => any,
            climbed => climbed?,
        };
        let moved = self.moved(&climbed)?;
        let locks = board_locks(&moved);
        let doing = format!("mending totals of counter {}", counter.full_name());
        let locked = self.execute_all(&locks).await;
        locked.map_err(|(_, error)| failed(Whose::Table(sql::LOCKS), &doing, error))?;
        Ok(())
    }

    /// Holds these totals until the transaction ends, in key order; gives them. Those that are absent are made.
    pub(crate) async fn hold(&self, counter: &Def, keys: &[KeyBuf]) -> Result<Vec<i64>> {
        let query = queries::hold(self.layout.placed(counter)?, keys)?;
        let rows = self.query(&query).await.map_err(|error| failed_on("holding totals", counter, error))?;
        totals_in_order(counter, keys, &rows.iter().collect::<Vec<_>>())
    }

    /// Writes what totals lack: also of rollups, of keys below a cut, and beyond 64 bits.
    pub(crate) async fn mend(&self, lacking: &Batch) -> Result<()> {
        let climbed = match self.climb(lacking.clone()).await {
            Err(Error::Overflow { .. }) => lacking.clone(),
            climbed => self.with_room(climbed?, lacking).await?,
        };
        self.write_all(&climbed, None, true).await.map(drop).map_err(Failed::unnamed)
    }

    /// What has climbed, or the mend alone where a rollup has no room for it: it then differs from what it sums, as it did, and is mended on its own
    /// level.
    async fn with_room(&self, climbed: Batch, lacking: &Batch) -> Result<Batch> {
        let above: Vec<(Def, KeyBuf, i128)> =
            climbed.deltas().skip(lacking.len()).map(|(counter, key, delta)| (counter, key.clone(), delta)).collect();
        for run in above.chunk_by(|one, two| one.0.same(&two.0)) {
            let Some((counter, ..)) = run.first() else { continue };
            let keys: Vec<KeyBuf> = run.iter().map(|(_, key, _)| key.clone()).collect();
            for (total, (.., delta)) in self.totals_of(counter, &keys).await?.into_iter().zip(run) {
                if delta.checked_add(total.into()).is_none_or(|sum| i64::try_from(sum).is_err()) {
                    return Ok(lacking.clone());
                }
            }
        }
        Ok(climbed)
    }

    /// Removes those of these totals that are 0; the caller holds them.
    pub(crate) async fn remove_zeros(&self, counter: &Def, keys: &[KeyBuf]) -> Result<()> {
        let placed = self.layout.placed(counter)?;
        for mut read in queries::read_many(placed, keys)? {
            read.text = sql::remove_zeros(placed);
            self.execute(&read).await.map_err(|error| failed_on("writing totals", counter, error))?;
        }
        Ok(())
    }

    /// Which total of a counter a batch would bring beyond 64 bits, as far as one can see now.
    pub(super) async fn find_overflow(&self, counter: &Def, batch: &Batch) -> Error {
        let mut deltas: Vec<(KeyBuf, i128)> =
            of_counter(batch, counter).map(|(key, delta)| (key.clone(), delta)).collect();
        deltas.sort_unstable();
        let keys: Vec<KeyBuf> = deltas.iter().map(|(key, _)| key.clone()).collect();
        let totals = match self.totals_of(counter, &keys).await {
            Ok(totals) => totals,
            Err(error) => return error,
        };
        let beyond = deltas.iter().zip(totals).find(|((_, delta), total)| {
            delta.checked_add((*total).into()).is_none_or(|sum| i64::try_from(sum).is_err())
        });
        match beyond.map(|((key, _), _)| key).or_else(|| keys.first()) {
            Some(key) => Error::overflow(counter, key, "total"),
            None => Error::Overflow { counter: counter.name(), key: String::new(), what: "total" },
        }
    }
}

/// Who scores a key of a board waits until others who do are through: its score is made of totals that they change.
fn board_locks(moved: &Moved) -> Vec<Query<'_>> {
    let locks = moved.iter().filter(|(_, keys)| !keys.is_empty());
    locks
        .map(|(board, keys)| sql::lock(board.name(), 0, keys.iter().map(|key| Cow::Borrowed(key.as_bytes())).collect()))
        .collect()
}

impl<C: GenericClient + Send + Sync> Session<'_, C> {
    /// Waits for all who hold cuts, and keeps others from it until the transaction ends. Who waits for a row beside ever new sharers may wait for ever; for a
    /// table there is a queue. What a transaction that is older than this read may be wrong by now, so it must see what is committed.
    pub(crate) async fn lock_catalogue(&self) -> Result<()> {
        let lock = format!(r#"LOCK TABLE "{}" IN EXCLUSIVE MODE"#, sql::CATALOGUE);
        let locked = self.client.batch_execute(&lock).await;
        locked.map_err(|error| failed(Whose::Table(sql::CATALOGUE), &format!("locking {}", sql::CATALOGUE), error))?;
        self.refuse_snapshot().await
    }

    /// Refuses a transaction that sees what was committed when it began, and not what is.
    pub(crate) async fn refuse_snapshot(&self) -> Result<()> {
        let doing = |error| failed(Whose::Connection, "looking at the transaction", error);
        let text = "SELECT current_setting('transaction_isolation')".to_owned();
        let rows = self.query(&Query { text, values: Vec::new() }).await.map_err(doing)?;
        let isolation = rows.first().map_or(Ok(String::new()), |row| row.try_get(0)).map_err(doing)?;
        if isolation == "read committed" || isolation == "read uncommitted" {
            return Ok(());
        }
        Err(Error::setting(
            "transaction_isolation",
            format!("it is {isolation}; prunes and rebuilds need read committed"),
        ))
    }
}

/// Applies a batch.
pub(super) struct Apply<'b> {
    pub(super) batch: &'b Batch,
    pub(super) mark: Option<&'b Mark<'b>>,
}

impl AsyncWork<Applied> for Apply<'_> {
    async fn run<C: GenericClient + Send + Sync>(&self, session: &Session<'_, C>) -> Result<Applied, Failed> {
        session.write(self.batch, self.mark).await
    }
}

/// Writes rows of the application's own, and applies their batch; neither where its events were applied before.
pub(super) struct WriteRows<'b> {
    pub(super) rows: &'b [at_once::Given<'b>],
    pub(super) batch: &'b Batch,
    pub(super) mark: Option<&'b Mark<'b>>,
}

impl AsyncWork<(Vec<u64>, Applied)> for WriteRows<'_> {
    async fn run<C: GenericClient + Send + Sync>(
        &self,
        session: &Session<'_, C>,
    ) -> Result<(Vec<u64>, Applied), Failed> {
        // First: rows that are there already would be refused before it is seen that they are.
        if let Some(mark) = self.mark
            && !session.follows(self.batch, mark).await?
        {
            return Ok((Vec::new(), Applied::skipped()));
        }
        let rows = session.rows(self.rows).await?;
        let written = at_once::run_rows(session.client, &rows).await.map_err(at_once::row_failed)?;
        if self.batch.is_empty() && self.mark.is_none() {
            return Ok((written, Applied::default()));
        }
        Ok((written, session.write_following(self.batch, self.mark).await?))
    }
}

/// Forgets what is below a cut.
pub(super) struct Prune {
    pub(super) family: Vec<Def>,
    pub(super) cut: KeyBuf,
}

impl AsyncWork<u64> for Prune {
    async fn run<C: GenericClient + Send + Sync>(&self, session: &Session<'_, C>) -> Result<u64, Failed> {
        let doing = |def: &Def| format!("pruning totals of counter {}", def.full_name());
        session.lock_catalogue().await?;
        let mut moved = Vec::new();
        for def in &self.family {
            let text = format!(
                r#"UPDATE "{}" AS c SET "cut" = ($1::bytea[])[1] WHERE c."name" = $2 AND (c."cut" IS NULL OR c."cut" < ($1::bytea[])[1])"#,
                sql::CATALOGUE
            );
            let cut = Value::Blobs(vec![Cow::Borrowed(self.cut.as_bytes())]);
            let query = Query { text, values: vec![cut, Value::Text(def.full_name())] };
            let cut = session.execute(&query).await;
            if cut.map_err(|error| failed(Whose::Table(sql::CATALOGUE), &doing(def), error))? > 0 {
                moved.push(*def);
            }
        }
        let is_made_of = |board: &&BoardDef| board.counters().iter().any(|of| moved.iter().any(|def| def.same(of)));
        let boards: Vec<BoardDef> = session.layout.board_defs().iter().filter(is_made_of).copied().collect();
        session.lock_boards(&boards).await?;
        let mut gone = 0;
        for def in self.family.iter().filter(|def| moved.iter().any(|moved| moved.same(def))) {
            let placed = session.layout.placed(def)?;
            let last = sql::own_key_columns(def.parts()).pop().unwrap_or_default();
            let text = format!(r#"DELETE FROM "{}" AS t WHERE {last} < $1"#, placed.table_name());
            let query = Query { text, values: vec![catalogue::tail_value(Dialect::Postgres, def, &self.cut)?] };
            gone += session.execute(&query).await.map_err(|error| failed_on("pruning totals", def, error))?;
        }
        for board in &boards {
            session.rescore_all(board).await?;
        }
        Ok(gone)
    }
}
