//! Who may have a session, under which name, and how many there are.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use godwit_wire::control::{OpenSession, RoundFailed};
use godwit_wire::error::Code;
use godwit_wire::frame::{Secret, SessionId};
use godwit_wire::journal;
use godwit_wire::quic::random;
use godwit_wire::session::{FrameGate, name};

use crate::error::{chain, code_of};
use crate::handover::Desk;
use crate::query::is_owner;
use crate::restore::Peer;
use crate::serve::{Shared, Voice};
use crate::store::sink::{Sink, SinkError};
use crate::store::{SessionStore, StoreError};

/// A refusal, as the client hears it.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    pub(crate) text: String,
}

/// All open sessions.
pub(crate) struct Sessions {
    open: Mutex<Open>,
    /// Told whenever a session ends.
    ended: Condvar,
    sessions_max: usize,
}

#[derive(Default)]
struct Open {
    draining: bool,
    by_id: HashMap<SessionId, Arc<Session>>,
}

impl Sessions {
    pub(crate) fn new(sessions_max: usize) -> Self {
        Sessions { open: Mutex::default(), ended: Condvar::new(), sessions_max }
    }

    /// Admits a session, or says why not.
    pub(crate) fn admit(
        &self,
        shared: &Shared,
        wish: &OpenSession,
        voice: &Arc<Voice>,
        peer: &Peer,
    ) -> Result<Arc<Session>, Refusal> {
        let options = &shared.options;
        name::check_session(&wish.name).map_err(|why| refusal(Code::BadName, why.to_string()))?;
        if wish.want_restore && options.restore.is_none() {
            let text =
                "this page server does not restore: start it with --restore, or migrate with --no-restore";
            return Err(refusal(Code::NoRestore, text.to_owned()));
        }
        let mut open = lock(&self.open);
        if open.draining {
            return Err(refusal(Code::Draining, "this page server is stopping: try again later".to_owned()));
        }
        if open.by_id.len() >= self.sessions_max {
            let text =
                format!("{} sessions are open: try again later, or raise --sessions-max", open.by_id.len());
            return Err(refusal(Code::Busy, text));
        }
        let session = Session::open(shared, wish, voice, peer)?;
        open.by_id.insert(session.id, Arc::clone(&session));
        Ok(session)
    }

    pub(crate) fn find(&self, id: SessionId) -> Option<Arc<Session>> {
        lock(&self.open).by_id.get(&id).cloned()
    }

    pub(crate) fn remove(&self, id: SessionId) {
        lock(&self.open).by_id.remove(&id);
        self.ended.notify_all();
    }

    /// Admits no more, and waits until the open ones have ended, but no longer than `limit`. Returns how many
    /// are left.
    pub(crate) fn drain(&self, limit: Duration) -> usize {
        let mut open = lock(&self.open);
        open.draining = true;
        let deadline = Instant::now() + limit;
        while !open.by_id.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            open = self.ended.wait_timeout(open, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        open.by_id.len()
    }
}

/// An open session.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) secret: Secret,
    pub(crate) store: SessionStore,
    pub(crate) voice: Arc<Voice>,
    pub(crate) desk: Arc<Desk>,
    progress: Mutex<Progress>,
    /// Told whenever a frame was stored or a round ended.
    moved: Condvar,
}

#[derive(Default)]
struct Progress {
    gate: FrameGate,
    epoch: u32,
    lanes: u32,
    /// Those who wait for it to move: telling nobody costs a system call too.
    waiting: usize,
    /// Slots that were announced as the same as in the base round, and are not.
    wants: Wants,
}

/// Slots by pages file.
pub(crate) type Wants = BTreeMap<u32, Vec<Range<u64>>>;

/// How the wait for the frames of a round ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// All are stored.
    All,
    /// These slots are to be sent as data, under this epoch.
    Wants(u32, Wants),
    /// The round failed meanwhile, which the client was told.
    Failed,
    /// The link is gone.
    Gone,
}

/// How often a wait for frames looks whether the link still lives.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

impl Session {
    fn open(
        shared: &Shared,
        wish: &OpenSession,
        voice: &Arc<Voice>,
        peer: &Peer,
    ) -> Result<Arc<Self>, Refusal> {
        if wish.go_on {
            may_go_on(&shared.options.state_dir, &wish.name, peer)?;
        }
        let store = shared.store.session(&wish.name).map_err(|error| {
            let code = match error {
                StoreError::Name { .. } => Code::BadName,
                StoreError::Io { .. } => Code::Storage,
                _ => Code::NameTaken,
            };
            refusal(code, chain(&error))
        })?;
        if !wish.go_on && !store.sealed_rounds().is_empty() {
            let dir = store.dir();
            let text = format!(
                "{} holds rounds of an earlier session {:?}: choose another --name, or move it away",
                dir.display(),
                wish.name
            );
            return Err(refusal(Code::NameTaken, text));
        }
        let no_random = |why: std::io::Error| refusal(Code::Internal, why.to_string());
        let id = SessionId(u64::from_le_bytes(random().map_err(no_random)?));
        let secret = Secret(random().map_err(no_random)?);
        let (settings, state_dir) = (shared.settings.clone(), &shared.options.state_dir);
        let desk = shared.desks.open(state_dir, id, wish, &store.final_dir(), peer, settings)?;
        let progress = Mutex::new(Progress { epoch: 1, ..Progress::default() });
        let (voice, moved) = (Arc::clone(voice), Condvar::new());
        Ok(Arc::new(Session { id, secret, store, voice, desk, progress, moved }))
    }

