//! Files of the kernel's own memory file system: memfds, and shared anonymous memory, which is one without a
//! descriptor. CRIU writes both alike (`memfd.img`, criu/memfd.c), and restores both as memfds.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{FileStat, SFlag};

use godwit_wire::image::fdinfo::{FdTypes, FileEntry};
use godwit_wire::image::fown::FownEntry;
use godwit_wire::image::memfd::{MemfdFileEntry, MemfdInodeEntry};
use godwit_wire::plan::TASK_SIZE;

use super::kind::{Around, Kind};
use super::{Descriptor, FileTable, fown, huge};
use crate::error::DumpError;
use crate::refusal::{Findings, Subject};
use crate::sys;

/// Memfds, and shared anonymous memory that was opened.
pub const KIND: Kind = Kind {
    r#type: FdTypes::Memfd,
    is: |descriptor| descriptor.is_file_of_type(SFlag::S_IFREG) && is_memory(&descriptor.stat),
    check: |around, descriptor, findings| {
        check(descriptor.stat.st_size as u64, descriptor.subject(around.pid), findings);
    },
    dump,
};

/// What the kernel puts before the name of a memfd (mm/memfd.c).
const PREFIX: &[u8] = b"/memfd:";
/// What it puts behind the name of a file without a link (fs/d_path.c).
const DELETED: &[u8] = b" (deleted)";

/// Device of the kernel's own memory file system, as `stat` tells it: that of a memfd of ours.
///
/// # Errors
/// When no memfd can be made.
pub fn device() -> nix::Result<u64> {
    static DEVICE: OnceLock<nix::Result<u64>> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        let probe = memfd_create(c"godwit", MFdFlags::MFD_CLOEXEC)?;
        let found = File::from(probe).metadata();
        found.map(|found| found.dev()).map_err(|why| Errno::from_raw(why.raw_os_error().unwrap_or(0)))
    })
}

/// Whether a file lies there, or is a memfd of huge pages.
pub fn is_memory(stat: &FileStat) -> bool {
    is_memory_device(stat.st_dev)
}

/// Whether the files of a device are memory files.
pub fn is_memory_device(device: u64) -> bool {
    self::device().is_ok_and(|own| own == device) || huge::memfd_flag(device).is_some()
}

/// The largest memory file that is dumped, in bytes: restore maps each one whole to fill it (criu/shmem.c), and half of
/// the addresses that a process has is what surely fits.
const LEN_BYTES_MAX: u64 = TASK_SIZE / 2;

/// Refuses a memory file that restore could not map.
pub fn check(len_bytes: u64, subject: Subject, findings: &mut Findings) {
    if len_bytes > LEN_BYTES_MAX {
        let why = format!("it is {len_bytes} bytes long, holes and all, and a restore maps it whole");
        findings.refuse(subject, why, format!("let the program cut it to {} TiB", LEN_BYTES_MAX >> 40));
    }
}

/// Whether a link in `/proc` points at what looks like a memory file by its name.
pub fn has_name_of_memory(target: &Path) -> bool {
    let text = target.as_os_str().as_bytes();
    text.starts_with(PREFIX) || text.starts_with(b"/dev/zero")
}

/// The name that `memfd_create` was given; of shared anonymous memory, the kernel's name for it.
fn name(target: &Path) -> Vec<u8> {
    let text = target.as_os_str().as_bytes();
    let text = text.strip_suffix(DELETED).unwrap_or(text);
    text.strip_prefix(PREFIX).unwrap_or(text).to_vec()
}

/// The record of a memory file in `memfd.img`. `at` opens it, `target` is what its link in `/proc` points at, `id` is
/// counted over all memory files.
///
/// # Errors
/// When it cannot be looked at, or its inode number does not fit the format.
pub fn inode_entry(at: &Path, target: &Path, stat: &FileStat, id: u32) -> Result<MemfdInodeEntry, DumpError> {
    let failed = |what, source| DumpError::sys(at.display().to_string(), what, source);
    let shmid = u32::try_from(stat.st_ino)
        .map_err(|_| failed("its inode number does not fit the image format", Errno::EOVERFLOW.into()))?;
    let file = File::open(at).map_err(|source| failed("open", source))?;
    let seals = sys::fcntl::seals(std::os::fd::AsFd::as_fd(&file));
    let seals = seals.map_err(|errno| failed("F_GET_SEALS", errno.into()))?;
    Ok(MemfdInodeEntry {
        name: name(target),
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: stat.st_size as u64,
        shmid,
        seals,
        inode_id: u64::from(id),
        hugetlb_flag: huge::memfd_flag(stat.st_dev),
        mode: Some(stat.st_mode),
    })
}

fn dump(
    around: &Around<'_>,
    id: u32,
    descriptor: &Descriptor,
    table: &mut FileTable,
) -> Result<FileEntry, DumpError> {
    let inode_id = table.memory_inode(&descriptor.own_link(), &descriptor.target, &descriptor.stat)?;
    Ok(file_entry(MemfdFileEntry {
        id,
        flags: descriptor.file_flags(),
        pos: descriptor.info.pos as u64,
        fown: fown::read(around.pid, descriptor)?,
        inode_id,
    }))
}

/// The record of a memory file that is mapped: restore opens it as the mapping says.
pub fn mapped_entry(id: u32, inode_id: u32) -> FileEntry {
    file_entry(MemfdFileEntry { id, flags: 0, pos: 0, fown: FownEntry::default(), inode_id })
}

fn file_entry(memfd: MemfdFileEntry) -> FileEntry {
    FileEntry { r#type: FdTypes::Memfd.into(), id: memfd.id, memfd: Some(memfd), ..FileEntry::default() }
}

#[cfg(test)]
mod tests {
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn names_lose_what_the_kernel_adds() {
        let name = |text: &str| String::from_utf8(name(Path::new(text))).unwrap();
        assert_eq!(name("/memfd:a b (deleted)"), "a b");
        assert_eq!(name("/memfd:x (deleted) (deleted)"), "x (deleted)");
        assert_eq!(name("/dev/zero (deleted)"), "/dev/zero");
        assert_eq!(name("/memfd: (deleted)"), "");
    }

    #[test]
    fn what_a_restore_cannot_map_is_refused() {
        let found = |len_bytes| {
            let mut findings = Findings::default();
            check(len_bytes, Subject::Process(Pid::this()), &mut findings);
            findings.refusals.len()
        };
        assert_eq!((found(1 << 46), found((1 << 46) + 1)), (0, 1));
    }

    #[test]
    fn a_memfd_lies_on_the_device_and_a_plain_file_does_not() {
        let memfd = memfd_create(c"x", MFdFlags::MFD_CLOEXEC).unwrap();
        assert!(is_memory(&nix::sys::stat::fstat(&memfd).unwrap()));
        assert!(!is_memory(&nix::sys::stat::stat("/").unwrap()));
    }
}
