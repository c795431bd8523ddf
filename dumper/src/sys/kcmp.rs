//! `kcmp(2)`: whether two tasks share a kernel object.

use std::cmp::Ordering;
use std::os::fd::RawFd;

use nix::errno::Errno;
use nix::unistd::Pid;

/// Kinds of object that tasks share by clone flags (include/uapi/linux/kcmp.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Kind {
    /// Address space (CLONE_VM).
    Vm = 1,
    /// Descriptor table (CLONE_FILES).
    Files = 2,
    /// Root, working directory, umask (CLONE_FS).
    Fs = 3,
    /// Signal handlers (CLONE_SIGHAND).
    Sighand = 4,
    /// I/O context (CLONE_IO).
    Io = 5,
    /// System V semaphore undo list (CLONE_SYSVSEM).
    Sysvsem = 6,
}

const KCMP_FILE: u64 = 0;
const KCMP_EPOLL_TFD: u64 = 7;

fn kcmp(a: Pid, b: Pid, kind: u64, first: u64, second: u64) -> nix::Result<Ordering> {
    // SAFETY: `second` is a pointer only for KCMP_EPOLL_TFD, where the caller passes one that lives long enough.
    let rc = unsafe {
        libc::syscall(libc::SYS_kcmp, i64::from(a.as_raw()), i64::from(b.as_raw()), kind, first, second)
    };
    match Errno::result(rc)? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        // 3: not equal, and the kernel gives no order. Never seen for live tasks of one machine.
        _ => Err(Errno::EUCLEAN),
    }
}

/// Compares the objects of one kind of tasks `a` and `b`: equal means shared; the order is total and stable.
pub fn tasks(a: Pid, b: Pid, kind: Kind) -> nix::Result<Ordering> {
    kcmp(a, b, kind as u64, 0, 0)
}

/// Compares the open file descriptions behind two descriptors: equal means one description (dup, fork, SCM_RIGHTS).
///
/// EBADF: one of the descriptors is not open.
pub fn files(a: (Pid, RawFd), b: (Pid, RawFd)) -> nix::Result<Ordering> {
    kcmp(a.0, b.0, KCMP_FILE, a.1 as u64, b.1 as u64)
}

/// Whether descriptor `fd` of `a` is the file that the epoll instance `efd` of `b` holds as number `offset` under
/// descriptor `tfd` (kernel 4.13).
pub fn epoll_target(a: (Pid, RawFd), b: Pid, efd: RawFd, tfd: RawFd, offset: u32) -> nix::Result<Ordering> {
    #[repr(C)]
    struct EpollSlot {
        efd: u32,
        tfd: u32,
        toff: u32,
    }
    let slot = EpollSlot { efd: efd as u32, tfd: tfd as u32, toff: offset };
    kcmp(a.0, b, KCMP_EPOLL_TFD, a.1 as u64, &raw const slot as u64)
}
