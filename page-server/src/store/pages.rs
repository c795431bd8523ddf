//! A pages file while it is filled: every slot once, on purpose.
//!
//! The file has its full length from the start, so a slot that nobody filled would read as zeros, and a
//! restore would take them for the page, with success. Therefore a bitmap says which slots were filled, by
//! bytes, by an announced zero page or by a copy from the base round; a hole never counts. How bytes get into the
//! file, and when an extent is hashed, is in [`super::assembly`].

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use godwit_wire::error::Malformed;
use godwit_wire::image::extent::ExtentHash;
use godwit_wire::plan::{EXTENT_SLOTS, PAGE_SIZE, PageOwner, PagesPlan};

use super::assembly::Open;
use super::disk::DiskFile;
use super::parent::Level;
use super::slots::{Slots, runs_of};

const PAGE_LEN: usize = PAGE_SIZE as usize;
const EXTENT_WORDS: usize = (EXTENT_SLOTS / 64) as usize;

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
    /// Told whenever an extent is no longer worked on.
    pub(super) settle: Condvar,
    /// Open extents, to be asked without the lock.
    pub(super) opened: AtomicUsize,
}

#[derive(Default)]
pub(super) struct State {
    /// Slots that are filled or being filled.
    claimed: Vec<u64>,
    /// What is known of each extent.
    pub(super) extents: Vec<Extent>,
    /// Extents of which some slots are in memory.
    pub(super) open: Vec<Open>,
    /// Those who wait until nobody works on an extent.
    pub(super) waiting: usize,
}

