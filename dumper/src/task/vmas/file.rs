//! The file behind a mapping.

use std::collections::HashSet;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use nix::sys::stat::{FileStat, makedev, stat};
use nix::unistd::Pid;

use super::{is_memory_file, subject};
use crate::error::DumpError;
use crate::handover::chain;
use crate::prepare::plugins;
use crate::procfs::maps::Vma;
use crate::refusal::Findings;
use crate::task::files::{FileTable, ghost, memfd, reg};

/// What the memory map says of a mapping's file: device, inode, path. Mappings of whatever processes of a tree that say the
/// same are of one file, since all have the same mounts.
pub type FileKey = (u32, u32, u64, Vec<u8>);

/// The file of a mapping.
pub(in crate::task) fn key(vma: &Vma) -> FileKey {
    (vma.major, vma.minor, vma.inode, vma.path.clone())
}

/// Files that were found under their paths in one look at a tree: most of its processes map the same libraries.
#[derive(Debug, Default)]
pub struct Checked(Mutex<HashSet<FileKey>>);

impl Checked {
    fn has(&self, vma: &Vma) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&key(vma))
    }

    fn note(&self, vma: &Vma) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key(vma));
    }
}

/// Where the kernel gives access to the file of a mapping (man 5 proc, `map_files`).
pub fn map_file(pid: Pid, vma: &Vma) -> PathBuf {
    format!("/proc/{pid}/map_files/{:x}-{:x}", vma.start, vma.end).into()
}

/// Restore opens the file of a mapping by its path: it must be a regular file, still there.
pub(super) fn check_file(pid: Pid, vma: &Vma, ghost_limit: u64, checked: &Checked, findings: &mut Findings) {
    if checked.has(vma) {
        return;
    }
    let refuse = |findings: &mut Findings, why: String| {
        findings.refuse(
            subject(pid, vma),
            why,
            "put the file back under its path, or let the program unmap it",
        );
    };
    let link = map_file(pid, vma);
    let target = fs::read_link(&link);
    let found = match stat(&link) {
        Ok(found) => found,
        // The mapping is gone already: the task runs, and is looked at again under freeze.
        Err(nix::errno::Errno::ENOENT) => return,
        Err(errno) => return refuse(findings, format!("its file cannot be looked at ({errno})")),
    };
    if found.st_mode & libc::S_IFMT != libc::S_IFREG && !is_zero_device(&found) {
        return refuse(findings, "it maps something that is not a regular file".into());
    }
    if ghost::is_deleted(&found) {
        return ghost::check(&link, &found, ghost_limit, subject(pid, vma), findings);
    }
    // The same address may have come to map another file between the two looks: that is not this file's fault, and it is
    // looked at again under freeze.
    let (Ok(target), Ok(now)) = (target, fs::read_link(&link)) else { return };
    if now != target {
        return;
    }
    let before = findings.refusals.len();
    reg::check_path(pid, &target, &found, subject(pid, vma), findings);
    if findings.refusals.len() == before {
        checked.note(vma);
    }
}

/// Whether it is a shared mapping of a device, or of another file that is not regular, that a plugin sees to.
///
/// # Errors
/// Why a plugin failed, in words.
pub(super) fn is_of_plugin(pid: Pid, vma: &Vma) -> Result<bool, String> {
    if !plugins::may_handle_devices() || !vma.shared || vma.inode == 0 || is_memory_file(vma) {
        return Ok(false);
    }
    // To look at it first: a device notices that it is opened.
    let link = map_file(pid, vma);
    let is_device =
        |found: &FileStat| !matches!(found.st_mode & libc::S_IFMT, libc::S_IFREG) && !is_zero_device(found);
    let Some(found) = stat(&link).ok().filter(is_device) else { return Ok(false) };
    let Ok(file) = fs::File::open(&link) else { return Ok(false) };
    plugins::handles_device(file.as_fd(), &found).map_err(|error| chain(&error))
}

/// The deleted regular file behind a mapping; `None` if there is no such, or it is gone by now.
pub fn deleted_file(pid: Pid, vma: &Vma) -> Option<FileStat> {
    // By name first: to stat a file of a network that hangs would hang as well.
    let may_be = vma.inode != 0 && !vma.is_aio_ring() && ghost::has_name_of_deleted(&vma.path);
    let found = may_be.then(|| stat(&map_file(pid, vma)).ok()).flatten()?;
    (ghost::is_deleted_file(&found) && !memfd::is_memory(&found)).then_some(found)
}

/// Restore makes a memory file anew. A mapping that is gone already is looked at again under freeze.
pub(super) fn check_memory(pid: Pid, vma: &Vma, findings: &mut Findings) {
    if let Ok(found) = stat(&map_file(pid, vma)) {
        memfd::check(found.st_size as u64, subject(pid, vma), findings);
    }
}

/// Whether it is `/dev/zero`: private mappings of it are anonymous memory that keeps the file (drivers/char/mem.c,
/// mmap_zero). Shared ones are memory files.
fn is_zero_device(found: &FileStat) -> bool {
    found.st_mode & libc::S_IFMT == libc::S_IFCHR && found.st_rdev == makedev(1, 5)
}

/// With which access the file of a mapping was opened.
pub(super) fn open_flags(pid: Pid, vma: &Vma) -> Result<u32, DumpError> {
    let found = fs::symlink_metadata(map_file(pid, vma));
    let mode = found.map_err(failed(pid, vma, "lstat of its map_files link"))?.permissions().mode();
    Ok(match mode & 0o600 {
        0o200 => libc::O_WRONLY,
        0o400 => libc::O_RDONLY,
        _ => libc::O_RDWR,
    } as u32)
}

/// The id of the mapping's file, which is entered into the table, and how restore opens it; `flags` are [`open_flags`].
pub(super) fn file_of(
    pid: Pid,
    vma: &Vma,
    flags: Option<u32>,
    table: &mut FileTable,
) -> Result<(u64, Option<u32>), DumpError> {
    let id = table.mapped(key(vma), |table| {
        let link = map_file(pid, vma);
        let target = fs::read_link(&link).map_err(failed(pid, vma, "readlink of its map_files link"))?;
        table.special(pid, &link, target.as_os_str().as_bytes())
    })?;
    // Through a descriptor that may write, even a mapping that only reads would keep restore from sealing the file.
    let is_sealed = is_memory_file(vma) && table.is_sealed_against_writes(vma.inode);
    let flags = if is_sealed { Some(libc::O_RDONLY as u32) } else { flags };
    Ok((u64::from(id), flags))
}

fn failed(pid: Pid, vma: &Vma, what: &'static str) -> impl FnOnce(std::io::Error) -> DumpError {
    let subject = subject(pid, vma).to_string();
    move |source| DumpError::sys(subject, what, source)
}
