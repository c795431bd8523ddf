//! What the page path must reach, and whether it did.

use serde::Serialize;

use crate::report::{LimitResult, PeerResult, ScenarioResult};
use crate::summary::Series;
use crate::tracking::catalog::TrackingResult;

/// One target and what was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// What is asked for.
    pub target: String,
    /// The bound, and whether it is a least or a greatest value.
    pub bound: Bound,
    /// The median that was measured; nothing where the scenario did not run.
    pub measured: Option<f64>,
    /// Whether it was reached; nothing where it was not measured.
    pub met: Option<bool>,
}

/// A bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Not more than this.
    AtMost(f64),
    /// Not less than this.
    AtLeast(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Bound::AtMost(bound) => value <= bound,
            Bound::AtLeast(bound) => value >= bound,
        }
    }
}

fn verdict(target: &str, bound: Bound, measured: Option<f64>) -> Verdict {
    Verdict { target: target.to_owned(), bound, measured, met: measured.map(|value| bound.holds(value)) }
}

/// The heaps that are a GiB together.
const HEAPS: [&str; 3] = ["cpython", "sqlite", "redis"];

/// A quantity of godwit summed over the heaps, over that of another peer, repeat by repeat; nothing unless all of them
/// were measured.
fn heaps_over(
    scenarios: &[ScenarioResult],
    link: &str,
    other: &str,
    quantity: impl Fn(&PeerResult) -> Series,
) -> Option<Series> {
    let sum = |peer: &str| {
        let of = |heap: &&str| {
            let name = format!("one-shot/{heap}/{link}");
            let measured = scenarios.iter().find(|scenario| scenario.name == name)?.peer(peer)?;
            Some(quantity(measured))
        };
        let all: Option<Vec<Series>> = HEAPS.iter().map(of).collect();
        all?.into_iter().reduce(|sum, one| sum.plus(&one))
    };
    Some(sum("godwit")?.over(&sum(other)?))
}

/// Judges results.
pub fn judge(
    scenarios: &[ScenarioResult],
    limits: &[LimitResult],
    tracking: &[TrackingResult],
) -> Vec<Verdict> {
    let find = |name: &str| scenarios.iter().find(|scenario| scenario.name == name);
    let ours = |name: &str| find(name)?.peer("godwit");
    let time = |name: &str, other: &str| Some(ours(name)?.time_over(other)?.median());
    let (plain, tls) = ("criu page server", "criu page server --tls");
    // Memory over time, from the start of the dump until all is in the server's page cache.
    let rate = |name: &str| {
        let (scenario, peer) = (find(name)?, ours(name)?);
        Some(scenario.memory_mib as f64 / peer.compared_s.median())
    };
    let over_limit = |name: &str, limit: &str| {
        let limit = limits.iter().find(|one| one.limit == limit)?;
        Some(rate(name)? / limit.mib_per_s.median())
    };
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let freeze = |name: &str| {
        let scenario = find(name)?;
        let freeze = |peer: &str| Some(scenario.peer(peer)?.freeze_s.clone());
        Some(freeze("godwit local")?.over(&freeze("criu local")?).median())
    };
    let heaps = |link: &str, other: &str, quantity: fn(&PeerResult) -> Series| {
        Some(heaps_over(scenarios, link, other, quantity)?.median())
    };
    let compared = |peer: &PeerResult| peer.compared_s.clone();
    let on_the_wire = |peer: &PeerResult| peer.wire_over_memory.times(&peer.memory_bytes);
    let link_use = |name: &str, quantity: fn(&PeerResult) -> &Series| {
        Some(quantity(ours(name)?)).filter(|part| !part.is_empty()).map(Series::median)
    };
    let mut verdicts = vec![
        verdict(
            "random memory over loopback: time over CRIU's page server",
            Bound::AtMost(1.0),
            time("one-shot/random/loopback", plain),
        ),
        verdict(
            "random memory over loopback: time over CRIU's page server --tls",
            Bound::AtMost(0.5),
            time("one-shot/random/loopback", tls),
        ),
        verdict(
            "1 GiB of heaps over loopback: time over CRIU's page server",
            Bound::AtMost(1.0),
            heaps("loopback", plain, compared),
        ),
        verdict(
            "1 GiB of heaps over loopback: time over CRIU's page server --tls",
            Bound::AtMost(0.5),
            heaps("loopback", tls, compared),
        ),
        verdict(
            "1 GiB of heaps over 2.5 Gbit/s: time over CRIU's page server",
            Bound::AtMost(0.5),
            heaps("2.5-gbit", plain, compared),
        ),
        verdict(
            "1 GiB of heaps over 1 Gbit/s: time over CRIU's page server",
            Bound::AtMost(0.35),
            heaps("1-gbit", plain, compared),
        ),
        verdict(
            "1 GiB of heaps over loopback: bytes on the wire over CRIU's",
            Bound::AtMost(0.4),
            heaps("loopback", plain, on_the_wire),
        ),
        verdict(
            "1 GiB of heaps over 2.5 Gbit/s: bytes on the wire over CRIU's",
            Bound::AtMost(0.4),
            heaps("2.5-gbit", plain, on_the_wire),
        ),
        verdict(
            "1 GiB of heaps over 1 Gbit/s: bytes on the wire over CRIU's",
            Bound::AtMost(0.4),
            heaps("1-gbit", plain, on_the_wire),
        ),
        verdict(
            "random memory over 1 Gbit/s: part of the link used while sending",
            Bound::AtLeast(0.95),
            link_use("one-shot/random/1-gbit", |peer| &peer.link_use_sending),
        ),
        verdict(
            "random memory over 1 Gbit/s: part of the link used from start to end",
            Bound::AtLeast(0.95),
            link_use("one-shot/random/1-gbit", |peer| &peer.link_use),
        ),
        verdict(
            "random memory over loopback: rate over raw quinn's to a file",
            Bound::AtLeast(0.85),
            over_limit("one-shot/random/loopback", "raw quinn to a file, tmpfs"),
        ),
        verdict(
            "random memory over loopback: rate over raw quinn's, whose bytes are dropped",
            Bound::AtLeast(0.85),
            over_limit("one-shot/random/loopback", "raw quinn"),
        ),
        verdict(
            "1,000 processes: time frozen over that of criu dump",
            Bound::AtMost(0.5),
            freeze("local/random-of-1000-processes/loopback"),
        ),
        verdict(
            "2,000 threads: time frozen over that of criu dump",
            Bound::AtMost(0.5),
            freeze("local/random-of-2000-threads/loopback"),
        ),
        verdict(
            "6 GiB: peak of the dumper, MiB",
            Bound::AtMost(256.0),
            ours("large/random/loopback").map(|peer| mib(peer.source_rss_bytes.median())),
        ),
        verdict(
            "6 GiB: peak of the server, MiB",
            Bound::AtMost(128.0),
            ours("large/random/loopback").map(|peer| mib(peer.server_rss_bytes.median())),
        ),
    ];
    verdicts.extend(tracking.iter().map(of_tracking));
    verdicts
}

