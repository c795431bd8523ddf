//! Plots of results, one file a question.

mod chart;

use std::fs;
use std::io;
use std::path::Path;

use super::{PeerResult, Results, ScenarioResult};
use crate::summary::Series;
use chart::{Bar, Chart, Group};

/// The peer that times are shown relative to.
const BASE: &str = "criu page server";

/// Writes every plot that has something to show: `time.svg`, `wire.svg`, `cpu.svg`, `freeze.svg`, `limits.svg`. One
/// that has nothing is removed.
///
/// # Errors
/// When a file cannot be written.
pub fn write(results: &Results, dir: &Path) -> io::Result<()> {
    let charts = [
        ("time", time(results)),
        ("wire", wire(results)),
        ("cpu", cpu(results)),
        ("freeze", freeze(results)),
        ("limits", limits(results)),
    ];
    for (name, chart) in charts {
        let path = dir.join(format!("{name}.svg"));
        match (chart.is_empty(), path.exists()) {
            (false, _) => fs::write(path, chart.render())?,
            (true, true) => fs::remove_file(path)?,
            (true, false) => {}
        }
    }
    Ok(())
}

fn time(results: &Results) -> Chart {
    let base = |scenario: &ScenarioResult| scenario.peer(BASE).is_some();
    chart(results, "Time of a one-shot dump", &relative("shorter is better"), base, |scenario, peer| {
        let seconds = format!("{:.2} s", peer.compared_s.median());
        let ratio = match peer.time_over(BASE) {
            Some(ratio) => ratio.clone(),
            // Of the base itself: its spread around its own median.
            None if peer.peer == BASE => own(&scenario.peer(BASE)?.compared_s),
            None => return None,
        };
        Some(bar(&ratio, seconds))
    })
    .axis("time over that of CRIU's page server", Some(1.0))
}

fn wire(results: &Results) -> Chart {
    chart(
        results,
        "Bytes on the wire",
        "at the queue of a shaped link, else at the device; shorter is better",
        |scenario| scenario.operation == "one-shot",
        |_, peer| {
            let over = &peer.wire_over_memory;
            (!over.is_empty()).then(|| bar(over, format!("{:.2}", over.median())))
        },
    )
    .axis("bytes on the wire over bytes of memory", Some(1.0))
}

fn cpu(results: &Results) -> Chart {
    chart(
        results,
        "CPU time of both sides",
        "the dumper, and paler the server; shorter is better",
        |scenario| scenario.operation == "one-shot" || scenario.operation == "local",
        |_, peer| {
            let (source, server) = (&peer.source_cpu_s_per_gib, &peer.server_cpu_s_per_gib);
            let whole = if server.is_empty() { source.clone() } else { source.plus(server) };
            let mut parts = vec![source.median()];
            let mut text = format!("{:.2}", source.median());
            if !server.is_empty() {
                parts.push(server.median());
                text = format!("{text} + {:.2}", server.median());
            }
            Some(Bar { parts, text, ..bar(&whole, String::new()) })
        },
    )
    .axis("CPU-seconds per GiB of memory", None)
}

fn freeze(results: &Results) -> Chart {
    chart(
        results,
        "Time that the process stands still",
        "one-shot dumps are frozen from begin to end; rounds copy while it runs; shorter is better",
        |scenario| scenario.link == "loopback" && scenario.operation != "large",
        |_, peer| Some(bar(&peer.freeze_s, format!("{:.0} ms", peer.freeze_s.median() * 1e3))),
    )
    .axis("seconds", None)
}

fn limits(results: &Results) -> Chart {
    let of = |limit: &super::LimitResult| Group {
        label: limit.limit.clone(),
        bars: vec![bar(&limit.mib_per_s, format!("{:.0}", limit.mib_per_s.median()))],
    };
    let mut groups: Vec<Group> = results.limits.iter().map(of).collect();
    if let Some(peer) =
        results.scenario("one-shot/random/loopback").and_then(|scenario| scenario.peer("godwit"))
        && !groups.is_empty()
    {
        let mib: Series = peer.memory_bytes.over(&peer.compared_s).scaled(1.0 / f64::from(1 << 20));
        let text = format!("{:.0}", mib.median());
        groups.push(Group {
            label: "godwit, end to end".to_owned(),
            bars: vec![Bar { kind: 1, ..bar(&mib, text) }],
        });
    }
    Chart {
        title: "What the machine could do".to_owned(),
        note: format!("each part of the page path alone, and the whole; {}", conditions(results)),
        axis: "MiB a second".to_owned(),
        mark: None,
        legend: vec!["a part alone".to_owned(), "the whole".to_owned()],
        groups,
    }
}

/// A chart of scenarios with a bar a peer.
fn chart(
    results: &Results,
    title: &str,
    note: &str,
    wanted: impl Fn(&ScenarioResult) -> bool,
    bar: impl Fn(&ScenarioResult, &PeerResult) -> Option<Bar>,
) -> Chart {
    let mut legend: Vec<String> = Vec::new();
    let mut groups = Vec::new();
    for scenario in results.scenarios.iter().filter(|scenario| wanted(scenario)) {
        let mut bars = Vec::new();
        for peer in scenario.peers.iter().filter(|peer| !peer.wall_s.is_empty()) {
            let Some(bar) = bar(scenario, peer) else { continue };
            let kind = legend.iter().position(|name| *name == peer.peer).unwrap_or_else(|| {
                legend.push(peer.peer.clone());
                legend.len() - 1
            });
            bars.push(Bar { kind, ..bar });
        }
        if !bars.is_empty() {
            groups.push(Group { label: label(scenario), bars });
        }
    }
    let note = format!("{note}; {}", conditions(results));
    Chart { title: title.to_owned(), note, axis: String::new(), mark: None, legend, groups }
}

impl Chart {
    fn axis(self, axis: &str, mark: Option<f64>) -> Chart {
        Chart { axis: axis.to_owned(), mark, ..self }
    }
}

fn relative(note: &str) -> String {
    format!("until all bytes are in the page cache, fsync taken off; {note}")
}

fn label(scenario: &ScenarioResult) -> String {
    let operation = if scenario.operation == "one-shot" { "" } else { scenario.operation.as_str() };
    format!("{operation} {}, {}", scenario.workload, scenario.link.replace("-gbit", " Gbit/s"))
        .trim()
        .to_owned()
}

fn conditions(results: &Results) -> String {
    let conditions = &results.conditions;
    format!("{} cores, {} repeats, {}", conditions.cores, conditions.repeats, conditions.images_on)
}

fn bar(series: &Series, text: String) -> Bar {
    Bar { kind: 0, parts: vec![series.median()], spread: series.spread(), text }
}

/// A series over its own median.
fn own(series: &Series) -> Series {
    series.scaled(1.0 / series.median())
}
