//! Forgets totals that nobody asks for any more, and leaves out of a batch what was forgotten.

use super::rows::{of_catalogue, text};
use super::{Whose, failed, failed_on, leaderboard};
use crate::batch::Batch;
use crate::board::BoardDef;
use crate::counter::{Def, Placed};
use crate::error::{Error, Result};
use crate::executor::{Column, Executor, Row as _};
use crate::key::{KeyBuf, KeyParts};
use crate::layout::Layout;
use crate::prune;
use crate::sql::{self, Dialect, Query, Value};
use crate::store::catalogue;

/// The encoded last parts below which these counters were pruned; `hold` keeps them from being pruned until the transaction ends.
pub(crate) async fn cuts<E: Executor>(
    executor: &mut E,
    layout: &Layout,
    counters: &[Def],
    hold: bool,
) -> Result<Vec<(Def, KeyBuf)>> {
    let prunable = counters.iter().filter(|def| layout.placed(def).is_ok_and(Placed::is_prunable));
    let prunable: Vec<Def> = prunable.copied().collect();
    if prunable.is_empty() {
        return Ok(Vec::new());
    }
    let query = sql::read_cuts(E::DIALECT, prunable.iter().map(Def::full_name).collect(), hold);
    let mut cuts = Vec::new();
    let read = executor
        .fetch(&[query], |_, row| {
            let name = text(row, 0, sql::CATALOGUE)?;
            let Some(def) = prunable.iter().find(|def| name.as_deref() == Some(&*def.full_name())) else {
                return Ok(());
            };
            let cut = match row.column(1) {
                Column::Null => return Ok(()),
                Column::Bytes(cut) => KeyBuf::from_bytes(&cut),
                other => {
                    let reason = format!("the cut of {} is {other}; somebody else wrote it", def.full_name());
                    return Err(Error::Schema { table: sql::CATALOGUE.to_owned(), reason });
                }
            };
            // A cut that is no last part would let anything through, or nothing.
            catalogue::tail_value(E::DIALECT, def, &cut)?;
            cuts.push((*def, cut));
            Ok(())
        })
        .await;
    read.map_err(|stopped| stopped.or(|_, error| failed(of_catalogue(), "reading cuts", error)))?;
    Ok(cuts)
}

/// These counters, all that they feed, and what else the leaderboards that they move are made of.
pub(crate) fn read_with(layout: &Layout, counters: Vec<Def>) -> Vec<Def> {
    let mut all = layout.with_fed(counters);
    let is_moved = |board: &&BoardDef| board.counters().iter().any(|of| all.iter().any(|def| def.same(of)));
    let moved: Vec<Def> =
        layout.board_defs().iter().filter(is_moved).flat_map(|board| board.counters().to_vec()).collect();
    all.extend(moved);
    all
}

/// The batch without what is below a cut; reads nothing where no counter is prunable that it reaches. In PostgreSQL those that it feeds are
/// looked at too: a link that moves takes totals along, which must not be pruned meanwhile.
pub(crate) async fn above_cuts<E: Executor>(executor: &mut E, layout: &Layout, batch: &Batch) -> Result<Batch> {
    let own = batch.defs();
    let counters = if E::DIALECT == Dialect::Postgres { read_with(layout, own) } else { own };
    let cuts = cuts(executor, layout, &counters, true).await?;
    if cuts.is_empty() {
        return Ok(batch.clone());
    }
    let cut_of = |counter: &Def| cuts.iter().find(|(known, _)| known.same(counter)).map(|(_, cut)| cut);
    Ok(batch.filtered(|counter, key| cut_of(counter).is_none_or(|cut| prune::keeps(counter, key, cut))))
}

/// Forgets the totals of a counter, and of the rollups by its tail, whose last part is before a cut; gives how many went.
pub(crate) async fn prune<E: Executor>(
    executor: &mut E,
    layout: &Layout,
    counter: Def,
    time: KeyParts,
    cut: &KeyBuf,
) -> Result<u64> {
    let family = prune::family(layout, &counter, time)?;
    let doing = format!("pruning counter {}", counter.full_name());
    let nested = super::begin(executor, &doing).await?;
    let gone = prune_family(executor, layout, &family, cut).await;
    super::end(executor, nested, &doing, gone).await
}

async fn prune_family<E: Executor>(executor: &mut E, layout: &Layout, family: &[Def], cut: &KeyBuf) -> Result<u64> {
    lock_catalogue(executor).await?;
    let mut moved = Vec::new();
    for def in family {
        // Of a part that the counter has.
        catalogue::tail_value(E::DIALECT, def, cut)?;
        let set = Query::new(
            sql::set_cut(E::DIALECT),
            vec![Value::Bytes(cut.as_bytes().into()), Value::Text(def.full_name())],
        );
        let doing = format!("pruning totals of counter {}", def.full_name());
        let set = executor.execute(&[set]).await;
        let set = set.map_err(|stopped| stopped.or(|_, error| failed(of_catalogue(), &doing, error)))?;
        if set.first() > Some(&0) {
            moved.push(*def);
        }
    }
    let is_made_of = |board: &&BoardDef| board.counters().iter().any(|of| moved.iter().any(|def| def.same(of)));
    let boards: Vec<BoardDef> = layout.board_defs().iter().filter(is_made_of).copied().collect();
    leaderboard::lock(executor, layout, &boards).await?;
    let mut gone = 0;
    for def in &moved {
        let last = vec![catalogue::tail_value(E::DIALECT, def, cut)?];
        let delete = Query::new(sql::prune(E::DIALECT, layout.placed(def)?), last);
        let deleted = executor.execute(&[delete]).await;
        let deleted = deleted.map_err(|stopped| stopped.or(|_, error| failed_on("pruning totals", def, error)))?;
        gone += deleted.first().copied().unwrap_or(0);
    }
    for board in &boards {
        leaderboard::rescore_all(executor, layout, board).await?;
    }
    Ok(gone)
}

/// In PostgreSQL, waits for all who hold cuts, and keeps others from it until the transaction ends. Who waits for a row beside ever new sharers may
/// wait for ever; for a table there is a queue. What a transaction that is older than this read may be wrong by now, so it must see what is committed.
pub(crate) async fn lock_catalogue<E: Executor>(executor: &mut E) -> Result<()> {
    if E::DIALECT != Dialect::Postgres {
        return Ok(());
    }
    let lock = format!(r#"LOCK TABLE "{}" IN EXCLUSIVE MODE"#, sql::CATALOGUE);
    let locked = executor.run(&lock).await;
    locked.map_err(|error| failed(of_catalogue(), &format!("locking {}", sql::CATALOGUE), error))?;
    refuse_snapshot(executor).await
}

/// Refuses a transaction of PostgreSQL's that sees what was committed when it began, and not what is.
pub(crate) async fn refuse_snapshot<E: Executor>(executor: &mut E) -> Result<()> {
    if E::DIALECT != Dialect::Postgres {
        return Ok(());
    }
    let query = Query::new("SELECT current_setting('transaction_isolation')", Vec::new());
    let mut isolation = None;
    let read = executor
        .fetch(&[query], |_, row| {
            isolation = text(row, 0, "transaction_isolation")?;
            Ok(())
        })
        .await;
    read.map_err(|stopped| stopped.or(|_, error| failed(Whose::Connection, "looking at the transaction", error)))?;
    match isolation.unwrap_or_default().as_str() {
        "read committed" | "read uncommitted" => Ok(()),
        isolation => Err(Error::setting(
            "transaction_isolation",
            format!("it is {isolation}; prunes and rebuilds need read committed"),
        )),
    }
}
