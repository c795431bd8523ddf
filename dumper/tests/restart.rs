//! Calls that the freeze interrupts, with and without a signal that is to be handled: each ends as if there had been
//! no dump.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::child::{Running, eventually};
use support::lab::{BOTH, CriuVersion, Restored};
use support::product::godwit_command;
use support::victim::{Verdict, Victim};
use support::{Scene, godwit, scene};

/// The signals that `restart.c` handles, one for each of its threads.
const SIGNALS: std::ops::Range<i32> = 34..64;

/// Sends every signal to the process. Each is open to one thread only.
fn send_all(pid: i32) {
    let mut bash = Command::new("bash");
    let list = SIGNALS.map(|signal| format!("kill -{signal} {pid}")).collect::<Vec<_>>().join("; ");
    bash.args(["-c", &list]);
    support::run(bash, Duration::from_secs(10)).expect_ok();
}

fn stop(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    eventually("it is stopped", Duration::from_secs(5), || {
        let tids = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        tids.map(|tid| tid.file_name().to_str().unwrap().parse().unwrap())
            .all(|tid| scene::status_field(tid, "State").is_some_and(|state| state.starts_with('T')))
    });
}

fn dump_args(pid: i32, images: &Path, more: &[&str]) -> Vec<String> {
    let args =
        ["dump", "--pid", &pid.to_string(), "--images-dir", images.to_str().unwrap()].map(str::to_owned);
    args.into_iter().chain(more.iter().map(|arg| (*arg).to_owned())).collect()
}

#[test]
fn the_kernel_by_itself_does_what_the_victim_expects() {
    require!("root", "cc");
    let scene = Scene::new("restart-kernel");
    let mut victim = Victim::start(&scene, "restart", &["strict", "signalled"]);
    stop(victim.pid);
    send_all(victim.pid);
    victim.signal(Signal::SIGCONT);
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn signals_that_wait_for_a_stopped_process_end_its_calls_in_the_copy_too() {
    require!("root", "cc", "criu-4.1", "criu-4.2");
    for version in BOTH {
        let scene = Scene::new("restart-stopped");
        let mut victim = Victim::start(&scene, "restart", &["strict", "signalled"]);
        stop(victim.pid);
        send_all(victim.pid);
        let images = scene.subdir("images");
        godwit(&scene, &dump_args(victim.pid, &images, &[])).expect_ok();
        victim.expect_killed();
        victim.ask();
        let restored = Restored::from_images(&images, version, &[], &victim);
        kill(Pid::from_raw(restored.pid), Signal::SIGCONT).unwrap();
        assert_eq!(restored.verdict(), Verdict::Ok, "CRIU {}", version.text());
    }
}

#[test]
fn signals_that_come_during_the_freeze_end_its_calls_in_the_copy_too() {
    require!("root", "cc", "criu-4.2");
    let scene = Scene::new("restart-frozen");
    let mut victim = Victim::start(&scene, "restart", &["strict", "signalled"]);
    let images = scene.subdir("images");
    let finished = dump_with_signals(&scene, &victim, &dump_args(victim.pid, &images, &[]));
    finished.expect_ok();
    victim.expect_killed();
    victim.ask();
    let restored = Restored::from_images(&images, CriuVersion::V4_2, &[], &victim);
    assert_eq!(restored.verdict(), Verdict::Ok);
}

#[test]
fn signals_that_come_during_a_freeze_that_is_undone_end_its_calls() {
    require!("root", "cc");
    let scene = Scene::new("restart-undone");
    for fails in [false, true] {
        let mut victim = Victim::start(&scene, "restart", &["strict", "signalled"]);
        let images = scene.subdir("images");
        let mut args = dump_args(victim.pid, &images, &["--leave-running"]);
        if fails {
            let script = scene.dir().join("fails-at-the-end");
            std::fs::write(&script, "#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION != post-dump ]\n").unwrap();
            std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
            args = dump_args(victim.pid, &images, &["--action-script", script.to_str().unwrap()]);
        }
        let finished = dump_with_signals(&scene, &victim, &args);
        assert_eq!(finished.ok(), !fails, "{finished}");
        victim.expect_untouched();
        assert_eq!(victim.check(), Verdict::Ok, "the dump fails: {fails}");
    }
}

/// Dumps with a pause under freeze, in which the signals are sent.
fn dump_with_signals(scene: &Scene, victim: &Victim, args: &[String]) -> support::Finished {
    let mut command = godwit_command(scene, args);
    command.env("GODWIT_FAULT", "step.before.collect-ids:delay-1500");
    let running = Running::start(command);
    let pid = victim.pid;
    eventually("it is frozen", Duration::from_secs(20), || {
        scene::status_field(pid, "TracerPid").is_some_and(|tracer| tracer != "0")
            && scene::status_field(pid, "State").is_some_and(|state| state.starts_with('t'))
    });
    std::thread::sleep(Duration::from_millis(200));
    send_all(pid);
    running.finish(Duration::from_secs(60))
}
