//! A token bucket: how fast a link may send, over all of its connections. The clock is given, so that it can be tested.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The slowest rate in bytes a second: one batch is then paid off within a second or so, before a closing link stops
/// waiting for its last word to go out.
pub const RATE_MIN_BYTES_PER_SECOND: u64 = 64 << 10;
/// The fastest rate in bytes a second: 1 Tbit/s.
pub const RATE_MAX_BYTES_PER_SECOND: u64 = 125_000_000_000;
/// More than one batch is with all its headers: 64 KiB in 64 datagrams of 48 bytes of headers.
const BATCH_MAX_BYTES: u64 = 70_000;
/// Burst at slow rates: two batches nearly.
const BURST_MIN_BYTES: u64 = 128 << 10;
/// At fast ones the burst is what the rate carries in 5 ms: timers are a millisecond late or two.
const BURSTS_PER_SECOND: u64 = 200;

/// Shared by all sockets of a link. Within any time `t` no more than `rate * t` and one burst goes through it.
#[derive(Debug)]
pub struct Bucket {
    /// Bytes a second; 0 for no limit. Changed under the lock of `account`.
    rate: AtomicU64,
    account: Mutex<Account>,
}

#[derive(Debug)]
struct Account {
    /// Bytes that may be sent; below 0 it is a debt.
    balance: f64,
    /// When the balance was right.
    at: Instant,
    counted_bytes: u64,
}

impl Default for Bucket {
    /// Without a limit.
    fn default() -> Self {
        Bucket::new(None, Instant::now())
    }
}

impl Bucket {
    /// A bucket of a rate in bytes a second; `None` and 0 are no limit.
    pub fn new(rate: Option<u64>, now: Instant) -> Self {
        let account = Mutex::new(Account { balance: 0.0, at: now, counted_bytes: 0 });
        Bucket { rate: AtomicU64::new(bounded(rate)), account }
    }

