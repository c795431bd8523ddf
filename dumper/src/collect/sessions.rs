//! Sessions and process groups: whether a restore can give every process those that it is in.
//!
//! A process cannot join a session: it is born into that of its parent, or makes one of its own (man 2 setsid). CRIU restores
//! a session whose leader is an ancestor by having the ancestors fork before they make sessions of their own, once
//! each, and one of a child of the root by a helper that ends again, since such a child may have been left to
//! the root by its parent (criu/pstree.c, prepare_pstree_ids). The end of the helper leaves that child to the init of the pid
//! namespace, also where the root is a subreaper, which is a loss. What neither gives back is refused here. The number of a group
//! or session whose leader is gone is held by a helper meanwhile.

use std::collections::BTreeMap;

use nix::unistd::Pid;

use super::tree::Place;
use crate::refusal::{Findings, Subject};

/// A way out for all of them.
const WAY_OUT: &str = "wait until that process has ended, or dump it apart";

/// Checks all processes of a tree, dead ones too: the root first, parents before their children. `is_thread` tells
/// whether a number, inside, is that of a thread; it is asked for few. `shell_job` says that the root's session may lie
/// outside of the tree.
pub fn check(
    all: &[(Pid, Place)],
    is_thread: &dyn Fn(u32) -> bool,
    shell_job: bool,
    findings: &mut Findings,
) {
    let Some((_, root)) = all.first() else { return };
    let of_all: BTreeMap<u32, Place> = all.iter().map(|(_, place)| (place.pid, *place)).collect();
    let mut family = Family::new(root, all, &of_all);
    for (pid, place) in all {
        let subject = || Subject::Process(*pid);
        if place.sid == 0 || place.pgid == 0 {
            let what = if place.sid == 0 { "session" } else { "process group" };
            findings.refuse(
                subject(),
                format!("its {what} lies outside of its pid namespace"),
                "start the program with `setsid` inside",
            );
            continue;
        }
        if place.pid == root.pid {
            if place.sid != place.pid && !shell_job {
                findings.refuse(
                    subject(),
                    format!("it is not the leader of its session ({})", place.sid),
                    "start the program with `setsid`, or give --shell-job to restore it into the session of `criu`",
                );
            }
        } else if let Some(why) = family.why_not(place) {
            findings.refuse(subject(), why, WAY_OUT);
        } else if let Parent::Helper { sid, .. } = family.parent(place.pid) {
            findings.lose(
                subject(),
                format!(
                    "its parent is the init of its pid namespace after a restore, and no longer process {}: CRIU makes it \
                     in its session ({sid}) as the child of a helper that ends",
                    place.ppid
                ),
            );
        }
        if let Some(why) = group(place, root, &of_all, is_thread) {
            findings.refuse(subject(), why, WAY_OUT);
        }
    }
}

/// Why a process group cannot be given back, if so.
fn group(
    place: &Place,
    root: &Place,
    all: &BTreeMap<u32, Place>,
    is_thread: &dyn Fn(u32) -> bool,
) -> Option<String> {
    if place.pgid == place.pid {
        return None;
    }
    let Some(leader) = all.get(&place.pgid) else {
        return is_thread(place.pgid)
            .then(|| format!("the number of its process group ({}) is that of a thread by now", place.pgid));
    };
    // One that the root was born into is that of `criu` after a restore, whoever else is in it.
    let is_of_root = place.pgid == root.pgid && root.pgid != root.pid;
    if leader.pgid != leader.pid && !is_of_root {
        return Some(format!(
            "process {} gave its process group the number and has left it, and a restore cannot make that group",
            place.pgid
        ));
    }
    None
}

/// Who restores whom, as CRIU arranges it.
struct Family {
    root_sid: u32,
    /// Parent of each process, or the helper that takes that place.
    parents: BTreeMap<u32, Parent>,
    sids: BTreeMap<u32, u32>,
    /// The session that a process must be in while it forks.
    born: BTreeMap<u32, u32>,
}

#[derive(Clone, Copy, Debug)]
enum Parent {
    None,
    Process(u32),
    /// A helper in this session, whose parent is the process.
    Helper {
        sid: u32,
        parent: u32,
    },
}

impl Family {
    fn new(root: &Place, all: &[(Pid, Place)], of_all: &BTreeMap<u32, Place>) -> Family {
        let mut parents = BTreeMap::new();
        for (_, place) in all {
            let parent = if place.pid == root.pid {
                Parent::None
            } else if place.ppid == root.pid && place.sid != root.sid && place.sid != place.pid {
                // Under the leader, or where that is gone under the root.
                let leader = if of_all.contains_key(&place.sid) { place.sid } else { root.pid };
                Parent::Helper { sid: place.sid, parent: leader }
            } else {
                Parent::Process(place.ppid)
            };
            parents.insert(place.pid, parent);
        }
        let sids = all.iter().map(|(_, place)| (place.pid, place.sid)).collect();
        Family { root_sid: root.sid, parents, sids, born: BTreeMap::new() }
    }

    fn parent(&self, pid: u32) -> Parent {
        self.parents.get(&pid).copied().unwrap_or(Parent::None)
    }

