//! Handles on processes (man 2 pidfd_open): of the tree's own, and of those that are gone.

use godwit_wire::image::fdinfo::{FdTypes, FileEntry};
use godwit_wire::image::pidfd::PidfdEntry;
use nix::unistd::Pid;

use super::kind::{Around, Kind};
use super::{Descriptor, FileTable, fown};
use crate::error::DumpError;
use crate::procfs::fdinfo::{self, FdInfo};
use crate::refusal::Findings;

/// Handles on processes. Before 6.9 they were anonymous inodes.
pub const KIND: Kind = Kind {
    r#type: FdTypes::Pidfd,
    is: |descriptor| {
        descriptor.is_object("[pidfd]")
            || descriptor.target.as_os_str().as_encoded_bytes().starts_with(b"pidfd:[")
    },
    check,
    dump,
};

/// `PIDFD_THREAD`: a handle on a thread (include/uapi/linux/pidfd.h).
const PIDFD_THREAD: u32 = libc::O_EXCL as u32;
/// What `/proc/PID/fdinfo` says of a process that is gone, and what images say of it.
const GONE: i32 = -1;

fn check(around: &Around<'_>, descriptor: &Descriptor, findings: &mut Findings) {
    const CLOSE: &str = "let the program close it before it is moved";
    let subject = descriptor.subject(around.pid);
    if descriptor.file_flags() & PIDFD_THREAD != 0 {
        return findings.refuse(
            subject,
            "it is a handle on a thread (PIDFD_THREAD), which CRIU does not restore",
            CLOSE,
        );
    }
    let is_inside = |info: &FdInfo| match info.handle_of() {
        Ok(GONE) | Err(_) => true,
        Ok(other) => around.tree.has(Pid::from_raw(other)),
    };
    // It may have ended, and been waited for, since it was looked at.
    let now = || fdinfo::read(around.pid, descriptor.fd);
    if is_inside(&descriptor.info) || now().map_or(true, |info| is_inside(&info)) {
        return;
    }
    match descriptor.info.handle_of() {
        Ok(0) => findings.refuse(subject, "it is a handle on a process of another pid namespace", CLOSE),
        Ok(other) => refuse_outsider(around, descriptor, other, findings),
        Err(_) => {}
    }
}

fn refuse_outsider(around: &Around<'_>, descriptor: &Descriptor, other: i32, findings: &mut Findings) {
    findings.refuse(
        descriptor.subject(around.pid),
        format!("it is a handle on process {other}, which is not of the tree that is dumped"),
        "name a process above both, or let the program close it",
    );
}

fn dump(
    around: &Around<'_>,
    id: u32,
    descriptor: &Descriptor,
    _: &mut FileTable,
) -> Result<FileEntry, DumpError> {
    let nspid = match descriptor.told(around.pid, FdInfo::handle_of)? {
        GONE => GONE,
        other => match around.tree.number_of(Pid::from_raw(other)) {
            Some(inside) => inside as i32,
            None => {
                let mut late = Findings::default();
                refuse_outsider(around, descriptor, other, &mut late);
                return Err(DumpError::from_findings(late));
            }
        },
    };
    let pidfd = PidfdEntry {
        id,
        // Of a process that is gone, restore tells by it which handles are on one and the same.
        ino: descriptor.stat.st_ino as u32,
        flags: descriptor.file_flags() & !(libc::O_RDWR as u32),
        nspid,
        fown: fown::read(around.pid, descriptor)?,
    };
    Ok(FileEntry { r#type: FdTypes::Pidfd.into(), id, pidfd: Some(pidfd), ..FileEntry::default() })
}
