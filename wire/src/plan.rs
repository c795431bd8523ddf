//! The page list of a round: which pages it holds, and where each lies in its pages file.
//!
//! A round's scan fixes this list before the first page is sent, so the place of every page in
//! `pages-N.img` is known at both ends: lanes may run in parallel and out of order, progress is exact, and
//! both sides encode the same `pagemap-*.img` bytes from it.

use std::collections::HashSet;
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

/// Address behind the last page a task may have (x86-64 with four-level page tables).
pub const TASK_SIZE: u64 = 1 << 47;

/// Owners of memory in one round.
pub const OWNERS_MAX: usize = 1 << 16;

/// Runs of pages in one round, over all owners.
pub const RUNS_MAX: usize = 1 << 24;

/// Slots in one pages file: file offsets are signed 64-bit numbers.
pub const SLOTS_MAX: u64 = i64::MAX as u64 / PAGE_SIZE;

/// Extents that hold `slots` slots; the last may be shorter.
pub fn extent_count(slots: u64) -> u64 {
    slots.div_ceil(EXTENT_SLOTS)
}

impl RoundPlan {
    /// Checks a plan before anything is derived from it; one that came over the wire is hostile until then.
    ///
    /// Errs unless: round and base round are at least 1 and the base is the older; at most [`OWNERS_MAX`] owners
    /// and [`RUNS_MAX`] runs; each owner and each `pages_id` occurs once; each list passes
    /// [`PagesPlan::validate`]; runs found in the parent occur only with a base round; and no run is left for a
    /// lazy restore only.
    pub fn validate(&self) -> Result<(), PlanError> {
        if self.round == 0 || self.base_round.is_some_and(|base| base == 0 || base >= self.round) {
            return Err(PlanError::Round { round: self.round, base_round: self.base_round });
        }
        if self.pages.len() > OWNERS_MAX {
            return Err(PlanError::TooManyOwners { count: self.pages.len() });
        }
        let count = self.pages.iter().fold(0usize, |sum, pages| sum.saturating_add(pages.runs.len()));
        if count > RUNS_MAX {
            return Err(PlanError::TooManyRuns { count });
        }
        let mut owners = HashSet::new();
        let mut pages_ids = HashSet::new();
        for pages in &self.pages {
            let owner = pages.owner;
            if !owners.insert(owner) {
                return Err(PlanError::OwnerTwice { owner });
            }
            if !pages_ids.insert(pages.pages_id) {
                return Err(PlanError::PagesIdTwice { owner, pages_id: pages.pages_id });
            }
            pages.validate()?;
            for run in &pages.runs {
                let fault = match run.flags {
                    PE_PARENT if self.base_round.is_none() => RunFault::ParentWithoutBase,
                    PE_LAZY => RunFault::Flags { flags: run.flags },
                    _ => continue,
                };
                return Err(PlanError::Run { owner, vaddr: run.vaddr, fault });
            }
        }
        Ok(())
    }
}

impl PagesPlan {
    /// Checks one list. Errs unless: `pages_id` and a task's pid are at least 1; each run passes
    /// [`PageRun::check`]; and the pages file stays within [`SLOTS_MAX`].
    pub fn validate(&self) -> Result<(), PlanError> {
        let mut previous = None;
        for run in &self.runs {
            let at = |fault| PlanError::Run { owner: self.owner, vaddr: run.vaddr, fault };
            run.check(self.owner, previous).map_err(at)?;
            previous = Some(run);
        }
        self.validate_totals()
    }

    /// What [`PagesPlan::validate`] asks of the list as a whole.
    pub(crate) fn validate_totals(&self) -> Result<(), PlanError> {
        let owner = self.owner;
        if owner == PageOwner::Task(0) {
            return Err(PlanError::OwnerZero);
        }
        if self.pages_id == 0 {
            return Err(PlanError::PagesIdZero { owner });
        }
        // Checked runs do not overlap and end below 2^63, so that this sum cannot overflow.
        let slots = self.slots();
        if slots > SLOTS_MAX { Err(PlanError::TooManySlots { owner, slots }) } else { Ok(()) }
    }
}

