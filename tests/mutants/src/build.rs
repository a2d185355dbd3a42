//! A copy of the crate with the faults in it, and its tests.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::plant::{Mutant, Planted, plant};

/// What a fault's code asks. It reads the environment, so that children of a test have the fault too.
const SWITCH: &str = r#"//! Which fault is on.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex};

const NONE: u32 = u32::MAX - 2;
/// None is on, and those that are asked for are written down.
const LISTENING: u32 = u32::MAX - 1;
const UNKNOWN: u32 = u32::MAX;
static ON: AtomicU32 = AtomicU32::new(UNKNOWN);

/// In what the compiler evaluates, nothing is on.
#[inline(always)]
pub const fn on(id: u32) -> bool {
    core::intrinsics::const_eval_select((id,), never, is_on)
}

const fn never(_: u32) -> bool {
    false
}

#[inline(always)]
fn is_on(id: u32) -> bool {
    let on = ON.load(Ordering::Relaxed);
    on == id || (on > NONE && ask(id))
}

#[cold]
fn ask(id: u32) -> bool {
    static REACHED: LazyLock<Option<Mutex<(BTreeSet<u32>, File)>>> = LazyLock::new(|| {
        let path = std::env::var("KEEPCOUNT_MUTANTS_REACHED").ok()?;
        let file = OpenOptions::new().create(true).append(true).open(path).ok()?;
        Some(Mutex::new((BTreeSet::new(), file)))
    });
    let Some(reached) = &*REACHED else {
        let on = std::env::var("KEEPCOUNT_MUTANT").ok().and_then(|id| id.parse().ok()).unwrap_or(NONE);
        ON.store(on, Ordering::Relaxed);
        return on == id;
    };
    ON.store(LISTENING, Ordering::Relaxed);
    if let Ok(mut reached) = reached.lock()
        && reached.0.insert(id)
    {
        let _ = reached.1.write_all(format!("{id}\n").as_bytes());
    }
    false
}
"#;

/// So that a constant function can ask too, wherever it runs.
const FEATURES: &str = "#![feature(core_intrinsics, const_eval_select)]\n#![allow(internal_features)]\n";

/// A test binary.
#[derive(Debug, Clone)]
pub struct Suite {
    pub name: String,
    pub path: PathBuf,
}

/// The faults that are not in the build.
#[derive(Debug, Default)]
pub struct Left {
    pub unviable: BTreeSet<u32>,
    /// Those that need a build of their own.
    pub apart: BTreeSet<u32>,
}

impl Left {
    fn has(&self, id: u32) -> bool {
        self.unviable.contains(&id) || self.apart.contains(&id)
    }
}

/// Copies what git knows of.
pub fn copy(root: &Path, tree: &Path) -> io::Result<()> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()?;
    for name in String::from_utf8_lossy(&listed.stdout).split('\0').filter(|name| root.join(name).is_file()) {
        let to = tree.join(name);
        if let Some(folder) = to.parent() {
            std::fs::create_dir_all(folder)?;
        }
        write_if_other(&to, &std::fs::read(root.join(name))?)?;
    }
    write_if_other(&tree.join("src/mutant.rs"), SWITCH.as_bytes())?;
    let lib = std::fs::read_to_string(root.join("src/lib.rs"))?;
    write_if_other(&tree.join("src/lib.rs"), format!("{FEATURES}{lib}\nmod mutant;\n").as_bytes())
}

/// So that cargo builds no more than it has to.
fn write_if_other(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if std::fs::read(path).is_ok_and(|known| known == bytes) { Ok(()) } else { std::fs::write(path, bytes) }
}

