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
//! kill the frozen tree whole; journal killed
//!                                   ── Commit ──►       journal running, then release
//!                                   ◄─ Done ─
//! ```
//! Whatever fails before `committing` ends with the source running again, but only after the destination said
//! that nothing of its copy is left. Where it cannot be asked, the source lies still, and the error names the
//! command that decides. A tree that holds file locks or named pipes which the destination's kernel would see as held by
//! the source is killed first: its copy meanwhile are the sealed, durable images.
//!
//! It is always the whole tree that is frozen, killed or let run: `member` is one process of it, `freezer` the freeze
//! of all.

pub mod freezer;
pub mod member;

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use godwit_wire::control::SessionResolved;
use godwit_wire::fault;
use godwit_wire::journal::{self, Event, Facts, Journal, Summary};
use godwit_wire::quic::Identity;
use nix::unistd::Pid;

use crate::error::DumpError;
use crate::freeze::tree::FrozenTree;
use crate::interrupt;
use crate::link::{Decision, Link, LinkError, LinkOptions, RemoteSink, Restored};
use crate::options::{Afterwards, Destination, Options};
use crate::prepare::link::Target;
use crate::prepare::root::Root;
use crate::refusal::{Findings, Subject};
use freezer::Freezer;
pub use member::Member;

/// How often a lost answer to `Commit` is asked for again, and how long in between.
const COMMIT_TRIES: u32 = 5;
/// Pause between two tries to reach the page server anew.
const PAUSE: Duration = Duration::from_millis(500);

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
/// `tree` is what `frozen` holds: the root first, parents before children, living processes only, since a zombie goes
/// with its parent. `cgroup` is the cgroup v2 path of all of them, `is_bound` whether one of them
/// holds what the copy, on the same kernel, could not have beside it: file locks, named pipes.
///
/// # Errors
/// See [`HandOver::restore`].
pub fn end(
    options: &Options,
    root: &Root,
    tree: Vec<Member>,
    target: &Target,
    frozen: FrozenTree,
    cgroup: &str,
    is_bound: bool,
) -> Result<HandedOver, DumpError> {
    if tree.first().is_none_or(|first| first.pid != root.pid) {
        return Err(DumpError::Died { pid: root.pid });
    }
    // Behind the last safe point of the dump: from here on what was asked for is done.
    let hold = |what: &str| {
        interrupt::hold(format!("the images are whole, and {} is being {what}, as asked for", named(&tree)))
    };
    let run_on = |frozen: FrozenTree| -> Result<HandedOver, DumpError> {
        frozen.thaw()?;
        Ok(HandedOver { restored_pid: None, running_at: Some(Instant::now()) })
    };
    let Some(sink) = target.remote() else {
        return match options.afterwards {
            Afterwards::Run => run_on(frozen),
            Afterwards::Stop => {
                let _held = hold("stopped")?;
                member::stop_each(&tree)?;
                interrupt::settle();
                run_on(frozen)
            }
            Afterwards::Kill => {
                let _held = hold("killed")?;
                member::kill_each(&tree)?;
                interrupt::settle();
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
            let _held = hold("stopped")?;
            target.close()?;
            member::stop_each(&tree)?;
            interrupt::settle();
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
        kill_first: is_bound && target.is_same_machine(),
    };
    if options.restore && options.no_kill_first && hand_over.kill_first {
        return Err(refuse_kill_first(root.pid));
    }
    let work = || if options.restore { hand_over.restore(tree) } else { hand_over.kill(tree) };
    let outcome = panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| hand_over.after_fault());
    if !options.restore
        && outcome.is_ok()
        && let Err(error) = target.close()
    {
        // The images were acknowledged as durable and the tree is dead: the dump is done.
        tracing::warn!(%error, "the page server did not confirm the end of the session");
    }
    // Lifts our own stop: a source that was not killed runs on, or lies in the lasting freeze.
    drop(frozen);
    outcome
}

/// Says that the locks or named pipes of a process need its death before its restore, which the user does not want.
pub fn refuse_kill_first(pid: Pid) -> DumpError {
    let mut findings = Findings::default();
    findings.refuse(
        Subject::Process(pid),
        "it holds file locks or named pipes that the destination, on the same kernel, cannot take while it lies frozen here",
        "leave --no-kill-first out: it is then killed once its sealed images are the copy, and restored from them",
    );
    DumpError::from_findings(findings)
}

/// The tree, for a sentence.
fn named(tree: &[Member]) -> String {
    match tree {
        [] => "no process".to_owned(),
        [root] => format!("process {}", root.pid),
        [root, others @ ..] => format!("the tree of process {} ({} processes)", root.pid, 1 + others.len()),
    }
}

/// What the hand-over needs to know.
pub struct HandOver<'a> {
    /// Cgroup v2 path that all of it goes back to on undo.
    pub cgroup: String,
    /// The root of the tree.
    pub root: &'a Root,
    /// The session; its final set is prepared.
    pub sink: &'a RemoteSink,
    /// Where the journal is kept.
    pub state_dir: PathBuf,
    /// Directory of the keys that `session resolve` will need.
    pub keys: PathBuf,
    /// Address of the server, as the user gave it.
    pub address: String,
    /// Kill the source before the restore, for the sake of its file locks and named pipes.
    pub kill_first: bool,
}

