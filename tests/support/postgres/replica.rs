//! A hot standby beside its primary.

use tokio_postgres::Config;

use super::server::Server;
use super::{connect, wait_until};

/// A hot standby: it follows a primary and answers reads.
#[derive(Debug)]
pub struct Replica {
    pub server: Server,
    primary: Config,
}

impl Replica {
    pub(super) fn new(server: Server, primary: Config) -> Self {
        Self { server, primary }
    }

    /// Waits until it has replayed everything that the primary has written so far.
    pub async fn wait_until_caught_up(&self) {
        let primary = connect(&self.primary).await;
        let written: String =
            primary.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
        self.wait_until(&format!("SELECT pg_last_wal_replay_lsn() >= '{written}'")).await;
    }

    /// Stops replaying until [`Replica::resume`], so it shows nothing new. It still receives the
    /// log.
    pub async fn pause(&self) {
        self.run("SELECT pg_wal_replay_pause()").await;
        self.wait_until("SELECT pg_get_wal_replay_pause_state() = 'paused'").await;
    }

    /// Resumes replaying.
    pub async fn resume(&self) {
        self.run("SELECT pg_wal_replay_resume()").await;
    }

    /// Stops receiving for good: it never gets what the primary writes from now on.
    pub async fn cut_off(&self) {
        self.run("ALTER SYSTEM SET primary_conninfo = ''").await;
        self.run("SELECT pg_reload_conf()").await;
        self.wait_until("SELECT count(*) = 0 FROM pg_stat_wal_receiver").await;
    }

    /// Promotes it to a primary with the data that it has received.
    pub async fn promote(&self) {
        self.run("SELECT pg_promote()").await;
        self.wait_until("SELECT NOT pg_is_in_recovery()").await;
    }

    async fn run(&self, text: &str) {
        connect(&self.server.config("postgres")).await.batch_execute(text).await.unwrap();
    }

    async fn wait_until(&self, query: &str) {
        wait_until(&connect(&self.server.config("postgres")).await, query).await;
    }
}
