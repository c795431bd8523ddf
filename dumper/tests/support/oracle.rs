//! The oracle: what godwit wrote about a stopped process beside what CRIU wrote about the same one, field by
//! field. A difference counts unless it is listed, and a listed difference names one field of one image with a
//! rule; there is no wildcard but for the index in a list.

use super::images;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

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
pub fn compare(ours: &Path, theirs: &Path, files: &[(&str, &str)], list: &[Explained]) -> Vec<String> {
    let mut differences = Vec::new();
    let mut renumbering = Renumbering::default();
    let (our_names, their_names) = (names(ours), names(theirs));
    for (our_file, their_file) in files {
        let (mut our_fields, mut their_fields) = (Fields::new(), Fields::new());
        flatten(&normal(images::decode(&ours.join(our_file)), &our_names), "", &mut our_fields);
        flatten(&normal(images::decode(&theirs.join(their_file)), &their_names), "", &mut their_fields);
        let mut paths: Vec<&String> = our_fields.keys().chain(their_fields.keys()).collect();
        paths.sort();
        paths.dedup();
        for path in paths {
            let (a, b) = (our_fields.get(path), their_fields.get(path));
            let explained =
                list.iter().filter(|entry| entry.image == kind(our_file) && entry.field == general(path));
            // A renumbering is recorded for equal values too.
            let mut allowed = false;
            for entry in explained {
                allowed |= match entry.rule {
                    Rule::OnlyOursAs(other) => a.is_some() && b.is_none() && a == our_fields.get(other),
                    rule => holds(rule, a, b, &mut renumbering),
                };
            }
            if a != b && !allowed {
                differences.push(format!("{our_file}{path}: godwit {} CRIU {}", show(a), show(b)));
            }
        }
    }
    differences
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
