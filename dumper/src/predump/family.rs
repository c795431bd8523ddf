//! Pages that a fork left shared travel once: processes that have the same page at the same address.
//!
//! Each process keeps its own list and its own pages file, as CRIU's restore wants them; what is spared is the way. One
//! reader takes the extents of all such processes in order of address and keeps what it read until no further extent can
//! reach it. A page whose bytes are those of a kept one is not sent: the frame that carries the kept one names its slot
//! too. What is compared are the bytes that were read and are sent, so it does not matter that the processes run and are
//! read one after the other, nor which of them wrote meanwhile: that is dirty for the next round.
//!
//! Lists without an address in common are read as if there were no others.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use godwit_page_server::store::sink::{Content, Fill, Sink};
use godwit_wire::frame::{COPIES_MAX, CopyTo};
use godwit_wire::plan::{EXTENT_SLOTS, PAGE_SIZE, PageOwner};
use hdrhistogram::Histogram;

use super::pages::{PageSource, PagesError, Work};
use super::reader::{Extent, Kind, Reader};
use super::sent::Tally;
use crate::pool::Pool;
use crate::sys::process_vm::Remote;

const PAGE: usize = PAGE_SIZE as usize;
/// Extents that a reader keeps at most.
const KEPT_MAX: usize = 8;
/// Extents of each process, on average, that a reader takes in a row at least: at the ends of a row pages of one row are
/// not compared with those of the other, about half an extent of each process.
const ROW_MIN: usize = 32;
/// Rows for each reader, where there is enough for that.
const ROWS: usize = 2;

/// An extent of one of several lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Address of its first page.
    begin: u64,
    /// Which list.
    of: usize,
    /// Which of the extents that are to be sent.
    at: usize,
}

/// How many extents each of so many readers may keep: half of the buffers, so that nobody waits for one that nobody gives
/// back.
pub(super) fn kept_max(pool: &Pool, readers: usize) -> usize {
    KEPT_MAX.min(pool.most() / 2 / readers)
}

/// Rows of extents of the lists that have addresses in common, and which lists have none.
pub(super) fn split(works: &[Work<'_>], kept_max: usize, readers: usize) -> (Vec<Vec<Place>>, Vec<usize>) {
    let is_related = if kept_max == 0 { vec![false; works.len()] } else { related(works) };
    let (members, alone): (Vec<usize>, Vec<usize>) = (0..works.len()).partition(|of| is_related[*of]);
    let mut places: Vec<Place> = members.iter().flat_map(|of| places(*of, &works[*of])).collect();
    places.sort_unstable();
    let row = (places.len() / (readers * ROWS)).max(ROW_MIN * members.len()).max(1);
    (places.chunks(row).map(<[Place]>::to_vec).collect(), alone)
}

fn places<'w>(of: usize, work: &'w Work<'_>) -> impl Iterator<Item = Place> + 'w {
    work.extents.iter().enumerate().filter_map(move |(at, extent)| {
        let slot = extent * EXTENT_SLOTS;
        let (run, slots) = work.placed.get(work.placed.partition_point(|(_, slots)| slots.end <= slot))?;
        Some(Place { begin: run.vaddr + (slot - slots.start) * PAGE_SIZE, of, at })
    })
}

/// For each list whether it has an address in common with another one.
fn related(works: &[Work<'_>]) -> Vec<bool> {
    let mut is_related = vec![false; works.len()];
    let is_task = |work: &Work<'_>| matches!(work.plan.owner, PageOwner::Task(_)) && !work.extents.is_empty();
    let tasks = || works.iter().enumerate().filter(|(_, work)| is_task(work));
    if tasks().nth(1).is_none() {
        return is_related;
    }
    let runs = |(of, work): (usize, &Work<'_>)| {
        work.placed.iter().map(move |(run, _)| (run.vaddr, run.end(), of)).collect::<Vec<_>>()
    };
    let mut runs: Vec<(u64, u64, usize)> = tasks().flat_map(runs).collect();
    // Each list is in order already, which this sort makes use of.
    runs.sort();
    let mut farthest = (0, 0);
    for (begin, end, of) in runs {
        if begin < farthest.0 {
            is_related[of] = true;
            is_related[farthest.1] = true;
        }
        farthest = farthest.max((end, of));
    }
    is_related
}

/// A reader of a row.
pub(super) struct Family<'a> {
    source: PageSource<'a>,
    works: &'a [Work<'a>],
    round: u32,
    sink: &'a dyn Sink,
    readers: BTreeMap<usize, Reader<'a>>,
    kept: Vec<Kept>,
    kept_max: usize,
}

