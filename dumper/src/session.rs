//! `godwit session list|show|resolve`: hand-overs that were cut off, seen from the source.
//!
//! A journal that ends before `restore-sent` needs no decision: the tree is thawed. From `restore-sent` on both
//! journals are brought together: the destination gives its copy up and the source runs on, or, once the source is
//! dead or about to be, the destination's copy runs. The token is raised before the destination decides, so that a
//! program that was only slow can no longer decide. Each command can be given again, after any crash and as often
//! as wanted: it goes on from what the journals say.

use std::fmt::Write as _;
use std::path::Path;

use godwit_wire::control::SessionResolved;
use godwit_wire::error::Code;
use godwit_wire::frame::SessionId;
use godwit_wire::journal::{self, Event, Facts, Journal, Summary};
use godwit_wire::quic::Identity;
use serde_json::{Value, json};

use crate::cli::{Session, SessionOf};
use crate::error::DumpError;
use crate::handover::freezer::Freezer;
use crate::handover::{chain, is_kept, state_of};
use crate::link::{Decision, Link, LinkOptions, SessionStatus};
use crate::logging::tell;

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
                "processes": processes(&summary.facts),
                "session": summary.facts.session,
                "peer": summary.facts.peer,
            }),
            Err(error) => json!({"id": listed.id, "error": error.to_string()}),
        };
        rows.push(row);
    }
    if as_json {
        tell(Value::Array(rows));
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
        let tree = match row["processes"].as_u64() {
            Some(more @ 2..) => format!("{}+{}", word("pid"), more - 1),
            _ => word("pid"),
        };
        tell(format_args!(
            "{}  {:<12} pid {tree:<8} session {} at {}{note}",
            word("id"),
            word("state"),
            word("session"),
            word("peer")
        ));
    }
    Ok(0)
}

/// How many processes the tree has; a journal without a list is of one.
fn processes(facts: &Facts) -> Option<usize> {
    facts.pid.map(|_| facts.members.len().max(1))
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
        tell(json!({"id": of.id, "source": ours, "destination": theirs}));
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
    tell(text.trim_end());
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
    match journal.summary().state {
        None | Some(Event::Open | Event::Freezing) => {
            thaw(&mut journal, "it was cut off before the destination was asked to restore")?;
            say("the destination was never asked to restore")
        }
        Some(Event::Thawed) => after_thaw(of, &mut journal),
        Some(Event::Released) => say("it ended well; nothing is to be decided"),
        Some(Event::RestoreSent) => decide(of, &mut journal, force),
        Some(_) => forward(of, &mut journal, force),
    }
}

fn say(text: &str) -> Result<u8, DumpError> {
    tell(text);
    Ok(0)
}

fn undecided(of: &SessionOf, why: String) -> DumpError {
    DumpError::Undecided { session: of.id.clone(), why }
}

/// The source was let run earlier. A destination that could not be asked then is told now.
fn after_thaw(of: &SessionOf, journal: &mut Journal) -> Result<u8, DumpError> {
    tell("the source runs on since the hand-over failed; nothing is to be decided here");
    if !journal.has(Event::RestoreSent) {
        return Ok(0);
    }
    let facts = journal.summary().facts;
    let theirs = match ask(of, &facts) {
        Ok(status) => status,
        Err(error) => {
            tell(format_args!("the destination cannot be asked ({})", chain(&error)));
            return Ok(0);
        }
    };
    match state_of(&theirs.state) {
        Some(Event::Aborted | Event::Released) => Ok(0),
        Some(Event::Committing | Event::Running | Event::Done | Event::Failed) => Err(undecided(
            of,
            format!(
                "the source was let run by force, and the destination's copy was let run too (it is {}, process \
                 {} there): end one of them",
                theirs.state, theirs.pid
            ),
        )),
        _ => {
            let answer = ask_to_decide(of, journal, Decision::Source, false, "thawed")?;
            tell(format_args!("the destination's copy is {}: {}", answer.state, answer.text));
            Ok(if state_of(&answer.state) == Some(Event::Aborted) { 0 } else { 4 })
        }
    }
}

/// How often the token is raised in one go, to get above one that was raised at the destination.
const RAISES_MAX: u32 = 16;

