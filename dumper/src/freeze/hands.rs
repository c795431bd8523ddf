//! Threads that hold stopped processes. The kernel answers a tracer's requests only from the thread that seized, and one
//! process costs a millisecond of them: work on the processes of a tree is spread over as many threads as there are
//! processors, each of which has seized some of them.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::error::FreezeError;
use super::parts::{self, MANY_THREADS, Part, Round, Seat, Spread, StartPart};
use super::seize::{self, Frozen, Limit, Seizing, Thread};
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

type Job = Box<dyn FnOnce(&mut Held) + Send>;
type Panic = Box<dyn Any + Send>;

/// A stopped process of a tree: what was saved of it, for all threads; requests to it go through its hand.
#[derive(Debug)]
pub struct FrozenTask {
    pid: Pid,
    threads: Arc<Vec<Thread>>,
    /// Who hold it, the one with the first thread first.
    hands: Vec<usize>,
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

    /// How many of our threads hold it: several, each a part of it, where it has very many threads.
    pub fn hands(&self) -> usize {
        self.hands.len()
    }

    /// The signal that had stopped it before we did (SIGSTOP, SIGTSTP, SIGTTIN or SIGTTOU).
    pub fn stopped_by(&self) -> Option<i32> {
        self.threads.iter().find_map(|thread| thread.group_stop)
    }
}

/// What a hand holds.
#[derive(Default)]
struct Held {
    /// In the order in which they were stopped, which is that of all hands for processes that are held in parts.
    frozen: Vec<Frozen>,
    /// Parts of processes that are still being stopped.
    parts: HashMap<Pid, Seizing>,
}

impl Held {
    fn part(&mut self, pid: Pid) -> Result<&mut Seizing, FreezeError> {
        self.parts.get_mut(&pid).ok_or(FreezeError::Died { pid })
    }

