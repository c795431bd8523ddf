//! The destination's half of a hand-over: criu restores the tree and holds it; only a word lets it run.
//!
//! ```text
//! new ── prepared ──► restore ──► held ── commit ──► running ──► done
//!                        │          └──── abort ───► aborted
//!                        └─ fails ──► aborted          (after commit: failed, images kept)
//! ```
//! What binds (DESIGN of the hand-over):
//! - A record is in the journal before the step that it announces is taken: `restoring` before a process is
//!   started, `restored` before the source hears of it, `running` before the tree is let go.
//! - Until `restored` the server may abort alone. After it, only the source, or an operator with a raised token,
//!   decides. After `running` nothing is undone: a failure is answered `failed`, and the images stay.
//! - The held tree, criu and the hook are processes of the session, not of the server: its death is neither yes nor
//!   no to them. A server that comes up finds them through the journal ([`recover`]).
//! - A tree that is lost while it is held never ran; on commit it is restored anew from its images.
//!
//! Reading order: this file (the states), `attempt` (one run of criu, from outside), `init` and `hook` (the
//! same from inside), `work` (the files between them), `process`, `images`.

mod attempt;
mod hook;
mod images;
mod init;
mod process;
mod recover;
mod work;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use godwit_wire::control::RestorePidns;
use godwit_wire::fault;
use godwit_wire::journal::{Event, Facts, Journal, JournalError, Summary};

use attempt::{Attempt, Held};
pub use process::Identity;
pub use recover::{Found, recover};
use work::{Plan, WorkDir};

/// First argument that makes the server's program the launcher of a restore, or its init. They are no
/// commands for people, so that the command line does not list them.
const LAUNCH_WORD: &str = "restore-launch";
const INIT_WORD: &str = "restore-init";
/// Variable that names the work directory to criu's hook, which gets no arguments.
const HOOK_VARIABLE: &str = "GODWIT_RESTORE_WORK";

/// Runs one of the hidden commands that a restore needs, if the arguments (program name first) ask for one. The
/// program calls it before anything else and ends with the status.
pub fn hidden_command(args: impl IntoIterator<Item = OsString>) -> Option<i32> {
    let mut args = args.into_iter().skip(1);
    let Some(word) = args.next() else {
        let work = std::env::var_os(HOOK_VARIABLE)?;
        return Some(hook::run(&WorkDir::at(PathBuf::from(work))));
    };
    let (name, run): (_, fn(&WorkDir) -> io::Result<()>) = match word.to_str()? {
        LAUNCH_WORD => (LAUNCH_WORD, init::launch),
        INIT_WORD => (INIT_WORD, init::run),
        _ => return None,
    };
    let work = args.next().map(|dir| WorkDir::at(PathBuf::from(dir)));
    let work = work.ok_or_else(|| io::Error::other("it is run by godwit-page-server, not by hand"));
    match work.and_then(|work| run(&work)) {
        Ok(()) => Some(0),
        Err(e) => {
            eprintln!("{name}: {e}");
            Some(1)
        }
    }
}

/// How trees are restored.
#[derive(Clone, Debug)]
pub struct RestoreSettings {
    /// The criu program; without a slash it is looked for in PATH.
    pub criu: PathBuf,
    /// The pid namespace to restore into.
    pub pidns: RestorePidns,
    /// The program that calls [`hidden_command`]; a server's own.
    pub program: PathBuf,
    /// How long criu may take until the tree is held; `None` reckons with the size of the images.
    pub time_limit: Option<Duration>,
    /// The operator's action scripts, in order: run at every point of the restore that CRIU names.
    pub action_scripts: Vec<PathBuf>,
}

impl RestoreSettings {
    /// Settings with this program as the one for the hidden commands.
    ///
    /// # Errors
    /// If the program's path cannot be told, or the program was replaced since it was started.
    pub fn of_this_program(criu: PathBuf, pidns: RestorePidns) -> io::Result<Self> {
        let program = std::env::current_exe()?;
        if !program.is_file() {
            let text = format!("{} was replaced: restart the server", program.display());
            return Err(io::Error::other(text));
        }
        Ok(Self { criu, pidns, program, time_limit: None, action_scripts: Vec::new() })
    }
}

