//! A server comes up: every session of its state directory is brought to where it may wait.

use std::path::Path;

use godwit_wire::journal::{self, Event, JournalError};

use super::{Handover, HandoverError, RestoreSettings};

/// A session that an earlier server left.
#[derive(Debug)]
pub struct Found {
    /// Id of its journal.
    pub journal_id: String,
    /// Its state now.
    pub state: Option<Event>,
    /// Whether a tree is held.
    pub is_held: bool,
    /// What was done or is to be done, in words.
    pub text: String,
    /// The hand-over under its journal's lock; `None` if another program holds it or the journal cannot be read.
    pub handover: Option<Handover>,
}

/// Takes up every session of a state directory that needs a server. What had not come as far as `restored` is
/// aborted; what was let go is seen to its end; of what is held nothing is decided.
///
/// # Errors
/// [`HandoverError::Journal`] if the directory cannot be read. Trouble with one session is told in its entry.
pub fn recover(state_dir: &Path, settings: &RestoreSettings) -> Result<Vec<Found>, HandoverError> {
    let mut found = Vec::new();
    for listed in journal::list(state_dir)? {
        let over = match &listed.summary {
            Ok(summary) => matches!(summary.state, Some(Event::Released | Event::Aborted | Event::Done)),
            Err(_) => false,
        };
        if over {
            continue;
        }
        found.push(take_up(state_dir, listed.id, settings));
    }
    Ok(found)
}

fn take_up(state_dir: &Path, journal_id: String, settings: &RestoreSettings) -> Found {
    let mut handover = match Handover::reopen(state_dir, &journal_id, settings.clone()) {
        Ok(handover) => handover,
        Err(e) => {
            let text = match &e {
                HandoverError::Journal(JournalError::Locked { .. }) => {
                    "another program sees to it".to_owned()
                }
                e => e.to_string(),
            };
            return Found { journal_id, state: None, is_held: false, text, handover: None };
        }
    };
    let text = match settle(&mut handover) {
        Ok(text) => text,
        Err(e) => e.to_string(),
    };
    let status = handover.status();
    let (state, is_held) = (status.summary.state, status.is_held);
    Found { journal_id, state, is_held, text, handover: Some(handover) }
}

fn settle(handover: &mut Handover) -> Result<String, HandoverError> {
    let text = match handover.state() {
        Some(Event::Restoring) if !handover.is_forward_only() => {
            handover.abort("the server died before the tree was restored")?;
            "the half restored tree was killed: the source may let its tree run"
        }
        Some(Event::Restored) => match handover.status().is_held {
            true => "the restored tree is held: `godwit session resolve` decides",
            false => "the restored tree was lost while it was held; a commit restores it anew",
        },
        // The decision was recorded; only the word may not have reached the hook, or a lost tree was being restored
        // anew for it.
        Some(Event::Running | Event::Committing | Event::Restoring) => {
            let token = handover.current_token()?;
            let running = handover.commit(token)?;
            return Ok(format!("the tree runs, pid {}", running.pid));
        }
        Some(Event::Open) => "its images were not complete",
        Some(Event::Prepared) => "its images are whole and wait for the source",
        Some(Event::Failed) => "its tree could not be let run: the images are the copy",
        _ => "nothing to do",
    };
    Ok(text.to_owned())
}
