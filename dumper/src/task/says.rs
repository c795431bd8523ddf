//! Everything that is asked of a stopped process and of its threads, and what only their tracer is told.

use godwit_wire::fault;
use godwit_wire::image::siginfo::SignalQueueEntry;
use nix::unistd::Pid;

use super::asked::{self, TaskSays};
use super::signals;
use super::threads::Told;
use crate::error::DumpError;
use crate::freeze::seize::Frozen;
use crate::freeze::tree::Part;
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

/// What a part of a task said.
pub struct PartSays {
    pid: Pid,
    /// From the part with the first thread: what the task says as a whole, and signals that are pending for it.
    task: Option<(TaskSays, SignalQueueEntry)>,
    threads: Vec<Told>,
}

impl Part for PartSays {
    type Whole = Result<Says, DumpError>;

    fn join(parts: Vec<PartSays>) -> Result<Says, DumpError> {
        let (mut of_task, mut threads) = (None, Vec::new());
        let mut pid = Pid::from_raw(0);
        for part in parts {
            pid = part.pid;
            of_task = of_task.or(part.task);
            threads.extend(part.threads);
        }
        let (task, pending) = of_task.ok_or(DumpError::Died { pid })?;
        threads.sort_by_key(|told| (told.says.tid != pid, told.says.tid.as_raw()));
        Ok(Says { task, pending, threads })
    }
}

/// Every question that only the task itself can answer, or a part of it that is held here. Afterwards no memory of it is borrowed.
///
/// # Errors
/// When a call cannot be made, or the kernel does not tell something.
pub async fn ask(frozen: &Frozen) -> Result<PartSays, DumpError> {
    let pid = frozen.pid();
    // Newest first; restore makes them in the order of the image, by rising id.
    let mut timers = if frozen.has_first() { timers::read(pid)? } else { Vec::new() };
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
    let task = task.map(|task| Ok::<_, DumpError>((task, signals::pending(pid, SignalQueue::Shared)?)));
    Ok(PartSays { pid, task: task.transpose()?, threads })
}
