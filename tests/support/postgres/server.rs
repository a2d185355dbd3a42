//! A private PostgreSQL server: its directory, its settings, and the shell that ends it when this
//! process is gone.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::{env, fmt};

use tokio_postgres::Config;

use super::connect;
use super::installed::{self, User};
use super::replica::Replica;

/// Settings of a server whose commits survive a power failure, as in production. Other servers
/// never wait for the disk.
pub const DURABLE: &[(&str, &str)] = &[("fsync", "on")];

/// The only user, a superuser.
const USER: &str = "keepcount";

/// The shell script that keeps one server. It reads one command a line and answers each. When its
/// input closes, because the process has ended in any way, it stops the server at once and removes
/// the directory. PostgreSQL's own timeouts bound each wait.
const KEEPER: &str = r#"
while read -r word; do
    case $word in
    init) echo "$PASSWORD" >password && "$BIN/initdb" --pgdata=data --encoding=UTF8 --locale=C --username="$ROLE" \
        --auth-local=trust --auth-host=scram-sha-256 --pwfile=password --no-sync \
        ${SMALL:+--waldir="$FOLDER/wal/log" --wal-segsize=1} ;;
    fill-*) dd if=/dev/zero of="${word#fill-}/filler" bs=4096; test -s "${word#fill-}/filler" ;;
    room) rm -f tables/filler wal/filler ;;
    copy) "$BIN/pg_basebackup" --pgdata=data --dbname="$PRIMARY" --write-recovery-conf --checkpoint=fast --no-sync ;;
    start) "$BIN/pg_ctl" start --pgdata=data --log=log --timeout=60 ;;
    *) "$BIN/pg_ctl" stop --pgdata=data --mode="$word" --timeout=60 ;;
    esac </dev/null >>log 2>&1 && echo done || echo failed
done
"$BIN/pg_ctl" stop --pgdata=data --mode=immediate </dev/null >>log 2>&1
cd / && rm -rf "$FOLDER"
"#;

/// Keeps a server whose tables and log are on small disks. They are mounted in a private mount
/// namespace, and are gone when it ends, in whatever way.
const ON_SMALL_DISKS: &str = r#"
mkdir tables wal && mount -t tmpfs -o "size=24m,mode=700,uid=$OWNER,gid=$GROUP" tmpfs tables &&
    mount -t tmpfs -o "size=40m,mode=700,uid=$OWNER,gid=$GROUP" tmpfs wal &&
    mkdir tables/space && chown "$OWNER:$GROUP" tables/space &&
    SMALL=yes setpriv --reuid="$OWNER" --regid="$GROUP" --clear-groups sh -c "$KEEPER"
cd / && umount "$FOLDER/tables" "$FOLDER/wal" && rm -rf "$FOLDER"
"#;

/// A running server with its own directory, socket and port. When it is dropped, or the process
/// ends in any way, the server stops and its directory is removed.
pub struct Server {
    keeper: Child,
    answers: BufReader<ChildStdout>,
    folder: PathBuf,
    port: u16,
    password: String,
}

impl Server {
    /// A server that never waits for the disk.
    pub fn new() -> Option<Self> {
        Self::with(&[])
    }

    /// A server with these settings, as in `postgresql.conf`.
    pub fn with(settings: &[(&str, &str)]) -> Option<Self> {
        let password = password();
        let server = Self::keep(&installed::find_programs()?, password, "");
        Some(server.begin(settings))
    }

    /// A durable server with a small disk for its log and another for a tablespace. Only root can
    /// mount them: for other users it prints that the test is skipped and returns None.
    pub fn on_small_disks() -> Option<Self> {
        let (bin, Some(user)) = (installed::find_programs()?, User::instead_of_root()) else {
            eprintln!("skipped: only root can mount small disks");
            return None;
        };
        let mut keeper = Command::new("unshare");
        keeper.args(["--mount", "--propagation", "private", "sh", "-c", ON_SMALL_DISKS]);
        let ids = [
            ("OWNER", user.uid.to_string()),
            ("GROUP", user.gid.to_string()),
            ("KEEPER", KEEPER.to_owned()),
        ];
        let server = Self::keep_by(keeper, ids.into(), &bin, password(), "");
        Some(server.begin(&[("fsync", "on"), ("max_wal_size", "8MB"), ("min_wal_size", "2MB")]))
    }

    fn begin(mut self, settings: &[(&str, &str)]) -> Self {
        self.tell("init");
        self.set(&[
            ("listen_addresses", "127.0.0.1"),
            ("shared_buffers", "32MB"),
            ("fsync", "off"),
        ]);
        self.set(settings);
        self.start_somewhere();
        self
    }

    /// A directory for a tablespace on the small disk for tables.
    pub fn small_disk(&self) -> PathBuf {
        self.folder.join("tables/space")
    }

    /// Fills one of the small disks: `tables`, or `wal`.
    #[track_caller]
    pub fn fill(&mut self, disk: &str) {
        self.tell(&format!("fill-{disk}"));
    }

    /// Frees the space on the small disks again.
    #[track_caller]
    pub fn make_room(&mut self) {
        self.tell("room");
    }

    /// Starts the server again after it has stopped by itself, or is about to.
    #[track_caller]
    pub fn start_again(&mut self) {
        self.try_to_tell("immediate");
        self.tell("start");
    }

