//! Memory that changes from round to round, the rounds a dump would make of it, and a reader that finds
//! pages as CRIU does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use godwit_page_server::store::disk::{Disk, read_all};
use godwit_page_server::store::sink::{Content, Fill, Sealed, Sink, SinkError};
use godwit_wire::frame::CopyTo;
use godwit_wire::image::extent::ExtentHasher;
use godwit_wire::image::manifest::{FileDigest, Manifest, PagesDigest};
use godwit_wire::image::{ImageKind, pagemap};
use godwit_wire::plan::{
    EXTENT_SLOTS, PAGE_SIZE, PE_LAZY, PE_PARENT, PE_PRESENT, PageOwner, PageRun, PagesPlan, RoundKind,
    RoundPlan,
};

pub const PAGE: usize = PAGE_SIZE as usize;

/// A small generator (SplitMix64), so that a test fails the same way twice.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A page is told by a number: 0 is a page of zeros.
pub fn page(number: u64) -> Vec<u8> {
    if number == 0 {
        return vec![0; PAGE];
    }
    number.to_le_bytes().repeat(PAGE / 8)
}

/// Pages by owner and address.
pub type Memory = BTreeMap<PageOwner, BTreeMap<u64, u64>>;

/// A round with all it holds.
#[derive(Clone)]
pub struct Round {
    pub plan: RoundPlan,
    /// Numbers of the pages in each pages file, by slot, and whether the base holds the same page.
    pub slots: BTreeMap<u32, Vec<u64>>,
    pub images: Vec<(String, Bytes)>,
    pub manifest: Manifest,
    pub memory: Memory,
}

impl Round {
    /// Gives an image other bytes, in the manifest too.
    pub fn replace_image(&mut self, name: &str, bytes: Bytes) {
        let image = self.images.iter_mut().find(|(image, _)| image == name).unwrap();
        image.1 = bytes.clone();
        let digest = self.manifest.files.iter_mut().find(|file| file.name == name).unwrap();
        *digest = FileDigest::of(name, &bytes);
    }
}

/// Makes the round of `memory` that builds on `base`: pages that are the same there are called unchanged, most of
/// the time.
pub fn round_of(memory: &Memory, number: u32, base: Option<&Round>, kind: RoundKind, rng: &mut Rng) -> Round {
    let mut pages = Vec::new();
    let mut slots = BTreeMap::new();
    for (index, (owner, held)) in memory.iter().enumerate() {
        let pages_id = index as u32 + 1;
        let before = base.and_then(|base| base.memory.get(owner));
        let mut runs: Vec<PageRun> = Vec::new();
        let mut numbers = Vec::new();
        for (vaddr, number) in held {
            let unchanged = before.and_then(|before| before.get(vaddr)) == Some(number);
            let flags = match (unchanged && !rng.one_in(4), rng.one_in(8)) {
                (true, _) => PE_PARENT,
                (false, true) => PE_PRESENT | PE_LAZY,
                (false, false) => PE_PRESENT,
            };
            if flags != PE_PARENT {
                numbers.push(*number);
            }
            match runs.last_mut() {
                Some(run) if run.end() == *vaddr && run.flags == flags => run.nr_pages += 1,
                _ => runs.push(PageRun { vaddr: *vaddr, nr_pages: 1, flags }),
            }
        }
        slots.insert(pages_id, numbers);
        pages.push(PagesPlan { owner: *owner, pages_id, runs });
    }
    let base_round = base.map(|base| base.plan.round);
    let plan = RoundPlan { round: number, base_round, kind, pages };
    let mut names = vec!["inventory.img"];
    if kind == RoundKind::Final {
        names.extend(["pstree.img", "core-1.img", "stats-dump"]);
    }
    let images: Vec<_> =
        names.into_iter().map(|name| (name.to_owned(), Bytes::from(format!("{name} of {number}")))).collect();
    let manifest = manifest_of(&plan, &slots, &images);
    Round { plan, slots, images, manifest, memory: memory.clone() }
}

