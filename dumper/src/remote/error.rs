//! Why a remote system call could not be made, or what it answered.

use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Pid;
use thiserror::Error;

use crate::procfs::ProcfsError;

/// Why a remote system call gave no result.
#[derive(Debug, Error)]
pub enum RemoteError {
    /// The call was made and failed.
    #[error("system call {nr} inside thread {tid} failed: {errno}")]
    Call {
        /// The thread it ran in.
        tid: Pid,
        /// Number of the call.
        nr: i64,
        /// What the kernel said.
        errno: Errno,
    },
    /// The part with the first thread has failed, which says why.
    #[error("the threads of process {pid} were not asked, since its first thread could not be")]
    Abandoned {
        /// The process.
        pid: Pid,
    },
    /// The thread ended while it was in our hands.
    #[error("thread {tid} died while it was stopped")]
    Died {
        /// The thread.
        tid: Pid,
    },
    /// A call did not come back.
    #[error(
        "system call {nr} inside thread {tid} did not return within {waited:?}; if its cgroup is frozen, thaw it and try again"
    )]
    Stuck {
        /// The thread.
        tid: Pid,
        /// Number of the call.
        nr: i64,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The thread faulted at an instruction that is known to be good.
    #[error(
        "thread {tid} got signal {signal} where a system call was expected; its vDSO may have been replaced"
    )]
    Fault {
        /// The thread.
        tid: Pid,
        /// The signal.
        signal: i32,
    },
    /// A ptrace request failed.
    #[error("{request} of thread {tid} failed: {source}")]
    Ptrace {
        /// The thread.
        tid: Pid,
        /// Name of the request.
        request: &'static str,
        /// What the kernel said.
        source: Errno,
    },
    /// Memory of the target could not be read or written.
    #[error("cannot {access} {len} bytes at {addr:#x} of process {pid}: {source}")]
    Memory {
        /// The process.
        pid: Pid,
        /// `read` or `write`.
        access: &'static str,
        /// Address there.
        addr: u64,
        /// Length in bytes.
        len: usize,
        /// What the kernel said; EFAULT also where only a part could be had.
        source: Errno,
    },
    /// No place for the frame.
    #[error(
        "process {pid} has no memory below the stack of thread {tid} for {need} bytes; raise its stack limit"
    )]
    NoRoom {
        /// The process.
        pid: Pid,
        /// The thread.
        tid: Pid,
        /// Bytes wanted.
        need: usize,
    },
    /// No `syscall` instruction, or no way into `rt_sigreturn`.
    #[error(
        "process {pid} has no {what} that a remote system call could use; it was probably started without a vDSO"
    )]
    NoGadget {
        /// The process.
        pid: Pid,
        /// What is missing.
        what: &'static str,
    },
    /// A thread in a mode whose signal frames look different.
    #[error("thread {tid} {mode}; godwit cannot run system calls inside it")]
    Mode {
        /// The thread.
        tid: Pid,
        /// What it does, as a part of a sentence.
        mode: &'static str,
    },
    /// A second session for the same thread.
    #[error("thread {tid} is in use by another remote session")]
    Busy {
        /// The thread.
        tid: Pid,
    },
    /// The thread is not among the frozen ones.
    #[error("thread {tid} is not frozen")]
    NotFrozen {
        /// The thread.
        tid: Pid,
    },
    /// /proc had no answer.
    #[error(transparent)]
    Procfs(#[from] ProcfsError),
    /// Made to fail by a test.
    #[error(transparent)]
    Injected(#[from] godwit_wire::fault::Injected),
}

impl RemoteError {
    /// The error number that the call itself answered, if it was made.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            RemoteError::Call { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// A failed ptrace request; ESRCH means that the thread was killed.
    pub(crate) fn ptrace(tid: Pid, request: &'static str) -> impl FnOnce(Errno) -> RemoteError {
        move |source| match source {
            Errno::ESRCH | Errno::ECHILD => RemoteError::Died { tid },
            source => RemoteError::Ptrace { tid, request, source },
        }
    }
}
