//! All that must be the same of a process before and after a dump that did not take it away, seen from outside. What
//! only the process itself can tell (registers, how its waits end, what its timers have left) it checks when it is asked.

use super::child::eventually;
use super::product::source_state;
use super::scene::{Scene, proc_text, status_field};
use godwit_dumper::remote::{SCRATCH_HINT, SCRATCH_SLOTS, SCRATCH_STRIDE};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Lines `subject: value`, sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State(BTreeSet<String>);

/// What changes of a victim by itself and is therefore left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// Nothing.
    Still,
    /// Its timers tick, and signals come and are taken.
    Ticking,
    /// Some of its threads end.
    Ending,
    /// It maps and unmaps, opens and closes.
    Changing,
    /// It forks and waits, all the time: of its tree only the root stays.
    Forking,
}

/// What changes of a victim by itself.
pub fn busy_of(victim: &str) -> Busy {
    match victim {
        "mutator" => Busy::Changing,
        "churn_tree" | "forkstorm" => Busy::Forking,
        "busy" | "timers" => Busy::Ticking,
        "waits" => Busy::Ending,
        _ => Busy::Still,
    }
}

/// How long a thread may be on its way back.
const SETTLE: Duration = Duration::from_secs(3);

impl State {
    pub fn of(pid: i32, busy: Busy) -> Self {
        let mut lines = BTreeSet::new();
        let mut add = |line: String| {
            lines.insert(line);
        };
        if !matches!(busy, Busy::Changing | Busy::Forking) {
            mappings(pid).into_iter().for_each(&mut add);
            descriptors(pid).into_iter().for_each(&mut add);
        }
        let tids = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for tid in tids.map(|entry| entry.file_name().to_string_lossy().into_owned()) {
            let status = proc_text(pid, &format!("task/{tid}/status"));
            let fields = [
                "Name",
                "Tgid",
                "TracerPid",
                "Uid",
                "Gid",
                "Groups",
                "SigBlk",
                "SigIgn",
                "SigCgt",
                "CapInh",
                "CapPrm",
                "CapEff",
                "CapBnd",
                "CapAmb",
                "NoNewPrivs",
                "Seccomp",
                "Seccomp_filters",
                "Umask",
                "Cpus_allowed",
            ];
            let pending: &[&str] = match busy {
                Busy::Still => &["SigPnd", "ShdPnd", "Threads"],
                Busy::Ending => &["SigPnd", "ShdPnd"],
                Busy::Ticking => &["Threads"],
                Busy::Changing | Busy::Forking => &[],
            };
            for line in status.lines() {
                let name = line.split(':').next().unwrap_or_default();
                if fields.contains(&name) || pending.contains(&name) {
                    add(format!("thread {tid} {line}"));
                }
                if name == "State" {
                    // Running or waiting may change by itself; stopped or traced may not.
                    let state = line.split_whitespace().nth(1).unwrap_or_default();
                    let alive = if ["R", "S", "D"].contains(&state) { "alive" } else { state };
                    add(format!("thread {tid} state {alive}"));
                }
            }
            let stat = proc_text(pid, &format!("task/{tid}/stat"));
            // Behind the name: state is field 3; priority, nice are 18, 19; rt_priority, policy are 40, 41.
            let rest: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
            for (name, field) in [("priority", 18), ("nice", 19), ("rt_priority", 40), ("policy", 41)] {
                add(format!("thread {tid} {name} {}", rest.get(field - 3).unwrap_or(&"")));
            }
        }
        for name in
            ["timers", "cgroup", "limits", "oom_score_adj", "coredump_filter", "loginuid", "timerslack_ns"]
        {
            for (number, line) in proc_text(pid, name).lines().enumerate() {
                add(format!("{name} {number} {line}"));
            }
        }
        for name in ["cwd", "root", "exe"] {
            add(format!("{name} {:?}", std::fs::read_link(format!("/proc/{pid}/{name}")).ok()));
        }
        Self(lines)
    }

