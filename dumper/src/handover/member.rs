//! One process of the tree, pinned: a later process of its number is never taken for it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use godwit_wire::journal;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::freezer::FreezerError;
use crate::procfs::{ProcfsError, stat, tree};
use crate::sys;

/// One process of the tree, pinned: what the hand-over freezes, kills or lets run.
#[derive(Debug)]
pub struct Member {
    /// Its pid as the dumper sees it.
    pub pid: Pid,
    /// When it started, in clock ticks after boot (`/proc/PID/stat` field 22).
    pub start_time: u64,
    /// Stays bound to this process, whatever becomes of the number.
    pub pidfd: OwnedFd,
    /// A stop signal had stopped it before we came: it is to stay stopped.
    pub was_stopped: bool,
}

impl Member {
    /// Pins what has this number now; `None` if nothing has, or a thread.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn pin(pid: Pid, was_stopped: bool) -> Result<Option<Member>, ProcfsError> {
        let pidfd = match sys::pidfd::open(pid) {
            Ok(pidfd) => pidfd,
            // EINVAL, ENOENT: the number is a thread's by now.
            Err(Errno::ESRCH | Errno::EINVAL | Errno::ENOENT) => return Ok(None),
            Err(errno) => {
                return Err(ProcfsError::from_io(Path::new(&format!("/proc/{pid}")), errno.into()));
            }
        };
        match stat::read(pid) {
            Ok(stat) => Ok(Some(Member { pid, start_time: stat.start_time, pidfd, was_stopped })),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The process that a journal tells of; `None` once it is gone, whatever has its number now.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn find(noted: &journal::Member) -> Result<Option<Member>, ProcfsError> {
        // The descriptor may mean a later process; the start time, read behind it, tells.
        let found = Member::pin(Pid::from_raw(noted.pid), noted.was_stopped)?;
        Ok(found.filter(|member| member.start_time == noted.start_time))
    }

    /// The form that a journal keeps.
    pub fn to_record(&self) -> journal::Member {
        let (pid, start_time) = (self.pid.as_raw(), self.start_time);
        journal::Member { pid, start_time, was_stopped: self.was_stopped }
    }

    /// Whether any thread of it lives: the very process, not a later one of its number. The threads of a process that
    /// a tracer has not let go stay as zombies, so the number alone tells nothing.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn is_alive(&self) -> Result<bool, ProcfsError> {
        let tids = match tree::threads(self.pid) {
            Err(error) if error.is_gone() => return Ok(false),
            other => other?,
        };
        for tid in tids {
            match stat::read_thread(self.pid, tid) {
                Ok(stat) if stat.is_zombie() => {}
                Ok(stat) if tid == self.pid && stat.start_time != self.start_time => return Ok(false),
                Ok(_) => return Ok(true),
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Sends it a signal; one that is gone is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<(), FreezerError> {
        match sys::pidfd::send_signal(self.pidfd.as_fd(), signal as i32) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(FreezerError::Signal { signal, pid: self.pid, source: errno.into() }),
        }
    }
}

/// Sends a signal to each, whatever becomes of the others.
///
/// # Errors
/// The first refusal.
pub fn signal_each<'a>(
    members: impl IntoIterator<Item = &'a Member>,
    signal: Signal,
) -> Result<(), FreezerError> {
    members.into_iter().map(|member| member.signal(signal)).fold(Ok(()), Result::and)
}

/// Kills them all; the tree has parents before children, and all of it lies still. The deepest die first: a process
/// whose group loses its last tie to its session is sent SIGHUP and SIGCONT if the group holds stopped ones
/// (kernel/exit.c, kill_orphaned_pgrp), and where only SIGSTOP holds it that would let it run a moment more.
///
/// # Errors
/// The first refusal; the others were sent it all the same.
pub fn kill_each(members: &[Member]) -> Result<(), FreezerError> {
    signal_each(members.iter().rev(), Signal::SIGKILL)
}

/// Stops them all but those that were stopped before. Parents first: a parent that still ran would be told that its
/// child was stopped (SIGCHLD), and a shell or a supervisor acts on that.
///
/// # Errors
/// The first refusal.
pub fn stop_each(members: &[Member]) -> Result<(), FreezerError> {
    signal_each(members.iter().filter(|member| !member.was_stopped), Signal::SIGSTOP)
}

/// Undoes [`stop_each`], and only that. Children first: a parent that runs again and looks, since a SIGCHLD is pending
/// for it, finds none of them stopped.
///
/// # Errors
/// The first refusal.
pub fn continue_each(members: &[Member]) -> Result<(), FreezerError> {
    signal_each(members.iter().rev().filter(|member| !member.was_stopped), Signal::SIGCONT)
}