impl PageRun {
    /// Checks one run behind `previous`. Errs unless: at least one page; page aligned; ends at or below
    /// [`TASK_SIZE`] (for a segment: below 2^63); starts at or behind the end of `previous`; flags are
    /// [`PE_PRESENT`] with or without [`PE_LAZY`], [`PE_PARENT`], or [`PE_LAZY`] alone. `previous` must have passed
    /// this check.
    pub fn check(&self, owner: PageOwner, previous: Option<&PageRun>) -> Result<(), RunFault> {
        if self.nr_pages == 0 {
            return Err(RunFault::Empty);
        }
        if !self.vaddr.is_multiple_of(PAGE_SIZE) {
            return Err(RunFault::Unaligned);
        }
        let limit = match owner {
            PageOwner::Task(_) => TASK_SIZE,
            PageOwner::Shmem(_) => SLOTS_MAX * PAGE_SIZE,
        };
        let end = self.nr_pages.checked_mul(PAGE_SIZE).and_then(|bytes| self.vaddr.checked_add(bytes));
        if end.is_none_or(|end| end > limit) {
            return Err(RunFault::BeyondEnd { nr_pages: self.nr_pages, limit });
        }
        if let Some(previous) = previous.filter(|previous| self.vaddr < previous.end()) {
            return Err(RunFault::Unsorted { previous_end: previous.end() });
        }
        const PRESENT_LAZY: u32 = PE_PRESENT | PE_LAZY;
        match self.flags {
            PE_PRESENT | PRESENT_LAZY | PE_PARENT | PE_LAZY => Ok(()),
            flags => Err(RunFault::Flags { flags }),
        }
    }
}

/// A page list that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Round numbers start at 1 and only an older round can be built on.
    #[error("round {round} cannot build on round {base_round:?}")]
    Round {
        /// Number of the round.
        round: u32,
        /// The round it builds on.
        base_round: Option<u32>,
    },
    /// More than [`OWNERS_MAX`].
    #[error("{count} page lists are more than {OWNERS_MAX}")]
    TooManyOwners {
        /// Owners in the plan.
        count: usize,
    },
    /// More than [`RUNS_MAX`].
    #[error("{count} runs of pages are more than {RUNS_MAX}")]
    TooManyRuns {
        /// Runs in the plan.
        count: usize,
    },
    /// Two lists of one owner.
    #[error("two page lists are named {}", owner.pagemap_name())]
    OwnerTwice {
        /// The owner.
        owner: PageOwner,
    },
    /// A list of task 0.
    #[error("a page list belongs to pid 0")]
    OwnerZero,
    /// Two lists share a pages file.
    #[error("{} shares pages-{pages_id}.img with another list", owner.pagemap_name())]
    PagesIdTwice {
        /// Owner of the second list.
        owner: PageOwner,
        /// The shared number.
        pages_id: u32,
    },
    /// Pages files are numbered from 1.
    #[error("{} has pages id 0", owner.pagemap_name())]
    PagesIdZero {
        /// Owner of the list.
        owner: PageOwner,
    },
    /// More than [`SLOTS_MAX`].
    #[error("{} lists {slots} pages, more than a file can hold", owner.pagemap_name())]
    TooManySlots {
        /// Owner of the list.
        owner: PageOwner,
        /// Pages with bytes of their own.
        slots: u64,
    },
    /// A run breaks a rule.
    #[error("{}: run at {vaddr:#x} {fault}", owner.pagemap_name())]
    Run {
        /// Owner of the list.
        owner: PageOwner,
        /// Address of the run.
        vaddr: u64,
        /// Which rule.
        fault: RunFault,
    },
}

/// A rule that a run of pages breaks; reads on from "the run".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RunFault {
    /// No pages.
    #[error("has no pages")]
    Empty,
    /// Not a multiple of [`PAGE_SIZE`].
    #[error("is not page aligned")]
    Unaligned,
    /// Reaches beyond the address space or segment.
    #[error("of {nr_pages} pages reaches beyond {limit:#x}")]
    BeyondEnd {
        /// Length in pages.
        nr_pages: u64,
        /// Highest end allowed.
        limit: u64,
    },
    /// Starts before the run before it ends.
    #[error("starts before {previous_end:#x}, where the run before it ends")]
    Unsorted {
        /// End of the run before.
        previous_end: u64,
    },
    /// A combination of flags without a meaning.
    #[error("has flags {flags:#x}, which have no meaning")]
    Flags {
        /// The flags.
        flags: u32,
    },
    /// Points into a parent, and there is none.
    #[error("lies in a parent, but the round builds on none")]
    ParentWithoutBase,
    /// CRIU 4.1 and 4.2 would read different lengths.
    #[error("has {old} pages in its old and {new} in its new length field")]
    Lengths {
        /// Field 2 of the entry.
        old: u64,
        /// Field 5 of the entry.
        new: u64,
    },
}
