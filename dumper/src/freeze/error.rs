//! Why a process could not be stopped, or let go.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Pid;
use thiserror::Error;

use crate::procfs::ProcfsError;

/// Why a process could not be stopped, or let go.
#[derive(Debug, Error)]
pub enum FreezeError {
    /// Nobody has this pid.
    #[error("there is no process {pid}")]
    NoProcess {
        /// The pid.
        pid: Pid,
    },
    /// The id is that of a thread.
    #[error("{pid} is a thread of process {leader}; give that pid instead")]
    NotALeader {
        /// The id.
        pid: Pid,
        /// The process it belongs to.
        leader: Pid,
    },
    /// The dumper was to dump itself.
    #[error("process {pid} is this godwit itself, which cannot stop itself")]
    Itself {
        /// The pid.
        pid: Pid,
    },
    /// A thread of the kernel.
    #[error("process {pid} is a kernel thread, which has no memory to dump")]
    KernelThread {
        /// The pid.
        pid: Pid,
    },
    /// It has ended and waits for its parent.
    #[error("process {pid} is a zombie: it has ended, and its parent has not yet waited for it")]
    Zombie {
        /// The pid.
        pid: Pid,
    },
    /// The first thread has ended while others live.
    #[error(
        "the main thread of process {pid} has ended while others go on; CRIU's images cannot hold such a process"
    )]
    LeaderExited {
        /// The pid.
        pid: Pid,
    },
    /// Somebody else traces it.
    #[error(
        "thread {tid} of process {pid} is traced by process {tracer} ({tracer_comm}); detach that debugger or tracer and try again"
    )]
    AlreadyTraced {
        /// The process.
        pid: Pid,
        /// The thread.
        tid: Pid,
        /// Who traces it.
        tracer: Pid,
        /// Its name.
        tracer_comm: String,
    },
    /// No right.
    #[error("not allowed to trace thread {tid} of process {pid}: {source}; run as root with CAP_SYS_PTRACE")]
    NotPermitted {
        /// The process.
        pid: Pid,
        /// The thread.
        tid: Pid,
        /// What the kernel said.
        source: Errno,
    },
    /// It does not come to a stop.
    #[error(
        "thread {tid} of process {pid} did not stop within {waited:?}: it is in state {state}, in kernel function {wchan}; it may wait for a device, a vfork child, or be in a frozen cgroup"
    )]
    Unstoppable {
        /// The process.
        pid: Pid,
        /// The thread.
        tid: Pid,
        /// How long it was waited for.
        waited: Duration,
        /// Its state, as in /proc/PID/stat.
        state: char,
        /// Where in the kernel it sleeps; `?` where that is hidden.
        wchan: String,
    },
    /// It ended before or while it was frozen.
    #[error("process {pid} ended while it was being stopped")]
    Died {
        /// The process.
        pid: Pid,
    },
    /// New threads appear as fast as they are stopped.
    #[error(
        "process {pid} made new threads faster than they could be stopped, for {waited:?}; freeze its cgroup first"
    )]
    Unsteady {
        /// The process.
        pid: Pid,
        /// How long it was tried.
        waited: Duration,
    },
    /// New processes appear as fast as they are stopped.
    #[error(
        "the tree of process {root} made new processes faster than they could be stopped: {found} were stopped in \
         {walks} walks within {waited:?}; give it more time (--timeout), let it make fewer, or run it in a cgroup v2 of its \
         own, which is then frozen first"
    )]
    UnsteadyTree {
        /// The root of the tree.
        root: Pid,
        /// Processes that were stopped.
        found: usize,
        /// How often the tree was walked.
        walks: u32,
        /// How long it was tried.
        waited: Duration,
    },
    /// More processes than a dump can have.
    #[error("there are more than {max} processes below process {root}; dump its parts one by one")]
    TooMany {
        /// The root of the tree.
        root: Pid,
        /// How many there may be.
        max: usize,
    },
    /// A file of the cgroup that is frozen first refused.
    #[error("cgroup {cgroup}: {what} failed")]
    Cgroup {
        /// Its path.
        cgroup: String,
        /// What was done.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Somebody has frozen it.
    #[error(
        "cgroup {cgroup} is frozen already, by nobody who is known here: nothing can be asked of its processes; thaw it          (echo 0 > cgroup.freeze)"
    )]
    FrozenCgroup {
        /// Its path.
        cgroup: String,
    },
    /// It does not come to rest.
    #[error("cgroup {cgroup} did not freeze within {waited:?}: {who}")]
    SlowCgroup {
        /// Its path.
        cgroup: String,
        /// How long it was waited for.
        waited: Duration,
        /// The threads that run, in words.
        who: String,
    },
    /// 32-bit code.
    #[error("thread {tid} of process {pid} runs 32-bit code, which godwit cannot dump")]
    Compat {
        /// The process.
        pid: Pid,
        /// The thread.
        tid: Pid,
    },
    /// The thread was not there when the process was stopped.
    #[error("thread {tid} is not among the stopped threads of process {pid}")]
    NotFrozen {
        /// The process.
        pid: Pid,
        /// The thread.
        tid: Pid,
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
    /// /proc had no answer.
    #[error(transparent)]
    Procfs(#[from] ProcfsError),
    /// Made to fail by a test.
    #[error(transparent)]
    Injected(#[from] godwit_wire::fault::Injected),
}
