//! What was measured, for people and for programs: one [`Results`], shown as a table, as JSON and as plots.

pub mod json;
mod limits;
pub mod svg;
pub mod table;

use serde::{Deserialize, Serialize};

use crate::conditions::Conditions;
use crate::limit::{Limit, Measured};
use crate::peer::Sample;
use crate::runner::Outcome;
use crate::summary::Series;
use crate::targets::Verdict;
use crate::tracking::catalog::TrackingResult;
use crate::workload::sample::Compressibility;

/// Everything: what `results.json` holds.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// Version of this layout; raised when a field changes its meaning or goes.
    pub schema: u32,
    /// Machine, programs, settings.
    pub conditions: Conditions,
    /// The scenarios, in the order they ran.
    pub scenarios: Vec<ScenarioResult>,
    /// The limits of the machine.
    pub limits: Vec<LimitResult>,
    /// How well the workloads' memory packs.
    pub contents: Vec<ContentResult>,
    /// What tracking costs.
    pub tracking: Vec<TrackingResult>,
    /// What has to be reached, and whether it was.
    pub targets: Vec<Verdict>,
    /// What was measured in a virtual machine, whose kernel can do what the host's may not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_machine: Option<GuestResults>,
}

/// Results of the lab's virtual machine. Its processor is emulated: times say nothing, ratios little.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GuestResults {
    /// Machine, programs, settings.
    pub conditions: Conditions,
    /// The scenarios, in the order they ran.
    pub scenarios: Vec<ScenarioResult>,
}

impl Results {
    /// The results of a scenario.
    pub fn scenario(&self, name: &str) -> Option<&ScenarioResult> {
        self.scenarios.iter().find(|scenario| scenario.name == name)
    }
}

/// Results of one scenario.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ScenarioResult {
    /// `OPERATION/WORKLOAD/LINK`.
    pub name: String,
    /// The same for people.
    pub title: String,
    /// `one-shot`, `local`, `rounds`, ...
    pub operation: String,
    /// What was moved.
    pub workload: String,
    /// Over what.
    pub link: String,
    /// Its memory, in MiB.
    pub memory_mib: u64,
    /// Who took part, in the order of a repeat.
    pub peers: Vec<PeerResult>,
    /// Why it was given up, if it was.
    pub failure: Option<String>,
}

/// Results of one peer. A quantity that the peer does not have is left out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerResult {
    /// Its name.
    pub peer: String,
    /// From the start of the dumper to its end, in seconds.
    pub wall_s: Series,
    /// fsync in that, in seconds.
    pub fsync_s: Series,
    /// Wall time without fsync, in seconds: what is compared.
    pub compared_s: Series,
    /// Time that the process stood still, in seconds.
    pub freeze_s: Series,
    /// Rounds, the last one too.
    pub rounds: Series,
    /// Memory of the process in bytes.
    pub memory_bytes: Series,
    /// Bytes on the wire over bytes of memory.
    #[serde(default, skip_serializing_if = "Series::is_empty")]
    pub wire_over_memory: Series,
    /// Part of the link's rate that was used, from start to end without fsync.
    #[serde(default, skip_serializing_if = "Series::is_empty")]
    pub link_use: Series,
    /// The same while it was sending.
    #[serde(default, skip_serializing_if = "Series::is_empty")]
    pub link_use_sending: Series,
    /// CPU-seconds of the dumper a GiB of memory.
    pub source_cpu_s_per_gib: Series,
    /// Peak memory of the dumper in bytes.
    pub source_rss_bytes: Series,
    /// CPU-seconds of the server a GiB of memory.
    #[serde(default, skip_serializing_if = "Series::is_empty")]
    pub server_cpu_s_per_gib: Series,
    /// Peak memory of the server in bytes.
    #[serde(default, skip_serializing_if = "Series::is_empty")]
    pub server_rss_bytes: Series,
    /// `compared_s` over that of each other peer, repeat by repeat.
    pub time_over: Vec<Ratio>,
    /// Bytes on the wire over those of each other peer, repeat by repeat.
    pub wire_over: Vec<Ratio>,
}

/// A quantity over that of another peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ratio {
    /// The other one.
    pub peer: String,
    /// The ratios.
    pub ratio: Series,
}

/// Results of one limit.
#[derive(Clone, Debug, Serialize)]
pub struct LimitResult {
    /// Its name.
    pub limit: String,
    /// MiB a second.
    pub mib_per_s: Series,
    /// CPU-seconds a GiB, of the only process or of the sender.
    pub cpu_s_per_gib: Series,
    /// The same of the receiver.
    #[serde(skip_serializing_if = "Series::is_empty")]
    pub receiver_cpu_s_per_gib: Series,
}

