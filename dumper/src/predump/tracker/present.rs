//! What the page tables say: which pages hold something that only the process has, which are soft-dirty.
//!
//! PAGEMAP_SCAN (Linux 6.7) answers in runs; on older kernels `/proc/PID/pagemap` is read word by word
//! (Documentation/admin-guide/mm/pagemap.rst).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use godwit_wire::plan::{PAGE_SIZE, PE_PRESENT, PageRun};
use nix::errno::Errno;
use nix::unistd::Pid;

use super::TrackerError;
use crate::procfs::maps::Vma;
use crate::sys::pagemap_scan::{self, Masks, Region, category};

/// Regions that one scan returns at most.
const REGIONS: usize = 4096;
/// Words of `/proc/PID/pagemap` read at once: 256 MiB of memory.
const WORDS: usize = 1 << 16;

/// Bits of a word of `/proc/PID/pagemap`.
mod bit {
    pub const PRESENT: u64 = 1 << 63;
    pub const SWAPPED: u64 = 1 << 62;
    pub const FILE: u64 = 1 << 61;
    /// A guard region (Linux 6.15).
    pub const GUARD: u64 = 1 << 58;
    pub const SOFT_DIRTY: u64 = 1 << 55;
}

/// Which pages are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Present or swapped, without the zero page, guards, and pages that are still the file's.
    Alive,
    /// Of those, the ones that are soft-dirty.
    SoftDirty,
    /// Guards (MADV_GUARD_INSTALL): they look swapped and can be neither read nor written. Linux 6.13 and 6.14 have
    /// them without a category of their own; there the marker in the page table tells them.
    Guards,
}

/// The page tables of one process.
#[derive(Debug)]
pub struct PageTables {
    pid: Pid,
    pagemap: File,
    scans: bool,
    /// The category of guards, or 0 where the kernel does not know it.
    guard: u64,
}

impl PageTables {
    /// Opens the page tables of a process.
    ///
    /// # Errors
    /// When the process is gone or may not be looked at.
    pub fn open(pid: Pid) -> Result<PageTables, TrackerError> {
        let open = File::open(format!("/proc/{pid}/pagemap"));
        let pagemap = open.map_err(|source| TrackerError::Open { pid, source })?;
        Ok(PageTables { pid, pagemap, scans: true, guard: category::GUARD })
    }

    /// The pages asked for, sorted, of mappings in order of address. All pages of the vDSO and of AIO rings are alive.
    ///
    /// # Errors
    /// When the page tables cannot be read.
    pub fn pages(&mut self, which: Which, vmas: &[Vma]) -> Result<Vec<PageRun>, TrackerError> {
        let mut runs = Vec::new();
        // One for all: a process may have tens of thousands of mappings.
        let mut regions = vec![Region::default(); REGIONS];
        for vma in spans(vmas).iter() {
            if vma.is_vdso() || vma.is_aio_ring() {
                if which == Which::Alive {
                    push(&mut runs, vma.range());
                }
                continue;
            }
            if !self.scan_if_possible(which, vma, &mut regions, &mut runs)? {
                self.read(which, vma, &mut runs)?;
            }
        }
        Ok(runs)
    }

    /// Scans a mapping; false where the kernel cannot. An unknown category is refused before anything is reported.
    fn scan_if_possible(
        &mut self,
        which: Which,
        vma: &Vma,
        regions: &mut [Region],
        runs: &mut Vec<PageRun>,
    ) -> Result<bool, TrackerError> {
        while self.scans {
            match self.scan(which, vma, regions, runs) {
                Err(TrackerError::Scan { source: Errno::EINVAL, .. }) if self.guard != 0 => {
                    tracing::debug!(pid = %self.pid, "this kernel does not tell guards");
                    self.guard = 0;
                }
                Err(TrackerError::Scan { source: Errno::ENOTTY | Errno::EINVAL, .. }) => {
                    tracing::debug!(pid = %self.pid, "no PAGEMAP_SCAN, reading the pagemap");
                    self.scans = false;
                }
                done => return done.map(|()| true),
            }
        }
        Ok(false)
    }

