//! Detached mounts: a file system reached through a descriptor, in no mount table.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;

/// Mounts the cgroup v2 hierarchy without attaching it anywhere and returns its root directory (man 7 cgroups,
/// `fsopen`, `fsconfig` and `fsmount`, Linux 5.2). The mount goes away with the descriptor.
///
/// EPERM: without CAP_SYS_ADMIN. ENODEV: no cgroup v2 in this kernel.
pub fn cgroup2() -> nix::Result<OwnedFd> {
    detached(c"cgroup2")
}

fn detached(kind: &CStr) -> nix::Result<OwnedFd> {
    // SAFETY: the name is a terminated string; the call returns a new descriptor or an error.
    let context = Errno::result(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
    // SAFETY: the descriptor was just made and nobody else owns it.
    let context = unsafe { OwnedFd::from_raw_fd(context as i32) };
    // SAFETY: FSCONFIG_CMD_CREATE takes neither key nor value.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            ptr::null::<libc::c_char>(),
            ptr::null::<libc::c_void>(),
            0,
        )
    })?;
    // SAFETY: no memory is passed; the call returns a new descriptor or an error.
    let mount =
        Errno::result(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(mount as i32) })
}
