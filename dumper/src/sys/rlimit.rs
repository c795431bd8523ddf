//! `prlimit(2)`: resource limits of another process.

use nix::errno::Errno;
use nix::unistd::Pid;

/// No limit (`RLIM64_INFINITY`).
pub const INFINITY: u64 = u64::MAX;

/// Number of resources the kernel has, `RLIMIT_CPU` 0 to `RLIMIT_RTTIME` 15 (asm-generic/resource.h).
pub const RESOURCES: u32 = 16;

/// Soft and hard limit of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The limit in force.
    pub soft: u64,
    /// How far it may be raised without CAP_SYS_RESOURCE.
    pub hard: u64,
}

/// The limit of `resource` (0 to 15) of process `pid` (prlimit64).
pub fn get(pid: Pid, resource: u32) -> nix::Result<Limit> {
    let mut pair = [0u64; 2];
    // SAFETY: no new limit is passed; the kernel writes one struct rlimit64, two words.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            i64::from(pid.as_raw()),
            u64::from(resource),
            std::ptr::null::<u64>(),
            pair.as_mut_ptr(),
        )
    };
    Errno::result(rc)?;
    Ok(Limit { soft: pair[0], hard: pair[1] })
}

/// Sets the limit of `resource` of the calling process.
///
/// EPERM: the hard limit would be raised without CAP_SYS_RESOURCE.
pub fn set_own(resource: u32, limit: Limit) -> nix::Result<()> {
    let pair = [limit.soft, limit.hard];
    // SAFETY: the kernel reads one struct rlimit64, two words.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0u64,
            u64::from(resource),
            pair.as_ptr(),
            std::ptr::null_mut::<u64>(),
        )
    };
    Errno::result(rc).map(drop)
}
