//! File locks that the tree holds: `filelocks.img` (images/file-lock.proto).

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use nix::unistd::Pid;

use godwit_wire::image::file_lock::FileLockEntry;
use godwit_wire::image::{ImageError, ImageKind, ImageWriter};

use crate::error::DumpError;
use crate::procfs::fdinfo::{Lock, LockKind};
use crate::procfs::maps::Vma;
use crate::refusal::Findings;
use crate::sys;
use crate::task::files::{Descriptor, ghost};

/// The locks of a tree, each once.
#[derive(Debug, Default)]
pub struct FileLocks {
    entries: Vec<FileLockEntry>,
    /// Locks that belong to an open file description, whoever shares it: descriptors that show them, by lock.
    of_descriptions: HashMap<LockKey, Vec<(Pid, i32)>>,
}

/// What tells the locks of a file apart: the file, kind, access and range.
type LockKey = ((u64, u64), u32, Vec<u8>, u64, Option<u64>);

/// Refuses leases by name that somebody waits for, and those of deleted files: to copy one is to open it, which breaks a
/// lease, and the process that would have to give it back lies frozen.
pub fn check(pid: Pid, descriptors: &[Descriptor], findings: &mut Findings) {
    for descriptor in descriptors {
        for lock in &descriptor.info.locks {
            let why = match lock.kind {
                LockKind::Lease if lock.mode != b"ACTIVE" => {
                    "it holds a lease that another process waits for"
                }
                LockKind::Lease if ghost::is_deleted(&descriptor.stat) => {
                    "it holds a lease of a deleted file"
                }
                _ => continue,
            };
            findings.refuse(descriptor.subject(pid), why, "let the program give the lease back");
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

/// `FL_*` of a lock (criu/include/file-lock.h).
fn flag(lock: &Lock) -> u32 {
    match lock.kind {
        LockKind::Posix => 1,
        LockKind::Flock => 2,
        LockKind::Ofd => 4,
        LockKind::Lease => 8,
    }
}

impl FileLocks {
    /// Adds the locks of a stopped process, `inside` in its own pid namespace. A POSIX lock shows at every descriptor of
    /// its file and belongs to the process's descriptor table: of processes that share one only the first is to be added.
    /// The others show at every duplicate of a descriptor, in every process that has one, and belong to that:
    /// the first that is met stands for it.
    ///
    /// # Errors
    /// When `kcmp` is refused.
    pub fn add(&mut self, pid: Pid, inside: u32, descriptors: &[Descriptor]) -> Result<(), DumpError> {
        let mut seen = HashSet::new();
        for descriptor in descriptors {
            for lock in &descriptor.info.locks {
                let flag = flag(lock);
                let file = (descriptor.stat.st_dev, descriptor.stat.st_ino);
                let key = (file, flag, lock.access.clone(), lock.start, lock.end);
                let is_new = if lock.kind == LockKind::Posix {
                    seen.insert(key)
                } else {
                    self.is_new(key, pid, descriptor)?
                };
                if is_new {
                    self.entries.push(FileLockEntry {
                        flag,
                        r#type: u32::from(lock.access == b"WRITE"),
                        pid: inside as i32,
                        fd: descriptor.fd,
                        start: lock.start as i64,
                        len: lock.end.map_or(0, |end| end.saturating_sub(lock.start).saturating_add(1))
                            as i64,
                    });
                }
            }
        }
        Ok(())
    }

    fn is_new(&mut self, key: LockKey, pid: Pid, descriptor: &Descriptor) -> Result<bool, DumpError> {
        let holders = self.of_descriptions.entry(key).or_default();
        for &(other, fd) in holders.iter() {
            let order = sys::kcmp::files((other, fd), (pid, descriptor.fd)).map_err(|errno| {
                let subject = format!("fd {fd} of process {other} and fd {} of process {pid}", descriptor.fd);
                DumpError::sys(subject, "kcmp", errno)
            })?;
            if order.is_eq() {
                return Ok(false);
            }
        }
        holders.push((pid, descriptor.fd));
        Ok(true)
    }

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
