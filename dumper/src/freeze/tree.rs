//! Stopping a whole tree of processes, and letting it run on as if nothing had been.
//!
//! From the root down: what is stopped makes no further children, so the children of stopped processes are listed,
//! stopped, and listed in turn. Meanwhile others end and leave their children to a process above. So at last all lists are read
//! again, until every process in them is known: then none can have come, since nobody is left to make one, and none can
//! have been overlooked, since only a process that vanishes from a list while it is read hides another (fs/proc/array.c,
//! get_children_pid).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use godwit_wire::fault;
use nix::unistd::Pid;

use super::cgroup::Still;
use super::error::FreezeError;
pub use super::hands::{Asked, FrozenTask};
use super::hands::{Hands, Seized};
pub use super::parts::{MANY_THREADS, Part};
use super::seize::{Frozen, Limit, Thread};
use crate::collect::tree::{TASKS_MAX, children, is_zombie};
use crate::parallel;
use crate::procfs::{ProcfsError, tree};

/// How often all lists of a tree are read again before it is given up.
const WALKS_MAX: u32 = 1000;
/// How long the threads of a process that is ending may take to go.
const ENDING: Duration = Duration::from_millis(200);

/// A tree that is stopped. Dropping it lets all run on, as [`FrozenTree::thaw`] does.
pub struct FrozenTree {
    hands: Hands,
    /// In the order of `order`.
    tasks: Vec<FrozenTask>,
    zombies: Vec<Pid>,
    /// All of them, as CRIU counts them: each process before its children, and these in the order of their making.
    order: Vec<Pid>,
    /// How often all lists were read again since somebody had come or gone.
    walks: u32,
}

/// Stops every process of the tree below `root` within `limit`, or lets them all run on and says why.
///
/// # Errors
/// See [`FreezeError`].
pub fn seize(root: Pid, limit: Duration) -> Result<FrozenTree, FreezeError> {
    let limit = Limit::from_now(limit);
    let mut hands = Hands::default();
    let mut tasks = Vec::new();
    for (_, first) in hands.seize(&[root], limit) {
        tasks.push(first?);
    }
    let tree = FrozenTree { hands, tasks, zombies: Vec::new(), order: Vec::new(), walks: 0 };
    Found { root, limit, known: BTreeSet::from([root]), tree }.walk()
}

/// The same of a tree whose cgroup is frozen, which is thawed as soon as all have been asked to stop.
///
/// # Errors
/// See [`FreezeError`].
pub fn seize_still(root: Pid, limit: Duration, still: Still<'_>) -> Result<FrozenTree, FreezeError> {
    let limit = Limit::from_now(limit);
    let mut all = vec![root];
    let mut next = 0;
    while let Some(pid) = all.get(next) {
        all.extend(children(*pid)?);
        next += 1;
        if all.len() > TASKS_MAX {
            return Err(FreezeError::TooMany { root, max: TASKS_MAX });
        }
    }
    let mut hands = Hands::default();
    let mut thawed = Ok(());
    let seized = hands.seize_in_two(&all, limit, || thawed = still.thaw());
    let tree = FrozenTree { hands, tasks: Vec::new(), zombies: Vec::new(), order: Vec::new(), walks: 0 };
    let mut found = Found { root, limit, known: BTreeSet::new(), tree };
    for (pid, seized) in seized {
        match seized {
            // Without its root there is no tree.
            Err(error) if pid == root => return Err(error),
            seized => found.note(pid, seized)?,
        }
    }
    thawed?;
    found.walk()
}

/// The children of each thread of stopped processes, with the process of that thread.
fn children_of(tasks: &[FrozenTask]) -> Result<Vec<(Pid, Vec<Pid>)>, ProcfsError> {
    let threads = tasks.iter().flat_map(|task| task.threads().iter().map(|thread| (task.pid(), thread.tid)));
    parallel::each(threads, |(pid, tid)| match tree::children(pid, tid) {
        // Killed while it was stopped: that is found out by whoever reads it.
        Err(error) if error.is_gone() => Ok((pid, Vec::new())),
        of_thread => Ok((pid, of_thread?)),
    })
}