/// What tracking may cost: a scan its time, a writer its throughput.
fn of_tracking(result: &TrackingResult) -> Verdict {
    match &result.cost {
        None => verdict(
            &format!("{}, ms", result.name),
            Bound::AtMost(100.0),
            Some(result.scan_ms.median()).filter(|_| !result.scan_ms.is_empty()),
        ),
        Some(cost) => verdict(
            &format!("{}: throughput between rounds over untracked", result.name),
            Bound::AtLeast(0.85),
            Some(cost.between_share.median()).filter(|_| !cost.between_share.is_empty()),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::{Peer, Sample};
    use crate::runner::Outcome;
    use crate::scenario;

    /// godwit takes `ours` seconds, everybody else one; and as many bytes go over the wire in each.
    fn measured(ours: f64) -> Vec<ScenarioResult> {
        let result = |scenario: scenario::Scenario| {
            let sample = |peer: &Peer| {
                let wall_s = if peer.name() == "godwit" { ours } else { 1.0 };
                let sample =
                    Sample { wall_s, memory_bytes: 1 << 30, wire_bytes: Some(1 << 30), ..Sample::default() };
                (*peer, vec![sample; 3])
            };
            let samples = scenario.peers.iter().map(sample).collect();
            ScenarioResult::of(&Outcome { scenario, samples, failure: None })
        };
        scenario::all(false).into_iter().map(result).collect()
    }

    fn met(verdicts: &[Verdict], target: &str) -> Option<bool> {
        verdicts.iter().find(|verdict| verdict.target == target).expect("a target of this name").met
    }

    #[test]
    fn heaps_are_judged_by_their_sum() {
        let verdicts = judge(&measured(0.4), &[], &[]);
        assert_eq!(
            met(&verdicts, "1 GiB of heaps over 2.5 Gbit/s: time over CRIU's page server"),
            Some(true)
        );
        assert_eq!(met(&verdicts, "1 GiB of heaps over 1 Gbit/s: time over CRIU's page server"), Some(false));
        assert_eq!(
            met(&verdicts, "1 GiB of heaps over 1 Gbit/s: bytes on the wire over CRIU's"),
            Some(false)
        );
        let slow: Vec<ScenarioResult> =
            measured(0.4).into_iter().filter(|scenario| scenario.workload != "redis").collect();
        let verdicts = judge(&slow, &[], &[]);
        assert_eq!(met(&verdicts, "1 GiB of heaps over 2.5 Gbit/s: time over CRIU's page server"), None);
    }

    #[test]
    fn every_scenario_target_is_of_a_scenario_that_runs() {
        let verdicts = judge(&measured(0.3), &[], &[]);
        let of_limits = |verdict: &Verdict| {
            ["raw quinn", "scan", "writer"].iter().any(|word| verdict.target.contains(word))
        };
        for verdict in verdicts
            .iter()
            .filter(|verdict| !of_limits(verdict) && !verdict.target.contains("part of the link"))
        {
            assert!(verdict.measured.is_some(), "{}", verdict.target);
        }
    }
}
