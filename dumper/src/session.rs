//! `godwit session list|show|resolve`: hand-overs that were cut off, seen from the source.
//!
//! A journal that ends before `restore-sent` needs no decision: the process is thawed. From `restore-sent` on both
//! journals are brought together: the destination gives its copy up and the source runs on, or, once the source is
//! dead or about to be, the destination's copy runs. The token is raised first, so that a program that was only
//! slow can no longer decide.

use std::fmt::Write;
use std::path::Path;

use godwit_wire::frame::SessionId;
use godwit_wire::journal::{self, Event, Facts, Journal, Summary};
use godwit_wire::quic::Identity;
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::cli::{Session, SessionOf};
use crate::error::DumpError;
use crate::handover::freezer::{Freezer, Hold};
use crate::link::{Decision, Link, LinkOptions, SessionStatus};
use crate::procfs::{host, stat};

/// Runs one of the three commands; the exit status is 4 if something is still undecided.
///
/// # Errors
/// When the journals cannot be read, or the decision cannot be carried out.
pub fn run(command: &Session) -> Result<u8, DumpError> {
    match command {
        Session::List { state_dir, json } => list(state_dir, *json),
        Session::Show(of) => show(of),
        Session::Resolve { of, force_source, force_destination } => {
            let force = match (force_source, force_destination) {
                (true, _) => Some(Decision::Source),
                (_, true) => Some(Decision::Destination),
                _ => None,
            };
            resolve(of, force)
        }
    }
}

