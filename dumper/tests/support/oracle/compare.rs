//! Two image directories of one process or tree, compared.

use super::explained::EXPLAINED;
use super::pages;
use crate::support::{child::run, lab};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    /// Both write it, godwit with these bits set beside CRIU's.
    OursWith(u64),
    /// Both write it, and these bits need not agree.
    ButFor(u64),
    /// godwit's number is smaller by so much.
    Behind(u64),
    /// CRIU writes this value.
    Theirs(u64),
    /// godwit writes it and CRIU leaves it out; the reason stands in the list.
    OnlyOursAny,
    /// CRIU writes it and godwit leaves it out; the reason stands in the list.
    OnlyTheirs,
    /// The same, with this value.
    OnlyTheirsIs(u64),
    /// The same, on some machines.
    OnlyTheirsHere(u64),
    /// Both write it, and the values need not agree; the reason stands in the list.
    Free,
    /// The same, for what goes on between the two dumps, and may be equal by chance.
    Moves,
}

/// An explained difference: image (name without number), field path (indices written as `#`), rule, reason.
///
/// Two fields are made up: `(file)` is the image as such, which one of both did not write; the fields of the image
/// `pages` are the kinds of differences of single pages, see [`pages`].
pub struct Explained {
    pub image: &'static str,
    pub field: &'static str,
    pub rule: Rule,
    pub why: &'static str,
}

impl Rule {
    /// Whether a run over everything may not need it, by chance.
    pub fn is_of_chance(self) -> bool {
        matches!(self, Rule::Within(_) | Rule::Moves | Rule::ButFor(_) | Rule::OnlyTheirsHere(_))
    }
}

/// The outcome.
#[derive(Default)]
pub struct Compared {
    /// One line for each unexplained difference.
    pub differences: Vec<String>,
    /// The entries of the list that explained a difference.
    pub used: BTreeSet<usize>,
    pub fields: usize,
    pub pages: usize,
    renumbering: Renumbering,
}

/// An image directory, decoded.
pub struct Dir {
    pub path: PathBuf,
    pub images: BTreeMap<String, Value>,
}

impl Dir {
    /// # Errors
    /// With the lab's words.
    pub fn read(path: &Path) -> Result<Self, String> {
        let mut decode = lab::command();
        decode.arg("decode").arg(path);
        let decoded = run(decode, Duration::from_secs(60));
        if !decoded.ok() {
            return Err(decoded.to_string());
        }
        let mut images = serde_json::from_str(&decoded.stdout).map_err(|error| error.to_string())?;
        each_thread_its_filters(&mut images);
        Ok(Self { path: path.to_owned(), images })
    }

    /// The records of an image; none where there is no such file.
    pub fn entries(&self, name: &str) -> &[Value] {
        let entries = self.images.get(name).and_then(|image| image["entries"].as_array());
        entries.map_or(&[], Vec::as_slice)
    }

    /// What stands for an image that has another number in each directory: what it is about.
    fn key(&self, name: &str) -> String {
        let (kind, number) = split(name);
        match (kind, number) {
            ("fdinfo", Some(id)) => format!("fdinfo of {:?}", self.owner(|ids| ids["files_id"] == id)),
            ("pagemap-shmem", Some(id)) => format!("pagemap-shmem at {:x?}", self.first_shared(id)),
            ("ghost-file", Some(id)) => format!("ghost-file of {}", self.ghost(id)),
            _ => name.to_owned(),
        }
    }

    /// The task whose ids image says so.
    fn owner(&self, is: impl Fn(&Value) -> bool) -> Option<String> {
        let mut ids = self.images.iter().filter(|(name, _)| split(name).0 == "ids");
        ids.find(|(_, image)| is(&image["entries"][0])).map(|(name, _)| name.clone())
    }

    /// The first task that maps a shared memory segment, and where its first mapping of it begins: addresses alone mean
    /// different segments in different tasks.
    fn first_shared(&self, id: u64) -> Option<(u64, u64)> {
        let tasks = self.images.iter().filter_map(|(name, mm)| match split(name) {
            ("mm", Some(task)) => Some((task, mm)),
            _ => None,
        });
        let starts = tasks.flat_map(|(task, mm)| {
            let vmas = mm["entries"][0]["vmas"].as_array().into_iter().flatten();
            let mapped = vmas.filter(|vma| vma["shmid"] == id);
            mapped.filter_map(|vma| vma["start"].as_u64()).map(move |start| (task, start)).collect::<Vec<_>>()
        });
        starts.min()
    }

