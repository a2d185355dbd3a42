//! Totals that have become older below a run, on a standby that lagged and was promoted, or in a
//! backup. The run trusts nothing that these totals do not have.

use std::sync::Arc;
use std::time::Duration;

use keepcount::reconcile::audit::{
    Keep, Kept, PageDiff, PageRequest, Probe, ProbeResult, Ready, RepairRequest, Repaired,
};
use keepcount::reconcile::{
    AsyncAudit, Mode, Options, PostgresAudit, Reconciler, Report, Token, TokioRuntime, run_async,
};
use keepcount::{AsyncStore as _, Batch, CounterId, Error, PostgresStore, Recovery, Result};
use tokio::sync::Barrier;
use tokio::time::timeout;
use tokio_postgres::{Client, Config};

use super::super::rounds;
use crate::support::postgres::{Server, connect};
use crate::support::postgres_app::{
    ARTIST_VOTES, SCHEMA, SETLIST_DAYS, SETLIST_SHOW, SETLIST_VOTES, SHOW_ARTIST, SHOW_DAYS,
    SHOW_SETLISTS, SHOW_VOTES, SHOWS, TABLES, assert_exact, audit, changes, create, differences,
    write,
};
use crate::support::random::Random;

const COUNTERS: [CounterId; 8] = [
    SETLIST_VOTES.id(),
    SETLIST_DAYS.id(),
    SETLIST_SHOW.id(),
    SHOW_SETLISTS.id(),
    SHOW_ARTIST.id(),
    SHOW_VOTES.id(),
    SHOW_DAYS.id(),
    ARTIST_VOTES.id(),
];

const ROWS: &str = "
    INSERT INTO shows SELECT id, id % 3 FROM generate_series(0, 11) AS id;
    INSERT INTO setlists SELECT id, id % 12 FROM generate_series(0, 49) AS id;
    INSERT INTO votes SELECT id, id % 50, 1 + id % 3, id % 4 FROM generate_series(0, 599) AS id;
";

/// The longest that any wait may take.
const LONGEST: Duration = Duration::from_secs(30);

fn options() -> Options {
    Options::default().page(7).retries(0)
}

/// Which run continues once the totals have become older.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    /// Another run, with the token of the first.
    Token,
    /// The same run, driven again.
    Itself,
    /// A new run.
    Anew,
}

/// A run that is under way when its server crashes.
#[derive(Debug, Clone, Copy)]
struct Case {
    mode: Mode,
    /// Pages that it did before the standby was cut off.
    before: u64,
    /// The step before which the server crashes, counted from when the standby is cut off.
    step: u64,
    who: Who,
}

impl Case {
    /// The steps of a run are: identify, recall if it resumes, probe each of five counters; then
    /// page by page compare, repair, and sometimes keep.
    fn all(round: u64) -> Vec<Self> {
        let is_odd = round % 2 == 1;
        let anew = if is_odd { Mode::Repair } else { Mode::Backfill };
        let who = |at: usize| if (at % 2 == 1) == is_odd { Who::Token } else { Who::Itself };
        let backfills = [(0, 9), (1, 9), (1, 10), (3, 11), (5, 40), (20, 12)];
        let repairs = [(1, 8), (1, 9), (30, 12)];
        let verifies = [(0, 40), (12, 12)];
        let of = |mode, list: &[(u64, u64)]| -> Vec<Self> {
            let cases = list.iter().enumerate();
            cases
                .map(|(at, (before, step))| Self {
                    mode,
                    before: *before,
                    step: *step,
                    who: who(at),
                })
                .collect()
        };
        let anew = [Self { mode: anew, before: 2, step: 15, who: Who::Anew }];
        [
            of(Mode::Backfill, &backfills),
            of(Mode::Repair, &repairs),
            of(Mode::Verify, &verifies),
            anew.into(),
        ]
        .concat()
    }
}

/// An audit that waits before one of its steps, until the server has crashed.
struct Doomed<'a> {
    audit: PostgresAudit<'a>,
    left: u64,
    crash: Arc<Barrier>,
}

impl Doomed<'_> {
    async fn step(&mut self) {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            self.crash.wait().await;
            self.crash.wait().await;
        }
    }
}

