//! Saves and loads a snapshot file that is old or new and never a mix: which file system calls, and
//! in which order.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use super::file::{HEAD, whole_len};
use super::{Snapshot, failed};
use crate::error::{Error, Result};

/// The file system calls of save and load; tests use a disk that fails wherever it can.
pub(super) trait Disk {
    type File: io::Write;

    /// Removes the files in a folder that no process holds and whose names are `wanted`.
    fn sweep(&self, folder: &Path, wanted: impl Fn(&OsStr) -> bool) -> io::Result<()>;
    /// Creates a file under a name with a random number, and holds it until it is dropped.
    fn create(&self, name: impl Fn(u64) -> PathBuf) -> io::Result<(PathBuf, Self::File)>;
    /// Returns once a crash can no longer lose the file's bytes.
    fn sync(&self, file: &mut Self::File) -> io::Result<()>;
    /// Puts a file in the place of another, atomically.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Returns once a crash can no longer lose the folder's names.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    fn open(&self, path: &Path) -> io::Result<impl io::Read>;
}

impl Snapshot {
    /// Writes the snapshot to a file and replaces the one that may be there: after a crash at any
    /// moment, it is the old one or the new one.
    ///
    /// It writes a temporary file in the same folder, `.NAME.keepcount-*.tmp`, syncs it, renames
    /// it, and syncs the folder. The next save removes such files that a killed process left.
    /// Several saves to one file may run at once: the last to rename wins. A symbolic link is
    /// replaced, not followed, and permissions are those of a new file.
    ///
    /// Outside unix the folder is not synced: after a power failure, the file may be the old one
    /// although `save` returned.
    ///
    /// # Errors
    ///
    /// [`Error::Database`] if the disk fails: the old file is unchanged. [`Error::Indeterminate`]
    /// if the folder could not be synced: the file is the new one, but after a crash it may be
    /// either; save again. [`Error::InvalidUse`] for a path that names no file.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Batch, MemoryStore, Snapshot};
    ///
    /// keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
    ///
    /// # let folder = tempfile::tempdir()?;
    /// let path = folder.path().join("totals.snapshot");
    /// let store = MemoryStore::new(&SCHEMA);
    /// let mut batch = Batch::new();
    /// batch.add(SHOW_VOTES, 7, 3);
    /// store.apply(&mut batch)?;
    /// store.snapshot().save(&path)?;
    ///
    /// let restored = MemoryStore::restore(&SCHEMA, &Snapshot::load(&path)?)?;
    /// assert_eq!(restored.total(SHOW_VOTES, 7)?, 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        save(&Real, path.as_ref(), &self.to_bytes()?)
    }

    /// Reads a file that [`save`](Self::save) wrote.
    ///
    /// # Errors
    ///
    /// [`Error::Database`] if the file does not exist or cannot be read; [`Error::Snapshot`] as
    /// [`from_bytes`](Self::from_bytes). Both name the file.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        load(&Real, path.as_ref())
    }
}

/// Writes, syncs, renames, and syncs the name. A failed sync is not retried: a file system may
/// report data as written that it dropped then.
pub(super) fn save(disk: &impl Disk, path: &Path, bytes: &[u8]) -> Result<()> {
    let Some(name) = path.file_name() else {
        return Err(Error::invalid_use(
            "path of a snapshot",
            format!("{} names no file", path.display()),
        ));
    };
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."));
    // A leftover that cannot be removed costs only its space.
    let _ = disk.sweep(folder, |known| is_temporary(known, name));
    let failed = |cause: io::Error| Error::Database {
        operation: format!("saving snapshot {}", path.display()),
        cause: cause.into(),
    };
    let (temporary, mut file) =
        disk.create(|random| folder.join(temporary_name(name, random))).map_err(failed)?;
    let replaced = file
        .write_all(bytes)
        .and_then(|()| disk.sync(&mut file))
        .and_then(|()| disk.rename(&temporary, path));
    if let Err(cause) = replaced {
        let _ = disk.remove(&temporary);
        return Err(failed(cause));
    }
    disk.sync_folder(folder).map_err(|cause| Error::Indeterminate {
        operation: format!("saving snapshot {}: syncing its folder", path.display()),
        cause: cause.into(),
    })
}

