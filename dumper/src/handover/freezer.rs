//! A freeze that outlives the dumper.
//!
//! A ptrace freeze ends when the tracer dies. Between the word that the destination holds the tree and its
//! last word, the source must lie still whatever happens to us: so the tree is moved into a cgroup v2 of
//! its own, which is frozen (`cgroup.freeze`, works without any controller), thawed and moved back on undo,
//! and killed whole by `cgroup.kill` (Documentation/admin-guide/cgroup-v2.rst). It lies inside the cgroup
//! that the tree was in, where that can have children.
//!
//! The cgroup hierarchy is reached through a detached mount, so nothing shows in any mount table and
//! nothing is left when the dumper dies. Where cgroup v2 cannot be had at all, every task gets a SIGSTOP
//! instead; a foreign SIGCONT would then wake the source, and the caller says so.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use godwit_wire::fault;
use godwit_wire::journal::Facts;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{Pid, UnlinkatFlags, unlinkat};

use super::chain;
use crate::procfs::{ProcfsError, cgroup as membership, host, stat, tree};
use crate::sys;

/// How long the kernel may take to freeze or thaw a cgroup. A busy task took 7 to 32 ms.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);
/// How long a killed process may take to end: the kernel frees all its memory first.
const END_LIMIT: Duration = Duration::from_secs(120);
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
    /// SIGSTOP, sent by us.
    Stopped,
    /// The process was stopped before we came, and stays so.
    AlreadyStopped,
}

impl Hold {
    /// The form that a journal record keeps.
    pub fn to_record(&self) -> String {
        match self {
            Hold::Cgroup { name, origin, nested: false } => format!("cgroup:{name}:{origin}"),
            Hold::Cgroup { name, origin, nested: true } => format!("cgroup-in:{name}:{origin}"),
            Hold::Stopped => "sigstop".to_owned(),
            Hold::AlreadyStopped => "stopped".to_owned(),
        }
    }

    /// Reads what [`Hold::to_record`] wrote; `None` for anything else.
    pub fn from_record(text: &str) -> Option<Hold> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        match (kind, rest) {
            ("sigstop", "") => return Some(Hold::Stopped),
            ("stopped", "") => return Some(Hold::AlreadyStopped),
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
            Hold::Stopped | Hold::AlreadyStopped => None,
        }
    }
}

/// Whether a cgroup path stays below the root that we see. That of a process outside of our cgroup namespace
/// begins with `/..`.
fn is_below_root(path: &str) -> bool {
    !path.starts_with('/') && path.split('/').all(|name| name != "..")
}

/// Names of our cgroups begin with this, so that leftovers are known.
const PREFIX: &str = "godwit-";

/// The tree's lasting freeze, by process.
#[derive(Debug)]
pub struct Freezer {
    pid: Pid,
    start_time: u64,
    /// `None` once the process is gone and its number may be another's.
    pidfd: Option<OwnedFd>,
    hold: Hold,
    root: Option<OwnedFd>,
}

