//! What of a tree cannot be dumped, or is lost by a restore, is named before anything is stopped, by the doctor and by the
//! dump, and never at the tree's cost.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use support::product::{GODWIT_LIMIT, godwit, godwit_command, report, source_state};
use support::tree::States;
use support::untouched::Busy;
use support::victim::{Verdict, Victim, session_leader};
use support::{Finished, Scene, scene};

/// A command about a tree that writes into `images`; it dies where it comes as far as the freeze.
fn before_the_freeze(scene: &Scene, verb: &str, pid: i32, images: &Path, more: &[&str]) -> Finished {
    let pid = pid.to_string();
    let args = [&[verb, "--pid", &pid, "--images-dir", images.to_str().unwrap()], more].concat();
    let mut command = godwit_command(scene, &args);
    command.env("GODWIT_FAULT", "step.before.alarm:kill");
    support::run(command, GODWIT_LIMIT)
}

/// That the doctor, a dump and a round refuse the tree with these words, with nothing written and the tree as it was.
#[track_caller]
fn expect_refused(scene: &Scene, pid: i32, words: &[String], before: &States) {
    let doctor = godwit(scene, &["doctor", "--pid", &pid.to_string()]);
    assert_eq!(doctor.code(), Some(3), "{doctor}");
    for verb in ["dump", "pre-dump"] {
        let images = scene.subdir("images");
        let refused = before_the_freeze(scene, verb, pid, &images, &[]);
        assert_eq!(refused.code(), Some(3), "it is not refused before the freeze: {refused}");
        for word in words {
            assert!(doctor.stdout.contains(word), "the doctor does not say {word:?}: {doctor}");
            assert!(refused.stderr.contains(word), "{verb} does not say {word:?}: {refused}");
        }
        assert!(std::fs::read_dir(&images).unwrap().next().is_none(), "{verb} has left something: {refused}");
        before.again().unwrap_or_else(|what| panic!("after {verb}: {what}\n{refused}"));
    }
}

#[test]
fn what_processes_cannot_share_is_refused_by_name() {
    require!("root", "cc");
    let scene = Scene::new("shares");
    for (mode, what) in [
        ("vm", "address space (CLONE_VM, vfork)"),
        ("fs", "root and working directory (CLONE_FS)"),
        ("sighand", "signal handlers (CLONE_SIGHAND)"),
        ("vfork", "address space (CLONE_VM, vfork)"),
        ("init", "it is the first process of a pid namespace"),
    ] {
        let mut victim = Victim::start(&scene, "sharevm", &[mode]);
        let tree = victim.tree();
        let &[root, child] = &tree.pids()[..] else { panic!("{mode}: {tree:?}") };
        let before = tree.states(Busy::Still);
        let words = match mode {
            "init" => vec![format!("process {child}: {what}")],
            _ => vec![
                format!("process {child}: it shares its "),
                what.to_owned(),
                format!("with process {root}"),
            ],
        };
        expect_refused(&scene, victim.pid, &words, &before);
        // Named as the root, the child is refused too: what it shares lies outside of the tree then.
        let of_child = godwit(&scene, &["doctor", "--pid", &child.to_string()]);
        assert!(of_child.stdout.contains(what), "{mode}: {of_child}");
        before.again().unwrap_or_else(|why| panic!("{mode}: {why}"));
        // A task that waits in vfork is stopped by no signal, and runs as the others do.
        before.expect_running();
        assert_eq!(victim.check(), Verdict::Ok, "{mode}");
    }
}

#[test]
fn a_tree_over_two_cgroups_is_refused_by_name() {
    require!("root", "cc");
    let scene = Scene::new("cgroups");
    let mount = scene.subdir("cgroup");
    nix::mount::mount(Some("none"), &mount, Some("cgroup2"), nix::mount::MsFlags::empty(), None::<&str>)
        .unwrap();
    let group = mount.join(format!("test-tree-{}", std::process::id()));
    std::fs::create_dir(&group).unwrap();
    let mut victim = Victim::start(&scene, "family", &[]);
    let tree = victim.tree();
    let moved = *tree.pids().last().unwrap();
    let home = mount.join(home_group(moved).trim_start_matches('/'));
    std::fs::write(group.join("cgroup.procs"), moved.to_string()).unwrap();
    let before = tree.states(Busy::Still);
    let words = [format!(
        "process {moved}: it is in other cgroups than the root of its tree, process {}",
        victim.pid
    )];
    expect_refused(&scene, victim.pid, &words, &before);
    before.expect_untouched();
    // Where it belongs, nothing is in the way.
    std::fs::write(home.join("cgroup.procs"), moved.to_string()).unwrap();
    std::fs::remove_dir(&group).unwrap();
    godwit(&scene, &["doctor", "--pid", &victim.pid.to_string()]).expect_ok();
    assert_eq!(victim.check(), Verdict::Ok);
}