/// Reads no more than the length that the file's head states, plus one byte.
pub(super) fn load(disk: &impl Disk, path: &Path) -> Result<Snapshot> {
    let unread = |cause: io::Error| Error::Database {
        operation: format!("loading snapshot {}", path.display()),
        cause: cause.into(),
    };
    let refused = |reason: String| failed(format!("{}: {reason}", path.display()));
    let mut file = disk.open(path).map_err(unread)?;
    let mut bytes = Vec::new();
    file.by_ref().take(HEAD as u64).read_to_end(&mut bytes).map_err(unread)?;
    let more = whole_len(&bytes).map_err(refused)?.saturating_sub(HEAD as u64).saturating_add(1);
    file.take(more).read_to_end(&mut bytes).map_err(unread)?;
    Snapshot::parse(&bytes).map_err(refused)
}

/// New names to try if another save swept a file between its creation and its lock: each time the
/// chance of that is a matter of microseconds.
const TRIES: usize = 16;
const ENDING: &str = ".tmp";
const DIGITS: usize = 16;

fn beginning(name: &OsStr) -> OsString {
    [OsStr::new("."), name, OsStr::new(".keepcount-")].into_iter().collect()
}

/// Returns a name that no other save has, so that two saves never write to one file.
fn temporary_name(name: &OsStr, random: u64) -> OsString {
    let mut temporary = beginning(name);
    temporary.push(format!("{random:0DIGITS$x}{ENDING}"));
    temporary
}

fn is_temporary(known: &OsStr, name: &OsStr) -> bool {
    let digits = known.as_encoded_bytes().strip_prefix(beginning(name).as_encoded_bytes());
    let digits = digits.and_then(|digits| digits.strip_suffix(ENDING.as_bytes()));
    digits.is_some_and(|digits| digits.len() == DIGITS && digits.iter().all(u8::is_ascii_hexdigit))
}

/// The file system of the operating system.
struct Real;

impl Disk for Real {
    type File = File;

    /// A process holds its file by a lock, which ends with the process. The lock is held during the
    /// removal, so another process that gets it has a file that still exists or one that is gone.
    fn sweep(&self, folder: &Path, wanted: impl Fn(&OsStr) -> bool) -> io::Result<()> {
        for known in fs::read_dir(folder)?
            .filter_map(io::Result::ok)
            .filter(|known| wanted(&known.file_name()))
        {
            let file = File::open(known.path())?;
            if file.try_lock().is_ok() {
                fs::remove_file(known.path())?;
            }
        }
        Ok(())
    }

    /// On a file system without locks, no file is swept.
    fn create(&self, name: impl Fn(u64) -> PathBuf) -> io::Result<(PathBuf, File)> {
        for _ in 0..TRIES {
            let path = name(RandomState::new().hash_one(()));
            let file = File::create_new(&path)?;
            let swept =
                matches!(file.try_lock(), Err(TryLockError::WouldBlock)) || !path.try_exists()?;
            if !swept {
                return Ok((path, file));
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "other saves swept its temporary files"))
    }

    fn sync(&self, file: &mut File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn open(&self, path: &Path) -> io::Result<impl io::Read> {
        File::open(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sweep removes such files.
    #[test]
    fn only_the_names_that_saves_give_are_temporary() {
        let name = OsStr::new("totals");
        let is = |known: &str| is_temporary(OsStr::new(known), name);
        assert!(
            is_temporary(&temporary_name(name, 0x1f), name)
                && is(".totals.keepcount-0123456789abcdef.tmp")
        );
        for other in [
            "totals",
            ".totals.keepcount-0123456789abcde.tmp",
            ".totals.keepcount-0123456789abcdef0.tmp",
            ".totals.keepcount-0123456789abcdeg.tmp",
            ".totals.keepcount-0123456789abcdef",
            ".other.keepcount-0123456789abcdef.tmp",
        ] {
            assert!(!is(other), "{other}");
        }
    }
}
