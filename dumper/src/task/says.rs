//! Everything that is asked of a stopped process and of its threads, and what only their tracer is told.

use godwit_wire::fault;
use godwit_wire::image::siginfo::SignalQueueEntry;
use nix::unistd::Pid;

use super::asked::{self, TaskSays};
use super::signals;
use super::threads::Told;
use crate::error::DumpError;
use crate::freeze::seize::Frozen;
use crate::procfs::{status, timers};
use crate::remote::Session;
use crate::sys::ptrace::SignalQueue;

/// What a task and each of its threads said, and what only their tracer is told.
pub struct Says {
    /// What it says as a whole.
    pub task: TaskSays,
    /// Signals that are pending for the task as a whole.
    pub pending: SignalQueueEntry,
    /// Of each thread, the first one first.
    pub threads: Vec<Told>,
}

/// Every question that only the task itself can answer. Afterwards no memory of it is borrowed.
///
/// # Errors
/// When a call cannot be made, or the kernel does not tell something.
pub async fn ask(frozen: &Frozen) -> Result<Says, DumpError> {
    let pid = frozen.pid();
    let mut timers = timers::read(pid)?; // newest first; restore makes them in the order of the image, by rising id
    timers.sort_by_key(|timer| timer.id);
    let inside = |tid: i32| status::read_thread(pid, Pid::from_raw(tid)).ok()?.ns_pid.last().copied();
    let one = async |session: &mut Session<'_>| {
        fault::point("mid.task.ask")?;
        asked::thread(session).await
    };
    let leader = async |session: &mut Session<'_>| {
        let task = asked::task(session, &timers, inside).await?;
        Ok((task, one(session).await?))
    };
    let (task, threads) = frozen.ask(leader, one).await?;
    let threads = threads.into_iter().map(Told::of).collect::<Result<_, _>>()?;
    Ok(Says { task, pending: signals::pending(pid, SignalQueue::Shared)?, threads })
}
