//! Buffers of one extent that are used again and again: fresh memory costs more than all that is done with it.
//!
//! A buffer goes out as [`Room`], is filled, and travels on as [`Bytes`]. It comes back by itself when the last slice of
//! it is gone, which for pages on a link is when the peer has acknowledged them; until then nobody can write to it. How
//! many there are bounds what the dumper holds in memory, whatever the size of the process: who finds none waits.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use godwit_wire::frame::{Packer, SAME_HASH_LEN};
use godwit_wire::plan::{EXTENT_SLOTS, PAGE_SIZE};

/// Buffers of a dump, 1 MiB each: what 10 Gbit/s with a round trip of 40 ms have under way.
pub const BUFFERS_MAX: usize = 48;

const EXTENT_BYTES: usize = (EXTENT_SLOTS * PAGE_SIZE) as usize;

/// A bounded number of buffers. Clones share them.
#[derive(Clone, Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    buffers: Mutex<Buffers>,
    /// Told when one comes back.
    back: Condvar,
    len: usize,
    /// How many there can be.
    most: usize,
}

#[derive(Debug)]
struct Buffers {
    /// Last in, first out: what was used last is likely still in the processor's cache.
    idle: Vec<Vec<u8>>,
    /// How many more may be made.
    unmade: usize,
}

impl Pool {
    /// A pool of up to `buffers` buffers, each made when it is first needed, and as long as an extent or what packing
    /// one may need.
    pub fn new(buffers: usize) -> Pool {
        let len = Packer::room_for(EXTENT_BYTES) + EXTENT_SLOTS as usize * SAME_HASH_LEN;
        let most = buffers.max(1);
        let buffers = Mutex::new(Buffers { idle: Vec::new(), unmade: most });
        Pool { shared: Arc::new(Shared { buffers, back: Condvar::new(), len, most }) }
    }

    /// How many buffers there can be.
    pub fn most(&self) -> usize {
        self.shared.most
    }

    /// A buffer, or `None` when none came back within `patience`. It holds whatever it was used for before.
    pub fn take(&self, patience: Duration) -> Option<Room> {
        let none = |buffers: &mut Buffers| buffers.idle.is_empty() && buffers.unmade == 0;
        let waited = self.shared.back.wait_timeout_while(self.shared.lock(), patience, none);
        let (mut buffers, _) = waited.unwrap_or_else(PoisonError::into_inner);
        self.shared.room(&mut buffers)
    }

    /// A buffer at once, if more than `left` are there.
    pub fn spare(&self, left: usize) -> Option<Room> {
        let mut buffers = self.shared.lock();
        if buffers.idle.len() + buffers.unmade <= left {
            return None;
        }
        self.shared.room(&mut buffers)
    }
}

impl Default for Pool {
    fn default() -> Pool {
        Pool::new(BUFFERS_MAX)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Buffers> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn room(self: &Arc<Shared>, buffers: &mut Buffers) -> Option<Room> {
        let bytes = match buffers.idle.pop() {
            Some(bytes) => bytes,
            None => {
                buffers.unmade = buffers.unmade.checked_sub(1)?;
                vec![0; self.len]
            }
        };
        Some(Room { bytes, pool: Arc::clone(self) })
    }
}

/// A buffer that nobody else has.
#[derive(Debug)]
pub struct Room {
    bytes: Vec<u8>,
    pool: Arc<Shared>,
}

impl Room {
    /// Its first `len` bytes, which were all written since it was taken, for everyone to read; none may write any more.
    pub fn freeze(self, len: usize) -> Bytes {
        let len = len.min(self.bytes.len());
        Bytes::from_owner(Filled { room: self, len })
    }
}

impl Deref for Room {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Room {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.pool.lock().idle.push(bytes);
        self.pool.back.notify_one();
    }
}

/// The written part of a buffer.
struct Filled {
    room: Room,
    len: usize,
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        &self.room.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_only_with_its_last_slice() {
        let pool = Pool::new(1);
        let mut room = pool.take(Duration::ZERO).unwrap();
        assert!(room.len() >= EXTENT_BYTES + EXTENT_SLOTS as usize * SAME_HASH_LEN);
        room[..8192].fill(7);
        let bytes = room.freeze(8192);
        let slice = bytes.slice(4096..);
        drop(bytes);
        assert!(pool.take(Duration::ZERO).is_none() && pool.spare(0).is_none(), "a slice of it lives");
        assert_eq!(&slice[..], [7; 4096]);
        let waiting = {
            let pool = pool.clone();
            std::thread::spawn(move || pool.take(Duration::from_secs(60)).is_some())
        };
        drop(slice);
        assert!(waiting.join().unwrap(), "who waits is told");
        assert!(pool.spare(1).is_none() && pool.spare(0).is_some());
    }

    #[test]
    fn buffers_are_made_when_they_are_needed_and_never_more() {
        let pool = Pool::new(3);
        let rooms: Vec<Room> = std::iter::from_fn(|| pool.take(Duration::ZERO)).collect();
        assert_eq!(rooms.len(), 3);
        drop(rooms);
        assert_eq!(pool.shared.lock().idle.len(), 3);
        assert_eq!(pool.shared.lock().unmade, 0);
    }
}
