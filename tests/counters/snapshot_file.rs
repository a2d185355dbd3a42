//! Snapshots in real files. Keys of every type are restored. Every damage is refused with its
//! reason. A replay from the offsets is exact. A process that is killed while it saves leaves a
//! complete file. `src/store/memory/snapshot/disk_fault_tests.rs` tests a disk that fails.
#![allow(
    clippy::disallowed_methods,
    reason = "the crate must not look at a clock; a test that prints a figure may"
)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use keepcount::{
    Batch, Counter, Date, Error, MemoryStore, Recovery, Schema, Snapshot, StreamRange, key,
};
use proptest::collection::vec;
use proptest::prelude::*;
use uuid::Uuid;

use crate::support::full_test_name;
use crate::support::random::Random;

fn restored(schema: &Schema, path: &Path) -> MemoryStore {
    MemoryStore::restore(schema, &Snapshot::load(path).unwrap()).unwrap()
}

#[derive(Debug, Clone, PartialEq)]
struct Slug(String);
key!(Slug(String), str);

/// Declares a counter of each key type, their schema, a function that fills them, and one that
/// compares them.
macro_rules! keys {
    ($($counter:ident $name:literal $key:ty: $($value:expr),+;)+) => {
        $(const $counter: Counter<$key> = Counter::new($name);)+
        const EVERY_KEY: Schema = Schema::new(&[$($counter.table()),+]);

        fn fill(batch: &mut Batch) {
            $(for (total, key) in (-2..).zip([$($value),+]) {
                batch.add($counter, key, if total == 0 { i64::MIN } else { total });
            })+
        }

        fn assert_same(one: &MemoryStore, two: &MemoryStore) {
            $(
                assert_eq!(one.totals($counter).unwrap(), two.totals($counter).unwrap());
                assert_eq!(one.len($counter.id()).unwrap(), [$($value),+].len());
            )+
        }
    };
}

keys! {
    I8 "k.i8" i8: i8::MIN, -1, 0, i8::MAX;
    I16 "k.i16" i16: i16::MIN, -1, 0, i16::MAX;
    I32 "k.i32" i32: i32::MIN, -1, 0, i32::MAX;
    I64 "k.i64" i64: i64::MIN, -1, 0, i64::MAX;
    I128 "k.i128" i128: i128::MIN, -1, 0, i128::MAX;
    U8 "k.u8" u8: 0, 1, u8::MAX;
    U16 "k.u16" u16: 0, 1, u16::MAX;
    U32 "k.u32" u32: 0, 1, u32::MAX;
    U64 "k.u64" u64: 0, 1, u64::MAX;
    U128 "k.u128" u128: 0, 1, u128::MAX;
    BYTES "k.bytes" [u8; 16]: [0; 16], [7; 16], [255; 16];
    UUID "k.uuid" Uuid: Uuid::nil(), Uuid::max(), Uuid::from_u128(5);
    TEXT "k.text" String:
        "", "\0", "\u{1}\0", "a text that is too long to live inline", "\u{10ffff}";
    NEWTYPE "k.newtype" Slug: Slug(String::new()), Slug("a".to_owned());
    DATE "k.date" Date:
        "2024-02-29".parse::<Date>().unwrap(), "0001-01-01".parse::<Date>().unwrap();
    UNIT "k.unit" (): ();
    PAIR "k.pair" (String, i64): ("a", 1), ("a", -1), ("", 0), ("a\0", 1);
    LONG "k.long" (i64, Uuid, String, u8): (1, Uuid::nil(), "x", 3), (1, Uuid::max(), "", 0);
}

#[test]
fn every_key_type_comes_back_from_a_file() {
    let folder = crate::support::temp_dir();
    let path = folder.path().join("totals");
    let store = MemoryStore::new(&EVERY_KEY);
    MemoryStore::new(&EVERY_KEY).snapshot().save(&path).unwrap();
    assert_eq!(restored(&EVERY_KEY, &path).snapshot(), store.snapshot());

    let mut batch = Batch::new();
    fill(&mut batch);
    store.apply(&mut batch).unwrap();
    store.snapshot().save(&path).unwrap();
    let back = restored(&EVERY_KEY, &path);
    assert_same(&store, &back);
    assert_eq!(back.snapshot(), store.snapshot());
}

