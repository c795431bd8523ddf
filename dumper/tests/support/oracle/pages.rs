//! The pages of both, byte by byte.

use super::super::images;
use godwit_wire::image::pagemap;
use godwit_wire::plan::{PAGE_SIZE, PageOwner};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

type Pages = BTreeMap<u64, Vec<u8>>;

/// Bytes of `struct rseq` that the kernel writes whenever the thread goes back to its program (include/uapi/linux/rseq.h).
const RSEQ_BYTES: u64 = 32;

/// A line for each page that differs and should not.
///
/// Explained: a page of zeros that only one of both lists; a page that only CRIU lists and that holds what its file
/// holds there (its own code ran in it, and was put back); the `struct rseq` of each thread.
pub fn compare(ours: &Path, theirs: &Path, pid: i32) -> Vec<String> {
    let mut differences = Vec::new();
    let mut owners = owners(ours);
    owners.extend(super::pages::owners(theirs));
    for owner in owners {
        let (our_pages, their_pages) = (read(ours, owner), read(theirs, owner));
        let masks = match owner {
            PageOwner::Task(_) => rseq_areas(ours),
            PageOwner::Shmem(_) => Vec::new(),
        };
        let addresses: BTreeSet<u64> = our_pages.keys().chain(their_pages.keys()).copied().collect();
        for vaddr in addresses {
            let (a, b) = (our_pages.get(&vaddr), their_pages.get(&vaddr));
            let name = owner.pagemap_name();
            let is_explained = match (a, b) {
                (Some(a), Some(b)) => masked(a, vaddr, &masks) == masked(b, vaddr, &masks),
                (Some(one), None) | (None, Some(one)) if one.iter().all(|byte| *byte == 0) => true,
                (None, Some(theirs)) => file_page(pid, vaddr).as_ref() == Some(theirs),
                _ => false,
            };
            if !is_explained {
                let who = |page: Option<&Vec<u8>>| if page.is_some() { "has it" } else { "lacks it" };
                let at = a.zip(b).and_then(|(a, b)| a.iter().zip(b).position(|(a, b)| a != b));
                differences.push(format!(
                    "{name} page {vaddr:#x}: godwit {} CRIU {}, first difference at {at:?}",
                    who(a),
                    who(b)
                ));
            }
        }
    }
    differences
}

fn owners(dir: &Path) -> BTreeSet<PageOwner> {
    let names =
        std::fs::read_dir(dir).unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter_map(|name| {
            let number = name.strip_prefix("pagemap-")?.strip_suffix(".img")?;
            match number.strip_prefix("shmem-") {
                Some(id) => Some(PageOwner::Shmem(id.parse().ok()?)),
                None => Some(PageOwner::Task(number.parse().ok()?)),
            }
        })
        .collect()
}

/// Every page of a directory's own; empty where it has no such list. CRIU writes none for a segment without pages.
fn read(dir: &Path, owner: PageOwner) -> Pages {
    let Ok(bytes) = std::fs::read(dir.join(owner.pagemap_name())) else { return Pages::new() };
    let plan = pagemap::decode(owner, &bytes).unwrap();
    let mut pages = Pages::new();
    if plan.slots() == 0 {
        return pages;
    }
    let file = std::fs::File::open(dir.join(plan.pages_name())).unwrap();
    for (run, slots) in plan.placed() {
        for index in 0..run.nr_pages {
            let mut page = vec![0; PAGE_SIZE as usize];
            file.read_exact_at(&mut page, (slots.start + index) * PAGE_SIZE).unwrap();
            pages.insert(run.vaddr + index * PAGE_SIZE, page);
        }
    }
    pages
}

fn masked(page: &[u8], vaddr: u64, masks: &[Range<u64>]) -> Vec<u8> {
    let mut page = page.to_vec();
    for (at, byte) in (vaddr..).zip(&mut page) {
        if masks.iter().any(|mask| mask.contains(&at)) {
            *byte = 0;
        }
    }
    page
}

/// Where the threads' `struct rseq` lie.
fn rseq_areas(dir: &Path) -> Vec<Range<u64>> {
    let names =
        std::fs::read_dir(dir).unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let cores = names.filter(|name| name.starts_with("core-"));
    cores
        .filter_map(|name| {
            let core = images::decode(&dir.join(name));
            let start = core["entries"][0]["thread_core"]["rseq_entry"]["rseq_abi_pointer"].clone();
            let start = start
                .as_u64()
                .or_else(|| u64::from_str_radix(start.as_str()?.strip_prefix("0x")?, 16).ok())?;
            Some(start..start + RSEQ_BYTES)
        })
        .collect()
}

/// What the file behind the mapping at an address holds there.
fn file_page(pid: i32, vaddr: u64) -> Option<Vec<u8>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let (range, offset) = maps.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let range = number(start)..number(end);
        range.contains(&vaddr).then(|| (range.clone(), number(words.nth(1).unwrap())))
    })?;
    let link = format!("/proc/{pid}/map_files/{:x}-{:x}", range.start, range.end);
    let mut page = vec![0; PAGE_SIZE as usize];
    let file = std::fs::File::open(link).ok()?;
    let mut done = 0;
    while done < page.len() {
        match file.read_at(&mut page[done..], offset + vaddr - range.start + done as u64).ok()? {
            0 => break,
            read => done += read,
        }
    }
    Some(page)
}