    /// Lets a process run on, as far as it is held here.
    fn thaw(&mut self, pid: Pid) -> Result<(), FreezeError> {
        match self.frozen.iter().position(|one| one.pid() == pid) {
            Some(at) => self.frozen.remove(at).thaw(),
            None => Ok(()),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.parts.clear();
        // Children before their parents, as far as they are held here.
        while let Some(last) = self.frozen.pop() {
            drop(last);
        }
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
        work: impl FnOnce(&mut Held) -> T + Send + 'static,
    ) -> Receiver<Result<T, Panic>> {
        let (answer, answers) = mpsc::channel();
        let job = move |held: &mut Held| {
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
    let mut held = Held::default();
    for job in jobs {
        job(&mut held);
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
        let most = processors.len().min(HANDS_MAX);
        let looks: Vec<Look> = pids.iter().map(|pid| Look::at(*pid)).collect();
        let (many, few): (Vec<Look>, Vec<Look>) =
            looks.into_iter().partition(|look| most > 1 && look.has_many);
        let for_few = few.len().div_ceil(EACH_AT_LEAST).clamp(1, most);
        let wanted = if many.is_empty() { for_few } else { most };
        while self.0.len() < wanted {
            self.0.push(Hand::start());
        }
        // Before a hand is bound to its processor, which may use them.
        parallel::start();
        let mut seized: Vec<Seized> = Vec::with_capacity(pids.len());
        let mut spreads = Vec::with_capacity(many.len());
        for Look { pid, .. } in many {
            match Spread::over(pid, &processors[..wanted]) {
                Ok(spread) => spreads.push(spread),
                Err(error) => seized.push((pid, Err(error))),
            }
        }
        // Nothing is sent: a hand drops its end when it has asked, or fails, and goes on when the other end is dropped.
        let (asking, all_asked) = mpsc::channel::<()>();
        let mut waiting = Vec::new();
        let mut dealt = deal(&few, &processors[..for_few]);
        dealt.resize(wanted, Vec::new());
        let asked: Vec<_> = dealt
            .into_iter()
            .enumerate()
            .map(|(hand, pids)| {
                let (asking, processor) = (asking.clone(), (wanted > 1).then(|| processors[hand]));
                let (go, may_go) = mpsc::channel::<()>();
                waiting.push(go);
                let pause = move || {
                    drop(asking);
                    let _ = may_go.recv();
                };
                let parts = spreads.iter().map(|spread| (spread.pid, spread.part(hand))).collect();
                self.0[hand].begin(move |held| {
                    processor.into_iter().for_each(stay_on);
                    seize_dealt(&pids, parts, hand, limit, held, pause)
                })
            })
            .collect();
        drop(asking);
        let _ = all_asked.recv();
        between();
        drop(waiting);
        let mut stopped: HashMap<Pid, Vec<Stopped>> = HashMap::new();
        for (of_few, of_parts) in asked.into_iter().map(answer) {
            seized.extend(of_few);
            of_parts.into_iter().for_each(|(pid, of_part)| stopped.entry(pid).or_default().push(of_part));
        }
        for spread in &spreads {
            let of_parts = stopped.remove(&spread.pid).unwrap_or_default();
            seized.push((spread.pid, self.join(spread, of_parts)));
        }
        seized
    }

    /// Brings the parts of a process together whose threads have stopped, or lets all of them go.
    fn join(&self, spread: &Spread, stopped: Vec<Stopped>) -> Result<FrozenTask, FreezeError> {
        let pid = spread.pid;
        let joined = self.try_join(spread, stopped);
        if joined.is_err() {
            self.all_parts(spread, move |held| {
                held.parts.remove(&pid);
                held.thaw(pid)
            });
        }
        joined
    }

    fn try_join(&self, spread: &Spread, stopped: Vec<Stopped>) -> Result<FrozenTask, FreezeError> {
        let (pid, mut others) = (spread.pid, HashSet::new());
        for of_part in stopped {
            others.extend(of_part?);
        }
        // Nobody is left in the other parts to make threads: what is new comes from the first, or is stopped by it.
        let first = self.0.first().ok_or(FreezeError::Died { pid })?;
        answer(first.begin(move |held| {
            let part = held.part(pid)?;
            part.stopped().for_each(|tid| {
                others.remove(&tid);
            });
            part.stop_all(&others)
        }))?;
        let mut threads = Vec::new();
        for saved in self.all_parts(spread, move |held| held.part(pid)?.save()) {
            threads.extend(saved?);
        }
        let threads = Arc::new(seize::in_order(pid, threads)?);
        let around = Arc::new(OnceLock::new());
        let common = (Arc::clone(&threads), around);
        self.all_parts(spread, move |held| {
            let (threads, around) = common.clone();
            let part = held.parts.remove(&pid).map(|part| part.into_frozen(threads, around, true));
            held.frozen.extend(part);
        });
        Ok(FrozenTask { pid, threads, hands: (0..spread.len()).collect() })
    }

    /// Does something with each part of a process, at the same time.
    fn all_parts<T: Send + 'static>(
        &self,
        spread: &Spread,
        work: impl FnOnce(&mut Held) -> T + Clone + Send + 'static,
    ) -> Vec<T> {
        let begun: Vec<_> = self.0.iter().take(spread.len()).map(|hand| hand.begin(work.clone())).collect();
        begun.into_iter().map(answer).collect()
    }

    /// Does something to every process, or to every part of it, on the thread that may; answers in the order of `tasks`.
    pub(super) fn each<T: Part>(&self, tasks: &[FrozenTask], work: fn(&Frozen) -> T) -> Vec<T::Whole> {
        let asked = self.begin_all(move |held| held.iter().map(|one| (one.pid(), work(one))).collect());
        Hands::answers(asked, tasks)
    }

    /// Begins the same with what waits for the processes, many of them at the same time.
    pub(super) fn begin<T: Part>(
        &self,
        tasks: &[FrozenTask],
        work: impl AsyncFn(&Frozen) -> T + Copy + Send + 'static,
    ) -> Asked<T> {
        let in_parts = tasks.iter().filter(|task| task.hands.len() > 1);
        let rounds: Vec<(Pid, Arc<Round>)> =
            in_parts.map(|task| (task.pid, Round::of(task.hands.len()))).collect();
        let begin = |(hand, one): (usize, &Hand)| {
            // Part n of a process is held by hand n. Those who wait for it go on also where this is never done.
            let of_hand = rounds.iter().filter(|(_, round)| hand < round.parts());
            let seats: HashMap<Pid, Seat> =
                of_hand.map(|(pid, round)| (*pid, Seat::take(round, hand))).collect();
            one.begin(move |held| {
                let _seated = Seated::of(&held.frozen, seats);
                let work = held.frozen.iter().map(|one| async move {
                    let seated = Seated(std::slice::from_ref(one));
                    let answer = work(one).await;
                    drop(seated);
                    (one.pid(), answer)
                });
                waiting::block_on(waiting::all(work, AT_ONCE))
            })
        };
        Asked(self.0.iter().enumerate().map(begin).collect())
    }

    fn begin_all<T: Send + 'static>(
        &self,
        work: impl Fn(&[Frozen]) -> Vec<(Pid, T)> + Copy + Send + 'static,
    ) -> Asked<T> {
        Asked(self.0.iter().map(|hand| hand.begin(move |held| work(&held.frozen))).collect())
    }

    /// The answers in the order of `tasks`, once all are there.
    pub(super) fn answers<T: Part>(asked: Asked<T>, tasks: &[FrozenTask]) -> Vec<T::Whole> {
        // In the order of the hands: of a process in parts the first thread's first.
        let mut answers: HashMap<Pid, Vec<T>> = HashMap::new();
        for (pid, of_part) in asked.0.into_iter().flat_map(answer) {
            answers.entry(pid).or_default().push(of_part);
        }
        // Each task is held by one or several of them; an answer too few would be taken for another's.
        let mut of = |task: &FrozenTask| {
            let parts = answers.remove(&task.pid).filter(|parts| parts.len() == task.hands.len());
            T::join(parts.unwrap_or_else(|| lost()))
        };
        tasks.iter().map(&mut of).collect()
    }

    /// Lets one process run on.
    pub(super) fn thaw(&self, task: &FrozenTask) -> Result<(), FreezeError> {
        let pid = task.pid;
        let hands = task.hands.iter().filter_map(|hand| self.0.get(*hand));
        let begun: Vec<_> = hands.map(|hand| hand.begin(move |held| held.thaw(pid))).collect();
        begun.into_iter().map(answer).fold(Ok(()), Result::and)
    }
}

/// Processes that are asked, those that are held in parts each with a seat. Dropping it takes the seats away that are still
/// there, of parts that have failed before they could ask.
struct Seated<'a>(&'a [Frozen]);