const VOTES: Counter<i64> = Counter::new("setlist.votes");
const MEMBERSHIP: Counter<(i64, i64)> = Counter::new("setlist.show");
const SHOW_VOTES: Counter<i64> = Counter::new("show.votes").sum_of(VOTES, MEMBERSHIP);
const USERS: Counter<String> = Counter::new("user.votes");
const DAYS: Counter<(i64, i32)> = Counter::new("setlist.days");
const LIKES: Counter<Uuid> = Counter::new("setlist.likes").version(2);
const SITE: Schema = Schema::new(&[
    VOTES.table(),
    MEMBERSHIP.table(),
    SHOW_VOTES.table(),
    USERS.table(),
    DAYS.table().prunable(),
    LIKES.table(),
]);

/// A store with a rollup, text keys, a cutoff, a counter of version 2 that is not ready, and
/// offsets.
fn fixture() -> MemoryStore {
    let mut young = MemoryStore::new(&SITE).snapshot();
    young.drop_counter("setlist.likes.v2").unwrap();
    let store = MemoryStore::restore(&SITE, &young).unwrap();
    let mut batch = Batch::new();
    for event in 1..=20 {
        add_event(&mut batch, "one", event);
    }
    batch.add(USERS, "", i64::MIN);
    batch.add(USERS, "a user whose name is too long to live inline", i64::MAX);
    batch.add(LIKES, Uuid::from_u128(7), -1);
    store.apply_idempotent(&mut batch, &StreamRange::new("one", 1, 20).unwrap()).unwrap();
    store.apply_idempotent(&mut Batch::new(), &StreamRange::new("two", 1, 300).unwrap()).unwrap();
    store.prune(DAYS, 3).unwrap();
    store
}

/// Adds the deltas of one event of a stream.
fn add_event(batch: &mut Batch, stream: &str, event: u64) {
    let mut random = Random(event << 8 | stream.len() as u64);
    let setlist = random.int(0, 40);
    if random.below(10) == 0 {
        batch.add(MEMBERSHIP, (setlist, random.int(0, 7)), -1);
        batch.add(MEMBERSHIP, (setlist, random.int(0, 7)), 1);
    } else {
        batch.add(VOTES, setlist, 1);
        batch.add(USERS, format!("user-{}", random.below(30)), 1);
        batch.add(DAYS, (setlist, random.below(9)), 1);
    }
}

/// Each released version keeps a file. Today's code writes the same bytes for [`fixture`] as 0.1.0
/// did. After a change of the format, this file must still be read as the same snapshot, and the
/// new version gets a folder of its own.
#[test]
fn file_of_0_1_0_is_read_and_written_with_the_same_bytes() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/0.1.0/snapshot");
    let snapshot = fixture().snapshot();
    let written =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("snapshot-{}", std::process::id()));
    snapshot.save(&written).unwrap();
    let bytes = fs::read(&kept).unwrap_or_default();
    assert!(
        bytes == fs::read(&written).unwrap(),
        "{} is not {}",
        kept.display(),
        written.display()
    );
    fs::remove_file(&written).unwrap();
    assert_eq!(Snapshot::load(&kept).unwrap(), snapshot);

    let store = restored(&SITE, &kept);
    assert_eq!((store.offset("one"), store.offset("two")), (20, 300));
    assert!(store.is_ready(SHOW_VOTES.id()).unwrap() && !store.is_ready(LIKES.id()).unwrap());
    assert_eq!(store.total(USERS, "").unwrap(), i64::MIN);
    assert!(store.totals(DAYS).unwrap().iter().all(|((_, day), _)| *day >= 3));
}

#[track_caller]
fn reason(bytes: &[u8]) -> String {
    let error = Snapshot::from_bytes(bytes).expect_err("a damaged snapshot was read");
    assert!(
        matches!(error, Error::Snapshot { .. }) && error.recovery() == Recovery::Permanent,
        "{error:?}"
    );
    error.to_string().strip_prefix("snapshot: ").unwrap().to_owned()
}

/// Appends the checksum that ends a file: FNV-1a of all bytes before it.
fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, step);
    bytes.extend(hash.to_le_bytes());
    bytes
}

