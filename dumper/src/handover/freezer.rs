//! A freeze that outlives the dumper.
//!
//! A ptrace freeze ends when the tracer dies. Between the word that the destination holds the tree and its
//! last word, the source must lie still whatever happens to us: so all processes of the tree are moved into one
//! cgroup v2 of its own, which is frozen (`cgroup.freeze`, works without any controller), thawed and moved back on
//! undo, and killed whole by `cgroup.kill` (Documentation/admin-guide/cgroup-v2.rst). It lies inside the cgroup
//! that the tree was in, where that can have children.
//!
//! The cgroup hierarchy is reached through a detached mount, so nothing shows in any mount table and
//! nothing is left when the dumper dies. Where cgroup v2 cannot be had at all, every process that is not stopped
//! gets a SIGSTOP instead; a foreign SIGCONT would then wake the source, and the caller says so.
//!
//! The cgroup is its own list: whatever is in it is thawed, moved back or killed, also what the tree has forked since.
//! The journal lists the processes as well, by pid and start time: for those that a crash left outside, and since
//! nothing else tells whom a SIGSTOP of ours holds.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use godwit_wire::fault;
use godwit_wire::journal::{self, Facts};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{Pid, UnlinkatFlags, unlinkat};

use super::chain;
use super::member::{self, Member};
use crate::freeze::seize::{self, Frozen};
use crate::prepare::limits;
use crate::procfs::{ProcfsError, cgroup as membership, host, tree};
use crate::sys;

/// How long the kernel may take to freeze or thaw a cgroup. A busy task took 7 to 32 ms.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);
/// How long a killed process may take to end: the kernel frees all its memory first.
const END_LIMIT: Duration = Duration::from_secs(120);
/// How long a process that only SIGSTOP holds may take to come under our own stop, before it is killed without.
const SEIZE_LIMIT: Duration = Duration::from_secs(2);
/// How often what is left in a cgroup that is being given up is moved out: what runs there may fork meanwhile.
const MOVE_TRIES: u32 = 20;
/// Pause between two looks at what the kernel is doing: a bound on what waiting adds to the downtime.
const POLL_INTERVAL: Duration = Duration::from_micros(200);

/// Why the durable freeze could not be made or undone.
#[derive(Debug, thiserror::Error)]
pub enum FreezerError {
    /// A cgroup file refused.
    #[error("cgroup {cgroup}: {what} failed for process {pid}")]
    Cgroup {
        /// Name below the hierarchy's root.
        cgroup: String,
        /// What was done.
        what: &'static str,
        /// The process.
        pid: Pid,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The cgroup did not reach the state asked for.
    #[error("cgroup {cgroup} is not {state} after {} s; look at its cgroup.events", limit.as_secs())]
    Slow {
        /// Name below the hierarchy's root.
        cgroup: String,
        /// `frozen`, `thawed` or `empty`.
        state: &'static str,
        /// The time it was given.
        limit: Duration,
    },
    /// A signal could not be sent.
    #[error("cannot send {signal} to process {pid}")]
    Signal {
        /// Which signal.
        signal: Signal,
        /// The process.
        pid: Pid,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A killed process did not end.
    #[error("process {pid} was killed and has not ended after {} s; look at /proc/{pid}/stack", limit.as_secs())]
    Undying {
        /// The process.
        pid: Pid,
        /// The time it was given.
        limit: Duration,
    },
    /// The cgroup of the journal cannot be seen from here although the process lives.
    #[error(
        "process {pid} lies in cgroup {cgroup}, which cannot be reached from here: run this where it was dumped \
         (another cgroup namespace?)"
    )]
    OutOfSight {
        /// Name below the hierarchy's root, as the dumper saw it.
        cgroup: String,
        /// The process.
        pid: Pid,
    },
    /// The journal's word on how the process is held means nothing to this program.
    #[error("the journal says that process {pid} is held as {record:?}, which this godwit does not know")]
    UnknownHold {
        /// The process.
        pid: Pid,
        /// The word.
        record: String,
    },
    /// Whether the process is still there could not be told.
    #[error("whether the frozen process is still there cannot be told")]
    Unclear(#[from] ProcfsError),
}

/// What holds the tree still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// A frozen cgroup v2 of its own.
    Cgroup {
        /// Its name, without slashes.
        name: String,
        /// The cgroup that the process was in before, without a leading slash; empty for the root.
        origin: String,
        /// Whether it lies in `origin`, and not in the root of the hierarchy. Then `origin` does not fall empty,
        /// which a service manager takes for the end of the service, and its limits go on.
        nested: bool,
    },
    /// SIGSTOP to each process, sent by us but to those that were stopped before; those stay so.
    Stopped,
}

