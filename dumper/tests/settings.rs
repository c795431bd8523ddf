//! Settings that no image holds: each is named by the doctor or the dump, and refused with `--strict`; and what cannot
//! be dumped at all is refused by name. Either way the process is as it was.
#![allow(clippy::unwrap_used)]

mod support;

use support::lab::{CriuVersion, Restored};
use support::product::{godwit, report};
use support::victim::{Verdict, Victim};
use support::{Finished, Scene};

/// A setting of the victim `unkept`, and what is said of it.
struct Case {
    setting: &'static str,
    says: &'static str,
    /// Whether it is known without stopping the process; on some kernels only, where nothing stands here.
    early: Option<bool>,
}

const fn early(setting: &'static str, says: &'static str) -> Case {
    Case { setting, says, early: Some(true) }
}

const fn late(setting: &'static str, says: &'static str) -> Case {
    Case { setting, says, early: Some(false) }
}

const fn some_time(setting: &'static str, says: &'static str) -> Case {
    Case { setting, says, early: None }
}

const LOSSES: &[Case] = &[
    early("ioprio", "I/O priority (class 2, level 7)"),
    early("affinity", "CPU affinity (mask 2)"),
    early("async", "si_fd"),
    early("slack", "timer slack (12345 ns)"),
    early("clamp", "utilisation clamps (100 to 500)"),
    early("core", "PR_SCHED_CORE"),
    early("speculation", "Speculation_Store_Bypass"),
    early("coredump", "coredump_filter 0x7"),
    early("autogroup", "(5, /proc/PID/autogroup)"),
    early("flusher", "PR_SET_IO_FLUSHER"),
    early("mce", "PR_MCE_KILL"),
    early("personality", "personality"),
    late("tsc", "PR_SET_TSC"),
    late("cpuid", "ARCH_SET_CPUID"),
    late("mdwe", "PR_SET_MDWE"),
    some_time("merge", "PR_SET_MEMORY_MERGE"),
    late("thp", "PR_SET_THP_DISABLE"),
    early("policy", "set_mempolicy"),
    late("death-signal", "parent death signal (SIGURG)"),
    late("keyring", "keyrings"),
    late("tsync", "SECCOMP_FILTER_FLAG_TSYNC"),
];

/// Settings that every kernel and container takes, so that this is never a test of nothing.
const ALWAYS: &[&str] =
    &["ioprio", "slack", "coredump", "personality", "tsc", "tsync", "death-signal", "async"];

const REFUSALS: &[Case] = &[
    early("deadline", "scheduled by deadline"),
    early("timer", "POSIX timer 0 signals a thread that has ended"),
    early("owner-thread", "F_SETOWN"),
    early("owner-group", "F_SETOWN"),
    early("owner-process", "F_SETOWN"),
    early("share-vm", "CLONE_VM"),
    early("share-files", "CLONE_FILES"),
    early("share-fs", "CLONE_FS"),
    early("share-sighand", "CLONE_SIGHAND"),
    late("dispatch", "PR_SET_SYSCALL_USER_DISPATCH"),
    late("notify", "SECCOMP_RET_USER_NOTIF"),
];

fn dump(scene: &Scene, pid: i32, more: &[&str]) -> Finished {
    let images = scene.subdir("images");
    let mut args = vec!["dump", "--json", "--leave-running", "--pid"];
    let pid = pid.to_string();
    args.extend([pid.as_str(), "--images-dir", images.to_str().unwrap()]);
    args.extend(more);
    godwit(scene, &args)
}

/// The victim with one setting, and the process that it shares something with; `None` where that cannot be set here.
fn start(scene: &Scene, setting: &'static str) -> Option<(Victim, Companion)> {
    let victim = Victim::start(scene, "unkept", &[setting]);
    if let Some(why) =
        victim.log().lines().find_map(|line| line.strip_prefix("UNSUPPORTED ").map(str::to_owned))
    {
        assert!(!ALWAYS.contains(&setting), "{setting}: {why}");
        println!("{setting}: not on this machine: {why}");
        return None;
    }
    let log = victim.log();
    let shares = log.lines().find_map(|line| line.strip_prefix("SHARES "));
    Some((victim, Companion(shares.map(|pid| pid.parse().unwrap()))))
}

/// A process that the victim made, which ends with this.
struct Companion(Option<i32>);

impl Drop for Companion {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
        }
    }
}

