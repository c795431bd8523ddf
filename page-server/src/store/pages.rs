//! A pages file while it is filled: every slot once, on purpose.
//!
//! The file has its full length from the start, so a slot that nobody filled would read as zeros, and a
//! restore would take them for the page, with success. Therefore a bitmap says which slots were filled, by
//! bytes, by an announced zero page or by a copy from the base round; a hole never counts. As soon as all
//! slots of an extent are filled, its BLAKE3 is taken, from memory where one call brought the whole extent
//! and from the file otherwise, so that nothing is left to hash at the seal.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use godwit_wire::plan::{EXTENT_SLOTS, PAGE_SIZE, PageOwner, PagesPlan};

use super::disk::DiskFile;
use super::parent::Level;
use super::sink::Content;

/// Extents whose writeback is started together: 8 MiB.
const WRITEBACK_EXTENTS: u64 = 8;
const EXTENT_BYTES: usize = (EXTENT_SLOTS * PAGE_SIZE) as usize;

/// An open pages file of a round.
pub(crate) struct PagesFile {
    file: Arc<dyn DiskFile>,
    pub(crate) path: PathBuf,
    pub(crate) pages_id: u32,
    pub(crate) owner: PageOwner,
    slots: u64,
    /// First slot and address of each present run.
    runs: Vec<(u64, u64)>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Slots that are filled or being filled.
    claimed: Vec<u64>,
    /// What is known of each extent.
    extents: Vec<Extent>,
    /// Extents that are hashed.
    hashed: u64,
}

#[derive(Clone, Default)]
struct Extent {
    filled: u16,
    /// The file may hold bytes of an earlier try, so that a zero page must be written out.
    soiled: bool,
    hash: Option<[u8; 32]>,
}

/// Why slots could not be filled.
#[derive(Debug)]
pub(crate) enum FillError {
    /// A rule is broken: nothing was filled.
    Refused(String),
    /// These slots differ from the base round, the others of the call are filled.
    WantData(Vec<Range<u64>>),
    /// The disk failed: nothing was filled.
    Io(io::Error),
}

impl PagesFile {
    /// Takes an empty file and gives it its length.
    ///
    /// # Errors
    /// What the disk answers.
    pub(crate) fn new(file: Arc<dyn DiskFile>, path: PathBuf, pages: &PagesPlan) -> io::Result<Self> {
        let slots = pages.slots();
        file.set_len(slots * PAGE_SIZE)?;
        let state = State {
            claimed: vec![0; slots.div_ceil(64) as usize],
            extents: vec![Extent::default(); slots.div_ceil(EXTENT_SLOTS) as usize],
            hashed: 0,
        };
        let runs = pages.placed().map(|(run, slots)| (slots.start, run.vaddr)).collect();
        let (pages_id, owner) = (pages.pages_id, pages.owner);
        Ok(Self { file, path, pages_id, owner, slots, runs, state: Mutex::new(state) })
    }

    /// Fills consecutive slots of one extent.
    pub(crate) fn fill(&self, first: u64, content: &Content, base: Option<&Level>) -> Result<(), FillError> {
        let slots = self.check_range(first, content).map_err(FillError::Refused)?;
        let extent = (first / EXTENT_SLOTS) as usize;
        let soiled = self.claim(&slots)?;
        let written = match content {
            Content::Data(bytes) => self.file.write_at(bytes, first * PAGE_SIZE).map(|()| Vec::new()),
            Content::Zero { .. } if soiled => {
                let zeros = vec![0; ((slots.end - slots.start) * PAGE_SIZE) as usize];
                self.file.write_at(&zeros, first * PAGE_SIZE).map(|()| Vec::new())
            }
            Content::Zero { .. } => Ok(Vec::new()),
            Content::Same { hashes } => self.copy_same(first, hashes, &[], base),
            Content::Delta { bases, difference } => self.copy_same(first, bases, difference, base),
        };
        let different = match written {
            Ok(different) => different,
            Err(e) => {
                self.give_back(std::slice::from_ref(&slots), true);
                return Err(FillError::Io(e));
            }
        };
        self.give_back(&different, false);
        let filled = (slots.end - slots.start) - different.iter().map(|run| run.end - run.start).sum::<u64>();
        if let Err(e) = self.count_filled(extent, filled, content) {
            return Err(FillError::Io(e));
        }
        if different.is_empty() { Ok(()) } else { Err(FillError::WantData(different)) }
    }

