//! A process of very many threads is held in parts, each by a hand of its own: the kernel answers a tracer's requests only
//! from the thread that seized.
//!
//! The parts share what was saved of all threads. When they are asked, the part with the first thread maps scratch memory
//! in the process, and the others use places in it; none of them outlasts that memory.

use std::collections::HashSet;
use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::unistd::Pid;

use super::error::FreezeError;
use super::seize::{self, Seizing};
use crate::parallel;
use crate::procfs::stat;
use crate::remote::{Spot, waiting};

/// Threads from which on a process is held in parts.
pub const MANY_THREADS: usize = 256;
/// Threads of a part, at least.
const EACH_AT_LEAST: usize = 128;
/// Parts at most: each has more than one place in the scratch memory, also with the largest frames.
const PARTS_MAX: usize = 8;

/// What is answered for a part of a process, and what comes of all of it.
pub trait Part: Sized + Send + 'static {
    /// The answer for the process.
    type Whole;

    /// Puts the answers together: that of the part with the first thread first, the others in any order.
    fn join(parts: Vec<Self>) -> Self::Whole;
}

impl<T: Part, E: Send + 'static> Part for Result<T, E> {
    type Whole = Result<T::Whole, E>;

    fn join(parts: Vec<Self>) -> Self::Whole {
        parts.into_iter().collect::<Result<Vec<T>, E>>().map(T::join)
    }
}

/// A process of very many threads that is to be stopped in parts.
pub(super) struct Spread {
    pub(super) pid: Pid,
    pidfd: OwnedFd,
    parts: Vec<Vec<Pid>>,
}

impl Spread {
    /// Deals the threads that a process has now out to the hands on some processors; the first has the first thread.
    pub(super) fn over(pid: Pid, processors: &[usize]) -> Result<Spread, FreezeError> {
        let (pidfd, mut tids) = seize::look(pid)?;
        tids.sort_by_key(|tid| (*tid != pid, tid.as_raw()));
        let last = parallel::each(&tids, |tid| {
            let stat = stat::read_thread(pid, *tid).ok();
            Ok::<_, Infallible>((*tid, stat.and_then(|stat| usize::try_from(stat.processor).ok())))
        });
        Ok(Spread { pid, pidfd, parts: deal(&last.unwrap_or_default(), processors) })
    }

    /// How many parts there are: the first is for the first hand, and so on.
    pub(super) fn len(&self) -> usize {
        self.parts.len()
    }

    /// What part `at` is to be started with.
    pub(super) fn part(&self, at: usize) -> Result<Option<StartPart>, FreezeError> {
        let Some(tids) = self.parts.get(at) else { return Ok(None) };
        let pidfd = self.pidfd.try_clone().map_err(|error| FreezeError::Ptrace {
            tid: self.pid,
            request: "dup of a pidfd",
            source: nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0)),
        })?;
        Ok(Some(StartPart { pid: self.pid, pidfd, tids: tids.clone() }))
    }
}

/// Deals threads out, each with the processor that it ran on last, to the hand on that processor: there it wakes without
/// another processor's help, each time that it is asked something. The first goes to the first hand, and none gets more
/// than its part.
fn deal(threads: &[(Pid, Option<usize>)], processors: &[usize]) -> Vec<Vec<Pid>> {
    let count = (threads.len() / EACH_AT_LEAST).clamp(1, processors.len().clamp(1, PARTS_MAX));
    let most = threads.len().div_ceil(count);
    let mut parts = vec![Vec::with_capacity(most); count];
    let mut left = Vec::new();
    for (index, (tid, last)) in threads.iter().enumerate() {
        let on_last =
            last.and_then(|last| processors[..count].iter().position(|processor| *processor == last));
        let at = if index == 0 { Some(0) } else { on_last };
        match at.filter(|at| parts[*at].len() < most) {
            Some(at) => parts[at].push(*tid),
            None => left.push(*tid),
        }
    }
    let mut left = left.into_iter();
    for part in &mut parts {
        let room = most - part.len();
        part.extend(left.by_ref().take(room));
    }
    parts
}

