//! The hand-over: two phases, so that at every instant at most one copy can run and one is whole.
//!
//! ```text
//! source                                                destination
//! last set, manifest                ── Prepare ──►      staged, verified, durable, sealed
//!                                   ◄─ Prepared ─
//! journal freezing; freeze that outlives us (freezer)
//! journal restore-sent              ── Restore ──►      criu restore, held
//!                                   ◄─ Restored ─       journal restored
//! journal committing                (from here only forward)
//! kill the frozen process; journal killed
//!                                   ── Commit ──►       journal running, then release
//!                                   ◄─ Done ─
//! ```
//! Whatever fails before `committing` ends with the source running again, but only after the destination said
//! that nothing of its copy is left. Where it cannot be asked, the source lies still, and the error names the
//! command that decides. A process that holds file locks which the destination's kernel would see as held by the
//! source is killed first: its copy meanwhile are the sealed, durable images.

pub mod freezer;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use godwit_wire::fault;
use godwit_wire::journal::{Event, Facts, Journal};
use godwit_wire::quic::Identity;
use nix::unistd::Pid;

use crate::error::DumpError;
use crate::freeze::seize::Frozen;
use crate::link::{Decision, Link, LinkError, LinkOptions, RemoteSink, Restored};
use crate::options::{Afterwards, Destination, Options};
use crate::prepare::link::Target;
use crate::prepare::root::Root;
use crate::refusal::{Findings, Subject};
use crate::sys;
use freezer::Freezer;

/// How often a lost answer to `Commit` is asked for again, and how long in between.
const COMMIT_TRIES: u32 = 5;
/// Pause between two tries.
const COMMIT_PAUSE: Duration = Duration::from_millis(500);

/// How a hand-over ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandedOver {
    /// Pid at the destination, as its host sees it, if it was restored.
    pub restored_pid: Option<i32>,
    /// When it ran there, or ran on here.
    pub running_at: Option<Instant>,
}

/// Ends a dump whose images are whole: hands over, kills, stops or lets run on, as asked for.
///
/// `cgroup` is the process's cgroup v2 path, `has_locks` whether it holds file locks.
///
/// # Errors
/// See [`HandOver::restore`].
pub fn end(
    options: &Options,
    root: &Root,
    target: &Target,
    frozen: Frozen,
    cgroup: &str,
    has_locks: bool,
) -> Result<HandedOver, DumpError> {
    let run_on = |frozen: Frozen| -> Result<HandedOver, DumpError> {
        frozen.thaw()?;
        Ok(HandedOver { restored_pid: None, running_at: Some(Instant::now()) })
    };
    let Some(sink) = target.remote() else {
        return match options.afterwards {
            Afterwards::Run => run_on(frozen),
            Afterwards::Stop => {
                signal(root, libc::SIGSTOP)?;
                run_on(frozen)
            }
            Afterwards::Kill => {
                signal(root, libc::SIGKILL)?;
                drop(frozen);
                Ok(HandedOver::default())
            }
        };
    };
    match options.afterwards {
        Afterwards::Run => {
            target.close()?;
            return run_on(frozen);
        }
        Afterwards::Stop => {
            target.close()?;
            signal(root, libc::SIGSTOP)?;
            return run_on(frozen);
        }
        Afterwards::Kill => {}
    }
    let Destination::Remote { address, keys, .. } = &options.destination else { return run_on(frozen) };
    let hand_over = HandOver {
        cgroup: cgroup.to_owned(),
        root,
        sink,
        state_dir: options.state_dir.clone(),
        keys: keys.clone(),
        address: address.clone(),
        kill_first: has_locks && target.is_same_machine(),
    };
    if options.restore && options.no_kill_first && hand_over.kill_first {
        return Err(refuse_kill_first(root.pid));
    }
    let outcome = if options.restore { hand_over.restore() } else { hand_over.kill() };
    if !options.restore && outcome.is_ok() {
        target.close()?;
    }
    // Lifts our own stop: a source that was not killed runs on, or lies in the lasting freeze.
    drop(frozen);
    outcome
}

/// Says that the locks of a process need its death before its restore, which the user does not want.
pub fn refuse_kill_first(pid: Pid) -> DumpError {
    let mut findings = Findings::default();
    findings.refuse(
        Subject::Process(pid),
        "it holds file locks that the destination, on the same kernel, cannot take while it lies frozen here",
        "leave --no-kill-first out: it is then killed once its sealed images are the copy, and restored from them",
    );
    DumpError::from_findings(findings)
}

fn signal(root: &Root, signal: i32) -> Result<(), DumpError> {
    sys::pidfd::send_signal(root.pidfd.as_fd(), signal)
        .map_err(|errno| DumpError::sys(format!("process {}", root.pid), "sending it a signal", errno))
}

