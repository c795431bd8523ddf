//! Extents on their way into a pages file: frames are put together in a buffer, at their places, and the extent is
//! hashed and written as a whole once its last slot is filled, in runs as long as its data; zero slots stay holes.
//!
//! An extent that is whole from the start needs no buffer of its own, and one of zeros alone neither buffer nor write.
//! When buffers are short, the extent that waits longest for the rest of its slots is *spilled*: what it has is
//! written, and read back for the hash when it is complete. So a client that begins many extents costs what single
//! writes cost, and no memory.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, OnceLock, PoisonError};

use godwit_wire::image::extent::{ExtentHash, ExtentHasher, extent_hash};
use godwit_wire::plan::{EXTENT_SLOTS, PAGE_SIZE};

use super::pages::{FillError, PagesFile, State};
use super::pool::{Buffer, EXTENT_LEN};
use super::slots::Slots;

/// Extents whose writeback is started together: 8 MiB.
const WRITEBACK_EXTENTS: usize = 8;
/// Slots of a run for which room is made first: below 256 KiB the call costs more than it saves.
const RESERVED_SLOTS: u64 = 64;
/// Bytes that are hashed at a time where no buffer is at hand.
const PIECE_LEN: usize = 64 << 10;
static ZEROS: [u8; PIECE_LEN] = [0; PIECE_LEN];

/// Writes the slots of a frame to their place, all of them; returns those that turned out to be no page to keep.
pub(crate) type Write<'w> = dyn FnMut(&mut [u8]) -> Result<Vec<Range<u64>>, FillError> + 'w;

/// What came for consecutive slots.
pub(crate) enum Arrival<'w> {
    /// Zeros; a buffer only where [`PagesFile::wants_zeros_written`].
    Zero(Option<Buffer>),
    /// Bytes that lie in this buffer where they lie in the extent.
    Placed(Buffer),
    /// Bytes that are still to be made, in the buffer if the extent has none yet.
    Written(Buffer, &'w mut Write<'w>),
}

/// An extent of which slots are still missing.
pub(super) struct Open {
    extent: usize,
    /// Counts extents as they are opened, over all files of a round.
    since: u64,
    /// `None` while somebody works on it.
    buffer: Option<Buffer>,
    /// Slots that the buffer holds.
    have: Slots,
    /// Those of them that are zero and are left out of the file.
    zero: Slots,
}

impl Open {
    pub(super) fn is_of(&self, extent: usize) -> bool {
        self.extent == extent
    }

    pub(super) fn is_in_work(&self, extent: usize) -> bool {
        self.extent == extent && self.buffer.is_none()
    }
}

/// An extent with all slots filled, to be hashed and written.
#[derive(Default)]
pub(crate) struct Whole {
    pub(super) extent: usize,
    buffer: Option<Buffer>,
    have: Slots,
    zero: Slots,
}

impl Whole {
    /// Whether it lies in a buffer: else it is in the file already, or of zeros alone.
    pub(crate) fn has_buffer(&self) -> bool {
        self.buffer.is_some()
    }
}

/// What remains to be done for a frame once it has a buffer.
enum Step<'a, 'w> {
    Zero,
    Placed,
    Written(&'a mut Write<'w>),
}

impl PagesFile {
    /// Whether a zero page of this slot's extent is to be written out, since the file may hold bytes of an earlier try.
    pub(crate) fn wants_zeros_written(&self, first: u64) -> bool {
        self.state().extents.get((first / EXTENT_SLOTS) as usize).is_some_and(|extent| extent.soiled)
    }

