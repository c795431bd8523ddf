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
    /// Pages handed over by naming their slots beside another process's bytes.
    pub copied_pages: u64,
}

/// What became of the pages of a round.
#[derive(Debug)]
pub struct Sent {
    /// By pages file.
    pub pages: BTreeMap<u32, SentPages>,
    /// Time of each read of up to an extent, in microseconds.
    pub read_latency_us: Histogram<u64>,
}

/// Pages that were handed over, by their form, and pages that were gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// As bytes.
    pub data: u64,
    /// As zeros.
    pub zero: u64,
    /// As the same as in the base round.
    pub same: u64,
    /// As what they differ in from the base round.
    pub delta: u64,
    /// As those of another process.
    pub copied: u64,
    /// Listed and gone when they were read.
    pub gone: u64,
}

impl Counts {
    /// The sum over some pages files.
    pub fn of<'a>(sent: impl Iterator<Item = &'a SentPages>) -> Counts {
        sent.fold(Counts::default(), |sum, sent| Counts {
            data: sum.data + sent.data_pages,
            zero: sum.zero + sent.zero_pages,
            same: sum.same + sent.same_pages,
            delta: sum.delta + sent.delta_pages,
            copied: sum.copied + sent.copied_pages,
            gone: sum.gone + sent.gone.len() as u64,
        })
    }

    /// Pages handed over in any form.
    pub fn sent(&self) -> u64 {
        self.data + self.zero + self.same + self.delta + self.copied
    }
}

impl SentPages {
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

/// What one reader did of one pages file, added up at the end.
#[derive(Default)]
pub(super) struct Tally {
    /// By the place of the extent among those that are sent.
    pub(super) hashes: Vec<(usize, ExtentHashes)>,
    pub(super) gone: BTreeSet<u64>,
    pub(super) data_pages: u64,
    pub(super) zero_pages: u64,
    pub(super) same_pages: u64,
    pub(super) delta_pages: u64,
    pub(super) copied_pages: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: Tally) {
        self.hashes.extend(other.hashes);
        self.gone.extend(other.gone);
        self.data_pages += other.data_pages;
        self.zero_pages += other.zero_pages;
        self.same_pages += other.same_pages;
        self.delta_pages += other.delta_pages;
        self.copied_pages += other.copied_pages;
    }

    pub(super) fn finish(mut self) -> SentPages {
        self.hashes.sort_unstable_by_key(|(at, _)| *at);
        let (extents, page_hashes) = self.hashes.into_iter().map(|(_, hashes)| hashes).unzip();
        SentPages {
            extents,
            page_hashes,
            gone: self.gone,
            data_pages: self.data_pages,
            zero_pages: self.zero_pages,
            same_pages: self.same_pages,
            delta_pages: self.delta_pages,
            copied_pages: self.copied_pages,
        }
    }
}
