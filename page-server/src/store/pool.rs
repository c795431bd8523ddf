//! Buffers of one extent each, for what has arrived and is not written yet. Their number is bounded by round and by
//! store: who finds none left waits, and with it the client, whose window is not opened further meanwhile.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use godwit_wire::plan::{EXTENT_SLOTS, PAGE_SIZE};

/// Bytes of an extent, and of a buffer.
pub(crate) const EXTENT_LEN: usize = (EXTENT_SLOTS * PAGE_SIZE) as usize;
/// Buffers that every round may use, whatever others do: one for a payload, one for what it unpacks to.
pub(crate) const RESERVED: usize = 2;
/// Buffers that are kept for later use.
const KEPT_MAX: usize = 32;
/// How long a wait lasts at most before its cause is looked at again.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The buffers of a store.
pub(crate) struct Pool {
    state: Mutex<State>,
    changed: Condvar,
    shared_max: usize,
}

#[derive(Default)]
struct State {
    kept: Vec<Box<[u8]>>,
    /// Buffers in use beyond those that are reserved.
    shared: usize,
    in_use: usize,
    /// Counts what somebody may wait for.
    changes: u64,
    /// Those who wait: telling nobody costs a system call too.
    waiting: usize,
}

impl Pool {
    /// A pool with so many buffers besides those reserved for each round.
    pub(crate) fn new(shared_max: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changed: Condvar::new(), shared_max })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has those who wait look again.
    pub(crate) fn nudge(&self) {
        self.tell(self.state());
    }

    fn tell(&self, mut state: MutexGuard<'_, State>) {
        state.changes += 1;
        if state.waiting > 0 {
            self.changed.notify_all();
        }
    }
}

/// What one round may use of a pool.
pub(crate) struct Share {
    pool: Arc<Pool>,
    max: usize,
    /// Changed under the pool's lock only.
    in_use: AtomicUsize,
}

impl Share {
    /// A share of at most `max` buffers, but never less than a frame takes.
    pub(crate) fn new(pool: &Arc<Pool>, max: usize) -> Arc<Self> {
        Arc::new(Self { pool: pool.clone(), max: max.max(RESERVED), in_use: AtomicUsize::new(0) })
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// `N` buffers at once, so that nobody waits for a second one while holding a first; or the number of changes so
    /// far, to [`Share::wait`] for the next. Their content is what an earlier user left.
    pub(crate) fn take<const N: usize>(self: &Arc<Self>) -> Result<[Buffer; N], u64> {
        const { assert!(N <= RESERVED) };
        let mut state = self.pool.state();
        let in_use = self.in_use.load(Ordering::Relaxed) + N;
        let shared = in_use.saturating_sub(RESERVED).min(N);
        if in_use > self.max || (shared > 0 && state.shared + shared > self.pool.shared_max) {
            return Err(state.changes);
        }
        self.in_use.store(in_use, Ordering::Relaxed);
        state.shared += shared;
        state.in_use += N;
        let kept: [Option<Box<[u8]>>; N] = std::array::from_fn(|_| state.kept.pop());
        drop(state);
        Ok(kept.map(|kept| {
            let bytes = kept.unwrap_or_else(|| vec![0; EXTENT_LEN].into_boxed_slice());
            Buffer { bytes, share: self.clone() }
        }))
    }

    /// Waits until something changes after `seen`, for a while.
    pub(crate) fn wait(&self, seen: u64) {
        let mut state = self.pool.state();
        if state.changes == seen {
            state.waiting += 1;
            let waited = self.pool.changed.wait_timeout(state, LOOK_INTERVAL);
            waited.unwrap_or_else(PoisonError::into_inner).0.waiting -= 1;
        }
    }
}

/// A buffer in use; it goes back to its pool when it is dropped.
pub(crate) struct Buffer {
    bytes: Box<[u8]>,
    share: Arc<Share>,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut state = self.share.pool.state();
        let in_use = self.share.in_use.load(Ordering::Relaxed);
        self.share.in_use.store(in_use - 1, Ordering::Relaxed);
        state.shared -= usize::from(in_use > RESERVED);
        state.in_use -= 1;
        if state.in_use == 0 {
            // Nobody is at work: what an idle server keeps would only be missed elsewhere.
            state.kept.clear();
        } else if state.kept.len() < KEPT_MAX {
            state.kept.push(bytes);
        }
        self.share.pool.tell(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_bounded_and_what_is_reserved_is_there() {
        let pool = Pool::new(3);
        let (greedy, modest) = (Share::new(&pool, 9), Share::new(&pool, 3));
        let mut held: Vec<[Buffer; 1]> = (0..5).map(|_| greedy.take().unwrap()).collect();
        assert!(greedy.take::<1>().is_err(), "two of its own, three shared ones");
        let both: [Buffer; 2] = modest.take().unwrap();
        let seen = modest.take::<1>().err().unwrap();
        held.pop();
        modest.wait(seen);
        let third: [Buffer; 1] = modest.take().unwrap();
        assert!(modest.take::<1>().is_err() && greedy.take::<1>().is_err());
        drop((both, third));
        let again: [Buffer; 1] = greedy.take().unwrap();
        drop((held, again));
        let state = pool.state();
        assert_eq!((state.in_use, state.shared, state.kept.len()), (0, 0, 0));
    }
}