fn manifest_of(plan: &RoundPlan, slots: &BTreeMap<u32, Vec<u64>>, images: &[(String, Bytes)]) -> Manifest {
    let mut files: Vec<_> = images.iter().map(|(name, bytes)| FileDigest::of(name, bytes)).collect();
    files.extend(
        plan.pages.iter().map(|p| FileDigest::of(&p.owner.pagemap_name(), &pagemap::encode(p).unwrap())),
    );
    let pages = slots.iter().map(|(pages_id, numbers)| {
        let extents = numbers.chunks(EXTENT_SLOTS as usize);
        let hash = |extent: &[u64]| {
            let mut hasher = ExtentHasher::default();
            for number in extent {
                hasher.update(&page(*number));
            }
            hasher.finish()
        };
        let nr_pages = numbers.len() as u64;
        PagesDigest { pages_id: *pages_id, nr_pages, extents: extents.map(hash).collect() }
    });
    Manifest {
        session: "s".into(),
        round: plan.round,
        base_round: plan.base_round,
        kind: plan.kind,
        restore_options: Vec::new(),
        root_pid: 1,
        dumped_at_us: 1,
        tool_version: "test".into(),
        files,
        pages: pages.collect(),
    }
}

/// Sends a whole round, in pieces of random length, order and form.
pub fn send(sink: &dyn Sink, round: &Round, rng: &mut Rng) -> Result<Sealed, SinkError> {
    sink.begin(&round.plan)?;
    fill_all(sink, round, rng)?;
    for (name, bytes) in &round.images {
        sink.image(round.plan.round, name, bytes.clone())?;
    }
    sink.seal(round.plan.round, &round.manifest)
}

pub fn fill_all(sink: &dyn Sink, round: &Round, rng: &mut Rng) -> Result<(), SinkError> {
    let mut pieces = Vec::new();
    for (pages_id, numbers) in &round.slots {
        let mut first = 0;
        while first < numbers.len() {
            let border = (first / EXTENT_SLOTS as usize + 1) * EXTENT_SLOTS as usize;
            let longest = border.min(numbers.len()) - first;
            let len = if rng.one_in(3) { longest } else { 1 + rng.below(longest as u64) as usize };
            pieces.push((*pages_id, first, numbers[first..first + len].to_vec()));
            first += len;
        }
    }
    while !pieces.is_empty() {
        let (pages_id, first, numbers) = pieces.swap_remove(rng.below(pieces.len() as u64) as usize);
        let content = match rng.below(3) {
            0 if numbers.iter().all(|number| *number == 0) => Content::Zero { pages: numbers.len() as u32 },
            1 if round.plan.base_round.is_some() => Content::Same { hashes: hashes_of(&numbers) },
            _ => data_of(&numbers),
        };
        let fill = Fill { round: round.plan.round, pages_id, first_slot: first as u64, content };
        match sink.fill(fill) {
            Err(SinkError::WantData { round: number, pages_id: id, slots }) => {
                assert_eq!((number, id), (round.plan.round, pages_id));
                for slots in slots {
                    let from = slots.start as usize - first;
                    let part = numbers[from..from + (slots.end - slots.start) as usize].to_vec();
                    let content = data_of(&part);
                    sink.fill(Fill { round: number, pages_id, first_slot: slots.start, content })?;
                }
            }
            other => other?,
        }
    }
    Ok(())
}

