//! The kernel's own mounts of hugetlbfs, one for each size of huge page: memfds of huge pages (`MFD_HUGETLB`) lie there,
//! and so does memory that was mapped with `MAP_HUGETLB`. CRIU tells them by their device (criu/hugetlb.c).

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// Where flags have the size of huge pages, as its logarithm (include/uapi/asm-generic/hugetlb_encode.h).
const SIZE_SHIFT: u32 = 26;
/// Where the kernel lists the sizes, as `hugepages-2048kB`.
const SIZES: &str = "/sys/kernel/mm/hugepages";

/// `MFD_HUGETLB` with the size of the pages, for a file of that device; `None` if it is of no such mount.
pub fn memfd_flag(device: u64) -> Option<u32> {
    static MOUNTS: OnceLock<Vec<(u64, u32)>> = OnceLock::new();
    let mounts = MOUNTS.get_or_init(|| {
        let names = fs::read_dir(SIZES).into_iter().flatten().flatten();
        names.filter_map(|entry| probe(size_flag(&entry.file_name())?)).collect()
    });
    mounts.iter().find(|(known, _)| *known == device).map(|(_, flag)| *flag)
}

/// The device of a memfd of ours; making one takes no huge page.
fn probe(size: u32) -> Option<(u64, u32)> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::from_bits_retain(libc::MFD_HUGETLB | size);
    let file = File::from(memfd_create(c"godwit", flags).ok()?);
    Some((file.metadata().ok()?.dev(), libc::MFD_HUGETLB | size))
}

/// `hugepages-2048kB` as the bits that ask for pages of 2 MiB.
fn size_flag(name: &OsStr) -> Option<u32> {
    let kib: u64 = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    let bytes = kib.checked_mul(1024).filter(|bytes| bytes.is_power_of_two())?;
    Some(bytes.trailing_zeros() << SIZE_SHIFT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_logarithms_in_the_upper_bits() {
        assert_eq!(size_flag(OsStr::new("hugepages-2048kB")), Some(21 << 26));
        assert_eq!(size_flag(OsStr::new("hugepages-1048576kB")), Some(30 << 26));
        assert!(
            ["hugepages-3kB", "hugepages-", "2048kB"]
                .iter()
                .all(|name| size_flag(OsStr::new(name)).is_none())
        );
    }

    #[test]
    fn a_memfd_of_huge_pages_is_told_by_its_device() {
        if let Some((device, flag)) = probe(21 << SIZE_SHIFT) {
            assert_eq!(memfd_flag(device), Some(flag));
        }
        let plain = File::from(memfd_create(c"x", MFdFlags::MFD_CLOEXEC).unwrap());
        assert_eq!(memfd_flag(plain.metadata().unwrap().dev()), None);
    }
}