/// A part that has not been asked to stop yet.
pub(super) struct StartPart {
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    pub(super) tids: Vec<Pid>,
}

/// Waits until a part has stopped; its threads.
pub(super) fn stop(seizing: Result<&mut Seizing, FreezeError>) -> Result<HashSet<Pid>, FreezeError> {
    let seizing = seizing?;
    seizing.await_stops()?;
    Ok(seizing.stopped().collect())
}

/// How far the parts of a process are with what they are asked. New for each time that they are.
pub(super) struct Round {
    parts: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The scratch memory for others than the first part, once it is there; without a place if there is none to have.
    lent: Option<Vec<Spot>>,
    /// The first part has asked all its own threads.
    first_is_done: bool,
    /// The first part has left. Nobody may enter any more.
    is_over: bool,
    /// Parts that use the scratch memory, or a place of their own while no other does.
    inside: usize,
    /// Parts but the first that have left.
    left: usize,
}

impl Round {
    pub(super) fn of(parts: usize) -> Arc<Round> {
        Arc::new(Round { parts, state: Mutex::default() })
    }

    pub(super) fn parts(&self) -> usize {
        self.parts
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The seat of a part in a round. Leaving it tells the others, in whatever way the part has come to its end.
pub(super) struct Seat {
    round: Arc<Round>,
    /// Which part it is; the first has the first thread.
    part: usize,
    is_inside: bool,
}

impl Seat {
    pub(super) fn take(round: &Arc<Round>, part: usize) -> Seat {
        Seat { round: Arc::clone(round), part, is_inside: false }
    }

    /// How many parts there are.
    pub(super) fn parts(&self) -> usize {
        self.round.parts
    }

    /// Lends the others the places that are theirs; those of the first part itself.
    pub(super) fn lend(&self, spots: &[Spot]) -> Vec<Spot> {
        self.round.state().lent = Some(spots.to_vec());
        self.own(spots)
    }

    /// Its own of all places: none if there are not enough for all.
    fn own(&self, spots: &[Spot]) -> Vec<Spot> {
        match spots.len() < self.round.parts {
            true => Vec::new(),
            false => spots.iter().skip(self.part).step_by(self.round.parts).copied().collect(),
        }
    }

    /// Waits until a part may ask its threads; the places for that, none if it must find its own. `None`: the first part
    /// has failed.
    pub(super) async fn enter(&mut self) -> Option<Vec<Spot>> {
        loop {
            if let Some(entered) = self.try_enter() {
                return entered;
            }
            waiting::next_look().await;
        }
    }

    fn try_enter(&mut self) -> Option<Option<Vec<Spot>>> {
        let round = Arc::clone(&self.round);
        let mut state = round.state();
        if state.is_over {
            return Some(None);
        }
        let own = self.own(state.lent.as_ref()?);
        // Places that threads find for themselves are for one of them at a time.
        let must_wait = own.is_empty() && (!state.first_is_done || state.inside > 0);
        if must_wait {
            return None;
        }
        state.inside += 1;
        self.is_inside = true;
        Some(Some(own))
    }

    /// Waits, as the first part, until all others have left.
    pub(super) async fn await_others(&self) {
        self.round.state().first_is_done = true;
        while self.round.state().left + 1 < self.round.parts {
            waiting::next_look().await;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        const LOOK: Duration = Duration::from_micros(100);
        if self.part > 0 {
            let mut state = self.round.state();
            state.left += 1;
            state.inside -= usize::from(self.is_inside);
            return;
        }
        self.round.state().is_over = true;
        // Their frames lie in memory that is about to go. They wait for nothing of ours: each of their calls has a limit.
        while self.round.state().inside > 0 {
            std::thread::sleep(LOOK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spots(count: usize) -> Vec<Spot> {
        (0..count as u64).map(|at| Spot { at: at * 64, room: 64 }).collect()
    }

    fn dealt(last: impl Fn(i32) -> Option<usize>, count: i32, processors: &[usize]) -> Vec<Vec<Pid>> {
        let threads: Vec<_> = (0..count).map(|tid| (Pid::from_raw(tid), last(tid))).collect();
        let parts = deal(&threads, processors);
        let mut all: Vec<Pid> = parts.concat();
        assert_eq!(parts[0][0], Pid::from_raw(0));
        all.sort();
        assert_eq!(all, threads.iter().map(|(tid, _)| *tid).collect::<Vec<_>>());
        parts
    }

    #[test]
    fn threads_are_dealt_to_the_processors_they_ran_on_and_evenly() {
        let lengths = |parts: Vec<Vec<Pid>>| parts.iter().map(Vec::len).collect::<Vec<_>>();
        let odd = |tid: i32| Some(if tid % 2 == 1 { 4 } else { 7 });
        let parts = dealt(odd, 600, &[4, 7]);
        let even = |part: &[Pid]| part.iter().filter(|tid| tid.as_raw() % 2 == 0).count();
        assert_eq!((even(&parts[0]), even(&parts[1])), (1, 299));
        assert_eq!(lengths(parts), [300, 300]);
        assert_eq!(lengths(dealt(|_| Some(3), 600, &[2, 3])), [300, 300]);
        assert_eq!(lengths(dealt(|_| None, 601, &[2, 3])), [301, 300]);
        assert_eq!(lengths(dealt(|_| None, 300, &[0, 1, 2, 3])), [150, 150]);
        assert_eq!(lengths(dealt(|_| None, 5000, &(0..16).collect::<Vec<_>>())), [625; 8]);
        assert_eq!(lengths(dealt(|_| Some(9), 255, &[0, 1])), [255]);
        assert_eq!(lengths(dealt(odd, 256, &[4, 7])), [128, 128]);
    }

    #[test]
    fn each_part_has_places_of_its_own() {
        let round = Round::of(3);
        let mut seats: Vec<Seat> = (0..3).map(|part| Seat::take(&round, part)).collect();
        assert!(seats[1].try_enter().is_none(), "nothing is lent yet");
        let all = spots(7);
        let mut used = seats[0].lend(&all);
        assert_eq!(used.len(), 3);
        for seat in &mut seats[1..] {
            used.extend(seat.try_enter().unwrap().unwrap());
        }
        used.sort_by_key(|spot| spot.at);
        assert_eq!(used, all);
        seats.drain(1..);
        waiting::block_on(seats[0].await_others());
    }

    #[test]
    fn without_places_one_part_asks_at_a_time() {
        let round = Round::of(3);
        let mut seats: Vec<Seat> = (0..3).map(|part| Seat::take(&round, part)).collect();
        assert_eq!(seats[0].lend(&spots(2)), []);
        assert!(seats[1].try_enter().is_none(), "the first asks its own threads");
        round.state().first_is_done = true;
        assert_eq!(seats[1].try_enter(), Some(Some(Vec::new())));
        assert!(seats[2].try_enter().is_none());
        drop(seats.remove(1));
        assert_eq!(seats[1].try_enter(), Some(Some(Vec::new())));
        drop(seats.remove(1));
        waiting::block_on(seats[0].await_others());
    }

    #[test]
    fn a_first_part_that_leaves_ends_the_round_when_nobody_uses_its_memory() {
        let round = Round::of(3);
        let [first, mut second, mut third] = [0, 1, 2].map(|part| Seat::take(&round, part));
        first.lend(&spots(3));
        assert!(second.try_enter().unwrap().is_some());
        std::thread::scope(|scope| {
            let leaves = scope.spawn(move || drop(first));
            while !round.state().is_over {
                std::thread::yield_now();
            }
            assert_eq!(third.try_enter(), Some(None));
            std::thread::sleep(Duration::from_millis(20));
            assert!(!leaves.is_finished(), "one is inside");
            drop(second);
        });
    }
}
