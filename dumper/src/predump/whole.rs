//! Mappings that no tracker sees right, or that CRIU's restore cannot take from a parent: they are no part of any round,
//! and the last set has them whole.
//!
//! Huge pages of hugetlbfs: restore maps them anew and reads them from one directory only (criu/mem.c,
//! generate_vma_iovs). AIO rings: the kernel writes to them by another address.

use std::collections::HashMap;

use nix::sys::statfs::{HUGETLBFS_MAGIC, statfs};
use nix::unistd::Pid;

use godwit_wire::plan::{PAGE_SIZE, PE_PARENT, PE_PRESENT, PageRun};

use crate::error::DumpError;
use crate::procfs::maps::Vma;
use crate::refusal::Findings;
use crate::task::vmas;

/// Parts mappings into those that are tracked and those that are sent whole at the end.
pub fn split(pid: Pid, all: Vec<Vma>) -> (Vec<Vma>, Vec<Vma>) {
    let mut huge = HugeDevices::default();
    all.into_iter().partition(|vma| !vma.is_aio_ring() && !huge.hold(pid, vma))
}

/// All pages of `whole` as written, merged into what a tracker reported; both in order of address.
pub fn with_all_of(dirty: Vec<PageRun>, whole: &[Vma]) -> Vec<PageRun> {
    if whole.is_empty() {
        return dirty;
    }
    let mut merged = dirty;
    merged.extend(whole.iter().map(|vma| PageRun {
        vaddr: vma.start,
        nr_pages: vma.len_bytes() / PAGE_SIZE,
        flags: PE_PRESENT,
    }));
    merged.sort_by_key(|run| run.vaddr);
    merged
}

/// Proves that the last set leaves no page of such a mapping to a round: a restore would not find it there. `flagged` are
/// the mappings with their VmFlags, which tell huge pages for certain.
///
/// # Errors
/// [`DumpError::Refused`] for a mapping that was not seen for what it is.
pub fn check(pid: Pid, runs: &[PageRun], flagged: &[Vma]) -> Result<(), DumpError> {
    let mut findings = Findings::default();
    for vma in flagged.iter().filter(|vma| vma.has_flag(b"ht") || vma.is_aio_ring()) {
        let first = runs.partition_point(|run| run.end() <= vma.start);
        let inside = runs[first..].iter().take_while(|run| run.vaddr < vma.end);
        if inside.into_iter().any(|run| run.flags & PE_PARENT != 0) {
            findings.refuse(
                vmas::subject(pid, vma),
                "a round took its huge pages for ordinary memory",
                "dump it without rounds (--max-rounds 0)",
            );
        }
    }
    findings.verdict()?;
    Ok(())
}

/// Which devices of mapped files are hugetlbfs: one question for each device. Asked anew for each list, since device
/// numbers are given away again.
#[derive(Default)]
struct HugeDevices(HashMap<(u32, u32), bool>);

impl HugeDevices {
    /// Whether the mapping's file lies on hugetlbfs. One that is gone by now is not said to; the last list is made of a
    /// stopped process, where none goes.
    fn hold(&mut self, pid: Pid, vma: &Vma) -> bool {
        if !vma.has_file() {
            return false;
        }
        let device = (vma.major, vma.minor);
        if let Some(&known) = self.0.get(&device) {
            return known;
        }
        let Ok(found) = statfs(&vmas::map_file(pid, vma)) else { return false };
        *self.0.entry(device).or_insert(found.filesystem_type() == HUGETLBFS_MAGIC)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::maps;

    #[test]
    fn whole_mappings_are_merged_in_order() {
        let vmas = maps::parse(b"3000-5000 rw-s 0 0:13 7 /[aio] (deleted)\n").unwrap();
        let run = |page: u64, nr_pages| PageRun { vaddr: page << 12, nr_pages, flags: PE_PRESENT };
        assert_eq!(with_all_of(vec![run(1, 1), run(9, 2)], &vmas), [run(1, 1), run(3, 2), run(9, 2)]);
        assert_eq!(with_all_of(vec![run(1, 1)], &[]), [run(1, 1)]);
    }

    #[test]
    fn a_page_of_a_huge_mapping_that_is_left_to_a_round_is_noticed() {
        let text = b"1000-3000 rw-p 0 0:0 0\nVmFlags: rd\n200000-400000 rw-p 0 0:11 7 /x\nVmFlags: rd ht\n";
        let vmas = maps::parse(text).unwrap();
        let run = |page: u64, flags| PageRun { vaddr: page << 12, nr_pages: 1, flags };
        let left = |runs: &[PageRun]| check(Pid::this(), runs, &vmas).is_err();
        assert!(!left(&[run(1, PE_PARENT), run(0x200, PE_PRESENT), run(0x400, PE_PARENT)]));
        assert!(left(&[run(1, PE_PARENT), run(0x200, PE_PRESENT), run(0x3ff, PE_PARENT)]));
    }

    #[test]
    fn rings_are_whole_and_ordinary_mappings_are_tracked() {
        let text = b"1000-2000 rw-p 0 0:0 0\n3000-5000 rw-s 0 0:13 7 /[aio] (deleted)\n";
        let (tracked, whole) = split(Pid::this(), maps::parse(text).unwrap());
        assert_eq!((tracked.len(), tracked[0].start), (1, 0x1000));
        assert_eq!((whole.len(), whole[0].start), (1, 0x3000));
        let own = maps::read(Pid::this()).unwrap();
        let count = own.len();
        let (tracked, whole) = split(Pid::this(), own);
        assert_eq!((tracked.len(), whole.len()), (count, 0), "a test program has no huge pages");
    }
}
