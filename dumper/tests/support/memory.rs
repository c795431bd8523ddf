//! The memory of a stopped process, mapping by mapping and page by page, to be compared with that of its copy.
//!
//! What is left out of the comparison, and nothing else is:
//!
//! - what `[vvar]`, `[vvar_vclock]` and `[vsyscall]` hold: the kernel's own pages (clocks; code at a fixed address).
//!   They must be mapped at the same addresses with the same rights;
//! - of each thread's restartable-sequence area (man 2 rseq, include/uapi/linux/rseq.h) the bytes 0..8 (`cpu_id_start`,
//!   `cpu_id`) and 20..28 (`node_id`, `mm_cid`): the kernel writes there on which processor the thread ran last.
//!
//! Mappings that touch and are alike in everything that is compared count as one: whether the kernel joined them hangs
//! on their history.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use godwit_dumper::procfs::maps::{self, Vma};
use godwit_wire::image::pagemap;
use godwit_wire::plan::{PE_PRESENT, PageOwner};
use nix::unistd::Pid;

const PAGE: usize = 4096;
/// Bits of a word of `/proc/PID/pagemap`: present or swapped.
const IS_THERE: u64 = 0b11 << 62;
/// Which bytes of a restartable-sequence area are the kernel's.
const RSEQ_MASKED: [Range<usize>; 2] = [0..8, 20..28];

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    Zeros,
    /// BLAKE3 of its bytes, cut.
    Bytes(u128),
    /// A read of it fails: a guard, or behind the end of a file.
    Nothing,
    /// Not compared.
    Masked,
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Held::Zeros => f.write_str("zeros"),
            Held::Bytes(hash) => write!(f, "bytes {:08x}", hash >> 96),
            Held::Nothing => f.write_str("nothing"),
            Held::Masked => f.write_str("what is not compared"),
        }
    }
}

/// A mapping and what its pages hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    /// As in `/proc/PID/maps`, with the file's offset and identity.
    pub is: String,
    pub pages: Vec<Held>,
}

/// Every mapping of a stopped process. `rseq`: the addresses of its threads' restartable-sequence areas.
///
/// # Panics
/// When the process cannot be looked at.
pub fn look(pid: i32, rseq: &[u64]) -> Vec<Mapping> {
    let pid = Pid::from_raw(pid);
    let mem = File::open(format!("/proc/{pid}/mem")).unwrap();
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).unwrap();
    let mut mappings: Vec<Mapping> = Vec::new();
    for vma in maps::read(pid).unwrap() {
        let pages =
            (vma.start..vma.end).step_by(PAGE).map(|at| held(&mem, &pagemap, &vma, at, rseq)).collect();
        join(&mut mappings, Mapping { start: vma.start, end: vma.end, is: describe(&vma), pages });
    }
    mappings
}

/// Appends a mapping, to the last one where it goes on in it.
fn join(mappings: &mut Vec<Mapping>, next: Mapping) {
    match mappings.last_mut() {
        Some(last) if last.end == next.start && last.is == next.is => {
            last.end = next.end;
            last.pages.extend(next.pages);
        }
        _ => mappings.push(next),
    }
}

/// All that must be the same about a mapping. A file's offset is told as where its first byte would lie, which is the
/// same for mappings that go on in each other.
fn describe(vma: &Vma) -> String {
    let bit = |on: bool, letter: char| if on { letter } else { '-' };
    let perms: String = [bit(vma.read, 'r'), bit(vma.write, 'w'), bit(vma.exec, 'x')].iter().collect();
    let shared = if vma.shared { 's' } else { 'p' };
    let path = String::from_utf8_lossy(&vma.path);
    let is_memory = vma.path.starts_with(b"/memfd:") || vma.path.starts_with(b"/dev/zero");
    let what = if is_memory {
        // Another file of the same content: which one it is has no meaning elsewhere.
        format!("memory at {:x}", vma.start.wrapping_sub(vma.pgoff))
    } else if vma.has_file() {
        let file_at = vma.start.wrapping_sub(vma.pgoff);
        format!("file {:x}:{:x} {} at {file_at:x} {path}", vma.major, vma.minor, vma.inode)
    } else if vma.is_vvar() {
        "[vvar]".to_owned()
    } else if vma.path.starts_with(b"[anon") {
        String::new()
    } else {
        path.into_owned()
    };
    format!("{perms}{shared} {what}")
}