    /// Opens an extent for being filled anew, as a resend does; its hash no longer counts.
    pub(crate) fn reopen_extent(&self, extent: u64) -> Result<(), FillError> {
        let slots = self.slots_of(extent);
        let mut state = self.state();
        let claimed = slots.clone().filter(|slot| state.is_claimed(*slot)).count();
        let Some(entry) = state.extents.get_mut(extent as usize) else {
            let why = format!("pages-{}.img has no extent {extent}", self.pages_id);
            return Err(FillError::Refused(why));
        };
        if claimed != usize::from(entry.filled) {
            let why = format!("extent {extent} of pages-{}.img is being filled", self.pages_id);
            return Err(FillError::Refused(why));
        }
        let was_hashed = entry.hash.is_some();
        *entry = Extent { soiled: true, ..Extent::default() };
        state.hashed -= u64::from(was_hashed);
        slots.for_each(|slot| state.set_claimed(slot, false));
        Ok(())
    }

    /// The slots that nobody filled yet, in order; at most `count_max` ranges.
    pub(crate) fn missing(&self, count_max: usize) -> Vec<Range<u64>> {
        let state = self.state();
        runs_of((0..self.slots).filter(|slot| !state.is_claimed(*slot)), count_max)
    }

    /// BLAKE3 of every extent, or `None` while one is not filled.
    pub(crate) fn extent_hashes(&self) -> Option<Vec<[u8; 32]>> {
        self.state().extents.iter().map(|extent| extent.hash).collect()
    }

    /// The file's descriptor, for the seal.
    pub(crate) fn file(&self) -> &Arc<dyn DiskFile> {
        &self.file
    }

    /// Length that the file must have, in bytes.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.slots * PAGE_SIZE
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn slots_of(&self, extent: u64) -> Range<u64> {
        let first = extent.saturating_mul(EXTENT_SLOTS).min(self.slots);
        first..(first + EXTENT_SLOTS).min(self.slots)
    }

    fn check_range(&self, first: u64, content: &Content) -> Result<Range<u64>, String> {
        let pages = content.pages();
        let name = format!("pages-{}.img", self.pages_id);
        if let Content::Data(bytes) = content
            && !(bytes.len() as u64).is_multiple_of(PAGE_SIZE)
        {
            return Err(format!("{name}, slot {first}: {} bytes are not whole pages", bytes.len()));
        }
        if let Content::Delta { difference, .. } = content
            && difference.len() as u64 != pages * PAGE_SIZE
        {
            let found = difference.len();
            return Err(format!("{name}, slot {first}: a difference of {found} bytes for {pages} pages"));
        }
        let end = first.checked_add(pages).filter(|end| *end <= self.slots && pages > 0);
        let Some(end) = end else {
            return Err(format!(
                "{name}: {pages} pages from slot {first} are not in its {} slots",
                self.slots
            ));
        };
        if first / EXTENT_SLOTS != (end - 1) / EXTENT_SLOTS {
            return Err(format!("{name}: {pages} pages from slot {first} cross the border of an extent"));
        }
        Ok(first..end)
    }

    /// Marks slots as taken; says whether their extent may hold bytes of an earlier try.
    fn claim(&self, slots: &Range<u64>) -> Result<bool, FillError> {
        let mut state = self.state();
        if let Some(slot) = slots.clone().find(|slot| state.is_claimed(*slot)) {
            let why = format!("slot {slot} of pages-{}.img is filled twice", self.pages_id);
            return Err(FillError::Refused(why));
        }
        slots.clone().for_each(|slot| state.set_claimed(slot, true));
        Ok(state.extents[(slots.start / EXTENT_SLOTS) as usize].soiled)
    }

    fn give_back(&self, ranges: &[Range<u64>], soiled: bool) {
        let mut state = self.state();
        for slots in ranges {
            slots.clone().for_each(|slot| state.set_claimed(slot, false));
            state.extents[(slots.start / EXTENT_SLOTS) as usize].soiled |= soiled;
        }
    }

