//! What a process that writes as fast as it can loses while it is tracked.

use std::io;
use std::time::{Duration, Instant};

use godwit_dumper::predump::tracker::Choice;
use serde::Serialize;

use super::{Tracked, Writer};
use crate::summary::Series;

/// How it is measured.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The process.
    pub writer: Writer,
    /// The tracker.
    pub tracker: Choice,
    /// Time between the end of a round and the begin of the next, and of each look at the process while it is not
    /// tracked.
    pub interval: Duration,
    /// Rounds in a row; the tracker is then taken off.
    pub rounds: usize,
    /// How often that is done.
    pub repeats: usize,
}

/// Throughput of the process in its three states, in pages a second, by repeat or by round; and its rounds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Cost {
    /// Without a tracker: before and after each row of rounds.
    pub untracked: Series,
    /// Between two rounds, from the end of one to the begin of the next: the first writes to each page are in it.
    pub between: Series,
    /// While a round collects and copies.
    pub within: Series,
    /// Between two rounds, as a share of the untracked throughput of the same repeat.
    pub between_share: Series,
    /// Within rounds, the same.
    pub within_share: Series,
    /// Length of a round's collection, in milliseconds.
    pub scan_ms: Series,
    /// Length of a round, in milliseconds.
    pub round_ms: Series,
    /// Pages that a round copied.
    pub round_pages: Series,
}

/// Measures it: untracked, then tracked in rounds, then untracked again, so often as wanted.
///
/// # Errors
/// When the process cannot be started, or the tracker does not work here.
pub fn measure(settings: Settings) -> io::Result<Cost> {
    let process = Tracked::start(settings.writer)?;
    let mut cost = Cost::default();
    let look = || process.rate_while(|| std::thread::sleep(settings.interval)).map(|(rate, ())| rate);
    // The first lap touches what is not in any cache or table yet.
    look()?;
    for _ in 0..settings.repeats {
        let before = look()?;
        let mut tracked = Cost::default();
        {
            let mut tracker = process.tracker(settings.tracker)?;
            for _ in 0..settings.rounds {
                tracked.between.push(look()?);
                let begun = Instant::now();
                let (within, outcome) = process.rate_while(|| {
                    let runs = process.collect(&mut *tracker)?;
                    let scan = begun.elapsed();
                    process.copy(&runs);
                    Ok::<_, io::Error>((scan, runs.iter().map(|run| run.nr_pages).sum::<u64>()))
                })?;
                let (scan, pages) = outcome?;
                tracked.within.push(within);
                tracked.round_ms.push(begun.elapsed().as_secs_f64() * 1e3);
                tracked.scan_ms.push(scan.as_secs_f64() * 1e3);
                tracked.round_pages.push(pages as f64);
            }
        }
        cost.add(&tracked, f64::midpoint(before, look()?));
    }
    Ok(cost)
}

impl Cost {
    /// Adds the rounds of one repeat, whose process wrote so many pages a second without a tracker.
    fn add(&mut self, tracked: &Cost, untracked: f64) {
        self.untracked.push(untracked);
        for between in tracked.between.values() {
            self.between.push(*between);
            self.between_share.push(between / untracked.max(1.0));
        }
        for within in tracked.within.values() {
            self.within.push(*within);
            self.within_share.push(within / untracked.max(1.0));
        }
        let rounds = [
            (&mut self.scan_ms, &tracked.scan_ms),
            (&mut self.round_ms, &tracked.round_ms),
            (&mut self.round_pages, &tracked.round_pages),
        ];
        for (all, these) in rounds {
            these.values().iter().for_each(|value| all.push(*value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_same_repeat() {
        let mut tracked = Cost::default();
        tracked.between.push(90.0);
        tracked.within.push(10.0);
        let mut cost = Cost::default();
        cost.add(&tracked, 100.0);
        cost.add(&tracked, 200.0);
        assert!((cost.between_share.median() - 0.675).abs() < 1e-9);
        assert!((cost.within_share.median() - 0.075).abs() < 1e-9);
    }
}