/// Text of a first record: the images are kept, and nothing was or will be asked to restore them.
const KEPT: &str = "the images are to be kept, not restored";

/// Whether the journal is that of a dump which only kills the tree once its images are whole.
pub fn is_kept(journal: &Journal) -> bool {
    let first = journal.records().first().and_then(|record| record.facts.as_ref()?.text.as_deref());
    first == Some(KEPT)
}

/// How the destination answers when it is to let its copy run.
enum Answer {
    /// It runs, as this process.
    Runs(u32),
    /// It does not run, and will not: the images are the copy.
    Lost(String),
    /// Not known; to be asked again.
    Unknown(String),
}

impl HandOver<'_> {
    /// Hands the tree over to the page server, which restores it. Its processes (the root first, parents before
    /// children) must be stopped by us, and stay so until this returns.
    ///
    /// # Errors
    /// [`DumpError::NotRestored`] and all others: the tree runs on once our stop is lifted;
    /// [`DumpError::Undecided`] and [`DumpError::LostAfterCommit`] as they say.
    pub fn restore(&self, tree: Vec<Member>) -> Result<HandedOver, DumpError> {
        let mut held = self.freeze(tree, None)?;
        if self.kill_first {
            return self.kill_then_restore(&mut held);
        }
        let restored = self.restore_beside(&mut held)?;
        held.commit_to_forward(self, true)?;
        // What the kernel still writes back for it at its end, to a file server say, must not come after what the copy
        // writes there; on one kernel both have the same cache.
        let death = if self.sink.opened().same_boot { Death::Sealed } else { Death::Over };
        held.kill(self, death)?;
        let first = self.commit(&held);
        let released = self.release(&mut held, first, restored.pid);
        held.bury();
        released
    }

    /// Kills the tree once its sealed images are the copy: a dump that is not to be restored.
    ///
    /// # Errors
    /// As [`HandOver::restore`].
    pub fn kill(&self, tree: Vec<Member>) -> Result<HandedOver, DumpError> {
        let mut held = self.freeze(tree, Some(KEPT))?;
        held.commit_to_forward(self, false)?;
        held.kill(self, Death::Over)?;
        held.note_end();
        Ok(HandedOver::default())
    }

    /// A fault of our own. Before the destination was asked it was undone where it was passed; later the journals
    /// decide. Only a journal that says that nothing holds the tree lets it be said to run.
    fn after_fault(&self) -> Result<HandedOver, DumpError> {
        let own = "godwit itself is at fault (its words stand above)";
        Err(match journal::read(&self.state_dir, &self.session_id()) {
            Ok(records) => match Summary::of(&records).state {
                None | Some(Event::Open | Event::Thawed) => DumpError::OwnFault { pid: self.root.pid },
                Some(state) => self.undecided(format!("{own}, and its journal says {}", state.word())),
            },
            Err(error) => {
                self.undecided(format!("{own}, and its journal cannot be read ({})", chain(&error)))
            }
        })
    }

    /// Journal first, then the freeze that outlives us.
    fn freeze(&self, tree: Vec<Member>, text: Option<&str>) -> Result<Held, DumpError> {
        let id = self.session_id();
        let freezer = Freezer::plan(self.root.pid, tree, &id, &self.cgroup);
        let mut journal = Journal::create(&self.state_dir, &id)?;
        let text = text.map(str::to_owned);
        journal.append(Event::Open, Facts { text, ..self.facts() })?;
        let token = journal.current_token()?;
        point("source.before.freezing", &id)?;
        // Whoever ends us from here on leaves a tree that lies still.
        let signals = interrupt::hold(format!(
            "the hand-over of session {id} has begun; it is given up if that is still possible, and brought to its \
             end otherwise; if this godwit is killed, `godwit session resolve {id}` (with the same --state-dir) decides"
        ))?;
        journal.append(Event::Freezing, freezer.facts())?;
        let mut held = Held { journal, freezer, token, id, _signals: signals };
        let frozen = point("source.after.freezing", &held.id).and_then(|()| Ok(held.freezer.freeze()?));
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
            // Whoever resolves it may stand in another directory.
            work_dir: Some(
                std::path::absolute(&self.keys).unwrap_or(self.keys.clone()).display().to_string(),
            ),
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
        if let Err(interrupted) = interrupt::check() {
            return Err(held.thaw_because(interrupted.into()));
        }
        if let Err(error) = held.note(Event::RestoreSent, Facts::default()) {
            return Err(held.thaw_because(error));
        }
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
        let mut aborted = self.sink.link().abort("the source gives up").map_err(|error| chain(&error));
        for pause in [Duration::ZERO, PAUSE, PAUSE] {
            if aborted.is_ok() {
                break;
            }
            // A server that is just taking the session up answers a moment later.
            std::thread::sleep(pause);
            aborted = self.abort_anew(held);
        }
        match aborted {
            Ok(()) => held.thaw_because(cause),
            Err(why) => {
                self.undecided(format!("{}; the page server did not give its copy up ({why})", chain(&cause)))
            }
        }
    }

    /// The same over a new connection. An answer is not yet consent: the state in it is.
    fn abort_anew(&self, held: &Held) -> Result<(), String> {
        let proof = Event::RestoreSent.word();
        let answer = self.resolve_anew(held, Decision::Source, proof).map_err(|error| chain(&error))?;
        match answer.state == Event::Aborted.word() {
            true => Ok(()),
            false => Err(format!("its copy is {}: {}", answer.state, answer.text)),
        }
    }

    fn resolve_anew(
        &self,
        held: &Held,
        decision: Decision,
        proof: &str,
    ) -> Result<SessionResolved, LinkError> {
        let link = Link::connect(&self.address, &Identity::client(&self.keys), LinkOptions::default())?;
        link.resolve(self.sink.session_id(), held.token, decision, false, proof)
    }

    /// The order for file locks and named pipes: the source dies first, its sealed images are the copy.
    fn kill_then_restore(&self, held: &mut Held) -> Result<HandedOver, DumpError> {
        held.commit_to_forward(self, false)?;
        // Its locks are given back only by its end.
        held.kill(self, Death::Over)?;
        match self.sink.link().restore_the_dead() {
            Ok(restored) => {
                let first = self.commit(held);
                self.release(held, first, restored.pid)
            }
            Err(LinkError::RestoreFailed { reason, log_tail, .. }) => {
                Err(self.lost(format!("{reason}{}", tail(&log_tail))))
            }
            // The restore may go on there, so nobody may be told to restore by hand.
            Err(error) => self.release(held, Answer::Unknown(chain(&error)), 0),
        }
    }

    /// The source is dead: the destination lets its copy run. The request can be repeated.
    fn release(&self, held: &mut Held, first: Answer, restored_pid: u32) -> Result<HandedOver, DumpError> {
        let mut answer = first;
        for _ in 1..COMMIT_TRIES {
            let Answer::Unknown(why) = &answer else { break };
            tracing::warn!(why, "asking the page server again to let the process run");
            std::thread::sleep(PAUSE);
            answer = self.commit_anew(held);
        }
        match answer {
            Answer::Runs(pid) => {
                let running_at = Some(Instant::now());
                point("source.before.released", &held.id)?;
                held.note_end();
                point("source.after.released", &held.id)?;
                let pid = if pid == 0 { restored_pid } else { pid };
                Ok(HandedOver { restored_pid: Some(pid as i32), running_at })
            }
            Answer::Lost(why) => Err(self.lost(why)),
            Answer::Unknown(why) => Err(self.undecided(format!(
                "the source is dead, and the page server did not say that its copy runs ({why})"
            ))),
        }
    }

    fn commit(&self, held: &Held) -> Answer {
        match self.sink.link().commit(held.token) {
            Ok(done) => Answer::Runs(done.pid),
            Err(LinkError::ReleaseFailed { reason, log_tail, .. }) => {
                Answer::Lost(format!("{reason}{}", tail(&log_tail)))
            }
            Err(error) => Answer::Unknown(chain(&error)),
        }
    }

    fn commit_anew(&self, held: &Held) -> Answer {
        let answer = match self.resolve_anew(held, Decision::Destination, Event::Killed.word()) {
            Ok(answer) => answer,
            Err(error) => return Answer::Unknown(chain(&error)),
        };
        let told = format!("its copy is {}: {}", answer.state, answer.text);
        match state_of(&answer.state) {
            Some(Event::Running | Event::Done) => Answer::Runs(answer.pid),
            Some(Event::Failed | Event::Aborted) => Answer::Lost(told),
            _ => Answer::Unknown(told),
        }
    }

    fn undecided(&self, why: String) -> DumpError {
        interrupt::settle();
        DumpError::Undecided { session: self.session_id(), why }
    }

    fn lost(&self, why: String) -> DumpError {
        DumpError::LostAfterCommit { session: self.session_id(), why }
    }
}

