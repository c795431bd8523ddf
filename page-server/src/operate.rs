//! `godwit-page-server session`: an operator looks at, or decides, what this host holds, when the source cannot be
//! asked. It works beside a living server: the lock of a journal says who may decide.

use std::path::Path;

use godwit_wire::control::Decision;
use godwit_wire::journal::{self, Event};

use crate::error::ServeError;
use crate::handover::decide;
use crate::query::line;
use crate::restore::{Handover, RestoreSettings};

/// Prints a line a session.
///
/// # Errors
/// [`ServeError::Journal`] when the directory cannot be read.
pub fn list(state_dir: &Path) -> Result<(), ServeError> {
    for listed in journal::list(state_dir)? {
        let lock = if listed.locked { " (in use)" } else { "" };
        match listed.summary {
            Ok(summary) => {
                let state = summary.state.map_or("empty", Event::word);
                let name = summary.facts.session.unwrap_or_default();
                println!(
                    "{} {state}{lock} {name} {}",
                    listed.id,
                    summary.facts.images_dir.unwrap_or_default()
                );
            }
            Err(error) => println!("{} unreadable{lock}: {error}", listed.id),
        }
    }
    Ok(())
}

/// Prints a session's journal.
///
/// # Errors
/// [`ServeError::Journal`] when it cannot be read.
pub fn show(state_dir: &Path, id: &str) -> Result<(), ServeError> {
    journal::read(state_dir, id)?.iter().for_each(|record| println!("{}", line(record)));
    Ok(())
}

/// An operator's decision at this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This host's copy is given up.
    Abort,
    /// It runs, where the journal shows that the source's tree is dead.
    Release,
    /// It runs, as the operator says that the source's tree is dead.
    ReleaseForced,
}

/// Decides a session here: its copy is given up, or runs.
///
/// # Errors
/// [`ServeError::MayLive`] when the source's tree may live and the release is not forced; [`ServeError::Handover`] when
/// the journal forbids it, or another program decides it just now.
pub fn resolve(
    state_dir: &Path,
    id: &str,
    settings: RestoreSettings,
    verdict: Verdict,
) -> Result<(), ServeError> {
    let mut handover = Handover::reopen(state_dir, id, settings)?;
    // The source kills its tree before it commits.
    let is_committed = handover.is_forward_only();
    if verdict == Verdict::Release && !is_committed {
        return Err(ServeError::MayLive { id: id.to_owned() });
    }
    let decision = if verdict == Verdict::Abort { Decision::Source } else { Decision::Destination };
    let token = handover.journal_mut().raise_token("decided at this host by an operator")?;
    println!(
        "{}",
        decide(&mut handover, decision, token, is_committed || verdict == Verdict::ReleaseForced)?
    );
    Ok(())
}