#[derive(Clone, Default)]
pub(super) struct Extent {
    pub(super) filled: u16,
    /// The file may hold bytes of an earlier try, so that a zero page must be written out.
    pub(super) soiled: bool,
    /// The file holds the filled slots that are not in memory, and not only zeros.
    pub(super) spilled: bool,
    pub(super) hash: Option<ExtentHash>,
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
    /// The payload of a frame does not unpack: nothing was filled.
    Malformed(Malformed),
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
            open: Vec::new(),
            waiting: 0,
        };
        let runs = pages.placed().map(|(run, slots)| (slots.start, run.vaddr)).collect();
        let (pages_id, owner) = (pages.pages_id, pages.owner);
        let (settle, opened) = (Condvar::new(), AtomicUsize::new(0));
        Ok(Self { file, path, pages_id, owner, slots, runs, state: Mutex::new(state), settle, opened })
    }

    /// Opens an extent for being filled anew, as a resend does; its hash no longer counts.
    pub(crate) fn reopen_extent(&self, extent: u64) -> Result<(), FillError> {
        let slots = self.slots_of(extent);
        let mut state = self.state();
        let in_work = state.open.iter().any(|open| open.is_in_work(extent as usize));
        let claimed = slots.clone().filter(|slot| state.is_claimed(*slot)).count();
        let Some(entry) = state.extents.get_mut(extent as usize) else {
            let why = format!("pages-{}.img has no extent {extent}", self.pages_id);
            return Err(FillError::Refused(why));
        };
        let in_work = in_work || claimed != usize::from(entry.filled);
        if in_work {
            let why = format!("extent {extent} of pages-{}.img is being filled", self.pages_id);
            return Err(FillError::Refused(why));
        }
        *entry = Extent { soiled: true, ..Extent::default() };
        state.open.retain(|open| !open.is_of(extent as usize));
        self.opened.store(state.open.len(), Ordering::Relaxed);
        state.claim(&slots, false);
        Ok(())
    }

    /// The slots that nobody filled yet, in order; at most `count_max` ranges.
    pub(crate) fn missing(&self, count_max: usize) -> Vec<Range<u64>> {
        let state = self.state();
        runs_of((0..self.slots).filter(|slot| !state.is_claimed(*slot)), count_max)
    }

    /// The hash of every extent, or `None` while one is not filled.
    pub(crate) fn extent_hashes(&self) -> Option<Vec<ExtentHash>> {
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

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn slots_of(&self, extent: u64) -> Range<u64> {
        let first = extent.saturating_mul(EXTENT_SLOTS).min(self.slots);
        first..(first + EXTENT_SLOTS).min(self.slots)
    }

    /// The slots of a frame, if they are in one extent of the file.
    ///
    /// # Errors
    /// [`FillError::Refused`].
    pub(crate) fn check_range(&self, first: u64, pages: u64) -> Result<Range<u64>, FillError> {
        let name = format_args!("pages-{}.img", self.pages_id);
        let end = first.checked_add(pages).filter(|end| *end <= self.slots && pages > 0);
        let Some(end) = end else {
            return Err(FillError::Refused(format!(
                "{name}: {pages} pages from slot {first} are not in its {} slots",
                self.slots
            )));
        };
        if first / EXTENT_SLOTS != (end - 1) / EXTENT_SLOTS {
            let why = format!("{name}: {pages} pages from slot {first} cross the border of an extent");
            return Err(FillError::Refused(why));
        }
        Ok(first..end)
    }

    /// Whether these are all slots of their extent.
    pub(crate) fn is_whole(&self, slots: &Range<u64>) -> bool {
        *slots == self.slots_of(slots.start / EXTENT_SLOTS)
    }

    /// Reads the pages of the base round for slots from `first` on, in runs as long as they lie together, and returns the
    /// slots whose page is not there or has another hash.
    ///
    /// # Errors
    /// What the disk answers.
    pub(crate) fn read_base(
        &self,
        first: u64,
        hashes: &[[u8; 16]],
        base: Option<&Level>,
        pages: &mut [u8],
    ) -> io::Result<Vec<Range<u64>>> {
        let mut different = Vec::new();
        let mut done = 0;
        while let Some(hash) = hashes.get(done) {
            let slot = first + done as u64;
            let (vaddr, together) = self.place_of(slot);
            let until =
                hashes.len().min(done.saturating_add(usize::try_from(together).unwrap_or(usize::MAX)));
            let into = &mut pages[done * PAGE_LEN..until * PAGE_LEN];
            let read = base.map_or(Ok(0), |base| base.read_run(self.owner, vaddr, into))?;
            if read == 0 {
                tracing::trace!(slot, ?hash, "the base round does not hold it");
                different.push(slot);
                done += 1;
                continue;
            }
            for (index, page) in into[..read].chunks_exact(PAGE_LEN).enumerate() {
                if blake3::hash(page).as_bytes()[..16] != hashes[done + index][..] {
                    different.push(slot + index as u64);
                }
            }
            done += read / PAGE_LEN;
        }
        Ok(runs_of(different.into_iter(), usize::MAX))
    }

    /// Address of a slot's page, and how many slots from it on hold pages that follow each other.
    fn place_of(&self, slot: u64) -> (u64, u64) {
        let behind = self.runs.partition_point(|(first, _)| *first <= slot);
        let (first, vaddr) = self.runs[behind - 1];
        let end = self.runs.get(behind).map_or(self.slots, |(first, _)| *first);
        (vaddr + (slot - first) * PAGE_SIZE, end - slot)
    }
}

impl State {
    pub(super) fn is_claimed(&self, slot: u64) -> bool {
        self.claimed[(slot / 64) as usize] & (1 << (slot % 64)) != 0
    }

    /// Marks consecutive slots as taken, or as free.
    pub(super) fn claim(&mut self, slots: &Range<u64>, claimed: bool) {
        for slot in slots.clone() {
            let (word, bit) = (&mut self.claimed[(slot / 64) as usize], 1 << (slot % 64));
            if claimed { *word |= bit } else { *word &= !bit }
        }
    }

    /// Marks slots of an extent as taken.
    pub(super) fn claim_of(&mut self, extent: usize, slots: Slots) {
        let first = extent as u64 * EXTENT_SLOTS;
        slots.runs().for_each(|run| self.claim(&(first + run.start..first + run.end), true));
    }

    /// The slots of an extent that are taken.
    pub(super) fn held(&self, extent: usize) -> Slots {
        Slots::of_words(&self.claimed[extent * EXTENT_WORDS..])
    }
}
