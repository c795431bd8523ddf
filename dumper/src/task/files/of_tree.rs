//! What must be known of a whole tree to judge a descriptor of one of its processes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use nix::unistd::{Pid, getpgid};

use super::provided::AllProvided;
use super::tty::Terminals;
use super::unix::Sockets;
use super::{Descriptor, epoll, pipe};
use crate::collect::tree::{Task, Zombie, descends};
use crate::prepare::root::Root;
use crate::sys;

/// The tree as its descriptors see it.
#[derive(Debug)]
pub struct OfTree {
    /// Its root.
    pub root: Pid,
    /// How many bytes of a deleted file may go into the images.
    pub ghost_limit: u64,
    /// What whoever restores provides.
    pub provided: AllProvided,
    /// Whether links may be made beside files whose path is gone.
    pub link_remap: bool,
    /// Its unix sockets.
    pub(super) sockets: Sockets,
    /// Pipes and sockets that a process outside of the tree holds an end of, and slaves of the tree's terminals that it has
    /// open, and one such process.
    held_elsewhere: HashMap<PathBuf, i32>,
    /// Pipes that a process of the tree can read, by device and inode.
    read_inside: BTreeSet<(u64, u64)>,
    /// Every process, dead ones too, with its number inside.
    members: BTreeMap<Pid, u32>,
    /// The living processes.
    tasks: BTreeSet<Pid>,
    /// Every descriptor of an epoll set: the process's number inside, the process, the descriptor. Sorted.
    epolls: Vec<(u32, Pid, i32)>,
    terminals: Terminals,
    /// Process groups with their numbers inside, where there are terminals.
    groups: BTreeMap<Pid, u32>,
}

impl OfTree {
    /// Looks at the descriptors of all living processes, and through all of the machine for pipes and sockets that lead
    /// out of the tree.
    pub fn look<'a>(
        root: &Root,
        living: impl Iterator<Item = (&'a Task, &'a [Descriptor])> + Clone,
        dead: &[Zombie],
    ) -> OfTree {
        let tasks: BTreeSet<Pid> = living.clone().map(|(task, _)| task.pid).collect();
        let all = || living.clone().flat_map(|(_, all)| all);
        let pipes = all().filter(|descriptor| pipe::is_any(descriptor));
        let readable = pipes.clone().filter(|descriptor| !pipe::is_write_only(descriptor));
        let read_inside =
            readable.map(|descriptor| (descriptor.stat.st_dev, descriptor.stat.st_ino)).collect();
        let sockets = Sockets::look(living.clone());
        let terminals = Terminals::of(all());
        let ends = sockets.links();
        let held = pipes.map(|descriptor| descriptor.target.as_path()).chain(terminals.paths());
        let held = held.chain(ends.iter().map(PathBuf::as_path)).collect();
        let held_elsewhere = pipe::held_elsewhere(&tasks, &held);
        let groups = match terminals.is_empty() {
            true => BTreeMap::new(),
            false => groups(living.clone().map(|(task, _)| task), dead),
        };
        let of_living = living.clone().map(|(task, _)| (task.pid, task.inside));
        let of_dead = dead.iter().map(|zombie| (zombie.pid, zombie.place.pid));
        let mut epolls: Vec<_> = living
            .clone()
            .flat_map(|(task, all)| {
                let sets = all.iter().filter(|descriptor| (epoll::KIND.is)(descriptor));
                sets.map(|descriptor| (task.inside, task.pid, descriptor.fd))
            })
            .collect();
        epolls.sort_unstable();
        OfTree {
            root: root.pid,
            ghost_limit: root.ghost_limit,
            provided: root.provided.clone(),
            link_remap: root.link_remap,
            held_elsewhere,
            read_inside,
            sockets,
            members: of_living.chain(of_dead).collect(),
            tasks,
            epolls,
            terminals,
            groups,
        }
    }

    /// A process outside of the tree that holds an end of the pipe, or the socket, which links in `/proc` call `link`, or has
    /// the slave of a terminal open that they call so.
    pub fn holder_elsewhere(&self, link: &Path) -> Option<i32> {
        self.held_elsewhere.get(link).copied()
    }

    /// Its terminals.
    pub fn terminals(&self) -> &Terminals {
        &self.terminals
    }

    /// The number inside of a process group that a process of the tree is in, living or dead; asked where there are
    /// terminals.
    pub fn group(&self, group: Pid) -> Option<u32> {
        self.groups.get(&group).copied()
    }

    /// Whether a process of the tree can read what lies in a pipe.
    pub fn has_reader(&self, pipe: &Descriptor) -> bool {
        self.read_inside.contains(&(pipe.stat.st_dev, pipe.stat.st_ino))
    }

    /// The number that a process of the tree, living or dead, has inside; `None` for any other.
    pub fn number_of(&self, pid: Pid) -> Option<u32> {
        self.members.get(&pid).copied()
    }

    /// Whether a process of the tree, living or dead, has this number inside.
    pub fn has_number(&self, number: u32) -> bool {
        self.members.values().any(|inside| *inside == number)
    }

    /// Whether a process is of the tree: as it was listed, or made by one of it since.
    pub fn has(&self, pid: Pid) -> bool {
        self.members.contains_key(&pid) || descends(pid, &self.tasks)
    }

    /// Whether a process is one of the living.
    pub fn has_task(&self, pid: Pid) -> bool {
        self.tasks.contains(&pid)
    }

    /// The living processes.
    pub fn tasks(&self) -> impl Iterator<Item = Pid> {
        self.tasks.iter().copied()
    }

    /// Who makes an epoll set anew and enters what it watches: of the processes that have it, CRIU takes the one with the
    /// lowest number inside (criu/include/files.h, fdinfo_rst_prio).
    pub fn restorer_of_epoll(&self, pid: Pid, fd: i32) -> Pid {
        let is_same = |other: Pid, other_fd: i32| {
            (other, other_fd) == (pid, fd)
                || sys::kcmp::files((other, other_fd), (pid, fd)).is_ok_and(|order| order.is_eq())
        };
        let first = self.epolls.iter().find(|(_, other, other_fd)| is_same(*other, *other_fd));
        first.map_or(pid, |(_, other, _)| *other)
    }
}

/// The process groups of a tree: as the dumper sees them, and as its processes do.
fn groups<'a>(living: impl Iterator<Item = &'a Task>, dead: &[Zombie]) -> BTreeMap<Pid, u32> {
    let living = living.map(|task| (task.pid, task.place));
    let all = living.chain(dead.iter().map(|zombie| (zombie.pid, zombie.place)));
    all.filter_map(|(pid, place)| Some((getpgid(Some(pid)).ok()?, place.pgid))).collect()
}
