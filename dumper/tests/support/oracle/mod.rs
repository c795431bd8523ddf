//! The oracle: what godwit wrote about a stopped process beside what CRIU wrote about the same one, every image of
//! both, field by field and page by page. A difference counts unless it is listed, and a listed difference names one
//! field of one image with a rule; there is no wildcard but for the index in a list.

mod explained;
pub mod pages;

use super::images;
use super::lab::{self, CriuVersion};
use super::product::godwit;
use super::scene::Scene;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;

pub use explained::EXPLAINED;

/// Files of an image directory that are no images of the process, or are compared page by page.
const BESIDE: [&str; 4] = ["stats-dump", "godwit-manifest.img", "parent", "criu-dump.log"];

/// Entries of the list that explained something, by index, in this run of the tests.
static USED: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());

/// Dumps a stopped process by both, and answers a line for each unexplained difference.
///
/// # Panics
/// When one of them refuses to dump it.
#[track_caller]
pub fn differences(scene: &Scene, pid: i32) -> Vec<String> {
    let (ours, theirs) = (scene.subdir("ours"), scene.subdir("theirs"));
    let text = pid.to_string();
    // Ours first: CRIU's blob dirties the text.
    godwit(scene, &["dump", "--leave-stopped", "--pid", &text, "--images-dir", ours.to_str().unwrap()])
        .expect_ok();
    lab::criu_dump(CriuVersion::V4_2, pid, &theirs, &["--leave-stopped", "--file-locks"]).expect_ok();
    let mut found = compare(&ours, &theirs);
    found.extend(pages::compare(&ours, &theirs, pid));
    found
}

/// Entries of the list that explained nothing since the tests began.
pub fn unused() -> Vec<String> {
    let used = USED.lock().unwrap();
    let unused = EXPLAINED.iter().enumerate().filter(|(index, _)| !used.contains(index));
    unused.map(|(_, entry)| format!("{}{}: {:?}", entry.image, entry.field, entry.rule)).collect()
}

/// Why a field may differ.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// Ids that each dumper counts for itself. They must be one to one: equal on one side, equal on the other.
    Renumbered(&'static str),
    /// A number that may be at most this far apart: a time that passed between the two dumps.
    Within(u64),
    /// godwit writes it and CRIU leaves it out, with this value (`false` is 0).
    OnlyOurs(u64),
    /// godwit writes it and CRIU leaves it out, with this text.
    OnlyOursText(&'static str),
    /// godwit writes it and CRIU leaves it out; the value is that of another field of the same image.
    OnlyOursAs(&'static str),
    /// Both write it, godwit with this value.
    Ours(u64),
    /// godwit's number is smaller by so much.
    Behind(u64),
    /// CRIU writes this value.
    Theirs(u64),
    /// CRIU writes it and godwit leaves it out; the reason stands in the list.
    OnlyTheirs,
    /// CRIU writes it, with this value, and godwit leaves it out.
    OnlyTheirsAs(u64),
    /// Both write it, and the values need not agree; the reason stands in the list.
    Free,
}

/// An explained difference: image (name without number), field path (indices written as `#`), rule, reason.
pub struct Explained {
    pub image: &'static str,
    pub field: &'static str,
    pub rule: Rule,
    pub why: &'static str,
}

/// A flat image: path to value. Lists of equal length are compared by index.
type Fields = BTreeMap<String, Value>;

fn flatten(value: &Value, path: &str, into: &mut Fields) {
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| flatten(value, &format!("{path}/{key}"), into))
        }
        Value::Array(list) => {
            into.insert(format!("{path}/length"), list.len().into());
            list.iter().enumerate().for_each(|(n, value)| flatten(value, &format!("{path}/{n}"), into));
        }
        other => {
            into.insert(path.to_owned(), other.clone());
        }
    }
}

/// `/entries/3/reg/pos` as it stands in the list of explained differences: `/entries/#/reg/pos`.
fn general(path: &str) -> String {
    path.split('/')
        .map(|part| if part.parse::<u64>().is_ok() { "#" } else { part })
        .collect::<Vec<_>>()
        .join("/")
}

/// The image's name without its number: `core-17.img` is `core`.
fn kind(file: &str) -> &str {
    let stem = file.strip_suffix(".img").unwrap_or(file);
    stem.split_once('-').filter(|(_, number)| number.parse::<u64>().is_ok()).map_or(stem, |(kind, _)| kind)
}

/// Pairs of numbers that were seen together, for [`Rule::Renumbered`].
#[derive(Default)]
struct Renumbering {
    ours: BTreeMap<String, Value>,
    theirs: BTreeMap<String, Value>,
}

impl Renumbering {
    fn accepts(&mut self, family: &str, ours: &Value, theirs: &Value) -> bool {
        let forward = self.ours.entry(format!("{family} {ours}")).or_insert_with(|| theirs.clone()) == theirs;
        let backward =
            self.theirs.entry(format!("{family} {theirs}")).or_insert_with(|| ours.clone()) == ours;
        forward && backward
    }
}