impl AsyncAudit for Doomed<'_> {
    async fn identity(&mut self) -> Result<u64> {
        self.step().await;
        self.audit.identity().await
    }

    async fn probe(&mut self, ask: &Probe) -> Result<ProbeResult> {
        self.step().await;
        self.audit.probe(ask).await
    }

    async fn compare(&mut self, ask: &PageRequest) -> Result<PageDiff> {
        self.step().await;
        self.audit.compare(ask).await
    }

    async fn repair(&mut self, ask: &RepairRequest) -> Result<Repaired> {
        self.step().await;
        self.audit.repair(ask).await
    }

    async fn recall(&mut self, token: &Token) -> Result<Option<Token>> {
        self.step().await;
        self.audit.recall(token).await
    }

    async fn keep(&mut self, ask: &Keep) -> Result<Kept> {
        // A run also keeps its position after an error: that is after the crash, and counts as no
        // step.
        if self.left > 0 {
            self.step().await;
        }
        self.audit.keep(ask).await
    }

    async fn ready(&mut self, ask: &Ready) -> Result<Kept> {
        self.step().await;
        self.audit.ready(ask).await
    }
}

/// Drives a run on a connection of its own.
async fn drive(run: &mut Reconciler, config: &Config) -> Result<Report> {
    let mut client = connect(config).await;
    let mut audit = audit(&mut client).await?;
    timeout(LONGEST, run_async(run, &mut audit, &mut TokioRuntime::new()))
        .await
        .expect("no step hangs")
}

async fn run_whole(mode: Mode, config: &Config) -> Report {
    let report = drive(&mut Reconciler::new(mode, &SCHEMA, Options::default()).unwrap(), config)
        .await
        .unwrap();
    assert!(report.complete(), "{report}");
    report
}

/// Creates a run, or resumes one from a token.
fn leg(mode: Mode, token: Option<&Token>, options: Options) -> Reconciler {
    match token {
        Some(token) => {
            Reconciler::resume(mode, &SCHEMA, &token.to_string().parse().unwrap(), options).unwrap()
        }
        None => Reconciler::new(mode, &SCHEMA, options).unwrap(),
    }
}

/// Writes up to `most` transactions with their hooks; stops early if the server does. Returns how
/// many were committed.
async fn write_some(mut client: Client, writer: i64, most: usize) -> usize {
    let mut random = Random(writer.unsigned_abs());
    let mut committed = 0;
    for _ in 0..most {
        let Ok(tx) = client.transaction().await else { break };
        let mut batch = Batch::new();
        let mut written = true;
        for change in changes(&mut random, writer) {
            written = written && write(&tx, &change, &mut batch).await.is_ok();
        }
        if !written {
            continue;
        }
        match PostgresStore::in_transaction(&tx, &SCHEMA).apply(&mut batch).await {
            Ok(_) => committed += usize::from(tx.commit().await.is_ok()),
            Err(error) => assert_eq!(error.recovery(), Recovery::Retry, "{error}"),
        }
    }
    committed
}

/// Makes totals wrong and deletes totals, in every table but the leaderboard's.
async fn damage(client: &Client) {
    for table in COUNTERS.map(table) {
        let key = if table.ends_with("days")
            || ["setlist_show", "show_artist"].contains(&table.as_str())
        {
            "key_1"
        } else {
            "key"
        };
        let text = format!(
            "UPDATE {table} SET total = total + 3 WHERE {key} % 3 = 0; DELETE FROM {table} WHERE {key} % 5 = 1"
        );
        client.batch_execute(&text).await.unwrap();
    }
}

fn table(counter: CounterId) -> String {
    counter.name().replace('.', "_")
}

