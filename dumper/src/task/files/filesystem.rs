//! What kind of file system a file lies on. It is asked once for each device: over a network every question is a call to
//! the server, and under freeze the process would wait for it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use nix::sys::statfs::Statfs;

/// The magic number of the file system on `device` (`f_type`, man 2 statfs), told by `ask` if it is not known yet.
/// `None` if it is not told; the next file of the device asks again.
///
/// An answer holds for as long as godwit runs, which is as long as it works on one process.
pub fn magic(device: u64, ask: impl FnOnce() -> nix::Result<Statfs>) -> Option<i64> {
    static KNOWN: Mutex<BTreeMap<u64, i64>> = Mutex::new(BTreeMap::new());
    remembered(&KNOWN, device, || ask().ok().map(|found| found.filesystem_type().0))
}

fn remembered(
    known: &Mutex<BTreeMap<u64, i64>>,
    device: u64,
    ask: impl FnOnce() -> Option<i64>,
) -> Option<i64> {
    let lookup = known.lock().unwrap_or_else(PoisonError::into_inner).get(&device).copied();
    // Without the lock: the question may take long.
    lookup.or_else(|| {
        let found = ask()?;
        known.lock().unwrap_or_else(PoisonError::into_inner).insert(device, found);
        Some(found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_asked_until_it_answers_and_never_again() {
        let known = Mutex::default();
        assert_eq!(remembered(&known, 7, || None), None);
        assert_eq!(remembered(&known, 7, || Some(42)), Some(42));
        assert_eq!(remembered(&known, 7, || unreachable!("it is known")), Some(42));
        assert_eq!(remembered(&known, 8, || Some(1)), Some(1));
    }
}
