//! The soft-dirty tracker: bit 55 of the pagemap, set by the kernel at every write, cleared by us.
//!
//! Asking and clearing are two steps, so both are done while every thread is stopped: a write in between would be
//! lost. The stop lasts as long as the scan; a mapping that appeared since has never been listed and is sent whole.

use nix::unistd::Pid;

use super::present::{self, PageTables, Which};
use super::{Run, Tracker, TrackerError};
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
    tables: PageTables,
}

impl SoftDirty {
    /// Clears the bits: from now on every write sets one. No stop is needed, since nothing was copied yet.
    ///
    /// # Errors
    /// When the process is gone, or its bits cannot be cleared.
    pub fn arm(pid: Pid) -> Result<SoftDirty, TrackerError> {
        let tables = PageTables::open(pid)?;
        clear(pid)?;
        Ok(SoftDirty { pid, tables })
    }

    fn ask_and_clear(&mut self, vmas: &[Vma]) -> Result<Vec<Run>, TrackerError> {
        let dirty = self.tables.pages(Which::SoftDirty, vmas)?;
        clear(self.pid)?;
        Ok(dirty)
    }
}

impl Tracker for SoftDirty {
    fn name(&self) -> &'static str {
        "soft-dirty"
    }

    fn collect(&mut self, vmas: &[Vma], is_stopped: bool) -> Result<Vec<Run>, TrackerError> {
        if is_stopped {
            return self.ask_and_clear(vmas);
        }
        let frozen = seize::seize(self.pid)?;
        let dirty = self.ask_and_clear(vmas);
        frozen.thaw()?;
        dirty
    }
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
    present::clear_soft_dirty(this).map_err(|error| format!("clear_refs: {error}"))?;
    TEST_WRITTEN.iter().for_each(|index| memory.bytes()[index * page] = 2);
    let start = memory.addr();
    let vmas = crate::procfs::maps::read(this).map_err(|error| error.to_string())?;
    let ours: Vec<Vma> = vmas.into_iter().filter(|vma| vma.start <= start && start < vma.end).collect();
    let seen = PageTables::open(this).and_then(|mut tables| tables.pages(Which::SoftDirty, &ours));
    let seen = seen.map_err(|error| error.to_string())?;
    let is_seen = |index: usize| {
        let addr = start + (index * page) as u64;
        seen.iter().any(|run| run.vaddr <= addr && addr < run.end())
    };
    match (0..TEST_PAGES).find(|index| is_seen(*index) != TEST_WRITTEN.contains(index)) {
        None => Ok(()),
        Some(_) => Err("the kernel keeps no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)".to_owned()),
    }
}
