//! The page list of a round: which pages it holds, and where each lies in its pages file.
//!
//! A round's scan fixes this list before the first page is sent, so the place of every page in
//! `pages-N.img` is known at both ends: lanes may run in parallel and out of order, progress is exact, and
//! both sides encode the same `pagemap-*.img` bytes from it.

use std::ops::Range;

/// Size of a page of memory and of a slot of a pages file, in bytes (x86-64 `PAGE_SIZE`).
pub const PAGE_SIZE: u64 = 4096;

/// Slots in one extent: 256 pages, 1 MiB. Hashes and resends work on whole extents; no frame crosses one.
pub const EXTENT_SLOTS: u64 = 256;

/// The pages are found through the `parent` chain (`PE_PARENT`, criu/include/pagemap.h).
pub const PE_PARENT: u32 = 1;
/// The pages may be served lazily on restore (`PE_LAZY`).
pub const PE_LAZY: u32 = 2;
/// The pages lie in this round's pages file (`PE_PRESENT`).
pub const PE_PRESENT: u32 = 4;

/// Whose memory a pagemap describes; decides the image's file name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PageOwner {
    /// A task, by its pid inside its own pid namespace: `pagemap-PID.img`.
    Task(u32),
    /// A shared memory segment, by its shmid: `pagemap-shmem-ID.img`. Addresses are offsets in the segment.
    Shmem(u64),
}

impl PageOwner {
    /// File name of the pagemap image of this owner.
    pub fn pagemap_name(self) -> String {
        match self {
            PageOwner::Task(pid) => format!("pagemap-{pid}.img"),
            PageOwner::Shmem(id) => format!("pagemap-shmem-{id}.img"),
        }
    }
}

/// A run of consecutive pages with the same flags (`pagemap_entry`, images/pagemap.proto).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// Address of the first page, a multiple of [`PAGE_SIZE`].
    pub vaddr: u64,
    /// Length in pages, at least 1.
    pub nr_pages: u64,
    /// [`PE_PRESENT`] (with or without [`PE_LAZY`]) or [`PE_PARENT`], never both.
    pub flags: u32,
}

impl PageRun {
    /// Address behind the last page.
    pub fn end(&self) -> u64 {
        self.vaddr + self.nr_pages * PAGE_SIZE
    }

    /// Whether the pages lie in this round's own pages file.
    pub fn is_present(&self) -> bool {
        self.flags & PE_PRESENT != 0
    }
}

/// The pages of one owner in a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagesPlan {
    /// Whose memory this is.
    pub owner: PageOwner,
    /// Number of the pages file `pages-N.img`; at least 1, the same in every round of a session.
    pub pages_id: u32,
    /// Runs sorted by address, not overlapping.
    pub runs: Vec<PageRun>,
}

impl PagesPlan {
    /// Number of slots (pages with bytes of their own) in the pages file.
    pub fn slots(&self) -> u64 {
        self.runs.iter().filter(|run| run.is_present()).map(|run| run.nr_pages).sum()
    }

    /// File name of the pages file.
    pub fn pages_name(&self) -> String {
        format!("pages-{}.img", self.pages_id)
    }

    /// The present runs, each with the range of slots it fills.
    pub fn placed(&self) -> impl Iterator<Item = (PageRun, Range<u64>)> + '_ {
        let mut next = 0;
        self.runs.iter().filter(|run| run.is_present()).map(move |run| {
            let first = next;
            next += run.nr_pages;
            (*run, first..next)
        })
    }
}

/// What a sealed directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoundKind {
    /// A pre-dump round: memory only; its inventory says `img_version` 0.
    Round,
    /// The final set: everything a restore needs.
    Final,
}

/// A round as announced: its number, what it builds on, and its page lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoundPlan {
    /// Number of the round, from 1, never reused within a session. The final set has a number too.
    pub round: u32,
    /// The acknowledged round it builds on; `None` if it holds every page itself.
    pub base_round: Option<u32>,
    /// Pre-dump round or final set.
    pub kind: RoundKind,
    /// One list per owner of memory, each owner and each `pages_id` once.
    pub pages: Vec<PagesPlan>,
}
