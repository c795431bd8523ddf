//! Waiting for a tracee's next report, with a time limit.
//!
//! The kernel has no wait for ptrace stops with a limit, and a stop mostly comes within microseconds (within a
//! millisecond on an emulated processor). So: look and yield at first, then sleep for longer and longer.
//!
//! What waits is a future, so that one thread, the one that traces, waits for many tracees at the same time: they run
//! on the other processors while it goes on with those that have stopped. To wait for one after the other costs five
//! times as much where a processor has to be woken for each, and more beside other work.

use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::sys::wait::{self, Status};

/// Looks that yield the processor before the first sleep, and how long they go on at least.
const EAGER_LOOKS: u32 = 400;
const EAGER_TIME: Duration = Duration::from_millis(2);
const SLEEP_FIRST: Duration = Duration::from_micros(50);
const SLEEP_LONGEST: Duration = Duration::from_millis(2);

thread_local! {
    /// Reports that this thread has taken.
    static REPORTS: Cell<u64> = const { Cell::new(0) };
}

/// The next report of `tid`; `None` when none came before `deadline`.
pub(crate) async fn report(tid: Pid, deadline: Instant) -> nix::Result<Option<Status>> {
    loop {
        if let Some(status) = wait::try_wait(tid)? {
            REPORTS.set(REPORTS.get().wrapping_add(1));
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        next_look().await;
    }
}

/// Lets others be looked at first.
pub(crate) async fn next_look() {
    Once::default().await;
}

/// Comes back at the next look.
#[derive(Default)]
struct Once(bool);

impl Future for Once {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        match std::mem::replace(&mut self.0, true) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

/// Waits, on this thread, until `work` is done. Nothing else in it may wait than [`report`]
/// and [`next_look`].
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let mut context = Context::from_waker(Waker::noop());
    let mut pause = Pause::new();
    loop {
        let before = REPORTS.get();
        if let Poll::Ready(done) = work.as_mut().poll(&mut context) {
            return done;
        }
        if REPORTS.get() == before {
            pause.pause();
        } else {
            pause = Pause::new();
        }
    }
}

/// Does all of `work`, `at_once` of them at the same time; answers in their order.
///
/// Each is brought to its end, whatever becomes of the others.
pub(crate) async fn all<F: Future>(work: impl IntoIterator<Item = F>, at_once: usize) -> Vec<F::Output> {
    let mut left = work.into_iter().enumerate();
    let mut running: Vec<(usize, Pin<Box<F>>)> = Vec::new();
    let mut done: Vec<(usize, F::Output)> = Vec::new();
    std::future::poll_fn(|context| {
        loop {
            let mut has_ended = false;
            running.retain_mut(|(index, one)| match one.as_mut().poll(context) {
                Poll::Ready(output) => {
                    done.push((*index, output));
                    has_ended = true;
                    false
                }
                Poll::Pending => true,
            });
            let fresh = at_once.max(1) - running.len();
            let before = running.len();
            running.extend(left.by_ref().take(fresh).map(|(index, one)| (index, Box::pin(one))));
            match (running.is_empty(), has_ended || running.len() > before) {
                (true, _) => return Poll::Ready(()),
                (false, true) => {}
                (false, false) => return Poll::Pending,
            }
        }
    })
    .await;
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, output)| output).collect()
}

/// A pause that starts as a yield and grows.
pub(crate) struct Pause {
    begun: Instant,
    looks: u32,
    sleep: Duration,
}

impl Pause {
    pub(crate) fn new() -> Pause {
        Pause { begun: Instant::now(), looks: 0, sleep: SLEEP_FIRST }
    }

    /// Whether the eager phase is over.
    pub(crate) fn is_sleeping(&self) -> bool {
        self.looks >= EAGER_LOOKS && self.begun.elapsed() >= EAGER_TIME
    }

    /// Yields or sleeps once.
    pub(crate) fn pause(&mut self) {
        if !self.is_sleeping() {
            self.looks = self.looks.saturating_add(1);
            thread::yield_now();
        } else {
            thread::sleep(self.sleep);
            self.sleep = (self.sleep * 2).min(SLEEP_LONGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ends at the look with this number.
    async fn after(looks: u32, running: &Cell<u32>, most: &Cell<u32>) -> u32 {
        running.set(running.get() + 1);
        most.set(most.get().max(running.get()));
        for _ in 0..looks {
            Once::default().await;
        }
        running.set(running.get() - 1);
        looks
    }

    #[test]
    fn many_are_waited_for_at_the_same_time_and_answer_in_order() {
        let (running, most) = (Cell::new(0), Cell::new(0));
        let looks = [5, 0, 3, 9, 1, 0, 0, 2];
        let work = looks.iter().map(|looks| after(*looks, &running, &most));
        assert_eq!(block_on(all(work, 3)), looks);
        assert_eq!((running.get(), most.get()), (0, 3));
        assert_eq!(block_on(all(std::iter::empty::<std::future::Ready<()>>(), 0)), []);
    }
}
