//! All processes of a victim that has children: found, compared with what they were, and seen to be gone.

use super::child::eventually;
use super::scene::{is_alive, proc_text, status_field};
use super::untouched::{self, Busy, State};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A process, told from a later one with its number by the time it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`, in clock ticks since boot.
    pub started_ticks: u64,
}

impl Member {
    /// The process that has this number now.
    pub fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, started_ticks: stat_field(pid, 22)?.parse().ok()? })
    }

    /// Whether it is still there, if only as a zombie.
    pub fn exists(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Whether it is still there and not a zombie.
    pub fn is_alive(self) -> bool {
        self.exists() && is_alive(self.pid)
    }

    /// The letter of its state; `None` when it is gone.
    pub fn state(self) -> Option<char> {
        stat_field(self.pid, 3).filter(|_| self.exists())?.chars().next()
    }
}

/// A field of `/proc/PID/stat`, counted as in proc(5), from 3 on.
fn stat_field(pid: i32, number: usize) -> Option<String> {
    let text = proc_text(pid, "stat");
    let (_, behind_the_name) = text.rsplit_once(") ")?;
    behind_the_name.split(' ').nth(number - 3).map(str::to_owned)
}

/// The parent of a process, as its parent's namespace numbers it.
pub fn parent(pid: i32) -> Option<i32> {
    stat_field(pid, 4)?.parse().ok()
}

/// A process and all that descend from it, parents before children, zombies among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree(pub Vec<Member>);

impl Tree {
    /// The tree below `root` as it is now.
    pub fn of(root: i32) -> Self {
        let mut members: Vec<Member> = Member::of(root).into_iter().collect();
        let mut next = 0;
        while let Some(member) = members.get(next) {
            for child in children(member.pid) {
                members.extend(Member::of(child).filter(|child| !members.contains(child)));
            }
            next += 1;
        }
        Self(members)
    }

    pub fn pids(&self) -> Vec<i32> {
        self.0.iter().map(|member| member.pid).collect()
    }

    /// What each member is now.
    pub fn states(&self, busy: Busy) -> States {
        // Where processes come and go, only the root is sure to stay.
        let stay = if busy == Busy::Forking { 1 } else { self.0.len() };
        let state = |member: &Member| (*member, member.state(), State::of(member.pid, busy));
        States { root: self.0[0].pid, busy, states: self.0[..stay].iter().map(state).collect() }
    }

    /// That none of them lives, and that those who died are no more than zombies of someone else.
    #[track_caller]
    pub fn expect_killed(&self) {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let alive: Vec<&Member> = self.0.iter().filter(|member| member.is_alive()).collect();
            if alive.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "of {} processes these live: {alive:?}", self.0.len());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills all of them and what they have forked meanwhile.
    pub fn kill(&self) {
        for _ in 0..50 {
            let now =
                self.0.iter().filter(|member| member.exists()).flat_map(|member| Self::of(member.pid).0);
            let alive: BTreeSet<Member> = now.filter(|member| member.is_alive()).collect();
            if alive.is_empty() {
                return;
            }
            for member in &alive {
                let pid = Pid::from_raw(member.pid);
                let _ = kill(pid, Signal::SIGKILL);
                let _ = kill(pid, Signal::SIGCONT);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stops every task that is not stopped already, children after their parents, until all lie still.
    ///
    /// # Errors
    /// Which task does not stop.
    pub fn stop(root: i32) -> Result<Self, String> {
        for _ in 0..500 {
            let tree = Self::of(root);
            let running: Vec<i32> =
                tree.0.iter().filter(|member| !all_stopped(member.pid)).map(|member| member.pid).collect();
            if running.is_empty() && tree == Self::of(root) {
                return Ok(tree);
            }
            for pid in running {
                // To one that a SIGSTOP is on its way to, another would stay pending.
                let is_on_its_way = || pending(pid).is_some_and(|set| set & STOP != 0);
                if status_field(pid, "State").is_some_and(|state| !state.starts_with('T')) && !is_on_its_way()
                {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let running = Self::of(root).0.into_iter().filter(|member| !all_stopped(member.pid));
        Err(format!("of the tree of {root} these do not stop: {:?}", running.collect::<Vec<_>>()))
    }
}

/// The bit of SIGSTOP in a signal set.
const STOP: u64 = 1 << (Signal::SIGSTOP as u64 - 1);

/// The signals that wait for the process as a whole.
fn pending(pid: i32) -> Option<u64> {
    u64::from_str_radix(&status_field(pid, "ShdPnd")?, 16).ok()
}

/// Whether every thread has stopped, or is dead.
fn all_stopped(pid: i32) -> bool {
    threads(pid)
        .into_iter()
        .all(|tid| status_field(tid, "State").is_none_or(|state| state.starts_with(['T', 'Z', 'X'])))
}

/// The threads of a process.
pub fn threads(pid: i32) -> Vec<i32> {
    let tids = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tids.filter_map(|tid| tid.file_name().to_str()?.parse().ok()).collect()
}

/// The children of all threads of a process, in the order of their birth by thread.
pub fn children(pid: i32) -> Vec<i32> {
    let of_thread = |tid: i32| {
        let list = proc_text(pid, &format!("task/{tid}/children"));
        list.split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<i32>>()
    };
    threads(pid).into_iter().flat_map(of_thread).collect()
}

/// What the tasks of a tree were, to be compared with what they are.
#[derive(Clone, Debug)]
pub struct States {
    root: i32,
    busy: Busy,
    states: Vec<(Member, Option<char>, State)>,
}

impl States {
    /// Waits until every task is as it was, and no task is there that was not.
    ///
    /// # Errors
    /// What differs, when time is over.
    pub fn again(&self) -> Result<(), String> {
        self.again_but(|_| false)
    }

    /// The same, but for differences that are excused.
    ///
    /// # Errors
    /// What differs and is not excused, when time is over.
    pub fn again_but(&self, excused: impl Fn(&str) -> bool) -> Result<(), String> {
        self.again_with(|_, difference| excused(difference))
    }

    /// The same, but for what a SIGKILL of the dumper may leave: besides what it may leave of any task, the blocked signals
    /// of one that was stopped. It heals as it goes on, and until then takes none but SIGKILL and SIGCONT anyway.
    ///
    /// # Errors
    /// As [`States::again_but`].
    pub fn again_after_a_kill(&self) -> Result<(), String> {
        self.again_with(|state, difference| {
            let is_mask = difference.contains("thread ") && difference.contains(" SigBlk:");
            untouched::may_be_left_by_a_kill(difference) || state == Some('T') && is_mask
        })
    }

    fn again_with(&self, excused: impl Fn(Option<char>, &str) -> bool) -> Result<(), String> {
        let tree = Tree::of(self.root);
        let before = self.states.iter().map(|(member, ..)| *member);
        if self.busy != Busy::Forking && !before.clone().eq(tree.0.iter().copied()) {
            let before: Vec<Member> = before.collect();
            return Err(format!("the tree was {before:?} and is {:?}", tree.0));
        }
        for (member, before, state) in &self.states {
            let excused = |difference: &str| excused(*before, difference);
            if !member.exists() {
                return Err(format!("task {} is gone", member.pid));
            }
            let told = |what| format!("task {}:\n{what}", member.pid);
            state.again_but(member.pid, self.busy, excused).map_err(told)?;
        }
        Ok(())
    }

    /// That every task is there and untraced, that those run which ran and those are stopped which were.
    #[track_caller]
    pub fn expect_running(&self) {
        for (member, before, _) in &self.states {
            assert!(member.exists(), "task {} is gone", member.pid);
            match before {
                Some('Z') => assert_eq!(member.state(), Some('Z'), "task {}", member.pid),
                Some('T') => eventually("a stopped task lies untraced", Duration::from_secs(5), || {
                    member.state() == Some('T')
                        && status_field(member.pid, "TracerPid").as_deref() == Some("0")
                }),
                _ => untouched::expect_runs(member.pid),
            }
        }
    }

    /// That, and that nothing of godwit's is left in any.
    #[track_caller]
    pub fn expect_untouched(&self) {
        self.expect_running();
        self.states.iter().for_each(|(member, ..)| untouched::expect_clean(member.pid));
    }
}