/// Copies a database, to which nothing may be connected. Connections that were dropped end a moment
/// later, so this tries again.
async fn copy(server: &Server, from: &Config, name: &str) -> Config {
    let client = connect(&server.config("postgres")).await;
    let text = format!("CREATE DATABASE {name} TEMPLATE {}", from.get_dbname().unwrap());
    let copied = async {
        while let Err(error) = client.batch_execute(&text).await {
            assert!(
                error.to_string() == "db error" && error.code().unwrap().code() == "55006",
                "{error:?}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONGEST, copied).await.expect("its connections end");
    server.config(name)
}

/// Two databases with the same rows: one with exact totals, one that waits for its backfill.
async fn templates(server: &Server) -> [Config; 2] {
    let (counted, pending) = (server.database().await, server.database().await);
    let mut client = connect(&counted).await;
    create(&mut client).await;
    client.batch_execute(ROWS).await.unwrap();
    run_whole(Mode::Repair, &counted).await;
    assert_exact(&differences(&client).await);
    let mut client = connect(&pending).await;
    client.batch_execute(TABLES).await.unwrap();
    client.batch_execute(ROWS).await.unwrap();
    PostgresStore::new(&mut client, &SCHEMA).create_pending_backfill().await.unwrap();
    [counted, pending]
}

/// Asserts that ready counters have no drift, and that reads of the others are refused. Returns how
/// many are ready.
async fn assert_ready_is_exact(client: &mut Client, of: &str) -> usize {
    let differing = differences(client).await;
    let mut store = PostgresStore::new(client, &SCHEMA);
    let unready = store.unready().await.unwrap();
    let refused = store.total(ARTIST_VOTES, 1).await.is_err();
    assert_eq!(
        refused,
        !unready.is_empty(),
        "{of}: the topmost rollup can be read only if all are ready"
    );
    let ready = COUNTERS.iter().filter(|counter| !unready.contains(counter));
    ready.inspect(|counter| assert_no_drift(**counter, &differing, of)).count()
}

/// Asserts that the counters which the report calls clean have no drift. Returns how many are
/// clean.
fn assert_clean_is_exact(report: &Report, differing: &[String], of: &str) -> usize {
    let clean = report.counters.iter().filter(|counter| counter.clean);
    clean.inspect(|counter| assert_no_drift(counter.counter, differing, of)).count()
}

#[track_caller]
fn assert_no_drift(counter: CounterId, differing: &[String], of: &str) {
    let ours = format!("FROM {})", table(counter));
    let differing: Vec<&String> = differing.iter().filter(|line| line.contains(&ours)).collect();
    assert!(differing.is_empty(), "{of}: {} is not exact: {differing:#?}", counter.name());
}

/// What the runs did.
#[derive(Debug, Default)]
struct Found {
    promotions: usize,
    pages: u64,
    written: usize,
    /// Tokens that the totals knew, so that the run continued there.
    trusted: usize,
    /// Tokens that the totals did not know, so that the run began anew.
    begun_anew: usize,
    clean: usize,
}

/// What the totals' database has kept of a token's run.
async fn kept_of(client: &Client, token: &Token) -> Option<String> {
    let text = r#"SELECT "token" FROM keepcount_runs WHERE "run" = $1"#;
    let row = client.query_opt(text, &[&token.run().cast_signed()]).await.unwrap();
    row.map(|row| row.get(0))
}

/// Resumes a run from a token, beside a writer, over totals that may be older. After each leg the
/// counters that are ready or called clean have no drift; in the end none has.
async fn resume_to_end(mode: Mode, token: &Token, config: &Config, found: &mut Found, of: &str) {
    let mut client = connect(config).await;
    let kept = kept_of(&client, token).await;
    let wanted =
        if mode == Mode::Backfill { kept.is_some() } else { kept == Some(token.to_string()) };
    let mut next = Some(token.clone());
    for leg_number in 0.. {
        assert!(leg_number < 30, "{of}: the run does not end");
        let pages = if leg_number == 0 { 1 } else { 25 };
        let mut run = leg(mode, next.as_ref(), options().retries(5).max_pages(pages));
        let (report, written) = tokio::join!(drive(&mut run, config), async {
            write_some(connect(config).await, 40 + leg_number, 3).await
        });
        let report = report.unwrap_or_else(|error| panic!("{of}: {error}"));
        found.pages += report.pages;
        found.written += written;
        found.clean += assert_clean_is_exact(&report, &differences(&client).await, of);
        if mode == Mode::Backfill {
            assert_ready_is_exact(&mut client, of).await;
        }
        next = report.token;
        let Some(next) = &next else { break };
        if leg_number == 0 {
            assert_eq!(next.run() == token.run(), wanted, "{of}: {kept:?} is kept");
            *if wanted { &mut found.trusted } else { &mut found.begun_anew } += 1;
        }
    }
    if mode == Mode::Repair && wanted {
        // The repairs of the earlier legs are not lost.
        assert_exact(&differences(&client).await);
    }
    finish(mode, config, of).await;
}

/// Repairs what is left with a new run, and asserts that nothing differs from the rows.
async fn finish(mode: Mode, config: &Config, of: &str) {
    let mut client = connect(config).await;
    if mode == Mode::Backfill {
        assert_eq!(assert_ready_is_exact(&mut client, of).await, COUNTERS.len(), "{of}");
        PostgresStore::new(&mut client, &SCHEMA).rebuild(SHOWS).await.unwrap();
    } else {
        run_whole(Mode::Repair, config).await;
    }
    let differing = differences(&client).await;
    assert!(differing.is_empty(), "{of}: {differing:#?}");
    let report = run_whole(Mode::Verify, config).await;
    assert!(report.counters.iter().all(|counter| counter.clean), "{of}: {}", report.table());
}

/// Drives a run until its server crashes, and asserts that its error says so.
async fn drive_until_crash(
    mut run: Reconciler,
    config: Config,
    step: u64,
    crash: Arc<Barrier>,
) -> Reconciler {
    let mut client = connect(&config).await;
    let mut doomed = Doomed { audit: audit(&mut client).await.unwrap(), left: step, crash };
    let ended = timeout(LONGEST, run_async(&mut run, &mut doomed, &mut TokioRuntime::new()))
        .await
        .expect("no step hangs");
    let error = ended.expect_err("its server crashed");
    assert!(
        error.recovery() != Recovery::Permanent && error.to_string().contains("connection"),
        "{error}"
    );
    run
}

/// Asserts that on connections to a crashed server every call says so, the first as well as later
/// ones.
async fn assert_calls_fail(
    [mut one, mut two, mut three, mut four]: [Client; 4],
    tx: tokio_postgres::Transaction<'_>,
) {
    let retry = |error: Error| assert_eq!(error.recovery(), Recovery::Retry, "{error}");
    let batch = || {
        let mut batch = Batch::new();
        batch.add(SHOW_ARTIST, (1, 1), 1);
        batch
    };
    let calls = async {
        retry(PostgresStore::in_transaction(&tx, &SCHEMA).apply(&mut batch()).await.unwrap_err());
        tx.commit().await.unwrap_err();
        for _ in 0..2 {
            retry(PostgresStore::new(&mut one, &SCHEMA).total(SHOW_VOTES, 1).await.unwrap_err());
            let mut kept = batch();
            retry(PostgresStore::new(&mut two, &SCHEMA).apply(&mut kept).await.unwrap_err());
            assert!(!kept.is_empty(), "the batch keeps its deltas");
            retry(audit(&mut three).await.map(drop).unwrap_err());
            let rows: (&str, &[&(dyn tokio_postgres::types::ToSql + Sync)]) =
                ("DELETE FROM votes", &[]);
            retry(
                PostgresStore::new(&mut four, &SCHEMA)
                    .write(&[rows], &mut batch())
                    .await
                    .unwrap_err(),
            );
        }
    };
    timeout(LONGEST, calls).await.expect("no call hangs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_whose_server_crashes_continue_on_the_promoted_standby() {
    let Some(mut primary) = Server::new() else { return };
    let [counted, pending] = templates(&primary).await;
    let mut found = Found::default();
    // With two, each mode goes on both ways, and the server of the second is a promoted one.
    for round in 0..rounds().div_ceil(6).min(2) {
        let replica = primary.replica();
        let mut cases = Vec::new();
        for (at, case) in Case::all(round).into_iter().enumerate() {
            let template = if case.mode == Mode::Backfill { &pending } else { &counted };
            let config = copy(&primary, template, &format!("case_{round}_{at}")).await;
            if case.mode != Mode::Backfill {
                damage(&connect(&config).await).await;
            }
            let mut token = None;
            if case.mode != Mode::Verify && case.before > 0 {
                let report =
                    drive(&mut leg(case.mode, None, options().max_pages(case.before)), &config)
                        .await
                        .unwrap();
                found.pages += report.pages;
                token = Some(report.token.unwrap());
            }
            found.written += write_some(connect(&config).await, 1, 3).await;
            cases.push((case, config, token));
        }
        replica.wait_until_caught_up().await;
        replica.cut_off().await;

        // From here on the standby lacks what is written.
        let crash = Arc::new(Barrier::new(cases.len() + 1));
        let mut runs = Vec::new();
        for (case, config, token) in &mut cases {
            if case.mode == Mode::Verify {
                // The verify finds no drift here, and much on the standby.
                run_whole(Mode::Repair, config).await;
                if case.before > 0 {
                    let report =
                        drive(&mut leg(case.mode, None, options().max_pages(case.before)), config)
                            .await;
                    *token = report.unwrap().token;
                }
            }
            let run = leg(case.mode, token.as_ref(), options());
            runs.push(tokio::spawn(drive_until_crash(
                run,
                config.clone(),
                case.step,
                Arc::clone(&crash),
            )));
        }
        timeout(LONGEST, crash.wait()).await.expect("every run reaches its step");
        // These connect before the crash, so that it cuts them off.
        let mut writing = Vec::new();
        for (_, config, _) in cases.iter().take(4) {
            writing.push(tokio::spawn(write_some(connect(config).await, 2, usize::MAX)));
        }
        let mut old = Vec::new();
        for _ in 0..5 {
            old.push(connect(&cases[0].1).await);
        }
        let mut in_tx = old.pop().unwrap();
        let tx = in_tx.transaction().await.unwrap();
        tx.batch_execute("INSERT INTO shows VALUES (99, 1)").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        primary.crash();
        assert_calls_fail(old.try_into().unwrap(), tx).await;
        crash.wait().await;
        for writer in writing {
            found.written += writer.await.unwrap();
        }
        replica.promote().await;
        found.promotions += 1;

        for ((case, config, replicated), run) in cases.into_iter().zip(runs) {
            let mut run = run.await.unwrap();
            let config = replica.server.config(config.get_dbname().unwrap());
            let of = format!("round {round}, {case:?}");
            match (case.who, run.token()) {
                (Who::Token, Some(token)) => {
                    resume_to_end(case.mode, &token, &config, &mut found, &of).await;
                }
                (Who::Itself, _) => {
                    let (report, written) = tokio::join!(drive(&mut run, &config), async {
                        write_some(connect(&config).await, 40, 10).await
                    });
                    let report = report.unwrap_or_else(|error| panic!("{of}: {error}"));
                    assert!(report.complete(), "{of}: {report}");
                    found.pages += report.pages;
                    found.written += written;
                    let mut client = connect(&config).await;
                    found.clean += assert_clean_is_exact(&report, &differences(&client).await, &of);
                    if case.mode == Mode::Backfill {
                        assert_ready_is_exact(&mut client, &of).await;
                    }
                    finish(case.mode, &config, &of).await;
                }
                (Who::Anew, _) => {
                    found.pages += run_whole(case.mode, &config).await.pages;
                    finish(case.mode, &config, &of).await;
                }
                (Who::Token, None) => panic!("{of}: the run has no token, {replicated:?}"),
            }
        }
        primary = replica.server;
    }
    println!("{found:?}");
    assert!(found.trusted > 0 && found.begun_anew > 0 && found.written > 100, "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_later_legs_are_not_trusted_on_a_backup_that_lacks_them() {
    let Some(server) = Server::new() else { return };
    let [counted, pending] = templates(&server).await;
    let mut found = Found::default();
    for mode in [Mode::Backfill, Mode::Repair, Mode::Verify] {
        let template = if mode == Mode::Backfill { &pending } else { &counted };
        let database = copy(&server, template, &format!("{mode}")).await;
        if mode != Mode::Backfill {
            damage(&connect(&database).await).await;
        }
        let mut backups = vec![copy(&server, &database, &format!("{mode}_0")).await];
        if mode == Mode::Verify {
            run_whole(Mode::Repair, &database).await;
        }
        let mut tokens: Vec<Token> = Vec::new();
        for (at, pages) in [1, 3, 20].into_iter().enumerate() {
            let run = &mut leg(mode, tokens.last(), options().max_pages(pages));
            let report = drive(run, &database).await.unwrap();
            found.pages += report.pages;
            tokens.push(report.token.unwrap());
            found.written += write_some(connect(&database).await, 1, 2).await;
            backups.push(copy(&server, &database, &format!("{mode}_{}", at + 1)).await);
        }
        // Resumes the last token on each backup. Only the newest backup knows it.
        let last = tokens.last().unwrap();
        for (at, backup) in backups.iter().enumerate() {
            resume_to_end(mode, last, backup, &mut found, &format!("{mode}, backup {at}")).await;
        }
    }
    println!("{found:?}");
    assert!(found.trusted > 2 && found.begun_anew > 2, "{found:?}");
}
