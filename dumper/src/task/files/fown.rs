//! Who is signalled when a descriptor becomes ready (`F_SETOWN`, `F_SETSIG`; man 2 fcntl).

use std::os::fd::AsFd;

use nix::unistd::Pid;

use godwit_wire::image::fown::FownEntry;

use super::{Around, Descriptor, OfTree};
use crate::error::DumpError;
use crate::procfs;
use crate::refusal::Findings;
use crate::sys;

/// No owner.
pub fn none() -> FownEntry {
    FownEntry::default()
}

/// Kinds of owner (include/uapi/asm-generic/fcntl.h).
mod owner {
    pub const THREAD: i32 = 0;
    pub const GROUP: i32 = 2;
}

/// Refuses an owner that a restore would not find. CRIU sets owners as it opens files, when every process of the tree has
/// been made and is in its group, but none has threads of its own yet (criu/cr-restore.c, CR_STATE_FORKING and
/// CR_STATE_RESTORE).
pub fn check(around: &Around<'_>, descriptor: &Descriptor, findings: &mut Findings) {
    let (pid, tree) = (around.pid, around.tree);
    let Ok(owner) = sys::fcntl::owner(descriptor.copy.as_fd()) else { return };
    let is_restored = match owner.kind {
        _ if owner.pid == 0 => true,
        owner::GROUP => is_group_of(owner.pid, tree),
        // The first thread of a process has its number.
        _ => tree.has_task(Pid::from_raw(owner.pid)),
    };
    let tells_number = owner.pid != 0
        && descriptor.file_flags() & libc::O_ASYNC as u32 != 0
        && sys::fcntl::signal(descriptor.copy.as_fd()).is_ok_and(|signal| signal != 0);
    if is_restored && tells_number {
        // criu/files.c, set_fd_flags: the kernel takes the number that the file has there.
        findings.lose(
            descriptor.subject(pid),
            "its signals (O_ASYNC, F_SETSIG) tell of another descriptor's number (si_fd) after a restore",
        );
    }
    if is_restored {
        return;
    }
    let whom = match owner.kind {
        owner::GROUP => "process group",
        owner::THREAD => "thread",
        _ => "process",
    };
    findings.refuse(
        descriptor.subject(pid),
        format!("its signals go to {whom} {} (F_SETOWN), which is not there when CRIU sets that", owner.pid),
        "let a process of the tree take them, or close it",
    );
}

/// Whether a process group is one of the tree. That of a root which was born into it is that of `criu` after a restore.
fn is_group_of(group: i32, tree: &OfTree) -> bool {
    let is_in_it = |pid: Pid| procfs::stat::read(pid).is_ok_and(|stat| stat.pgrp == group);
    let is_outside = tree.root.as_raw() != group && is_in_it(tree.root);
    !is_outside && tree.tasks().any(is_in_it)
}

/// Reads the owner of an open file, which has passed [`check`]. All of it belongs to the open file description, so
/// our duplicate says the same; only the owner's pid is as we see it, and is translated.
///
/// # Errors
/// When an `fcntl` is refused, or the process is gone.
pub fn read(pid: Pid, descriptor: &Descriptor) -> Result<FownEntry, DumpError> {
    if descriptor.only_names() {
        return Ok(none());
    }
    let subject = || format!("fd {} of process {pid}", descriptor.fd);
    let failed = |what| move |errno| DumpError::sys(subject(), what, errno);
    let copy = descriptor.copy.as_fd();
    let signum = sys::fcntl::signal(copy).map_err(failed("F_GETSIG"))?;
    let owner = sys::fcntl::owner(copy).map_err(failed("F_GETOWN_EX"))?;
    let (uid, euid) = sys::fcntl::owner_uids(copy).map_err(failed("F_GETOWNER_UIDS"))?;
    if owner.pid == 0 {
        return Ok(FownEntry { signum: signum as u32, uid, euid, ..FownEntry::default() });
    }
    let inside = inside(pid, &owner)?;
    Ok(FownEntry { uid, euid, signum: signum as u32, pid_type: owner.kind as u32, pid: inside as u32 })
}

/// The owner as it numbers itself.
fn inside(pid: Pid, owner: &sys::fcntl::Owner) -> Result<i32, DumpError> {
    let innermost = |ids: Vec<i32>| ids.last().copied().unwrap_or(owner.pid);
    let of = Pid::from_raw(owner.pid);
    if owner.kind != owner::GROUP {
        return Ok(innermost(procfs::status::read(of)?.ns_pid));
    }
    // Whoever is in the group knows it; its leader may be gone.
    let is_in_it = |pid: &Pid| procfs::stat::read(*pid).is_ok_and(|stat| stat.pgrp == owner.pid);
    let member = [pid, of].into_iter().find(is_in_it);
    let member = match member {
        Some(member) => member,
        None => procfs::tree::processes()?.into_iter().find(is_in_it).unwrap_or(pid),
    };
    Ok(innermost(procfs::status::read(member)?.ns_pgid))
}
