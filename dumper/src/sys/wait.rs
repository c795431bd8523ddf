//! `wait4(2)` for tracees: any thread, also one made by clone without SIGCHLD (`__WALL`).

use nix::errno::Errno;
use nix::unistd::Pid;

/// What a wait reported of one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It ended by exit(2) with this code.
    Exited(i32),
    /// It was ended by this signal.
    Killed(i32),
    /// It is in a ptrace stop.
    Stopped {
        /// The signal; bit 0x80 is set in system call stops.
        signal: i32,
        /// `PTRACE_EVENT_*`, 0 in a signal-delivery-stop or system call stop.
        event: i32,
    },
    /// It was continued.
    Continued,
}

impl Status {
    fn from_raw(raw: i32) -> Status {
        if libc::WIFEXITED(raw) {
            Status::Exited(libc::WEXITSTATUS(raw))
        } else if libc::WIFSIGNALED(raw) {
            Status::Killed(libc::WTERMSIG(raw))
        } else if libc::WIFSTOPPED(raw) {
            Status::Stopped { signal: (raw >> 8) & 0xff, event: raw >> 16 }
        } else {
            Status::Continued
        }
    }
}

fn wait4(tid: Pid, flags: i32) -> nix::Result<Option<Status>> {
    let mut raw = 0;
    loop {
        // SAFETY: the kernel writes one int; no rusage is asked for.
        let rc = unsafe { libc::wait4(tid.as_raw(), &raw mut raw, flags, std::ptr::null_mut()) };
        match Errno::result(rc) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(Status::from_raw(raw))),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Takes the next report about `tid` if there is one (WNOHANG).
///
/// ECHILD: the thread is neither our tracee nor our child, or is gone.
pub fn try_wait(tid: Pid) -> nix::Result<Option<Status>> {
    wait4(tid, libc::__WALL | libc::WNOHANG)
}

/// Waits for the next report about `tid`, without a time limit.
pub fn wait(tid: Pid) -> nix::Result<Status> {
    wait4(tid, libc::__WALL)?.ok_or(Errno::ECHILD)
}