    /// The epoch in force.
    pub(crate) fn epoch(&self) -> u32 {
        lock(&self.progress).epoch
    }

    /// Takes frames of a round from now on; returns their epoch.
    pub(crate) fn open_round(&self, round: u32) -> u32 {
        let mut progress = lock(&self.progress);
        let epoch = progress.epoch;
        progress.gate.open(round, epoch);
        progress.wants.clear();
        epoch
    }

    /// Takes no more frames.
    pub(crate) fn close_round(&self) {
        lock(&self.progress).gate.close();
        self.moved.notify_all();
    }

    /// Takes one more lane, unless there are `lanes_max` already; says how many there were before.
    pub(crate) fn add_lane(&self, lanes_max: u32) -> Option<u32> {
        let mut progress = lock(&self.progress);
        let before = progress.lanes;
        let fits = before < lanes_max;
        progress.lanes += u32::from(fits);
        fits.then_some(before)
    }

    pub(crate) fn remove_lane(&self) {
        lock(&self.progress).lanes -= 1;
    }

    /// Asks or tells the gate.
    pub(crate) fn gate<T>(&self, ask: impl FnOnce(&mut FrameGate) -> T) -> T {
        let mut progress = lock(&self.progress);
        let answer = ask(&mut progress.gate);
        if progress.waiting > 0 {
            self.moved.notify_all();
        }
        answer
    }

    /// Notes slots that have to be sent as data.
    pub(crate) fn want(&self, round: u32, epoch: u32, pages_id: u32, slots: Vec<Range<u64>>) {
        let mut progress = lock(&self.progress);
        if progress.gate.frames(round, epoch).is_some() {
            progress.wants.entry(pages_id).or_default().extend(slots);
        }
    }

    /// Waits until `frames` frames of this round and epoch are stored, and closes the gate behind them.
    pub(crate) fn wait_frames(&self, round: u32, epoch: u32, frames: u64) -> Arrived {
        let mut progress = lock(&self.progress);
        loop {
            match progress.gate.frames(round, epoch) {
                None => return Arrived::Failed,
                Some(stored) if stored >= frames => break,
                Some(_) => {}
            }
            if self.voice.is_gone() {
                return Arrived::Gone;
            }
            progress.waiting += 1;
            let waited = self.moved.wait_timeout(progress, LOOK_INTERVAL);
            progress = waited.unwrap_or_else(PoisonError::into_inner).0;
            progress.waiting -= 1;
        }
        if progress.wants.is_empty() {
            progress.gate.close();
            return Arrived::All;
        }
        progress.epoch += 1;
        let epoch = progress.epoch;
        progress.gate.open(round, epoch);
        let mut wants = std::mem::take(&mut progress.wants);
        wants.values_mut().for_each(|slots| slots.sort_by_key(|slots| slots.start));
        Arrived::Wants(epoch, wants)
    }

    /// Ends an open round without sealing it, and says so to the client.
    pub(crate) fn fail_round(&self, round: u32, error: &SinkError) {
        self.fail_round_as(round, code_of(error), chain(error));
    }

    /// As [`Session::fail_round`], with a code and words of one's own.
    pub(crate) fn fail_round_as(&self, round: u32, code: Code, text: String) {
        tracing::warn!(session = self.store.name(), round, %code, "round failed: {text}");
        self.close_round();
        if let Err(error) = self.store.abandon(round) {
            tracing::warn!(session = self.store.name(), round, "what it left: {}", chain(&error));
        }
        if let Err(error) = self.voice.say(RoundFailed { round, code: code.number(), text }) {
            tracing::debug!(session = self.store.name(), round, "the client was not told: {}", chain(&error));
        }
    }
}

/// Rounds are gone on with only by the client that sent them: another could put its own pages below a process.
fn may_go_on(state_dir: &Path, name: &str, peer: &Peer) -> Result<(), Refusal> {
    let listed = journal::list(state_dir).map_err(|error| refusal(Code::Storage, chain(&error)))?;
    let of_name = listed.into_iter().filter_map(|listed| listed.summary.ok());
    let newest = of_name
        .filter(|summary| summary.facts.session.as_deref() == Some(name))
        .max_by_key(|summary| summary.unix_us);
    match newest {
        Some(summary) if !is_owner(&summary.facts, &peer.identity) => {
            let text = format!("session {name:?} was opened by a client with another certificate");
            Err(refusal(Code::NotYours, text))
        }
        _ => Ok(()),
    }
}

pub(crate) fn refusal(code: Code, text: String) -> Refusal {
    Refusal { code, text }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
