//! The root of the tree: which process it is, pinned so that a pid that is taken anew cannot stand for it.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::Pid;

use super::rights;
use crate::error::DumpError;
use crate::procfs::{cgroup, host, stat, status};
use crate::refusal::{Findings, Subject};
use crate::sys;
use crate::task::files::provided::AllProvided;

/// The process to dump.
#[derive(Debug)]
pub struct Root {
    /// Its pid as the dumper sees it.
    pub pid: Pid,
    /// Its pid in its own pid namespace: the number in image names.
    pub inside: u32,
    /// Stays bound to this process, whatever becomes of the number.
    pub pidfd: OwnedFd,
    /// When it started, in clock ticks after boot (`/proc/PID/stat` field 22).
    pub start_time: u64,
    /// Which boot of which machine.
    pub boot_id: String,
    /// How many bytes of a deleted file may go into the images.
    pub ghost_limit: u64,
    /// What whoever restores provides.
    pub provided: AllProvided,
    /// Whether links may be made beside files whose path is gone.
    pub link_remap: bool,
}

impl Root {
    /// Pins the process. A deleted file of it may have `ghost_limit` bytes; the restore is given what is `provided`.
    ///
    /// # Errors
    /// When it does not exist, or may not be looked at; refused by name when it is the dumper itself, a kernel
    /// thread or a zombie.
    pub fn open(pid: Pid, ghost_limit: u64, provided: &AllProvided) -> Result<Root, DumpError> {
        let pidfd = sys::pidfd::open(pid).map_err(|errno| match errno {
            Errno::ESRCH => DumpError::Usage(format!("there is no process {pid}")),
            // EINVAL up to Linux 6.15, ENOENT since.
            Errno::EINVAL | Errno::ENOENT => DumpError::Usage(match status::read(pid) {
                Ok(status) => format!("{pid} is a thread of process {}; name that", status.tgid),
                Err(_) => format!("there is no process {pid}"),
            }),
            errno => DumpError::sys(format!("process {pid}"), "pidfd_open", errno),
        })?;
        let stat = stat::read(pid)?;
        let status = status::read(pid)?;
        let mut findings = Findings::default();
        let subject = Subject::Process(pid);
        if pid == Pid::this() {
            findings.refuse(subject, "it is godwit itself", "name the process to move");
        } else if stat.is_kernel_thread() {
            findings.refuse(subject, "it is a kernel thread", "name an ordinary process");
        } else if stat.is_zombie() {
            findings.refuse(
                subject,
                "it has ended and waits for its parent (zombie)",
                "name a living process",
            );
        } else {
            rights::check(pid, &pidfd, &mut findings)?;
        }
        findings.verdict()?;
        let inside = status.ns_pid.last().copied().unwrap_or(status.pid) as u32;
        Ok(Root {
            pid,
            inside,
            pidfd,
            start_time: stat.start_time,
            boot_id: host::boot_id()?,
            ghost_limit,
            provided: provided.clone(),
            link_remap: false,
        })
    }

    /// The same, with links allowed beside files whose path is gone, or not.
    pub fn linking(self, link_remap: bool) -> Root {
        Root { link_remap, ..self }
    }

    /// Errs when the process is gone: what has its pid now is another.
    ///
    /// # Errors
    /// [`DumpError::Died`].
    pub fn check_alive(&self) -> Result<(), DumpError> {
        sys::pidfd::send_signal(self.pidfd.as_fd(), 0).map_err(|_| DumpError::Died { pid: self.pid })
    }

    /// Its cgroup v2 path; empty where there is no such hierarchy.
    ///
    /// # Errors
    /// When `/proc` does not tell.
    pub fn cgroup(&self) -> Result<String, DumpError> {
        let unified = cgroup::read(self.pid)?.into_iter().find(|membership| membership.hierarchy == 0);
        Ok(unified.map_or_else(String::new, |found| String::from_utf8_lossy(&found.path).into_owned()))
    }

    /// The name of a session unless the user gives one: pid and start time.
    pub fn default_session(&self) -> String {
        format!("{}-{}", self.pid, self.start_time)
    }
}