impl Hold {
    /// The form that a journal record keeps.
    pub fn to_record(&self) -> String {
        match self {
            Hold::Cgroup { name, origin, nested: false } => format!("cgroup:{name}:{origin}"),
            Hold::Cgroup { name, origin, nested: true } => format!("cgroup-in:{name}:{origin}"),
            Hold::Stopped => "sigstop-each".to_owned(),
        }
    }

    /// Reads what [`Hold::to_record`] wrote, now or before there were trees; `None` for anything else.
    pub fn from_record(text: &str) -> Option<Hold> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        match (kind, rest) {
            ("sigstop-each" | SIGSTOP_ONE | STOPPED_ONE, "") => return Some(Hold::Stopped),
            ("cgroup" | "cgroup-in", _) => {}
            _ => return None,
        }
        let (name, origin) = rest.split_once(':')?;
        let fits = name.starts_with(PREFIX) && !name.contains('/') && is_below_root(origin);
        let (name, origin) = (name.to_owned(), origin.to_owned());
        fits.then_some(Hold::Cgroup { name, origin, nested: kind == "cgroup-in" })
    }

    /// Path of the cgroup below the root of the hierarchy, if it is one.
    fn path(&self) -> Option<String> {
        match self {
            Hold::Cgroup { name, origin, nested: true } => Some(format!("{origin}/{name}")),
            Hold::Cgroup { name, nested: false, .. } => Some(name.clone()),
            Hold::Stopped => None,
        }
    }
}

/// The hold of a single process, in a journal that lists no members: a SIGSTOP of ours, and one that was stopped before.
const SIGSTOP_ONE: &str = "sigstop";
const STOPPED_ONE: &str = "stopped";

/// Whether a cgroup path stays below the root that we see. That of a process outside of our cgroup namespace
/// begins with `/..`.
fn is_below_root(path: &str) -> bool {
    !path.starts_with('/') && path.split('/').all(|name| name != "..")
}

/// Names of our cgroups begin with this, so that leftovers are known.
const PREFIX: &str = "godwit-";

/// The tree's lasting freeze.
#[derive(Debug)]
pub struct Freezer {
    /// The root of the tree, for words: it may be gone while others live.
    root: Pid,
    /// Parents before children. Of those that a journal told of, the ones that are still there.
    members: Vec<Member>,
    hold: Hold,
    /// The root of the cgroup hierarchy, where the hold is a cgroup.
    hierarchy: Option<OwnedFd>,
    /// Whether it was taken over from a journal: nothing but the hold keeps the tree still then.
    is_found: bool,
}

impl Freezer {
    /// Says how the tree would be held, without touching it: what the journal records first.
    ///
    /// `tree` has its root first, and parents before children; `name` becomes part of the cgroup's name, and `origin`
    /// is the cgroup v2 path of all of them, as `/proc/PID/cgroup` shows it.
    pub fn plan(root: Pid, tree: Vec<Member>, name: &str, origin: &str) -> Freezer {
        let origin = origin.trim_start_matches('/').to_owned();
        let why = match sys::mount::cgroup2() {
            Ok(hierarchy) if is_below_root(&origin) => {
                let name = format!("{PREFIX}{name}");
                let hold = Hold::Cgroup { name, origin: origin.clone(), nested: false };
                let hierarchy = Some(hierarchy);
                let mut freezer = Freezer { root, members: tree, hold, hierarchy, is_found: false };
                // Only a plain cgroup takes children that are plain; the root has no such file.
                let takes_children = !origin.is_empty()
                    && freezer
                        .read(&format!("{origin}/cgroup.type"))
                        .is_ok_and(|kind| kind.trim() == "domain");
                if let Hold::Cgroup { nested, .. } = &mut freezer.hold {
                    *nested = takes_children;
                }
                return freezer;
            }
            Ok(_) => format!("its cgroup /{origin} is outside of this cgroup namespace"),
            Err(errno) => format!("cgroup v2 cannot be mounted ({errno})"),
        };
        tracing::warn!(pid = %root, "{why}: the source is held by SIGSTOP, a foreign SIGCONT would wake it");
        Freezer { root, members: tree, hold: Hold::Stopped, hierarchy: None, is_found: false }
    }