    /// Copies pages from the base round where their hash is the announced one, combined with what they differ in (all
    /// pages', or nothing); returns the slots whose base is another one.
    fn copy_same(
        &self,
        first: u64,
        hashes: &[[u8; 16]],
        difference: &[u8],
        base: Option<&Level>,
    ) -> io::Result<Vec<Range<u64>>> {
        let mut bytes = vec![0; hashes.len() * PAGE_SIZE as usize];
        let mut same = vec![false; hashes.len()];
        let pages = bytes.chunks_exact_mut(PAGE_SIZE as usize);
        for (index, (page, hash)) in pages.zip(hashes).enumerate() {
            let vaddr = self.vaddr_of(first + index as u64);
            let held = match base {
                Some(base) => base.read_pages(self.owner, vaddr, page)?.is_some(),
                None => false,
            };
            same[index] = held && blake3::hash(page).as_bytes()[..16] == hash[..];
        }
        bytes.iter_mut().zip(difference).for_each(|(byte, difference)| *byte ^= difference);
        let slots_where = |wanted: bool| {
            let slots = same.iter().enumerate().filter(move |(_, same)| **same == wanted);
            runs_of(slots.map(|(index, _)| first + index as u64), usize::MAX)
        };
        for run in slots_where(true) {
            let from = ((run.start - first) * PAGE_SIZE) as usize;
            let to = ((run.end - first) * PAGE_SIZE) as usize;
            self.file.write_at(&bytes[from..to], run.start * PAGE_SIZE)?;
        }
        Ok(slots_where(false))
    }

    fn vaddr_of(&self, slot: u64) -> u64 {
        let behind = self.runs.partition_point(|(first, _)| *first <= slot);
        let (first, vaddr) = self.runs[behind - 1];
        vaddr + (slot - first) * PAGE_SIZE
    }

    /// Notes filled slots; when their extent is complete, hashes it and now and then starts its writeback.
    fn count_filled(&self, extent: usize, pages: u64, content: &Content) -> io::Result<()> {
        let slots = self.slots_of(extent as u64);
        let whole = slots.end - slots.start;
        {
            let mut state = self.state();
            let entry = &mut state.extents[extent];
            entry.filled += pages as u16;
            if u64::from(entry.filled) < whole {
                return Ok(());
            }
        }
        let hash = match content {
            Content::Data(bytes) if bytes.len() as u64 == whole * PAGE_SIZE => blake3::hash(bytes),
            _ => {
                let mut bytes = vec![0; ((whole * PAGE_SIZE) as usize).min(EXTENT_BYTES)];
                let read = self.file.read_at(&mut bytes, slots.start * PAGE_SIZE);
                if let Err(e) = read {
                    self.state().extents[extent].filled -= pages as u16;
                    return Err(e);
                }
                blake3::hash(&bytes)
            }
        };
        let mut state = self.state();
        state.extents[extent].hash = Some(*hash.as_bytes());
        state.hashed += 1;
        let group = extent / WRITEBACK_EXTENTS as usize * WRITEBACK_EXTENTS as usize;
        let last = (group + WRITEBACK_EXTENTS as usize).min(state.extents.len());
        if state.extents[group..last].iter().all(|extent| extent.hash.is_some()) {
            drop(state);
            let bytes = EXTENT_BYTES as u64;
            self.file.start_writeback(group as u64 * bytes, (last - group) as u64 * bytes);
        }
        Ok(())
    }
}

impl State {
    fn is_claimed(&self, slot: u64) -> bool {
        self.claimed[(slot / 64) as usize] & (1 << (slot % 64)) != 0
    }

    fn set_claimed(&mut self, slot: u64, claimed: bool) {
        let (word, bit) = (&mut self.claimed[(slot / 64) as usize], 1 << (slot % 64));
        if claimed { *word |= bit } else { *word &= !bit }
    }
}

/// Joins ascending numbers to ranges, the first `count_max` of them.
fn runs_of(numbers: impl Iterator<Item = u64>, count_max: usize) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for number in numbers {
        if let Some(run) = runs.last_mut().filter(|run| run.end == number) {
            run.end += 1;
        } else if runs.len() == count_max {
            break;
        } else {
            runs.push(number..number + 1);
        }
    }
    runs
}