struct Found {
    root: Pid,
    limit: Limit,
    /// Stopped, or dead and not waited for. One that vanished is none: its number may come again.
    known: BTreeSet<Pid>,
    tree: FrozenTree,
}

impl Found {
    /// Stops whoever is found below those that are stopped, until all lists show nobody else.
    fn walk(mut self) -> Result<FrozenTree, FreezeError> {
        let mut from = 0;
        loop {
            let is_whole = from == 0;
            let children = self.children(from)?;
            from = self.tree.tasks.len();
            let is_fresh = |child: &&Pid| !self.known.contains(child);
            let fresh: Vec<Pid> = children.values().flatten().filter(is_fresh).copied().collect();
            if !fresh.is_empty() {
                self.take(fresh)?;
            } else if is_whole {
                return Ok(self.ordered(&children));
            } else {
                from = 0;
                self.tree.walks += 1;
                fault::point("mid.freeze.walk")?;
            }
            if self.limit.is_over() || self.tree.walks > WALKS_MAX {
                let (root, found, walks) = (self.root, self.tree.tasks.len(), self.tree.walks);
                return Err(FreezeError::UnsteadyTree { root, found, walks, waited: self.limit.time });
            }
        }
    }

    /// Children of the stopped processes from the one numbered `from` on.
    fn children(&self, from: usize) -> Result<BTreeMap<Pid, Vec<Pid>>, FreezeError> {
        let mut all: BTreeMap<Pid, Vec<Pid>> = BTreeMap::new();
        for (pid, of_thread) in children_of(&self.tree.tasks[from..])? {
            all.entry(pid).or_default().extend(of_thread);
        }
        Ok(all)
    }

    /// The tree in order, told by the children of all.
    fn ordered(self, children: &BTreeMap<Pid, Vec<Pid>>) -> FrozenTree {
        let mut tree = self.tree;
        let mut left = vec![self.root];
        while let Some(pid) = left.pop() {
            tree.order.push(pid);
            left.extend(children.get(&pid).into_iter().flatten().rev());
        }
        let place: BTreeMap<Pid, usize> = tree.order.iter().copied().zip(0..).collect();
        // One that was killed and waited for meanwhile is in no list.
        let place = |pid: Pid| place.get(&pid).copied().unwrap_or(usize::MAX);
        tree.tasks.sort_by_key(|task| place(task.pid()));
        tree.zombies.sort_by_key(|pid| place(*pid));
        tree
    }

    /// Stops processes: all are asked first, so that they come to their stops at the same time.
    fn take(&mut self, fresh: Vec<Pid>) -> Result<(), FreezeError> {
        if self.known.len() + fresh.len() > TASKS_MAX {
            return Err(FreezeError::TooMany { root: self.root, max: TASKS_MAX });
        }
        let seized: Vec<Seized> = self.tree.hands.seize(&fresh, self.limit);
        seized.into_iter().try_for_each(|(pid, seized)| self.note(pid, seized))
    }

    fn note(&mut self, pid: Pid, seized: Result<FrozenTask, FreezeError>) -> Result<(), FreezeError> {
        match seized {
            Ok(frozen) => {
                self.known.insert(pid);
                self.tree.tasks.push(frozen);
                Ok(())
            }
            Err(error) => self.gone(pid, error),
        }
    }

    /// A process that could not be stopped since it has ended is no failure.
    fn gone(&mut self, pid: Pid, error: FreezeError) -> Result<(), FreezeError> {
        let has_ended = match error {
            FreezeError::NoProcess { .. } | FreezeError::Died { .. } | FreezeError::Zombie { .. } => true,
            // The first thread of a process that ends is dead a moment before the others.
            FreezeError::LeaderExited { .. } => ends(pid),
            FreezeError::Procfs(ref error) => error.is_gone(),
            _ => false,
        };
        if !has_ended {
            return Err(error);
        }
        if is_zombie(pid) && self.known.insert(pid) {
            self.tree.zombies.push(pid);
        }
        Ok(())
    }
}

