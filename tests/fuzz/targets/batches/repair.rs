//! Rows that differ from the totals. A verify finds exactly the difference, and a repair, run in
//! legs, repairs it.

use std::ops::Bound;

use keepcount::reconcile::{MemoryAudit, Mode, Options, Reconciler, Report, SystemRuntime, Token};
use keepcount::{Counter, Error, Key, MemoryStore, Result};

use crate::model::{Cell, Model, Totals, at, with_rollups};
use crate::schemas::{ALL, ROLLED, SET_DAYS, SET_SHOW, SET_SITE, SET_VOTES, SHOW_ARTIST, WORDS};
use crate::store::Row;

/// More legs than there are pages.
const MAX_LEGS: usize = 200;

/// Changes what the rows of some cells add up to, and runs the reconciler. Returns false if an
/// overflow of a rollup leaves the store partly repaired.
pub fn run(
    store: &mut MemoryStore,
    model: &mut Model,
    changed: impl Iterator<Item = (Cell, i64)>,
    mode: Mode,
    page: usize,
) -> bool {
    let mut rows = model.rows();
    rows.extend(changed.filter(|(cell, _)| !cell.is_rollup()));
    let mut expected = rows.clone();
    expected.retain(|cell, total| model.keeps(cell) && *total != 0);
    let by_rows = rows.keys().filter(|cell| at(&expected, cell) != at(&model.totals, cell)).count();
    let wrong_sums = model.wrong_sums();
    let found = legs(store, &rows, mode, page);
    let drift = found.as_ref().map_or(0, |legs| legs.iter().map(Report::drift).sum::<u64>());
    let then = with_rollups(expected);
    match (mode, found) {
        (Mode::Verify, Ok(_)) => {
            assert_eq!(drift, (by_rows + wrong_sums.unwrap()) as u64);
            true
        }
        (_, Ok(_)) => {
            assert!(drift >= by_rows as u64);
            model.totals = then.unwrap();
            if mode == Mode::Backfill {
                model.unready.clear();
            }
            assert!(
                legs(store, &rows, Mode::Verify, page)
                    .unwrap()
                    .iter()
                    .all(|report| report.drift() == 0)
            );
            true
        }
        (Mode::Verify, Err(Error::Overflow { .. })) => {
            assert_eq!(wrong_sums, None);
            true
        }
        (_, Err(Error::Overflow { .. })) => {
            assert!(then.is_none_or(|then| model.is_far(&then)));
            false
        }
        (_, Err(other)) => panic!("{other}"),
    }
}

/// Runs one page at a time. Each leg resumes from the token of the one before.
fn legs(store: &mut MemoryStore, rows: &Totals, mode: Mode, page: usize) -> Result<Vec<Report>> {
    let options = Options::default().page(page).max_pages(1);
    let mut reports: Vec<Report> = Vec::new();
    for _ in 0..MAX_LEGS {
        let mut run = match reports.last() {
            None => Reconciler::new(mode, &ROLLED, options)?,
            Some(report) => match &report.token {
                Some(token) => Reconciler::resume(
                    mode,
                    &ROLLED,
                    &token.to_string().parse::<Token>()?,
                    options,
                )?,
                None => return Ok(reports),
            },
        };
        reports.push(keepcount::reconcile::run(
            &mut run,
            &mut audit(store, rows)?,
            &mut SystemRuntime::new(),
        )?);
    }
    panic!("the run does not end");
}

fn audit<'a>(store: &'a mut MemoryStore, rows: &'a Totals) -> Result<MemoryAudit<'a>> {
    fn add<K: Key>(
        audit: &mut MemoryAudit<'_>,
        counter: Counter<K>,
        rows: &Totals,
        is: fn(&Cell) -> bool,
    ) -> Result<()> {
        let rows: Vec<Row> = rows
            .iter()
            .filter(|(cell, _)| is(cell))
            .map(|(cell, total)| Row(vec![(*cell, *total)]))
            .collect();
        audit.add(counter, move |_: Bound<K>| rows.clone())
    }
    let mut audit = MemoryAudit::new(store);
    add(&mut audit, ALL, rows, |cell| matches!(cell, Cell::All))?;
    add(&mut audit, WORDS, rows, |cell| matches!(cell, Cell::Word(_)))?;
    add(&mut audit, SET_VOTES, rows, |cell| matches!(cell, Cell::SetVotes(_)))?;
    add(&mut audit, SET_DAYS, rows, |cell| matches!(cell, Cell::SetDays(..)))?;
    add(&mut audit, SET_SHOW, rows, |cell| matches!(cell, Cell::SetShow(..)))?;
    add(&mut audit, SET_SITE, rows, |cell| matches!(cell, Cell::SetSite(_)))?;
    add(&mut audit, SHOW_ARTIST, rows, |cell| matches!(cell, Cell::ShowArtist(..)))?;
    Ok(audit)
}