fn doctor(scene: &Scene, pid: i32) -> String {
    godwit(scene, &["doctor", "--json", "--pid", &pid.to_string()]).stdout
}

#[test]
fn what_a_restore_drops_is_named_and_refused_with_strict() {
    require!("root", "cc");
    let scene = Scene::new("losses");
    for case in LOSSES {
        let Some((mut victim, _companion)) = start(&scene, case.setting) else { continue };
        let seen = doctor(&scene, victim.pid);
        assert!(case.early.is_none_or(|early| seen.contains(case.says) == early), "{}: {seen}", case.setting);
        let dumped = dump(&scene, victim.pid, &[]).expect_ok();
        let losses = report(&dumped)["losses"].clone();
        let named =
            losses.as_array().unwrap().iter().filter(|loss| loss.as_str().unwrap().contains(case.says));
        assert_eq!(named.count(), 1, "{}: {losses}", case.setting);
        let refused = dump(&scene, victim.pid, &["--strict"]).expect_refusal();
        assert!(refused.stderr.contains(case.says), "{}: {refused}", case.setting);
        victim.expect_untouched();
        assert_eq!(victim.check(), Verdict::Ok, "{}", case.setting);
        scene.sweep();
    }
}

/// That these are losses: the victim itself finds the setting gone, where it found it before.
#[test]
fn what_is_said_to_be_dropped_is_dropped() {
    require!("root", "cc", "criu-4.2");
    let scene = Scene::new("dropped");
    let kept = |victim: &Victim| {
        victim.log().lines().find_map(|line| match line {
            "KEPT" => Some(true),
            "DROPPED" => Some(false),
            _ => None,
        })
    };
    // A signal that is sent is not dropped; a group of one for core scheduling shows nowhere.
    for case in LOSSES.iter().filter(|case| !["death-signal", "core"].contains(&case.setting)) {
        let Some((mut victim, _companion)) = start(&scene, case.setting) else { continue };
        let images = scene.subdir("images");
        let pid = victim.pid.to_string();
        let args = ["dump", "--leave-running", "--pid", &pid, "--images-dir", images.to_str().unwrap()];
        godwit(&scene, &args).expect_ok();
        assert_eq!(victim.check(), Verdict::Ok, "{}", case.setting);
        assert_eq!(kept(&victim), Some(true), "{}: the source", case.setting);
        std::fs::write(victim.dir().join("log"), "").unwrap();
        let restored = Restored::from_images(&images, CriuVersion::V4_2, &[], &victim);
        assert_eq!(restored.verdict(), Verdict::Ok, "{}", case.setting);
        assert_eq!(kept(&victim), Some(false), "{}: the copy", case.setting);
        scene.sweep();
    }
}

#[test]
fn a_process_with_nothing_of_that_loses_nothing() {
    require!("root", "cc");
    let scene = Scene::new("no-losses");
    let (mut victim, _) = start(&scene, "nothing").unwrap();
    let dumped = dump(&scene, victim.pid, &["--strict"]).expect_ok();
    assert_eq!(report(&dumped)["losses"].as_array().unwrap().len(), 0, "{dumped}");
    victim.expect_untouched();
}

#[test]
fn what_no_image_holds_is_refused_by_name() {
    require!("root", "cc");
    let scene = Scene::new("refusals");
    for case in REFUSALS {
        let Some((mut victim, _companion)) = start(&scene, case.setting) else { continue };
        let seen = doctor(&scene, victim.pid);
        assert!(case.early.is_none_or(|early| seen.contains(case.says) == early), "{}: {seen}", case.setting);
        let refused = dump(&scene, victim.pid, &[]).expect_refusal();
        assert!(refused.stderr.contains(case.says), "{}: {refused}", case.setting);
        victim.expect_untouched();
        assert_eq!(victim.check(), Verdict::Ok, "{}", case.setting);
        scene.sweep();
    }
}

