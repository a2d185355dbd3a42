//! A copy of the crate with the faults in it, and its tests.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::plant::{Mutant, Planted, plant};

const SWITCH: &str = include_str!("switch.rs");

/// Lets a constant function ask for its switch at run time.
const FEATURES: &str =
    "#![feature(core_intrinsics, const_eval_select)]\n#![allow(internal_features)]\n";

/// A test binary, or a module of one.
#[derive(Debug, Clone)]
pub struct Suite {
    pub name: String,
    pub path: PathBuf,
    /// The prefix of its tests' names. Empty if it is the whole binary.
    pub within: String,
}

/// The faults that are not in the build.
#[derive(Debug, Default)]
pub struct Left {
    pub unviable: BTreeSet<u32>,
    /// Faults without a switch. cargo-mutants itself can try them.
    pub apart: BTreeSet<u32>,
}

impl Left {
    fn has(&self, id: u32) -> bool {
        self.unviable.contains(&id) || self.apart.contains(&id)
    }
}

/// Copies the files that git lists, except those that faults are planted into.
pub fn copy(root: &Path, tree: &Path, mutants: &[Mutant]) -> io::Result<()> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()?;
    let planted: BTreeSet<&str> =
        mutants.iter().map(|mutant| mutant.file.as_str()).chain(["src/lib.rs"]).collect();
    let listed = String::from_utf8_lossy(&listed.stdout);
    for name in
        listed.split('\0').filter(|name| root.join(name).is_file() && !planted.contains(name))
    {
        write_if_other(&tree.join(name), &std::fs::read(root.join(name))?)?;
    }
    write_if_other(&tree.join("src/mutant.rs"), SWITCH.as_bytes())?;
    let lib = std::fs::read_to_string(root.join("src/lib.rs"))?;
    write_if_other(&tree.join("src/lib.rs"), format!("{FEATURES}{lib}\nmod mutant;\n").as_bytes())
}

/// Writes only a file that changes, so that cargo rebuilds no more than necessary.
fn write_if_other(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if std::fs::read(path).is_ok_and(|known| known == bytes) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, bytes)
}

/// Plants faults, and leaves out those that do not compile until the rest compiles.
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
            let of_file = plant(&source, &viable)
                .map_err(|error| io::Error::other(format!("{file}: {error}")))?;
            write_if_other(&tree.join(file), of_file.text.as_bytes())?;
            left.unviable.extend(&of_file.unviable);
            left.apart.extend(&of_file.apart);
            planted.insert(file, of_file);
        }
        let said = cargo(tree, &["check", "--lib", "--all-features"])?;
        let errors: Vec<&Value> = said
            .iter()
            .map(|line| &line["message"])
            .filter(|message| message["level"] == "error")
            .collect();
        if errors.is_empty() {
            return Ok(left);
        }
        let before = (left.unviable.len(), left.apart.len());
        for error in &errors {
            // A guarded arm does not count when the compiler checks whether a match is exhaustive.
            if error["code"]["code"] == "E0004" {
                left.apart.extend(next_arm(error, &planted));
            } else {
                left.unviable.extend(culprits(error, &planted));
            }
        }
        println!("{} errors; {} faults do not compile", errors.len(), left.unviable.len());
        if (left.unviable.len(), left.apart.len()) == before {
            let texts: Vec<&str> =
                errors.iter().filter_map(|error| error["rendered"].as_str()).collect();
            return Err(io::Error::other(format!(
                "the errors are not in the faults:\n{}",
                texts.join("\n")
            )));
        }
    }
}

fn place<'p>(
    span: &Value,
    planted: &'p BTreeMap<&str, Planted>,
) -> Option<(&'p Planted, Range<usize>)> {
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
    let spans: Vec<&Value> = [error]
        .into_iter()
        .chain(children)
        .flat_map(|said| said["spans"].as_array().into_iter().flatten())
        .collect();
    let of = |span: &Value| {
        place(span, planted).map(|(file, place)| file.at(&place)).unwrap_or_default()
    };
    // The narrowest span that contains a fault: an error over a whole expression points at all
    // faults within it.
    let width = |span: &Value| {
        span["byte_end"].as_u64().unwrap_or(0) - span["byte_start"].as_u64().unwrap_or(0)
    };
    let mut found: Vec<(u64, Vec<u32>)> = spans
        .iter()
        .map(|span| (width(span), of(span)))
        .filter(|(_, ids)| !ids.is_empty())
        .collect();
    found.sort_by_key(|(width, _)| *width);
    found.into_iter().next().map(|(_, ids)| ids).unwrap_or_default()
}

/// Builds these test binaries. Returns their suites: one for each module, or the whole binary if
/// some tests are in none, as the crate's own are.
pub fn tests(tree: &Path, binaries: &[&str]) -> io::Result<Vec<Suite>> {
    let wanted: Vec<String> = binaries
        .iter()
        .map(|name| if *name == "lib" { "--lib".to_owned() } else { format!("--test={name}") })
        .collect();
    let mut arguments = vec!["test", "--no-run", "--all-features"];
    arguments.extend(wanted.iter().map(String::as_str));
    let said = cargo(tree, &arguments)?;
    let built = said.iter().filter_map(|line| {
        let path = PathBuf::from(line["executable"].as_str()?);
        let kind = line["target"]["kind"][0].as_str()?;
        let name = if kind == "test" { line["target"]["name"].as_str()? } else { "lib" };
        (line["profile"]["test"] == true).then(|| (name.to_owned(), path))
    });
    let built: BTreeMap<String, PathBuf> = built.collect();
    let mut suites = Vec::new();
    for name in binaries {
        let path = built
            .get(*name)
            .ok_or_else(|| io::Error::other(format!("the tests do not build: {built:?}")))?;
        let whole = Suite { name: (*name).to_owned(), path: path.clone(), within: String::new() };
        match modules(path)?.filter(|_| *name != "lib") {
            Some(modules) => suites.extend(modules.into_iter().map(|module| Suite {
                name: format!("{name}::{module}"),
                within: format!("{module}::"),
                ..whole.clone()
            })),
            None => suites.push(whole),
        }
    }
    Ok(suites)
}

/// The modules of a test binary; `None` if some tests are in none.
fn modules(path: &Path) -> io::Result<Option<BTreeSet<String>>> {
    let said = Command::new(path).args(["--list", "--format=terse"]).output()?;
    let listed = String::from_utf8_lossy(&said.stdout);
    let tests = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(tests.map(|test| Some(test.split_once("::")?.0.to_owned())).collect())
}

/// Cargo's messages, one for each line. A build that fails to compile is not an error here.
fn cargo(tree: &Path, arguments: &[&str]) -> io::Result<Vec<Value>> {
    let said = Command::new("cargo")
        .args(arguments)
        .arg("--message-format=json")
        .current_dir(tree)
        .env("RUSTFLAGS", "-A warnings")
        .env("CARGO_TARGET_DIR", tree.with_file_name("target"))
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("RUSTC_BOOTSTRAP", "keepcount")
        .output()?;
    let lines: Vec<Value> = said
        .stdout
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect();
    if said.status.success() || lines.iter().any(|line| line["message"]["level"] == "error") {
        return Ok(lines);
    }
    Err(io::Error::other(String::from_utf8_lossy(&said.stderr).into_owned()))
}