/// The state that a page server's word stands for.
pub fn state_of(word: &str) -> Option<Event> {
    let all = [
        Event::Open,
        Event::Prepared,
        Event::Restoring,
        Event::Restored,
        Event::Committing,
        Event::Running,
        Event::Done,
        Event::Aborted,
        Event::Failed,
        Event::Released,
    ];
    all.into_iter().find(|event| event.word() == word)
}

/// The frozen source, with its journal.
struct Held {
    journal: Journal,
    freezer: Freezer,
    token: u64,
    id: String,
    /// While it is there no signal ends us.
    _signals: interrupt::Held,
}

impl Drop for Held {
    /// A fault of our own, passed through here: what can still be undone without a question is.
    fn drop(&mut self) {
        let is_ours = [Event::RestoreSent, Event::Committing, Event::Thawed]
            .iter()
            .all(|event| !self.journal.has(*event));
        if std::thread::panicking() && is_ours {
            let cause = DumpError::Usage("godwit itself is at fault".to_owned());
            if let DumpError::Undecided { why, .. } = self.thaw_because(cause) {
                tracing::warn!("{why}: run `godwit session resolve {}`", self.id);
            }
        }
    }
}

impl Held {
    fn note(&mut self, event: Event, facts: Facts) -> Result<(), DumpError> {
        self.journal.append(event, facts)?;
        Ok(())
    }

