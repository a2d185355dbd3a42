//! Tests whether the tests catch single faults in the core: `just mutants [TEXT [all]]`, for the
//! faults whose names contain TEXT.
//!
//! cargo-mutants lists the faults (`.cargo/mutants.toml`), but builds the crate anew for each,
//! which takes hours. Here all faults are in one build, each behind a switch that the environment
//! sets. Faults in code that the compiler evaluates have no switch, and are only counted. A fault
//! is run against the tests that reach it until one of them fails: against the fast ones if any of
//! them reach it, and with `all` against every one. Results are kept in
//! target/mutants/outcomes.txt. The next run tries the faults that were not caught, and those in
//! files that changed. Remove that file after you remove tests.

mod plant;
mod run;
mod tree;

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap};
use std::fs::OpenOptions;
use std::hash::{Hash, Hasher};
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use plant::Mutant;
use run::{Verdict, run};
use tree::Suite;

/// The test binaries that run for a fault: all whose tests never fail without one. Those of the
/// example `concert` are built by other means.
const BINARIES: &[&str] = &[
    "lib",
    "counters",
    "reconcile",
    "postgres",
    "faults",
    "concurrency",
    "monitoring",
    "simulation",
];
/// Slower suites run only for faults that no faster suite reaches; and for all missed faults, with
/// `just mutants TEXT all`.
const SLOW: Duration = Duration::from_millis(2_600);
const WORKERS: usize = 2;
/// The length of the list in switch.rs.
const MAX_FAULTS: usize = 1 << 13;
/// A suite that hangs is stopped after this multiple of its time without a fault, plus these
/// seconds.
const PATIENCE: u32 = 12;
const PATIENCE_MORE: Duration = Duration::from_secs(25);

struct Measured {
    suite: Suite,
    time: Duration,
    reached: BTreeSet<u32>,
}

fn main() -> io::Result<ExitCode> {
    let root = std::env::current_dir()?;
    let filter = std::env::args().nth(1).unwrap_or_default();
    let all = std::env::args().nth(2).is_some_and(|all| all == "all");
    let home = root.join("target/mutants");
    let tree = home.join("tree");
    std::fs::create_dir_all(&tree)?;
    let mutants = listed(&root)?;
    if mutants.len() > MAX_FAULTS {
        return Err(io::Error::other(format!(
            "{} faults, more than switch.rs has room for",
            mutants.len()
        )));
    }
    tree::copy(&root, &tree, &mutants)?;
    let keys = keys(&root, &mutants)?;
    let outcomes = home.join("outcomes.txt");
    let known = known(&outcomes);
    let known_as = |what: &str| {
        (0..)
            .zip(&keys)
            .filter(|(_, key)| known.get(*key).is_some_and(|outcome| outcome == what))
            .map(|(id, _)| id)
            .collect()
    };
    let left = tree::Left { unviable: known_as("unviable"), apart: known_as("apart") };
    let left = tree::plant_all(&root, &tree, &mutants, left)?;
    println!(
        "{} faults: {} do not compile, {} have no switch",
        mutants.len(),
        left.unviable.len(),
        left.apart.len()
    );
    let is_open = |(id, mutant): &(u32, &Mutant)| {
        let caught = known
            .get(&keys[*id as usize])
            .is_some_and(|outcome| outcome == "caught" || outcome == "timeout");
        !caught
            && !left.unviable.contains(id)
            && !left.apart.contains(id)
            && mutant.name.contains(&filter)
    };
    let mut open: Vec<(u32, &Mutant)> = (0..).zip(&mutants).filter(is_open).collect();
    for (what, ids) in [("unviable", &left.unviable), ("apart", &left.apart)] {
        for key in ids.iter().map(|id| &keys[*id as usize]).filter(|key| !known.contains_key(*key))
        {
            note(&outcomes, what, key)?;
        }
    }
    let mut suites = Vec::new();
    for suite in tree::tests(&tree, BINARIES)? {
        let name = suite.name.clone();
        let Some(measured) = measure(&home, &tree, suite)? else {
            println!("left out, since it fails here without a fault: {name}");
            continue;
        };
        println!(
            "{:>8.2?} {:5} faults reached: {}",
            measured.time,
            measured.reached.len(),
            measured.suite.name
        );
        suites.push(measured);
    }
    // Faults with fast suites come first.
    let soonest = |id: u32| {
        suites.iter().filter(|suite| suite.reached.contains(&id)).map(|suite| suite.time).min()
    };
    open.sort_by_cached_key(|(id, _)| soonest(*id));
    println!("{} faults to be tried", open.len());
    let (next, report, luck) = (AtomicUsize::new(0), Mutex::new(()), Mutex::new(Luck::new()));
    let work = |worker: usize| -> io::Result<()> {
        while let Some((id, mutant)) = open.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (outcome, by) = try_one(&tree, &suites, &luck, all, worker, *id, mutant)?;
            let _alone = report.lock();
            println!("{outcome:8} {by:20} {}", mutant.name);
            note(&outcomes, outcome, &keys[*id as usize])?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..WORKERS).map(|worker| scope.spawn(move || work(worker))).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().map_err(|_| io::Error::other("a worker panicked"))?
        })
    })?;
    Ok(if summary(&outcomes, &mutants, &keys) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The faults of the crate as it is.
fn listed(root: &Path) -> io::Result<Vec<Mutant>> {
    let said =
        Command::new("cargo").args(["mutants", "--list", "--json"]).current_dir(root).output()?;
    if !said.status.success() {
        return Err(io::Error::other(format!(
            "cargo mutants: {}",
            String::from_utf8_lossy(&said.stderr)
        )));
    }
    Ok(serde_json::from_slice(&said.stdout)?)
}

/// The key of each fault's outcome: its name, and a hash of its file without the file's tests.
fn keys(root: &Path, mutants: &[Mutant]) -> io::Result<Vec<String>> {
    let mut hashes: HashMap<&str, u64> = HashMap::new();
    for mutant in mutants {
        if !hashes.contains_key(mutant.file.as_str()) {
            let mut hash = DefaultHasher::new();
            let source = std::fs::read_to_string(root.join(&mutant.file))?;
            source.split("\n#[cfg(test)]\nmod tests {").next().hash(&mut hash);
            hashes.insert(&mutant.file, hash.finish());
        }
    }
    Ok(mutants
        .iter()
        .map(|mutant| format!("{:016x} {}", hashes[mutant.file.as_str()], mutant.name))
        .collect())
}

fn known(outcomes: &Path) -> HashMap<String, String> {
    let text = std::fs::read_to_string(outcomes).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(outcome, key)| (key.to_owned(), outcome.to_owned()))
        .collect()
}