impl<'a> Seated<'a> {
    fn of(held: &'a [Frozen], mut seats: HashMap<Pid, Seat>) -> Seated<'a> {
        for one in held {
            one.seat(seats.remove(&one.pid()));
        }
        Seated(held)
    }
}

impl Drop for Seated<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|one| one.seat(None));
    }
}

/// What is seen of a process before it is dealt out.
struct Look {
    pid: Pid,
    /// The processor that it ran on last.
    processor: Option<usize>,
    has_many: bool,
}

impl Look {
    fn at(pid: Pid) -> Look {
        let stat = stat::read(pid).ok();
        let processor = stat.as_ref().and_then(|stat| usize::try_from(stat.processor).ok());
        let threads = stat.map_or(0, |stat| usize::try_from(stat.num_threads).unwrap_or_default());
        Look { pid, processor, has_many: threads >= MANY_THREADS }
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
fn deal(looks: &[Look], processors: &[usize]) -> Vec<Vec<Pid>> {
    let most = looks.len().div_ceil(processors.len().max(1));
    let mut dealt = vec![Vec::new(); processors.len().max(1)];
    let mut left = Vec::new();
    for look in looks {
        let at = look.processor.and_then(|last| processors.iter().position(|processor| *processor == last));
        match at.filter(|at| dealt[*at].len() < most) {
            Some(at) => dealt[at].push(look.pid),
            None => left.push(look.pid),
        }
    }
    let mut left = left.into_iter();
    for part in &mut dealt {
        let room = most - part.len();
        part.extend(left.by_ref().take(room));
    }
    dealt
}

/// The threads of a part that has stopped.
type Stopped = Result<HashSet<Pid>, FreezeError>;
type ToStart = Result<Option<StartPart>, FreezeError>;

/// Stops what was dealt to a hand: whole processes, and parts of others, which are not complete yet.
fn seize_dealt(
    pids: &[Pid],
    parts: Vec<(Pid, ToStart)>,
    hand: usize,
    limit: Limit,
    held: &mut Held,
    pause: impl FnOnce(),
) -> (Vec<Seized>, Vec<(Pid, Stopped)>) {
    let started: Vec<_> = pids.iter().map(|pid| (*pid, Seizing::start(*pid, limit))).collect();
    let mut of_parts = Vec::with_capacity(parts.len());
    for (pid, part) in parts {
        match part.and_then(|part| part.map(|part| Seizing::start_part(part, limit)).transpose()) {
            Ok(Some(part)) => {
                held.parts.insert(pid, part);
                of_parts.push((pid, Ok(HashSet::new())));
            }
            // It has fewer parts than there are hands.
            Ok(None) => {}
            Err(error) => of_parts.push((pid, Err(error))),
        }
    }
    pause();
    for (pid, of_part) in &mut of_parts {
        if of_part.is_ok() {
            *of_part = parts::stop(held.part(*pid));
        }
    }
    let mut seized = Vec::with_capacity(started.len());
    for (pid, seizing) in started {
        let frozen = seizing.and_then(Seizing::finish);
        seized.push((
            pid,
            frozen.map(|frozen| {
                let threads = frozen.shared_threads();
                held.frozen.push(frozen);
                FrozenTask { pid, threads, hands: vec![hand] }
            }),
        ));
    }
    (seized, of_parts)
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