impl Freezer {
    /// Says how the process would be held, without touching it: what the journal records first.
    ///
    /// `pidfd` and `start_time` (clock ticks since boot) pin the process, `name` becomes part of the cgroup's name,
    /// `origin` is the process's cgroup v2 path as `/proc/PID/cgroup` shows it, and `was_stopped` tells whether a
    /// stop signal had stopped it before we came.
    pub fn plan(
        pid: Pid,
        start_time: u64,
        pidfd: OwnedFd,
        name: &str,
        origin: &str,
        was_stopped: bool,
    ) -> Freezer {
        let origin = origin.trim_start_matches('/').to_owned();
        let why = match sys::mount::cgroup2() {
            Ok(root) if is_below_root(&origin) => {
                let name = format!("{PREFIX}{name}");
                let hold = Hold::Cgroup { name, origin: origin.clone(), nested: false };
                let mut freezer = Freezer { pid, start_time, pidfd: Some(pidfd), hold, root: Some(root) };
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
        tracing::warn!(%pid, "{why}: the source is held by SIGSTOP, a foreign SIGCONT would wake it");
        let hold = if was_stopped { Hold::AlreadyStopped } else { Hold::Stopped };
        Freezer { pid, start_time, pidfd: Some(pidfd), hold, root: None }
    }

    /// Takes over the hold that a journal tells of. `None` where there is nothing to hold: the journal is of an
    /// earlier boot of this machine or of another one, or names no process.
    ///
    /// A journal that was cut off before its process was held gives a hold that undoes nothing.
    ///
    /// # Errors
    /// When it cannot be told whether the process is still there, or its cgroup cannot be reached.
    pub fn of_journal(facts: &Facts) -> Result<Option<Freezer>, FreezerError> {
        let (Some(pid), Some(start_time)) = (facts.pid, facts.start_time) else { return Ok(None) };
        if facts.boot_id.as_deref() != Some(host::boot_id()?.as_str()) {
            return Ok(None);
        }
        let pid = Pid::from_raw(pid);
        let Some(record) = facts.cgroup.as_deref() else { return Ok(None) };
        let unknown = || FreezerError::UnknownHold { pid, record: record.to_owned() };
        let hold = Hold::from_record(record).ok_or_else(unknown)?;
        let pidfd = match sys::pidfd::open(pid) {
            Ok(pidfd) => Some(pidfd),
            // EINVAL, ENOENT: the number is a thread's by now.
            Err(Errno::ESRCH | Errno::EINVAL | Errno::ENOENT) => None,
            Err(errno) => {
                return Err(FreezerError::Unclear(ProcfsError::from_io(
                    Path::new(&format!("/proc/{pid}")),
                    errno.into(),
                )));
            }
        };
        // The descriptor may mean a later process; the start time, read behind it, tells.
        let pidfd = match stat::read(pid) {
            Ok(stat) => pidfd.filter(|_| stat.start_time == start_time),
            Err(error) if error.is_gone() => None,
            Err(error) => return Err(error.into()),
        };
        let mut freezer = Freezer { pid, start_time, pidfd, hold, root: None };
        if freezer.hold.path().is_some() {
            let mounted = sys::mount::cgroup2().map_err(io::Error::from);
            freezer.root = Some(mounted.map_err(|source| freezer.failed("mounting cgroup v2", source))?);
        }
        Ok(Some(freezer))
    }

    /// How the process is held.
    pub fn hold(&self) -> &Hold {
        &self.hold
    }

    /// Freezes the process so that it stays frozen when we die. The process may be in a ptrace stop.
    ///
    /// # Errors
    /// When the cgroup cannot be made, joined or frozen; [`Freezer::thaw`] undoes what was done.
    pub fn freeze(&self) -> Result<(), FreezerError> {
        match self.hold.path() {
            Some(path) => self.freeze_cgroup(&path),
            None if self.hold == Hold::Stopped => self.signal(Signal::SIGSTOP),
            None => Ok(()),
        }
    }

    fn freeze_cgroup(&self, path: &str) -> Result<(), FreezerError> {
        match mkdirat(self.root_fd(), path, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(self.failed("making it", errno.into())),
        }
        self.point("mid.freezer.made")?;
        self.write(&format!("{path}/cgroup.procs"), &self.pid.to_string(), "moving into it")?;
        self.point("mid.freezer.moved")?;
        self.write(&format!("{path}/cgroup.freeze"), "1", "freezing it")?;
        self.point("mid.freezer.freezing")?;
        self.wait_for(path, "frozen 1", "frozen", SETTLE_LIMIT)?;
        self.point("mid.freezer.frozen")
    }

    /// Lets the process run again and removes the hold. A hold that is gone is no error.
    ///
    /// # Errors
    /// When the cgroup cannot be thawed, or not be reached from here: the process then lies still.
    pub fn thaw(&self) -> Result<(), FreezerError> {
        let Some(path) = self.hold.path() else {
            // A stop that was not ours stays.
            return if self.hold == Hold::Stopped { self.signal(Signal::SIGCONT) } else { Ok(()) };
        };
        if !self.exists(&path)? {
            return self.check_out_of_sight(path);
        }
        self.write(&format!("{path}/cgroup.freeze"), "0", "thawing it")?;
        self.wait_for(&path, "frozen 0", "thawed", SETTLE_LIMIT)?;
        self.point("mid.freezer.thawed")?;
        self.move_back(&path);
        self.point("mid.freezer.moved-back")?;
        self.remove(&path);
        Ok(())
    }

    /// Moves whatever is in the cgroup to where the process was before. What cannot be moved runs where it is.
    fn move_back(&self, path: &str) {
        let origin = match &self.hold {
            Hold::Cgroup { origin, .. } if !origin.is_empty() => format!("{origin}/cgroup.procs"),
            _ => "cgroup.procs".to_owned(),
        };
        // Those in it, not the number that was recorded: that may be another process's by now.
        let members = self.read(&format!("{path}/cgroup.procs")).unwrap_or_default();
        for pid in members.lines() {
            if let Err(error) = self.write(&origin, pid, "moving back") {
                tracing::warn!(pid, "the process runs, but stays in cgroup {path}: {}", chain(&error));
            }
        }
    }

    /// Kills the held process, whole, and waits until nothing of it is left. It dies also where the hold is gone.
    ///
    /// # Errors
    /// When the kill is refused, or the process does not end: it may not be called dead.
    pub fn kill(&self) -> Result<(), FreezerError> {
        self.send_kill()?;
        self.wait_gone()
    }

    /// Sends SIGKILL to all that is held, and to the process itself, which need not be where it was put. From here on
    /// no thread of it runs another instruction of its program: a fatal signal is pending for each before the call
    /// returns (kernel/signal.c, complete_signal), and a thread that has one never goes back to user mode. What is
    /// left is the kernel's: to free its memory takes 50 ms a GiB and more.
    ///
    /// # Errors
    /// When the kill is refused.
    pub fn send_kill(&self) -> Result<(), FreezerError> {
        if let Some(path) = self.held_path()? {
            match self.write(&format!("{path}/cgroup.kill"), "1", "killing it") {
                // Before Linux 5.14 there is no such file.
                Err(FreezerError::Cgroup { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    self.kill_members(&path)?;
                }
                other => other?,
            }
        }
        self.signal(Signal::SIGKILL)
    }

    /// Waits until nothing is left of what was killed, and removes its cgroup.
    ///
    /// # Errors
    /// When it does not end.
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
        let members = self.read(&format!("{path}/cgroup.procs"));
        for pid in members.map_err(|source| self.failed("listing it", source))?.lines() {
            let Ok(pid) = pid.parse().map(Pid::from_raw) else { continue };
            match kill(pid, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => {
                    return Err(FreezerError::Signal { signal: Signal::SIGKILL, pid, source: errno.into() });
                }
            }
        }
        Ok(())
    }

    /// Whether anything of the process lives: the very process, not a later one of its number.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn is_alive(&self) -> Result<bool, FreezerError> {
        if let Some(path) = self.hold.path()
            && self.root.is_some()
            && self.exists(&path)?
        {
            let events = self.read(&format!("{path}/cgroup.events"));
            let events = events.map_err(|source| self.failed("reading cgroup.events", source))?;
            if events.lines().any(|line| line == "populated 1") {
                return Ok(true);
            }
        }
        Ok(self.pidfd.is_some() && self.has_living_thread()?)
    }

    /// The threads of a process that a tracer has not let go stay as zombies, so the number alone tells nothing.
    fn has_living_thread(&self) -> Result<bool, ProcfsError> {
        let tids = match tree::threads(self.pid) {
            Err(error) if error.is_gone() => return Ok(false),
            other => other?,
        };
        for tid in tids {
            match stat::read_thread(self.pid, tid) {
                Ok(stat) if stat.is_zombie() => {}
                Ok(stat) if tid == self.pid && stat.start_time != self.start_time => return Ok(false),
                Ok(_) => return Ok(true),
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    fn wait_for_end(&self) -> Result<(), FreezerError> {
        let begun = Instant::now();
        while self.pidfd.is_some() && self.has_living_thread()? {
            if begun.elapsed() > END_LIMIT {
                return Err(FreezerError::Undying { pid: self.pid, limit: END_LIMIT });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Removes a cgroup that a process ended in; says whether there was one.
    pub fn remove_empty(&self) -> bool {
        self.hold.path().is_some_and(|path| {
            self.root.is_some() && unlinkat(self.root_fd(), path.as_str(), UnlinkatFlags::RemoveDir).is_ok()
        })
    }

    /// The cgroup is not there: right if it was never made or is removed, but not if only we cannot see it.
    fn check_out_of_sight(&self, cgroup: String) -> Result<(), FreezerError> {
        let Hold::Cgroup { name, .. } = &self.hold else { return Ok(()) };
        if self.pidfd.is_none() {
            return Ok(());
        }
        let memberships = match membership::read(self.pid) {
            Err(error) if error.is_gone() => return Ok(()),
            other => other?,
        };
        let is_in_it = |path: &[u8]| path.rsplit(|byte| *byte == b'/').next() == Some(name.as_bytes());
        match memberships.iter().any(|member| member.hierarchy == 0 && is_in_it(&member.path)) {
            true => Err(FreezerError::OutOfSight { cgroup, pid: self.pid }),
            false => Ok(()),
        }
    }

    fn root_fd(&self) -> BorrowedFd<'_> {
        match &self.root {
            Some(root) => root.as_fd(),
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

    /// A place where tests make it fail.
    fn point(&self, name: &'static str) -> Result<(), FreezerError> {
        fault::point(name).map_err(|injected| self.failed(name, injected.into()))
    }

    fn failed(&self, what: &'static str, source: io::Error) -> FreezerError {
        let cgroup = self.hold.path().unwrap_or_default();
        FreezerError::Cgroup { cgroup, what, pid: self.pid, source }
    }

    /// Sends a signal to the process, and to no later one of its number; one that is gone is no error.
    fn signal(&self, signal: Signal) -> Result<(), FreezerError> {
        let Some(pidfd) = &self.pidfd else { return Ok(()) };
        match sys::pidfd::send_signal(pidfd.as_fd(), signal as i32) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(FreezerError::Signal { signal, pid: self.pid, source: errno.into() }),
        }
    }
}

#[cfg(test)]
#[path = "freezer_tests.rs"]
mod tests;
