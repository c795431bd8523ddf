//! Who is signalled when a descriptor becomes ready (`F_SETOWN`, `F_SETSIG`; man 2 fcntl).

use std::os::fd::AsFd;

use nix::unistd::Pid;

use godwit_wire::image::fown::FownEntry;

use super::Descriptor;
use crate::error::DumpError;
use crate::procfs;
use crate::sys;

/// No owner.
pub fn none() -> FownEntry {
    FownEntry::default()
}

/// Reads the owner of an open file. All of it belongs to the open file description, so our duplicate says
/// the same; only the owner's pid is as we see it, and is translated.
///
/// # Errors
/// When an `fcntl` is refused or the owner is gone from `/proc` while its pid is needed.
pub fn read(pid: Pid, descriptor: &Descriptor) -> Result<FownEntry, DumpError> {
    let subject = || format!("fd {} of process {pid}", descriptor.fd);
    let failed = |what| move |errno| DumpError::sys(subject(), what, errno);
    let copy = descriptor.copy.as_fd();
    let signum = sys::fcntl::signal(copy).map_err(failed("F_GETSIG"))?;
    let owner = sys::fcntl::owner(copy).map_err(failed("F_GETOWN_EX"))?;
    let (uid, euid) = sys::fcntl::owner_uids(copy).map_err(failed("F_GETOWNER_UIDS"))?;
    if owner.pid == 0 {
        return Ok(FownEntry { signum: signum as u32, uid, euid, ..FownEntry::default() });
    }
    let status = procfs::status::read(Pid::from_raw(owner.pid))?;
    let inside = status.ns_pid.last().copied().unwrap_or(owner.pid);
    Ok(FownEntry { uid, euid, signum: signum as u32, pid_type: owner.kind as u32, pid: inside as u32 })
}