fn list(state_dir: &Path, as_json: bool) -> Result<u8, DumpError> {
    let mut rows = Vec::new();
    for listed in journal::list(state_dir)? {
        let row = match &listed.summary {
            Ok(summary) => json!({
                "id": listed.id,
                "state": summary.state.map(Event::word),
                "needs_decision": needs_decision(summary) && !listed.locked,
                "alive": listed.locked,
                "pid": summary.facts.pid,
                "session": summary.facts.session,
                "peer": summary.facts.peer,
            }),
            Err(error) => json!({"id": listed.id, "error": error.to_string()}),
        };
        rows.push(row);
    }
    if as_json {
        println!("{}", Value::Array(rows));
        return Ok(0);
    }
    for row in &rows {
        let word = |field: &str| match &row[field] {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let note = match (&row["alive"], &row["needs_decision"]) {
            (Value::Bool(true), _) => "  (under way)",
            (_, Value::Bool(true)) => "  (run `godwit session resolve`)",
            _ => "",
        };
        println!(
            "{}  {:<12} pid {:<8} session {} at {}{note}",
            word("id"),
            word("state"),
            word("pid"),
            word("session"),
            word("peer")
        );
    }
    Ok(0)
}

/// Whether the hand-over was cut off where somebody has to end it.
fn needs_decision(summary: &Summary) -> bool {
    matches!(
        summary.state,
        Some(Event::Freezing | Event::RestoreSent | Event::Committing | Event::Killed | Event::Resolved)
    )
}

fn show(of: &SessionOf) -> Result<u8, DumpError> {
    let records = journal::read(&of.state_dir, &of.id)?;
    let summary = Summary::of(&records);
    let theirs = ask(of, &summary.facts);
    let ours: Vec<String> = records.iter().map(ToString::to_string).collect();
    if of.json {
        let theirs = match &theirs {
            Ok(status) => json!({"state": status.state, "records": status.records, "pid": status.pid,
                "images_dir": status.images_dir}),
            Err(error) => json!({"error": error.to_string()}),
        };
        println!("{}", json!({"id": of.id, "source": ours, "destination": theirs}));
        return Ok(0);
    }
    let mut text = String::from("source:\n");
    for line in &ours {
        let _ = writeln!(text, "  {line}");
    }
    let _ = writeln!(text, "destination ({}):", summary.facts.peer.as_deref().unwrap_or("unknown"));
    match &theirs {
        Ok(status) => {
            for line in &status.records {
                let _ = writeln!(text, "  {line}");
            }
            let _ = writeln!(text, "  images in {}", status.images_dir);
        }
        Err(error) => {
            let _ = writeln!(text, "  cannot be asked: {error}");
        }
    }
    print!("{text}");
    Ok(0)
}

fn link(of: &SessionOf, facts: &Facts) -> Result<Link, DumpError> {
    let peer = facts.peer.as_deref().unwrap_or_default();
    let keys = match (&of.keys, &facts.work_dir) {
        (Some(keys), _) => keys.clone(),
        (None, Some(keys)) => keys.into(),
        (None, None) => {
            return Err(DumpError::Usage("the journal names no keys: give --keys DIR".to_owned()));
        }
    };
    Ok(Link::connect(peer, &Identity::client(&keys), LinkOptions::default())?)
}

fn session_id(of: &SessionOf) -> Result<SessionId, DumpError> {
    u64::from_str_radix(&of.id, 16)
        .map(SessionId)
        .map_err(|_| DumpError::Usage(format!("{:?} is no session id; see `godwit session list`", of.id)))
}

fn ask(of: &SessionOf, facts: &Facts) -> Result<SessionStatus, DumpError> {
    let name = facts.session.as_deref().unwrap_or_default();
    Ok(link(of, facts)?.status(Some(session_id(of)?), name)?)
}

fn resolve(of: &SessionOf, force: Option<Decision>) -> Result<u8, DumpError> {
    let mut journal = Journal::open(&of.state_dir, &of.id)?;
    let summary = journal.summary();
    match summary.state {
        None | Some(Event::Open | Event::Freezing) => {
            thaw(&mut journal, "it was cut off before the destination was asked to restore")?;
            println!("the source runs on; the destination was never asked to restore");
            Ok(0)
        }
        Some(Event::Thawed) => say("the source runs on since the hand-over failed; nothing is to be decided"),
        Some(Event::Released) => say("it ended well; nothing is to be decided"),
        Some(Event::RestoreSent) => decide(of, &mut journal, force),
        Some(_) => forward(of, &mut journal, force),
    }
}

fn say(text: &str) -> Result<u8, DumpError> {
    println!("{text}");
    Ok(0)
}

/// The source lies frozen and the destination was asked to restore: unless the user wants otherwise, the
/// destination gives its copy up and the source runs on. A copy that runs there already decides by itself.
fn decide(of: &SessionOf, journal: &mut Journal, force: Option<Decision>) -> Result<u8, DumpError> {
    let facts = journal.summary().facts;
    if !source_is_held(&facts) {
        println!("the source is gone, so the destination's copy is the one");
        return forward(of, journal, force);
    }
    let token = journal.raise_token("session resolve")?;
    let wanted = force.unwrap_or(Decision::Source);
    if wanted == Decision::Destination {
        return forward_with(of, journal, force, token);
    }
    let asked = link(of, &facts).and_then(|link| {
        Ok(link.resolve(session_id(of)?, token, wanted, force.is_some(), "restore-sent")?)
    });
    match asked {
        Ok(answer) if answer.state == Event::Aborted.word() => {
            thaw(journal, "session resolve: the destination gave its copy up")?;
            say("the source runs on; the destination gave its copy up")
        }
        Ok(answer) => {
            println!("the destination's copy is past undoing ({}), so it is the one", answer.state);
            forward_with(of, journal, force, token)
        }
        Err(error) if force == Some(Decision::Source) => {
            thaw(journal, "session resolve --force-source")?;
            println!("the source runs on. The destination could not be asked ({error}):");
            println!("  run there: godwit-page-server session abort {}", of.id);
            println!("  before anything restores its images");
            Ok(0)
        }
        Err(error) => Err(DumpError::Undecided {
            session: of.id.clone(),
            why: format!(
                "the destination cannot be asked ({error}); when it is back, run this again, or decide with \
                 --force-source or --force-destination"
            ),
        }),
    }
}

/// Only forward: the source is killed if it still lies there, the destination's copy runs.
fn forward(of: &SessionOf, journal: &mut Journal, force: Option<Decision>) -> Result<u8, DumpError> {
    let token = journal.raise_token("session resolve")?;
    forward_with(of, journal, force, token)
}

fn forward_with(
    of: &SessionOf,
    journal: &mut Journal,
    force: Option<Decision>,
    token: u64,
) -> Result<u8, DumpError> {
    let facts = journal.summary().facts;
    if force == Some(Decision::Source) {
        return Err(DumpError::Usage(
            "the source was given up already (its journal says committing or later): only the destination's copy \
             can live"
                .to_owned(),
        ));
    }
    let link = match link(of, &facts) {
        Ok(link) => Some(link),
        Err(error) if force == Some(Decision::Destination) => {
            println!("the destination cannot be asked ({error}):");
            println!("  run there: godwit-page-server session release {}", of.id);
            None
        }
        Err(error) => {
            return Err(DumpError::Undecided {
                session: of.id.clone(),
                why: format!("the source was given up, and the destination cannot be asked ({error})"),
            });
        }
    };
    if journal.summary().state == Some(Event::RestoreSent) {
        let text = Some("session resolve: the destination's copy is the one".to_owned());
        journal.append(Event::Committing, Facts { text, ..Facts::default() })?;
    }
    kill_source(&facts)?;
    if journal.summary().state != Some(Event::Killed) {
        journal.append(Event::Killed, Facts::default())?;
    }
    let Some(link) = link else { return Ok(0) };
    let answer = link.resolve(session_id(of)?, token, Decision::Destination, force.is_some(), "killed")?;
    if answer.state != Event::Running.word() && answer.state != Event::Done.word() {
        return Err(DumpError::LostAfterCommit {
            session: of.id.clone(),
            why: format!("the destination is {}: {}", answer.state, answer.text),
        });
    }
    journal.append(Event::Released, Facts::default())?;
    println!("the destination's copy runs as process {}", answer.pid);
    Ok(0)
}

/// Whether the frozen source of this journal is still there: the same process, of the same boot.
fn source_is_held(facts: &Facts) -> bool {
    let this_boot = host::boot_id().is_ok_and(|boot| facts.boot_id.as_deref() == Some(&boot));
    this_boot
        && facts.pid.is_some_and(|pid| {
            stat::read(Pid::from_raw(pid))
                .is_ok_and(|stat| Some(stat.start_time) == facts.start_time && !stat.is_zombie())
        })
}

fn freezer_of(facts: &Facts) -> Result<Option<Freezer>, DumpError> {
    let Some((pid, hold)) = facts.pid.zip(facts.cgroup.as_deref().and_then(Hold::from_record)) else {
        return Ok(None);
    };
    Freezer::adopt(Pid::from_raw(pid), hold)
        .map(Some)
        .map_err(|source| DumpError::sys("cgroup v2", "mounting it", source))
}

fn thaw(journal: &mut Journal, why: &str) -> Result<(), DumpError> {
    let facts = journal.summary().facts;
    if let (true, Some(freezer)) = (source_is_held(&facts), freezer_of(&facts)?) {
        freezer.thaw()?;
    }
    journal.append(Event::Thawed, Facts { text: Some(why.to_owned()), ..Facts::default() })?;
    Ok(())
}

fn kill_source(facts: &Facts) -> Result<(), DumpError> {
    if !source_is_held(facts) {
        return Ok(());
    }
    match freezer_of(facts)? {
        Some(freezer) => Ok(freezer.kill()?),
        None => Ok(()),
    }
}
