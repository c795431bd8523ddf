//! Files that restore opens by path: regular files, directories, `/dev/null` and its kind.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag, stat};
use nix::unistd::Pid;

use godwit_wire::image::fdinfo::{FdTypes, FileEntry};
use godwit_wire::image::regfile::RegFileEntry;

use super::{Descriptor, fown, ghost};
use crate::error::DumpError;
use crate::refusal::{Findings, Subject};

/// Checks that the path that restore would open is this file.
pub fn check(pid: Pid, descriptor: &Descriptor, findings: &mut Findings) {
    check_path(pid, &descriptor.target, &descriptor.stat, descriptor.subject(pid), findings);
}

/// Checks that `target`, a path in the task's root, is the inode of `expected`.
pub fn check_path(pid: Pid, target: &Path, expected: &FileStat, subject: Subject, findings: &mut Findings) {
    let why = match stat(&in_root(pid, target)) {
        Ok(found) if (found.st_dev, found.st_ino) == (expected.st_dev, expected.st_ino) => return,
        Ok(_) => "another file has its path now, and a restore would open that".to_owned(),
        Err(Errno::ENOENT) if expected.st_nlink > 0 => {
            "its path is gone while the file has another link, and a restore opens it by its path".to_owned()
        }
        Err(errno) => format!("its path cannot be opened ({errno}), and a restore opens it by path"),
    };
    findings.refuse(subject, why, "put the file back under its path, or let the program open it anew");
}

/// A path of the task's, as a link in `/proc` shows it to the dumper, in a form that the dumper can open.
///
/// The link shows the whole path, also to a task in a root directory of its own (chroot), since restore opens files
/// before it changes the root. A task in the root of its mount namespace is gone to through its own root, which may be
/// another mount namespace than ours.
pub fn in_root(pid: Pid, target: &Path) -> PathBuf {
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let is_changed = std::fs::read_link(&root).is_ok_and(|root| root != Path::new("/"));
    if is_changed {
        return target.to_owned();
    }
    root.join(target.strip_prefix("/").unwrap_or(target))
}

/// The entry of an open file.
///
/// # Errors
/// When its owner cannot be read.
pub fn entry(pid: Pid, id: u32, descriptor: &Descriptor) -> Result<FileEntry, DumpError> {
    let flags = descriptor.file_flags();
    let (size, mode) = validation(&descriptor.stat, flags);
    Ok(FileEntry {
        r#type: FdTypes::Reg.into(),
        id,
        reg: Some(RegFileEntry {
            id,
            flags,
            pos: descriptor.info.pos as u64,
            fown: fown::read(pid, descriptor)?,
            name: name_of(descriptor.target.as_os_str().as_bytes(), &descriptor.stat).to_vec(),
            size,
            mode: Some(mode),
            ..RegFileEntry::default()
        }),
        ..FileEntry::default()
    })
}

/// The path by which restore opens the file; of a deleted one, the path that it had.
pub fn name_of<'a>(target: &'a [u8], stat: &FileStat) -> &'a [u8] {
    if ghost::is_deleted(stat) { ghost::former_name(target) } else { target }
}

/// What restore compares: the size of a regular file (not of one that is only appended to, which others may
/// go on writing), and the mode.
pub fn validation(stat: &FileStat, flags: u32) -> (Option<u64>, u32) {
    let regular = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits();
    let appended =
        flags & libc::O_ACCMODE as u32 == libc::O_WRONLY as u32 && flags & libc::O_APPEND as u32 != 0;
    ((regular && !appended).then_some(stat.st_size as u64), stat.st_mode)
}
