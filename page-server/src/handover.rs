//! The hand-over as the conversation sees it: requests of the source, and decisions of an operator, become calls
//! of [`restore::Handover`] and its answers become messages.
//!
//! A desk holds the lock of its session's journal. It lives as long as the session's link, or a restore that is
//! still under way; after that the journal is free for whoever decides next: a later connection, or
//! `godwit-page-server session`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use godwit_wire::control::{
    Aborted, Decision, Done, Failed, OpenSession, RestoreFailed, RestorePidns, Restored, SessionResolve,
    SessionResolved,
};
use godwit_wire::error::Code;
use godwit_wire::frame::SessionId;
use godwit_wire::journal::{self, Event, JournalError, Summary};
use godwit_wire::session::Reply;

use crate::admit::{Refusal, refusal};
use crate::error::chain;
use crate::query::{fault, is_owner};
use crate::restore::{Handover, HandoverError, Peer, RestoreSettings};

/// How far a token may be raised in one step: whoever decides next must be able to raise it further.
const RAISE_MAX: u64 = 1 << 32;

/// The hand-over of one session.
#[derive(Debug)]
pub(crate) struct Desk {
    handover: Mutex<Handover>,
    /// Set by an abort, so that a restore under way gives up.
    cancel: Arc<AtomicBool>,
}

/// The desks that are in use.
#[derive(Default)]
pub(crate) struct Desks {
    by_id: Mutex<HashMap<SessionId, Weak<Desk>>>,
}

impl Desks {
    /// Opens the journal of a new session.
    pub(crate) fn open(
        &self,
        state_dir: &Path,
        id: SessionId,
        wish: &OpenSession,
        final_dir: &Path,
        peer: &Peer,
        settings: RestoreSettings,
    ) -> Result<Arc<Desk>, Refusal> {
        let id_text = id.to_string();
        let opened = Handover::new(state_dir, &id_text, &wish.name, final_dir, peer, &wish.boot_id, settings);
        let mut handover = opened.map_err(|error| refusal(Code::Storage, chain(&error)))?;
        if wish.restore_pidns() != RestorePidns::Auto {
            handover.set_pidns(wish.restore_pidns());
        }
        Ok(self.keep(id, handover))
    }

    /// The desk of a session: the one in use, or its journal taken up anew.
    fn find(
        &self,
        state_dir: &Path,
        id: SessionId,
        settings: RestoreSettings,
    ) -> Result<Arc<Desk>, HandoverError> {
        if let Some(desk) = lock(&self.by_id).get(&id).and_then(Weak::upgrade) {
            return Ok(desk);
        }
        Ok(self.keep(id, Handover::reopen(state_dir, &id.to_string(), settings)?))
    }

    fn keep(&self, id: SessionId, handover: Handover) -> Arc<Desk> {
        let cancel = handover.cancel_flag();
        let desk = Arc::new(Desk { handover: Mutex::new(handover), cancel });
        let mut by_id = lock(&self.by_id);
        by_id.retain(|_, desk| desk.strong_count() > 0);
        by_id.insert(id, Arc::downgrade(&desk));
        desk
    }

    /// An operator decides a session, from the source's side.
    pub(crate) fn resolve(
        &self,
        state_dir: &Path,
        settings: RestoreSettings,
        may_restore: bool,
        asker: &str,
        resolve: &SessionResolve,
    ) -> Reply {
        let id = SessionId(resolve.session_id);
        // Before anything is locked or stopped: a restore under way holds the desk.
        if let Err(no) = may_decide(state_dir, id, asker, resolve.token) {
            return no;
        }
        let desk = match self.find(state_dir, id, settings) {
            Ok(desk) => desk,
            Err(HandoverError::Journal(error @ JournalError::Missing { .. })) => {
                return fault(Code::NoSession, chain(&error), "");
            }
            Err(error) => return fault(Code::Journal, chain(&error), ""),
        };
        if resolve.decision() == Decision::Source {
            desk.cancel.store(true, Ordering::Release);
        }
        if resolve.decision() == Decision::Destination && !may_restore {
            let text = "this page server was started without --restore".to_owned();
            let hint = format!("run there: godwit-page-server session release {id}");
            return fault(Code::NoRestore, text, &hint);
        }
        let mut handover = desk.handover();
        let raised = raise(&mut handover, resolve.token, &format!("the source is {}", resolve.proof));
        let token = match raised {
            Ok(token) => token,
            Err(error) => return fault(code_of(&error), chain(&error), ""),
        };
        let may_run = resolve.forced || resolve.proof == Event::Killed.word();
        if resolve.decision() == Decision::Destination && !may_run {
            let text = format!("the source's journal says {:?}, not that its tree was killed", resolve.proof);
            return fault(Code::Undecided, text, "`godwit session resolve` at the source kills it first");
        }
        let text = decide(&mut handover, resolve.decision(), token, resolve.proof == Event::Killed.word())
            .unwrap_or_else(|error| chain(&error));
        let summary = handover.status().summary;
        tracing::info!(session = %id, state = ?summary.state, "resolved: {text}");
        SessionResolved {
            state: summary.state.map_or_else(String::new, |state| state.word().to_owned()),
            pid: pid(summary.facts.pid.unwrap_or(0)),
            text,
            token,
        }
        .into()
    }
}

