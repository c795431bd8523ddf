//! Who is signalled when a descriptor becomes ready (`F_SETOWN`, `F_SETSIG`; man 2 fcntl).

use std::os::fd::AsFd;

use nix::unistd::Pid;

use godwit_wire::image::fown::FownEntry;

use super::Descriptor;
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

/// Refuses an owner that a restore would not find: it sets owners when there is the process alone, without its
/// threads, and wants each to exist.
pub fn check(pid: Pid, descriptor: &Descriptor, findings: &mut Findings) {
    let Ok(owner) = sys::fcntl::owner(descriptor.copy.as_fd()) else { return };
    if owner.pid == 0 || owner.pid == pid.as_raw() {
        return;
    }
    let own_group = || procfs::stat::read(pid).is_ok_and(|stat| stat.pgrp == owner.pid);
    let whom = match owner.kind {
        owner::GROUP if own_group() => return,
        owner::GROUP => "process group",
        owner::THREAD => "thread",
        _ => "process",
    };
    findings.refuse(
        descriptor.subject(pid),
        format!("its signals go to {whom} {} (F_SETOWN), which is not there when CRIU sets that", owner.pid),
        "let the program take them itself, or close it",
    );
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
    let status = procfs::status::read(pid)?;
    let ids = if owner.kind == owner::GROUP { status.ns_pgid } else { status.ns_pid };
    let inside = ids.last().copied().unwrap_or(owner.pid);
    Ok(FownEntry { uid, euid, signum: signum as u32, pid_type: owner.kind as u32, pid: inside as u32 })
}
