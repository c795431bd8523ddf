//! What is measured, and in which order.
//!
//! A new scenario: an entry of [`all`]. Its name is `OPERATION/WORKLOAD/LINK`.

use crate::link::{Far, LinkKind};
use crate::peer::Peer;
use crate::workload::hot_set::{How, Plan};
use crate::workload::{Content, Shape, Workload};

/// A workload, a link, and who moves the one over the other in turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// What is asked of the peers: `one-shot`, `local`, `rounds`.
    pub operation: &'static str,
    /// What is moved.
    pub workload: Workload,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Over what.
    pub link: LinkKind,
    /// Who takes part.
    pub peers: Vec<Peer>,
    /// Whether one run says all (peaks of memory), without warm-up and repeats.
    pub once: bool,
}

impl Scenario {
    /// `OPERATION/WORKLOAD/LINK`.
    pub fn name(&self) -> String {
        format!("{}/{}/{}", self.operation, self.workload.name(), self.link.name())
    }

    /// For people.
    pub fn title(&self) -> String {
        format!(
            "{} of {} MiB {}, {}",
            self.operation,
            self.memory_mib,
            self.workload.name(),
            self.link.title()
        )
    }
}

/// The suite. `--quick` takes the memory down to a sixteenth.
pub fn all(quick: bool) -> Vec<Scenario> {
    let memory_mib = if quick { 64 } else { 1024 };
    let shaped = |rate_mbit| LinkKind::Shaped { rate_mbit };
    let [random, text, zeros] = [Content::Random, Content::Text, Content::ZeroHeavy].map(Workload::still);
    let heaps = [Content::Cpython, Content::Sqlite, Content::Redis].map(Workload::still);
    let all = [Peer::Godwit, Peer::CriuPageServer, Peer::CriuTls];
    let two = [Peer::Godwit, Peer::CriuPageServer];
    let one_shot = |workload, link, peers: &[Peer]| Scenario {
        operation: "one-shot",
        workload,
        memory_mib,
        link,
        peers: peers.to_vec(),
        once: false,
    };
    // Three heaps are a GiB together.
    let over_heaps = |link: LinkKind, peers: &[Peer]| {
        heaps.map(|heap| Scenario { memory_mib: memory_mib.div_ceil(3), ..one_shot(heap, link, peers) })
    };
    let local = |workload| Scenario {
        operation: "local",
        ..one_shot(workload, LinkKind::Loopback, &[Peer::GodwitLocal, Peer::CriuLocal])
    };
    let hot = |how| Workload { hot: Some(Plan { hot_percent: 10, rate_mib_s: 20, how }), ..random };
    // CRIU's one frozen dump beside it: its pre-dumps need soft-dirty tracking, and run in the virtual machine.
    let rounds = |workload| Scenario {
        operation: "rounds",
        memory_mib: memory_mib / 4,
        ..one_shot(workload, shaped(1000), &[Peer::GodwitRounds, Peer::Godwit, Peer::CriuPageServer])
    };
    let of =
        |shape| Scenario { memory_mib: if quick { 60 } else { 1000 }, ..local(Workload { shape, ..random }) };
    let (processes, threads) = if quick { (60, 120) } else { (1000, 2000) };
    // Where a GiB would only take longer.
    let half = |scenario: Scenario| Scenario { memory_mib: scenario.memory_mib / 2, ..scenario };
    let mut scenarios = vec![
        one_shot(random, LinkKind::Loopback, &all),
        half(one_shot(text, LinkKind::Loopback, &all)),
        half(one_shot(zeros, LinkKind::Loopback, &all)),
        local(random),
        half(local(zeros)),
        of(Shape::Processes(processes)),
        Scenario { memory_mib: 64, ..of(Shape::Threads(threads)) },
        one_shot(random, shaped(10_000), &all),
        one_shot(random, shaped(2500), &two),
        half(one_shot(random, shaped(1000), &two)),
    ];
    scenarios.extend(over_heaps(LinkKind::Loopback, &all));
    scenarios.extend(over_heaps(shaped(2500), &two));
    scenarios.extend(over_heaps(shaped(1000), &two));
    scenarios.extend([
        Scenario { operation: "rounds", ..one_shot(random, LinkKind::Loopback, &[Peer::GodwitRounds]) },
        rounds(hot(How::Mixed)),
        rounds(hot(How::Equal)),
        Scenario {
            operation: "large",
            memory_mib: memory_mib * 6,
            once: true,
            ..one_shot(random, LinkKind::Loopback, &[Peer::Godwit])
        },
    ]);
    scenarios
}

/// What runs in a virtual machine without hardware support: ways that the host's kernel cannot make, and CRIU's
/// pre-dump loop, which needs soft-dirty tracking. Small and slow, so that the way and not the emulated processor is
/// what there is too little of.
pub fn guest() -> Vec<Scenario> {
    let far = |rtt_ms, lost_per_10k| LinkKind::Far(Far { rtt_ms, lost_per_10k, rate_mbit: 20 });
    let random = Workload::still(Content::Random);
    let hot = |how| Workload { hot: Some(Plan { hot_percent: 10, rate_mib_s: 1, how }), ..random };
    let two = [Peer::Godwit, Peer::CriuPageServer];
    let loops = [Peer::GodwitFixedRounds, Peer::CriuRounds];
    let one = |operation, workload, memory_mib, link, peers: &[Peer]| Scenario {
        operation,
        workload,
        memory_mib,
        link,
        peers: peers.to_vec(),
        once: false,
    };
    vec![
        one("one-shot", random, 8, far(20, 0), &[two[0], two[1], Peer::CriuTls]),
        one("one-shot", random, 4, far(20, 10), &two),
        one("one-shot", random, 4, far(100, 10), &two),
        one("one-shot", random, 4, far(20, 100), &two),
        one("rounds", hot(How::Mixed), 8, far(20, 0), &loops),
        one("rounds", hot(How::Equal), 8, far(20, 0), &loops),
        one("rounds-local", hot(How::Mixed), 8, LinkKind::Loopback, &[Peer::CriuRoundsLocal]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique() {
        for scenarios in [all(false), all(true), guest()] {
            let names: BTreeSet<String> = scenarios.iter().map(Scenario::name).collect();
            assert_eq!(names.len(), scenarios.len());
        }
    }
}