/// Whether a client may decide a session: it opened it, and its token is not out of date.
fn may_decide(state_dir: &Path, id: SessionId, asker: &str, token: u64) -> Result<(), Reply> {
    let records = match journal::read(state_dir, &id.to_string()) {
        Ok(records) => records,
        Err(error @ JournalError::Missing { .. }) => return Err(fault(Code::NoSession, chain(&error), "")),
        Err(error) => return Err(fault(Code::Journal, chain(&error), "")),
    };
    let Summary { token: in_force, facts, .. } = Summary::of(&records);
    if !is_owner(&facts, asker) {
        let text = format!("session {id} was opened by a client with another certificate");
        return Err(fault(Code::NotYours, text, "decide it at this host: godwit-page-server session"));
    }
    if token < in_force {
        let session = facts.session.unwrap_or_default();
        let error = HandoverError::Fenced { session, given: token, in_force };
        return Err(fault(Code::BadToken, chain(&error), ""));
    }
    Ok(())
}

/// Carries out a decision under the token in force. `source_is_dead`: the source's journal says so, and then what was
/// aborted here may be restored again; returns what was done, in words. A decision that comes too late
/// is an error, and changes nothing.
pub(crate) fn decide(
    handover: &mut Handover,
    decision: Decision,
    token: u64,
    source_is_dead: bool,
) -> Result<String, HandoverError> {
    let state = handover.status().summary.state;
    match decision {
        Decision::Show => Ok("nothing was decided".to_owned()),
        Decision::Source => {
            handover.abort("resolved: the source tree is the one that lives")?;
            Ok("what was restored is gone: the source may run on".to_owned())
        }
        Decision::Destination => {
            let mut state = state;
            if source_is_dead && matches!(state, Some(Event::Aborted | Event::Failed)) {
                // The source's tree is dead, so the images are the only copy.
                handover.prepare_again("resolved: the source is dead")?;
                state = handover.status().summary.state;
            }
            if state == Some(Event::Prepared) {
                handover.restore()?;
            }
            let running = handover.commit(token)?;
            Ok(format!("the restored tree runs, pid {}", running.pid))
        }
    }
}

/// Raises the token to at least `token`, and returns the one in force. A lower one than that in force comes from
/// somebody who may no longer decide.
fn raise(handover: &mut Handover, token: u64, why: &str) -> Result<u64, HandoverError> {
    let in_force = handover.current_token()?;
    if token < in_force || token - in_force > RAISE_MAX {
        let session = handover.status().summary.facts.session.unwrap_or_default();
        return Err(HandoverError::Fenced { session, given: token, in_force });
    }
    Ok(handover.journal_mut().raise_token_to(token, why)?)
}

impl Desk {
    /// The final set is durable.
    pub(crate) fn prepared(&self) -> Result<(), HandoverError> {
        self.handover().prepared()
    }

    /// Restores and holds.
    pub(crate) fn restore(&self) -> Reply {
        match self.handover().restore() {
            Ok(restored) => Restored {
                pid: pid(restored.root.pid),
                own_pidns: restored.own_pidns,
                restore_us: restored.restore_us,
            }
            .into(),
            Err(HandoverError::RestoreFailed { reason, log_tail, .. }) => {
                RestoreFailed { reason, log_tail: tail(log_tail) }.into()
            }
            // What was made may still be there: that is no `RestoreFailed`, at which the source would thaw.
            Err(error) => fault(code_of(&error), chain(&error), "`godwit session resolve` at the source"),
        }
    }

    /// Lets the held tree run.
    pub(crate) fn commit(&self, token: u64) -> Reply {
        match self.handover().commit(token) {
            Ok(running) => Done { pid: pid(running.pid), resume_us: running.resume_us }.into(),
            Err(HandoverError::Failed { reason, log_tail, images_dir, .. }) => {
                let dir = images_dir.display();
                let reason = format!("{reason}; its images are the copy: criu restore -D {dir}");
                Failed { reason, log_tail: tail(log_tail) }.into()
            }
            Err(error) => fault(code_of(&error), chain(&error), "`godwit session resolve` at the source"),
        }
    }

    /// Undoes it; a restore under way gives up first.
    pub(crate) fn abort(&self, reason: &str) -> Reply {
        self.cancel.store(true, Ordering::Release);
        match self.handover().abort(reason) {
            Ok(()) => Aborted {}.into(),
            Err(error) => fault(code_of(&error), chain(&error), "`godwit session resolve` at the source"),
        }
    }

    /// The session ends without a hand-over: its images, if any, are the operator's.
    pub(crate) fn released(&self) {
        if let Err(error) = self.handover().released() {
            tracing::warn!("a session that has ended stays in its journal: {}", chain(&error));
        }
    }

    fn handover(&self) -> MutexGuard<'_, Handover> {
        lock(&self.handover)
    }
}

fn code_of(error: &HandoverError) -> Code {
    match error {
        HandoverError::Fenced { .. } => Code::BadToken,
        HandoverError::State { .. } | HandoverError::Journal(_) => Code::Journal,
        _ => Code::Restore,
    }
}

fn pid(pid: i32) -> u32 {
    u32::try_from(pid).unwrap_or(0)
}

/// The end of a log, short enough for a control message.
fn tail(mut log: String) -> String {
    const LOG_LEN_MAX: usize = 64 << 10;
    if log.len() > LOG_LEN_MAX {
        let least = log.len() - LOG_LEN_MAX;
        let from = (least..log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or(log.len());
        log.drain(..from);
    }
    log
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