    /// All is done; a journal that cannot say so is no reason to call it failed: `session resolve` finds it done.
    fn note_end(&mut self) {
        if let Err(error) = self.note(Event::Released, Facts::default()) {
            tracing::warn!(%error, "the hand-over is done, but its journal does not say so");
        }
    }

    /// Lets the source run on, and hands the cause back. Our own stop is still to be lifted by the caller.
    fn thaw_because(&mut self, cause: DumpError) -> DumpError {
        if let Err(error) = self.freezer.thaw() {
            interrupt::settle();
            return DumpError::Undecided {
                session: self.id.clone(),
                why: format!("{cause}; and the freeze could not be undone ({error})"),
            };
        }
        let facts = Facts { text: Some(cause.to_string()), ..Facts::default() };
        if let Err(error) = self.journal.append(Event::Thawed, facts) {
            tracing::warn!(%error, "the process runs on, but its journal does not say so");
        }
        cause
    }

    /// The last look at the token, then the word that cannot be taken back. `was_asked` tells whether the
    /// destination was asked to restore, so that it must give its copy up before the source may run on.
    fn commit_to_forward(&mut self, of: &HandOver<'_>, was_asked: bool) -> Result<(), DumpError> {
        let now = match point("source.before.committing", &self.id)
            .and_then(|()| Ok(interrupt::check()?))
            .and_then(|()| Ok(self.journal.current_token()?))
        {
            Ok(token) => token,
            Err(error) => return Err(self.give_up(of, error, was_asked)),
        };
        if now != self.token {
            return Err(of.undecided(format!("an operator decides (token {now}, ours is {})", self.token)));
        }
        if let Err(error) = self.note(Event::Committing, Facts::default()) {
            // Whoever reads the journal next goes by what is in the file, so that is what counts here too.
            let is_there = self.journal.current_token().map(|_| self.journal.has(Event::Committing));
            return Err(match is_there {
                Ok(false) => self.give_up(of, error, was_asked),
                _ => of.undecided(chain(&error)),
            });
        }
        point("source.after.committing", &self.id).map_err(|error| of.undecided(chain(&error)))
    }