    /// What differs, a line each: `-` was there before, `+` is there now.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let gone = self.0.difference(&now.0).map(|line| format!("-{line}"));
        gone.chain(now.0.difference(&self.0).map(|line| format!("+{line}"))).collect()
    }

    /// Waits until the process is as it was.
    ///
    /// # Errors
    /// What differs, when time is over.
    pub fn again(&self, pid: i32, busy: Busy) -> Result<(), String> {
        self.again_but(pid, busy, |_| false)
    }

    /// The same, but for differences that are excused.
    ///
    /// # Errors
    /// What differs and is not excused, when time is over.
    pub fn again_but(&self, pid: i32, busy: Busy, excused: impl Fn(&str) -> bool) -> Result<(), String> {
        let until = Instant::now() + SETTLE;
        loop {
            let mut differences = self.differences(&Self::of(pid, busy));
            // A thread that waits for signals has them open while it waits, which it does not while it lies frozen.
            let is_frozen =
                differences.iter().any(|line| line.starts_with("+cgroup") && line.contains("/godwit-"));
            differences.retain(|line| {
                !(excused(line)
                    || busy == Busy::Ending && is_of_ended_thread(pid, line)
                    || is_frozen && line.contains(" SigBlk:"))
            });
            if differences.is_empty() {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(differences.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Whether a difference is one that a SIGKILL of the dumper may leave until the next run: a scratch mapping at one of its
/// places, a userfaultfd that is inert, the cgroup of a freeze.
pub fn may_be_left_by_a_kill(difference: &str) -> bool {
    let scratch = || {
        let start = difference.strip_prefix("+map ")?.split('-').next()?;
        let start = u64::from_str_radix(start, 16).ok()?;
        Some(start.wrapping_sub(SCRATCH_HINT) < SCRATCH_SLOTS * SCRATCH_STRIDE)
    };
    scratch() == Some(true)
        || difference.starts_with("+fd ")
            && difference.contains("anon_inode:[userfaultfd]")
            && difference.contains("API aa:0:")
        || difference.starts_with("+cgroup ") && difference.contains("/godwit-")
        || difference.starts_with("-cgroup ")
}

fn is_of_ended_thread(pid: i32, difference: &str) -> bool {
    let tid = difference.strip_prefix("-thread ").and_then(|rest| rest.split(' ').next());
    tid.is_some_and(|tid| !Path::new(&format!("/proc/{pid}/task/{tid}")).exists())
}

fn mappings(pid: i32) -> Vec<String> {
    let mut lines = Vec::new();
    let mut head = String::new();
    for line in proc_text(pid, "smaps").lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if first.contains('-') {
            head = line.split_whitespace().collect::<Vec<_>>().join(" ");
            if head.ends_with("[stack]") {
                // A stack that grows down does so at any deeper call.
                head = head.replacen(first.split('-').next().unwrap_or_default(), "stack", 1);
            }
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            // sd: soft-dirty, which a tracker clears and any write sets.
            let flags: Vec<&str> = flags.split_whitespace().filter(|flag| *flag != "sd").collect();
            lines.push(format!("map {head} flags {}", flags.join(" ")));
        }
    }
    lines
}

fn descriptors(pid: i32) -> Vec<String> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    fds.map(|fd| {
        let number = fd.file_name().to_string_lossy().into_owned();
        let target = std::fs::read_link(fd.path()).unwrap_or_default();
        let mut line = format!("fd {number} {}", target.display());
        for field in proc_text(pid, &format!("fdinfo/{number}")).lines() {
            if let Some((name, value)) = field.split_once(':')
                && ["flags", "API"].contains(&name)
            {
                let _ = write!(line, " {name} {}", value.trim());
            }
        }
        line
    })
    .collect()
}

/// That no thread of the process is traced, stopped or frozen.
///
/// # Panics
/// When one is for seconds.
#[track_caller]
pub fn expect_runs(pid: i32) {
    eventually("every thread runs untraced", SETTLE, || {
        let tids = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let mut tids = tids.map(|tid| tid.file_name().to_string_lossy().parse::<i32>().unwrap()).peekable();
        tids.peek().is_some()
            && tids.all(|tid| {
                status_field(tid, "TracerPid").as_deref() == Some("0")
                    && status_field(tid, "State").is_some_and(|state| state.starts_with(['R', 'S', 'D']))
            })
    });
}

/// That nothing of godwit's is in a process: no descriptor, no mapping, no cgroup.
///
/// # Panics
/// With what is.
#[track_caller]
pub fn expect_clean(pid: i32) {
    for fd in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        let link = std::fs::read_link(fd.path()).unwrap_or_default();
        assert!(!link.to_string_lossy().contains("userfaultfd"), "a userfaultfd was left in {pid}: {fd:?}");
    }
    let maps = proc_text(pid, "maps");
    // By the name of the scratch memory: the tree that is tested may lie in a directory of this name.
    assert!(!maps.contains("[anon:godwit"), "a mapping was left in {pid}:\n{maps}");
    let cgroup = proc_text(pid, "cgroup");
    assert!(!cgroup.contains("godwit"), "{pid} was left in a cgroup: {cgroup}");
}

/// The cgroups of hand-overs that this scene's journals tell of and that are still there.
pub fn cgroups_left(scene: &Scene) -> Vec<PathBuf> {
    let mount = scene.dir().join("cgroup2");
    if !mount.exists() {
        std::fs::create_dir(&mount).unwrap();
        use nix::mount::MsFlags;
        if nix::mount::mount(Some("none"), &mount, Some("cgroup2"), MsFlags::empty(), None::<&str>).is_err() {
            return Vec::new();
        }
    }
    let journals = std::fs::read_dir(source_state(scene)).into_iter().flatten().flatten();
    let names: BTreeSet<String> = journals
        .filter_map(|entry| Some(format!("godwit-{}", entry.file_name().to_str()?.strip_suffix(".journal")?)))
        .collect();
    let mut found = Vec::new();
    if !names.is_empty() {
        find_dirs(&mount, &names, &mut found);
    }
    found
}

fn find_dirs(dir: &Path, names: &BTreeSet<String>, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if names.contains(entry.file_name().to_string_lossy().as_ref()) {
            found.push(entry.path());
        }
        find_dirs(&entry.path(), names, found);
    }
}
