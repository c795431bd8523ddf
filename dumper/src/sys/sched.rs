//! What a task's scheduler settings and robust list are, asked from outside.

use std::mem;

use nix::errno::Errno;
use nix::unistd::Pid;

/// Scheduling settings of a thread (`struct sched_attr`, `man 2 sched_setattr`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedAttr {
    /// Bytes that the kernel filled in.
    pub size: u32,
    /// `SCHED_OTHER` 0, `SCHED_FIFO` 1, `SCHED_RR` 2, `SCHED_BATCH` 3, `SCHED_IDLE` 5, `SCHED_DEADLINE` 6.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value, -20 to 19, for the policies that have one.
    pub nice: i32,
    /// Static priority, 1 to 99 for the real-time policies, else 0.
    pub priority: u32,
    /// SCHED_DEADLINE: runtime in nanoseconds.
    pub runtime: u64,
    /// SCHED_DEADLINE: deadline in nanoseconds.
    pub deadline: u64,
    /// SCHED_DEADLINE: period in nanoseconds.
    pub period: u64,
    /// Least utilisation hint, 0 to 1024.
    pub util_min: u32,
    /// Greatest utilisation hint, 0 to 1024.
    pub util_max: u32,
}

/// The scheduling settings of thread `tid` (sched_getattr).
pub fn attr(tid: Pid) -> nix::Result<SchedAttr> {
    let mut attr = SchedAttr::default();
    let size = mem::size_of::<SchedAttr>() as u64;
    // SAFETY: the kernel writes at most `size` bytes.
    let rc =
        unsafe { libc::syscall(libc::SYS_sched_getattr, i64::from(tid.as_raw()), &raw mut attr, size, 0u64) };
    Errno::result(rc)?;
    Ok(attr)
}

/// The scheduling policy of thread `tid`, possibly with `SCHED_RESET_ON_FORK` 0x40000000 (sched_getscheduler).
pub fn policy(tid: Pid) -> nix::Result<i32> {
    // SAFETY: no memory is passed. The raw call, since musl's wrapper only answers ENOSYS.
    let rc = unsafe { libc::syscall(libc::SYS_sched_getscheduler, i64::from(tid.as_raw())) };
    Errno::result(rc).map(|policy| policy as i32)
}

/// The nice value of thread `tid`, -20 to 19 (getpriority, PRIO_PROCESS).
pub fn nice(tid: Pid) -> nix::Result<i32> {
    // SAFETY: no memory is passed. The raw call answers 20 - nice, which is never an error value.
    let rc = unsafe { libc::syscall(libc::SYS_getpriority, 0u64, i64::from(tid.as_raw())) };
    Errno::result(rc).map(|raw| 20 - raw as i32)
}

/// The I/O priority of thread `tid`, class in bits 13 and up (ioprio_get, IOPRIO_WHO_PROCESS).
pub fn io_priority(tid: Pid) -> nix::Result<u32> {
    const WHO_PROCESS: u64 = 1;
    // SAFETY: no memory is passed.
    let rc = unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, i64::from(tid.as_raw())) };
    Errno::result(rc).map(|priority| priority as u32)
}

/// The core scheduling cookie of thread `tid`, 0 for none (PR_SCHED_CORE, PR_SCHED_CORE_GET; kernel 5.14).
///
/// ENODEV or EINVAL: not on this machine.
pub fn core_cookie(tid: Pid) -> nix::Result<u64> {
    const PR_SCHED_CORE: i32 = 62;
    const GET: u64 = 0;
    const ONE_THREAD: u64 = 0;
    let mut cookie = 0u64;
    // SAFETY: the kernel writes one 64-bit word.
    let rc = unsafe { libc::prctl(PR_SCHED_CORE, GET, tid.as_raw() as u64, ONE_THREAD, &raw mut cookie) };
    Errno::result(rc)?;
    Ok(cookie)
}

/// Head and length in bytes of a thread's robust futex list; (0, _) when it has none (get_robust_list).
pub fn robust_list(tid: Pid) -> nix::Result<(u64, u64)> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: the kernel writes one pointer and one size_t.
    let rc = unsafe {
        libc::syscall(libc::SYS_get_robust_list, i64::from(tid.as_raw()), &raw mut head, &raw mut len)
    };
    Errno::result(rc)?;
    Ok((head, len))
}