    /// A hot standby that streams from this server.
    pub fn replica(&self) -> Replica {
        let primary = format!("host='{}' port={} user={USER}", self.folder.display(), self.port);
        let bin = installed::find_programs().expect("this server runs");
        let mut server = Self::keep(&bin, self.password.clone(), &primary);
        server.tell("copy");
        server.start_somewhere();
        Replica::new(server, self.config("postgres"))
    }

    /// Starts the shell that keeps a server, in an empty directory of its own.
    fn keep(bin: &Path, password: String, primary: &str) -> Self {
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER]);
        if let Some(user) = User::instead_of_root() {
            keeper.uid(user.uid).gid(user.gid);
        }
        Self::keep_by(keeper, Vec::new(), bin, password, primary)
    }

    fn keep_by(
        mut keeper: Command,
        more: Vec<(&str, String)>,
        bin: &Path,
        password: String,
        primary: &str,
    ) -> Self {
        let folder = installed::folder("keepcount-pg-");
        keeper.current_dir(&folder).env_clear().envs(more);
        keeper
            .envs(env::var_os("PATH").map(|path| ("PATH", path)))
            .env("LC_ALL", "C")
            .env("ROLE", USER);
        keeper
            .env("BIN", bin)
            .env("FOLDER", &folder)
            .env("PASSWORD", &password)
            .env("PRIMARY", primary);
        // A Ctrl-C is for the tests alone, so the shell has its own process group. This pipe is all
        // that it keeps open of theirs.
        keeper.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut keeper = keeper.spawn().unwrap();
        let answers = BufReader::new(keeper.stdout.take().expect("it is piped"));
        Self { keeper, answers, folder, port: 0, password }
    }

    /// Starts the server on a free port. Tries several, because a port that was free may be taken a
    /// moment later.
    #[track_caller]
    fn start_somewhere(&mut self) {
        for _ in 0..5 {
            self.port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
            let (port, folder) = (self.port.to_string(), self.folder.display().to_string());
            self.set(&[("port", &port), ("unix_socket_directories", &folder)]);
            if self.try_to_tell("start") {
                return;
            }
        }
        self.fail("start");
    }

    /// Appends settings to `postgresql.conf`, where the last line of a name wins. They apply from
    /// the next start on.
    pub fn set(&self, settings: &[(&str, &str)]) {
        let mut file =
            OpenOptions::new().append(true).open(self.folder.join("data/postgresql.conf")).unwrap();
        for (name, value) in settings {
            writeln!(file, "{name} = '{}'", value.replace('\'', "''")).unwrap();
        }
    }

    fn try_to_tell(&mut self, word: &str) -> bool {
        let mut answer = String::new();
        writeln!(self.keeper.stdin.as_mut().expect("it is piped"), "{word}").unwrap();
        self.answers.read_line(&mut answer).unwrap();
        answer == "done\n"
    }

    #[track_caller]
    fn tell(&mut self, word: &str) {
        if !self.try_to_tell(word) {
            self.fail(word);
        }
    }

    #[track_caller]
    fn fail(&self, word: &str) -> ! {
        panic!(
            "{word} failed:\n{}",
            fs::read_to_string(self.folder.join("log")).unwrap_or_default()
        );
    }

    /// Starts a stopped server.
    #[track_caller]
    pub fn start(&mut self) {
        self.tell("start");
    }

    /// Stops it in the fast mode: sessions are ended and everything is written.
    #[track_caller]
    pub fn stop(&mut self) {
        self.tell("fast");
    }

    /// Stops it as a crash does: nothing more is written, and the next start recovers.
    #[track_caller]
    pub fn crash(&mut self) {
        self.tell("immediate");
    }

    /// The configuration for one of its databases: over the socket, without a password.
    pub fn config(&self, database: &str) -> Config {
        let mut config = Config::new();
        config.host_path(&self.folder).port(self.port).user(USER).dbname(database);
        config
    }

    /// The URL of one of its databases: over the loopback network, with a password.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    /// A new, empty database that sorts text by bytes.
    pub async fn database(&self) -> Config {
        self.create("").await
    }

    /// A new, empty database that sorts text by a language's rules: with `en-US`, `a` comes before
    /// `B`.
    pub async fn database_of_language(&self, icu: &str) -> Config {
        self.create(&format!("LOCALE_PROVIDER icu ICU_LOCALE '{icu}' LOCALE 'C'")).await
    }

    async fn create(&self, how: &str) -> Config {
        static CREATED: AtomicU64 = AtomicU64::new(1);
        let name = format!("test_{}", CREATED.fetch_add(1, Ordering::Relaxed));
        let client = connect(&self.config("postgres")).await;
        client
            .batch_execute(&format!("CREATE DATABASE {name} TEMPLATE template0 {how}"))
            .await
            .unwrap();
        self.config(&name)
    }

    /// The directory of its socket, data and log.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The id of its process.
    pub fn pid(&self) -> u32 {
        let text = fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    }
}

/// Waits until the server has stopped and its directory is removed.
impl Drop for Server {
    fn drop(&mut self) {
        // `wait` closes the pipe first.
        let _ = self.keeper.wait();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Server")
            .field("folder", &self.folder)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// A random password, which other users of this machine cannot guess.
fn password() -> String {
    let mut bytes = [0; 16];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    format!("{:032x}", u128::from_ne_bytes(bytes))
}
