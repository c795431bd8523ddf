//! Threads that hold stopped processes. The kernel answers a tracer's requests only from the thread that seized, and one
//! process costs a millisecond of them: work on the processes of a tree is spread over as many threads as there are
//! processors, each of which has seized some of them.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::error::FreezeError;
use super::seize::{Frozen, Limit, Seizing, Thread};
use crate::parallel;
use crate::procfs::stat;
use crate::remote::waiting;

/// Threads at most.
const HANDS_MAX: usize = 16;
/// Processes that a hand waits for at the same time.
const AT_ONCE: usize = 32;
/// Processes from which on another thread is worth it.
const EACH_AT_LEAST: usize = 8;

/// What became of a process that was to be stopped.
pub(super) type Seized = (Pid, Result<FrozenTask, FreezeError>);

type Job = Box<dyn FnOnce(&mut Vec<Frozen>) + Send>;
type Panic = Box<dyn Any + Send>;

/// A stopped process of a tree: what was saved of it, for all threads; requests to it go through its hand.
#[derive(Debug)]
pub struct FrozenTask {
    pid: Pid,
    threads: Arc<Vec<Thread>>,
    hand: usize,
}

impl FrozenTask {
    /// The process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its threads: the first one first, the others by rising id.
    pub fn threads(&self) -> &[Thread] {
        &self.threads
    }

    /// Its first thread.
    pub fn leader(&self) -> &Thread {
        // A process that was stopped whole has its first thread among its threads.
        &self.threads[0]
    }

    /// The signal that had stopped it before we did (SIGSTOP, SIGTSTP, SIGTTIN or SIGTTOU).
    pub fn stopped_by(&self) -> Option<i32> {
        self.threads.iter().find_map(|thread| thread.group_stop)
    }
}

/// A thread and the processes that it has stopped. They run on when it ends.
struct Hand {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Hand {
    fn start() -> Hand {
        let (jobs, left) = mpsc::channel();
        Hand { jobs: Some(jobs), thread: Some(std::thread::spawn(move || hold(&left))) }
    }

    /// Has something done to the processes that it holds; the answer comes later.
    fn begin<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Vec<Frozen>) -> T + Send + 'static,
    ) -> Receiver<Result<T, Panic>> {
        let (answer, answers) = mpsc::channel();
        let job = move |held: &mut Vec<Frozen>| {
            // A fault of our own is passed on to who asked; what is held is let go by who holds it.
            let _ = answer.send(panic::catch_unwind(AssertUnwindSafe(|| work(held))));
        };
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(Box::new(job));
        }
        answers
    }
}

