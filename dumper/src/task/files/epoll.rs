//! Epoll sets (man 7 epoll).
//!
//! The kernel keeps the file that was added, and the number that it had then. Restore adds it by its number in one process,
//! so what was closed there since is looked for under another number (a duplicate), and what only another process has is
//! refused: CRIU has no place for it.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::unistd::Pid;

use godwit_wire::image::eventpoll::{EventpollFileEntry, EventpollTfdEntry};
use godwit_wire::image::fdinfo::{FdTypes, FileEntry};

use super::kind::{Around, Kind};
use super::{Descriptor, FileTable, fown};
use crate::error::DumpError;
use crate::procfs::fdinfo::{self, FdInfo};
use crate::procfs::objects::EpollTarget;
use crate::refusal::Findings;
use crate::sys;

/// Epoll sets.
pub const KIND: Kind =
    Kind { r#type: FdTypes::Eventpoll, is: |descriptor| descriptor.is_object("[eventpoll]"), check, dump };

/// Bits that are not events (fs/eventpoll.c, EP_PRIVATE_BITS): EPOLLET, EPOLLONESHOT, EPOLLWAKEUP, EPOLLEXCLUSIVE.
const NOT_EVENTS: u32 = 0xf << 28;
/// How often a set is looked at that watches what cannot be found, and how long in between.
const LOOKS_MAX: u32 = 10;
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// `EPOLLONESHOT`: told once, then left without events.
const ONE_SHOT: u32 = 1 << 30;

fn check(around: &Around<'_>, descriptor: &Descriptor, findings: &mut Findings) {
    let targets = descriptor.info.epoll_targets().unwrap_or_default();
    let mut missing = numbers(around, descriptor, &targets).1;
    // A process that runs may have closed one since its set was read; what cannot be found in look after look is missing.
    for _ in 1..LOOKS_MAX {
        if missing.is_empty() {
            break;
        }
        std::thread::sleep(LOOK_AGAIN);
        let Ok(info) = fdinfo::read(around.pid, descriptor.fd) else { return };
        let again = numbers(around, descriptor, &info.epoll_targets().unwrap_or_default()).1;
        missing.retain(|(target, _)| again.iter().any(|(other, _)| other == target));
    }
    refuse(around, descriptor, missing, findings);
    let is_spent = |target: &&EpollTarget| target.events & !NOT_EVENTS == 0 && target.events & ONE_SHOT != 0;
    if let Some(spent) = targets.iter().find(is_spent) {
        findings.lose(
            descriptor.subject(around.pid),
            format!(
                "a one-shot watch that has told its event (of descriptor {}) tells errors and hang-ups once more after a \
                 restore",
                spent.fd
            ),
        );
    }
}

/// Refuses what it watches and cannot be added anew.
fn refuse(
    around: &Around<'_>,
    descriptor: &Descriptor,
    missing: Vec<(EpollTarget, String)>,
    findings: &mut Findings,
) {
    for (target, why) in missing {
        findings.refuse(
            descriptor.subject(around.pid),
            format!("it watches a file that was added as descriptor {}, and {why}", target.fd),
            "let the program keep what it watches open in the process that made the set, or take it out of the set",
        );
    }
}

/// Under which number the process that restores the set has each target; those that it does not have, and why. One that is
/// under no number and not missing either was closed.
fn numbers(
    around: &Around<'_>,
    descriptor: &Descriptor,
    targets: &[EpollTarget],
) -> (Vec<Option<i32>>, Vec<(EpollTarget, String)>) {
    let restorer = around.tree.restorer_of_epoll(around.pid, descriptor.fd);
    // Which of those that were added under one number, in the kernel's order.
    let offset =
        |index: usize| targets[..index].iter().filter(|other| other.fd == targets[index].fd).count() as u32;
    let is = |index: usize, process: Pid, fd: i32| {
        let target = targets[index].fd;
        let same = sys::kcmp::epoll_target((process, fd), around.pid, descriptor.fd, target, offset(index));
        same.is_ok_and(|order| order.is_eq())
    };
    let mut found: Vec<Option<i32>> = (0..targets.len())
        .map(|index| Some(targets[index].fd).filter(|fd| is(index, restorer, *fd)))
        .collect();
    // A file can be in the set once under each number.
    let mut taken: BTreeSet<i32> = found.iter().flatten().copied().collect();
    let mut missing = Vec::new();
    for index in 0..targets.len() {
        if found[index].is_some() {
            continue;
        }
        let others = fds_of(restorer).into_iter().filter(|fd| is(index, restorer, *fd));
        let (free, used): (Vec<i32>, Vec<i32>) = others.partition(|fd| !taken.contains(fd));
        match free.first() {
            Some(fd) => {
                taken.insert(*fd);
                found[index] = Some(*fd);
            }
            None => missing.extend(
                whereabouts(around, restorer, &used, |process, fd| is(index, process, fd))
                    .map(|why| (targets[index], why)),
            ),
        }
    }
    (found, missing)
}

fn fds_of(pid: Pid) -> Vec<i32> {
    fdinfo::list(pid).unwrap_or_default()
}

/// Where a target is that the restoring process has under no number of its own. `None` for one that is closed, and stays in
/// the set for as long as we hold our duplicate of it.
fn whereabouts(
    around: &Around<'_>,
    restorer: Pid,
    used: &[i32],
    is: impl Fn(Pid, i32) -> bool,
) -> Option<String> {
    if let Some(fd) = used.first() {
        return Some(format!("process {restorer} has it as {fd} only, which is watched as well"));
    }
    let has = |process: &Pid| fds_of(*process).into_iter().any(|fd| is(*process, fd));
    match around.tree.tasks().filter(|process| *process != restorer).find(has) {
        Some(other) => Some(format!(
            "only process {other} still has it, while process {restorer} would have to add it anew"
        )),
        None if has(&Pid::this()) => None,
        None => Some("no process of the tree has it under any number".to_owned()),
    }
}

fn dump(
    around: &Around<'_>,
    id: u32,
    descriptor: &Descriptor,
    _: &mut FileTable,
) -> Result<FileEntry, DumpError> {
    let targets = descriptor.told(around.pid, FdInfo::epoll_targets)?;
    let (fds, missing) = numbers(around, descriptor, &targets);
    if !missing.is_empty() {
        let mut late = Findings::default();
        refuse(around, descriptor, missing, &mut late);
        return Err(DumpError::from_findings(late));
    }
    let entry = |target: &EpollTarget, fd: i32| EventpollTfdEntry {
        id: 0, // of images that had these entries apart
        tfd: fd as u32,
        events: target.events,
        data: target.data,
        dev: Some(target.device),
        inode: Some(target.inode),
        pos: Some(target.pos as u64),
    };
    let epfd = EventpollFileEntry {
        id,
        flags: descriptor.file_flags(),
        fown: fown::read(around.pid, descriptor)?,
        tfd: targets.iter().zip(fds).filter_map(|(target, fd)| Some(entry(target, fd?))).collect(),
    };
    Ok(FileEntry { r#type: FdTypes::Eventpoll.into(), id, epfd: Some(epfd), ..FileEntry::default() })
}
