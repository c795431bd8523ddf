//! `godwit doctor`: what of a process cannot be dumped or would be lost, said before anything is touched;
//! and the sweep of what a killed dumper left behind. Without a process, what the machine can do ([`machine`]); with a
//! page server, what that one can ([`destination`]).

pub mod destination;
pub mod machine;

use std::fmt::Write;
use std::path::Path;

use godwit_wire::journal::{self, Event, Facts, Journal, Summary};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::error::DumpError;
use crate::handover::chain;
use crate::handover::freezer::Freezer;
use crate::prepare::root::Root;
use crate::prepare::{leftovers, survey};
use crate::refusal::Findings;
use crate::task::files::provided::AllProvided;

/// Looks at a process without touching it.
///
/// # Errors
/// When it does not exist or may not be looked at.
pub fn examine(
    pid: Pid,
    ghost_limit: u64,
    provided: &AllProvided,
    link_remap: bool,
) -> Result<Findings, DumpError> {
    let root = match Root::open(pid, ghost_limit, provided) {
        Err(DumpError::Refused(refusals)) => {
            return Ok(Findings { refusals: refusals.0, ..Findings::default() });
        }
        root => root?.linking(link_remap),
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
    for risk in &findings.risks {
        let _ = writeln!(text, "risk: {risk}");
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
pub fn to_value(pid: Pid, findings: &Findings) -> Value {
    let refusals: Vec<_> = findings
        .refusals
        .iter()
        .map(|r| json!({"subject": r.subject.to_string(), "why": r.why, "way_out": r.way_out}))
        .collect();
    let losses: Vec<_> =
        findings.losses.iter().map(|l| json!({"subject": l.subject.to_string(), "what": l.what})).collect();
    let risks: Vec<_> =
        findings.risks.iter().map(|r| json!({"subject": r.subject.to_string(), "what": r.what})).collect();
    let can_migrate = refusals.is_empty();
    json!({"pid": pid.as_raw(), "can_migrate": can_migrate, "refusals": refusals, "losses": losses, "risks": risks})
}

/// Thaws what a killed dumper left frozen, where no hand-over holds it, takes away what it left in processes, and says
/// what was done and what is left to decide.
///
/// A freeze is undone only if no journal holds `restore-sent` or later for that tree and no living dumper
/// holds the journal's lock.
///
/// # Errors
/// When the state directory cannot be read. Trouble with one session is told in its line.
pub fn sweep(state_dir: &Path) -> Result<Vec<String>, DumpError> {
    let mut lines = Vec::new();
    for listed in journal::list(state_dir)? {
        let told = match &listed.summary {
            _ if listed.locked => Ok(None),
            Ok(_) => sweep_one(state_dir, &listed.id),
            Err(error) => Err(chain(error)),
        };
        match told {
            Ok(line) => lines.extend(line.map(|line| format!("session {}: {line}", listed.id))),
            Err(why) => lines.push(format!("session {}: cannot be swept: {why}", listed.id)),
        }
    }
    lines.extend(leftovers::sweep_all());
    if lines.is_empty() {
        lines.push("nothing was left behind".to_owned());
    }
    Ok(lines)
}

/// Sweeps what one journal tells of; the line says what was done or is to be done.
///
/// # Errors
/// Why it cannot be done, in words.
pub fn sweep_one(state_dir: &Path, id: &str) -> Result<Option<String>, String> {
    let Some(mut journal) = Journal::try_lock(state_dir, id).map_err(|error| chain(&error))? else {
        return Ok(None);
    };
    // Read under the lock: the dumper may have gone on, and died, since the directory was listed.
    let Summary { state, facts, .. } = journal.summary();
    let freezer = Freezer::of_journal(&facts).map_err(|error| chain(&error))?;
    let pid = facts.pid.unwrap_or(0);
    match state {
        Some(Event::Freezing) => {
            let mut line = None;
            if let Some(freezer) = freezer {
                freezer.thaw().map_err(|error| chain(&error))?;
                let alive = freezer.alive().map_err(|error| chain(&error))?;
                line = told_of(pid, &alive).map(|told| format!("{told} again"));
            }
            let text = Some("doctor --sweep".to_owned());
            journal
                .append(Event::Thawed, Facts { text, ..Facts::default() })
                .map_err(|error| chain(&error))?;
            Ok(line)
        }
        Some(Event::RestoreSent | Event::Committing | Event::Killed) => {
            Ok(Some(format!("its hand-over was cut off, run `godwit session resolve {id}`")))
        }
        Some(Event::Thawed | Event::Released) => {
            let removed = freezer.is_some_and(|freezer| freezer.remove_empty());
            Ok(removed.then(|| format!("the empty cgroup of process {pid} is removed")))
        }
        _ => Ok(None),
    }
}

/// Who of a tree runs, beginning with its root if that is among them.
fn told_of(root: i32, alive: &[Pid]) -> Option<String> {
    let (first, others) = alive.split_first()?;
    let tree = if first.as_raw() == root { String::new() } else { format!(" of the tree of process {root}") };
    Some(match others.len() {
        0 => format!("process {first}{tree} runs"),
        1 => format!("process {first} and 1 other{tree} run"),
        more => format!("process {first} and {more} others{tree} run"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_who_runs() {
        let told =
            |alive: &[i32]| told_of(7, &alive.iter().map(|pid| Pid::from_raw(*pid)).collect::<Vec<_>>());
        assert_eq!(told(&[]), None);
        assert_eq!(told(&[7]).unwrap(), "process 7 runs");
        assert_eq!(told(&[7, 8]).unwrap(), "process 7 and 1 other run");
        assert_eq!(told(&[7, 8, 9]).unwrap(), "process 7 and 2 others run");
        assert_eq!(told(&[8]).unwrap(), "process 8 of the tree of process 7 runs");
        assert_eq!(told(&[8, 9]).unwrap(), "process 8 and 1 other of the tree of process 7 run");
    }
}