/// A file with this body, and the right length and checksum.
fn file_of(body: &[u8]) -> Vec<u8> {
    let len = (body.len() as u64).to_le_bytes();
    with_checksum([b"keepcount totals".as_slice(), &2_u32.to_le_bytes(), &len, body].concat())
}

const HEAD: usize = 28;
const SEAL: usize = 8;

#[test]
fn every_changed_missing_and_appended_byte_is_refused() {
    let whole = fixture().snapshot().to_bytes().unwrap();
    assert_eq!(whole, file_of(&whole[HEAD..whole.len() - SEAL]));
    let mut bytes = whole.clone();
    for at in 0..whole.len() {
        for change in 1..=255 {
            bytes[at] = whole[at] ^ change;
            let reason = reason(&bytes);
            let told = match at {
                0..16 => ["it is not a snapshot of keepcount"; 2],
                16..20 => ["its format is "; 2],
                20..HEAD => ["it is truncated: ", "it has bytes after its end"],
                _ => ["it is damaged"; 2],
            };
            assert!(told.iter().any(|told| reason.starts_with(told)), "byte {at}: {reason}");
        }
        bytes[at] = whole[at];
    }
    for len in 0..whole.len() {
        let least =
            if len < HEAD { format!("at least {}", HEAD + SEAL) } else { whole.len().to_string() };
        assert_eq!(reason(&whole[..len]), format!("it is truncated: {len} of {least} bytes"));
    }
    for more in 0..=255 {
        bytes.truncate(whole.len());
        bytes.push(more);
        assert_eq!(
            reason(&bytes),
            format!("it has bytes after its end, which is at {}", whole.len())
        );
    }
    // Two swapped bytes, a byte removed from the middle, and a byte doubled there.
    for at in HEAD..whole.len() - 1 {
        let mut moved = whole.clone();
        moved.swap(at, at + 1);
        assert!(moved == whole || reason(&moved).starts_with("it is damaged"));
        moved.remove(at);
        assert!(reason(&moved).starts_with("it is truncated"));
        moved.splice(at..at, [whole[at]; 2]);
        assert!(reason(&moved).starts_with("it has bytes after its end"));
    }
}

#[test]
fn foreign_newer_and_malformed_files_give_different_errors() {
    for foreign in
        ["SQLite format 3\0", "{\"format\":2}", "keepcount total\0", "\n", "keepcount  totals"]
    {
        assert_eq!(reason(foreign.as_bytes()), "it is not a snapshot of keepcount");
    }
    let mut newer = fixture().snapshot().to_bytes().unwrap();
    newer.truncate(newer.len() - SEAL);
    newer[16] = 3;
    assert_eq!(
        reason(&with_checksum(newer.clone())),
        "its format is 3, and this version of keepcount reads 2 at most"
    );
    newer[16] = 1;
    assert_eq!(reason(&with_checksum(newer)), "its format is 1, which no release writes");

    // Bodies with a right checksum: an empty one, one of another format, lists that claim to be
    // longer than memory, and one with bytes after its end.
    let endless = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    let name = [b"\x02\x01\x0ashow.votes\x05(i64)\x05table\x01\x00".as_slice(), &endless].concat();
    for body in [
        &[][..],
        &[2],
        &[1, 0, 0],
        &[&[2][..], &endless].concat(),
        &[&[2, 0][..], &endless].concat(),
        &name,
    ] {
        assert!(reason(&file_of(body)).starts_with("its body cannot be read: "), "{body:?}");
    }
    assert_eq!(reason(&file_of(&[2, 0, 0, 7])), "its body cannot be read: 1 bytes are left over");
    assert!(Snapshot::from_bytes(&file_of(&[2, 0, 0])).is_ok());
}

/// Reads bytes, restores a store if they are a snapshot, and returns whether they are. A snapshot
/// that was read is the same after it is written and read again.
fn check_read(bytes: &[u8]) -> bool {
    match Snapshot::from_bytes(bytes) {
        Ok(snapshot) => {
            assert_eq!(Snapshot::from_bytes(&snapshot.to_bytes().unwrap()).unwrap(), snapshot);
            match MemoryStore::restore(&SITE, &snapshot) {
                Ok(store) => {
                    assert!(
                        snapshot.orphaned(&SITE).is_empty()
                            && store.snapshot().orphaned(&SITE).is_empty()
                    );
                }
                Err(error) => assert!(matches!(error, Error::Snapshot { .. }), "{error:?}"),
            }
            true
        }
        Err(error) => {
            assert!(matches!(error, Error::Snapshot { .. }), "{error:?}");
            false
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..300)) {
        prop_assert!(!check_read(&bytes));
        check_read(&file_of(&bytes));
    }

    /// Damage that the checksum does not detect, because it is computed again.
    #[test]
    fn changed_body_with_a_right_checksum_is_read_or_refused(
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
    ) {
        let whole = fixture().snapshot().to_bytes().unwrap();
        let mut body = whole[HEAD..whole.len() - SEAL].to_vec();
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        check_read(&file_of(&body));
    }
}