    /// Takes over the hold that a journal tells of. `None` where there is nothing to hold: the journal is of an
    /// earlier boot of this machine or of another one, or names no process.
    ///
    /// A journal that was cut off before its tree was held gives a hold that undoes nothing.
    ///
    /// # Errors
    /// When it cannot be told whether a process is still there, or the cgroup cannot be reached.
    pub fn of_journal(facts: &Facts) -> Result<Option<Freezer>, FreezerError> {
        let (Some(pid), Some(start_time)) = (facts.pid, facts.start_time) else { return Ok(None) };
        if facts.boot_id.as_deref() != Some(host::boot_id()?.as_str()) {
            return Ok(None);
        }
        let root = Pid::from_raw(pid);
        let Some(record) = facts.cgroup.as_deref() else { return Ok(None) };
        let unknown = || FreezerError::UnknownHold { pid: root, record: record.to_owned() };
        let hold = Hold::from_record(record).ok_or_else(unknown)?;
        let alone = [journal::Member { pid, start_time, was_stopped: record == STOPPED_ONE }];
        let noted = if facts.members.is_empty() { &alone[..] } else { &facts.members };
        // A descriptor for each, in a program that raised no limit yet.
        let _ = limits::raise();
        let found: Result<Vec<_>, _> = noted.iter().map(Member::find).collect();
        let members = found?.into_iter().flatten().collect();
        let mut freezer = Freezer { root, members, hold, hierarchy: None, is_found: true };
        if freezer.hold.path().is_some() {
            let mounted = sys::mount::cgroup2().map_err(io::Error::from);
            freezer.hierarchy = Some(mounted.map_err(|source| freezer.failed("mounting cgroup v2", source))?);
        }
        Ok(Some(freezer))
    }

    /// How the tree is held.
    pub fn hold(&self) -> &Hold {
        &self.hold
    }

    /// What the journal must know before anything is held: how, and who.
    pub fn facts(&self) -> Facts {
        Facts {
            cgroup: Some(self.hold.to_record()),
            members: self.members.iter().map(Member::to_record).collect(),
            ..Facts::default()
        }
    }

    /// Freezes the tree so that it stays frozen when we die. Its processes may be in a ptrace stop.
    ///
    /// # Errors
    /// When the cgroup cannot be made, joined or frozen, or a process has ended; [`Freezer::thaw`] undoes what was done.
    pub fn freeze(&self) -> Result<(), FreezerError> {
        match self.hold.path() {
            Some(path) => self.freeze_cgroup(&path),
            None => {
                member::stop_each(&self.members)?;
                self.point("mid.freezer.signalled")
            }
        }
    }

    fn freeze_cgroup(&self, path: &str) -> Result<(), FreezerError> {
        match mkdirat(self.root_fd(), path, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(self.failed("making it", errno.into())),
        }
        self.point("mid.freezer.made")?;
        for member in &self.members {
            self.move_to(&format!("{path}/cgroup.procs"), member.pid, "moving into it")?;
            self.point("mid.freezer.moved")?;
        }
        self.write(&format!("{path}/cgroup.freeze"), "1", "freezing it")?;
        self.point("mid.freezer.freezing")?;
        self.wait_for(path, "frozen 1", "frozen", SETTLE_LIMIT)?;
        self.point("mid.freezer.frozen")
    }