    /// Fills consecutive slots of one extent, which [`PagesFile::check_range`] gave. `since` orders extents by age.
    /// Returns the extent if that completes it, and the slots that turned out to differ, which are not filled.
    pub(crate) fn put(
        &self,
        slots: &Range<u64>,
        since: u64,
        arrival: Arrival<'_>,
    ) -> Result<(Option<Whole>, Vec<Range<u64>>), FillError> {
        let extent = (slots.start / EXTENT_SLOTS) as usize;
        let mine = relative(slots);
        let at = bytes_of(&(slots.start % EXTENT_SLOTS..slots.start % EXTENT_SLOTS + mine.count()));
        let (mut spare, step) = match arrival {
            Arrival::Zero(spare) => (spare, Step::Zero),
            Arrival::Placed(buffer) => (Some(buffer), Step::Placed),
            Arrival::Written(buffer, write) => (Some(buffer), Step::Written(write)),
        };
        let mut state = self.settled(extent, slots)?;
        let earlier = state.held(extent);
        state.claim(slots, true);
        let mut fresh = Slots::default();
        let mut buffer = match state.open.iter_mut().find(|open| open.extent == extent) {
            Some(open) => open.buffer.take(),
            None => {
                if spare.is_some() {
                    // Of an extent that was not spilled, only zeros can have been there before its first buffer.
                    fresh = if state.extents[extent].spilled { fresh } else { earlier };
                    state.open.push(Open { extent, since, buffer: None, have: fresh, zero: fresh });
                    self.opened.store(state.open.len(), Ordering::Relaxed);
                }
                spare.take()
            }
        };
        let Some(bytes) = &mut buffer else {
            // Zeros of an extent that nobody has begun: it is enough to know of them.
            state.extents[extent].filled += mine.count() as u16;
            let whole = self.is_filled(&state, extent);
            return Ok((whole.then(|| Whole { extent, buffer, ..Whole::default() }), Vec::new()));
        };
        drop(state);
        fresh.runs().for_each(|run| bytes[bytes_of(&run)].fill(0));
        let is_zero = matches!(step, Step::Zero);
        let done = match step {
            Step::Zero => {
                bytes[at].fill(0);
                Ok(Vec::new())
            }
            Step::Placed => {
                if let Some(placed) = &spare {
                    bytes[at.clone()].copy_from_slice(&placed[at]);
                }
                Ok(Vec::new())
            }
            Step::Written(write) => write(&mut bytes[at]),
        };
        drop(spare);
        let mut state = self.state();
        let good = match &done {
            Ok(different) => different.iter().fold(mine, |good, slots| good.without(relative(slots))),
            Err(_) => Slots::default(),
        };
        state.claim(slots, false);
        state.claim_of(extent, good);
        state.extents[extent].filled += good.count() as u16;
        let whole = self.is_filled(&state, extent);
        let index = state.open.iter().position(|open| open.extent == extent);
        let index = index.unwrap_or_else(|| unreachable!("an extent in work stays in the list of open ones"));
        let open = &mut state.open[index];
        open.have = open.have.or(good);
        open.zero = if is_zero { open.zero.or(good) } else { open.zero };
        let whole = if whole {
            let open = state.open.swap_remove(index);
            Some(Whole { extent, buffer: buffer.take(), have: open.have, zero: open.zero })
        } else {
            if open.have.is_empty() {
                state.open.swap_remove(index);
            } else {
                open.buffer = buffer.take();
            }
            None
        };
        self.tell(state);
        done.map(|different| (whole, different))
    }

    /// Fills a whole extent from memory and writes it, without a buffer.
    pub(crate) fn put_all(&self, slots: &Range<u64>, bytes: &[u8]) -> Result<(), FillError> {
        let extent = (slots.start / EXTENT_SLOTS) as usize;
        let mut state = self.settled(extent, slots)?;
        state.claim(slots, true);
        drop(state);
        let hash = extent_hash(bytes);
        if let Err(e) = self.file().write_at(bytes, slots.start * PAGE_SIZE) {
            let mut state = self.state();
            state.claim(slots, false);
            state.extents[extent].soiled = true;
            return Err(FillError::Io(e));
        }
        self.state().extents[extent].filled = (slots.end - slots.start) as u16;
        self.note_hash(extent, hash);
        Ok(())
    }

    /// Age of the extent that waits longest in this file, among those that nobody works on.
    pub(crate) fn oldest(&self) -> Option<u64> {
        if self.opened.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let state = self.state();
        state.open.iter().filter(|open| open.buffer.is_some()).map(|open| open.since).min()
    }

    /// Writes what the open extent of this age has, and gives up its buffer. `false` if somebody works on it now.
    pub(crate) fn spill(&self, since: u64) -> io::Result<bool> {
        let mut state = self.state();
        let Some(open) = state.open.iter_mut().find(|open| open.since == since) else { return Ok(false) };
        let (extent, have, zero) = (open.extent, open.have, open.zero);
        let mut buffer = open.buffer.take();
        let Some(bytes) = &buffer else { return Ok(false) };
        let soiled = state.extents[extent].soiled;
        drop(state);
        let written = self.write_runs(extent, bytes, if soiled { have } else { have.without(zero) });
        let mut state = self.state();
        match &written {
            Ok(()) => {
                state.extents[extent].spilled = true;
                state.open.retain(|open| open.extent != extent);
            }
            Err(_) => {
                state.extents[extent].soiled = true;
                let open = state.open.iter_mut().find(|open| open.extent == extent);
                open.into_iter().for_each(|open| open.buffer = buffer.take());
            }
        }
        self.tell(state);
        written.map(|()| true)
    }

    /// Hashes and writes an extent.
    pub(crate) fn write(&self, whole: &mut Whole) -> io::Result<()> {
        let extent = whole.extent;
        let (soiled, spilled) = {
            let state = self.state();
            (state.extents[extent].soiled, state.extents[extent].spilled)
        };
        let slots = self.slots_of(extent as u64);
        let count = slots.end - slots.start;
        let hash = match &mut whole.buffer {
            None if spilled || soiled => self.hash_of_file(&slots)?,
            None => hash_of_zeros(count),
            Some(buffer) => {
                for run in Slots::of_range(0..count).without(whole.have).runs() {
                    let offset = (slots.start + run.start) * PAGE_SIZE;
                    self.file().read_at(&mut buffer[bytes_of(&run)], offset)?;
                }
                let hash = extent_hash(&buffer[bytes_of(&(0..count))]);
                let written = if soiled { whole.have } else { whole.have.without(whole.zero) };
                self.write_runs(extent, buffer, written)?;
                hash
            }
        };
        self.note_hash(extent, hash);
        Ok(())
    }