    fn scan(
        &self,
        which: Which,
        vma: &Vma,
        regions: &mut [Region],
        runs: &mut Vec<PageRun>,
    ) -> Result<(), TrackerError> {
        let clean = category::PFNZERO | category::FILE | self.guard;
        let there = category::PRESENT | category::SWAPPED;
        let masks = match which {
            Which::Alive => Masks { inverted: clean, all: clean, any: there, returned: there },
            Which::SoftDirty => {
                Masks { inverted: clean, all: clean | category::SOFT_DIRTY, any: there, returned: there }
            }
            Which::Guards if self.guard == 0 => Masks {
                inverted: category::PRESENT,
                all: category::PRESENT | category::SWAPPED,
                any: 0,
                returned: category::SWAPPED,
            },
            Which::Guards => Masks { inverted: 0, all: self.guard, any: 0, returned: self.guard },
        };
        let mut at = vma.start;
        while at < vma.end {
            let (count, end) = pagemap_scan::scan(self.pagemap.as_fd(), &(at..vma.end), 0, &masks, regions)
                .map_err(|source| self.failed("PAGEMAP_SCAN", vma, source))?;
            for region in &regions[..count] {
                let may_be_guards = self.guard == 0 && region.categories & category::PRESENT == 0;
                if may_be_guards {
                    self.part_guards(which, vma, region, runs)?;
                } else if which != Which::Guards || self.guard != 0 {
                    push(runs, region.start..region.end);
                }
            }
            at = end.max(at + PAGE_SIZE);
        }
        Ok(())
    }

    /// Pages that look swapped on a kernel without a category for guards: those that are guards, or those that are not.
    fn part_guards(
        &self,
        which: Which,
        vma: &Vma,
        region: &Region,
        runs: &mut Vec<PageRun>,
    ) -> Result<(), TrackerError> {
        self.words(vma, region.start..region.end, |at, word| {
            if is_guard_marker(word) == (which == Which::Guards) {
                push(runs, at..at + PAGE_SIZE);
            }
        })
    }

    /// The older way. It cannot tell the zero page, which is then sent as a page of zeros.
    fn read(&self, which: Which, vma: &Vma, runs: &mut Vec<PageRun>) -> Result<(), TrackerError> {
        self.words(vma, vma.range(), |at, word| {
            if is_wanted(which, word) {
                push(runs, at..at + PAGE_SIZE);
            }
        })
    }

    /// Goes through the pagemap's words for a range of a mapping: each page's address and word.
    fn words(
        &self,
        vma: &Vma,
        range: Range<u64>,
        mut each: impl FnMut(u64, u64),
    ) -> Result<(), TrackerError> {
        let mut bytes = vec![0u8; (((range.end - range.start) / PAGE_SIZE) as usize).min(WORDS) * 8];
        let mut at = range.start;
        while at < range.end {
            let words = (((range.end - at) / PAGE_SIZE) as usize).min(WORDS);
            let chunk = &mut bytes[..words * 8];
            self.pagemap.read_exact_at(chunk, at / PAGE_SIZE * 8).map_err(|error| {
                let errno = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
                self.failed("reading the pagemap", vma, errno)
            })?;
            for word in chunk.as_chunks::<8>().0 {
                each(at, u64::from_le_bytes(*word));
                at += PAGE_SIZE;
            }
        }
        Ok(())
    }

    fn failed(&self, what: &'static str, vma: &Vma, source: Errno) -> TrackerError {
        TrackerError::Scan { pid: self.pid, what, start: vma.start, end: vma.end, source }
    }
}

/// Whether a word of the pagemap, of a page that looks swapped, is that of a guard: a marker (swap type 31, the last)
/// with the bit that says guard (include/linux/swapops.h, PTE_MARKER_GUARD; Linux 6.13). Only CAP_SYS_ADMIN is shown it.
fn is_guard_marker(word: u64) -> bool {
    const TYPE: u64 = 0x1f;
    const GUARD: u64 = 1 << 2;
    word & (bit::PRESENT | bit::SWAPPED) == bit::SWAPPED && word & TYPE == TYPE && word >> 5 & GUARD != 0
}

fn is_wanted(which: Which, word: u64) -> bool {
    let alive = word & (bit::PRESENT | bit::SWAPPED) != 0 && word & (bit::FILE | bit::GUARD) == 0;
    match which {
        Which::Alive => alive,
        Which::SoftDirty => alive && word & bit::SOFT_DIRTY != 0,
        Which::Guards => word & bit::GUARD != 0,
    }
}

