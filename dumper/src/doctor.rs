//! `godwit doctor`: what of a process cannot be dumped or would be lost, said before anything is touched;
//! and the sweep of what a killed dumper left behind.

use std::fmt::Write;
use std::path::Path;

use godwit_wire::journal::{self, Event};
use nix::unistd::Pid;
use serde_json::json;

use crate::error::DumpError;
use crate::handover::freezer::{Freezer, Hold};
use crate::prepare::root::Root;
use crate::prepare::survey;
use crate::procfs::{host, stat};
use crate::refusal::Findings;

/// Looks at a process without touching it.
///
/// # Errors
/// When it does not exist or may not be looked at.
pub fn examine(pid: Pid) -> Result<Findings, DumpError> {
    let root = match Root::open(pid) {
        Err(DumpError::Refused(refusals)) => {
            return Ok(Findings { refusals: refusals.0, losses: Vec::new() });
        }
        root => root?,
    };
    survey::survey(&root)
}

/// The findings as lines for a person.
pub fn to_text(pid: Pid, findings: &Findings) -> String {
    let mut text = String::new();
    for refusal in &findings.refusals {
        let _ = writeln!(text, "refused: {refusal}");
    }
    for loss in &findings.losses {
        let _ = writeln!(text, "lost: {loss}");
    }
    let verdict = match findings.refusals.len() {
        0 => format!("process {pid} can be migrated"),
        1 => format!("process {pid} cannot be migrated, for 1 reason"),
        many => format!("process {pid} cannot be migrated, for {many} reasons"),
    };
    let _ = writeln!(text, "{verdict}");
    text
}

/// The findings as one JSON object.
pub fn to_json(pid: Pid, findings: &Findings) -> String {
    let refusals: Vec<_> = findings
        .refusals
        .iter()
        .map(|r| json!({"subject": r.subject.to_string(), "why": r.why, "way_out": r.way_out}))
        .collect();
    let losses: Vec<_> =
        findings.losses.iter().map(|l| json!({"subject": l.subject.to_string(), "what": l.what})).collect();
    json!({"pid": pid.as_raw(), "can_migrate": refusals.is_empty(), "refusals": refusals, "losses": losses})
        .to_string()
}

/// Thaws what a killed dumper left frozen, where no hand-over holds it, and says what was done.
///
/// A freeze is undone only if no journal holds `restore-sent` or later for that process and no living dumper
/// holds the journal's lock.
///
/// # Errors
/// When the state directory cannot be read.
pub fn sweep(state_dir: &Path) -> Result<Vec<String>, DumpError> {
    let mut lines = Vec::new();
    let boot = host::boot_id()?;
    for listed in journal::list(state_dir)? {
        let Ok(summary) = &listed.summary else { continue };
        if listed.locked || summary.state != Some(Event::Freezing) {
            continue;
        }
        let Some(mut journal) = journal::Journal::try_lock(state_dir, &listed.id)? else { continue };
        let facts = journal.summary().facts;
        let (Some(pid), Some(hold)) = (facts.pid, facts.cgroup.as_deref().and_then(Hold::from_record)) else {
            continue;
        };
        if facts.boot_id.as_deref() == Some(&boot) {
            let pid = Pid::from_raw(pid);
            let same = stat::read(pid).is_ok_and(|stat| Some(stat.start_time) == facts.start_time);
            if same || matches!(hold, Hold::Cgroup { .. }) {
                let freezer = Freezer::adopt(pid, hold)
                    .map_err(|source| DumpError::sys("cgroup v2", "mounting it", source))?;
                freezer.thaw()?;
                lines.push(format!("session {}: process {pid} runs again", listed.id));
            }
        }
        journal.append(Event::Thawed, journal::Facts::default())?;
    }
    if lines.is_empty() {
        lines.push("nothing was left behind".to_owned());
    }
    Ok(lines)
}