/// Has the destination decide under a raised token.
fn ask_to_decide(
    of: &SessionOf,
    journal: &mut Journal,
    decision: Decision,
    forced: bool,
    proof: &str,
) -> Result<SessionResolved, DumpError> {
    let facts = journal.summary().facts;
    let mut raises = 0;
    loop {
        // The link comes first: the server takes no token that is far above its own, and tries that reach nobody
        // would raise it that far.
        let link = link(of, &facts)?;
        let token = journal.raise_token("session resolve")?;
        raises += 1;
        match link.resolve(session_id(of)?, token, decision, forced, proof) {
            // Raised there, by an operator: what is decided here, later, counts.
            Err(error) if error.code() == Some(Code::BadToken) && raises < RAISES_MAX => {}
            other => return Ok(other?),
        }
    }
}

/// The source lies frozen and the destination was asked to restore: unless the user wants otherwise, the
/// destination gives its copy up and the source runs on. A copy that runs there already decides by itself.
fn decide(of: &SessionOf, journal: &mut Journal, force: Option<Decision>) -> Result<u8, DumpError> {
    if !is_source_alive(journal)? {
        tell("the source is gone, so the destination's copy is the one");
        return forward(of, journal, force);
    }
    if force == Some(Decision::Destination) {
        return forward(of, journal, force);
    }
    let forced = force == Some(Decision::Source);
    let why = match ask_to_decide(of, journal, Decision::Source, forced, Event::RestoreSent.word()) {
        Ok(answer) => match state_of(&answer.state) {
            Some(Event::Aborted) => {
                thaw(journal, "session resolve: the destination gave its copy up")?;
                return say("the destination gave its copy up");
            }
            Some(Event::Running | Event::Done) if forced => {
                return Err(undecided(
                    of,
                    format!(
                        "the destination's copy runs already (it is {}, process {} there), so the source cannot: \
                         leave --force-source out, the source is then killed",
                        answer.state, answer.pid
                    ),
                ));
            }
            Some(Event::Running | Event::Done) => {
                tell(format_args!("the destination's copy is {}, so it is the one", answer.state));
                return forward(of, journal, force);
            }
            Some(Event::Committing) => {
                return Err(undecided(
                    of,
                    "the destination is just letting its copy run: run this again".to_owned(),
                ));
            }
            // What it tried and could not is in its words; its copy may still be there.
            _ => format!("the destination did not give its copy up: it is {}, {}", answer.state, answer.text),
        },
        Err(error) => format!("the destination cannot be asked ({})", chain(&error)),
    };
    if forced {
        thaw(journal, "session resolve --force-source")?;
        tell(format_args!("{why}. Before anything restores its images, run there:"));
        tell(format_args!("  godwit-page-server session abort {}", of.id));
        tell(format_args!("or, when it can be asked again, here:\n  godwit session resolve {}", of.id));
        return Ok(0);
    }
    Err(undecided(
        of,
        format!(
            "{why}; when that is mended, run this again, or decide with --force-source or --force-destination"
        ),
    ))
}

/// Only forward: the source is killed if it still lies there, the destination's copy runs.
fn forward(of: &SessionOf, journal: &mut Journal, force: Option<Decision>) -> Result<u8, DumpError> {
    let asked_for = journal.summary().state;
    if force == Some(Decision::Source) {
        return Err(DumpError::Usage(
            "the source was given up already (its journal says committing or later, or it is gone): only the \
             destination's copy can live"
                .to_owned(),
        ));
    }
    if is_kept(journal) {
        kill_source(of, journal)?;
        journal.append(Event::Released, Facts::default())?;
        return say("the source is dead; its images are whole, and nothing is to be restored");
    }
    let forced = force == Some(Decision::Destination);
    if is_source_alive(journal)? {
        // It is whole until it is killed, and perhaps the only copy that is.
        match may_kill(of, journal) {
            Ok(true) => {}
            Ok(false) => {
                thaw(journal, "session resolve: the destination had given its copy up")?;
                return say("the destination had given its copy up");
            }
            Err(why) if forced => tell(format_args!("{why}: the source is killed all the same, as forced")),
            Err(why) => {
                return Err(undecided(
                    of,
                    format!(
                        "{why}; the source was not killed: when that is mended, run this again, or decide with \
                         --force-destination"
                    ),
                ));
            }
        }
    }
    if asked_for == Some(Event::RestoreSent) {
        let text = Some("session resolve: the destination's copy is the one".to_owned());
        journal.append(Event::Committing, Facts { text, ..Facts::default() })?;
    }
    kill_source(of, journal)?;
    release(of, journal, forced)
}