    /// The path that a file without a name had.
    fn ghost(&self, id: u64) -> String {
        let remaps = self.entries("remap-fpath.img").iter().filter(|remap| remap["remap_id"] == id);
        let mut ids = remaps.filter_map(|remap| remap["orig_id"].as_u64());
        ids.find_map(|id| {
            self.entries("files.img")
                .iter()
                .find(|file| file["id"] == id)
                .map(|file| name_of(file).to_string())
        })
        .unwrap_or_else(|| "nothing".to_owned())
    }
}

impl Dir {
    /// Who has which file of files.img, and its id: a descriptor, or a process by its program, directories and mappings.
    fn places(&self) -> BTreeMap<Place, u64> {
        let mut places = BTreeMap::new();
        for (name, image) in &self.images {
            let (kind, number) = split(name);
            let task = number.unwrap_or_default();
            for entry in image["entries"].as_array().into_iter().flatten() {
                let mut add = |place: String, id: &Value, is_descriptor: bool| {
                    places.extend(id.as_u64().map(|id| (Place { place, is_descriptor }, id)));
                };
                match kind {
                    "fdinfo" => add(format!("{OF}{}: {}", self.key(name), entry["fd"]), &entry["id"], true),
                    "fs" => {
                        add(format!("{OF}cwd of {task}"), &entry["cwd_id"], false);
                        add(format!("{OF}root of {task}"), &entry["root_id"], false);
                    }
                    "mm" => {
                        add(format!("{OF}program of {task}"), &entry["exe_file_id"], false);
                        let vmas = entry["vmas"].as_array().into_iter().flatten();
                        for vma in vmas.filter(|vma| is_of_file(vma)) {
                            let start = vma["start"].as_u64().unwrap_or_default();
                            add(format!("{MAPPING}{task} at {start:#x}"), &vma["shmid"], false);
                        }
                    }
                    _ => {}
                }
            }
        }
        places
    }

    /// files.img by who has each file. That processes have one entry together means something for open files only: what
    /// else they have is opened for each by its path.
    fn files_by_place(&self) -> Value {
        let places = self.places();
        let descriptors: BTreeSet<u64> =
            places.iter().filter(|(place, _)| place.is_descriptor).map(|(_, id)| *id).collect();
        let had: BTreeSet<u64> = places.values().copied().collect();
        let by_id: BTreeMap<u64, &Value> =
            self.entries("files.img").iter().filter_map(|file| Some((file["id"].as_u64()?, file))).collect();
        let mut files = serde_json::Map::new();
        for (place, id) in places {
            let mut file = by_id.get(&id).map_or(Value::Null, |file| (*file).clone());
            if !place.is_descriptor {
                of_path(&mut file, place.place.starts_with(MAPPING), descriptors.contains(&id));
            }
            files.insert(place.place, file);
        }
        let mut nobodys: Vec<&Value> =
            by_id.iter().filter(|(id, _)| !had.contains(id)).map(|(_, file)| *file).collect();
        nobodys.sort_by_key(|file| file_key(file));
        for (n, file) in nobodys.into_iter().enumerate() {
            files.insert(format!("{OF}nobody, {n}"), file.clone());
        }
        files.into()
    }

    /// Whether `pid`, inside, is a process that has ended.
    fn is_dead(&self, pid: &Value) -> bool {
        const DEAD: u64 = 2;
        let state = &self.entries(&format!("core-{pid}.img"))[0]["tc"]["task_state"];
        *state == "dead" || *state == DEAD
    }
}

/// Begins the place of a mapping's file.
const MAPPING: &str = "@mapping of ";