/// The other side of a session, as the journal keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address, for people.
    pub address: String,
    /// Who it is (`Connection::peer_identity`): only it may ask about the session, go on with it, or decide it.
    pub identity: String,
}

/// A tree that is restored and held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Its root, as this host sees it.
    pub root: Identity,
    /// The process above it; killing it ends the tree, where it has a namespace of its own.
    pub init: Identity,
    /// Whether it lives in a pid namespace of its own.
    pub own_pidns: bool,
    /// Time from the request to the held tree, in microseconds.
    pub restore_us: u64,
}

/// A tree that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its root's pid, as this host sees it.
    pub pid: i32,
    /// Time from the request to the end of criu, in microseconds.
    pub resume_us: u64,
}

/// Where a hand-over stands.
#[derive(Clone, Debug)]
pub struct Status {
    /// The journal, added up.
    pub summary: Summary,
    /// Whether a tree is held, ready to be released.
    pub is_held: bool,
}

/// Why a step of a hand-over failed, and what holds then.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The tree could not be restored. What was made of it is killed, and the journal says `aborted`: the
    /// source may let its tree run.
    #[error("session {session} could not be restored: {reason}")]
    RestoreFailed {
        /// The session.
        session: String,
        /// Why.
        reason: String,
        /// The last words of criu's log.
        log_tail: String,
    },
    /// After the commit the tree could not be made to run. The images are kept, and nothing may be let run at the
    /// source: its tree is dead.
    #[error(
        "session {session} was committed, but its tree does not run: {reason}; \
         the images in {images_dir} are the copy: restore them by hand", images_dir = images_dir.display()
    )]
    Failed {
        /// The session.
        session: String,
        /// Why.
        reason: String,
        /// The last words of criu's log.
        log_tail: String,
        /// The images.
        images_dir: PathBuf,
    },
    /// Something of a restore may still be there, so that it must not be called aborted.
    #[error("session {session}: what was restored could not be killed; see {work_dir}", work_dir = work_dir.display())]
    NotKilled {
        /// The session.
        session: String,
        /// The attempt's directory.
        work_dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A tree that was let go may run here: what was to be done would end it, or make a second one.
    #[error(
        "session {session}: its tree may run here, {at}: look there, and end it first if it is not wanted ({why})"
    )]
    MayRun {
        /// The session.
        session: String,
        /// Where, in words.
        at: String,
        /// What is known.
        why: String,
    },
    /// The step does not follow from where the session stands.
    #[error("session {session} is {state}: it cannot {step} now")]
    State {
        /// The session.
        session: String,
        /// Its state.
        state: String,
        /// What was asked for.
        step: &'static str,
    },
    /// An operator raised the token: the asker may no longer decide.
    #[error(
        "session {session}: token {given} is out of date, {in_force} is in force: an operator decided otherwise"
    )]
    Fenced {
        /// The session.
        session: String,
        /// The asker's token.
        given: u64,
        /// The token in force.
        in_force: u64,
    },
    /// The journal could not be read or written; the step was not taken.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// The hand-over of one session, under the lock of its journal.
#[derive(Debug)]
pub struct Handover {
    journal: Journal,
    session: String,
    images_dir: PathBuf,
    state_dir: PathBuf,
    settings: RestoreSettings,
    same_boot: bool,
    cancel: Arc<AtomicBool>,
    attempt: Option<Attempt>,
    /// Why the attempt that the journal names could not be found again: what it made may live.
    unfound: Option<io::Error>,
}

impl Handover {
    /// Opens the journal of a new session (`open`). `journal_id` names it, `session` is the name for people,
    /// `images_dir` the final set, which need not be there yet; `peer_boot_id` is the source's boot id.
    ///
    /// # Errors
    /// [`HandoverError::Journal`].
    pub fn new(
        state_dir: &Path,
        journal_id: &str,
        session: &str,
        images_dir: &Path,
        peer: &Peer,
        peer_boot_id: &str,
        settings: RestoreSettings,
    ) -> Result<Self, HandoverError> {
        let mut journal = Journal::create(state_dir, journal_id)?;
        let boot_id = process::boot_id().unwrap_or_default();
        let same_boot = !peer_boot_id.is_empty() && peer_boot_id == boot_id;
        let facts = Facts {
            session: Some(session.to_owned()),
            images_dir: Some(images_dir.display().to_string()),
            peer: Some(peer.address.clone()),
            peer_identity: Some(peer.identity.clone()),
            boot_id: Some(boot_id),
            text: same_boot.then(|| SAME_BOOT.to_owned()),
            ..Facts::default()
        };
        journal.append(Event::Open, facts)?;
        Ok(Self::over(journal, state_dir, settings))
    }

