//! The site on PostgreSQL: one connection, on a runtime of one thread. The files in `postgres/` are
//! the counterparts of those for SQLite.

mod app;
mod audit;
mod columns;
mod moment;
mod position;
mod replay;
mod schema;
mod verified;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use keepcount::PreparedStatements;
use keepcount::reconcile::{Reconciler, Report};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::config::Host;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

use self::app::Statements;
use crate::error::{Error, Result};
use crate::lines::Lines;
use crate::progress::Progress;
use crate::replay::Done;
use crate::site::{Database, Moment, Site};

/// The address of a database; displayed without its password.
#[derive(Clone)]
pub struct Url(Config);

impl Url {
    const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

    /// Returns `None` for the path of a file.
    pub fn of(db: &Path) -> Result<Option<Self>> {
        let schemes = ["postgres://", "postgresql://"];
        let Some(text) =
            db.to_str().filter(|text| schemes.iter().any(|scheme| text.starts_with(scheme)))
        else {
            return Ok(None);
        };
        let mut config: Config =
            text.parse().map_err(|error| Error::Postgres(error).in_db("--db"))?;
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(Self::CONNECT_TIMEOUT);
        }
        if config.get_application_name().is_none() {
            config.application_name("concert");
        }
        Ok(Some(Self(config)))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgres://")?;
        if let Some(user) = self.0.get_user() {
            write!(f, "{user}@")?;
        }
        let mut ports = self.0.get_ports().iter().cycle();
        for (at, host) in self.0.get_hosts().iter().enumerate() {
            f.write_str(if at > 0 { "," } else { "" })?;
            match host {
                Host::Tcp(host) => f.write_str(host)?,
                #[cfg(unix)]
                Host::Unix(folder) => folder.display().fmt(f)?,
            }
            if let Some(port) = ports.next() {
                write!(f, ":{port}")?;
            }
        }
        self.0.get_dbname().map_or(Ok(()), |name| write!(f, "/{name}"))
    }
}

impl Database for Url {
    type Site = Connection;

    fn create(&self) -> Result<Connection> {
        let mut site = Connection::open(self, LOCK_TIMEOUT)?;
        let Connection { runtime, client, .. } = &mut site;
        runtime.block_on(schema::create(client))?;
        Ok(site)
    }

    fn open(&self) -> Result<Connection> {
        let mut site = Connection::open(self, LOCK_TIMEOUT)?;
        let Connection { runtime, client, .. } = &mut site;
        runtime.block_on(schema::check(client))?;
        Ok(site)
    }

    fn open_to_read(&self) -> Result<Connection> {
        let site = self.open()?;
        site.runtime
            .block_on(site.client.batch_execute("SET default_transaction_read_only = on"))?;
        Ok(site)
    }

    fn open_to_note(&self) -> Result<Connection> {
        Connection::open(self, Duration::from_secs(1))
    }
}

/// How long a statement waits for a lock of another transaction.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// An open database.
pub struct Connection {
    runtime: Runtime,
    url: Url,
    client: Client,
    prepared: PreparedStatements,
    /// The statements of the write paths; empty until a replay begins.
    statements: Statements,
}

impl Connection {
    fn open(url: &Url, lock_timeout: Duration) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|error| Error::said(format!("starting the runtime: {error}")))?;
        let client = runtime.block_on(connect(url, lock_timeout))?;
        let (prepared, statements) = (PreparedStatements::new(), Statements::default());
        Ok(Self { runtime, url: url.clone(), client, prepared, statements })
    }
}

async fn connect(url: &Url, lock_timeout: Duration) -> Result<Client> {
    let (client, connection) = url.0.connect(NoTls).await?;
    // If the connection fails, every later call of the client returns its error.
    tokio::spawn(connection);
    client.batch_execute(&format!("SET lock_timeout = {}", lock_timeout.as_millis())).await?;
    Ok(client)
}

impl Site for Connection {
    fn replay(&mut self, stream: &str, lines: &mut Lines, progress: &mut Progress) -> Result<Done> {
        crate::replay::replay(self, stream, lines, progress)
    }

    fn moment(&mut self) -> Result<impl Moment> {
        let Self { runtime, client, prepared, .. } = self;
        moment::Snapshot::begin(runtime, client, prepared)
    }

    fn audit(&mut self, run: &mut Reconciler) -> Result<Report> {
        let Self { runtime, client, .. } = self;
        runtime.block_on(audit::run(client, run))
    }

    fn note(&mut self, report: &Report, now: i64) -> Result<()> {
        let Self { runtime, client, .. } = self;
        runtime.block_on(verified::note(client, report, now))
    }
}

/// Returns whether a retry may succeed: after a deadlock, a lock timeout, or a lost connection or
/// server. If an answer was lost, the commit may have succeeded.
fn is_transient(error: &Error) -> bool {
    match error {
        Error::Count(error) => error.recovery() != keepcount::Recovery::Permanent,
        Error::Postgres(error) => match error.code() {
            // Classes: connection, resources, rolled back, object state (with lock_timeout),
            // operator intervention.
            Some(code) => {
                ["08", "53", "40", "55", "57"].iter().any(|class| code.code().starts_with(class))
            }
            None => {
                error.is_closed()
                    || std::error::Error::source(error)
                        .is_some_and(<dyn std::error::Error>::is::<std::io::Error>)
            }
        },
        _ => false,
    }
}

/// Returns whether an error of the server is about the values that it received.
fn is_data_error(code: &SqlState) -> bool {
    code.code().starts_with("22") || *code == SqlState::PROGRAM_LIMIT_EXCEEDED
}
