//! The table on standard output.

use std::fmt::Write as _;

use super::{PeerResult, Results, ScenarioResult, limits};
use crate::summary::Series;

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
    text
}

fn render_scenario(text: &mut String, scenario: &ScenarioResult) {
    let _ = writeln!(text, "{}", scenario.title);
    for peer in &scenario.peers {
        render_peer(text, peer);
    }
}

fn render_peer(text: &mut String, peer: &PeerResult) {
    let _ = writeln!(text, "  {} {}", peer.peer, spread(&peer.compared_s, 3));
}

fn spread(series: &Series, digits: usize) -> String {
    let (min, max) = series.spread();
    format!("{:.digits$} ({min:.digits$}-{max:.digits$})", series.median())
}