fn held(mem: &File, pagemap: &File, vma: &Vma, at: u64, rseq: &[u64]) -> Held {
    if vma.is_vvar() || vma.path == b"[vsyscall]" {
        return Held::Masked;
    }
    // A page that is not there is not read: that would make it be.
    if vma.is_anonymous() {
        let mut word = [0; 8];
        pagemap.read_exact_at(&mut word, at / PAGE as u64 * 8).unwrap();
        if u64::from_le_bytes(word) & IS_THERE == 0 {
            return Held::Zeros;
        }
    }
    let mut page = [0; PAGE];
    if mem.read_exact_at(&mut page, at).is_err() {
        return Held::Nothing;
    }
    mask(&mut page, at, rseq);
    of_bytes(&page)
}

fn of_bytes(page: &[u8; PAGE]) -> Held {
    if page.iter().all(|byte| *byte == 0) {
        return Held::Zeros;
    }
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(page).as_bytes()[..16]);
    Held::Bytes(u128::from_be_bytes(short))
}

/// Zeroes the bytes of restartable-sequence areas that are the kernel's.
fn mask(page: &mut [u8; PAGE], at: u64, rseq: &[u64]) {
    for &area in rseq {
        for byte in RSEQ_MASKED.into_iter().flatten() {
            let offset = area.wrapping_add(byte as u64).wrapping_sub(at);
            if offset < PAGE as u64 {
                page[offset as usize] = 0;
            }
        }
    }
}

/// What is not the same in a process and its copy.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The page, where it is about one.
    pub page: Option<u64>,
    pub text: String,
}

/// Every mapping that only one has, and every page that holds something else.
pub fn differences(source: &[Mapping], copy: &[Mapping]) -> Vec<Difference> {
    let key = |mapping: &Mapping| (mapping.start, mapping.end, mapping.is.clone());
    let alone = |whose: &str, mapping: &Mapping| {
        let text = format!("only the {whose} has {:x}-{:x} {}", mapping.start, mapping.end, mapping.is);
        Difference { page: None, text }
    };
    let of_copy: BTreeMap<_, _> = copy.iter().map(|mapping| (key(mapping), mapping)).collect();
    let mut found = Vec::new();
    for mapping in source {
        match of_copy.get(&key(mapping)) {
            Some(other) => pages_differ(mapping, other, &mut found),
            None => found.push(alone("source", mapping)),
        }
    }
    let of_source: BTreeSet<_> = source.iter().map(key).collect();
    let others = copy.iter().filter(|mapping| !of_source.contains(&key(mapping)));
    found.extend(others.map(|mapping| alone("copy", mapping)));
    found
}

fn pages_differ(source: &Mapping, copy: &Mapping, found: &mut Vec<Difference>) {
    for (page, (ours, theirs)) in source.pages.iter().zip(&copy.pages).enumerate() {
        if ours != theirs {
            let at = source.start + (page * PAGE) as u64;
            let Mapping { start, end, is, .. } = source;
            let text =
                format!("page {at:x} of {start:x}-{end:x} {is}: {ours} in the source, {theirs} in the copy");
            found.push(Difference { page: Some(at), text });
        }
    }
}

/// What each round of a session and its last set have of a page of the task, to be read beside a difference.
pub fn history(session: &Path, task: u32, page: u64) -> String {
    let mut rounds: Vec<PathBuf> =
        std::fs::read_dir(session).unwrap().map(|entry| entry.unwrap().path()).collect();
    // `final` before `round-0001` by name, and the last by nature.
    rounds.sort_by_key(|path| (path.ends_with("final"), path.clone()));
    let owner = PageOwner::Task(task);
    let told = rounds.iter().filter_map(|dir| {
        let bytes = std::fs::read(dir.join(owner.pagemap_name())).ok()?;
        let plan = pagemap::decode(owner, &bytes).unwrap();
        let name = dir.file_name()?.to_string_lossy().into_owned();
        let Some(run) = plan.runs.iter().find(|run| run.vaddr <= page && page < run.end()) else {
            return Some(format!("{name}: not listed"));
        };
        let slot = plan.placed().find(|(placed, _)| placed.vaddr == run.vaddr).map(|(_, slots)| slots.start);
        let Some(first) = slot.filter(|_| run.flags & PE_PRESENT != 0) else {
            return Some(format!("{name}: left to the round before"));
        };
        let mut bytes = [0; PAGE];
        let pages = File::open(dir.join(format!("pages-{}.img", plan.pages_id))).unwrap();
        let offset = first * PAGE as u64 + (page - run.vaddr);
        Some(match pages.read_exact_at(&mut bytes, offset) {
            Ok(()) => format!("{name}: {}", of_bytes(&bytes)),
            Err(error) => format!("{name}: {error}"),
        })
    });
    told.collect::<Vec<_>>().join(", ")
}

/// Pages of all mappings that hold something that is compared.
pub fn pages_compared(mappings: &[Mapping]) -> usize {
    let pages = mappings.iter().flat_map(|mapping| &mapping.pages);
    pages.filter(|held| matches!(held, Held::Bytes(_))).count()
}