/// The path of a process in the cgroup v2 hierarchy.
fn home_group(pid: i32) -> String {
    let text = scene::proc_text(pid, "cgroup");
    text.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned()
}

/// A shell with a child that starts godwit, and another child.
const DUMPED_FROM_WITHIN: &str = r#"
sleep 1000 &
other=$!
(
    "$GODWIT" doctor --pid $$ > doctor 2>&1; echo $? > doctor.status
    "$GODWIT" dump --pid $$ --images-dir images > dump 2>&1; echo $? > dump.status
    "$GODWIT" pre-dump --pid $$ --images-dir images > pre-dump 2>&1; echo $? > pre-dump.status
    exit 5
) &
wait $!
[ $? = 5 ] || echo "FAIL the other child ended with $?"
echo READY $$
until [ -e check ]; do sleep 0.02; done
kill -0 $other || echo "FAIL the other child is gone"
kill $other
echo OK
"#;

#[test]
fn a_tree_that_godwit_is_a_part_of_is_refused_by_name() {
    require!("root");
    let scene = Scene::new("within");
    let script = scene.dir().join("script");
    std::fs::write(&script, DUMPED_FROM_WITHIN).unwrap();
    let mut shell = session_leader("env");
    shell.arg(format!("GODWIT={}", env!("CARGO_BIN_EXE_godwit")));
    shell.arg(format!("GODWIT_STATE_DIR={}", source_state(&scene).display()));
    shell.arg("sh").arg(&script);
    let mut victim = Victim::start_command(&scene, "within", shell);
    for verb in ["doctor", "dump", "pre-dump"] {
        let told = |name: &str| std::fs::read_to_string(victim.dir().join(name)).unwrap();
        let said = told(verb);
        assert_eq!(told(&format!("{verb}.status")).trim(), "3", "{verb}: {said}");
        assert!(said.contains("it is godwit itself"), "{verb}: {said}");
        assert!(said.contains("setsid -f"), "{verb} names no way out: {said}");
    }
    assert!(!victim.dir().join("images/inventory.img").exists());
    victim.expect_untouched();
    assert_eq!(victim.check(), Verdict::Ok);
}

/// One child traces another, as strace does, and says so.
const TRACES: &str = r#"
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
SEIZE, DETACH = 0x4206, 17
def until_asked():
    while not os.path.exists("check"): time.sleep(0.01)
traced = os.fork()
if traced == 0:
    until_asked()
    time.sleep(0.2)
    os._exit(6)
tracer = os.fork()
if tracer == 0:
    if libc.ptrace(SEIZE, traced, 0, 0) != 0: os._exit(1)
    print("READY", traced, os.getpid(), flush=True)
    until_asked()
    own = open("/proc/%d/status" % traced).read()
    os._exit(7 if "TracerPid:\t%d\n" % os.getpid() in own else 2)
until_asked()
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in (tracer, traced)]
print("OK" if codes == [7, 6] else "FAIL they ended with %s" % codes, flush=True)
"#;

#[test]
fn a_tracer_within_the_tree_is_refused_by_name_and_goes_on_tracing() {
    require!("root", "python3");
    let scene = Scene::new("traces");
    let mut python = session_leader("python3");
    python.args(["-c", TRACES]);
    let mut victim = Victim::start_command(&scene, "traces", python);
    let log = victim.log();
    let pids: Vec<i32> = log.split_whitespace().skip(1).take(2).map(|pid| pid.parse().unwrap()).collect();
    let before = victim.tree().states(Busy::Still);
    let words = [format!("process {}: process {} traces it", pids[0], pids[1])];
    expect_refused(&scene, victim.pid, &words, &before);
    assert_eq!(scene::status_field(pids[0], "TracerPid"), Some(pids[1].to_string()));
    assert_eq!(victim.check(), Verdict::Ok);
}

/// Trees of which CRIU's restore drops something, and what is said of it, each thing once.
const LOSSES: &[(&str, &[&str], &[&str])] = &[
    ("zombies", &["high"], &["exit code 128, and its parent", "exit code 255, and its parent"]),
    ("sessions", &["orphaned"], &["its parent is the init of its pid namespace after a restore"]),
    ("reparented", &["daemon"], &["its parent is the init of its pid namespace after a restore"]),
];