/// The entry of a file that is opened by its path: without its id, but with `is_open` for whether a descriptor has the same
/// entry, and for a mapping with what its restore does not look at under names of its own.
fn of_path(file: &mut Value, is_mapped: bool, is_open: bool) {
    for (field, value) in file.as_object_mut().into_iter().flatten() {
        match value.as_object_mut() {
            Some(record) => {
                record.remove("id");
                for (name, unused) in [("flags", "flags_unused"), ("pos", "pos_unused")] {
                    if is_mapped && let Some(value) = record.remove(name) {
                        record.insert(unused.to_owned(), value);
                    }
                }
            }
            None if field == "id" => *value = Value::Null,
            None => {}
        }
    }
    file["is_open"] = u64::from(is_open).into();
}

/// Where a file is had.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    place: String,
    is_descriptor: bool,
}

/// Puts every thread's seccomp filters, oldest first, into its own record. godwit writes filters that are the same for all
/// threads once, with SECCOMP_FILTER_FLAG_TSYNC, in cases where CRIU writes them for each: what each thread gets by that
/// is compared.
fn each_thread_its_filters(images: &mut BTreeMap<String, Value>) {
    const TSYNC: u64 = 1;
    let filters =
        match images.get_mut("seccomp.img").and_then(|image| image.pointer_mut("/entries/0/seccomp_filters"))
        {
            Some(filters) => filters.take(),
            None => return,
        };
    let filters = filters.as_array().cloned().unwrap_or_default();
    let flags = |filter: &Value| filter["flags"].as_u64().unwrap_or(0);
    let named = |at: &Value| at.as_u64().and_then(|at| filters.get(usize::try_from(at).ok()?));
    let cores = || images.iter().filter(|(name, _)| split(name).0 == "core");
    let mut for_all = Vec::new();
    let mut own: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (name, core) in cores() {
        let mut chain = Vec::new();
        let mut at = named(&core["entries"][0]["thread_core"]["seccomp_filter"]);
        while let Some(filter) = at.filter(|_| chain.len() <= filters.len()) {
            let plain = serde_json::json!({"filter": filter["filter"], "flags": flags(filter) & !TSYNC});
            if flags(filter) & TSYNC != 0 {
                for_all.push(plain.clone());
            }
            chain.push(plain);
            at = named(&filter["prev"]);
        }
        own.insert(name.clone(), chain);
    }
    for (name, mut chain) in own {
        let Some(thread) = images.get_mut(&name).and_then(|core| core.pointer_mut("/entries/0/thread_core"))
        else {
            continue;
        };
        // godwit calls those that get them so "disabled", CRIU leaves that out.
        let has_none = thread["seccomp_mode"].is_null() || thread["seccomp_mode"] == "disabled";
        if chain.is_empty() && has_none && !for_all.is_empty() {
            thread["seccomp_mode"] = "filter".into();
            chain = for_all.clone();
        }
        thread["seccomp_filter"] = chain.into();
    }
}