/// A supervisor's end is lost whatever the rounds bring: it is refused before them.
#[test]
fn a_supervised_process_is_refused_before_the_rounds() {
    require!("root", "cc");
    let scene = Scene::new("supervised");
    let Some((mut victim, _companion)) = start(&scene, "notify") else { return };
    let images = scene.subdir("images");
    let pid = victim.pid.to_string();
    let round = ["pre-dump", "--pid", &pid, "--images-dir", images.to_str().unwrap()];
    let refused = godwit(&scene, &round).expect_refusal();
    assert!(refused.stderr.contains("SECCOMP_RET_USER_NOTIF"), "{refused}");
    victim.expect_untouched();
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn a_filter_that_could_end_it_is_a_risk_that_is_named() {
    require!("root", "cc");
    let scene = Scene::new("risks");
    for (name, args, early, says) in
        [("unkept", "strict", true, "strict seccomp mode"), ("sandbox", "kill", false, "forbid rt_sigreturn")]
    {
        let mut victim = Victim::start(&scene, name, &[args]);
        assert_eq!(doctor(&scene, victim.pid).contains(says), early, "{name}");
        let dumped = dump(&scene, victim.pid, &[]).expect_ok();
        assert!(dumped.stderr.contains(says), "{name}: {dumped}");
        let refused = dump(&scene, victim.pid, &["--strict"]).expect_refusal();
        assert!(refused.stderr.contains(says), "{name}: {refused}");
        victim.expect_untouched();
        scene.sweep();
    }
}

#[test]
fn two_thousand_threads_come_back() {
    require!("root", "cc", "criu-4.2");
    let scene = Scene::new("crowd");
    let mut victim = Victim::start(&scene, "crowd", &["2000"]);
    let images = scene.subdir("images");
    godwit(&scene, &["dump", "--pid", &victim.pid.to_string(), "--images-dir", images.to_str().unwrap()])
        .expect_ok();
    victim.expect_killed();
    victim.ask();
    assert_eq!(Restored::from_images(&images, CriuVersion::V4_2, &[], &victim).verdict(), Verdict::Ok);
}

/// Runs the program without one of root's capabilities.
fn without(scene: &Scene, capability: &str, args: &[&str]) -> Finished {
    let godwit = support::product::godwit_command(scene, args);
    let mut command = std::process::Command::new("setpriv");
    command.args([format!("--bounding-set=-{capability}"), format!("--inh-caps=-{capability}")]);
    command.arg(godwit.get_program()).args(godwit.get_args());
    godwit.get_envs().for_each(|(name, value)| {
        if let Some(value) = value {
            command.env(name, value);
        }
    });
    support::run(command, std::time::Duration::from_secs(30))
}

#[test]
fn a_missing_capability_is_named() {
    require!("root", "cc", "setpriv");
    let scene = Scene::new("rights");
    for (name, args, capability, says) in [
        ("privileges", "closed", "sys_ptrace", "CAP_SYS_PTRACE"),
        ("privileges", "user", "sys_ptrace", "CAP_SYS_PTRACE"),
        ("seccomp", "", "sys_admin", "CAP_SYS_ADMIN"),
    ] {
        let mut victim = Victim::start(&scene, name, &[args]);
        let pid = victim.pid.to_string();
        let images = scene.subdir("images");
        let dump = ["dump", "--leave-running", "--pid", &pid, "--images-dir", images.to_str().unwrap()];
        let doctor = ["doctor", "--pid", &pid];
        let refused = without(&scene, capability, &dump).expect_refusal();
        assert!(refused.stderr.contains(says), "{name}: {refused}");
        let seen = without(&scene, capability, &doctor);
        assert!(seen.stdout.contains(says), "{name}: {seen}");
        // With it the process is no secret, whoever may not look otherwise.
        godwit(&scene, &dump).expect_ok();
        victim.expect_untouched();
        assert_eq!(victim.check(), Verdict::Ok, "{name}");
        scene.sweep();
    }
}

#[test]
fn a_process_in_strict_mode_comes_back_in_it() {
    require!("root", "cc", "criu-4.1", "criu-4.2");
    let scene = Scene::new("strict");
    for version in support::lab::BOTH {
        let mut victim = Victim::start(&scene, "unkept", &["strict"]);
        let images = scene.subdir("images");
        let pid = victim.pid.to_string();
        godwit(&scene, &["dump", "--pid", &pid, "--images-dir", images.to_str().unwrap()]).expect_ok();
        victim.expect_killed();
        let restored = Restored::from_images(&images, version, &[], &victim);
        let field = |name: &str| support::scene::status_field(restored.pid, name);
        assert_eq!(field("Seccomp").as_deref(), Some("1"), "CRIU {}", version.text());
        assert!(field("State").unwrap().starts_with('R'), "it does not run on: {:?}", field("State"));
        drop(restored);
        scene.sweep();
    }
}