/// What a workload's memory holds.
#[derive(Clone, Debug, Serialize)]
pub struct ContentResult {
    /// Its name.
    pub content: String,
    /// How well it packs; nothing where it cannot be made here.
    #[serde(flatten)]
    pub packs: Option<Compressibility>,
    /// Why it cannot be made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

impl ScenarioResult {
    /// Puts the samples of a scenario in order.
    pub fn of(outcome: &Outcome) -> ScenarioResult {
        let scenario = &outcome.scenario;
        let mut peers: Vec<PeerResult> =
            outcome.samples.iter().map(|(peer, samples)| PeerResult::of(peer.name(), samples)).collect();
        let all = peers.clone();
        for peer in &mut peers {
            for other in all.iter().filter(|other| other.peer != peer.peer) {
                let ratio = |ours: &Series, theirs: &Series| Ratio {
                    peer: other.peer.clone(),
                    ratio: ours.over(theirs),
                };
                peer.time_over.push(ratio(&peer.compared_s, &other.compared_s));
                if !peer.wire_over_memory.is_empty() && !other.wire_over_memory.is_empty() {
                    peer.wire_over.push(ratio(&peer.wire_over_memory, &other.wire_over_memory));
                }
            }
        }
        ScenarioResult {
            name: scenario.name(),
            title: scenario.title(),
            operation: scenario.operation.to_owned(),
            workload: scenario.workload.name(),
            link: scenario.link.name(),
            memory_mib: scenario.memory_mib,
            peers,
            failure: outcome.failure.clone(),
        }
    }

    /// The results of a peer.
    pub fn peer(&self, name: &str) -> Option<&PeerResult> {
        self.peers.iter().find(|peer| peer.peer == name && !peer.wall_s.is_empty())
    }
}

impl PeerResult {
    fn of(peer: &str, samples: &[Sample]) -> PeerResult {
        let all = |value: &dyn Fn(&Sample) -> f64| samples.iter().map(value).collect::<Series>();
        let some =
            |value: &dyn Fn(&Sample) -> Option<f64>| samples.iter().filter_map(value).collect::<Series>();
        let gib = |sample: &Sample| sample.memory_bytes as f64 / f64::from(1 << 30);
        PeerResult {
            peer: peer.to_owned(),
            wall_s: all(&|sample| sample.wall_s),
            fsync_s: all(&|sample| sample.fsync_s),
            compared_s: all(&Sample::compared_s),
            freeze_s: all(&|sample| sample.freeze_s),
            rounds: all(&|sample| f64::from(sample.rounds)),
            memory_bytes: all(&|sample| sample.memory_bytes as f64),
            wire_over_memory: some(&|sample| Some(sample.wire_bytes? as f64 / sample.memory_bytes as f64)),
            link_use: some(&|sample| sample.link_use),
            link_use_sending: some(&|sample| sample.link_use_sending),
            source_cpu_s_per_gib: all(&|sample| sample.source.cpu_s / gib(sample)),
            source_rss_bytes: all(&|sample| sample.source.rss_bytes as f64),
            server_cpu_s_per_gib: some(&|sample| Some(sample.server?.cpu_s / gib(sample))),
            server_rss_bytes: some(&|sample| Some(sample.server?.rss_bytes as f64)),
            time_over: Vec::new(),
            wire_over: Vec::new(),
        }
    }

    /// The ratio of times to another peer.
    pub fn time_over(&self, peer: &str) -> Option<&Series> {
        self.time_over.iter().find(|ratio| ratio.peer == peer).map(|ratio| &ratio.ratio)
    }

    /// The ratio of bytes on the wire to another peer.
    pub fn wire_over(&self, peer: &str) -> Option<&Series> {
        self.wire_over.iter().find(|ratio| ratio.peer == peer).map(|ratio| &ratio.ratio)
    }
}

impl LimitResult {
    /// Puts the rates of a limit in order.
    pub fn of(limit: &Limit<'_>, runs: &[Measured]) -> LimitResult {
        LimitResult {
            limit: limit.name.clone(),
            mib_per_s: runs.iter().map(Measured::mib_per_s).collect(),
            cpu_s_per_gib: runs.iter().map(Measured::cpu_s_per_gib).collect(),
            receiver_cpu_s_per_gib: runs.iter().filter_map(Measured::far_cpu_s_per_gib).collect(),
        }
    }
}