    /// Lets the tree run again and removes the hold. A hold that is gone is no error.
    ///
    /// # Errors
    /// When the cgroup cannot be thawed, or not be reached from here: the tree then lies still.
    pub fn thaw(&self) -> Result<(), FreezerError> {
        let Some(path) = self.hold.path() else { return member::continue_each(&self.members) };
        if !self.exists(&path)? {
            return self.check_out_of_sight(&path);
        }
        self.write(&format!("{path}/cgroup.freeze"), "0", "thawing it")?;
        self.wait_for(&path, "frozen 0", "thawed", SETTLE_LIMIT)?;
        self.point("mid.freezer.thawed")?;
        self.move_back(&path);
        self.point("mid.freezer.moved-back")?;
        self.remove(&path);
        Ok(())
    }

    /// Moves whatever is in the cgroup to where the tree was before: those in it, not the numbers that were recorded,
    /// since it may have forked there. What cannot be moved runs where it is.
    fn move_back(&self, path: &str) {
        let origin = match &self.hold {
            Hold::Cgroup { origin, .. } if !origin.is_empty() => format!("{origin}/cgroup.procs"),
            _ => "cgroup.procs".to_owned(),
        };
        for _ in 0..MOVE_TRIES {
            let members = self.members_of(path).unwrap_or_default();
            let stay: Vec<_> = members.iter().filter_map(|pid| self.move_one_back(&origin, *pid)).collect();
            for error in &stay {
                tracing::warn!("a process runs, but stays in cgroup {path}: {}", chain(error));
            }
            if members.is_empty() || !stay.is_empty() {
                return;
            }
        }
        tracing::warn!("processes of cgroup {path} fork faster than they can be moved back: they run there");
    }

