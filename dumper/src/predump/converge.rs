//! Whether another round pays: pure arithmetic over the rounds so far.

use std::time::Duration;

use crate::options::RoundLimits;
use crate::report::RoundReport;

/// Rounds in a row that must bring nothing before more are thought useless.
const FRUITLESS_ROUNDS: usize = 2;
/// A round that sends more than this share of what the one before sent brings nothing.
const FRUITLESS_SHARE: f64 = 0.9;

/// What to do after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// One more round.
    Round,
    /// Freeze: the time predicted is short enough.
    FreezeOnTarget,
    /// Freeze: more rounds would not shorten it.
    FreezeNoGain,
    /// Freeze: the bound on rounds is met.
    FreezeBound,
}

/// Decides from the rounds so far, oldest first.
///
/// While a round is sent the process writes at some rate; the pages it dirtied during the last round are what
/// a freeze now would have to send. Both rates are taken from the last two rounds: what round k sent was
/// dirtied while round k-1 was sent.
pub fn next(rounds: &[RoundReport], limits: &RoundLimits) -> Next {
    if rounds.len() >= limits.rounds_max as usize {
        return Next::FreezeBound;
    }
    if rounds.len() < limits.rounds_min as usize {
        return Next::Round;
    }
    let [.., before, last] = rounds else { return Next::Round };
    if predict_freeze(before, last) <= limits.downtime_target {
        return Next::FreezeOnTarget;
    }
    let fruitless = rounds
        .windows(2)
        .skip(1)
        .rev()
        .take(FRUITLESS_ROUNDS)
        .filter(|pair| pair[1].pages_sent() as f64 > pair[0].pages_sent() as f64 * FRUITLESS_SHARE);
    if fruitless.count() == FRUITLESS_ROUNDS { Next::FreezeNoGain } else { Next::Round }
}

/// The time that sending what is dirty now would take.
fn predict_freeze(before: &RoundReport, last: &RoundReport) -> Duration {
    let us = |round: &RoundReport| round.duration_us.max(1) as f64;
    let dirtied_per_us = last.pages_sent() as f64 / us(before);
    let sent_per_us = (last.pages_sent() as f64 / us(last)).max(1e-9);
    let dirty_now = dirtied_per_us * us(last);
    Duration::from_micros((dirty_now / sent_per_us).min(1e12) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RoundLimits =
        RoundLimits { rounds_min: 0, rounds_max: 8, downtime_target: Duration::from_millis(100) };

    fn round(pages_data: u64, duration_ms: u64) -> RoundReport {
        RoundReport { pages_data, duration_us: duration_ms * 1000, ..RoundReport::default() }
    }

    #[test]
    fn the_first_round_is_followed_by_a_second() {
        assert_eq!(next(&[], &LIMITS), Next::Round);
        assert_eq!(next(&[round(65_536, 900)], &LIMITS), Next::Round);
    }

    #[test]
    fn a_quiet_process_is_frozen_on_target_and_a_writing_one_is_not() {
        assert_eq!(next(&[round(65_536, 900), round(600, 10)], &LIMITS), Next::FreezeOnTarget);
        assert_eq!(next(&[round(65_536, 900), round(60_000, 850)], &LIMITS), Next::Round);
    }

    #[test]
    fn rounds_without_gain_end() {
        let busy = [round(65_536, 900), round(60_000, 800), round(59_000, 800), round(59_500, 800)];
        assert_eq!(next(&busy, &LIMITS), Next::FreezeNoGain);
        assert_eq!(next(&busy[..3], &LIMITS), Next::Round);
    }

    #[test]
    fn rounds_that_must_be_are_made_although_they_bring_nothing() {
        let limits = RoundLimits { rounds_min: 5, ..LIMITS };
        let quiet = [round(65_536, 900), round(60_000, 800), round(60_000, 800), round(60_000, 800)];
        assert_eq!(next(&quiet, &limits), Next::Round);
        assert_eq!(next(&[round(9, 900), round(0, 1)], &limits), Next::Round);
        assert_eq!(next(&[round(9, 900); 5], &RoundLimits { rounds_max: 5, ..limits }), Next::FreezeBound);
    }

    #[test]
    fn the_bound_is_kept() {
        assert_eq!(next(&[], &RoundLimits { rounds_max: 0, ..LIMITS }), Next::FreezeBound);
        assert_eq!(next(&[round(9, 900)], &RoundLimits { rounds_max: 1, ..LIMITS }), Next::FreezeBound);
    }
}
