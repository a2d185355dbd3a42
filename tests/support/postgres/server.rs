//! A private PostgreSQL server: its folder, its settings, and the shell that ends it when this
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

/// A server whose commits outlive the machine's power, as one in production; the others never wait
/// for the disk.
pub const DURABLE: &[(&str, &str)] = &[("fsync", "on")];

/// The one user, who may do everything.
const USER: &str = "keepcount";

/// Keeps one server: does what it is told, a word a line, and answers each. When nobody is left who
/// could tell it anything, however that came about, it ends the server at once and removes the
/// folder. PostgreSQL itself bounds each wait.
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

/// The keeper of a server whose tables and log lie on small disks. They are mounted where nobody
/// else sees them, and go with it, however it ends.
const ON_SMALL_DISKS: &str = r#"
mkdir tables wal && mount -t tmpfs -o "size=24m,mode=700,uid=$OWNER,gid=$GROUP" tmpfs tables &&
    mount -t tmpfs -o "size=40m,mode=700,uid=$OWNER,gid=$GROUP" tmpfs wal &&
    mkdir tables/space && chown "$OWNER:$GROUP" tables/space &&
    SMALL=yes setpriv --reuid="$OWNER" --regid="$GROUP" --clear-groups sh -c "$KEEPER"
cd / && umount "$FOLDER/tables" "$FOLDER/wal" && rm -rf "$FOLDER"
"#;

/// A running server, with a folder, a socket and a port of its own. Dropped, or when the process
/// ends in any way, it ends, and its folder goes.
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
        let server = Self::keep(&installed::found()?, password, "");
        Some(server.begin(settings))
    }

    /// A durable server with a small disk for its log and another for a tablespace. Only root can
    /// mount them: none, which says so, for anybody else.
    pub fn on_small_disks() -> Option<Self> {
        let (bin, Some(user)) = (installed::found()?, User::instead_of_root()) else {
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

    /// Where a tablespace may be made on the small disk for tables.
    pub fn small_disk(&self) -> PathBuf {
        self.folder.join("tables/space")
    }

    /// Leaves no room on one of the small disks: `tables`, or `wal`.
    #[track_caller]
    pub fn fill(&mut self, disk: &str) {
        self.tell(&format!("fill-{disk}"));
    }

    /// Makes room again on the small disks.
    #[track_caller]
    pub fn make_room(&mut self) {
        self.tell("room");
    }

    /// Starts it again, where it ended itself or is about to.
    #[track_caller]
    pub fn start_again(&mut self) {
        self.try_to_tell("immediate");
        self.tell("start");
    }

    /// A hot standby that streams from this server.
    pub fn replica(&self) -> Replica {
        let primary = format!("host='{}' port={} user={USER}", self.folder.display(), self.port);
        let bin = installed::found().expect("this server runs");
        let mut server = Self::keep(&bin, self.password.clone(), &primary);
        server.tell("copy");
        server.start_somewhere();
        Replica::new(server, self.config("postgres"))
    }

    /// The shell that keeps a server, in a folder of its own; nothing is in it yet.
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
        // A Ctrl-C is for the tests; what it keeps open of theirs is this pipe alone.
        keeper.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut keeper = keeper.spawn().unwrap();
        let answers = BufReader::new(keeper.stdout.take().expect("it is piped"));
        Self { keeper, answers, folder, port: 0, password }
    }

    /// A port that was free a moment ago may be taken by now.
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

    /// Appends to `postgresql.conf`, where the last line of a name counts; read when the server
    /// starts.
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

    /// Starts a server that was stopped.
    #[track_caller]
    pub fn start(&mut self) {
        self.tell("start");
    }

    /// Stops it in order: sessions are ended, everything is written.
    #[track_caller]
    pub fn stop(&mut self) {
        self.tell("fast");
    }

    /// Ends it as a crash does: nothing is written any more, and the next start recovers.
    #[track_caller]
    pub fn crash(&mut self) {
        self.tell("immediate");
    }

    /// Where a database of it is: over its socket, without a password.
    pub fn config(&self, database: &str) -> Config {
        let mut config = Config::new();
        config.host_path(&self.folder).port(self.port).user(USER).dbname(database);
        config
    }

    /// Where a database of it is: over the loopback network, with a password.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    /// A new, empty database that sorts text by bytes.
    pub async fn database(&self) -> Config {
        self.create("").await
    }

    /// A new, empty database that sorts text as a language does: with `en-US`, `a` comes before
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

    /// Its socket, its data and its log are there.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        let text = fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    }
}

/// Waits until nothing is left of it.
impl Drop for Server {
    fn drop(&mut self) {
        // Closes the pipe before.
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

/// Whoever else is on this machine cannot guess it.
fn password() -> String {
    let mut bytes = [0; 16];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    format!("{:032x}", u128::from_ne_bytes(bytes))
}