fn hold(jobs: &Receiver<Job>) {
    let mut held = Vec::new();
    for job in jobs {
        job(&mut held);
    }
    // Children before their parents, as far as they are held here.
    while let Some(last) = held.pop() {
        drop(last);
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What was asked of all processes and may not be answered yet.
pub struct Asked<T>(Vec<Answers<T>>);

/// What a hand has to say of each process that it holds.
type Answers<T> = Receiver<Result<Vec<(Pid, T)>, Panic>>;

/// All of them.
#[derive(Default)]
pub(super) struct Hands(Vec<Hand>);

impl Hands {
    /// Stops processes: each hand asks all of its own first, so that they come to their stops at the same time.
    pub(super) fn seize(&mut self, pids: &[Pid], limit: Limit) -> Vec<Seized> {
        self.seize_in_two(pids, limit, || {})
    }

    /// The same, in two moves: `between` is done when all have been asked to stop, and before any is waited for.
    pub(super) fn seize_in_two(&mut self, pids: &[Pid], limit: Limit, between: impl FnOnce()) -> Vec<Seized> {
        let processors = allowed_processors();
        let wanted = pids.len().div_ceil(EACH_AT_LEAST).clamp(1, processors.len().min(HANDS_MAX));
        while self.0.len() < wanted {
            self.0.push(Hand::start());
        }
        // Before a hand is bound to its processor, which may use them.
        parallel::start();
        // Nothing is sent: a hand drops its end when it has asked, or fails, and goes on when the other end is dropped.
        let (asking, all_asked) = mpsc::channel::<()>();
        let mut waiting = Vec::new();
        let asked: Vec<_> = parts(pids, &processors[..wanted])
            .into_iter()
            .enumerate()
            .map(|(hand, part)| {
                let (asking, processor) = (asking.clone(), (wanted > 1).then(|| processors[hand]));
                let (go, may_go) = mpsc::channel::<()>();
                waiting.push(go);
                let pause = move || {
                    drop(asking);
                    let _ = may_go.recv();
                };
                self.0[hand].begin(move |held| {
                    processor.into_iter().for_each(stay_on);
                    seize_part(&part, hand, limit, held, pause)
                })
            })
            .collect();
        drop(asking);
        let _ = all_asked.recv();
        between();
        drop(waiting);
        asked.into_iter().flat_map(answer).collect()
    }

    /// Does something to every process, on the thread that may; answers in the order of `tasks`.
    pub(super) fn each<T: Send + 'static>(&self, tasks: &[FrozenTask], work: fn(&Frozen) -> T) -> Vec<T> {
        let asked = self.begin_all(move |held| held.iter().map(|one| (one.pid(), work(one))).collect());
        Hands::answers(asked, tasks)
    }

    /// Begins the same with what waits for the processes, many of them at the same time.
    pub(super) fn begin<T: Send + 'static>(
        &self,
        work: impl AsyncFn(&Frozen) -> T + Copy + Send + 'static,
    ) -> Asked<T> {
        self.begin_all(move |held| {
            let work = held.iter().map(|one| async move { (one.pid(), work(one).await) });
            waiting::block_on(waiting::all(work, AT_ONCE))
        })
    }

    fn begin_all<T: Send + 'static>(
        &self,
        work: impl Fn(&[Frozen]) -> Vec<(Pid, T)> + Copy + Send + 'static,
    ) -> Asked<T> {
        Asked(self.0.iter().map(|hand| hand.begin(move |held| work(held))).collect())
    }

    /// The answers in the order of `tasks`, once all are there.
    pub(super) fn answers<T>(asked: Asked<T>, tasks: &[FrozenTask]) -> Vec<T> {
        let mut answers: std::collections::HashMap<Pid, T> = asked.0.into_iter().flat_map(answer).collect();
        // Each task is held by one of them; an answer too few would be taken for another's.
        let of = |task: &FrozenTask| answers.remove(&task.pid).unwrap_or_else(|| lost());
        tasks.iter().map(of).collect()
    }

    /// Lets one process run on.
    pub(super) fn thaw(&self, task: &FrozenTask) -> Result<(), FreezeError> {
        let pid = task.pid;
        let thaw = move |held: &mut Vec<Frozen>| match held.iter().position(|one| one.pid() == pid) {
            Some(at) => held.remove(at).thaw(),
            None => Ok(()),
        };
        self.0.get(task.hand).map_or(Ok(()), |hand| answer(hand.begin(thaw)))
    }
}

/// The processors that we may run on, or the first.
fn allowed_processors() -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    let allowed: Vec<usize> = (0..CpuSet::count()).filter(|at| set.is_set(*at).unwrap_or(false)).collect();
    if allowed.is_empty() { vec![0] } else { allowed }
}

/// Has this thread run on one processor. One that cannot be had is no matter.
fn stay_on(processor: usize) {
    let mut set = CpuSet::new();
    if set.set(processor).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}

/// Deals processes out to hands: each to the one on the processor that the process ran on last, where it wakes without
/// another processor's help, which costs as much as all else of a stop. None gets more than its part.
fn parts(pids: &[Pid], processors: &[usize]) -> Vec<Vec<Pid>> {
    let most = pids.len().div_ceil(processors.len().max(1));
    let mut parts = vec![Vec::new(); processors.len().max(1)];
    let mut left = Vec::new();
    for pid in pids {
        let last = stat::read(*pid).ok().and_then(|stat| usize::try_from(stat.processor).ok());
        let at = last.and_then(|last| processors.iter().position(|processor| *processor == last));
        match at.filter(|at| parts[*at].len() < most) {
            Some(at) => parts[at].push(*pid),
            None => left.push(*pid),
        }
    }
    let mut left = left.into_iter();
    for part in &mut parts {
        let room = most - part.len();
        part.extend(left.by_ref().take(room));
    }
    parts
}

fn seize_part(
    pids: &[Pid],
    hand: usize,
    limit: Limit,
    held: &mut Vec<Frozen>,
    pause: impl FnOnce(),
) -> Vec<Seized> {
    let started: Vec<_> = pids.iter().map(|pid| (*pid, Seizing::start(*pid, limit))).collect();
    pause();
    let mut seized = Vec::with_capacity(started.len());
    for (pid, seizing) in started {
        let frozen = seizing.and_then(Seizing::finish);
        seized.push((
            pid,
            frozen.map(|frozen| {
                let threads = frozen.shared_threads();
                held.push(frozen);
                FrozenTask { pid, threads, hand }
            }),
        ));
    }
    seized
}

fn answer<T>(answers: Receiver<Result<T, Panic>>) -> T {
    match answers.recv() {
        Ok(Ok(answer)) => answer,
        Ok(Err(panic)) => panic::resume_unwind(panic),
        // It answers every job, and takes jobs until it is dropped.
        Err(_) => lost(),
    }
}

fn lost() -> ! {
    panic::resume_unwind(Box::new("a thread that holds stopped processes is gone"))
}
