//! What became of the pages that were read: counts, hashes, times.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use godwit_wire::image::extent::ExtentHash;
use hdrhistogram::Histogram;

/// Page reads longer than this are counted as this long, in microseconds.
const LATENCY_MAX_US: u64 = 60_000_000;

/// What tells pages of a segment apart: BLAKE3, cut.
pub type PageHash = [u8; 16];

/// The hash of one page.
pub fn page_hash(page: &[u8]) -> PageHash {
    let mut short = PageHash::default();
    let hash = blake3::hash(page);
    short.iter_mut().zip(hash.as_bytes()).for_each(|(short, byte)| *short = *byte);
    short
}

/// What became of one owner's pages in a round.
#[derive(Debug)]
pub struct SentPages {
    /// The hash of every extent of the pages file, in order.
    pub extents: Vec<ExtentHash>,
    /// The hash of every page, by extent: of a segment in a round, and of the task as far as `PageSource::hashed_slots`
    /// says.
    pub page_hashes: Vec<Vec<PageHash>>,
    /// Pages that were listed and gone when they were read: their slots hold zeros, and they do not cover
    /// the page for the next round.
    pub gone: BTreeSet<u64>,
    /// Pages handed over as bytes.
    pub data_pages: u64,
    /// Pages handed over as zeros.
    pub zero_pages: u64,
    /// Pages handed over as the same as in the base round.
    pub same_pages: u64,
    /// Pages handed over as what they differ in from the base round.
    pub delta_pages: u64,
    /// Time of each read of up to an extent, in microseconds.
    pub read_latency_us: Histogram<u64>,
}

impl SentPages {
    /// Pages handed over in any form.
    pub fn pages(&self) -> u64 {
        self.data_pages + self.zero_pages + self.same_pages + self.delta_pages
    }

    /// Takes the place of what was sent of these extents before. Pages that were gone stay gone.
    pub fn sent_again(&mut self, extents: &[u64], again: SentPages) {
        self.gone.extend(again.gone);
        let hashes = again.extents.into_iter().zip(again.page_hashes);
        for (extent, (hash, pages)) in extents.iter().zip(hashes) {
            let extent = *extent as usize;
            if let (Some(old), Some(old_pages)) =
                (self.extents.get_mut(extent), self.page_hashes.get_mut(extent))
            {
                (*old, *old_pages) = (hash, pages);
            }
        }
    }
}

/// What was sent of the pages file `pages_id`, and the sum of all others.
pub fn split_off(pages_id: u32, sent: BTreeMap<u32, SentPages>) -> (SentPages, SentPages) {
    let (mut one, mut others) = (Tally::new(0).finish(), Tally::new(0).finish());
    for (id, sent) in sent {
        if id == pages_id {
            one = sent;
            continue;
        }
        others.data_pages += sent.data_pages;
        others.zero_pages += sent.zero_pages;
        others.same_pages += sent.same_pages;
        others.delta_pages += sent.delta_pages;
        others.read_latency_us += &sent.read_latency_us;
    }
    (one, others)
}

/// An empty histogram for times of page reads, in microseconds.
pub fn latency_histogram() -> Histogram<u64> {
    match Histogram::new_with_max(LATENCY_MAX_US, 2) {
        Ok(histogram) => histogram,
        Err(_) => unreachable!("two significant digits up to a minute are valid bounds"),
    }
}

/// A time as it is counted, in microseconds.
pub fn latency_us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(LATENCY_MAX_US).min(LATENCY_MAX_US)
}

/// The hash of an extent, and where they are wanted those of its pages.
pub(super) type ExtentHashes = (ExtentHash, Vec<PageHash>);

/// Counts of one reader, added up at the end.
pub(super) struct Tally {
    pub(super) hashes: Vec<Option<ExtentHashes>>,
    pub(super) gone: BTreeSet<u64>,
    pub(super) data_pages: u64,
    pub(super) zero_pages: u64,
    pub(super) same_pages: u64,
    pub(super) delta_pages: u64,
    pub(super) latency_us: Histogram<u64>,
}

impl Tally {
    pub(super) fn new(extents: usize) -> Tally {
        Tally {
            hashes: vec![None; extents],
            gone: BTreeSet::new(),
            data_pages: 0,
            zero_pages: 0,
            same_pages: 0,
            delta_pages: 0,
            latency_us: latency_histogram(),
        }
    }

    pub(super) fn add(&mut self, other: Tally) {
        for (slot, hash) in self.hashes.iter_mut().zip(other.hashes) {
            *slot = slot.take().or(hash);
        }
        self.gone.extend(other.gone);
        self.data_pages += other.data_pages;
        self.zero_pages += other.zero_pages;
        self.same_pages += other.same_pages;
        self.delta_pages += other.delta_pages;
        self.latency_us += other.latency_us;
    }

    pub(super) fn finish(self) -> SentPages {
        let (extents, page_hashes) = self.hashes.into_iter().flatten().unzip();
        SentPages {
            extents,
            page_hashes,
            gone: self.gone,
            data_pages: self.data_pages,
            zero_pages: self.zero_pages,
            same_pages: self.same_pages,
            delta_pages: self.delta_pages,
            read_latency_us: self.latency_us,
        }
    }
}