    /// Why a process cannot be born into its session, if so.
    fn why_not(&mut self, place: &Place) -> Option<String> {
        if place.sid == place.pid {
            return None;
        }
        let mut at = match self.parent(place.pid) {
            Parent::None | Parent::Helper { .. } => return None,
            Parent::Process(parent) if self.sids.get(&parent) == Some(&place.sid) => return None,
            Parent::Process(parent) => parent,
        };
        // A chain of parents has no cycle; the bound is for a table that changed while it was read.
        for _ in 0..=self.parents.len() {
            if at == place.sid {
                return None;
            }
            let born = *self.born.entry(at).or_insert(place.sid);
            if born != place.sid {
                return Some(format!(
                    "its session ({}) is one that process {at} left after it had been in another one ({born}), and a \
                     restore gives a process one session before its own",
                    place.sid
                ));
            }
            at = match self.parent(at) {
                Parent::Process(parent) => parent,
                Parent::Helper { sid, .. } if sid == place.sid => return None,
                Parent::Helper { parent, .. } => parent,
                // The session that the root itself was born into.
                Parent::None if place.sid == self.root_sid => return None,
                Parent::None => break,
            };
        }
        Some(format!("the leader of its session ({}) is none of its ancestors", place.sid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pid, parent, group, session; the root is 10.
    fn refused(all: &[(u32, u32, u32, u32)], shell_job: bool) -> Vec<(i32, String)> {
        let all: Vec<_> = all
            .iter()
            .map(|&(pid, ppid, pgid, sid)| (Pid::from_raw(pid as i32), Place { pid, ppid, pgid, sid }))
            .collect();
        let mut findings = Findings::default();
        check(&all, &|number| number == 77, shell_job, &mut findings);
        let mut told = Vec::new();
        for refusal in findings.refusals {
            let Subject::Process(pid) = refusal.subject else { panic!("{refusal:?}") };
            told.push((pid.as_raw(), refusal.why));
        }
        told
    }

    #[test]
    fn a_child_that_a_helper_must_make_loses_its_parent() {
        let places =
            [(10, 0, 10), (11, 10, 10), (14, 10, 14), (15, 14, 14), (16, 10, 14), (17, 10, 98), (18, 17, 98)];
        let place = |&(pid, ppid, sid): &(u32, u32, u32)| {
            (Pid::from_raw(pid as i32), Place { pid, ppid, pgid: sid, sid })
        };
        let all: Vec<_> = places.iter().map(place).collect();
        let mut findings = Findings::default();
        check(&all, &|_| false, false, &mut findings);
        assert_eq!(findings.refusals, []);
        let lost =
            |loss: &crate::refusal::Loss| (loss.subject.clone(), loss.what.contains("no longer process 10"));
        let lost: Vec<_> = findings.losses.iter().map(lost).collect();
        let process = |pid| (Subject::Process(Pid::from_raw(pid)), true);
        assert_eq!(lost, [process(16), process(17)]);
    }

    const ROOT: (u32, u32, u32, u32) = (10, 0, 10, 10);

    #[test]
    fn sessions_and_groups_that_come_back() {
        // Groups within the session, one whose leader is gone; a session of its own with a group; orphans of a
        // session deeper down and of one whose leader is gone, left to the root.
        let tree = [
            ROOT,
            (11, 10, 11, 10),
            (12, 10, 11, 10),
            (13, 11, 99, 10),
            (14, 10, 14, 14),
            (15, 14, 15, 14),
            (16, 10, 14, 14),
            (17, 10, 98, 98),
            (18, 17, 98, 98),
        ];
        assert_eq!(refused(&tree, false), []);
        // Born before its parent made a session of its own.
        assert_eq!(refused(&[ROOT, (11, 10, 11, 11), (12, 11, 12, 10)], false), []);
    }

    #[test]
    fn what_no_restore_can_make_is_named() {
        // The leader of its session is gone, and its parent is in another one.
        let tree = [ROOT, (11, 10, 10, 10), (12, 11, 50, 50)];
        assert_eq!(refused(&tree, false)[0].0, 12);
        // Two sessions before its own.
        let tree = [ROOT, (14, 10, 14, 14), (11, 14, 11, 11), (12, 11, 12, 10), (13, 11, 13, 14)];
        assert_eq!(refused(&tree, false).iter().map(|one| one.0).collect::<Vec<_>>(), [13]);
        // A leader that left its group; a number that is a thread's; nothing of ours.
        let left = [ROOT, (11, 10, 10, 10), (12, 10, 11, 10)];
        assert!(refused(&left, false)[0].1.contains("has left it"));
        assert!(refused(&[ROOT, (11, 10, 77, 10)], false)[0].1.contains("thread"));
        assert_eq!(refused(&[ROOT, (11, 10, 0, 10), (12, 10, 10, 0)], false).len(), 2);
    }

    #[test]
    fn a_root_in_a_foreign_session_is_a_shell_job() {
        let tree = [(10, 0, 10, 5), (11, 10, 11, 5), (12, 11, 5, 5)];
        assert_eq!(refused(&tree, true), []);
        assert_eq!(refused(&tree, false).iter().map(|one| one.0).collect::<Vec<_>>(), [10]);
    }
}
