//! Threads that hash and write extents which are whole, so that a slow disk does not stop those who receive. What
//! waits for them is in buffers of a [`super::pool`], and so bounded.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::assembly::Whole;
use super::staging::Staged;

/// The threads of a store. Dropping it lets them finish what waits.
pub(crate) struct Workers {
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    over: bool,
}

/// An extent to be written.
pub(crate) struct Job {
    pub(crate) staged: Arc<Staged>,
    pub(crate) pages_id: u32,
    pub(crate) whole: Whole,
}

impl Workers {
    /// Starts `count` threads; `None` if that is 0 or none can be had: then whoever completes an extent writes it.
    pub(crate) fn start(count: usize) -> Option<Arc<Self>> {
        let queue = Arc::<Queue>::default();
        let started = (0..count).filter(|_| {
            let queue = Arc::clone(&queue);
            let body = move || {
                while let Some(job) = queue.next() {
                    job.staged.write_queued(job.pages_id, job.whole);
                }
            };
            let spawned = std::thread::Builder::new().name("godwit-writer".to_owned()).spawn(body);
            spawned.inspect_err(|e| tracing::warn!("no thread to write with: {e}")).is_ok()
        });
        (started.count() > 0).then(|| Arc::new(Self { queue }))
    }

    pub(crate) fn submit(&self, job: Job) {
        self.queue.state().jobs.push_back(job);
        self.queue.more.notify_one();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.queue.state().over = true;
        self.queue.more.notify_all();
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.over {
                return None;
            }
            state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