/// Whether the destination has what the source can be killed for; `false` if it gave its copy up, so that the source
/// may run on.
fn may_kill(of: &SessionOf, journal: &mut Journal) -> Result<bool, String> {
    let facts = journal.summary().facts;
    let cannot = |error: DumpError| format!("the destination cannot be asked ({})", chain(&error));
    let theirs = ask(of, &facts).map_err(cannot)?;
    match state_of(&theirs.state) {
        Some(
            Event::Prepared
            | Event::Restoring
            | Event::Restored
            | Event::Committing
            | Event::Running
            | Event::Done,
        ) => Ok(true),
        Some(Event::Aborted) => {
            // Asked once more, now under a raised token: nobody may take it back meanwhile.
            let proof = Event::RestoreSent.word();
            let answer = ask_to_decide(of, journal, Decision::Source, false, proof).map_err(cannot)?;
            match state_of(&answer.state) {
                Some(Event::Aborted) => Ok(false),
                _ => Err(format!("the destination's copy is {}: {}", answer.state, answer.text)),
            }
        }
        _ => Err(format!("the destination's copy is {}", theirs.state)),
    }
}

/// The source is dead: the destination lets its copy run.
fn release(of: &SessionOf, journal: &mut Journal, forced: bool) -> Result<u8, DumpError> {
    let proof = Event::Killed.word();
    let answer = match ask_to_decide(of, journal, Decision::Destination, forced, proof) {
        Ok(answer) => answer,
        Err(error) if forced => {
            tell(format_args!("the source is dead; the destination cannot be asked ({})", chain(&error)));
            tell(format_args!("  run there: godwit-page-server session release --force {}", of.id));
            return Ok(0);
        }
        Err(error) => {
            return Err(undecided(
                of,
                format!(
                    "the source is dead, and the destination did not say that its copy runs ({}); run this again, \
                     or there: godwit-page-server session release --force {}",
                    chain(&error),
                    of.id
                ),
            ));
        }
    };
    match state_of(&answer.state) {
        Some(Event::Running | Event::Done) => {
            journal.append(Event::Released, Facts::default())?;
            tell(format_args!("the destination's copy runs as process {}", answer.pid));
            Ok(0)
        }
        Some(Event::Failed | Event::Aborted) => Err(DumpError::LostAfterCommit {
            session: of.id.clone(),
            why: format!("the destination is {}: {}", answer.state, answer.text),
        }),
        // A copy that is still held there must not be restored a second time by hand.
        _ => Err(undecided(
            of,
            format!("the source is dead, and the destination's copy is {}: {}", answer.state, answer.text),
        )),
    }
}

/// Whether anything of the source of this journal is still there: the same processes, of the same boot. A tree counts
/// as killed only when all of it is gone.
fn is_source_alive(journal: &Journal) -> Result<bool, DumpError> {
    match Freezer::of_journal(&journal.summary().facts)? {
        Some(freezer) => Ok(freezer.is_alive()?),
        None => Ok(false),
    }
}

fn thaw(journal: &mut Journal, why: &str) -> Result<(), DumpError> {
    let mut is_alive = false;
    if let Some(freezer) = Freezer::of_journal(&journal.summary().facts)? {
        freezer.thaw()?;
        is_alive = freezer.is_alive()?;
    }
    let frozen = journal.has(Event::Freezing);
    journal.append(Event::Thawed, Facts { text: Some(why.to_owned()), ..Facts::default() })?;
    tell(match (is_alive, frozen) {
        (true, _) => "the source runs on",
        (false, true) => "the source has ended meanwhile, or its machine was started anew",
        (false, false) => "the source was never frozen",
    });
    Ok(())
}

fn kill_source(of: &SessionOf, journal: &mut Journal) -> Result<(), DumpError> {
    if let Some(mut freezer) = Freezer::of_journal(&journal.summary().facts)? {
        freezer.kill().map_err(|error| {
            undecided(
                of,
                format!("the frozen source was given up and could not be killed: {}", chain(&error)),
            )
        })?;
    }
    if journal.summary().state != Some(Event::Killed)
        && let Err(error) = journal.append(Event::Killed, Facts::default())
    {
        // The journal says `committing`, and a source that is gone counts as killed.
        tracing::warn!("the source is dead, but its journal does not say so: {}", chain(&error));
    }
    Ok(())
}