/// Mappings that lie side by side as one: the stacks of threads do by the thousand, and each question is a system call.
fn spans(vmas: &[Vma]) -> Vec<Vma> {
    let is_plain = |vma: &Vma| !vma.is_vdso() && !vma.is_aio_ring();
    let mut spans: Vec<Vma> = Vec::new();
    for vma in vmas {
        match spans.last_mut() {
            Some(last) if last.end == vma.start && is_plain(last) && is_plain(vma) => last.end = vma.end,
            _ => spans.push(vma.clone()),
        }
    }
    spans
}

/// Pages that are present or swapped, without the zero page, guards, and pages that are still the file's.
///
/// # Errors
/// When the page tables cannot be read.
pub fn alive(pid: Pid, vmas: &[Vma]) -> Result<Vec<PageRun>, TrackerError> {
    PageTables::open(pid)?.pages(Which::Alive, vmas)
}

/// Pages that are guards, as far as the kernel tells.
///
/// # Errors
/// When the page tables cannot be read.
pub fn guards(pid: Pid, vmas: &[Vma]) -> Result<Vec<PageRun>, TrackerError> {
    PageTables::open(pid)?.pages(Which::Guards, vmas)
}

/// Appends pages behind the last run, to which they are joined if they touch it.
pub(super) fn push(runs: &mut Vec<PageRun>, range: Range<u64>) {
    let nr_pages = (range.end - range.start) / PAGE_SIZE;
    match runs.last_mut() {
        Some(last) if last.end() == range.start => last.nr_pages += nr_pages,
        _ => runs.push(PageRun { vaddr: range.start, nr_pages, flags: PE_PRESENT }),
    }
}

/// As [`push`], for pages that may lie partly in the last run.
pub(super) fn join(runs: &mut Vec<PageRun>, range: Range<u64>) {
    let start = runs.last().map_or(range.start, |last| range.start.max(last.end()));
    if start < range.end {
        push(runs, start..range.end);
    }
}

/// Resets the soft-dirty bits of a process (man 5 proc, `clear_refs`). It succeeds in silence on kernels without them.
///
/// # Errors
/// When the file cannot be written.
pub fn clear_soft_dirty(pid: Pid) -> io::Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "4")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::maps;
    use crate::sys::memory::Mapping;

    /// Kernels before 6.13 refuse the advice.
    fn with_guards() -> Option<Mapping> {
        let mut memory = Mapping::anonymous(16 * PAGE_SIZE as usize).unwrap();
        (0..8).for_each(|page| memory.bytes()[page * PAGE_SIZE as usize] = 1);
        let installed = memory.guard(2, 3).and_then(|()| memory.guard(12, 1));
        installed.is_ok().then_some(memory)
    }

    #[test]
    fn guards_are_found_with_a_category_and_by_their_marker() {
        let Some(memory) = with_guards() else {
            eprintln!("SKIP guards: this kernel has none (Linux 6.13)");
            assert!(std::env::var("GODWIT_REQUIRE").as_deref() != Ok("all"), "a required test cannot run");
            return;
        };
        let vmas = maps::read(Pid::this()).unwrap();
        let mut here = vmas.into_iter().find(|vma| vma.range().contains(&memory.addr())).unwrap();
        (here.start, here.end) = (memory.addr(), memory.addr() + 16 * PAGE_SIZE);
        let mut tables = PageTables::open(Pid::this()).unwrap();
        let mut forced = PageTables::open(Pid::this()).unwrap();
        forced.guard = 0;
        let run = |page: u64, nr_pages| PageRun {
            vaddr: here.start + page * PAGE_SIZE,
            nr_pages,
            flags: PE_PRESENT,
        };
        for tables in [&mut tables, &mut forced] {
            let mut pages = |which| tables.pages(which, std::slice::from_ref(&here)).unwrap();
            assert_eq!(pages(Which::Guards), [run(2, 3), run(12, 1)]);
            assert_eq!(pages(Which::Alive), [run(0, 2), run(5, 3)]);
        }
    }
}