/// The names of the files in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn errors_name_the_file_and_change_nothing_in_the_folder() {
    let folder = crate::support::temp_dir();
    let snapshot = fixture().snapshot();
    let at = |name: &str| folder.path().join(name);
    let failed = |error: Error, operation: &str, path: &Path| {
        assert!(matches!(error, Error::Database { .. }), "{error:?}");
        assert!(
            error.to_string().starts_with(&format!("{operation} snapshot {}: ", path.display())),
            "{error}"
        );
    };
    failed(Snapshot::load(at("nothing")).unwrap_err(), "loading", &at("nothing"));
    failed(Snapshot::load(folder.path()).unwrap_err(), "loading", folder.path());
    failed(snapshot.save(at("no/folder")).unwrap_err(), "saving", &at("no/folder"));
    fs::create_dir(at("taken")).unwrap();
    failed(snapshot.save(at("taken")).unwrap_err(), "saving", &at("taken"));
    for path in ["..", "/", ""] {
        assert!(matches!(snapshot.save(path), Err(Error::InvalidUse { .. })), "{path}");
    }
    assert_eq!(names(folder.path()), ["taken"]);

    fs::write(at("cutoff"), &snapshot.to_bytes().unwrap()[..99]).unwrap();
    let error = Snapshot::load(at("cutoff")).unwrap_err().to_string();
    assert!(
        error
            .starts_with(&format!("snapshot: {}: it is truncated: 99 of ", at("cutoff").display())),
        "{error}"
    );
    fs::write(at("foreign"), "SQLite format 3\0").unwrap();
    let error = Snapshot::load(at("foreign")).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("snapshot: {}: it is not a snapshot of keepcount", at("foreign").display())
    );
    fs::write(at("long"), [snapshot.to_bytes().unwrap(), vec![0; 9]].concat()).unwrap();
    assert!(
        Snapshot::load(at("long")).unwrap_err().to_string().contains("it has bytes after its end")
    );
}

/// A killed process leaves its temporary file. A temporary file that another process is still
/// writing is locked, and must not be removed.
#[test]
fn save_removes_only_temporary_files_of_killed_processes() {
    let folder = crate::support::temp_dir();
    let at = |name: &str| folder.path().join(name);
    let (left, held) =
        (".totals.keepcount-00000000000000aa.tmp", ".totals.keepcount-00000000000000bb.tmp");
    let others = [
        ".other.keepcount-00000000000000aa.tmp",
        ".totals.keepcount-notes.tmp",
        ".totals.keepcount-00000000000000aa",
    ];
    for name in [&[left, held][..], &others].concat() {
        fs::write(at(name), "half").unwrap();
    }
    let other = fs::File::open(at(held)).unwrap();
    other.lock().unwrap();
    let snapshot = fixture().snapshot();
    snapshot.save(at("totals")).unwrap();
    let mut kept = [&[held, "totals"][..], &others].concat();
    kept.sort_unstable();
    assert_eq!(names(folder.path()), kept);
    drop(other);
    snapshot.save(at("totals")).unwrap();
    kept.retain(|name| *name != held);
    assert_eq!(names(folder.path()), kept);
    assert_eq!(Snapshot::load(at("totals")).unwrap(), snapshot);
}