#[test]
fn what_is_lost_of_a_tree_is_named_and_refused_when_strict() {
    require!("root", "cc");
    let scene = Scene::new("lost");
    for (name, args, says) in LOSSES {
        let mut victim = Victim::start(&scene, name, args);
        let before = victim.tree().states(Busy::Still);
        let doctor = godwit(&scene, &["doctor", "--pid", &victim.pid.to_string()]).expect_ok();
        let strict = before_the_freeze(&scene, "dump", victim.pid, &scene.subdir("images"), &["--strict"]);
        assert_eq!(strict.code(), Some(3), "{name}: {strict}");
        before.again().unwrap_or_else(|what| panic!("{name}: {what}\n{strict}"));
        let losses = losses_of_dump(&scene, victim.pid, &[]);
        for says in *says {
            assert!(doctor.stdout.contains(says), "{name}: the doctor does not say {says:?}: {doctor}");
            assert!(strict.stderr.contains(says), "{name}: --strict does not say {says:?}: {strict}");
            let told: Vec<&String> = losses.iter().filter(|loss| loss.contains(says)).collect();
            assert!(!told.is_empty(), "{name}: the report does not say {says:?}: {losses:?}");
        }
        let mut once = losses.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), losses.len(), "{name}: something is said twice: {losses:?}");
        before.expect_untouched();
        before.again().unwrap_or_else(|what| panic!("{name}: {what}"));
        assert_eq!(victim.check(), Verdict::Ok, "{name}");
    }
}

#[test]
fn of_an_ordinary_tree_nothing_is_lost() {
    require!("root", "cc");
    let scene = Scene::new("nothing-lost");
    for name in ["family", "zombies", "sessions", "reparented", "sigchld", "stopped"] {
        let mut victim = Victim::start(&scene, name, &[]);
        let losses = losses_of_dump(&scene, victim.pid, &["--strict"]);
        assert_eq!(losses, Vec::<String>::new(), "{name}");
        assert_eq!(victim.check(), Verdict::Ok, "{name}");
    }
}

/// What a dump that leaves the tree running reports as lost.
#[track_caller]
fn losses_of_dump(scene: &Scene, pid: i32, more: &[&str]) -> Vec<String> {
    let images = scene.subdir("images");
    let pid = pid.to_string();
    let args = ["dump", "--json", "--leave-running", "--pid", &pid, "--images-dir", images.to_str().unwrap()];
    let dumped = godwit(scene, &[&args, more].concat()).expect_ok();
    let losses = report(&dumped)["losses"].as_array().cloned().unwrap();
    losses.iter().map(ToString::to_string).collect()
}

/// What is lost shows only at the last moment: a child that ends between the look and the freeze.
#[test]
fn a_loss_that_appears_at_the_last_moment_is_refused_when_strict() {
    require!("root", "python3");
    const PROGRAM: &str = "import os, time\n\
        if os.fork() == 0:\n\
        \twhile not os.path.exists('end'): time.sleep(0.01)\n\
        \tos._exit(200)\n\
        print('READY', flush=True)\n\
        while not os.path.exists('check'): time.sleep(0.01)\n\
        code = os.waitstatus_to_exitcode(os.wait()[1])\n\
        print('OK' if code == 200 else f'FAIL {code}', flush=True)\n";
    let scene = Scene::new("late-loss");
    let mut python = session_leader("python3");
    python.args(["-c", PROGRAM]);
    let mut victim = Victim::start_command(&scene, "late", python);
    let child = victim.tree().pids()[1];
    let images = scene.subdir("images");
    let pid = victim.pid.to_string();
    let mut strict = godwit_command(
        &scene,
        &["dump", "--strict", "--pid", &pid, "--images-dir", images.to_str().unwrap()],
    );
    strict.env("GODWIT_FAULT", "step.before.alarm:delay-1500");
    let running = support::child::Running::start(strict);
    std::thread::sleep(std::time::Duration::from_millis(700));
    victim.tell("end");
    let refused = running.finish(GODWIT_LIMIT);
    assert_eq!(refused.code(), Some(3), "{refused}");
    assert!(
        refused.stderr.contains(&format!("process {child}: it has ended with exit code 200")),
        "{refused}"
    );
    victim.expect_untouched();
    assert!(std::fs::read_dir(&images).unwrap().next().is_none(), "something is left in the directory");
    assert_eq!(victim.check(), Verdict::Ok);
}
