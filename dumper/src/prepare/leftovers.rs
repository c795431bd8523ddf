//! What a dumper that was killed may have left, and that nobody else dumps the processes meanwhile.
//!
//! A freeze that outlives the dumper is told by its journal, and undone where the hand-over had not begun; a cgroup that it
//! froze for a moment by a mark ([`crate::freeze::cgroup`]). Scratch memory
//! of remote calls is known by its place and mark. A userfaultfd is made by the process and initialised only once the
//! process has closed it (see the `uffd-wp` tracker), so a dumper killed in between leaves a descriptor that does
//! nothing. A program may have one like that too; so in processes that nobody has named it is taken away only beside
//! scratch memory, which lies there whenever a dumper was killed at that place.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use godwit_wire::journal::{self, Event, Facts};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Pid;

use crate::collect::tree::{Task, Tree};
use crate::doctor;
use crate::error::DumpError;
use crate::freeze::{cgroup, seize};
use crate::handover::chain;
use crate::prepare::image_dir;
use crate::prepare::root::Root;
use crate::procfs::{fdinfo, maps, stat, tree};
use crate::remote;
use crate::task::files::{self, links};

/// A program of its own initialises a userfaultfd right after it made one: what is still not after this time is left
/// over.
const INERT_FOR: Duration = Duration::from_millis(50);

/// Flags that the tracker makes its userfaultfd with, as fdinfo shows them.
const FLAGS: u32 = fdinfo::O_CLOEXEC | libc::O_NONBLOCK as u32;

/// How long another may hold the process before that is called a dump of it.
const CLAIM_LIMIT: Duration = Duration::from_millis(500);

/// Takes the process for this dumper alone, until the value is dropped or we die: two trackers that clear the same
/// bits would each lose what the other has seen.
///
/// # Errors
/// When another godwit dumps it.
pub fn claim(pid: Pid) -> Result<Flock<File>, DumpError> {
    let dir = claimable(pid)
        .map_err(|source| DumpError::sys(format!("process {pid}"), "opening its /proc directory", source))?;
    lock(pid, dir, || format!("another godwit is dumping process {pid}: wait for it, or end it"))
}

/// The same for a further process of a tree whose root was claimed. So a tree is refused that overlaps with one which is
/// being dumped: a subtree of it, or a tree that it is a part of. `None` if the process is gone.
///
/// The claim is the process's: to be kept while that is in the tree, and not to be made twice. What claims come to:
/// one descriptor and two system calls each.
///
/// # Errors
/// When another godwit dumps it.
pub fn claim_more(pid: Pid) -> Result<Option<Flock<File>>, DumpError> {
    let dir = match claimable(pid) {
        Ok(dir) => dir,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(source) => {
            return Err(DumpError::sys(format!("process {pid}"), "opening its /proc directory", source));
        }
    };
    let claimed = lock(pid, dir, || {
        format!(
            "another godwit is dumping process {pid}, which is a part of this tree: wait for it, or end it; one \
             process cannot be dumped twice at a time"
        )
    });
    claimed.map(Some)
}

/// The processes of a tree that are this dumper's alone, until it is dropped.
#[derive(Debug, Default)]
pub struct Claims(Mutex<BTreeMap<(Pid, u64), Flock<File>>>);

impl Claims {
    /// Takes a tree as it is now; gives its processes, each with its start time (clock ticks after boot).
    ///
    /// # Errors
    /// As [`claim`] and [`claim_more`].
    pub fn tree(&self, root: Pid) -> Result<Vec<(Pid, u64)>, DumpError> {
        let first = claim(root)?;
        let tasks = Tree::walk(root)?.tasks;
        let taken: Vec<_> = tasks.iter().map(|task| (task.pid, task.start_time)).collect();
        if let Some(key) = taken.first() {
            self.held().insert(*key, first);
        }
        tasks.iter().try_for_each(|task| self.more(task))?;
        Ok(taken)
    }

