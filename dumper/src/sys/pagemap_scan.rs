//! The `PAGEMAP_SCAN` ioctl on /proc/PID/pagemap (kernel 6.7; Documentation/admin-guide/mm/pagemap.rst).

use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What the kernel can say of a page (include/uapi/linux/fs.h).
pub mod category {
    /// The page can be tracked by asynchronous write protection.
    pub const WPALLOWED: u64 = 1;
    /// Written since it was last protected.
    pub const WRITTEN: u64 = 1 << 1;
    /// Holds file content (page cache or shmem).
    pub const FILE: u64 = 1 << 2;
    /// In memory.
    pub const PRESENT: u64 = 1 << 3;
    /// Swapped out, or a marker without memory.
    pub const SWAPPED: u64 = 1 << 4;
    /// The shared zero page.
    pub const PFNZERO: u64 = 1 << 5;
    /// Part of a huge page.
    pub const HUGE: u64 = 1 << 6;
    /// Written since the last `clear_refs` (CONFIG_MEM_SOFT_DIRTY).
    pub const SOFT_DIRTY: u64 = 1 << 7;
    /// A guard region (MADV_GUARD_INSTALL). EINVAL in any mask where the kernel does not know it.
    pub const GUARD: u64 = 1 << 8;
}

/// Protect the reported pages again, in the same step (`PM_SCAN_WP_MATCHING`).
pub const WP_MATCHING: u64 = 1;
/// Fail with EPERM where the range is not under asynchronous write protection (`PM_SCAN_CHECK_WPASYNC`).
pub const CHECK_WPASYNC: u64 = 2;

/// A run of pages of the same categories (`struct page_region`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// Address behind the last byte.
    pub end: u64,
    /// Categories, of those in [`Masks::returned`].
    pub categories: u64,
}

/// Which pages to report: those where `(categories ^ inverted) & all == all` and
/// `(categories ^ inverted) & any != 0` (where `any` is not 0).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Masks {
    /// Categories that are turned round before the test.
    pub inverted: u64,
    /// All of these must be set.
    pub all: u64,
    /// At least one of these must be set.
    pub any: u64,
    /// Categories to tell apart in the answer.
    pub returned: u64,
}

#[repr(C)]
struct Arg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

nix::ioctl_readwrite!(
    /// PAGEMAP_SCAN as the kernel takes it.
    ioctl_scan,
    b'f',
    16,
    Arg
);

/// Scans a page-aligned range of the process whose pagemap is open as `pagemap`.
///
/// Fills `into` from the start, in rising order, and returns the number of regions and the address where the walk
/// ended. That is before `range.end` when `into` was full; call again from there.
///
/// The kernel's own word for the end cannot be taken. It keeps 512 regions, starts its walk again when they are
/// full, notes `walk_end` at each such stop, and leaves it there when the walk then reaches the end
/// (fs/proc/task_mmu.c, do_pagemap_scan). A scan that trusts it goes over the rest a second time, and reports what
/// was written since behind what lies above it.
///
/// EPERM: [`CHECK_WPASYNC`] and the range is not tracked. EINVAL: an unknown category or an unaligned range.
/// ENOTTY: a kernel before 6.7. ESRCH: the address space is gone.
pub fn scan(
    pagemap: BorrowedFd<'_>,
    range: &Range<u64>,
    flags: u64,
    masks: &Masks,
    into: &mut [Region],
) -> nix::Result<(usize, u64)> {
    let mut arg = Arg {
        size: std::mem::size_of::<Arg>() as u64,
        flags,
        start: range.start,
        end: range.end,
        walk_end: 0,
        vec: into.as_mut_ptr() as u64,
        vec_len: into.len() as u64,
        max_pages: 0,
        category_inverted: masks.inverted,
        category_mask: masks.all,
        category_anyof_mask: masks.any,
        return_mask: masks.returned,
    };
    // SAFETY: the kernel reads and writes one pm_scan_arg and at most vec_len regions at vec.
    let count = unsafe { ioctl_scan(pagemap.as_raw_fd(), &raw mut arg) }?;
    let count = usize::try_from(count).unwrap_or(0).min(into.len());
    let end = match into[..count].last() {
        Some(last) if count == into.len() => last.end.max(arg.walk_end),
        _ => range.end,
    };
    Ok((count, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memory::Mapping;
    use std::fs::File;
    use std::os::fd::AsFd;

    /// Every other page written: each is a region, and there are more than the kernel keeps.
    fn scattered(pages: usize) -> Mapping {
        let mut memory = Mapping::anonymous(pages * 4096).unwrap();
        (0..pages).step_by(2).for_each(|page| memory.bytes()[page * 4096] = 1);
        memory
    }

    const PRESENT: Masks = Masks { inverted: 0, all: category::PRESENT, any: 0, returned: category::PRESENT };

    #[test]
    fn many_regions_end_where_the_range_does() {
        let memory = scattered(4096);
        let range = memory.addr()..memory.addr() + (4096 << 12);
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        for room in [600, 1024, 2047, 2048, 2049, 4096] {
            let mut regions = vec![Region::default(); room];
            let (mut at, mut found) = (range.start, Vec::new());
            while at < range.end {
                let (count, end) =
                    scan(pagemap.as_fd(), &(at..range.end), 0, &PRESENT, &mut regions).unwrap();
                assert!(end > at, "the walk stands still");
                found.extend(regions[..count].iter().map(|region| region.start));
                at = end;
            }
            let expected: Vec<u64> = range.clone().step_by(2 << 12).collect();
            assert_eq!(found, expected, "with room for {room} regions");
        }
    }

    #[test]
    fn a_scan_that_had_room_is_not_repeated() {
        let memory = scattered(4096);
        let range = memory.addr()..memory.addr() + (4096 << 12);
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let mut regions = vec![Region::default(); 4096];
        let answer = scan(pagemap.as_fd(), &range, 0, &PRESENT, &mut regions).unwrap();
        assert_eq!(answer, (2048, range.end));
    }
}
