//! A freeze that outlives the dumper.
//!
//! A ptrace freeze ends when the tracer dies. Between the word that the destination holds the tree and its
//! last word, the source must lie still whatever happens to us: so the tree is moved into a cgroup v2 of
//! its own, which is frozen (`cgroup.freeze`, works without any controller), thawed and moved back on undo,
//! and killed whole by `cgroup.kill` (Documentation/admin-guide/cgroup-v2.rst).
//!
//! The cgroup hierarchy is reached through a detached mount, so nothing shows in any mount table and
//! nothing is left when the dumper dies. Where cgroup v2 cannot be had at all, every task gets a SIGSTOP
//! instead; a foreign SIGCONT would then wake the source, and the caller says so.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, openat};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{Pid, UnlinkatFlags, unlinkat};

use crate::sys;

/// How long the kernel may take to freeze, thaw or kill a cgroup. A busy task took 7 to 32 ms.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);

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
}

/// What holds the tree still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// A frozen cgroup v2.
    Cgroup {
        /// Its path below the root of the hierarchy, without a leading slash.
        path: String,
        /// The cgroup that the process was in before, without a leading slash; empty for the root.
        origin: String,
    },
    /// SIGSTOP, sent by us.
    Stopped,
}

impl Hold {
    /// The form that a journal record keeps.
    pub fn to_record(&self) -> String {
        match self {
            Hold::Cgroup { path, origin } => format!("cgroup:{path}:{origin}"),
            Hold::Stopped => "sigstop".to_owned(),
        }
    }

    /// Reads what [`Hold::to_record`] wrote; `None` for anything else.
    pub fn from_record(text: &str) -> Option<Hold> {
        if text == "sigstop" {
            return Some(Hold::Stopped);
        }
        let (path, origin) = text.strip_prefix("cgroup:")?.split_once(':')?;
        let plain = |part: &str| part.split('/').all(|name| name != "..") && !part.starts_with('/');
        (plain(path) && plain(origin) && path.starts_with(PREFIX))
            .then(|| Hold::Cgroup { path: path.to_owned(), origin: origin.to_owned() })
    }
}

/// Names of our cgroups begin with this, so that leftovers are known.
const PREFIX: &str = "godwit-";

/// The tree's lasting freeze, by process.
#[derive(Debug)]
pub struct Freezer {
    pid: Pid,
    hold: Hold,
    root: Option<OwnedFd>,
}

impl Freezer {
    /// Says how the process would be held, without touching it: what the journal records first.
    ///
    /// `name` becomes part of the cgroup's name. `origin` is the process's cgroup v2 path as
    /// `/proc/PID/cgroup` shows it.
    pub fn plan(pid: Pid, name: &str, origin: &str) -> Freezer {
        match sys::mount::cgroup2() {
            Ok(root) => {
                let path = format!("{PREFIX}{name}");
                let origin = origin.trim_start_matches('/').to_owned();
                Freezer { pid, hold: Hold::Cgroup { path, origin }, root: Some(root) }
            }
            Err(error) => {
                tracing::warn!(%error, %pid, "no cgroup v2: the source is held by SIGSTOP, \
                     a foreign SIGCONT would wake it");
                Freezer { pid, hold: Hold::Stopped, root: None }
            }
        }
    }

    /// Takes over a hold that a dead dumper left, as its journal tells it.
    ///
    /// # Errors
    /// When cgroup v2 cannot be reached now although the hold is a cgroup.
    pub fn adopt(pid: Pid, hold: Hold) -> io::Result<Freezer> {
        let root = match &hold {
            Hold::Cgroup { .. } => Some(sys::mount::cgroup2()?),
            Hold::Stopped => None,
        };
        Ok(Freezer { pid, hold, root })
    }

    /// How the process is held.
    pub fn hold(&self) -> &Hold {
        &self.hold
    }

    /// Freezes the process so that it stays frozen when we die. The process may be in a ptrace stop.
    ///
    /// # Errors
    /// When the cgroup cannot be made, joined or frozen; what was done is undone.
    pub fn freeze(&self) -> Result<(), FreezerError> {
        let done = match &self.hold {
            Hold::Cgroup { path, .. } => self.freeze_cgroup(path),
            Hold::Stopped => self.signal(Signal::SIGSTOP),
        };
        if done.is_err() && self.thaw().is_err() {
            tracing::error!(pid = %self.pid, hold = ?self.hold, "the half-made freeze could not be undone");
        }
        done
    }

