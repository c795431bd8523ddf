//! What a killed dumper leaves in a process is taken away by the next one, and only that.
#![allow(clippy::unwrap_used)]

mod support;

use godwit_dumper::prepare::leftovers;
use godwit_dumper::procfs::tree;
use nix::unistd::Pid;
use support::untouched::{Busy, State, may_be_left_by_a_kill};
use support::{Scene, Victim, godwit};

const PROGRAM: &str = r#"
import ctypes, fcntl, os, sys, time
os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.syscall(323, 1 if sys.argv[1] == "blocking" else os.O_CLOEXEC | os.O_NONBLOCK | 1)
if sys.argv[1] == "initialised":
    # struct uffdio_api: api, features, ioctls
    fcntl.ioctl(fd, 0xc018aa3f, bytearray((0xaa).to_bytes(8, "little") + bytes(16)))
print("READY", fd, flush=True)
while not os.path.exists("check"):
    time.sleep(0.01)
try:
    os.fstat(fd)
    print("FAIL the descriptor is there", flush=True)
except OSError:
    print("OK", flush=True)
"#;

fn start(scene: &Scene, kind: &str) -> Victim {
    std::fs::write(scene.dir().join("program.py"), PROGRAM).unwrap();
    let mut python = support::victim::session_leader("/usr/bin/python3");
    python.arg(scene.dir().join("program.py")).arg(kind);
    Victim::start_command(scene, kind, python)
}

#[test]
fn an_inert_userfaultfd_is_closed_and_the_dump_succeeds() {
    require!("root", "python3");
    let scene = Scene::new("inert");
    let mut victim = start(&scene, "inert");
    let (pid, images) = (victim.pid.to_string(), scene.dir().join("images"));
    godwit(&scene, &["dump", "--leave-running", "--pid", &pid, "--images-dir", images.to_str().unwrap()])
        .expect_ok();
    assert_eq!(victim.check(), support::Verdict::Ok);
}

#[test]
fn a_userfaultfd_that_no_dumper_was_killed_beside_is_told_and_left_alone_by_a_sweep_of_all() {
    require!("root", "python3");
    let scene = Scene::new("swept-uffd");
    let mut victim = start(&scene, "inert");
    let swept = godwit(&scene, &["doctor", "--sweep"]).expect_ok();
    assert!(swept.stdout.contains(&format!("process {}, fd [", victim.pid)), "{swept}");
    assert!(matches!(victim.check(), support::Verdict::Bad(_)));
}

#[test]
fn a_userfaultfd_of_the_programs_own_is_refused_and_left_alone() {
    require!("root", "python3");
    ["initialised", "blocking"].into_iter().for_each(is_refused_and_left_alone);
}

fn is_refused_and_left_alone(kind: &str) {
    let scene = Scene::new("own-uffd");
    let mut victim = start(&scene, kind);
    let (pid, images) = (victim.pid.to_string(), scene.dir().join("images"));
    let refused =
        godwit(&scene, &["dump", "--pid", &pid, "--images-dir", images.to_str().unwrap()]).expect_refusal();
    assert!(refused.stderr.contains("userfaultfd"), "{refused}");
    assert!(matches!(victim.check(), support::Verdict::Bad(_)));
}

#[test]
fn two_dumpers_never_work_on_one_process() {
    require!("root", "cc");
    let scene = Scene::new("claimed");
    let victim = Victim::start(&scene, "waits", &[]);
    let dir = std::fs::File::open(format!("/proc/{}", victim.pid)).unwrap();
    let held = nix::fcntl::Flock::lock(dir, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
    let (pid, images) = (victim.pid.to_string(), scene.dir().join("images"));
    let args = ["dump", "--leave-running", "--pid", &pid, "--images-dir", images.to_str().unwrap()];
    let refused = godwit(&scene, &args).expect_refusal();
    assert!(refused.stderr.contains("another godwit"), "{refused}");
    drop(held);
    godwit(&scene, &args).expect_ok();
}

/// A tree that overlaps with one that is being dumped: the process that both have can be claimed once.
#[test]
fn two_dumpers_never_work_on_trees_that_overlap() {
    require!("root", "cc");
    let scene = Scene::new("overlap");
    let victim = Victim::start(&scene, "heirs", &[]);
    let root = Pid::from_raw(victim.pid);
    let child = tree::children(root, root).unwrap()[0];
    let grandchild = tree::children(child, child).unwrap()[0];
    // One dumps the tree; another comes for the subtree, by any process of it, or for a tree that holds it.
    let _root = leftovers::claim(root).unwrap();
    let held: Vec<_> = [child, grandchild].map(|pid| leftovers::claim_more(pid).unwrap().unwrap()).into();
    for pid in [child, grandchild] {
        let refused = leftovers::claim(pid).unwrap_err().to_string();
        assert!(refused.contains(&format!("another godwit is dumping process {pid}")), "{refused}");
        let refused = leftovers::claim_more(pid).unwrap_err().to_string();
        assert!(refused.contains(&pid.to_string()) && refused.contains("part of this tree"), "{refused}");
        let images = scene.dir().join("images");
        let args =
            ["dump", "--pid", &pid.to_string(), "--images-dir", images.to_str().unwrap()].map(String::from);
        let refused = godwit(&scene, &args).expect_refusal();
        assert!(refused.stderr.contains("another godwit"), "{refused}");
    }
    drop(held);
    leftovers::claim_more(child).unwrap().unwrap();
    // A process that is gone needs no claim.
    let mut gone = std::process::Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    assert!(leftovers::claim_more(Pid::from_raw(gone.id() as i32)).unwrap().is_none());
}

/// What a dumper leaves that is killed at a place, seen as differences of the victim; then swept by `doctor`.
#[track_caller]
fn left_by_a_kill_at(point: &str, args: &[&str]) {
    let scene = Scene::new("left");
    let mut victim = Victim::start(&scene, "threads", &[]);
    let before = State::of(victim.pid, Busy::Still);
    let (pid, images) = (victim.pid.to_string(), scene.dir().join("images"));
    let args = [args, &["--pid", &pid, "--images-dir", images.to_str().unwrap()]].concat();
    let mut command = support::product::godwit_command(&scene, &args);
    command.env("GODWIT_FAULT", format!("{point}:kill@1"));
    let killed = support::run(command, support::product::GODWIT_LIMIT);
    assert_eq!(killed.code(), None, "{killed}");
    support::untouched::expect_runs(victim.pid);
    let differences = before.differences(&State::of(victim.pid, Busy::Still));
    assert!(!differences.is_empty(), "{point} leaves nothing, so the sweep is not tried");
    assert!(differences.iter().all(|line| may_be_left_by_a_kill(line)), "{differences:?}");
    let swept = godwit(&scene, &["doctor", "--sweep"]).expect_ok();
    assert!(swept.stdout.contains(&pid), "it is not said: {swept}");
    before.again(victim.pid, Busy::Still).unwrap();
    // There is nothing more to sweep of it.
    assert!(!godwit(&scene, &["doctor", "--sweep"]).expect_ok().stdout.contains(&pid));
    assert_eq!(victim.check(), support::Verdict::Ok);
}

#[test]
fn scratch_memory_of_a_killed_dumper_is_swept_by_doctor() {
    require!("root", "cc");
    left_by_a_kill_at("mid.remote.mapped", &["dump"]);
}

#[test]
fn an_inert_userfaultfd_of_a_killed_dumper_is_swept_by_doctor() {
    require!("root", "cc");
    left_by_a_kill_at("mid.tracker.made", &["pre-dump", "--tracker", "uffd-wp"]);
}