/// What the hand-over needs to know.
pub struct HandOver<'a> {
    /// Cgroup v2 path that it goes back to on undo.
    pub cgroup: String,
    /// The process.
    pub root: &'a Root,
    /// The session; its final set is prepared.
    pub sink: &'a RemoteSink,
    /// Where the journal is kept.
    pub state_dir: PathBuf,
    /// Directory of the keys that `session resolve` will need.
    pub keys: PathBuf,
    /// Address of the server, as the user gave it.
    pub address: String,
    /// Kill the source before the restore, for the sake of its file locks.
    pub kill_first: bool,
}

impl HandOver<'_> {
    /// Hands the process over to the page server, which restores it. The process must be stopped by us, and stay
    /// so until this returns.
    ///
    /// # Errors
    /// [`DumpError::NotRestored`] and all others: the process runs on once our stop is lifted;
    /// [`DumpError::Undecided`] and [`DumpError::LostAfterCommit`] as they say.
    pub fn restore(&self) -> Result<HandedOver, DumpError> {
        let mut held = self.freeze()?;
        if self.kill_first {
            return self.kill_then_restore(&mut held);
        }
        let restored = self.restore_beside(&mut held)?;
        held.commit_to_forward(self)?;
        held.kill(self)?;
        self.release(&mut held, &restored)
    }

    /// Kills the process once its sealed images are the copy: a dump that is not to be restored.
    ///
    /// # Errors
    /// As [`HandOver::restore`].
    pub fn kill(&self) -> Result<HandedOver, DumpError> {
        let mut held = self.freeze()?;
        held.commit_to_forward(self)?;
        held.kill(self)?;
        held.note(Event::Released, Facts::default())?;
        Ok(HandedOver::default())
    }

    /// Journal first, then the freeze that outlives us.
    fn freeze(&self) -> Result<Held, DumpError> {
        let id = self.session_id();
        let mut journal = Journal::create(&self.state_dir, &id)?;
        let freezer = Freezer::plan(self.root.pid, &id, &self.cgroup);
        journal.append(Event::Open, self.facts())?;
        point("source.before.freezing", &id)?;
        let hold = Facts { cgroup: Some(freezer.hold().to_record()), ..Facts::default() };
        journal.append(Event::Freezing, hold)?;
        let token = journal.current_token()?;
        let mut held = Held { journal, freezer, token };
        let frozen = point("source.after.freezing", &id).and_then(|()| Ok(held.freezer.freeze()?));
        match frozen {
            Ok(()) => Ok(held),
            Err(error) => Err(held.thaw_because(error)),
        }
    }

    fn facts(&self) -> Facts {
        Facts {
            pid: Some(self.root.pid.as_raw()),
            start_time: Some(self.root.start_time),
            boot_id: Some(self.root.boot_id.clone()),
            session: Some(self.sink.name().to_owned()),
            images_dir: Some(self.sink.opened().images_dir.clone()),
            peer: Some(self.address.clone()),
            work_dir: Some(self.keys.display().to_string()),
            ..Facts::default()
        }
    }

    fn session_id(&self) -> String {
        self.sink.session_id().to_string()
    }

    /// The ordinary order: the destination restores and holds while the source lies frozen.
    fn restore_beside(&self, held: &mut Held) -> Result<Restored, DumpError> {
        let id = self.session_id();
        if let Err(error) = point("source.before.restore-sent", &id) {
            return Err(held.thaw_because(error));
        }
        held.note(Event::RestoreSent, Facts::default())?;
        if let Err(error) = point("source.after.restore-sent", &id) {
            return Err(self.abort(held, error));
        }
        match self.sink.link().restore() {
            Ok(restored) => Ok(restored),
            Err(LinkError::RestoreFailed { reason, log_tail, .. }) => {
                Err(held.thaw_because(DumpError::NotRestored { why: reason, log: tail(&log_tail) }))
            }
            Err(error) => Err(self.abort(held, error.into())),
        }
    }

    /// Asks the destination to give its copy up; only its word lets the source run on.
    fn abort(&self, held: &mut Held, cause: DumpError) -> DumpError {
        let aborted = self.sink.link().abort("the source gives up").or_else(|_| self.abort_anew(held));
        match aborted {
            Ok(()) => held.thaw_because(cause),
            Err(unreachable) => DumpError::Undecided {
                session: self.session_id(),
                why: format!(
                    "{cause}; the page server could not be asked to give its copy up ({unreachable})"
                ),
            },
        }
    }

    /// The same over a new connection.
    fn abort_anew(&self, held: &Held) -> Result<(), LinkError> {
        let link = Link::connect(&self.address, &Identity::client(&self.keys), LinkOptions::default())?;
        let id = self.sink.session_id();
        link.resolve(id, held.token, Decision::Source, false, Event::RestoreSent.word()).map(drop)
    }

    /// The order for file locks: the source dies first, its sealed images are the copy.
    fn kill_then_restore(&self, held: &mut Held) -> Result<HandedOver, DumpError> {
        held.commit_to_forward(self)?;
        held.kill(self)?;
        let restored = self.sink.link().restore().map_err(|error| DumpError::LostAfterCommit {
            session: self.session_id(),
            why: error.to_string(),
        })?;
        self.release(held, &restored)
    }

    /// The source is dead: the destination lets its copy run. The request can be repeated.
    fn release(&self, held: &mut Held, restored: &Restored) -> Result<HandedOver, DumpError> {
        let mut outcome = self.sink.link().commit(held.token).map(|done| done.pid);
        for _ in 1..COMMIT_TRIES {
            match &outcome {
                Ok(_) | Err(LinkError::ReleaseFailed { .. }) => break,
                Err(error) => tracing::warn!(%error, "asking the page server again to let the process run"),
            }
            std::thread::sleep(COMMIT_PAUSE);
            outcome = self.commit_anew(held);
        }
        match outcome {
            Ok(pid) => {
                let running_at = Some(Instant::now());
                point("source.before.released", &self.session_id())?;
                held.note(Event::Released, Facts::default())?;
                point("source.after.released", &self.session_id())?;
                let pid = if pid == 0 { restored.pid } else { pid };
                Ok(HandedOver { restored_pid: Some(pid as i32), running_at })
            }
            Err(LinkError::ReleaseFailed { reason, log_tail, .. }) => Err(DumpError::LostAfterCommit {
                session: self.session_id(),
                why: format!("{reason}{}", tail(&log_tail)),
            }),
            Err(error) => Err(DumpError::Undecided {
                session: self.session_id(),
                why: format!(
                    "the source is dead, and the page server did not say that its copy runs ({error})"
                ),
            }),
        }
    }

    fn commit_anew(&self, held: &Held) -> Result<u32, LinkError> {
        let link = Link::connect(&self.address, &Identity::client(&self.keys), LinkOptions::default())?;
        let id = self.sink.session_id();
        let proof = Event::Killed.word();
        link.resolve(id, held.token, Decision::Destination, false, proof).map(|resolved| resolved.pid)
    }
}

