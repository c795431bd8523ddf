//! Page lists and pages, page by page: the same pages with the same bytes.
//!
//! What differs has one of these names, as fields of the image `pages`: `(only godwit, zero)`, `(only godwit, as in its
//! file)`, `(only godwit)`, the same with CRIU, `(only godwit, droppable)`, `(rseq)` for a page that is the same but for the areas that the kernel
//! itself writes when a thread runs, and `(bytes)`.

use super::compare::{Compared, Dir};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;

const PAGE: u64 = 4096;
/// Flags of a pagemap entry (criu/include/pagemap.h).
const PE_PARENT: u64 = 1;
const PE_PRESENT: u64 = 1 << 2;
/// `VMA_FILE_PRIVATE`, `VMA_FILE_SHARED`.
const FILE: u64 = 1 << 6 | 1 << 7;
/// Bytes of `struct rseq` (include/uapi/linux/rseq.h); the kernel may use up to the registered length.
const RSEQ_BYTES_MIN: u64 = 32;

/// The pages of one page list, by address: where each lies in its pages file.
struct Listed {
    places: BTreeMap<u64, u64>,
    content: File,
}

impl Listed {
    fn read(dir: &Dir, name: &str) -> Result<Self, String> {
        let entries = dir.entries(name);
        let head = entries.first().ok_or_else(|| format!("{name} is empty"))?;
        let path = dir.path.join(format!("pages-{}.img", head["pages_id"]));
        let content = File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let (mut places, mut at) = (BTreeMap::new(), 0);
        for entry in &entries[1..] {
            let flags = flags(entry);
            let number = |field: &str| entry[field].as_u64();
            let (Some(vaddr), Some(count)) = (number("vaddr"), number("nr_pages")) else {
                return Err(format!("{name}: {entry}"));
            };
            if flags & PE_PARENT != 0 || flags & PE_PRESENT == 0 {
                continue;
            }
            for page in 0..count {
                places.insert(vaddr + page * PAGE, at);
                at += PAGE;
            }
        }
        let length = content.metadata().map_err(|error| error.to_string())?.len();
        if length != at {
            return Err(format!("{name} lists {at} bytes, and its pages file has {length}"));
        }
        Ok(Self { places, content })
    }

    fn page(&self, address: u64) -> Option<[u8; PAGE as usize]> {
        let mut page = [0; PAGE as usize];
        self.content.read_exact_at(&mut page, *self.places.get(&address)?).ok()?;
        Some(page)
    }
}

/// crit gives flags as a number, or as names where it knows them.
fn flags(entry: &Value) -> u64 {
    match &entry["flags"] {
        Value::String(names) => {
            u64::from(names.contains("PE_PARENT")) * PE_PARENT
                + u64::from(names.contains("PE_PRESENT")) * PE_PRESENT
        }
        // Absent in images of old; `in_parent` says the rest.
        flags => flags.as_u64().unwrap_or(PE_PRESENT),
    }
}

/// A run of pages that differ in one way, so that a difference is one line.
struct Run {
    start: u64,
    end: u64,
    kind: &'static str,
    detail: String,
}

/// Compares the pages of one page list.
pub fn compare(compared: &mut Compared, ours: (&Dir, &str), theirs: (&Dir, &str), pid: i32) {
    let lists = Listed::read(ours.0, ours.1).and_then(|a| Ok((a, Listed::read(theirs.0, theirs.1)?)));
    let (a, b) = match lists {
        Ok(lists) => lists,
        Err(why) => return compared.differences.push(why),
    };
    let is_task = ours.1 == format!("pagemap-{pid}.img");
    let rseq = if is_task { rseq_areas(ours.0, pid) } else { Vec::new() };
    let vmas = if is_task { ours.0.entries(&format!("mm-{pid}.img"))[0]["vmas"].as_array() } else { None };
    let mut runs: Vec<Run> = Vec::new();
    let addresses: BTreeSet<u64> = a.places.keys().chain(b.places.keys()).copied().collect();
    compared.pages += addresses.len();
    for &address in &addresses {
        let vma = vmas.and_then(|vmas| vma_at(vmas, address));
        let Some((kind, detail)) = difference(address, a.page(address), b.page(address), &rseq, vma, pid)
        else {
            continue;
        };
        match runs.last_mut() {
            Some(run) if run.end == address && run.kind == kind => run.end += PAGE,
            _ => runs.push(Run { start: address, end: address + PAGE, kind, detail }),
        }
    }
    for run in runs {
        let what = format!("{} {:#x}-{:#x} {}", ours.1, run.start, run.end, run.detail);
        let text = Value::from(what);
        let (a, b) = match run.kind {
            kind if kind.starts_with("(only godwit") => (Some(&text), None),
            kind if kind.starts_with("(only CRIU") => (None, Some(&text)),
            _ => (Some(&text), Some(&Value::Null)),
        };
        compared.field("pages", run.kind, a, b, &BTreeMap::new());
    }
}

