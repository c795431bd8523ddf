//! The tables on standard output: a line a peer, ratios below, conditions and targets at the end.

use std::fmt::Write as _;

use super::{PeerResult, Results, ScenarioResult, limits};
use crate::summary::Series;
use crate::targets::{Bound, Verdict};

/// All of it as text.
pub fn render(results: &Results) -> String {
    let mut text = String::new();
    for scenario in &results.scenarios {
        render_scenario(&mut text, scenario);
    }
    limits::limits(&mut text, &results.limits);
    limits::contents(&mut text, &results.contents);
    limits::tracking(&mut text, &results.tracking);
    if let Some(guest) = &results.virtual_machine {
        let kernel = &guest.conditions.kernel;
        let _ = writeln!(text, "\nvirtual machine (TCG), Linux {kernel}: the times say nothing");
        guest.scenarios.iter().for_each(|scenario| render_scenario(&mut text, scenario));
    }
    render_targets(&mut text, &results.targets);
    render_conditions(&mut text, results);
    text
}

/// Columns as wide as their widest cell; the first is aligned left, the rest right.
fn columns(text: &mut String, rows: &[Vec<String>]) {
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    for row in rows {
        let mut line = String::from(" ");
        for (column, cell) in row.iter().enumerate() {
            let width = width(column).unwrap_or(0);
            let _ =
                if column == 0 { write!(line, " {cell:<width$}") } else { write!(line, "  {cell:>width$}") };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

fn words(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|&cell| cell.to_owned()).collect()
}

fn render_scenario(text: &mut String, scenario: &ScenarioResult) {
    let _ = writeln!(text, "\n{}  [{}]", scenario.title, scenario.name);
    if let Some(failure) = &scenario.failure {
        let _ = writeln!(text, "  GIVEN UP: {failure}");
    }
    let measured: Vec<&PeerResult> = scenario.peers.iter().filter(|peer| !peer.wall_s.is_empty()).collect();
    if measured.is_empty() {
        return;
    }
    let head =
        ["", "time s", "fsync s", "frozen s", "rounds", "wire/memory", "link", "CPU-s/GiB", "peak MiB"];
    let mut rows = vec![words(&head)];
    rows.extend(measured.iter().map(|peer| row(peer)));
    columns(text, &rows);
    let mut ratios = Vec::new();
    for peer in measured.iter().filter(|peer| peer.peer.starts_with("godwit")) {
        for over in &peer.time_over {
            let wire = peer.wire_over(&over.peer);
            let wire = wire.map(|wire| format!("wire {}", spread(wire, 2))).unwrap_or_default();
            let names = format!("{} over {}:", peer.peer, over.peer);
            ratios.push(vec![names, format!("time {}", spread(&over.ratio, 2)), wire]);
        }
    }
    columns(text, &ratios);
}

/// Source and server are joined by a plus sign or a stroke.
fn row(peer: &PeerResult) -> Vec<String> {
    let some = |series: &Series, show: &dyn Fn(f64) -> String| {
        if series.is_empty() { "-".to_owned() } else { show(series.median()) }
    };
    let both = |source: &Series, server: &Series, with: &str, show: &dyn Fn(f64) -> String| {
        let server =
            if server.is_empty() { String::new() } else { format!("{with}{}", show(server.median())) };
        format!("{}{server}", show(source.median()))
    };
    let link = match (peer.link_use.is_empty(), peer.link_use_sending.is_empty()) {
        (true, _) => "-".to_owned(),
        (false, true) => percent(peer.link_use.median()),
        _ => format!(
            "{} ({} sending)",
            percent(peer.link_use.median()),
            percent(peer.link_use_sending.median())
        ),
    };
    let mib = |bytes: f64| format!("{:.0}", bytes / f64::from(1 << 20));
    vec![
        peer.peer.to_owned(),
        spread(&peer.compared_s, 3),
        format!("{:.3}", peer.fsync_s.median()),
        spread(&peer.freeze_s, 3),
        format!("{:.0}", peer.rounds.median()),
        some(&peer.wire_over_memory, &|over| format!("{over:.3}")),
        link,
        both(&peer.source_cpu_s_per_gib, &peer.server_cpu_s_per_gib, " + ", &|cpu| format!("{cpu:.2}")),
        both(&peer.source_rss_bytes, &peer.server_rss_bytes, " / ", &mib),
    ]
}

fn render_targets(text: &mut String, targets: &[Verdict]) {
    let _ = writeln!(text, "\ntargets");
    let mut rows = vec![words(&["", "bound", "measured", ""])];
    for verdict in targets {
        let bound = match verdict.bound {
            Bound::AtMost(bound) => format!("<= {bound}"),
            Bound::AtLeast(bound) => format!(">= {bound}"),
        };
        let measured = verdict.measured.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
        let word = match verdict.met {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "not measured",
        };
        rows.push(vec![verdict.target.clone(), bound, measured, word.to_owned()]);
    }
    columns(text, &rows);
}

fn render_conditions(text: &mut String, results: &Results) {
    let conditions = &results.conditions;
    let gib = conditions.memory_bytes as f64 / f64::from(1 << 30);
    let revision =
        conditions.revision.as_deref().map(|revision| format!(" ({revision})")).unwrap_or_default();
    let _ = writeln!(
        text,
        "\n{}: Linux {}, {} cores of {}, {gib:.0} GiB; godwit {}{revision} built as {}, CRIU {}; images of both sides on \
         {}, {} repeats in turn after a warm-up, medians (least-greatest); ratios repeat by repeat.",
        conditions.date,
        conditions.kernel,
        conditions.cores,
        conditions.cpu_model,
        conditions.godwit,
        conditions.profile,
        conditions.criu,
        conditions.images_on,
        conditions.repeats,
    );
    text.push_str(
        "time: from the dumper's start to its end, all bytes in the destination's page cache; fsync, which only godwit \
         waits for, is taken off and shown beside. link: bytes at the queue over rate x time. CPU and peak memory: \
         dumper, then server.\n",
    );
    if conditions.load > 0.5 {
        let _ = writeln!(text, "The machine was not quiet: load {} when the suite began.", conditions.load);
    }
    if conditions.quick {
        text.push_str("--quick: these numbers show that it works, not how fast it is.\n");
    }
}

fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

fn spread(series: &Series, digits: usize) -> String {
    let (min, max) = series.spread();
    format!("{:.digits$} ({min:.digits$}-{max:.digits$})", series.median())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut text = String::new();
        columns(&mut text, &[words(&["", "time"]), words(&["godwit", "1"]), words(&["criu", "1000.5"])]);
        assert_eq!(text, "            time\n  godwit       1\n  criu    1000.5\n");
    }

    #[test]
    fn a_spread_is_the_median_and_its_bounds() {
        assert_eq!(spread(&[0.5, 0.75, 2.0].into_iter().collect(), 2), "0.75 (0.50-2.00)");
    }
}