    /// Takes one more, unless it is taken already.
    ///
    /// # Errors
    /// As [`claim_more`].
    pub fn more(&self, task: &Task) -> Result<(), DumpError> {
        let mut held = self.held();
        if let Entry::Vacant(place) = held.entry((task.pid, task.start_time))
            && let Some(claim) = claim_more(task.pid)?
        {
            place.insert(claim);
        }
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<(Pid, u64), Flock<File>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn claimable(pid: Pid) -> std::io::Result<File> {
    File::open(format!("/proc/{pid}"))
}

fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

fn lock(pid: Pid, mut dir: File, taken: impl Fn() -> String) -> Result<Flock<File>, DumpError> {
    let begun = Instant::now();
    loop {
        match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
            Ok(claim) => return Ok(claim),
            // A sweep has it for a moment only.
            Err((again, Errno::EWOULDBLOCK)) if begun.elapsed() < CLAIM_LIMIT => dir = again,
            Err((_, Errno::EWOULDBLOCK)) => return Err(DumpError::Usage(taken())),
            Err((_, errno)) => {
                return Err(DumpError::sys(format!("process {pid}"), "locking its /proc directory", errno));
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Lets a tree run again that a killed dumper left frozen before the destination was asked to restore it, if this process
/// is in it: as its root, or further below where it was a part of a larger one. The state directory must be the one of
/// that dump.
///
/// # Errors
/// When its hand-over was cut off later than that, so that somebody has to decide; or when it cannot be thawed.
pub fn thaw(root: &Root, state_dir: &Path) -> Result<(), DumpError> {
    thaw_tree(&root.boot_id, &[(root.pid, root.start_time)], state_dir)
}

/// The same for every process of a tree, each with its start time (clock ticks after boot): a tree that was left frozen
/// may have been a part of this one. `boot_id` is this boot's.
///
/// # Errors
/// As [`thaw`].
pub fn thaw_tree(boot_id: &str, tree: &[(Pid, u64)], state_dir: &Path) -> Result<(), DumpError> {
    for line in cgroup::thaw_left(tree.iter().map(|(pid, _)| *pid))? {
        tracing::warn!("{line}");
    }
    for listed in journal::list(state_dir)? {
        let Ok(summary) = &listed.summary else { continue };
        let facts = &summary.facts;
        if listed.locked || facts.boot_id.as_deref() != Some(boot_id) {
            continue;
        }
        let Some(pid) = tree.iter().find_map(|(pid, start)| holds(facts, *pid, *start).then_some(*pid))
        else {
            continue;
        };
        match summary.state {
            Some(Event::Freezing) => {
                tracing::warn!(%pid, session = listed.id, "it was left frozen by a killed godwit");
                doctor::sweep_one(state_dir, &listed.id).map_err(|why| {
                    let source = std::io::Error::other(why);
                    DumpError::sys(format!("session {}", listed.id), "thawing what it left frozen", source)
                })?;
            }
            Some(Event::RestoreSent | Event::Committing | Event::Resolved) => {
                let why = format!("an earlier hand-over of process {pid} was cut off");
                return Err(DumpError::Undecided { session: listed.id, why });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Sweeps every process of a tree that runs.
///
/// # Errors
/// As [`sweep`]. A process that ends meanwhile is left out.
pub fn sweep_tree(root: Pid) -> Result<(), DumpError> {
    for task in Tree::walk(root)?.tasks {
        match sweep(task.pid) {
            Err(_) if task.pid != root && !task.lives() => {}
            swept => drop(swept?),
        }
    }
    Ok(())
}

/// Takes away the links that a killed dumper left of the files of a tree, which has been found to be nobody's copy.
pub fn sweep_links(tree: &[(Pid, u64)]) {
    for (pid, _) in tree {
        let Ok(Some(task)) = Task::open(*pid) else { continue };
        links::sweep(*pid, &files::open_all(*pid, &task.pidfd).unwrap_or_default());
    }
}

/// Whether a journal is about a tree that this process is in.
fn holds(facts: &Facts, pid: Pid, start_time: u64) -> bool {
    let pid = pid.as_raw();
    (facts.pid == Some(pid) && facts.start_time == Some(start_time))
        || facts.members.iter().any(|member| (member.pid, member.start_time) == (pid, start_time))
}

/// Closes descriptors and unmaps memory that a killed dumper left in the process; says what there was, if anything.
///
/// # Errors
/// When there is something and the process cannot be stopped to take it away.
pub fn sweep(pid: Pid) -> Result<Option<String>, DumpError> {
    let (mut fds, mut scratch) = (inert(pid)?, remote::find_leftovers(pid, &maps::read(pid)?));
    if fds.is_empty() && scratch.is_empty() {
        return Ok(None);
    }
    std::thread::sleep(INERT_FOR);
    fds = inert(pid)?.into_iter().filter(|fd| fds.contains(fd)).collect();
    scratch = remote::find_leftovers(pid, &maps::read(pid)?)
        .into_iter()
        .filter(|at| scratch.contains(at))
        .collect();
    if fds.is_empty() && scratch.is_empty() {
        return Ok(None);
    }
    // A whole stop: a thread that ran could still be on its way out of the memory. And only now is a number what it was
    // seen to be: the process ran until here.
    let frozen = seize::seize(pid)?;
    fds = inert(pid)?.into_iter().filter(|fd| fds.contains(fd)).collect();
    if fds.is_empty() && scratch.is_empty() {
        frozen.thaw()?;
        return Ok(None);
    }
    let told = format!(
        "process {pid}: {} userfaultfds and {} mappings that a killed godwit left are taken away",
        fds.len(),
        scratch.len()
    );
    tracing::info!("{told}");
    let mut session = frozen.remote(frozen.leader().tid)?; // takes the memory away when it opens
    for fd in fds {
        session.syscall(libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0])?;
    }
    session.finish()?;
    frozen.thaw()?;
    Ok(Some(told))
}

/// Sweeps every process that nobody dumps, frozen cgroups and temporary files; a line for each that held something or cannot
/// be swept.
pub fn sweep_all() -> Vec<String> {
    let thawed =
        tree::processes().map_err(DumpError::from).and_then(|all| Ok(cgroup::thaw_left(all.into_iter())?));
    let thawed = thawed.unwrap_or_else(|error| vec![chain(&error)]);
    thawed.into_iter().chain(sweep_processes()).chain(image_dir::sweep()).collect()
}

fn sweep_processes() -> Vec<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).map(Pid::from_raw);
    pids.filter_map(|pid| {
        let has_scratch = || maps::read(pid).is_ok_and(|vmas| !remote::find_leftovers(pid, &vmas).is_empty());
        if !has_scratch() {
            return told_of(pid);
        }
        // Whoever has it now sweeps it.
        let _claim = claim(pid).ok()?;
        match sweep(pid) {
            Ok(line) => line,
            // It has ended meanwhile.
            Err(_) if stat::read(pid).map_or(true, |stat| stat.is_zombie()) => None,
            Err(error) => Some(format!("process {pid} cannot be swept: {}", chain(&error))),
        }
    })
    .collect()
}

/// A line on userfaultfds that look left over, in a process that nothing else says a dumper was killed in.
fn told_of(pid: Pid) -> Option<String> {
    let first = inert(pid).ok().filter(|fds| !fds.is_empty())?;
    // Whoever dumps it now has just made it.
    let _claim = claim(pid).ok()?;
    std::thread::sleep(INERT_FOR);
    let fds: Vec<_> = inert(pid).ok()?.into_iter().filter(|fd| first.contains(fd)).collect();
    let why = "userfaultfds that were never initialised are left alone, since they may be its own; a dump of it closes them";
    (!fds.is_empty()).then(|| format!("process {pid}, fd {fds:?}: {why}"))
}

/// Userfaultfds that were never initialised, and have the flags that a dumper gives them: their `API:` line shows no
/// features (fs/userfaultfd.c, userfaultfd_show_fdinfo).
fn inert(pid: Pid) -> Result<Vec<i32>, DumpError> {
    let is_inert = |fd: &i32| {
        let target = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap_or_default();
        target.as_os_str() == "anon_inode:[userfaultfd]"
            && fdinfo::read(pid, *fd).is_ok_and(|info| {
                info.flags & FLAGS == FLAGS && info.extra("API").is_some_and(shows_no_features)
            })
    };
    Ok(fdinfo::list(pid)?.into_iter().filter(is_inert).collect())
}

/// Whether the middle part of `aa:0:7f` is zero.
fn shows_no_features(api: &[u8]) -> bool {
    let mut parts = api.split(|byte| *byte == b':');
    parts.nth(1).is_some_and(|features| features.iter().all(|digit| *digit == b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_uninitialised_descriptor_is_inert() {
        assert!(shows_no_features(b"aa:0:1ffff"));
        assert!(!shows_no_features(b"aa:80008000:1ffff"));
        assert!(!shows_no_features(b""));
    }
}
