//! Finds the installed PostgreSQL, and the user that runs it.

use std::io::{Write, stderr};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, thread};

/// Returns the directory with PostgreSQL's programs. Without one, prints that the test is skipped.
///
/// The directory is `KEEPCOUNT_PG_BIN`, or the one in PATH that has `initdb`, or the newest of
/// `/usr/lib/postgresql/*/bin`.
///
/// # Panics
///
/// If there is none and `KEEPCOUNT_REQUIRE_SERVERS` is 1.
pub fn find_programs() -> Option<PathBuf> {
    let named = env::var_os("KEEPCOUNT_PG_BIN");
    let folders = if let Some(folder) = &named { vec![folder.into()] } else { usual_folders() };
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
        // `eprintln` would not show it, because the test harness captures the output of passing
        // tests.
        let skipped = format!("{}: skipped: {why}\n", thread::current().name().unwrap_or_default());
        stderr().write_all(skipped.as_bytes()).unwrap();
    }
    found
}

fn usual_folders() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // All programs are in one directory. A directory of PATH may have symbolic links to some of
    // them.
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

/// The user that runs servers if the tests run as root, because PostgreSQL refuses to run as root.
#[derive(Debug, Clone, Copy)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

impl User {
    /// None if the tests do not run as root.
    pub fn instead_of_root() -> Option<Self> {
        (id(&["-u"])? == 0).then(|| {
            let user = ["postgres", "nobody"]
                .into_iter()
                .find_map(|name| Some(Self { uid: id(&["-u", name])?, gid: id(&["-g", name])? }));
            user.expect("a user `postgres` or `nobody` must exist to run PostgreSQL as root")
        })
    }
}

fn id(words: &[&str]) -> Option<u32> {
    let told = Command::new("id").args(words).output().ok()?;
    String::from_utf8(told.stdout).ok()?.trim().parse().ok()
}

/// Creates a directory owned by the user that runs servers. It is not removed.
pub fn folder(prefix: &str) -> PathBuf {
    let folder =
        tempfile::Builder::new().prefix(prefix).tempdir_in(temporary_folder()).unwrap().keep();
    if let Some(user) = User::instead_of_root() {
        chown(&folder, Some(user.uid), Some(user.gid)).unwrap();
    }
    folder
}

/// A directory for temporary files that every user can traverse.
fn temporary_folder() -> PathBuf {
    use std::os::unix::fs::PermissionsExt;

    let open =
        |folder: &Path| fs::metadata(folder).is_ok_and(|about| about.permissions().mode() & 1 == 1);
    let usual = env::temp_dir();
    if usual.ancestors().all(open) { usual } else { "/tmp".into() }
}
