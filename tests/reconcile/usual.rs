//! The usual runs, `verify`, `repair` and `backfill`, each in one expression. Each equals a run of
//! a reconciler that is made by hand.

use crate::support::world::{Clock, World};
use keepcount::reconcile::{
    MemoryAudit, Mode, Options, Outcome, Reconciler, Report, Run, backfill, repair, run, verify,
};
use keepcount::{Counter, CounterId, Error, MemoryStore, Record, Schema, Tally};

const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
const USER_VOTES: Counter<i64> = Counter::new("user.votes");
const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table(), USER_VOTES.table()]);

struct Vote(i64);

impl Record for Vote {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SHOW_VOTES, self.0 / 2, 1);
        to.add(USER_VOTES, self.0, 1);
    }
}

fn empty() -> MemoryStore {
    MemoryStore::pending_backfill(&SCHEMA)
}

fn audit(store: &mut MemoryStore) -> MemoryAudit<'_> {
    let mut audit = MemoryAudit::new(store);
    audit.add(SHOW_VOTES, |_| (0..20).map(Vote)).unwrap();
    audit.add(USER_VOTES, |_| (0..20).map(Vote)).unwrap();
    audit
}

fn by_hand(mode: Mode, counters: &[CounterId], options: Options) -> Report {
    let mut reconciler = Reconciler::scoped(mode, &SCHEMA, counters, options).unwrap();
    run(&mut reconciler, &mut audit(&mut empty()), &mut World::default()).unwrap()
}

#[test]
fn usual_run_equals_the_run_of_its_reconciler() {
    type Usual = fn(&Schema) -> Run<'_>;
    let all = [SHOW_VOTES.id(), USER_VOTES.id()];
    for (usual, mode) in
        [(verify as Usual, Mode::Verify), (repair, Mode::Repair), (backfill, Mode::Backfill)]
    {
        let whole = usual(&SCHEMA).run(&mut audit(&mut empty())).unwrap();
        assert_eq!(whole.to_string(), by_hand(mode, &all, Options::default()).to_string());
        let options = Options::default().page(3).samples(2);
        let one = usual(&SCHEMA).counters(&[USER_VOTES.id()]).options(options);
        for _ in 0..2 {
            let report = one.run_with(&mut audit(&mut empty()), &mut World::default()).unwrap();
            assert_eq!(
                report.table().to_string(),
                by_hand(mode, &[USER_VOTES.id()], options).table().to_string()
            );
        }
    }
    let mut store = empty();
    assert!(store.total(USER_VOTES, 7).is_err());
    backfill(&SCHEMA).run(&mut audit(&mut store)).unwrap();
    assert_eq!(store.total(USER_VOTES, 7).unwrap(), 1);
}

#[test]
fn usual_run_resumes_from_its_token_in_any_runtime() {
    let mut store = empty();
    let (mut token, mut parts) = (None, 0);
    let clock = Clock::default();
    loop {
        let part =
            repair(&SCHEMA).options(Options::default().page(4).max_pages(2)).resume(token.as_ref());
        let report = part.run_with(&mut audit(&mut store), &mut World::at(&clock)).unwrap();
        parts += 1;
        token = report.token;
        if token.is_none() {
            assert_eq!(report.outcome, Outcome::Complete);
            break;
        }
    }
    assert_eq!(parts, 4);
    assert_eq!(verify(&SCHEMA).run(&mut audit(&mut store)).unwrap().drift(), 0);
}

#[test]
fn invalid_usual_run_is_refused_when_it_is_run() {
    let unknown = verify(&SCHEMA).counters(&[Counter::<i64>::new("nowhere").id()]);
    assert!(matches!(unknown.run(&mut audit(&mut empty())), Err(Error::UnknownCounter { .. })));
    let bad = verify(&SCHEMA).options(Options::default().page(0));
    assert!(matches!(bad.reconciler(), Err(Error::InvalidUse { .. })));
}