/// `core-17.img` is `core` and 17; ghost files are numbered in hex.
fn split(file: &str) -> (&str, Option<u64>) {
    let stem = file.strip_suffix(".img").unwrap_or(file);
    let Some((kind, number)) = stem.rsplit_once('-') else { return (stem, None) };
    let radix = if kind == "ghost-file" { 16 } else { 10 };
    u64::from_str_radix(number, radix).map_or((stem, None), |number| (kind, Some(number)))
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

/// Begins what stands in the place of an index: what an entry is of.
const OF: char = '@';

/// `/entries/3/reg/pos` as it stands in the list of explained differences: `/entries/#/reg/pos`.
fn general(path: &str) -> String {
    path.split('/')
        .map(|part| if part.starts_with(OF) || part.parse::<u64>().is_ok() { "#" } else { part })
        .collect::<Vec<_>>()
        .join("/")
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

impl Compared {
    /// Judges one field: what ours and theirs hold there.
    pub fn field(&mut self, file: &str, path: &str, a: Option<&Value>, b: Option<&Value>, of: &Fields) {
        self.fields += 1;
        let (kind, general) = (split(file).0, general(path));
        let mut allowed = false;
        let listed = EXPLAINED.iter().enumerate();
        for (n, entry) in listed.filter(|(_, entry)| entry.image == kind && entry.field == general) {
            // A renumbering is recorded for equal values too.
            let explains = match entry.rule {
                Rule::OnlyOursAs(other) => a.is_some() && b.is_none() && a == of.get(other),
                rule => holds(rule, a, b, &mut self.renumbering),
            };
            // Agreement in other numbers, too, is something that the rule has checked.
            if explains && (a != b || matches!(entry.rule, Rule::Renumbered(_))) {
                self.used.insert(n);
            }
            allowed |= explains;
        }
        if a != b && !allowed {
            self.differences.push(format!("{file} {path}: godwit {} CRIU {}", show(a), show(b)));
        }
    }
}

/// Compares two image directories of the tree of process `pid`, which still exists.
pub fn compare(ours: &Dir, theirs: &Dir, pid: i32) -> Compared {
    let mut compared = Compared::default();
    let keyed = |dir: &Dir| dir.images.keys().map(|name| (dir.key(name), name.clone())).collect();
    let (our_keys, their_keys): (BTreeMap<String, String>, BTreeMap<String, String>) =
        (keyed(ours), keyed(theirs));
    let (our_names, their_names) = (names(ours), names(theirs));
    let written = Value::from("written");
    let keys: BTreeSet<&String> = our_keys.keys().chain(their_keys.keys()).collect();
    for key in keys {
        let (a, b) = (our_keys.get(key), their_keys.get(key));
        let file = a.or(b).unwrap();
        compared.field(file, "(file)", a.map(|_| &written), b.map(|_| &written), &Fields::new());
        // Page lists are compared by what they list.
        let (Some(a), Some(b), false) = (a, b, key.starts_with("pagemap")) else { continue };
        let (mut our_fields, mut their_fields) = (Fields::new(), Fields::new());
        flatten(&normal(a, ours, &our_names), "", &mut our_fields);
        flatten(&normal(b, theirs, &their_names), "", &mut their_fields);
        let paths: BTreeSet<&String> = our_fields.keys().chain(their_fields.keys()).collect();
        for path in paths {
            compared.field(file, path, our_fields.get(path), their_fields.get(path), &our_fields);
        }
    }
    for (key, our_name) in our_keys.iter().filter(|(key, _)| key.starts_with("pagemap")) {
        if let Some(their_name) = their_keys.get(key) {
            let task = match split(our_name) {
                ("pagemap", Some(task)) => i32::try_from(task).unwrap_or(pid),
                _ => pid,
            };
            pages::compare(&mut compared, (ours, our_name), (theirs, their_name), task);
        }
    }
    compared
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
        (Rule::OursWith(bits), Some(a), Some(b)) => {
            a.as_u64().zip(b.as_u64()).is_some_and(|(a, b)| a == b | bits && b & bits == 0)
        }
        (Rule::ButFor(bits), Some(a), Some(b)) => {
            a.as_u64().zip(b.as_u64()).is_some_and(|(a, b)| (a ^ b) & !bits == 0)
        }
        (Rule::OnlyOursAny, Some(_), None) | (Rule::OnlyTheirs, None, Some(_)) => true,
        (Rule::OnlyTheirsIs(value) | Rule::OnlyTheirsHere(value), None, Some(b)) => b.as_u64() == Some(value),
        (Rule::Free | Rule::Moves, Some(_), Some(_)) => true,
        _ => false,
    }
}

/// The name of each file in files.img, by its id.
fn names(dir: &Dir) -> BTreeMap<u64, Value> {
    let files = dir.entries("files.img").iter();
    files.filter_map(|file| Some((file["id"].as_u64()?, name_of(file)))).collect()
}

/// The path of a file, or what else tells it from others.
fn name_of(file: &Value) -> Value {
    let kinds = ["reg", "memfd", "fifo", "pipe", "eventfd", "usk"].iter();
    let name = kinds.map(|kind| &file[kind]).find(|record| record.is_object());
    name.map_or(Value::Null, |record| match &record["name"] {
        _ if record["ino"].is_number() => record["ino"].clone(),
        Value::Null => record["pipe_id"].clone(),
        name => name.clone(),
    })
}

/// Lists whose order means nothing are put in one order, and the files that a process has besides its
/// descriptors are named by their paths.
fn normal(file: &str, dir: &Dir, names: &BTreeMap<u64, Value>) -> Value {
    let kind = split(file).0;
    let mut image = dir.images[file].clone();
    if kind == "files" {
        image["entries"] = dir.files_by_place();
        image["entries"].as_object_mut().into_iter().flatten().for_each(|(_, file)| join_times(file));
        return image;
    }
    let Some(entries) = image["entries"].as_array_mut() else { return image };
    match kind {
        "pstree" => entries.iter_mut().for_each(|entry| {
            if dir.is_dead(&entry["pid"]) {
                let is_itself = entry["threads"] == serde_json::json!([entry["pid"]]);
                entry["threads"] = u64::from(is_itself).into();
            }
        }),
        "fdinfo" => entries.sort_by_key(|entry| entry["fd"].as_u64()),
        "filelocks" => entries.sort_by_key(|entry| {
            (entry["flag"].as_u64(), entry["fd"].as_u64(), entry["start"].as_i64(), entry["len"].as_i64())
        }),
        "pipes-data" => entries.sort_by_key(|entry| entry["pipe_id"].as_u64()),
        "remap-fpath" => entries.sort_by_key(|entry| {
            entry["orig_id"].as_u64().and_then(|id| names.get(&id)).map(Value::to_string)
        }),
        "memfd" => entries.sort_by_key(|entry| (entry["name"].to_string(), entry["size"].as_u64())),
        _ => {}
    }
    for entry in entries {
        join_times(entry);
        for field in ["exe_file_id", "cwd_id", "root_id"] {
            if let Some(name) = entry[field].as_u64().and_then(|id| names.get(&id)) {
                entry[field] = name.clone();
            }
        }
        name_mapped_files(entry, names);
    }
    image
}

/// The rest of a timer's time and a clock's reading, each in one number, since seconds and their parts differ together.
fn join_times(entry: &mut Value) {
    const PARTS: [(&str, &str, &str, u64); 3] = [
        ("vsec", "vusec", "rest_us", 1_000_000),
        ("vsec", "vnsec", "rest_ns", 1_000_000_000),
        ("tv_sec", "tv_nsec", "ns", 1_000_000_000),
    ];
    let join = |time: &mut Value| {
        for (whole, part, joined, factor) in PARTS {
            let Some((seconds, rest)) = time[whole].as_u64().zip(time[part].as_u64()) else { continue };
            let Some(map) = time.as_object_mut() else { continue };
            map.remove(whole);
            map.remove(part);
            map.insert(joined.to_owned(), (seconds * factor + rest).into());
        }
    };
    for path in ["/monotonic", "/boottime", "/tc/timers/real", "/tc/timers/virt", "/tc/timers/prof"] {
        entry.pointer_mut(path).into_iter().for_each(join);
    }
    entry.pointer_mut("/tfd").into_iter().for_each(join);
    let posix = entry.pointer_mut("/tc/timers/posix").and_then(Value::as_array_mut);
    posix.into_iter().flatten().for_each(join);
}

/// Whether a mapping's `shmid` is the id of a file.
fn is_of_file(vma: &Value) -> bool {
    /// `VMA_FILE_PRIVATE` and `VMA_FILE_SHARED` (criu/include/image.h).
    const FILE: u64 = 1 << 6 | 1 << 7;
    vma["status"].as_u64().is_some_and(|status| status & FILE != 0)
}

/// The file of a mapping, instead of its id.
fn name_mapped_files(mm: &mut Value, names: &BTreeMap<u64, Value>) {
    for vma in mm["vmas"].as_array_mut().into_iter().flatten() {
        let of_file = is_of_file(vma);
        if let Some(name) = vma["shmid"].as_u64().filter(|_| of_file).and_then(|id| names.get(&id)) {
            vma["shmid"] = name.clone();
        }
    }
}

/// Everything of a file entry but the numbers that a dumper gives it.
fn file_key(entry: &Value) -> String {
    let mut text = entry["type"].to_string();
    for kind in ["reg", "pipe", "fifo", "memfd", "ext", "efd", "tfd", "sfd"] {
        for field in ["name", "flags", "pos", "pipe_id", "regf_id", "fown"] {
            text += &format!(" {}", entry[kind][field]);
        }
    }
    text
}

fn show(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".to_owned(), |value| value.to_string().chars().take(80).collect())
}
