//! A hot standby beside its primary.

use tokio_postgres::Config;

use super::server::Server;
use super::{connect, wait_until};

/// A server that follows another one, and answers reads.
#[derive(Debug)]
pub struct Replica {
    pub server: Server,
    primary: Config,
}

impl Replica {
    pub(super) fn new(server: Server, primary: Config) -> Self {
        Self { server, primary }
    }

    /// Waits until it has replayed all that the primary has written by now.
    pub async fn caught_up(&self) {
        let primary = connect(&self.primary).await;
        let written: String =
            primary.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
        self.wait_until(&format!("SELECT pg_last_wal_replay_lsn() >= '{written}'")).await;
    }

    /// From now on it shows nothing new, until [`Replica::resume`]; it goes on receiving.
    pub async fn pause(&self) {
        self.run("SELECT pg_wal_replay_pause()").await;
        self.wait_until("SELECT pg_get_wal_replay_pause_state() = 'paused'").await;
    }

    /// Goes on replaying.
    pub async fn resume(&self) {
        self.run("SELECT pg_wal_replay_resume()").await;
    }

    /// From now on it receives nothing: what the primary writes later it will never have.
    pub async fn cut_off(&self) {
        self.run("ALTER SYSTEM SET primary_conninfo = ''").await;
        self.run("SELECT pg_reload_conf()").await;
        self.wait_until("SELECT count(*) = 0 FROM pg_stat_wal_receiver").await;
    }

    /// Makes it a primary, as old as what it has received.
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