/// Plants faults, leaving out more and more of them until the rest compiles.
pub fn plant_all(root: &Path, tree: &Path, mutants: &[Mutant], mut left: Left) -> io::Result<Left> {
    let mut by_file: BTreeMap<&str, Vec<(u32, &Mutant)>> = BTreeMap::new();
    for (id, mutant) in (0..).zip(mutants) {
        by_file.entry(&mutant.file).or_default().push((id, mutant));
    }
    loop {
        let mut planted: BTreeMap<&str, Planted> = BTreeMap::new();
        for (file, mutants) in &by_file {
            let viable: Vec<_> = mutants.iter().filter(|(id, _)| !left.has(*id)).copied().collect();
            let source = std::fs::read_to_string(root.join(file))?;
            let of_file = plant(&source, &viable).map_err(|error| io::Error::other(format!("{file}: {error}")))?;
            write_if_other(&tree.join(file), of_file.text.as_bytes())?;
            left.unviable.extend(&of_file.unviable);
            left.apart.extend(&of_file.apart);
            for id in &of_file.lost {
                println!(
                    "no place found, left out: {}",
                    mutants.iter().find(|(known, _)| known == id).map_or("", |(_, mutant)| &mutant.name)
                );
                left.unviable.insert(*id);
            }
            planted.insert(file, of_file);
        }
        let said = cargo(tree, &["check", "--lib", "--all-features"])?;
        let errors: Vec<&Value> =
            said.iter().map(|line| &line["message"]).filter(|message| message["level"] == "error").collect();
        if errors.is_empty() {
            return Ok(left);
        }
        let before = (left.unviable.len(), left.apart.len());
        for error in &errors {
            // Guards are nothing to the compiler where it looks whether a match has all cases.
            if error["code"]["code"] == "E0004" {
                left.apart.extend(next_arm(error, &planted));
            } else {
                left.unviable.extend(culprits(error, &planted));
            }
        }
        println!("{} errors; {} faults do not compile", errors.len(), left.unviable.len());
        if (left.unviable.len(), left.apart.len()) == before {
            let texts: Vec<&str> = errors.iter().filter_map(|error| error["rendered"].as_str()).collect();
            return Err(io::Error::other(format!(
                "what does not compile is none of the faults:\n{}",
                texts.join("\n")
            )));
        }
    }
}

fn place<'p>(span: &Value, planted: &'p BTreeMap<&str, Planted>) -> Option<(&'p Planted, Range<usize>)> {
    let at = |name: &str| span[name].as_u64().and_then(|at| usize::try_from(at).ok()).unwrap_or(0);
    let file = span["file_name"].as_str().and_then(|name| planted.get(name))?;
    Some((file, at("byte_start")..at("byte_end")))
}

/// The first deleted arm of the match that an error points at.
fn next_arm(error: &Value, planted: &BTreeMap<&str, Planted>) -> Option<u32> {
    let (file, place) = place(&error["spans"][0], planted)?;
    file.arms.iter().find(|(at, _)| *at > place.start).map(|(_, id)| *id)
}

/// The faults whose code an error points at.
fn culprits(error: &Value, planted: &BTreeMap<&str, Planted>) -> Vec<u32> {
    let children = error["children"].as_array().into_iter().flatten();
    let spans: Vec<&Value> =
        [error].into_iter().chain(children).flat_map(|said| said["spans"].as_array().into_iter().flatten()).collect();
    let of = |span: &Value| place(span, planted).map(|(file, place)| file.at(&place)).unwrap_or_default();
    // The narrowest that says something: an error over a whole expression points at all faults within.
    let width = |span: &Value| span["byte_end"].as_u64().unwrap_or(0) - span["byte_start"].as_u64().unwrap_or(0);
    let mut found: Vec<(u64, Vec<u32>)> =
        spans.iter().map(|span| (width(span), of(span))).filter(|(_, ids)| !ids.is_empty()).collect();
    found.sort_by_key(|(width, _)| *width);
    found.into_iter().next().map(|(_, ids)| ids).unwrap_or_default()
}

/// Builds the tests; gives their binaries.
pub fn tests(tree: &Path, suites: &[&str]) -> io::Result<Vec<Suite>> {
    let wanted: Vec<String> =
        suites.iter().map(|name| if *name == "lib" { "--lib".to_owned() } else { format!("--test={name}") }).collect();
    let mut arguments = vec!["test", "--no-run", "--all-features"];
    arguments.extend(wanted.iter().map(String::as_str));
    let said = cargo(tree, &arguments)?;
    let built = said.iter().filter_map(|line| {
        let path = PathBuf::from(line["executable"].as_str()?);
        let kind = line["target"]["kind"][0].as_str()?;
        let name = if kind == "test" { line["target"]["name"].as_str()? } else { "lib" };
        (line["profile"]["test"] == true).then(|| Suite { name: name.to_owned(), path })
    });
    let built: Vec<Suite> = built.collect();
    if built.len() == suites.len() {
        Ok(built)
    } else {
        Err(io::Error::other(format!("the tests do not build: {built:?}")))
    }
}

/// What cargo says, a line each.
fn cargo(tree: &Path, arguments: &[&str]) -> io::Result<Vec<Value>> {
    let said = Command::new("cargo")
        .args(arguments)
        .arg("--message-format=json")
        .current_dir(tree)
        .env("RUSTFLAGS", "-A warnings")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("RUSTC_BOOTSTRAP", "keepcount")
        .env("CARGO_TARGET_DIR", tree.with_file_name("target"))
        .stderr(Stdio::null())
        .output()?;
    Ok(said.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}