    /// Takes back what [`PagesFile::put`] filled, after the extent could not be written.
    pub(crate) fn undo(&self, whole: Whole, slots: &Range<u64>) {
        let mine = relative(slots);
        let Whole { extent, buffer, have, zero } = whole;
        let mut state = self.state();
        state.claim(slots, false);
        let entry = &mut state.extents[extent];
        entry.filled -= mine.count() as u16;
        if buffer.is_some() {
            entry.soiled = true;
            let (have, zero) = (have.without(mine), zero.without(mine));
            state.open.push(Open { extent, since: 0, buffer, have, zero });
            self.opened.store(state.open.len(), Ordering::Relaxed);
        }
    }

    /// Gives up the buffers of extents that are not complete.
    pub(crate) fn drop_open(&self) {
        self.state().open.clear();
        self.opened.store(0, Ordering::Relaxed);
    }

    /// The state, once nobody works on the extent, if none of the slots is filled.
    fn settled(&self, extent: usize, slots: &Range<u64>) -> Result<MutexGuard<'_, State>, FillError> {
        let mut state = self.state();
        while state.open.iter().any(|open| open.is_in_work(extent)) {
            state.waiting += 1;
            state = self.settle.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        if let Some(slot) = slots.clone().find(|slot| state.is_claimed(*slot)) {
            let why = format!("slot {slot} of pages-{}.img is filled twice", self.pages_id);
            return Err(FillError::Refused(why));
        }
        Ok(state)
    }

    /// Tells those who wait in [`PagesFile::settled`], if there are any.
    fn tell(&self, state: MutexGuard<'_, State>) {
        self.opened.store(state.open.len(), Ordering::Relaxed);
        if state.waiting > 0 {
            self.settle.notify_all();
        }
    }

    fn is_filled(&self, state: &State, extent: usize) -> bool {
        let slots = self.slots_of(extent as u64);
        u64::from(state.extents[extent].filled) == slots.end - slots.start
    }

    fn write_runs(&self, extent: usize, buffer: &Buffer, slots: Slots) -> io::Result<()> {
        let first = extent as u64 * EXTENT_SLOTS;
        slots.runs().try_for_each(|run| {
            let (bytes, offset) = (&buffer[bytes_of(&run)], (first + run.start) * PAGE_SIZE);
            if run.end - run.start >= RESERVED_SLOTS {
                self.file().reserve(offset, bytes.len() as u64)?;
            }
            self.file().write_at(bytes, offset)
        })
    }

    fn hash_of_file(&self, slots: &Range<u64>) -> io::Result<ExtentHash> {
        let mut hasher = ExtentHasher::default();
        let mut piece = vec![0; PIECE_LEN];
        let end = slots.end * PAGE_SIZE;
        for offset in (slots.start * PAGE_SIZE..end).step_by(PIECE_LEN) {
            let piece = &mut piece[..(end - offset).min(PIECE_LEN as u64) as usize];
            self.file().read_at(piece, offset)?;
            hasher.update(piece);
        }
        Ok(hasher.finish())
    }

    /// Notes the hash of an extent that is in the file, and now and then starts writeback.
    fn note_hash(&self, extent: usize, hash: ExtentHash) {
        let mut state = self.state();
        state.extents[extent].hash = Some(hash);
        let group = extent / WRITEBACK_EXTENTS * WRITEBACK_EXTENTS;
        let last = (group + WRITEBACK_EXTENTS).min(state.extents.len());
        if state.extents[group..last].iter().all(|extent| extent.hash.is_some()) {
            drop(state);
            let bytes = EXTENT_LEN as u64;
            self.file().start_writeback(group as u64 * bytes, (last - group) as u64 * bytes);
        }
    }
}

/// The slots within their extent.
fn relative(slots: &Range<u64>) -> Slots {
    let first = slots.start % EXTENT_SLOTS;
    Slots::of_range(first..first + (slots.end - slots.start))
}

/// Where slots of an extent lie in its buffer.
fn bytes_of(slots: &Range<u64>) -> Range<usize> {
    (slots.start * PAGE_SIZE) as usize..(slots.end * PAGE_SIZE) as usize
}

fn hash_of_zeros(slots: u64) -> ExtentHash {
    static WHOLE: OnceLock<ExtentHash> = OnceLock::new();
    let hash = || {
        let mut hasher = ExtentHasher::default();
        let mut left = (slots * PAGE_SIZE) as usize;
        while left > 0 {
            let piece = left.min(PIECE_LEN);
            hasher.update(&ZEROS[..piece]);
            left -= piece;
        }
        hasher.finish()
    };
    if slots == EXTENT_SLOTS { *WHOLE.get_or_init(hash) } else { hash() }
}
