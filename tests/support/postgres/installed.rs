//! Where PostgreSQL is installed, and who runs it.

use std::io::{Write, stderr};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, thread};

/// The folder with PostgreSQL's programs; where there is none, says that this test is skipped.
///
/// `KEEPCOUNT_PG_BIN`, else where PATH has `initdb`, else the newest of
/// `/usr/lib/postgresql/*/bin`.
///
/// # Panics
/// Where there is none and `KEEPCOUNT_REQUIRE_SERVERS` is 1.
pub fn found() -> Option<PathBuf> {
    let named = env::var_os("KEEPCOUNT_PG_BIN");
    let folders = if let Some(folder) = &named { vec![folder.into()] } else { usual() };
    let found = folders.into_iter().find(|folder| {
        ["initdb", "postgres", "pg_ctl"].iter().all(|name| folder.join(name).is_file())
    });
    if found.is_none() {
        let looked = named.map_or_else(
            || "PATH or /usr/lib/postgresql/*/bin".into(),
            |folder| folder.display().to_string(),
        );
        let why = format!(
            "no PostgreSQL binaries (initdb, postgres) found; looked in {looked}, KEEPCOUNT_PG_BIN names another folder"
        );
        assert!(env::var("KEEPCOUNT_REQUIRE_SERVERS").as_deref() != Ok("1"), "{why}");
        // Not `eprintln`, which a test that passes keeps for itself.
        let skipped = format!("{}: skipped: {why}\n", thread::current().name().unwrap_or_default());
        stderr().write_all(skipped.as_bytes()).unwrap();
    }
    found
}

fn usual() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // The programs lie together; a PATH may have memberships to some of them.
    let linked =
        env::split_paths(&path).filter_map(|folder| folder.join("initdb").canonicalize().ok());
    let mut folders: Vec<PathBuf> =
        linked.filter_map(|program| Some(program.parent()?.to_owned())).collect();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin")))
        })
        .collect();
    versions.sort_unstable_by(|one, other| other.cmp(one));
    folders.extend(versions.into_iter().map(|(_, folder)| folder));
    folders
}

/// Who runs servers where the tests are root's, since PostgreSQL refuses to run as root.
#[derive(Debug, Clone, Copy)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

impl User {
    /// None where the tests are not root's.
    pub fn instead_of_root() -> Option<Self> {
        (id(&["-u"])? == 0).then(|| {
            let user = ["postgres", "nobody"]
                .into_iter()
                .find_map(|name| Some(Self { uid: id(&["-u", name])?, gid: id(&["-g", name])? }));
            user.expect("root needs a user `postgres` or `nobody` to run PostgreSQL as")
        })
    }
}

fn id(words: &[&str]) -> Option<u32> {
    let told = Command::new("id").args(words).output().ok()?;
    String::from_utf8(told.stdout).ok()?.trim().parse().ok()
}

/// A new folder, of whoever runs servers; it stays.
pub fn folder(prefix: &str) -> PathBuf {
    let folder = tempfile::Builder::new().prefix(prefix).tempdir_in(temporary()).unwrap().keep();
    if let Some(user) = User::instead_of_root() {
        chown(&folder, Some(user.uid), Some(user.gid)).unwrap();
    }
    folder
}

/// A folder for temporary files that every user may pass through.
fn temporary() -> PathBuf {
    use std::os::unix::fs::PermissionsExt;

    let open =
        |folder: &Path| fs::metadata(folder).is_ok_and(|about| about.permissions().mode() & 1 == 1);
    let usual = env::temp_dir();
    if usual.ancestors().all(open) { usual } else { "/tmp".into() }
}
