//! The processes of the tree: the root, everything below it, and the dead that nobody has waited for.
//!
//! A tree that runs is looked at as it is just then; one that is stopped was listed by who stopped it
//! ([`crate::freeze::tree`]), and is exact.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};

use godwit_wire::plan::OWNERS_MAX;
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::error::DumpError;
use crate::procfs::stat::Stat;
use crate::procfs::status::Status;
use crate::procfs::{ProcfsError, attr, stat, status, tree};
use crate::refusal::{Findings, Subject};
use crate::sys;

/// Processes that a tree may have, dead ones too: as many page lists as a round may have.
pub const TASKS_MAX: usize = OWNERS_MAX / 2;

/// A living process of the tree, pinned.
#[derive(Debug)]
pub struct Task {
    /// Its pid as the dumper sees it.
    pub pid: Pid,
    /// Its pid in its own pid namespace: the number in image names.
    pub inside: u32,
    /// Stays bound to this process, whatever becomes of the number.
    pub pidfd: OwnedFd,
    /// When it started, in clock ticks after boot (`/proc/PID/stat` field 22).
    pub start_time: u64,
    /// Its parent as the dumper sees it.
    pub parent: Pid,
    /// Where it stands in the tree. Its parent is filled in by who knows the tree ([`places`]).
    pub place: Place,
}

impl Task {
    /// Pins a process; `None` where it has ended by now.
    ///
    /// # Errors
    /// When it may not be looked at.
    pub fn open(pid: Pid) -> Result<Option<Task>, DumpError> {
        let pidfd = match sys::pidfd::open(pid) {
            Ok(pidfd) => pidfd,
            // EINVAL, ENOENT: the number is a thread's by now.
            Err(Errno::ESRCH | Errno::EINVAL | Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(DumpError::sys(format!("process {pid}"), "pidfd_open", errno)),
        };
        let seen = stat::read(pid).and_then(|stat| Ok((stat, status::read(pid)?)));
        match seen {
            Ok((stat, status)) => {
                let (parent, place) = (Pid::from_raw(stat.ppid), Place::of(&status, 0));
                Ok(Some(Task { pid, inside: place.pid, pidfd, start_time: stat.start_time, parent, place }))
            }
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it has not ended, nor is about to: one that ends has given its memory up already.
    pub fn lives(&self) -> bool {
        sys::pidfd::send_signal(self.pidfd.as_fd(), 0).is_ok() && !is_ending(self.pid)
    }

    /// Whether `other` is the same process, and not a later one with its number.
    pub fn is(&self, other: &Task) -> bool {
        self.pid == other.pid && self.start_time == other.start_time
    }
}

fn inside(status: &Status) -> u32 {
    status.ns_pid.last().copied().unwrap_or(status.pid) as u32
}

/// What `pstree.img` says of a process, in the numbers of the tree's own pid namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The process.
    pub pid: u32,
    /// Its parent; 0 for the root.
    pub ppid: u32,
    /// Its process group; 0 for one outside of its pid namespace.
    pub pgid: u32,
    /// Its session; 0 for one outside of its pid namespace.
    pub sid: u32,
}

impl Place {
    /// Reads it; `ppid` is the parent's number.
    pub fn of(status: &Status, ppid: u32) -> Place {
        let innermost = |ids: &[i32]| ids.last().copied().unwrap_or_default() as u32;
        Place { pid: inside(status), ppid, pgid: innermost(&status.ns_pgid), sid: innermost(&status.ns_sid) }
    }
}

/// Where each process stands in the tree, dead ones too, in the given order; those that are not in it come last, the
/// dead behind the living. `tasks` have the root first and parents before their children. One whose parent is not known
/// was just left to the root.
pub fn places<'a>(
    tasks: impl Iterator<Item = &'a Task> + Clone,
    zombies: &[Zombie],
    order: &[Pid],
) -> Vec<(Pid, Place)> {
    let inside: BTreeMap<Pid, u32> = tasks.clone().map(|task| (task.pid, task.inside)).collect();
    let root = tasks.clone().next().map_or(0, |root| root.inside);
    let parent = |pid: &Pid| inside.get(pid).copied().unwrap_or(root);
    let living = tasks.enumerate().map(|(index, task)| {
        let ppid = if index == 0 { 0 } else { parent(&task.parent) };
        (task.pid, Place { ppid, ..task.place })
    });
    let dead =
        zombies.iter().map(|zombie| (zombie.pid, Place { ppid: parent(&zombie.parent), ..zombie.place }));
    let mut places: Vec<_> = living.chain(dead).collect();
    let order: BTreeMap<Pid, usize> = order.iter().copied().zip(0..).collect();
    places.sort_by_key(|(pid, _)| order.get(pid).copied().unwrap_or(usize::MAX));
    places
}

/// A process that has ended and that its parent has not waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zombie {
    /// Its pid as the dumper sees it.
    pub pid: Pid,
    /// Its parent, likewise.
    pub parent: Pid,
    /// Where it stands in the tree. Its parent is filled in by who knows the tree.
    pub place: Place,
    /// Depth of its pid namespace, counted from the dumper's.
    pub depth: usize,
    /// Its name.
    pub comm: Vec<u8>,
    /// How it ended: the raw wait status (`/proc/PID/stat` field 52).
    pub exit_code: i32,
}