/// An extent of which all but its data was handed over.
struct Kept {
    of: usize,
    extent: Extent,
    /// Address behind its last page.
    end: u64,
    /// Who has some of its data too, as pages of the extent.
    copies: Vec<CopyTo>,
}

impl<'a> Family<'a> {
    pub(super) fn new(
        source: PageSource<'a>,
        works: &'a [Work<'a>],
        round: u32,
        sink: &'a dyn Sink,
        kept_max: usize,
    ) -> Self {
        Family { source, works, round, sink, readers: BTreeMap::new(), kept: Vec::new(), kept_max }
    }

    /// Reads the next extent of the row.
    pub(super) fn extent(
        &mut self,
        place: Place,
        done: &mut BTreeMap<usize, Tally>,
        latency_us: &mut Histogram<u64>,
    ) -> Result<(), PagesError> {
        // What lies below is met by no further extent. It goes first: it has a buffer that others wait for.
        self.release(place.begin, done)?;
        let Place { of, at, .. } = place;
        let work = &self.works[of];
        let fresh = || Reader::new(self.source, work, self.round, self.sink);
        let reader = self.readers.entry(of).or_insert_with(fresh);
        let tally = done.entry(of).or_default();
        let (mut extent, hashes) = reader.read_extent(work.extents[at], tally, latency_us)?;
        tally.hashes.push((at, hashes));
        for kept in self.kept.iter_mut().filter(|kept| kept.of != of) {
            kept.compare(&mut extent, work.plan.pages_id);
        }
        reader.hand_over(&extent, false, tally)?;
        if extent.kinds.contains(&Kind::Data) {
            let end = extent.pieces.last().map_or(0, |piece| piece.addr + piece.len as u64);
            self.kept.push(Kept { of, extent, end, copies: Vec::new() });
        }
        if self.kept.len() > self.kept_max {
            self.release_one(place.begin, done)?;
        }
        Ok(())
    }

    /// The row is over.
    pub(super) fn end(mut self, done: &mut BTreeMap<usize, Tally>) -> Result<(), PagesError> {
        self.release(u64::MAX, done)
    }

    /// Hands over what ends at or below an address.
    fn release(&mut self, below: u64, done: &mut BTreeMap<usize, Tally>) -> Result<(), PagesError> {
        while let Some(at) = self.kept.iter().position(|kept| kept.end <= below) {
            let kept = self.kept.remove(at);
            self.hand_over(kept, done)?;
        }
        Ok(())
    }

    /// Hands over the one with the fewest pages of data from an address on, which others can still meet; of several the
    /// last.
    fn release_one(&mut self, from: u64, done: &mut BTreeMap<usize, Tally>) -> Result<(), PagesError> {
        let least =
            self.kept.iter().enumerate().min_by_key(|(at, kept)| (kept.data_from(from), Reverse(*at)));
        let Some((at, _)) = least else { return Ok(()) };
        let kept = self.kept.remove(at);
        self.hand_over(kept, done)
    }

    /// Hands over the data of an extent, with who has it too.
    fn hand_over(&self, mut kept: Kept, done: &mut BTreeMap<usize, Tally>) -> Result<(), PagesError> {
        kept.copies.sort_unstable_by_key(|copy| copy.at);
        let mut rest = &kept.copies[..];
        let (extent, pages_id) = (&kept.extent, self.works[kept.of].plan.pages_id);
        for (at, _) in extent.runs().filter(|(_, run)| run[0] == Kind::Data) {
            let (mine, behind) = rest.split_at(rest.partition_point(|copy| (copy.at as usize) < at.end));
            rest = behind;
            let copies: Vec<CopyTo> =
                mine.iter().map(|copy| CopyTo { at: copy.at - at.start as u32, ..*copy }).collect();
            let bytes = extent.bytes.slice(at.start * PAGE..at.end * PAGE);
            let content =
                if copies.is_empty() { Content::Data(bytes) } else { Content::Spread { bytes, copies } };
            let first_slot = extent.first + at.start as u64;
            self.sink.fill(Fill { round: self.round, pages_id, first_slot, content })?;
            done.entry(kept.of).or_default().data_pages += at.len() as u64;
        }
        Ok(())
    }
}