/// As [`fill_all`], each page that several slots hold once for all of them, as far as it comes to that.
pub fn fill_spread(sink: &dyn Sink, round: &Round, rng: &mut Rng) -> Result<u64, SinkError> {
    let mut left: BTreeMap<u32, Vec<bool>> =
        round.slots.iter().map(|(id, numbers)| (*id, vec![true; numbers.len()])).collect();
    let mut copied = 0;
    for (&pages_id, numbers) in &round.slots {
        let mut first = 0;
        while let Some(begin) = (first..numbers.len()).find(|slot| left[&pages_id][*slot]) {
            let border = (begin / EXTENT_SLOTS as usize + 1) * EXTENT_SLOTS as usize;
            let longest = border.min(begin + 1 + rng.below(300) as usize).min(numbers.len());
            let end = (begin..longest).find(|slot| !left[&pages_id][*slot]).unwrap_or(longest);
            left.get_mut(&pages_id).unwrap()[begin..end].fill(false);
            let copies = copies_of(&numbers[begin..end], round, &mut left);
            copied += copies.iter().map(|copy| u64::from(copy.pages)).sum::<u64>();
            let content = match data_of(&numbers[begin..end]) {
                Content::Data(bytes) if !copies.is_empty() => Content::Spread { bytes, copies },
                data => data,
            };
            let first_slot = begin as u64;
            sink.fill(Fill { round: round.plan.round, pages_id, first_slot, content })?;
            first = end;
        }
    }
    Ok(copied)
}

/// The slots that are left and hold pages of these, run by run; they are left no more.
fn copies_of(numbers: &[u64], round: &Round, left: &mut BTreeMap<u32, Vec<bool>>) -> Vec<CopyTo> {
    let place: BTreeMap<u64, usize> = numbers.iter().enumerate().map(|(at, number)| (*number, at)).collect();
    let mut copies: Vec<CopyTo> = Vec::new();
    for (&pages_id, others) in &round.slots {
        let left = left.get_mut(&pages_id).unwrap();
        for (slot, number) in others.iter().enumerate() {
            let Some(&at) = place.get(number).filter(|_| left[slot]) else { continue };
            left[slot] = false;
            let (at, first_slot) = (at as u32, slot as u64);
            match copies.last_mut() {
                Some(last)
                    if (last.pages_id, last.at + last.pages, last.first_slot + u64::from(last.pages))
                        == (pages_id, at, first_slot)
                        && first_slot % EXTENT_SLOTS != 0 =>
                {
                    last.pages += 1;
                }
                _ => copies.push(CopyTo { at, pages: 1, pages_id, first_slot }),
            }
        }
    }
    copies
}

pub fn data_of(numbers: &[u64]) -> Content {
    Content::Data(numbers.iter().flat_map(|number| page(*number)).collect::<Vec<u8>>().into())
}

pub fn hashes_of(numbers: &[u64]) -> Vec<[u8; 16]> {
    let hash = |number: &u64| blake3::hash(&page(*number)).as_bytes()[..16].try_into().unwrap();
    numbers.iter().map(hash).collect()
}

/// Reads all memory back from a directory of a disk, as a restore does: page lists of the directory, bytes from
/// its pages file or, for pages of the parent, through the links, and checks what must hold on the way.
pub fn read_back(disk: &dyn Disk, dir: &Path) -> Memory {
    let mut memory = Memory::new();
    for entry in disk.list(dir).unwrap() {
        let owner = match ImageKind::parse_name(&entry.name) {
            Some((ImageKind::Pagemap, pid)) => PageOwner::Task(pid as u32),
            Some((ImageKind::PagemapShmem, id)) => PageOwner::Shmem(id),
            _ => continue,
        };
        let mut held = BTreeMap::new();
        for run in list_of(disk, dir, owner).expect("listed").runs {
            for vaddr in (run.vaddr..run.end()).step_by(PAGE) {
                held.insert(vaddr, find_page(disk, dir, owner, vaddr));
            }
        }
        memory.insert(owner, held);
    }
    memory
}

fn list_of(disk: &dyn Disk, dir: &Path, owner: PageOwner) -> Option<PagesPlan> {
    let bytes = read_all(disk, &dir.join(owner.pagemap_name()), 1 << 20).ok()?;
    let plan = pagemap::decode(owner, &bytes).unwrap();
    let len = disk.open(&dir.join(plan.pages_name())).unwrap().size().unwrap();
    assert_eq!(len, plan.slots() * PAGE_SIZE, "{}: pages file is not as long as its list", dir.display());
    Some(plan)
}