fn note(outcomes: &Path, outcome: &str, key: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(outcomes)?;
    writeln!(file, "{outcome} {key}")
}

/// Runs a suite without a fault, unless its binary has not changed since the last time. Returns
/// which faults it reaches and how long it takes, or None if it fails.
fn measure(home: &Path, tree: &Path, suite: Suite) -> io::Result<Option<Measured>> {
    let known = home.join(format!("reached-{}.txt", suite.name.replace("::", "-")));
    let listened = known.with_extension("new");
    let built = format!("{:?}", std::fs::metadata(&suite.path)?.modified()?);
    let ids = |text: &str| text.lines().filter_map(|id| id.parse().ok()).collect();
    let text = std::fs::read_to_string(&known).unwrap_or_default();
    if let Some((head, reached)) = text.split_once('\n')
        && let Some((seconds, of)) = head.split_once(' ')
        && let (Ok(seconds), true) = (seconds.parse(), of == built)
    {
        return Ok(Some(Measured {
            suite,
            time: Duration::from_secs_f64(seconds),
            reached: ids(reached),
        }));
    }
    let _ = std::fs::remove_file(&listened);
    let listening = [("KEEPCOUNT_MUTANTS_REACHED", listened.display().to_string())];
    let (heard, _) = run(tree, &suite, 0, &listening, Duration::from_mins(5))?;
    let (verdict, time) = run(tree, &suite, 0, &[], Duration::from_mins(5))?;
    if (heard, verdict) != (Verdict::Passed, Verdict::Passed) {
        return Ok(None);
    }
    let reached = std::fs::read_to_string(&listened).unwrap_or_default();
    std::fs::write(&known, format!("{} {built}\n{reached}", time.as_secs_f64()))?;
    Ok(Some(Measured { suite, time, reached: ids(&reached) }))
}

/// How often each suite was tried for the faults of a file, and how often it caught one.
type Luck = HashMap<(String, String), (u32, u32)>;

/// Runs a fault against the suites that reach it. Suites that are likely to catch it soon come
/// first, by how they did with other faults of the file.
fn try_one(
    tree: &Path,
    suites: &[Measured],
    luck: &Mutex<Luck>,
    all: bool,
    worker: usize,
    id: u32,
    mutant: &Mutant,
) -> io::Result<(&'static str, String)> {
    let settings = [("KEEPCOUNT_MUTANT", id.to_string())];
    let key = |measured: &Measured| (mutant.file.clone(), measured.suite.name.clone());
    let costs = |measured: &Measured| {
        let luck = luck.lock().unwrap_or_else(PoisonError::into_inner);
        let (tried, caught) = luck.get(&key(measured)).copied().unwrap_or_default();
        measured.time.as_secs_f64() * f64::from(tried + 2) / f64::from(caught + 1)
    };
    let mut reach: Vec<(f64, &Measured)> = suites
        .iter()
        .filter(|suite| suite.reached.contains(&id))
        .map(|suite| (costs(suite), suite))
        .collect();
    let reached = !reach.is_empty();
    if !all && reach.iter().any(|(_, measured)| measured.time < SLOW) {
        reach.retain(|(_, measured)| measured.time < SLOW);
    }
    reach.sort_by(|one, other| one.0.total_cmp(&other.0));
    for (_, measured) in reach {
        let most = measured.time * PATIENCE + PATIENCE_MORE;
        let verdict = run(tree, &measured.suite, worker, &settings, most)?.0;
        let mut luck = luck.lock().unwrap_or_else(PoisonError::into_inner);
        let (tried, caught) = luck.entry(key(measured)).or_default();
        *tried += 1;
        *caught += u32::from(verdict != Verdict::Passed);
        match verdict {
            Verdict::Passed => {}
            Verdict::Failed => return Ok(("caught", measured.suite.name.clone())),
            Verdict::TimedOut => return Ok(("timeout", measured.suite.name.clone())),
        }
    }
    Ok((if reached { "missed" } else { "unreached" }, String::new()))
}

/// Prints the outcomes. Returns whether no fault was missed.
fn summary(outcomes: &Path, mutants: &[Mutant], keys: &[String]) -> bool {
    let known = known(outcomes);
    let of = |key: &String| known.get(key).map_or("not tried", String::as_str);
    for what in ["caught", "timeout", "missed", "unreached", "unviable", "apart", "not tried"] {
        println!("{what:10} {:5}", keys.iter().filter(|key| of(key) == what).count());
    }
    let left = ["missed", "unreached", "apart"];
    for (mutant, key) in mutants.iter().zip(keys).filter(|(_, key)| left.contains(&of(key))) {
        println!("{}: {}", of(key), mutant.name);
    }
    !keys.iter().any(|key| left.contains(&of(key)))
}