    /// Takes up a session whose journal exists and is not locked.
    ///
    /// # Errors
    /// [`HandoverError::Journal`].
    pub fn reopen(
        state_dir: &Path,
        journal_id: &str,
        settings: RestoreSettings,
    ) -> Result<Self, HandoverError> {
        Ok(Self::over(Journal::open(state_dir, journal_id)?, state_dir, settings))
    }

    fn over(journal: Journal, state_dir: &Path, settings: RestoreSettings) -> Self {
        let facts = journal.summary().facts;
        let texts = journal.records().first().and_then(|record| record.facts.as_ref()?.text.clone());
        // A holder of another boot is gone with it; where the boot cannot be told, it may be this one.
        let other_boot = process::boot_id().is_ok_and(|id| Some(id) != facts.boot_id);
        let work = facts.work_dir.filter(|_| !other_boot);
        let (attempt, unfound) = match work.map(|work| Attempt::find(WorkDir::at(work))) {
            Some(Ok(attempt)) => (Some(attempt), None),
            Some(Err(why)) => (None, Some(why)),
            None => (None, None),
        };
        Self {
            session: facts.session.unwrap_or_default(),
            images_dir: facts.images_dir.unwrap_or_default().into(),
            state_dir: std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned()),
            settings,
            same_boot: texts.as_deref() == Some(SAME_BOOT),
            cancel: Arc::default(),
            attempt,
            unfound,
            journal,
        }
    }

    /// Chooses the pid namespace for this session, as the source asked.
    pub fn set_pidns(&mut self, pidns: RestorePidns) {
        self.settings.pidns = pidns;
    }

    /// The final set is sealed and durable (`prepared`). Repeating it is no error.
    ///
    /// # Errors
    /// [`HandoverError::State`], [`HandoverError::Journal`].
    pub fn prepared(&mut self) -> Result<(), HandoverError> {
        match self.state() {
            Some(Event::Open) => self.note(Event::Prepared, Facts::default()),
            Some(Event::Prepared) => Ok(()),
            _ => Err(self.wrong_state("be prepared")),
        }
    }

    /// Restores the tree and holds it (`restoring`, `restored`). Asked again while the tree is held it gives the same
    /// answer; a held tree that was lost is restored anew.
    ///
    /// # Errors
    /// [`HandoverError::RestoreFailed`]: nothing of it is left, the journal says `aborted`.
    /// [`HandoverError::NotKilled`], [`HandoverError::State`], [`HandoverError::Journal`].
    pub fn restore(&mut self) -> Result<Restored, HandoverError> {
        match (self.state(), self.held()) {
            (Some(Event::Restored), Some(restored)) => Ok(restored),
            (Some(Event::Prepared | Event::Restored), _) => self.attempt(Event::Aborted),
            _ => Err(self.wrong_state("be restored")),
        }
    }

    /// Lets the held tree run (`running`), and waits until criu has ended (`done`). Asked again after a loss of the
    /// answer, it goes on from where it stood.
    ///
    /// # Errors
    /// [`HandoverError::Fenced`] if `token` is not the one in force: nothing was done.
    /// [`HandoverError::Failed`]: the images are kept. [`HandoverError::State`], [`HandoverError::Journal`].
    pub fn commit(&mut self, token: u64) -> Result<Running, HandoverError> {
        let start = Instant::now();
        self.check_token(token)?;
        match self.state() {
            Some(Event::Done) => return Ok(self.running(start)),
            // What was let go before may have run: it is never restored a second time.
            Some(Event::Running) => return self.see_to_end(start),
            Some(Event::Restored | Event::Committing) => {}
            Some(Event::Restoring) if self.is_forward_only() => {}
            _ => return Err(self.wrong_state("be committed")),
        }
        for _ in 0..RELEASES_MAX {
            if self.held().is_none() {
                // From here on a server that comes up must not abort: the source's tree is dead.
                self.note(Event::Committing, Facts::default())?;
                self.attempt(Event::Failed)?;
                self.check_token(token)?;
            }
            self.note(Event::Running, Facts::default())?;
            match self.attempt.as_ref().map(Attempt::release) {
                Some(Ok(true)) => return self.see_to_end(start),
                // Nobody took the word, and none was given before: the tree was lost while it was held.
                Some(Ok(false)) | None => {}
                Some(Err(e)) => return self.fail(Event::Failed, e.to_string(), self.log_tail()),
            }
        }
        self.fail(
            Event::Failed,
            format!("its tree was lost {RELEASES_MAX} times while it was held"),
            self.log_tail(),
        )
    }

    /// Kills what was restored, if anything (`aborted`). Repeating it is no error.
    ///
    /// # Errors
    /// [`HandoverError::State`] once the tree was let go; [`HandoverError::NotKilled`]: the source must not let
    /// its tree run. [`HandoverError::Journal`].
    pub fn abort(&mut self, reason: &str) -> Result<(), HandoverError> {
        match self.state() {
            Some(Event::Aborted) => return Ok(()),
            Some(Event::Open | Event::Prepared | Event::Restoring | Event::Restored)
                if !self.is_forward_only() => {}
            _ => return Err(self.wrong_state("be aborted")),
        }
        self.kill_attempt()?;
        self.note(Event::Aborted, Facts { text: Some(reason.to_owned()), ..Facts::default() })
    }

    /// An operator takes back that a session was aborted or failed, since the source's tree is dead and the images
    /// are the only copy (`prepared`). What may be left of its restore is killed first.
    ///
    /// # Errors
    /// [`HandoverError::State`] unless the session was aborted or failed; [`HandoverError::NotKilled`],
    /// [`HandoverError::Journal`].
    pub fn prepare_again(&mut self, reason: &str) -> Result<(), HandoverError> {
        if !matches!(self.state(), Some(Event::Aborted | Event::Failed)) {
            return Err(self.wrong_state("be prepared again"));
        }
        if self.journal.has(Event::Running) {
            self.check_none_runs()?;
        }
        self.kill_attempt()?;
        self.cancel.store(false, Ordering::SeqCst);
        self.note(Event::Prepared, Facts { text: Some(reason.to_owned()), ..Facts::default() })
    }

    /// The session needs nothing more (`released`): its images are the operator's.
    ///
    /// # Errors
    /// [`HandoverError::Journal`].
    pub fn released(&mut self) -> Result<(), HandoverError> {
        self.note(Event::Released, Facts::default())
    }

    /// A flag for another thread: once set, a running [`Handover::restore`] gives up and aborts.
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        self.cancel.clone()
    }

    /// Where the hand-over stands.
    pub fn status(&self) -> Status {
        let summary = self.journal.summary();
        let is_held = self.is_held(&summary.facts);
        Status { summary, is_held }
    }

    /// The token in force, read anew.
    ///
    /// # Errors
    /// [`HandoverError::Journal`].
    pub fn current_token(&mut self) -> Result<u64, HandoverError> {
        Ok(self.journal.current_token()?)
    }

    /// The journal, for an operator's decision.
    pub fn journal_mut(&mut self) -> &mut Journal {
        &mut self.journal
    }

    fn state(&self) -> Option<Event> {
        self.journal.summary().state
    }

    /// Whether the tree is held, and whole: one that lost a process meanwhile never comes to run.
    fn is_held(&self, facts: &Facts) -> bool {
        self.attempt.as_ref().is_some_and(Attempt::is_held) && tree_of(facts).iter().all(Identity::is_alive)
    }

    fn held(&self) -> Option<Restored> {
        let facts = self.journal.summary().facts;
        let attempt = self.attempt.as_ref().filter(|_| self.is_held(&facts))?;
        let root = *tree_of(&facts).first()?;
        let init = identity(facts.holder_pid, facts.holder_start_time)?;
        Some(Restored { root, init, own_pidns: attempt.own_pidns(), restore_us: 0 })
    }

    /// Restores and holds; on failure kills what was made and records `on_failure`.
    fn attempt(&mut self, on_failure: Event) -> Result<Restored, HandoverError> {
        let start = Instant::now();
        // What is left of an earlier attempt, a criu that lost its tree say, must be gone first.
        self.kill_attempt()?;
        match self.try_restore() {
            Ok(held) => {
                let own_pidns = self.attempt.as_ref().is_some_and(Attempt::own_pidns);
                let facts = Facts {
                    pid: Some(held.root.pid),
                    start_time: Some(held.root.start_time),
                    holder_pid: Some(held.init.pid),
                    holder_start_time: Some(held.init.start_time),
                    pid_ns_inode: process::pid_namespace(held.init.pid).ok(),
                    members: held.tree.iter().copied().map(Identity::to_record).collect(),
                    ..Facts::default()
                };
                if let Err(e) = self.note(Event::Restored, facts) {
                    // Nobody would find what the journal does not name.
                    self.kill_attempt()?;
                    return Err(e);
                }
                let restore_us = start.elapsed().as_micros() as u64;
                Ok(Restored { root: held.root, init: held.init, own_pidns, restore_us })
            }
            Err(RestoreError::Journal(e)) => Err(e.into()),
            Err(RestoreError::Io(e)) => {
                let reason = e.to_string();
                let log_tail = self.log_tail();
                self.kill_attempt()?;
                self.fail(on_failure, reason, log_tail)
            }
        }
    }

    fn try_restore(&mut self) -> Result<Held, RestoreError> {
        let plan = self.plan()?;
        let attempts =
            self.journal.records().iter().filter(|record| record.kind() == Event::Restoring).count();
        let id = self.journal.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let path = self.state_dir.join(format!("{id}.restore-{}", attempts + 1));
        let work = WorkDir::create(path.clone(), &plan)?;
        let facts = Facts {
            work_dir: Some(path.display().to_string()),
            // The recorded boot is that of the processes that this attempt starts.
            boot_id: process::boot_id().ok(),
            ..Facts::default()
        };
        self.record(Event::Restoring, facts)?;
        // Also what fails to start may have left an init: it can be found and killed.
        self.attempt = Some(Attempt::find(work.clone())?);
        let attempt = self.attempt.insert(Attempt::start(work, plan)?);
        Ok(attempt.wait_held(&self.cancel)?)
    }

    fn plan(&self) -> io::Result<Plan> {
        let dir = std::path::absolute(&self.images_dir)?;
        let limit = images::time_limit(&dir)?;
        let limit = self.settings.time_limit.unwrap_or(limit);
        let taken = images::first_taken(&dir)?;
        let own_pidns = match (self.settings.pidns, taken) {
            (RestorePidns::Host, Some(id)) => {
                let text = format!("pid {id} is taken on this host: let it restore into a new pid namespace");
                return Err(io::Error::other(text));
            }
            (RestorePidns::Host, None) => false,
            (RestorePidns::New, _) => true,
            (RestorePidns::Auto, taken) => taken.is_some() || self.same_boot,
        };
        let criu = match self.settings.criu.components().count() {
            1 => self.settings.criu.clone(),
            _ => std::path::absolute(&self.settings.criu)?,
        };
        Ok(Plan {
            program: std::path::absolute(&self.settings.program)?,
            criu,
            options: images::restore_options(&dir)?,
            action_scripts: absolute(&self.settings.action_scripts)?,
            images_dir: dir,
            own_pidns,
            limit_ms: limit.as_millis() as u64,
        })
    }

    /// The journal says `running`: gives the word again, should the hook still wait for it, and waits for criu's end.
    fn see_to_end(&mut self, start: Instant) -> Result<Running, HandoverError> {
        let Some(attempt) = &self.attempt else {
            self.check_none_runs()?;
            return self.fail(
                Event::Failed,
                "its processes are lost with the host's last boot".into(),
                String::new(),
            );
        };
        let released = match attempt.outcome() {
            Ok(None) => attempt.release().map(drop),
            other => other.map(drop),
        };
        match released.and_then(|()| attempt.wait_outcome()) {
            Ok(()) => {
                self.note(Event::Done, Facts::default())?;
                Ok(self.running(start))
            }
            Err(e) => {
                let why = match self.where_alive() {
                    Some(at) => format!(
                        "{e}; its tree may run: it lies {at} here, look there before its images are restored again"
                    ),
                    None => e.to_string(),
                };
                self.fail(Event::Failed, why, self.log_tail())
            }
        }
    }

    fn log_tail(&self) -> String {
        self.attempt.as_ref().map(|attempt| attempt.work.log_tail()).unwrap_or_default()
    }

    /// Whether the source's tree is known to be dead: nothing may be aborted any more.
    pub fn is_forward_only(&self) -> bool {
        self.journal.has(Event::Committing) || self.journal.has(Event::Running)
    }

    fn running(&self, start: Instant) -> Running {
        let pid = self.journal.summary().facts.pid.unwrap_or(0);
        Running { pid, resume_us: start.elapsed().as_micros() as u64 }
    }

    fn fail<T>(&mut self, event: Event, reason: String, log_tail: String) -> Result<T, HandoverError> {
        let text = if log_tail.is_empty() { reason.clone() } else { format!("{reason}\n{log_tail}") };
        self.note(event, Facts { text: Some(text), ..Facts::default() })?;
        let session = self.session.clone();
        Err(match event {
            Event::Failed => {
                HandoverError::Failed { session, reason, log_tail, images_dir: self.images_dir.clone() }
            }
            _ => HandoverError::RestoreFailed { session, reason, log_tail },
        })
    }

    fn kill_attempt(&mut self) -> Result<(), HandoverError> {
        let Some(attempt) = &self.attempt else { return self.kill_unfound() };
        let tree = tree_of(&self.journal.summary().facts);
        attempt.kill(&tree).map_err(|source| HandoverError::NotKilled {
            session: self.session.clone(),
            work_dir: attempt.work.path().to_owned(),
            source,
        })?;
        self.attempt = None;
        Ok(())
    }

    /// Errs when a tree that was let go may be alive. Its init lives as long as the tree, unless it is killed.
    fn check_none_runs(&self) -> Result<(), HandoverError> {
        let init = match (&self.attempt, &self.unfound) {
            (Some(attempt), _) => attempt.work.init().ok().flatten(),
            (None, Some(_)) => self.last_attempt().init(),
            (None, None) => return Ok(()),
        };
        let (at, why) = match (self.where_alive(), init) {
            (Some(at), _) => (at, "it is alive"),
            (None, Some(_)) => return Ok(()),
            (None, None) => ("and what its restore left cannot be read".to_owned(), "its init is not known"),
        };
        let why = self.unfound.as_ref().map_or_else(|| why.to_owned(), ToString::to_string);
        Err(HandoverError::MayRun { session: self.session.clone(), at, why })
    }

    /// Where the tree of the last attempt is alive, or its init. Without a pid namespace of its own a tree outlives an
    /// init that is killed, and any process of it is a copy that may run.
    fn where_alive(&self) -> Option<String> {
        let last = self.last_attempt();
        if let Some(init) = last.init().filter(Identity::is_alive) {
            return Some(format!("below process {}", init.pid));
        }
        let alive = tree_of(&last.0).into_iter().find(Identity::is_alive)?;
        Some(format!("at process {}, which outlived its init", alive.pid))
    }

    /// What the journal says of the attempt that was begun last.
    fn last_attempt(&self) -> LastAttempt {
        let mut facts = Facts::default();
        let records = self.journal.records();
        let begun = records.iter().rposition(|record| record.kind() == Event::Restoring);
        for record in &records[begun.unwrap_or(records.len())..] {
            record.facts.iter().for_each(|newer| facts.merge(newer));
        }
        LastAttempt(facts)
    }

    /// Kills what an attempt made whose directory cannot be read whole: by what is left of it, and what the journal says.
    fn kill_unfound(&mut self) -> Result<(), HandoverError> {
        let Some(why) = &self.unfound else { return Ok(()) };
        let why = io::Error::new(why.kind(), why.to_string());
        let last = self.last_attempt();
        let killed = last.kill().unwrap_or(Err(why));
        let work_dir = last.0.work_dir.unwrap_or_default().into();
        killed.map_err(|source| HandoverError::NotKilled {
            session: self.session.clone(),
            work_dir,
            source,
        })?;
        self.unfound = None;
        Ok(())
    }

    fn check_token(&mut self, given: u64) -> Result<(), HandoverError> {
        let in_force = self.journal.current_token()?;
        if given == in_force {
            return Ok(());
        }
        Err(HandoverError::Fenced { session: self.session.clone(), given, in_force })
    }

    fn note(&mut self, event: Event, facts: Facts) -> Result<(), HandoverError> {
        Ok(self.record(event, facts)?)
    }

    fn record(&mut self, event: Event, facts: Facts) -> Result<(), JournalError> {
        self.point("before", event)?;
        self.journal.append(event, facts)?;
        self.point("after", event)
    }

    /// A place beside a record where tests make the server fail.
    fn point(&self, when: &str, event: Event) -> Result<(), JournalError> {
        if !fault::any_armed() {
            return Ok(());
        }
        fault::point(&format!("destination.{when}.{}", event.word())).map_err(|injected| {
            let path = self.journal.path().to_owned();
            JournalError::Io { op: "writing", path, source: io::Error::other(injected) }
        })
    }

    fn wrong_state(&self, step: &'static str) -> HandoverError {
        let state = self.state().map_or("empty", Event::word).to_owned();
        HandoverError::State { session: self.session.clone(), state, step }
    }
}