    fn give_up(&mut self, of: &HandOver<'_>, cause: DumpError, was_asked: bool) -> DumpError {
        if was_asked { of.abort(self, cause) } else { self.thaw_because(cause) }
    }

    /// Kills the source. What only its end gives back is given back when it is [`Death::Over`].
    fn kill(&mut self, of: &HandOver<'_>, death: Death) -> Result<(), DumpError> {
        let undecided = |error: String| of.undecided(format!("the frozen source was given up: {error}"));
        let killed = match death {
            Death::Sealed => self.freezer.send_kill(),
            Death::Over => self.freezer.kill(),
        };
        killed.map_err(|error| undecided(chain(&error)))?;
        interrupt::settle();
        point("source.before.killed", &self.id).map_err(|error| undecided(chain(&error)))?;
        if let Err(error) = self.note(Event::Killed, Facts::default()) {
            // The journal says `committing`, and a source that is gone counts as killed: only forward.
            tracing::warn!(%error, "the source is dead, but its journal does not say so");
        }
        point("source.after.killed", &self.id).map_err(|error| undecided(chain(&error)))
    }

    /// Waits until the kernel has taken the killed source apart: whoever started it shall find it gone.
    fn bury(&self) {
        if let Err(error) = self.freezer.wait_gone() {
            tracing::warn!("the source was killed and runs no more, but {}", chain(&error));
        }
    }
}

/// How dead the source must be before the destination may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    /// No instruction of its program runs any more; the kernel may still be freeing its memory.
    Sealed,
    /// Nothing of it is left, so that everything it held is free.
    Over,
}

/// A place where tests make the source fail.
fn point(name: &'static str, session: &str) -> Result<(), DumpError> {
    if !fault::any_armed() {
        return Ok(());
    }
    fault::point(name)
        .map_err(|injected| DumpError::sys(format!("session {session}"), name, io::Error::other(injected)))
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

fn tail(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!("\n{log}") }
}