    /// The rate in bytes a second.
    pub fn rate(&self) -> Option<u64> {
        Some(self.rate.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    /// Changes the rate; it counts from `now` on. What was saved or owed under the old one stays, within the new burst.
    pub fn set_rate(&self, rate: Option<u64>, now: Instant) {
        let mut account = self.account();
        match self.rate() {
            Some(old) => account.settle(old, now),
            None => (account.balance, account.at) = (0.0, now),
        }
        let rate = bounded(rate);
        if rate > 0 {
            account.balance = account.balance.min(saved_max(rate));
        }
        self.rate.store(rate, Ordering::Relaxed);
    }

    /// The most that goes through above `rate * t`, in bytes.
    pub fn burst_bytes(rate: u64) -> u64 {
        (rate / BURSTS_PER_SECOND).max(BURST_MIN_BYTES)
    }

    /// Bytes that were let through while there was a limit, headers included.
    pub fn counted_bytes(&self) -> u64 {
        self.account().counted_bytes
    }

    /// Takes a batch, or says how long the debt of the ones before is not paid off.
    pub(super) fn take(&self, bytes: u64, now: Instant) -> Result<(), Duration> {
        if self.rate().is_none() {
            return Ok(());
        }
        let mut account = self.account();
        let Some(rate) = self.rate() else { return Ok(()) };
        account.settle(rate, now);
        account.wait(rate).map_or(Ok(()), Err)?;
        account.balance -= bytes as f64;
        account.counted_bytes += bytes;
        Ok(())
    }

    /// A batch that was taken did not go out.
    pub(super) fn give_back(&self, bytes: u64) {
        let Some(rate) = self.rate() else { return };
        let mut account = self.account();
        account.balance = (account.balance + bytes as f64).min(saved_max(rate));
        account.counted_bytes = account.counted_bytes.saturating_sub(bytes);
    }

    /// How long nothing can be taken; `None` if something can.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        self.rate()?;
        let mut account = self.account();
        let rate = self.rate()?;
        account.settle(rate, now);
        account.wait(rate)
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    fn settle(&mut self, rate: u64, now: Instant) {
        // Two threads may come in another order than they looked at the clock.
        let passed = now.saturating_duration_since(self.at);
        self.balance = (self.balance + passed.as_secs_f64() * rate as f64).min(saved_max(rate));
        self.at = self.at.max(now);
    }

    fn wait(&self, rate: u64) -> Option<Duration> {
        // The nanosecond makes up for rounding: a wait must not be over before the debt is.
        (self.balance < 0.0)
            .then(|| Duration::from_secs_f64(-self.balance / rate as f64) + Duration::from_nanos(1))
    }
}

/// A batch may overdraw by its whole size, so that much of the burst is not saved.
fn saved_max(rate: u64) -> f64 {
    (Bucket::burst_bytes(rate) - BATCH_MAX_BYTES) as f64
}

fn bounded(rate: Option<u64>) -> u64 {
    match rate {
        None | Some(0) => 0,
        Some(rate) => rate.clamp(RATE_MIN_BYTES_PER_SECOND, RATE_MAX_BYTES_PER_SECOND),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    proptest! {
        #[test]
        fn no_more_than_the_rate_and_a_burst_and_nearly_all_of_it(
            rate in RATE_MIN_BYTES_PER_SECOND..=1_250_000_000,
            batches in prop::collection::vec((100u64..=69_000, 0u64..1500), 200..400),
        ) {
            let start = Instant::now();
            let (bucket, mut now, mut sent) = (Bucket::new(Some(rate), start), start, 0);
            for (bytes, late_micros) in batches {
                if let Some(wait) = bucket.wait(now) {
                    prop_assert!(bucket.take(bytes, now).is_err());
                    now += wait + Duration::from_micros(late_micros);
                }
                prop_assert_eq!(bucket.take(bytes, now), Ok(()));
                sent += bytes;
                let allowed = rate as f64 * (now - start).as_secs_f64();
                prop_assert!(sent as f64 <= allowed + Bucket::burst_bytes(rate) as f64);
                // Timers were up to 1.5 ms late, and none of it was lost.
                prop_assert!(sent as f64 >= 0.98 * allowed - (0.0015 * rate as f64));
            }
            prop_assert_eq!(bucket.counted_bytes(), sent);
        }
    }

    #[test]
    fn what_is_saved_while_nothing_is_sent_has_a_bound() {
        let start = Instant::now();
        let bucket = Bucket::new(Some(1_000_000), start);
        let now = start + Duration::from_secs(3600);
        let taken = (0..).take_while(|_| bucket.take(60_000, now).is_ok()).count() as u64 * 60_000;
        assert!(taken <= Bucket::burst_bytes(1_000_000), "{taken}");
    }

    #[test]
    fn a_change_counts_at_once() {
        let start = Instant::now();
        let bucket = Bucket::new(Some(100_000), start);
        bucket.take(50_000, start).unwrap();
        let wait = bucket.wait(start).unwrap();
        assert!(wait > 499 * MS && wait < 501 * MS, "{wait:?}");
        bucket.set_rate(Some(10_000_000), start);
        let wait = bucket.wait(start).unwrap();
        assert!(wait > 4 * MS && wait < 6 * MS, "{wait:?}");
        bucket.set_rate(None, start);
        assert_eq!((bucket.rate(), bucket.wait(start)), (None, None));
        assert_eq!(bucket.take(u64::MAX, start), Ok(()));
        bucket.set_rate(Some(100_000), start + MS);
        assert_eq!(bucket.take(1, start + MS), Ok(()), "no old debt");
        assert!(bucket.take(1, start + MS).is_err());
    }

    #[test]
    fn what_did_not_go_out_is_not_counted() {
        let start = Instant::now();
        let bucket = Bucket::new(Some(100_000), start);
        bucket.take(50_000, start).unwrap();
        bucket.give_back(50_000);
        assert_eq!((bucket.wait(start), bucket.counted_bytes()), (None, 0));
        assert_eq!(Bucket::new(Some(0), start).rate(), None);
        assert_eq!(Bucket::new(Some(1), start).rate(), Some(RATE_MIN_BYTES_PER_SECOND));
    }
}