impl Kept {
    /// Takes over the pages of another process's extent whose bytes are its own at the same addresses.
    fn compare(&mut self, other: &mut Extent, pages_id: u32) {
        for (ours, theirs, pages) in overlaps(&self.extent.pieces, &other.pieces) {
            for (our, their) in (ours..ours + pages).zip(theirs..) {
                let is_data = self.extent.kinds[our] == Kind::Data && other.kinds[their] == Kind::Data;
                let is_equal = || self.extent.pages(our..our + 1) == other.pages(their..their + 1);
                if is_data && is_equal() && self.note(our as u32, pages_id, other.first + their as u64) {
                    other.kinds[their] = Kind::Copy;
                }
            }
        }
    }

    /// Notes that a slot holds one of its pages too; `false` if there is no room for that.
    fn note(&mut self, at: u32, pages_id: u32, slot: u64) -> bool {
        // Two extents of the other process may follow each other here; an entry is within one.
        let follows = |last: &CopyTo| {
            (last.pages_id, last.at + last.pages, last.first_slot + u64::from(last.pages))
                == (pages_id, at, slot)
                && !slot.is_multiple_of(EXTENT_SLOTS)
        };
        if let Some(last) = self.copies.last_mut().filter(|last| follows(last)) {
            last.pages += 1;
            return true;
        }
        let has_room = self.copies.len() < COPIES_MAX;
        if has_room {
            self.copies.push(CopyTo { at, pages: 1, pages_id, first_slot: slot });
        }
        has_room
    }

    /// Pages of data that lie at an address or above.
    fn data_from(&self, from: u64) -> usize {
        let pieces = self.extent.pieces.iter();
        let addresses = pieces.flat_map(|piece| (piece.addr..).step_by(PAGE).take(piece.len / PAGE));
        let pages = self.extent.kinds.iter().zip(addresses);
        pages.filter(|(kind, vaddr)| **kind == Kind::Data && *vaddr >= from).count()
    }
}

/// Where two extents have the same addresses: the first page in the one, in the other, and how many.
fn overlaps(one: &[Remote], other: &[Remote]) -> Vec<(usize, usize, usize)> {
    let mut found = Vec::new();
    let (mut one, mut other) = (one.iter().peekable(), other.iter().peekable());
    let (mut at_one, mut at_other) = (0, 0);
    while let (Some(&a), Some(&b)) = (one.peek(), other.peek()) {
        let (a_end, b_end) = (a.addr + a.len as u64, b.addr + b.len as u64);
        let (begin, end) = (a.addr.max(b.addr), a_end.min(b_end));
        if begin < end {
            let pages = |from: u64, to: u64| ((to - from) / PAGE_SIZE) as usize;
            found.push((at_one + pages(a.addr, begin), at_other + pages(b.addr, begin), pages(begin, end)));
        }
        if a_end <= b_end {
            at_one += a.len / PAGE;
            one.next();
        }
        if b_end <= a_end {
            at_other += b.len / PAGE;
            other.next();
        }
    }
    found
}

#[cfg(test)]
#[path = "family_tests.rs"]
mod tests;