#[test]
fn threads_that_save_to_one_file_leave_one_complete_snapshot() {
    let folder = crate::support::temp_dir();
    let path = folder.path().join("totals");
    let snapshots = [1, 2, 3].map(|votes| {
        let (store, mut batch) = (MemoryStore::new(&SITE), Batch::new());
        (0..500).for_each(|setlist| batch.add(VOTES, setlist, votes));
        store.apply(&mut batch.clone()).unwrap();
        store.snapshot()
    });
    snapshots[0].save(&path).unwrap();
    thread::scope(|scope| {
        let savers = snapshots
            .each_ref()
            .map(|snapshot| scope.spawn(|| (0..40).try_for_each(|_| snapshot.save(&path))));
        while !savers.iter().all(thread::ScopedJoinHandle::is_finished) {
            assert!(snapshots.contains(&Snapshot::load(&path).unwrap()));
        }
        for saver in savers {
            saver.join().unwrap().unwrap();
        }
    });
    assert_eq!(names(folder.path()), ["totals"]);
}

const EVENTS: u64 = 6_000;
const STREAMS: [&str; 3] = ["a", "bb", "ccc"];

/// Applies a stream's events from its offset on, in groups of different sizes.
fn replay(store: &MemoryStore, stream: &str, seed: u64, done: impl Fn(u64)) {
    let mut batch = Batch::new();
    let mut last = store.offset(stream);
    while last < EVENTS {
        let first = last + 1;
        last = EVENTS.min(first + Random(first ^ seed << 32).below(9));
        batch.clear();
        (first..=last).for_each(|event| add_event(&mut batch, stream, event));
        assert!(
            !store
                .apply_idempotent(
                    &mut batch.clone(),
                    &StreamRange::new(stream, first, last).unwrap()
                )
                .unwrap()
                .skipped
        );
        done(last);
    }
}

/// Snapshots are saved while three streams are applied, some of whose events move memberships.
/// Whichever file is restored after a crash, a replay from its offsets ends with the same totals as
/// the streams.
#[test]
fn replay_from_the_offsets_of_a_restored_file_is_exact() {
    let folder = crate::support::temp_dir();
    let store = MemoryStore::new(&SITE);
    store.prune(DAYS, 2).unwrap();
    let left = AtomicUsize::new(STREAMS.len());
    let files: Vec<PathBuf> = thread::scope(|scope| {
        for stream in STREAMS {
            let (store, left) = (&store, &left);
            scope.spawn(move || {
                // Slow enough that snapshots are saved meanwhile.
                replay(store, stream, 1, |last| thread::sleep(Duration::from_micros(last % 90)));
                left.fetch_sub(1, Ordering::AcqRel);
            });
        }
        let mut files = Vec::new();
        while left.load(Ordering::Acquire) > 0 && files.len() < 500 {
            files.push(folder.path().join(files.len().to_string()));
            store.snapshot().save(files.last().unwrap()).unwrap();
        }
        files
    });
    let ended = store.snapshot();
    let mut midway = 0;
    // Some of them, since each is followed by a whole replay.
    for (at, file) in files.iter().enumerate().step_by(files.len().div_ceil(60)) {
        let back = restored(&SITE, file);
        midway +=
            usize::from(STREAMS.iter().all(|stream| (1..EVENTS).contains(&back.offset(stream))));
        for stream in STREAMS {
            replay(&back, stream, at as u64, |_| ());
        }
        assert_eq!(back.snapshot(), ended, "{} of {}", at, files.len());
    }
    println!("{} files, {midway} of them in the midst of all streams", files.len());
    assert!(midway > 3, "{midway} of {}", files.len());

    // A single writer ends with the same totals.
    let alone = MemoryStore::new(&SITE);
    alone.prune(DAYS, 2).unwrap();
    for stream in STREAMS {
        replay(&alone, stream, 7, |_| ());
    }
    assert_eq!(alone.snapshot(), ended);
}

#[test]
fn file_of_a_million_totals_has_eleven_bytes_for_each() {
    let folder = crate::support::temp_dir();
    let path = folder.path().join("totals");
    let (store, mut batch) = (MemoryStore::new(&SITE), Batch::new());
    (0..1_000_000).for_each(|setlist| batch.add(VOTES, setlist, 1 + setlist % 200));
    store.apply(&mut batch.clone()).unwrap();
    let mut begun = Instant::now();
    let mut took = || std::mem::replace(&mut begun, Instant::now()).elapsed();
    let snapshot = store.snapshot();
    let taken = took();
    snapshot.save(&path).unwrap();
    let saved = took();
    let loaded = Snapshot::load(&path).unwrap();
    let read = took();
    let back = MemoryStore::restore(&SITE, &loaded).unwrap();
    println!(
        "taken in {taken:.0?}, saved in {saved:.0?}, loaded in {read:.0?}, restored in {:.0?}",
        took()
    );
    let len = fs::metadata(&path).unwrap().len();
    println!("{len} bytes");
    assert!(loaded == snapshot && back.snapshot() == snapshot);
    assert!((10_000_000..11_001_000).contains(&len), "{len}");
}