/// The facts of the attempt that was begun last, and nothing older.
struct LastAttempt(Facts);

impl LastAttempt {
    fn work(&self) -> Option<WorkDir> {
        self.0.work_dir.as_ref().map(|dir| WorkDir::at(PathBuf::from(dir)))
    }

    /// Its init: by the directory, or by the journal once the tree was held.
    fn init(&self) -> Option<Identity> {
        let told = self.work().and_then(|work| work.init().ok().flatten());
        told.or_else(|| identity(self.0.holder_pid, self.0.holder_start_time))
    }

    /// Kills it; `None` where nobody knows its init.
    fn kill(&self) -> Option<io::Result<()>> {
        // An init that is not announced yet does not begin where it finds the mark.
        let _ = self.work().map(|work| work.put_abort());
        let init = self.init()?;
        let has_own_pidns = match (self.0.pid_ns_inode, process::pid_namespace(std::process::id() as i32)) {
            (Some(theirs), Ok(ours)) => theirs != ours,
            _ => false,
        };
        if init.is_alive() || has_own_pidns {
            return Some(attempt::kill_below(init));
        }
        // Without a namespace of its own the tree may outlive its init.
        let tree = tree_of(&self.0);
        if tree.is_empty() {
            let left = "its init is gone, and what it made may live in this host's pid namespace";
            return Some(Err(io::Error::other(left)));
        }
        Some(attempt::kill_tree(&tree))
    }
}

fn identity(pid: Option<i32>, start_time: Option<u64>) -> Option<Identity> {
    Some(Identity { pid: pid?, start_time: start_time? })
}

/// The processes of the tree that was held, its root first; the root alone in a journal of before trees were listed.
fn tree_of(facts: &Facts) -> Vec<Identity> {
    match facts.members.is_empty() {
        true => identity(facts.pid, facts.start_time).into_iter().collect(),
        false => facts.members.iter().map(Identity::from).collect(),
    }
}

/// Programs by their whole paths: whoever runs them stands in another directory.
fn absolute(programs: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    programs.iter().map(std::path::absolute).collect()
}

/// How often a tree that is lost while it is held is restored anew in one commit.
const RELEASES_MAX: u32 = 3;

/// Text of a first record: source and destination are one machine, where every pid of the tree is taken.
const SAME_BOOT: &str = "source and destination share a kernel";

enum RestoreError {
    Io(io::Error),
    Journal(JournalError),
}

impl From<io::Error> for RestoreError {
    fn from(e: io::Error) -> Self {
        RestoreError::Io(e)
    }
}

impl From<JournalError> for RestoreError {
    fn from(e: JournalError) -> Self {
        RestoreError::Journal(e)
    }
}