    /// Why a process stays; one that has ended meanwhile does not.
    fn move_one_back(&self, origin: &str, pid: Pid) -> Option<FreezerError> {
        match self.move_to(origin, pid, "moving back") {
            Ok(()) => None,
            Err(FreezerError::Cgroup { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => None,
            Err(error) => Some(error),
        }
    }

    /// Kills the held tree, whole, and waits until nothing of it is left. It dies also where the hold is gone.
    ///
    /// # Errors
    /// When the kill is refused, or a process does not end: the tree may not be called dead.
    pub fn kill(&mut self) -> Result<(), FreezerError> {
        self.send_kill()?;
        self.wait_gone()
    }

    /// Sends SIGKILL to all that is held, and to each process itself, which need not be where it was put. From here on
    /// no thread of it runs another instruction of its program: a fatal signal is pending for each before the call
    /// returns (kernel/signal.c, complete_signal), and a thread that has one never goes back to user mode. Nor does
    /// one run after the death of another and before its own: what is not dead yet lies in the frozen cgroup or in a
    /// ptrace stop. What is left is the kernel's: to free its memory takes 50 ms a GiB and more.
    ///
    /// # Errors
    /// When a kill is refused.
    pub fn send_kill(&mut self) -> Result<(), FreezerError> {
        let cgroup = self.held_path()?;
        // Held until all have their signal.
        let _stopped = match self.is_found {
            true => self.stop_again(cgroup.as_deref())?,
            false => Vec::new(),
        };
        let killed = cgroup.map_or(Ok(()), |path| self.kill_cgroup(&path));
        killed.and(member::kill_each(&self.members))
    }

    fn kill_cgroup(&self, path: &str) -> Result<(), FreezerError> {
        match self.write(&format!("{path}/cgroup.kill"), "1", "killing it") {
            // Before Linux 5.14 there is no such file.
            Err(FreezerError::Cgroup { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                self.kill_members(path)
            }
            other => other,
        }
    }

    /// Stops what no cgroup holds: SIGSTOP alone would not keep a process from running when its parent dies (see
    /// [`member::kill_each`]), and one that was let run meanwhile may have forked. Those are found and taken in: a
    /// stopped process makes no new ones. What cannot be stopped is killed all the same.
    fn stop_again(&mut self, cgroup: Option<&str>) -> Result<Vec<Frozen>, FreezerError> {
        let mut held = Vec::new();
        if let Some(path) = cgroup {
            let frozen = self
                .write(&format!("{path}/cgroup.freeze"), "1", "freezing it")
                .and_then(|()| self.wait_for(path, "frozen 1", "frozen", SETTLE_LIMIT));
            if let Err(error) = frozen {
                tracing::warn!("killed without being frozen again: {}", chain(&error));
            }
            held = self.members_of(path)?;
        }
        let (mut stopped, mut next) = (Vec::new(), 0);
        while let Some(member) = self.members.get(next) {
            let pid = member.pid;
            next += 1;
            if !member.is_alive()? {
                continue;
            }
            if !held.contains(&pid) {
                match seize::seize_within(pid, SEIZE_LIMIT) {
                    Ok(frozen) => stopped.push(frozen),
                    Err(error) => {
                        tracing::warn!(%pid, "killed without being stopped first: {}", chain(&error));
                    }
                }
            }
            for child in children(pid)? {
                let is_known = self.members.iter().any(|member| member.pid == child);
                if !is_known && let Some(child) = Member::pin(child, false)? {
                    self.members.push(child);
                }
            }
        }
        Ok(stopped)
    }

    /// Waits until nothing is left of what was killed, and removes its cgroup.
    ///
    /// # Errors
    /// When a process does not end.
    pub fn wait_gone(&self) -> Result<(), FreezerError> {
        self.wait_for_end()?;
        if let Some(path) = self.held_path()? {
            self.wait_for(&path, "populated 0", "empty", END_LIMIT)?;
            self.remove(&path);
        }
        Ok(())
    }

    /// The cgroup of the hold, while it is there.
    fn held_path(&self) -> Result<Option<String>, FreezerError> {
        match self.hold.path() {
            Some(path) if self.exists(&path)? => Ok(Some(path)),
            _ => Ok(None),
        }
    }

    /// Frozen processes make no new ones, so one look is enough.
    fn kill_members(&self, path: &str) -> Result<(), FreezerError> {
        for pid in self.members_of(path)? {
            match kill(pid, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => {
                    return Err(FreezerError::Signal { signal: Signal::SIGKILL, pid, source: errno.into() });
                }
            }
        }
        Ok(())
    }

    /// The processes in a cgroup, those of the cgroups below it not counted.
    fn members_of(&self, path: &str) -> Result<Vec<Pid>, FreezerError> {
        let text = self.read(&format!("{path}/cgroup.procs"));
        let text = text.map_err(|source| self.failed("listing it", source))?;
        // 0 is a process that this pid namespace does not see.
        let pids = text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0);
        Ok(pids.map(Pid::from_raw).collect())
    }

    /// Whether anything of the tree lives: the very processes, not later ones of their numbers, and whatever is in the
    /// cgroup. A root that is gone is not the end of the others.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn is_alive(&self) -> Result<bool, FreezerError> {
        if let Some(path) = self.held_path()? {
            let events = self.read(&format!("{path}/cgroup.events"));
            let events = events.map_err(|source| self.failed("reading cgroup.events", source))?;
            if events.lines().any(|line| line == "populated 1") {
                return Ok(true);
            }
        }
        Ok(!self.alive()?.is_empty())
    }

    /// The processes of the tree that live, as far as they were noted.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn alive(&self) -> Result<Vec<Pid>, FreezerError> {
        let mut alive = Vec::new();
        for member in &self.members {
            if member.is_alive()? {
                alive.push(member.pid);
            }
        }
        Ok(alive)
    }

    fn wait_for_end(&self) -> Result<(), FreezerError> {
        let begun = Instant::now();
        for member in &self.members {
            while member.is_alive()? {
                if begun.elapsed() > END_LIMIT {
                    return Err(FreezerError::Undying { pid: member.pid, limit: END_LIMIT });
                }
                std::thread::sleep(POLL_INTERVAL);
            }
        }
        Ok(())
    }

    /// Removes a cgroup that a tree ended in; says whether there was one.
    pub fn remove_empty(&self) -> bool {
        self.hold.path().is_some_and(|path| {
            self.hierarchy.is_some()
                && unlinkat(self.root_fd(), path.as_str(), UnlinkatFlags::RemoveDir).is_ok()
        })
    }