/// The frozen source, with its journal.
struct Held {
    journal: Journal,
    freezer: Freezer,
    token: u64,
}

impl Held {
    fn note(&mut self, event: Event, facts: Facts) -> Result<(), DumpError> {
        self.journal.append(event, facts)?;
        Ok(())
    }

    /// Lets the source run on, and hands the cause back. Our own stop is still to be lifted by the caller.
    fn thaw_because(&mut self, cause: DumpError) -> DumpError {
        if let Err(error) = self.freezer.thaw() {
            return DumpError::Undecided {
                session: self.journal.path().display().to_string(),
                why: format!("{cause}; and the freeze could not be undone ({error})"),
            };
        }
        let facts = Facts { text: Some(cause.to_string()), ..Facts::default() };
        if let Err(error) = self.journal.append(Event::Thawed, facts) {
            tracing::warn!(%error, "the process runs on, but its journal does not say so");
        }
        cause
    }

    /// The last look at the token, then the word that cannot be taken back.
    fn commit_to_forward(&mut self, of: &HandOver<'_>) -> Result<(), DumpError> {
        let id = of.session_id();
        if let Err(error) = point("source.before.committing", &id) {
            return Err(of.abort(self, error));
        }
        let now = self.journal.current_token()?;
        if now != self.token {
            return Err(DumpError::Undecided {
                session: id,
                why: format!("an operator decides (token {now}, ours is {})", self.token),
            });
        }
        self.note(Event::Committing, Facts::default())?;
        point("source.after.committing", &id)
    }

    fn kill(&mut self, of: &HandOver<'_>) -> Result<(), DumpError> {
        let id = of.session_id();
        self.freezer.kill().map_err(|error| DumpError::Undecided {
            session: id.clone(),
            why: format!("the frozen source could not be killed ({error})"),
        })?;
        point("source.before.killed", &id)?;
        self.note(Event::Killed, Facts::default())?;
        point("source.after.killed", &id)
    }
}

/// A place where tests make the source fail.
fn point(name: &str, session: &str) -> Result<(), DumpError> {
    if !fault::any_armed() {
        return Ok(());
    }
    fault::point(name)
        .map_err(|injected| DumpError::Undecided { session: session.to_owned(), why: injected.to_string() })
}

fn tail(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!("\n{log}") }
}