impl Zombie {
    /// Reads what is left of it; `None` where it was waited for by now.
    ///
    /// # Errors
    /// When `/proc` does not tell.
    pub fn read(pid: Pid) -> Result<Option<Zombie>, ProcfsError> {
        let read = || {
            let (stat, status) = (stat::read(pid)?, status::read(pid)?);
            Ok::<_, ProcfsError>((attr::comm(pid, pid)?, stat, status))
        };
        match read() {
            Ok((comm, stat, status)) => Ok(Some(Zombie {
                pid,
                parent: Pid::from_raw(stat.ppid),
                place: Place::of(&status, 0),
                depth: status.ns_pid.len(),
                comm,
                exit_code: stat.exit_code,
            })),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Names what a restore drops of how it ended: the process that CRIU makes in its place exits with seven bits of the
    /// code (criu/cr-restore.c, restore_one_zombie).
    pub fn losses(&self, findings: &mut Findings) {
        const SEVEN_BITS: i32 = 0x7f;
        let by_itself = self.exit_code & SEVEN_BITS == 0;
        let code = self.exit_code >> 8 & 0xff;
        if by_itself && code > SEVEN_BITS {
            findings.lose(
                Subject::Process(self.pid),
                format!(
                    "it has ended with exit code {code}, and its parent, which has not waited for it yet, is told {} after \
                     a restore",
                    code & SEVEN_BITS
                ),
            );
        }
    }
}

/// The processes of a tree that runs, as it was seen: the root first, parents before their children.
#[derive(Debug, Default)]
pub struct Tree {
    /// The living ones.
    pub tasks: Vec<Task>,
    /// The dead ones.
    pub zombies: Vec<Pid>,
}

impl Tree {
    /// Lists the tree below `root`, which must live. What comes and goes meanwhile may be missed.
    ///
    /// # Errors
    /// [`DumpError::Died`] when the root has ended; when a process may not be looked at; refused by name when there are
    /// more processes than [`TASKS_MAX`].
    pub fn walk(root: Pid) -> Result<Tree, DumpError> {
        let mut found = Tree::default();
        let mut seen = BTreeSet::new();
        let mut left = VecDeque::from([root]);
        seen.insert(root);
        while let Some(pid) = left.pop_front() {
            if is_zombie(pid) {
                found.zombies.push(pid);
                continue;
            }
            let Some(task) = Task::open(pid)? else { continue };
            found.tasks.push(task);
            if found.tasks.len() > TASKS_MAX {
                return Err(too_many(root));
            }
            for child in children(pid)? {
                if seen.insert(child) {
                    left.push_back(child);
                }
            }
        }
        if found.tasks.first().is_none_or(|first| first.pid != root) {
            return Err(DumpError::Died { pid: root });
        }
        Ok(found)
    }
}

/// Refuses a tree of too many processes.
pub fn too_many(root: Pid) -> DumpError {
    let mut findings = Findings::default();
    findings.refuse(
        Subject::Process(root),
        format!("there are more than {TASKS_MAX} processes below it"),
        "dump its parts one by one",
    );
    DumpError::from_findings(findings)
}

/// Whether a process has ended and was not waited for. One that is gone is none.
pub fn is_zombie(pid: Pid) -> bool {
    stat::read(pid).is_ok_and(|stat| Stat::is_zombie(&stat))
}

/// Whether a process is gone, has ended, or is about to.
pub fn is_ending(pid: Pid) -> bool {
    stat::read(pid).map_or(true, |stat| stat.is_zombie() || stat.flags & stat::PF_EXITING != 0)
}

/// Whether a process descends from one of `tree`, and so was made by it since that was listed.
pub fn descends(pid: Pid, tree: &BTreeSet<Pid>) -> bool {
    let mut at = pid;
    // A chain of parents has no cycle; the bound is for a table that changes while it is read.
    for _ in 0..4096 {
        match stat::read(at) {
            Ok(stat) if tree.contains(&Pid::from_raw(stat.ppid)) => return true,
            Ok(stat) if stat.ppid > 1 => at = Pid::from_raw(stat.ppid),
            _ => return false,
        }
    }
    false
}

/// The children of all threads of a process; none of one that has ended.
///
/// # Errors
/// When `/proc` does not tell.
pub fn children(pid: Pid) -> Result<Vec<Pid>, ProcfsError> {
    let gone = |error: ProcfsError| if error.is_gone() { Ok(Vec::new()) } else { Err(error) };
    let mut all = Vec::new();
    for tid in tree::threads(pid).or_else(gone)? {
        all.extend(tree::children(pid, tid).or_else(gone)?);
    }
    Ok(all)
}