/// Whether a process whose first thread has ended does so as a whole.
fn ends(pid: Pid) -> bool {
    let limit = Limit::from_now(ENDING);
    loop {
        if tree::threads(pid).map_or(0, |threads| threads.len()) <= 1 {
            return true;
        }
        if limit.is_over() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl FrozenTree {
    /// The stopped processes: the root first, parents before their children.
    pub fn tasks(&self) -> &[FrozenTask] {
        &self.tasks
    }

    /// The root.
    pub fn root(&self) -> &FrozenTask {
        // A tree has at least its root: `seize` ends with an error otherwise.
        &self.tasks[0]
    }

    /// All processes, living and dead, each before its children and these in the order of their making.
    pub fn order(&self) -> &[Pid] {
        &self.order
    }

    /// Processes of the tree that have ended and were not waited for.
    pub fn zombies(&self) -> &[Pid] {
        &self.zombies
    }

    /// How often all lists of children were read again, since somebody had come or gone meanwhile.
    pub fn walks(&self) -> u32 {
        self.walks
    }

    /// All threads of all processes.
    pub fn threads(&self) -> impl Iterator<Item = &Thread> {
        self.tasks.iter().flat_map(FrozenTask::threads)
    }

    /// Does something to every process, each on the thread that the kernel answers, many at a time; answers in the order
    /// of [`FrozenTree::tasks`]. A process that is held in parts is given part by part: what is done must be so to
    /// [`Frozen::own_threads`].
    pub fn each<T: Part>(&self, work: fn(&Frozen) -> T) -> Vec<T::Whole> {
        self.hands.each(&self.tasks, work)
    }

    /// Begins the same with what makes remote system calls and waits for them, many at a time. It goes on by itself, and is
    /// brought to its end before anything else is done to the processes, also to let them run on.
    pub fn begin<T: Part>(&self, work: impl AsyncFn(&Frozen) -> T + Copy + Send + 'static) -> Asked<T> {
        self.hands.begin(&self.tasks, work)
    }

    /// What came of it, in the order of [`FrozenTree::tasks`], once all is done.
    pub fn answers<T: Part>(&self, asked: Asked<T>) -> Vec<T::Whole> {
        Hands::answers(asked, &self.tasks)
    }

    /// Lets all run on, children before their parents, so that none finds a child of its own stopped by us. A process
    /// that was killed meanwhile is no error.
    ///
    /// # Errors
    /// The first failure; the others run.
    pub fn thaw(mut self) -> Result<(), FreezeError> {
        let mut outcome = Ok(());
        while let Some(task) = self.tasks.pop() {
            outcome = outcome.and(self.hands.thaw(&task));
        }
        outcome
    }

    /// Whether the lists of children still show nobody who is not known: nothing was missed, nobody has come.
    ///
    /// # Errors
    /// When `/proc` does not tell.
    pub fn strangers(&self) -> Result<Vec<Pid>, FreezeError> {
        let known: BTreeSet<Pid> =
            self.tasks.iter().map(FrozenTask::pid).chain(self.zombies.iter().copied()).collect();
        let found = children_of(&self.tasks)?.into_iter().flat_map(|(_, of_thread)| of_thread);
        Ok(found.filter(|child| !known.contains(child)).collect())
    }
}

impl Drop for FrozenTree {
    fn drop(&mut self) {
        while let Some(task) = self.tasks.pop() {
            if let Err(error) = self.hands.thaw(&task) {
                tracing::warn!(pid = task.pid().as_raw(), %error, "a process could not be let go");
            }
        }
    }
}