    fn freeze_cgroup(&self, path: &str) -> Result<(), FreezerError> {
        let root = self.root_fd();
        match mkdirat(root, path, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(errno) => return Err(self.failed("making it", errno.into())),
        }
        self.write(&format!("{path}/cgroup.procs"), &self.pid.to_string(), "moving into it")?;
        self.write(&format!("{path}/cgroup.freeze"), "1", "freezing it")?;
        self.wait_for(path, "frozen 1", "frozen")
    }

    /// Lets the process run again and removes the hold. A hold that is gone is no error.
    ///
    /// # Errors
    /// When the cgroup cannot be thawed; the process then stays in it, which does not harm it.
    pub fn thaw(&self) -> Result<(), FreezerError> {
        let Hold::Cgroup { path, origin } = &self.hold else {
            return self.signal(Signal::SIGCONT);
        };
        if !self.exists(path) {
            return Ok(());
        }
        self.write(&format!("{path}/cgroup.freeze"), "0", "thawing it")?;
        self.wait_for(path, "frozen 0", "thawed")?;
        let back =
            if origin.is_empty() { "cgroup.procs".to_owned() } else { format!("{origin}/cgroup.procs") };
        if let Err(error) = self.write(&back, &self.pid.to_string(), "moving back") {
            tracing::warn!(%error, pid = %self.pid, origin, "the process runs, but stays in cgroup {path}");
        }
        self.remove(path);
        Ok(())
    }

    /// Kills the held process, whole, and waits until nothing of it is left.
    ///
    /// # Errors
    /// When the kill is refused or does not end.
    pub fn kill(&self) -> Result<(), FreezerError> {
        match &self.hold {
            Hold::Cgroup { path, .. } => {
                if !self.exists(path) {
                    return Ok(());
                }
                self.write(&format!("{path}/cgroup.kill"), "1", "killing it")?;
                self.wait_for(path, "populated 0", "empty")?;
                self.remove(path);
                Ok(())
            }
            Hold::Stopped => self.signal(Signal::SIGKILL),
        }
    }

    /// Whether the hold still holds: the process is there and frozen.
    pub fn is_held(&self) -> bool {
        match &self.hold {
            Hold::Cgroup { path, .. } => self
                .read(&format!("{path}/cgroup.events"))
                .is_ok_and(|events| events.contains("frozen 1") && events.contains("populated 1")),
            Hold::Stopped => kill(self.pid, None).is_ok(),
        }
    }

    fn root_fd(&self) -> BorrowedFd<'_> {
        match &self.root {
            Some(root) => root.as_fd(),
            None => unreachable!("a cgroup hold is made with its root"),
        }
    }

    fn exists(&self, path: &str) -> bool {
        nix::sys::stat::fstatat(self.root_fd(), path, nix::fcntl::AtFlags::empty()).is_ok()
    }

    fn wait_for(&self, path: &str, event: &str, state: &'static str) -> Result<(), FreezerError> {
        let begun = Instant::now();
        let events = format!("{path}/cgroup.events");
        loop {
            let text = self.read(&events).map_err(|source| self.failed("reading cgroup.events", source))?;
            if text.lines().any(|line| line == event) {
                return Ok(());
            }
            if begun.elapsed() > SETTLE_LIMIT {
                return Err(FreezerError::Slow { cgroup: path.to_owned(), state, limit: SETTLE_LIMIT });
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Removes the empty cgroup; the kernel may need a moment after the last task has left.
    fn remove(&self, path: &str) {
        for _ in 0..50 {
            match unlinkat(self.root_fd(), path, UnlinkatFlags::RemoveDir) {
                Ok(()) | Err(nix::errno::Errno::ENOENT) => return,
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

    fn failed(&self, what: &'static str, source: io::Error) -> FreezerError {
        let cgroup = match &self.hold {
            Hold::Cgroup { path, .. } => path.clone(),
            Hold::Stopped => String::new(),
        };
        FreezerError::Cgroup { cgroup, what, pid: self.pid, source }
    }

    fn signal(&self, signal: Signal) -> Result<(), FreezerError> {
        kill(self.pid, signal).map_err(|errno| FreezerError::Signal {
            signal,
            pid: self.pid,
            source: errno.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_foreign_text_does_not() {
        let hold = Hold::Cgroup { path: "godwit-17-99".into(), origin: "user.slice/a".into() };
        assert_eq!(Hold::from_record(&hold.to_record()), Some(hold));
        assert_eq!(Hold::from_record("sigstop"), Some(Hold::Stopped));
        for bad in ["", "cgroup:", "cgroup:/etc:x", "cgroup:godwit-1/../x:y", "cgroup:other:y"] {
            assert_eq!(Hold::from_record(bad), None, "{bad}");
        }
    }
}