fn difference(
    address: u64,
    ours: Option<[u8; PAGE as usize]>,
    theirs: Option<[u8; PAGE as usize]>,
    rseq: &[(u64, u64)],
    vma: Option<&Value>,
    pid: i32,
) -> Option<(&'static str, String)> {
    let is_zero = |page: &[u8]| page.iter().all(|byte| *byte == 0);
    let names = match (ours, theirs) {
        (Some(a), Some(b)) if a == b => return None,
        (Some(mut a), Some(mut b)) => {
            let first = a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or(0);
            let words = format!("at byte {first}: {:02x?} {:02x?}", &a[first..], &b[first..]);
            let detail = words.chars().take(60).collect();
            mask(&mut a, address, rseq);
            mask(&mut b, address, rseq);
            return Some((if a == b { "(rseq)" } else { "(bytes)" }, detail));
        }
        (Some(_), None) => ["(only godwit, zero)", "(only godwit, as in its file)", "(only godwit)"],
        (None, _) => ["(only CRIU, zero)", "(only CRIU, as in its file)", "(only CRIU)"],
    };
    let page = ours.or(theirs)?;
    let in_file = vma.and_then(|vma| in_file(vma, address, pid));
    if theirs.is_none() && vma.is_some_and(is_droppable) {
        return Some(("(only godwit, droppable)", String::new()));
    }
    let index = if in_file.is_some_and(|in_file| in_file == page) {
        1
    } else if is_zero(&page) {
        0
    } else {
        2
    };
    Some((names[index], String::new()))
}

/// Whether the kernel may drop the mapping's pages at any time (`MAP_DROPPABLE` in the place of `MAP_PRIVATE`).
fn is_droppable(vma: &Value) -> bool {
    vma["flags"].as_u64().is_some_and(|flags| flags & 0xf == 8)
}

/// What the file of a mapping holds for a page.
fn in_file(vma: &Value, address: u64, pid: i32) -> Option<[u8; PAGE as usize]> {
    let status = vma["status"].as_u64()?;
    let (start, end) = (vma["start"].as_u64()?, vma["end"].as_u64()?);
    if status & FILE == 0 {
        return None;
    }
    let file = File::open(format!("/proc/{pid}/map_files/{start:x}-{end:x}")).ok()?;
    let mut page = [0; PAGE as usize];
    let mut done = 0;
    let from = vma["pgoff"].as_u64()? + (address - start);
    while let Ok(count @ 1..) = file.read_at(&mut page[done..], from + done as u64) {
        done += count;
    }
    Some(page)
}

fn vma_at(vmas: &[Value], address: u64) -> Option<&Value> {
    vmas.iter().find(|vma| {
        vma["start"].as_u64().is_some_and(|start| start <= address)
            && vma["end"].as_u64().is_some_and(|end| address < end)
    })
}

/// The restartable-sequence areas of all threads of a task: the kernel writes the processor's number there.
fn rseq_areas(dir: &Dir, pid: i32) -> Vec<(u64, u64)> {
    let task = dir.entries("pstree.img").iter().find(|task| task["pid"] == pid);
    let tids = task.and_then(|task| task["threads"].as_array()).into_iter().flatten();
    tids.filter_map(|tid| dir.images.get(&format!("core-{tid}.img")))
        .filter_map(|core| {
            let entry = &core["entries"][0]["thread_core"]["rseq_entry"];
            let start = entry["rseq_abi_pointer"].as_u64().filter(|start| *start != 0)?;
            Some((start, entry["rseq_abi_size"].as_u64().unwrap_or(0).max(RSEQ_BYTES_MIN)))
        })
        .collect()
}

fn mask(page: &mut [u8], address: u64, areas: &[(u64, u64)]) {
    for (start, length) in areas {
        let (from, to) = ((*start).max(address), (start + length).min(address + PAGE));
        if from < to {
            page[(from - address) as usize..(to - address) as usize].fill(0);
        }
    }
}
