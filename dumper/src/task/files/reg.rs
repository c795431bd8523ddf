//! Files that restore opens by path: regular files, directories, `/dev/null` and its kind.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag, lstat, major, stat};
use nix::unistd::Pid;

use godwit_wire::image::fdinfo::{FdTypes, FileEntry};
use godwit_wire::image::regfile::RegFileEntry;

use super::kind::{Around, Kind};
use super::{Descriptor, FileTable, fown, ghost, links, proc_entry, provided};
use crate::error::DumpError;
use crate::refusal::{Findings, Subject};

/// Regular files, directories, and the character devices that CRIU knows.
pub const KIND: Kind = Kind { r#type: FdTypes::Reg, is, check, dump };

/// Major number of `/dev/null`, `/dev/zero`, `/dev/urandom` and their kind
/// (Documentation/admin-guide/devices.txt).
const MEM_MAJOR: u64 = 1;

fn is(descriptor: &Descriptor) -> bool {
    let is_of = |kind| descriptor.is_file_of_type(kind);
    let is_memory_device = || major(descriptor.stat.st_rdev) == MEM_MAJOR;
    let has_path = [SFlag::S_IFREG, SFlag::S_IFDIR, SFlag::S_IFLNK].into_iter().any(is_of);
    descriptor.target.is_absolute() && has_path || is_of(SFlag::S_IFCHR) && is_memory_device()
}

/// Checks that the path that restore would open is this file, unless it is given one, or makes it anew.
pub fn check(around: &Around<'_>, descriptor: &Descriptor, findings: &mut Findings) {
    let subject = descriptor.subject(around.pid);
    if around.tree.provided.contains(&provided::file(descriptor)) {
        return;
    }
    if let Some(owner) = proc_entry::owner(descriptor) {
        return match proc_entry::check(around, descriptor, owner) {
            Err((why, way_out)) => findings.refuse(subject, why, way_out),
            Ok(()) if proc_entry::is_of_dead(around, owner) => {}
            Ok(()) => check_path(around.pid, &descriptor.target, &descriptor.stat, subject, findings),
        };
    }
    if ghost::is_deleted(&descriptor.stat) {
        let limit = around.tree.ghost_limit;
        return ghost::check(&descriptor.own_link(), &descriptor.stat, limit, subject, findings);
    }
    if links::is_lost(around.pid, descriptor) {
        match links::check(around.pid, descriptor) {
            Ok(()) if around.tree.link_remap => {}
            Ok(()) => findings.refuse(
                subject,
                "its path is gone while the file has another link, and a restore opens it by its path",
                "put the file back under its path, let the program open it anew, or give --link-remap, which makes a link \
                 there until the restore",
            ),
            Err(why) => findings.refuse(subject, why, "put the file back under its path, or let the program open it anew"),
        }
        return;
    }
    check_path(around.pid, &descriptor.target, &descriptor.stat, subject, findings);
}

/// Checks that `target`, a path in the task's root, is the inode of `expected`.
pub fn check_path(pid: Pid, target: &Path, expected: &FileStat, subject: Subject, findings: &mut Findings) {
    let is_link = expected.st_mode & libc::S_IFMT == libc::S_IFLNK;
    let look = if is_link { lstat } else { stat };
    let why = match look(&in_root(pid, target)) {
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

/// The entry of a file that has a path, of whatever kind.
///
/// # Errors
/// When its owner cannot be read, or a deleted one its contents.
pub fn dump(
    around: &Around<'_>,
    id: u32,
    descriptor: &Descriptor,
    table: &mut FileTable,
) -> Result<FileEntry, DumpError> {
    let flags = descriptor.file_flags();
    let (size, mode) = validation(&descriptor.stat, flags);
    let provided = Some(provided::file(descriptor)).filter(|name| around.tree.provided.contains(name));
    let name = match provided {
        Some(provided) => provided.to_string().into_bytes(),
        None if proc_entry::owner(descriptor).is_some_and(|owner| proc_entry::is_of_dead(around, owner)) => {
            table.ghosts.add_dead(id, proc_entry::owner(descriptor).unwrap_or_default());
            ghost::former_name(descriptor.target.as_os_str().as_bytes()).to_vec()
        }
        None if links::is_lost(around.pid, descriptor) => {
            let of_link = table.next_id();
            let entry = table.links.add(around.pid, id, of_link, descriptor)?;
            table.push(entry);
            ghost::former_name(descriptor.target.as_os_str().as_bytes()).to_vec()
        }
        None => {
            if ghost::is_deleted(&descriptor.stat) {
                table.ghosts.add(around.pid, id, &descriptor.own_link(), &descriptor.stat)?;
            }
            name_of(descriptor.target.as_os_str().as_bytes(), &descriptor.stat).to_vec()
        }
    };
    let reg = RegFileEntry {
        id,
        flags,
        pos: descriptor.info.pos as u64,
        fown: fown::read(around.pid, descriptor)?,
        name,
        size,
        ext: provided.map(|_| true),
        mode: Some(mode),
        ..RegFileEntry::default()
    };
    Ok(FileEntry { r#type: FdTypes::Reg.into(), id, reg: Some(reg), ..FileEntry::default() })
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
