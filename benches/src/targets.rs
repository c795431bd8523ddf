//! What the page path must reach, and whether it did.

use serde::Serialize;

use crate::report::{LimitResult, ScenarioResult};
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
            "random memory over 1 Gbit/s: part of the link used",
            Bound::AtLeast(0.95),
            ours("one-shot/random/1-gbit").map(|peer| peer.link_use_sending.median()),
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