/// Compares two image directories of one process; answers one line for each unexplained difference.
fn compare(ours: &Path, theirs: &Path) -> Vec<String> {
    let mut differences = Vec::new();
    let mut renumbering = Renumbering::default();
    let (our_names, their_names) = (names(ours), names(theirs));
    for (our_file, their_file) in pairs(ours, theirs, &mut differences) {
        let (mut our_fields, mut their_fields) = (Fields::new(), Fields::new());
        flatten(&normal(images::decode(&ours.join(&our_file)), &our_names), "", &mut our_fields);
        flatten(&normal(images::decode(&theirs.join(&their_file)), &their_names), "", &mut their_fields);
        let mut paths: Vec<&String> = our_fields.keys().chain(their_fields.keys()).collect();
        paths.sort();
        paths.dedup();
        for path in paths {
            let (a, b) = (our_fields.get(path), their_fields.get(path));
            let (image, field) = (kind(&our_file), general(path));
            let explained = EXPLAINED
                .iter()
                .enumerate()
                .filter(|(_, entry)| entry.image == image && entry.field == field);
            // A renumbering is recorded for equal values too.
            let mut allowed = false;
            for (index, entry) in explained {
                let holds = match entry.rule {
                    Rule::OnlyOursAs(other) => a.is_some() && b.is_none() && a == our_fields.get(other),
                    rule => holds(rule, a, b, &mut renumbering),
                };
                if holds && a != b {
                    USED.lock().unwrap().insert(index);
                }
                allowed |= holds;
            }
            if a != b && !allowed {
                differences.push(format!("{our_file}{path}: godwit {} CRIU {}", show(a), show(b)));
            }
        }
    }
    differences
}

/// The images to compare field by field. One that only one of both wrote is a difference.
fn pairs(ours: &Path, theirs: &Path, differences: &mut Vec<String>) -> Vec<(String, String)> {
    let (mut our_files, mut their_files) = (listed(ours), listed(theirs));
    let mut pairs = Vec::new();
    // Numbered by ids that each dumper counts for itself.
    for family in ["fdinfo", "ghost-file"] {
        let of = |files: &BTreeSet<String>| -> Vec<String> {
            let mut of: Vec<String> =
                files.iter().filter(|name| name.starts_with(&format!("{family}-"))).cloned().collect();
            of.sort_by_key(|name| (name.len(), name.clone()));
            of
        };
        for (our_file, their_file) in of(&our_files).into_iter().zip(of(&their_files)) {
            our_files.remove(&our_file);
            their_files.remove(&their_file);
            pairs.push((our_file, their_file));
        }
    }
    differences
        .extend(our_files.difference(&their_files).map(|name| format!("{name}: only godwit writes it")));
    differences.extend(their_files.difference(&our_files).map(|name| format!("{name}: only CRIU writes it")));
    let both = our_files.intersection(&their_files).filter(|name| !name.starts_with("pagemap-"));
    pairs.extend(both.map(|name| (name.clone(), name.clone())));
    pairs
}

fn listed(dir: &Path) -> BTreeSet<String> {
    let names = std::fs::read_dir(dir).unwrap().flatten();
    names
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| !BESIDE.contains(&name.as_str()) && !name.starts_with("pages-"))
        .collect()
}

fn holds(rule: Rule, ours: Option<&Value>, theirs: Option<&Value>, renumbering: &mut Renumbering) -> bool {
    match (rule, ours, theirs) {
        (Rule::Renumbered(family), Some(a), Some(b)) => renumbering.accepts(family, a, b),
        (Rule::Within(most), Some(a), Some(b)) => {
            a.as_u64().zip(b.as_u64()).is_some_and(|(a, b)| a.abs_diff(b) <= most)
        }
        (Rule::OnlyOurs(value), Some(a), None) => {
            a.as_u64() == Some(value) || (a == &Value::Bool(value != 0))
        }
        (Rule::OnlyOursText(text), Some(a), None) => a.as_str() == Some(text),
        (Rule::Ours(value), Some(a), Some(_)) => a.as_u64() == Some(value),
        (Rule::Theirs(value), Some(_), Some(b)) => b.as_u64() == Some(value),
        (Rule::Behind(by), Some(a), Some(b)) => {
            a.as_u64().zip(b.as_u64()).is_some_and(|(a, b)| a.wrapping_add(by) == b)
        }
        (Rule::OnlyTheirs, None, Some(_)) => true,
        (Rule::OnlyTheirsAs(value), None, Some(b)) => b.as_u64() == Some(value),
        (Rule::Free, Some(_), Some(_)) => true,
        _ => false,
    }
}

/// The path of each regular file in files.img, by its id.
fn names(dir: &Path) -> BTreeMap<u64, Value> {
    let files = images::decode(&dir.join("files.img"));
    let entries = files["entries"].as_array().cloned().unwrap_or_default();
    entries.iter().filter_map(|entry| Some((entry["id"].as_u64()?, entry["reg"]["name"].clone()))).collect()
}

/// Lists whose order means nothing are put in one order, and the files that a process has besides its
/// descriptors are named by their paths.
fn normal(mut image: Value, names: &BTreeMap<u64, Value>) -> Value {
    let magic = image["magic"].as_str().unwrap_or("").to_owned();
    if let Some(entries) = image["entries"].as_array_mut() {
        match magic.as_str() {
            "FDINFO" => entries.sort_by_key(|entry| entry["fd"].as_u64()),
            "FILES" => entries.sort_by_key(file_key),
            "FILE_LOCKS" => entries.sort_by_key(|entry| (entry["fd"].as_u64(), entry["start"].as_u64())),
            "PIPES_DATA" => entries.sort_by_key(|entry| entry["pipe_id"].as_u64()),
            _ => {}
        }
        for entry in entries {
            for field in ["exe_file_id", "cwd_id", "root_id"] {
                if let Some(name) = entry[field].as_u64().and_then(|id| names.get(&id)) {
                    entry[field] = name.clone();
                }
            }
        }
    }
    image
}

/// Everything of a file entry but the numbers that a dumper gives it.
fn file_key(entry: &Value) -> String {
    let (reg, pipe) = (&entry["reg"], &entry["pipe"]);
    format!(
        "{} {} {} {} {} {}",
        entry["type"], reg["name"], reg["flags"], reg["pos"], pipe["pipe_id"], pipe["flags"]
    )
}

fn show(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".to_owned(), |value| value.to_string().chars().take(80).collect())
}