const SAVER: &str = "KEEPCOUNT_SNAPSHOT_SAVER";
const LOCKSTEP: [&str; 2] = ["one", "two"];

/// The child process of [`a_process_that_is_killed_while_it_saves_leaves_a_whole_file`] runs this
/// test with a file. It continues from the file, counts, and saves until it is killed. Without a
/// file the test does nothing.
#[test]
fn a_saver_in_a_process_of_its_own() {
    let Some(path) = std::env::var_os(SAVER).map(PathBuf::from) else { return };
    let store = if path.exists() { restored(&SITE, &path) } else { MemoryStore::new(&SITE) };
    thread::scope(|scope| {
        for stream in STREAMS {
            let store = &store;
            scope.spawn(move || {
                let (mut batch, mut random) = (Batch::new(), Random(store.offset(stream)));
                for event in store.offset(stream) + 1.. {
                    batch.clear();
                    for key in LOCKSTEP {
                        batch.add(USERS, format!("{key} {stream}"), 1);
                    }
                    batch.add(VOTES, random.int(0, 5_000), 1);
                    store
                        .apply_idempotent(
                            &mut batch.clone(),
                            &StreamRange::new(stream, event, event).unwrap(),
                        )
                        .unwrap();
                }
            });
        }
        let counted = || STREAMS.map(|stream| store.offset(stream)).iter().sum::<u64>();
        let (start, mut told) = (counted(), false);
        // Far more saves than happen before it is killed. The bound ends the process if the parent
        // test was aborted.
        for _ in 0..20_000 {
            let moved = counted() > start;
            store.snapshot().save(&path).unwrap();
            if moved && !told {
                println!("saved");
                told = true;
            }
        }
        std::process::exit(1);
    });
}

/// Checks that the totals of each stream equal its offset. Returns the sum of the offsets.
fn checked_offsets(store: &MemoryStore) -> u64 {
    let mut sum = 0;
    for stream in STREAMS {
        let totals = LOCKSTEP.map(|key| store.total(USERS, format!("{key} {stream}")).unwrap());
        let offset = store.offset(stream);
        assert_eq!(totals.map(|total| u64::try_from(total).unwrap()), [offset; 2], "{stream}");
        sum += offset;
    }
    let votes: i64 = store.totals(VOTES).unwrap().iter().map(|(_, total)| total).sum();
    assert_eq!(u64::try_from(votes).unwrap(), sum);
    sum
}

/// `KEEPCOUNT_CRASH_ROUNDS` raises the number of kills.
#[test]
fn a_process_that_is_killed_while_it_saves_leaves_a_whole_file() {
    let rounds =
        std::env::var("KEEPCOUNT_CRASH_ROUNDS").map_or(12, |rounds| rounds.parse().unwrap());
    let folder = crate::support::temp_dir();
    let path = folder.path().join("totals");
    let (mut before, mut unfinished, mut random) = (0, 0, Random(5));
    for _ in 0..rounds {
        let mut saver = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                &full_test_name(module_path!(), "a_saver_in_a_process_of_its_own"),
                "--nocapture",
            ])
            .env(SAVER, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(saver.stdout.take().unwrap()).lines();
        assert!(
            lines.map(|line| line.unwrap()).any(|line| line.ends_with("saved")),
            "the saver ended by itself"
        );
        thread::sleep(Duration::from_micros(random.below(20_000)));
        saver.kill().unwrap();
        assert!(!saver.wait().unwrap().success(), "the saver ended by itself");

        let now = checked_offsets(&restored(&SITE, &path));
        assert!(now > before, "saved events are lost: {before}, {now}");
        before = now;
        let left = names(folder.path()).len() - 1;
        assert!(left <= 1, "{left} temporary files are left");
        unfinished += left;
    }
    println!("{rounds} kills, {unfinished} of them amid a save; {before} events");
}