fn find_page(disk: &dyn Disk, dir: &Path, owner: PageOwner, vaddr: u64) -> u64 {
    let mut dir = dir.to_owned();
    loop {
        let plan = list_of(disk, &dir, owner).unwrap_or_else(|| panic!("{}: no list", dir.display()));
        let mut offset = 0;
        let mut run = None;
        for candidate in &plan.runs {
            if (candidate.vaddr..candidate.end()).contains(&vaddr) {
                run = Some(*candidate);
                break;
            }
            offset += if candidate.is_present() { candidate.nr_pages * PAGE_SIZE } else { 0 };
        }
        let run = run.unwrap_or_else(|| panic!("{}: {owner:?} lacks {vaddr:#x}", dir.display()));
        if run.is_present() {
            let mut bytes = vec![0; PAGE];
            let file = disk.open(&dir.join(plan.pages_name())).unwrap();
            file.read_at(&mut bytes, offset + vaddr - run.vaddr).unwrap();
            let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            assert!(bytes == page(number), "{}: {vaddr:#x} is torn", dir.display());
            return number;
        }
        let link = disk.read_link(&dir.join("parent")).unwrap();
        dir = follow(&dir, &link);
    }
}

/// Resolves `../NAME` without asking a file system.
fn follow(dir: &Path, link: &Path) -> PathBuf {
    let name = link.strip_prefix("..").expect("a parent link is ../NAME");
    dir.parent().unwrap().join(name)
}

/// Some memory: `owners` tasks and segments with up to `pages` pages each, a few of them zero.
pub fn some_memory(owners: u32, pages: u64, rng: &mut Rng) -> Memory {
    let owner = |index: u32| match index % 3 {
        2 => PageOwner::Shmem(u64::from(index) + 70_000),
        _ => PageOwner::Task(index + 1),
    };
    let mut memory = Memory::new();
    for index in 0..owners {
        let mut held = BTreeMap::new();
        let mut vaddr = 0x10_0000;
        for _ in 0..rng.below(pages + 1) {
            vaddr += PAGE_SIZE * if rng.one_in(6) { 1 + rng.below(9) } else { 1 };
            held.insert(vaddr, if rng.one_in(5) { 0 } else { rng.next() });
        }
        memory.insert(owner(index), held);
    }
    memory
}

/// Memory of a task and of so many that were forked from it, and changed, added and dropped pages since.
pub fn forked_memory(children: u32, pages: u64, rng: &mut Rng) -> Memory {
    let parent: BTreeMap<u64, u64> =
        (0..pages).map(|at| (0x10_0000 + at * PAGE_SIZE, 1 + rng.next() / 2)).collect();
    let mut memory = Memory::from([(PageOwner::Task(1), parent.clone())]);
    for child in 0..children {
        let mut held = parent.clone();
        for vaddr in parent.keys() {
            match rng.below(12) {
                0 => drop(held.insert(*vaddr, 1 + rng.next() / 2)),
                1 => drop(held.remove(vaddr)),
                _ => {}
            }
        }
        held.insert(0x1000, 1 + rng.next() / 2);
        memory.insert(PageOwner::Task(child + 2), held);
    }
    memory
}

/// Changes, adds and removes some pages.
pub fn change(memory: &mut Memory, rng: &mut Rng) {
    for held in memory.values_mut() {
        let addresses: Vec<_> = held.keys().copied().collect();
        for vaddr in addresses {
            match rng.below(8) {
                0 => drop(held.insert(vaddr, rng.next())),
                1 => drop(held.insert(vaddr, 0)),
                2 => drop(held.remove(&vaddr)),
                _ => {}
            }
        }
        if rng.one_in(2) {
            held.insert(0x20 * PAGE_SIZE * (1 + rng.below(64)), rng.next());
        }
    }
}
