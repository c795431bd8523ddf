//! Processes, as /proc tells them (`man 5 proc`), and how they are ended for sure.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use godwit_wire::journal::Member;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use crate::sys;

/// A process that cannot be mistaken for a later one of the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Pid, as this program sees it.
    pub pid: i32,
    /// Start time in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub start_time: u64,
}

impl Identity {
    /// Who this pid is now.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is no such process.
    pub fn of(pid: i32) -> io::Result<Self> {
        Ok(Self { pid, start_time: stat(pid)?.start_time })
    }

    /// The form that a journal keeps.
    pub(super) fn to_record(self) -> Member {
        Member { pid: self.pid, start_time: self.start_time, was_stopped: false }
    }

    /// Whether the process is there and has not ended; a zombie has.
    pub fn is_alive(&self) -> bool {
        stat(self.pid)
            .is_ok_and(|stat| stat.start_time == self.start_time && !matches!(stat.state, 'Z' | 'X'))
    }

    /// Whether its pid is still its own; a zombie's is.
    pub(super) fn is_there(&self) -> bool {
        stat(self.pid).is_ok_and(|stat| stat.start_time == self.start_time)
    }

    /// Kills it (SIGKILL) and waits until it has ended. An init of a pid namespace ends only when all processes in
    /// it have. A process that is gone already is no error.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if it has not ended within the limit, and what the kernel answers.
    pub fn kill(&self, limit: Duration) -> io::Result<()> {
        kill_all(&[*self], limit)
    }

    /// A descriptor of it, or nothing if it is gone.
    fn pin(&self) -> io::Result<Option<OwnedFd>> {
        let pidfd = match sys::pidfd_open(self.pid) {
            // EINVAL, ENOENT: the number is a thread's by now.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::EINVAL | libc::ENOENT)) => {
                return Ok(None);
            }
            other => other?,
        };
        // The descriptor may mean a later process; the start time, read behind it, tells.
        let is_later = stat(self.pid).is_ok_and(|stat| stat.start_time != self.start_time);
        Ok(Some(pidfd).filter(|_| !is_later))
    }

    fn send_kill(&self) -> io::Result<()> {
        let Some(pidfd) = self.pin()? else { return Ok(()) };
        match sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }

    fn wait_for_end(&self, deadline: Instant) -> io::Result<()> {
        let Some(pidfd) = self.pin()? else { return Ok(()) };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) if left.is_zero() => return Err(io::ErrorKind::TimedOut.into()),
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl From<&Member> for Identity {
    fn from(member: &Member) -> Identity {
        Identity { pid: member.pid, start_time: member.start_time }
    }
}

/// Sends SIGKILL to all of them, the last of the list first, and only then waits until they have ended: with parents
/// before children, no parent acts on the end of a child.
///
/// # Errors
/// As [`Identity::kill`]; the others were killed all the same.
pub(super) fn kill_all(processes: &[Identity], limit: Duration) -> io::Result<()> {
    let deadline = Instant::now() + limit;
    let sent = processes.iter().rev().map(Identity::send_kill).fold(Ok(()), Result::and);
    processes.iter().map(|process| process.wait_for_end(deadline)).fold(sent, Result::and)
}

struct Stat {
    state: char,
    start_time: u64,
}

fn stat(pid: i32) -> io::Result<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let parsed = || {
        // The name in parentheses may hold anything, also parentheses.
        let rest = &text[text.rfind(')')? + 1..];
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        // Field 22; the state is field 3.
        Some(Stat { state, start_time: fields.nth(18)?.parse().ok()? })
    };
    parsed()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat is malformed")))
}

/// Whether a pid or thread id is taken in this pid namespace.
pub(super) fn is_taken(id: u32) -> bool {
    Path::new("/proc").join(id.to_string()).exists()
}

/// Inode of the pid namespace that a process lives in.
pub(super) fn pid_namespace(pid: i32) -> io::Result<u64> {
    Ok(std::fs::metadata(format!("/proc/{pid}/ns/pid"))?.ino())
}

/// `/proc/sys/kernel/random/boot_id`.
pub(super) fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// All processes below one, nearest first. Those that end meanwhile are left out.
pub(super) fn descendants(of: i32) -> Vec<i32> {
    let mut found = vec![of];
    let mut next = 0;
    while next < found.len() {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", found[next])).into_iter().flatten().flatten();
        for task in tasks {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
        next += 1;
    }
    found.remove(0);
    found
}

/// The pid that a process has in its own, innermost pid namespace.
pub(super) fn innermost_pid(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    ids.split_ascii_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id() as i32;
        let identity = Identity::of(pid).unwrap();
        assert!(identity.is_alive());
        assert!(descendants(std::process::id() as i32).contains(&pid));
        assert_eq!(innermost_pid(pid), Some(pid));
        let other = Identity { start_time: identity.start_time + 1, ..identity };
        assert!(!other.is_alive());
        other.kill(Duration::from_secs(5)).unwrap();
        assert!(identity.is_alive(), "a process with another start time is not killed");
        identity.kill(Duration::from_secs(5)).unwrap();
        assert!(!identity.is_alive());
        child.wait().unwrap();
        identity.kill(Duration::from_secs(5)).unwrap();
        assert!(Identity::of(pid).is_err());
    }

    #[test]
    fn all_are_killed_though_some_are_gone() {
        let mut children: Vec<_> =
            (0..3).map(|_| std::process::Command::new("sleep").arg("1000").spawn().unwrap()).collect();
        let all: Vec<_> = children.iter().map(|child| Identity::of(child.id() as i32).unwrap()).collect();
        children[1].kill().unwrap();
        children[1].wait().unwrap();
        let listed = descendants(std::process::id() as i32);
        assert!(listed.contains(&all[0].pid) && !listed.contains(&all[1].pid));
        kill_all(&all, Duration::from_secs(5)).unwrap();
        assert!(all.iter().all(|process| !process.is_alive()));
        children.iter_mut().for_each(|child| drop(child.wait()));
    }
}
