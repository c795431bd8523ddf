//! File locks that the task holds: `filelocks.img` (images/file-lock.proto).

use std::collections::HashSet;

use bytes::Bytes;
use nix::unistd::Pid;

use godwit_wire::image::file_lock::FileLockEntry;
use godwit_wire::image::{ImageError, ImageKind, ImageWriter};

use crate::procfs::fdinfo::{Lock, LockKind};
use crate::procfs::maps::Vma;
use crate::refusal::Findings;
use crate::task::files::Descriptor;

/// The locks of one task, each once.
#[derive(Debug, Default)]
pub struct FileLocks {
    entries: Vec<FileLockEntry>,
}

/// Refuses leases and mandatory locks by name: restore needs their other side.
pub fn check(pid: Pid, descriptors: &[Descriptor], findings: &mut Findings) {
    for descriptor in descriptors {
        for lock in &descriptor.info.locks {
            if flag(lock).is_none() {
                findings.refuse(
                    descriptor.subject(pid),
                    "it holds a lease, and leases are not dumped",
                    "let the program give the lease back",
                );
            }
        }
    }
}

/// Names the POSIX locks that restore loses: it takes them, then opens and closes the file once more for each of its
/// mappings, and closing any descriptor of a file drops all POSIX locks that the process has on it (man 2 fcntl).
pub fn check_mapped(pid: Pid, descriptors: &[Descriptor], vmas: &[Vma], findings: &mut Findings) {
    let is_mapped = |lock: &Lock| {
        vmas.iter()
            .any(|vma| vma.inode == lock.inode && (vma.major, vma.minor) == lock.device && vma.has_file())
    };
    for descriptor in descriptors {
        let mut posix = descriptor.info.locks.iter().filter(|lock| lock.kind == LockKind::Posix);
        if posix.any(is_mapped) {
            findings.lose(
                descriptor.subject(pid),
                "its POSIX lock is lost, since the file is also mapped and CRIU's restore opens and closes it for that; \
                 keep other programs away from the file until this one takes its lock again",
            );
        }
    }
}

/// Whether there is any lock.
pub fn any(descriptors: &[Descriptor]) -> bool {
    descriptors.iter().any(|descriptor| !descriptor.info.locks.is_empty())
}

/// Collects the locks. A POSIX lock shows at every descriptor of its file, a flock at every duplicate: the
/// lowest descriptor stands for it.
///
/// `inside` is the task's pid in its own pid namespace.
pub fn collect(inside: u32, descriptors: &[Descriptor]) -> FileLocks {
    let mut seen = HashSet::new();
    let mut entries = Vec::new();
    for descriptor in descriptors {
        for lock in &descriptor.info.locks {
            let Some(flag) = flag(lock) else { continue };
            let file = (descriptor.stat.st_dev, descriptor.stat.st_ino);
            if seen.insert((file, flag, lock.access.clone(), lock.start, lock.end)) {
                entries.push(FileLockEntry {
                    flag,
                    r#type: u32::from(lock.access == b"WRITE"),
                    pid: inside as i32,
                    fd: descriptor.fd,
                    start: lock.start as i64,
                    len: lock.end.map_or(0, |end| end.saturating_sub(lock.start).saturating_add(1)) as i64,
                });
            }
        }
    }
    FileLocks { entries }
}

/// `FL_*` of a lock that is dumped (criu/include/file-lock.h): POSIX 1, FLOCK 2, OFD 4.
fn flag(lock: &Lock) -> Option<u32> {
    match lock.kind {
        LockKind::Posix => Some(1),
        LockKind::Flock => Some(2),
        LockKind::Ofd => Some(4),
        LockKind::Lease => None,
    }
}

impl FileLocks {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// `filelocks.img`, or nothing if there are no locks.
    ///
    /// # Errors
    /// When a record is larger than the format allows.
    pub fn image(&self) -> Result<Option<(String, Bytes)>, ImageError> {
        if self.is_empty() {
            return Ok(None);
        }
        let mut writer = ImageWriter::new(ImageKind::FileLocks);
        for entry in &self.entries {
            writer.push(entry);
        }
        Ok(Some((ImageKind::FileLocks.file_name(0), writer.finish()?)))
    }
}
