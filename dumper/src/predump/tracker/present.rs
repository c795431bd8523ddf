//! Which pages of a mapping hold something that only the process has: the pages that a dump must list.

use std::fs::File;
use std::os::fd::AsFd;

use godwit_wire::plan::{PAGE_SIZE, PE_PRESENT, PageRun};
use nix::errno::Errno;
use nix::unistd::Pid;

use super::TrackerError;
use crate::procfs::maps::Vma;
use crate::sys::pagemap_scan::{self, Masks, Region, category};

/// Regions that one scan returns at most.
const REGIONS: usize = 4096;

/// Pages that are present or swapped, without the zero page and without pages that are still the file's; all pages of
/// the vDSO. Sorted, for mappings in order of address.
///
/// # Errors
/// When the page tables cannot be scanned.
pub fn present(pid: Pid, vmas: &[Vma]) -> Result<Vec<PageRun>, TrackerError> {
    let failed = |vma: &Vma| {
        let (start, end) = (vma.start, vma.end);
        move |source| TrackerError::Scan { pid, what: "PAGEMAP_SCAN", start, end, source }
    };
    let whole = Vma::is_vdso;
    let Some(first) = vmas.first() else { return Ok(Vec::new()) };
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))
        .map_err(|error| failed(first)(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))))?;
    let clean = category::PFNZERO | category::FILE;
    let there = category::PRESENT | category::SWAPPED;
    let masks = Masks { inverted: clean, all: clean, any: there, returned: there };
    let mut runs: Vec<PageRun> = Vec::new();
    let mut regions = vec![Region::default(); REGIONS];
    for vma in vmas {
        if whole(vma) {
            push(&mut runs, vma.start, vma.end);
            continue;
        }
        let mut at = vma.start;
        while at < vma.end {
            let (count, end) = pagemap_scan::scan(pagemap.as_fd(), &(at..vma.end), 0, &masks, &mut regions)
                .map_err(failed(vma))?;
            for region in &regions[..count] {
                push(&mut runs, region.start, region.end);
            }
            at = end.max(at + PAGE_SIZE);
        }
    }
    Ok(runs)
}

fn push(runs: &mut Vec<PageRun>, start: u64, end: u64) {
    let nr_pages = (end - start) / PAGE_SIZE;
    match runs.last_mut() {
        Some(last) if last.end() == start => last.nr_pages += nr_pages,
        _ => runs.push(PageRun { vaddr: start, nr_pages, flags: PE_PRESENT }),
    }
}
