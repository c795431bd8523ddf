//! What the page path must reach, and whether it did.

use serde::Serialize;

use crate::report::{LimitResult, ScenarioResult};

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
pub fn judge(scenarios: &[ScenarioResult], _limits: &[LimitResult]) -> Vec<Verdict> {
    let find = |name: &str| scenarios.iter().find(|scenario| scenario.name == name);
    let ours = |name: &str| find(name)?.peer("godwit");
    let time = |name: &str, other: &str| Some(ours(name)?.time_over(other)?.median());
    let (plain, tls) = ("criu page server", "criu page server --tls");
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    vec![
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
            "6 GiB: peak of the dumper, MiB",
            Bound::AtMost(256.0),
            ours("large/random/loopback").map(|peer| mib(peer.source_rss_bytes.median())),
        ),
        verdict(
            "6 GiB: peak of the server, MiB",
            Bound::AtMost(128.0),
            ours("large/random/loopback").map(|peer| mib(peer.server_rss_bytes.median())),
        ),
    ]
}
