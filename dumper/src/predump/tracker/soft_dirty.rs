//! The soft-dirty tracker: bit 55 of the pagemap, set by the kernel at every write, cleared by us.
//!
//! Asking and clearing are two steps, so both are done while every thread is stopped: a write in between would be
//! lost. The stop lasts as long as the scan; a mapping that appeared since has never been listed and is sent whole.
//! The bits do not tell a page from another that was moved to its place; its frame does (see [`super::frames`]).

use std::fs::File;

use godwit_wire::fault;
use nix::unistd::Pid;

use super::frames::{self, Frames};
use super::present::{self, PageTables, Which};
use super::{Ask, Run, Tracker, TrackerError};
use crate::freeze::seize;
use crate::procfs::maps::Vma;
use crate::sys::memory::Mapping;

/// Pages of the self-test.
const TEST_PAGES: usize = 8;
/// Which of them are written after the clearing.
const TEST_WRITTEN: [usize; 2] = [2, 5];

/// An armed soft-dirty tracker.
#[derive(Debug)]
pub struct SoftDirty {
    pid: Pid,
    frames: Frames,
}

impl SoftDirty {
    /// Clears the bits: from now on every write sets one. No stop is needed, since nothing was copied yet.
    ///
    /// # Errors
    /// When the process is gone, or its bits cannot be cleared.
    pub fn arm(pid: Pid) -> Result<SoftDirty, TrackerError> {
        clear(pid)?;
        Ok(SoftDirty { pid, frames: Frames::default() })
    }

    fn ask(&self, vmas: &[Vma]) -> Result<(Vec<Run>, Frames), TrackerError> {
        // Opened anew each time: an open pagemap stays with the address space that an execve left.
        let alive = PageTables::open(self.pid)?.pages(Which::Alive, vmas)?;
        let pagemap = open_pagemap(self.pid)?;
        self.frames.changed(&pagemap, &alive).map_err(|source| {
            let (start, end) = (alive.first().map_or(0, |run| run.vaddr), alive.last().map_or(0, Run::end));
            TrackerError::Scan { pid: self.pid, what: "reading the pagemap", start, end, source }
        })
    }
}

impl Tracker for SoftDirty {
    fn name(&self) -> &'static str {
        "soft-dirty"
    }

    fn collect(&mut self, ask: &Ask<'_>) -> Result<Vec<Run>, TrackerError> {
        if ask.is_stopped {
            // The bits stay, and so does what is known of the frames: it may be asked once more.
            return self.ask(ask.vmas).map(|(dirty, _)| dirty);
        }
        let frozen = seize::seize(self.pid)?;
        let (dirty, found) = self.ask(ask.vmas)?;
        fault::point("mid.tracker.asked")?;
        clear(self.pid)?;
        fault::point("mid.tracker.cleared")?;
        self.frames = found;
        frozen.thaw()?;
        Ok(dirty)
    }
}

fn open_pagemap(pid: Pid) -> Result<File, TrackerError> {
    File::open(format!("/proc/{pid}/pagemap")).map_err(|source| TrackerError::Open { pid, source })
}

fn clear(pid: Pid) -> Result<(), TrackerError> {
    present::clear_soft_dirty(pid).map_err(|source| TrackerError::Clear { pid, source })
}

/// Tries the bits on memory of our own: written pages must be seen, and no others. The kernel accepts the clearing
/// also where it has no such bits.
///
/// # Errors
/// Why they cannot be used here.
pub fn self_test() -> Result<(), String> {
    let this = Pid::this();
    let page = godwit_wire::plan::PAGE_SIZE as usize;
    let mut memory = Mapping::anonymous(TEST_PAGES * page).map_err(|errno| errno.to_string())?;
    (0..TEST_PAGES).for_each(|index| memory.bytes()[index * page] = 1);
    let start = memory.addr();
    let vmas = crate::procfs::maps::read(this).map_err(|error| error.to_string())?;
    let ours: Vec<Vma> = vmas.into_iter().filter(|vma| vma.start <= start && start < vma.end).collect();
    let chain = |error: TrackerError| crate::commands::chain(&error);
    let mut tracker = SoftDirty::arm(this).map_err(chain)?;
    let (all, found) = tracker.ask(&ours).map_err(chain)?;
    tracker.frames = found;
    clear(this).map_err(chain)?;
    TEST_WRITTEN.iter().for_each(|index| memory.bytes()[index * page] = 2);
    let (seen, _) = tracker.ask(&ours).map_err(chain)?;
    let is_seen = |runs: &[Run], index: usize| {
        let addr = start + (index * page) as u64;
        runs.iter().any(|run| run.vaddr <= addr && addr < run.end())
    };
    if (0..TEST_PAGES).any(|index| is_seen(&seen, index) != TEST_WRITTEN.contains(&index)) {
        return Err("the kernel keeps no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)".to_owned());
    }
    let shown = open_pagemap(this).map_err(chain).map(|pagemap| frames::are_shown(&pagemap, &all))?;
    match shown {
        Ok(true) => Ok(()),
        Ok(false) => Err("the kernel does not show page frames, which takes CAP_SYS_ADMIN".to_owned()),
        Err(errno) => Err(format!("reading the pagemap: {errno}")),
    }
}
