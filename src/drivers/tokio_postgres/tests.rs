//! Tests of the driver over a server that does what a script says: which messages it gets, and what
//! its errors, and its silence, come to.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_postgres::{Client, Config, NoTls};

use super::*;
use crate::executor::Column;
use crate::{Batch, Counter, Schema};

/// What the server does about a statement.
#[derive(Debug, Clone, Copy)]
enum Does {
    /// It writes one row.
    Writes,
    /// It fails with this severity, SQLSTATE and message.
    Fails(&'static str, &'static str, &'static str),
    /// It closes the connection.
    Vanishes,
}

const ABORTED: Does = Does::Fails("ERROR", "25P02", "current transaction is aborted");
const CANCELLED: Does = Does::Fails("ERROR", "57014", "canceling statement");
const SERIALIZATION: Does = Does::Fails("ERROR", "40001", "could not serialize access");
const NAMELESS: Does =
    Does::Fails("ERROR", "26000", r#"prepared statement "keepcount_0f" does not exist"#);

/// The statements that a server got, up to the first blank of each.
#[derive(Debug, Clone, Default)]
struct Ran(Arc<Mutex<Vec<String>>>);

impl Ran {
    fn push(&self, text: &str) {
        let verb = text.split([' ', ';']).next().unwrap_or_default().to_owned();
        self.0.lock().unwrap().push(verb);
    }

    /// All of them, once the server has got what was sent before.
    async fn all(&self, client: &Client) -> Vec<String> {
        let _ = client.batch_execute("SHOW").await;
        let mut ran = self.0.lock().unwrap().clone();
        ran.retain(|verb| verb != "SHOW");
        ran
    }
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

fn failure((severity, code, said): (&str, &str, &str)) -> Vec<u8> {
    let fields = format!("S{severity}\0V{severity}\0C{code}\0M{said}\0\0");
    message(b'E', fields.as_bytes())
}

/// A query whose answer is one row of the numbers 7 and 8.
const VALUES: &str = "VALUES (7, 8)";

/// Describes the columns of an answer: none, or two numbers.
fn columns(text: &str) -> Vec<u8> {
    if text != VALUES {
        return message(b'n', b"");
    }
    // The name, no table, the type and its length, no modifier, and that it is binary.
    let oid = Type::INT8.oid().to_be_bytes();
    let column = [b"n\0\0\0\0\0\0\0", &oid[..], &[0, 8, 255, 255, 255, 255, 0, 1]].concat();
    message(b'T', &[&[0, 2], &column[..], &column].concat())
}

fn row(text: &str) -> Vec<u8> {
    if text != VALUES {
        return Vec::new();
    }
    let number = |number: i64| [&[0, 0, 0, 8], &number.to_be_bytes()[..]].concat();
    message(b'D', &[&[0, 2], &number(7)[..], &number(8)].concat())
}

/// Answers until the client goes, or the script says so.
async fn serve(
    mut stream: DuplexStream,
    ran: Ran,
    mut does: impl FnMut(&str) -> Does,
) -> std::io::Result<()> {
    let ready = message(b'Z', b"I");
    let mut startup = vec![0; usize::try_from(stream.read_u32().await?).unwrap() - 4];
    stream.read_exact(&mut startup).await?;
    stream.write_all(&[message(b'R', &[0; 4]), ready.clone()].concat()).await?;
    let (mut texts, mut current, mut failed) = (HashMap::new(), String::new(), false);
    loop {
        let tag = stream.read_u8().await?;
        let mut body = vec![0; usize::try_from(stream.read_u32().await?).unwrap() - 4];
        stream.read_exact(&mut body).await?;
        // After a failure, nothing is done up to Sync.
        if failed && tag != b'S' {
            continue;
        }
        let mut parts = body.split(|byte| *byte == 0);
        let mut part = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
        let mut answer = Vec::new();
        // Parse, Bind, Describe, Execute and Sync; and Query, of several statements.
        let statements = match tag {
            b'P' => {
                let (name, text) = (part(), part());
                let kinds = body.get(name.len() + text.len() + 2..).unwrap_or_default();
                texts.insert(name, (text, kinds.to_vec()));
                answer.push(message(b'1', b""));
                Vec::new()
            }
            b'B' => {
                let (_, name) = (part(), part());
                current = texts.get(&name).map(|(text, _)| text.clone()).unwrap_or_default();
                answer.push(message(b'2', b""));
                Vec::new()
            }
            b'D' => {
                let (text, kinds) = texts.get(&part()[1..]).cloned().unwrap_or_default();
                answer.extend([message(b't', &kinds), columns(&text)]);
                Vec::new()
            }
            b'E' => vec![std::mem::take(&mut current)],
            b'Q' => part().split_inclusive("; ").map(str::to_owned).collect(),
            b'S' => Vec::new(),
            _ => return Ok(()),
        };
        for statement in statements {
            ran.push(&statement);
            match does(&statement) {
                Does::Writes => {
                    answer.extend([row(&statement), message(b'C', b"UPDATE 1\0")]);
                }
                Does::Vanishes => return Ok(()),
                Does::Fails(severity, code, said) => {
                    answer.push(failure((severity, code, said)));
                    failed = true;
                    if severity == "FATAL" {
                        return stream.write_all(&answer.concat()).await;
                    }
                    break;
                }
            }
        }
        if tag == b'Q' || tag == b'S' {
            answer.push(ready.clone());
            failed = false;
        }
        stream.write_all(&answer.concat()).await?;
    }
}

/// A client of a server that does about each statement what the script says.
async fn connect(does: impl FnMut(&str) -> Does + Send + 'static) -> (Client, Ran) {
    let ((ours, theirs), ran) = (tokio::io::duplex(1 << 16), Ran::default());
    tokio::spawn(serve(theirs, ran.clone(), does));
    let (client, connection) = Config::new().user("app").connect_raw(ours, NoTls).await.unwrap();
    tokio::spawn(connection);
    (client, ran)
}

/// A server that does so about statements that begin with this word.
async fn connect_to(word: &'static str, does: Does) -> (Client, Ran) {
    connect(move |text| if text.starts_with(word) { does } else { Does::Writes }).await
}

fn query(text: &str) -> Query<'static> {
    Query::new(text, Vec::new())
}

#[tokio::test]
async fn an_error_of_the_server_is_told_by_severity_code_and_whose_statement_it_names() {
    let unknown = |severity, said| Does::Fails(severity, "26000", said);
    for (does, wanted, refused) in [
        (
            unknown("ERROR", r#"prepared statement "s12" does not exist"#),
            ErrorKind::FORGOTTEN,
            true,
        ),
        (NAMELESS, ErrorKind::FORGOTTEN, true),
        (unknown("ERROR", r#"prepared statement "s" does not exist"#), ErrorKind::Other, true),
        (unknown("ERROR", r#"prepared statement "saved" does not exist"#), ErrorKind::Other, true),
        (Does::Fails("ERROR", "57P05", "idle"), ErrorKind::Other, true),
        (Does::Fails("FATAL", "57P05", "idle"), ErrorKind::ENDED, false),
        (Does::Fails("ERROR", "42703", "no column"), ErrorKind::Misfit, true),
        (Does::Vanishes, ErrorKind::LOST, false),
    ] {
        let (client, _) = connect_to("SELECT", does).await;
        let error = client.batch_execute("SELECT").await.unwrap_err();
        assert_eq!((kind(&error), is_refused(&error)), (wanted, refused), "{does:?}");
    }
}

#[tokio::test]
async fn an_error_of_the_driver_is_a_misfit_if_a_column_has_another_type() {
    let (client, _) = connect_to("", Does::Writes).await;
    let rows = client.query_typed(VALUES, &[]).await.unwrap();
    assert_eq!(kind(&rows[0].try_get::<_, String>(0).unwrap_err()), ErrorKind::Misfit);
    let text = Value::Text("seven".into());
    let refused = client.execute_typed("UPDATE", &[(&text, Type::INT8)]).await;
    assert_eq!(kind(&refused.unwrap_err()), ErrorKind::Other);
}

#[tokio::test]
async fn a_row_has_all_of_its_columns() {
    let (mut client, _) = connect_to("", Does::Writes).await;
    let mut read = Vec::new();
    let each = &mut |_, row: &dyn crate::executor::Row| {
        read.push((0..row.len()).map(|at| row.column(at).into_owned()).collect::<Vec<_>>());
        Ok(())
    };
    Postgres::over(&mut client).fetch(&[query(VALUES)], each).await.unwrap();
    assert_eq!(read, [[7, 8].map(Column::Integer)]);
}

#[tokio::test]
async fn a_commit_is_refused_only_by_the_server_itself() {
    for (does, refused) in [(SERIALIZATION, true), (Does::Vanishes, false)] {
        let (mut client, _) = connect_to("COMMIT", does).await;
        let mut executor = Postgres::over(&mut client);
        executor.begin().await.unwrap();
        let error = executor.commit().await.unwrap_err();
        assert_eq!(matches!(error, NotCommitted::Refused(_)), refused, "{error:?}");
    }
}

#[tokio::test]
async fn a_call_that_ends_early_rolls_its_transaction_back_and_one_that_committed_does_not() {
    for (commits, verbs) in [(false, ["BEGIN", "ROLLBACK"]), (true, ["BEGIN", "COMMIT"])] {
        let (mut client, ran) = connect_to("", Does::Writes).await;
        let mut executor = Postgres::over(&mut client);
        executor.begin().await.unwrap();
        if commits {
            executor.commit().await.unwrap();
        }
        executor.finish();
        assert_eq!(ran.all(&client).await, verbs);
    }
}

#[tokio::test]
async fn a_rollback_that_is_cancelled_is_tried_again() {
    let mut left = 2_u32;
    let (mut client, ran) = connect(move |text| {
        let cancels = text == "ROLLBACK" && left > 0;
        left -= u32::from(cancels);
        if cancels { CANCELLED } else { Does::Writes }
    })
    .await;
    let mut executor = Postgres::over(&mut client);
    executor.begin().await.unwrap();
    assert!(executor.roll_back().await);
    assert_eq!(ran.all(&client).await, ["BEGIN", "ROLLBACK", "ROLLBACK", "ROLLBACK"]);
}

/// One that the same call began is left to the end of the call.
#[tokio::test]
async fn a_read_ends_a_transaction_that_it_finds_aborted_and_no_other() {
    for (does, begins, verbs) in [
        (ABORTED, false, &["SELECT", "ROLLBACK", "SELECT"][..]),
        (ABORTED, true, &["BEGIN", "SELECT"]),
        (SERIALIZATION, false, &["SELECT"]),
    ] {
        let mut fails = true;
        let (mut client, ran) = connect(move |text| {
            let fails = text == "SELECT" && std::mem::take(&mut fails);
            if fails { does } else { Does::Writes }
        })
        .await;
        let mut executor = Postgres::over(&mut client);
        if begins {
            executor.begin().await.unwrap();
        }
        let read = executor.fetch(&[query("SELECT")], &mut |_, _| Ok(())).await;
        assert_eq!(read.is_ok(), verbs.len() == 3, "{read:?}");
        assert_eq!(ran.all(executor.client()).await, verbs);
    }
}

#[tokio::test]
async fn written_rows_are_added_up_for_each_statement_and_must_be_as_many_as_were_given() {
    let (mut client, _) = connect_to("", Does::Writes).await;
    let mut executor = Postgres::over(&mut client);
    let values = || vec![Value::Integer(7), Value::Integer(8)];
    let twice = Query::of_rows("UPDATE", values(), 1);
    assert_eq!(executor.execute(&[query("UPDATE"), twice]).await.unwrap(), [1, 2]);
    for (keys, is_skipped) in [(vec![7], false), (vec![7, 8], true)] {
        let exact = Query::new("UPDATE", vec![Value::Integers(keys)]).exact();
        let skipped = executor.execute(&[query("UPDATE"), exact]).await;
        assert_eq!(matches!(skipped, Err(Stopped::Skipped { query: 1, row: 0 })), is_skipped);
    }
}

/// Writes totals of so many counters, without rows.
async fn write(client: &mut Client, prepared: &PreparedStatements, counters: usize) -> Result<()> {
    let counters: Vec<Counter<i64>> =
        (0..counters).map(|at| Counter::new(String::leak(format!("n.c{at}")))).collect();
    let spec = counters.iter().map(|counter| counter.table());
    let schema = Schema::new(Vec::leak(spec.collect()));
    let mut batch = Batch::new();
    for counter in counters {
        batch.add(counter, 7, 1);
    }
    let mut executor = Postgres::over(client);
    executor.prepared = Some(prepared);
    let written = write_in_own(&mut executor, &schema, &[], &batch, None).await;
    executor.finish();
    written.map(drop)
}

#[tokio::test]
async fn a_statement_that_cannot_have_a_name_is_not_tried_again() {
    let syntax = Does::Fails("ERROR", "42601", "syntax error");
    let ((mut client, ran), prepared) =
        (connect_to("PREPARE", syntax).await, PreparedStatements::new());
    for _ in 0..2 {
        write(&mut client, &prepared, 1).await.unwrap();
    }
    let verbs = ["PREPARE", "BEGIN", "INSERT", "COMMIT", "BEGIN", "INSERT", "COMMIT"];
    assert_eq!(ran.all(&client).await, verbs);
}

/// A pooler may hand out another connection for each message.
#[tokio::test]
async fn a_write_whose_names_are_always_missing_goes_by_parameters() {
    let ((mut client, ran), prepared) =
        (connect_to("EXECUTE", NAMELESS).await, PreparedStatements::new());
    write(&mut client, &prepared, 1).await.unwrap();
    let tries = ["PREPARE", "EXECUTE", "PREPARE", "EXECUTE"];
    assert_eq!(ran.all(&client).await, [&tries[..], &["BEGIN", "INSERT", "COMMIT"]].concat());
    assert!(!prepared.has_names());
}

/// The same: so they are now prepared by the connection that runs them.
#[tokio::test]
async fn a_write_whose_statements_were_forgotten_prepares_them_in_its_transaction() {
    let forgotten = Does::Fails("ERROR", "26000", r#"prepared statement "s1" does not exist"#);
    let ((mut client, ran), prepared) =
        (connect_to("EXECUTE", forgotten).await, PreparedStatements::new());
    write(&mut client, &prepared, 1).await.unwrap();
    let verbs = ["PREPARE", "EXECUTE", "BEGIN", "INSERT", "COMMIT"];
    assert_eq!(ran.all(&client).await, verbs);
}

#[tokio::test]
async fn a_write_whose_answer_never_comes_may_have_been_applied() {
    for (prepared, word) in [
        (PreparedStatements::new(), "EXECUTE"),
        (PreparedStatements::by_parameters(), "INSERT"),
        (PreparedStatements::by_parameters(), "COMMIT"),
    ] {
        let (mut client, _) = connect_to(word, Does::Vanishes).await;
        let written = write(&mut client, &prepared, 1).await;
        assert!(matches!(written, Err(Error::Indeterminate { .. })), "{word}: {written:?}");
    }
}

#[tokio::test]
async fn a_write_by_parameters_is_one_transaction_that_is_over_when_it_returns() {
    for (word, does, verbs) in [
        ("", Does::Writes, &["BEGIN", "INSERT", "COMMIT"][..]),
        ("INSERT", SERIALIZATION, &["BEGIN", "INSERT", "COMMIT"]),
        ("COMMIT", SERIALIZATION, &["BEGIN", "INSERT", "COMMIT", "ROLLBACK"]),
    ] {
        let prepared = PreparedStatements::by_parameters();
        let (mut client, ran) = connect_to(word, does).await;
        let written = write(&mut client, &prepared, 1).await;
        assert_eq!(written.is_ok(), word.is_empty(), "{written:?}");
        assert_eq!(ran.all(&client).await, verbs);
    }
}

/// COMMIT would be sent with the first statements, and the last would come after it.
#[tokio::test]
async fn a_write_of_more_statements_than_are_sent_at_once_is_still_one_transaction() {
    let (mut client, ran) = connect_to("", Does::Writes).await;
    let counters = MAX_PIPELINE + 1;
    write(&mut client, &PreparedStatements::by_parameters(), counters).await.unwrap();
    let verbs = [&["BEGIN"][..], &vec!["INSERT"; counters], &["COMMIT"]].concat();
    assert_eq!(ran.all(&client).await, verbs);
}