    /// The cgroup is not there: right if it was never made or is removed, but not if only we cannot see it.
    fn check_out_of_sight(&self, cgroup: &str) -> Result<(), FreezerError> {
        let Hold::Cgroup { name, .. } = &self.hold else { return Ok(()) };
        for &Member { pid, .. } in &self.members {
            let memberships = match membership::read(pid) {
                Err(error) if error.is_gone() => continue,
                other => other?,
            };
            let is_in_it = |path: &[u8]| path.rsplit(|byte| *byte == b'/').next() == Some(name.as_bytes());
            if memberships.iter().any(|member| member.hierarchy == 0 && is_in_it(&member.path)) {
                return Err(FreezerError::OutOfSight { cgroup: cgroup.to_owned(), pid });
            }
        }
        Ok(())
    }

    fn root_fd(&self) -> BorrowedFd<'_> {
        match &self.hierarchy {
            Some(hierarchy) => hierarchy.as_fd(),
            None => unreachable!("a cgroup hold is made with its root"),
        }
    }

    fn exists(&self, path: &str) -> Result<bool, FreezerError> {
        match nix::sys::stat::fstatat(self.root_fd(), path, nix::fcntl::AtFlags::empty()) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(self.failed("looking at it", errno.into())),
        }
    }

    fn wait_for(
        &self,
        path: &str,
        event: &str,
        state: &'static str,
        limit: Duration,
    ) -> Result<(), FreezerError> {
        let begun = Instant::now();
        let events = format!("{path}/cgroup.events");
        loop {
            let text = self.read(&events).map_err(|source| self.failed("reading cgroup.events", source))?;
            if text.lines().any(|line| line == event) {
                return Ok(());
            }
            if begun.elapsed() > limit {
                return Err(FreezerError::Slow { cgroup: path.to_owned(), state, limit });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Removes the empty cgroup; the kernel may need a moment after the last task has left.
    fn remove(&self, path: &str) {
        for _ in 0..50 {
            match unlinkat(self.root_fd(), path, UnlinkatFlags::RemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => return,
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        tracing::warn!(cgroup = path, "the empty cgroup could not be removed");
    }

    fn open(&self, path: &str, flags: OFlag) -> io::Result<std::fs::File> {
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        Ok(std::fs::File::from(openat(self.root_fd(), path, flags, Mode::empty())?))
    }

    fn read(&self, path: &str) -> io::Result<String> {
        io::read_to_string(self.open(path, OFlag::O_RDONLY)?)
    }

    fn write(&self, path: &str, text: &str, what: &'static str) -> Result<(), FreezerError> {
        self.open(path, OFlag::O_WRONLY)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|source| self.failed(what, source))
    }

    fn move_to(&self, procs: &str, pid: Pid, what: &'static str) -> Result<(), FreezerError> {
        self.open(procs, OFlag::O_WRONLY)
            .and_then(|mut file| file.write_all(pid.to_string().as_bytes()))
            .map_err(|source| self.failed_for(pid, what, source))
    }

    /// A place where tests make it fail.
    fn point(&self, name: &'static str) -> Result<(), FreezerError> {
        fault::point(name).map_err(|injected| self.failed(name, injected.into()))
    }

    fn failed(&self, what: &'static str, source: io::Error) -> FreezerError {
        self.failed_for(self.root, what, source)
    }

    fn failed_for(&self, pid: Pid, what: &'static str, source: io::Error) -> FreezerError {
        let cgroup = self.hold.path().unwrap_or_default();
        FreezerError::Cgroup { cgroup, what, pid, source }
    }
}

/// The children of all threads of a process, zombies among them.
fn children(pid: Pid) -> Result<Vec<Pid>, ProcfsError> {
    let mut children = Vec::new();
    let tids = match tree::threads(pid) {
        Err(error) if error.is_gone() => return Ok(children),
        tids => tids?,
    };
    for tid in tids {
        match tree::children(pid, tid) {
            Err(error) if error.is_gone() => {}
            found => children.extend(found?),
        }
    }
    Ok(children)
}

#[cfg(test)]
#[path = "freezer_tests.rs"]
mod tests;
