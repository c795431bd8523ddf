//! Ctrl-C, `kill` and a terminal that goes away: before the hand-over everything is undone, within it no signal ends the
//! dumper in a place from which nobody knows the way on.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::child::{Running, eventually};
use support::lab::CriuVersion;
use support::product::{self, Server, godwit, godwit_command, migrate_args};
use support::random::Random;
use support::scene::{self, status_field};
use support::untouched::{State, busy_of, cgroups_left, expect_runs};
use support::victim::{Verdict, Victim};
use support::{Finished, Scene, moved};

const SIGNALS: [(Signal, i32); 3] = [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGHUP, 129)];

fn send(running: &Running, signal: Signal) {
    let _ = kill(Pid::from_raw(running.pid()), signal);
}

/// Starts a command that waits at `point`, sends the signal there, and gives the end.
fn interrupted_at(
    mut command: std::process::Command,
    scene: &Scene,
    point: &str,
    signal: Signal,
) -> Finished {
    let log = scene.dir().join("fault");
    let _ = std::fs::remove_file(&log);
    command.env("GODWIT_FAULT", format!("{point}:delay-400@1")).env("GODWIT_FAULT_LOG", &log);
    let running = Running::start(command);
    eventually("the point is reached", Duration::from_secs(20), || log.exists());
    send(&running, signal);
    running.finish(product::GODWIT_LIMIT)
}

/// Session directories at the server that hold anything unsealed, or a set that nobody will take.
fn half_sessions(server: &Server) -> Vec<String> {
    let mut found = Vec::new();
    for session in server.sessions() {
        for entry in std::fs::read_dir(&session).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(".staging") {
                found.push(format!("{}/{name}", session.display()));
            }
        }
    }
    found
}

#[test]
fn a_signal_before_the_hand_over_undoes_everything() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("signal");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let points = [
        "step.after.root-item",
        "step.after.connect",
        "mid.tracker.made",
        "mid.tracker.armed",
        "mid.pages.extent",
        "mid.rounds.sealed",
        "step.after.collect-pstree",
        "mid.task.ask",
        "mid.images.put",
        "step.after.write-inventory",
        "mid.finish.sealed",
        "source.before.freezing",
        "source.after.freezing",
        "mid.freezer.frozen",
        "source.before.restore-sent",
    ];
    let mut victim = Victim::start(&scene, "threads", &[]);
    let busy = busy_of("threads");
    let before = State::of(victim.pid, busy);
    for (number, point) in points.into_iter().enumerate() {
        let (signal, status) = SIGNALS[number % SIGNALS.len()];
        let args = migrate_args(victim.pid, &server, &["--max-rounds", "1"]);
        let finished = interrupted_at(godwit_command(&scene, &args), &scene, point, signal);
        assert_eq!(finished.code(), Some(status), "{signal} at {point}: {finished}");
        assert!(finished.stderr.contains(signal.as_str()), "{signal} at {point}: {finished}");
        assert!(victim.exists(), "{signal} at {point}: {finished}");
        if let Err(what) = before.again(victim.pid, busy) {
            panic!("{signal} at {point}: {what}\n{finished}");
        }
        expect_runs(victim.pid);
        assert_eq!(cgroups_left(&scene), Vec::<std::path::PathBuf>::new(), "{signal} at {point}");
        let what = format!("no half session is left after {point}: {:?}; {finished}", half_sessions(&server));
        eventually(&what, Duration::from_secs(5), || half_sessions(&server).is_empty());
    }
    let moved = moved::migrate(&scene, &mut victim, &server, &[]);
    assert_eq!(moved.check(&victim), Verdict::Ok);
}

#[test]
fn signals_at_random_moments_leave_the_victim_or_move_it_whole() {
    require!("root", "cc", "criu-4.2", "page-server");
    let (seed, mut random) = Random::of_variable("GODWIT_SIGNAL_SEED", 0x5eed);
    let scene = Scene::new("signals");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let cases = if std::env::var_os("GODWIT_FULL").is_some() { 100 } else { 8 };
    let mut length = Duration::from_millis(1500);
    let (mut undone, mut moved) = (0, 0);
    let mut victim = Victim::start(&scene, "threads", &[]);
    for case in 0..cases {
        let (signal, status) = *random.pick(&SIGNALS);
        let after = Duration::from_micros(random.below(length.as_micros() as u64));
        let running = Running::start(godwit_command(
            &scene,
            &migrate_args(victim.pid, &server, &["--max-rounds", "2"]),
        ));
        std::thread::sleep(after);
        send(&running, signal);
        let finished = running.finish(product::GODWIT_LIMIT);
        let what = || format!("case {case} of seed {seed}: {signal} after {after:?}: {finished}");
        if finished.ok() {
            // It was too late to stop it: it is there, whole.
            victim.expect_killed();
            assert_eq!(moved::copy(&scene, &victim, &finished).check(&victim), Verdict::Ok, "{}", what());
            (moved, length) = (moved + 1, finished.took);
            scene.sweep();
            victim = Victim::start(&scene, "threads", &[]);
        } else {
            // Before the signals are taken, the signal ends it as it ends any program.
            let ended_by = finished.status.and_then(|status| status.signal());
            assert!(finished.code() == Some(status) || ended_by == Some(signal as i32), "{}", what());
            assert!(victim.exists(), "{}", what());
            victim.expect_untouched();
            undone += 1;
        }
        let open = godwit(&scene, &["session", "list", "--json"]).expect_ok();
        assert!(!open.stdout.contains("\"needs_decision\":true"), "{}\n{open}", what());
    }
    assert_eq!(victim.check(), Verdict::Ok);
    println!("signals: {cases} cases, {undone} undone, {moved} moved (seed {seed})");
}

#[test]
fn a_signal_while_the_destination_restores_takes_the_copy_back() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("takes-back");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let mut victim = Victim::start(&scene, "threads", &[]);
    for (point, signal) in
        [("client.send.after.Restore", Signal::SIGINT), ("source.before.committing", Signal::SIGTERM)]
    {
        let args = migrate_args(victim.pid, &server, &["--max-rounds", "1"]);
        let finished = interrupted_at(godwit_command(&scene, &args), &scene, point, signal);
        // It says where the source lies and which command decides, and then decides by itself.
        assert!(finished.stderr.contains("godwit session resolve"), "{point}: {finished}");
        assert!(matches!(finished.code(), Some(130 | 143)), "{point}: {finished}");
        assert!(victim.exists(), "{point}: {finished}");
        victim.expect_untouched();
        assert_eq!(moved::copies(&scene, &victim), [victim.pid], "{point}: {finished}");
    }
    assert_eq!(moved::migrate(&scene, &mut victim, &server, &[]).check(&victim), Verdict::Ok);
}

#[test]
fn signals_after_the_point_of_no_return_do_not_end_it() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("forward");
    let server = Server::start(&scene, CriuVersion::V4_2);
    for point in ["source.after.committing", "source.after.killed", "client.send.after.Commit"] {
        let mut victim = Victim::start(&scene, "threads", &[]);
        let log = scene.dir().join("fault");
        let _ = std::fs::remove_file(&log);
        let mut command = godwit_command(&scene, &migrate_args(victim.pid, &server, &["--max-rounds", "1"]));
        command.env("GODWIT_FAULT", format!("{point}:delay-400@1")).env("GODWIT_FAULT_LOG", &log);
        let running = Running::start(command);
        eventually("the point is reached", Duration::from_secs(20), || log.exists());
        // However impatient the user is.
        for (signal, _) in SIGNALS.iter().cycle().take(6) {
            send(&running, *signal);
            std::thread::sleep(Duration::from_millis(10));
        }
        let finished = running.finish(product::GODWIT_LIMIT);
        assert!(finished.ok(), "{point}: {finished}");
        assert!(finished.stderr.contains("godwit session resolve"), "{point}: {finished}");
        victim.expect_killed();
        assert_eq!(moved::copy(&scene, &victim, &finished).check(&victim), Verdict::Ok);
        scene.sweep();
    }
}

#[test]
fn a_second_signal_ends_it_at_once_and_the_victim_runs() {
    require!("root", "cc");
    let scene = Scene::new("twice");
    let mut victim = Victim::start(&scene, "threads", &[]);
    let images = scene.subdir("images");
    let args = ["dump", "--pid", &victim.pid.to_string(), "--images-dir", images.to_str().unwrap()];
    let log = scene.dir().join("fault");
    let mut command = godwit_command(&scene, &args);
    command.env("GODWIT_FAULT", "step.after.collect-pstree:delay-20000@1").env("GODWIT_FAULT_LOG", &log);
    let running = Running::start(command);
    eventually("it is frozen", Duration::from_secs(20), || log.exists());
    send(&running, Signal::SIGINT);
    std::thread::sleep(Duration::from_millis(100));
    send(&running, Signal::SIGINT);
    let finished = running.finish(Duration::from_secs(10));
    assert_eq!(finished.status.and_then(|status| status.signal()), Some(libc::SIGINT), "{finished}");
    victim.expect_untouched();
    assert_eq!(victim.check(), Verdict::Ok);
}

/// A local dump that ends the process is no exception: whoever was told that it runs on finds it running.
#[test]
fn a_signal_behind_the_seal_of_a_local_dump_kills_nothing() {
    require!("root", "cc");
    let scene = Scene::new("local");
    let mut victim = Victim::start(&scene, "threads", &[]);
    for more in [&[][..], &["--leave-stopped"]] {
        let images = scene.subdir(&format!("images{}", more.len()));
        let pid = victim.pid.to_string();
        let args = ["dump", "--pid", &pid, "--images-dir", images.to_str().unwrap()];
        let mut command = godwit_command(&scene, &args);
        command.args(more);
        let finished = interrupted_at(command, &scene, "mid.finish.sealed", Signal::SIGTERM);
        assert_eq!(finished.code(), Some(143), "{more:?}: {finished}");
        victim.expect_untouched();
        expect_runs(victim.pid);
    }
    assert_eq!(victim.check(), Verdict::Ok);
}

/// The lasting freeze would outlive a dumper that a second signal ends.
#[test]
fn impatience_within_the_lasting_freeze_leaves_nothing_frozen() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("impatient");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let mut victim = Victim::start(&scene, "threads", &[]);
    for point in ["source.after.freezing", "mid.freezer.frozen", "source.before.restore-sent"] {
        let log = scene.dir().join("fault");
        let _ = std::fs::remove_file(&log);
        let mut command = godwit_command(&scene, &migrate_args(victim.pid, &server, &["--max-rounds", "1"]));
        command.env("GODWIT_FAULT", format!("{point}:delay-400@1")).env("GODWIT_FAULT_LOG", &log);
        let running = Running::start(command);
        eventually("the point is reached", Duration::from_secs(20), || log.exists());
        for _ in 0..3 {
            send(&running, Signal::SIGTERM);
            std::thread::sleep(Duration::from_millis(10));
        }
        let finished = running.finish(product::GODWIT_LIMIT);
        assert_eq!(finished.code(), Some(143), "{point}: {finished}");
        victim.expect_untouched();
        expect_runs(victim.pid);
        assert_eq!(cgroups_left(&scene), Vec::<std::path::PathBuf>::new(), "{point}");
    }
    assert_eq!(victim.check(), Verdict::Ok);
}

/// The source is dead before the destination restores it: a signal that comes then may not stop the only way on.
#[test]
fn a_signal_does_not_stop_the_restore_of_a_source_that_was_killed_first() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("killed-first");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let mut victim = Victim::start(&scene, "locks", &[]);
    let command = godwit_command(&scene, &migrate_args(victim.pid, &server, &["--max-rounds", "1"]));
    let finished = interrupted_at(command, &scene, "source.after.killed", Signal::SIGTERM);
    assert!(finished.ok(), "{finished}");
    victim.expect_killed();
    assert_eq!(moved::copy(&scene, &victim, &finished).check(&victim), Verdict::Ok);
}

/// Whoever sent a signal still gets an answer over a new link when the first one breaks.
#[test]
fn a_signal_does_not_stop_the_asking_anew() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("anew");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let mut victim = Victim::start(&scene, "threads", &[]);
    let log = scene.dir().join("fault");
    let mut command = godwit_command(&scene, &migrate_args(victim.pid, &server, &["--max-rounds", "1"]));
    command.env("GODWIT_FAULT", "source.after.killed:delay-400@1,client.send.after.Commit:cut@1");
    command.env("GODWIT_FAULT_LOG", &log);
    let running = Running::start(command);
    eventually("the point is reached", Duration::from_secs(20), || log.exists());
    send(&running, Signal::SIGTERM);
    let finished = running.finish(product::GODWIT_LIMIT);
    let fired = std::fs::read_to_string(&log).unwrap();
    assert!(fired.contains("client.send.after.Commit cut"), "{fired}: {finished}");
    assert!(finished.ok(), "{finished}");
    victim.expect_killed();
    assert_eq!(moved::copy(&scene, &victim, &finished).check(&victim), Verdict::Ok);
}

/// A reader of standard error that has gone to sleep stops neither the signals nor the hand-over.
#[test]
fn a_full_standard_error_stops_nothing() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("full");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let victim = Victim::start(&scene, "threads", &[]);
    let (_reader, writer) = nix::unistd::pipe().unwrap();
    let flags = |flags| nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
    flags(nix::fcntl::OFlag::O_NONBLOCK);
    while nix::unistd::write(&writer, &[b'.'; 4096]).is_ok() {}
    flags(nix::fcntl::OFlag::empty());
    let log = scene.dir().join("fault");
    let mut command = godwit_command(&scene, &migrate_args(victim.pid, &server, &["--max-rounds", "1"]));
    command.env("GODWIT_FAULT", "source.after.committing:delay-400@1").env("GODWIT_FAULT_LOG", &log);
    command.env("RUST_LOG", "off").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(writer));
    let mut child = command.spawn().unwrap();
    let mut status = None;
    let mut signals = 0;
    let until = std::time::Instant::now() + Duration::from_secs(40);
    while status.is_none() && std::time::Instant::now() < until {
        if log.exists() && signals < 2 {
            let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
            signals += 1;
        }
        std::thread::sleep(Duration::from_millis(20));
        status = child.try_wait().unwrap();
    }
    // Nothing where it has ended.
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!((status.map(|status| status.success()), signals), (Some(true), 2));
    assert_eq!(moved::copies(&scene, &victim).len(), 1);
    scene.sweep();
}

#[test]
fn what_was_ignored_stays_ignored_and_scripts_start_with_no_signal_blocked() {
    require!("root", "cc");
    let scene = Scene::new("mask");
    let mut victim = Victim::start(&scene, "threads", &[]);
    let script = scene.dir().join("script");
    std::fs::write(&script, "#!/bin/sh\ngrep -E '^Sig(Blk|Ign)' /proc/self/status >> \"$OUT\"\nsleep 0.3\n")
        .unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (out, images) = (scene.dir().join("out"), scene.subdir("images"));
    // As nohup does.
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_godwit")]);
    command.args([
        "dump",
        "--leave-running",
        "--pid",
        &victim.pid.to_string(),
        "--images-dir",
        images.to_str().unwrap(),
    ]);
    command.args(["--action-script", script.to_str().unwrap()]);
    command.env("OUT", &out).env("GODWIT_STATE_DIR", product::source_state(&scene));
    let running = Running::start(command);
    eventually("the script runs", Duration::from_secs(20), || out.exists());
    assert_eq!(
        blocked(running.pid()) & 1 << (libc::SIGTERM - 1),
        1 << (libc::SIGTERM - 1),
        "signals are not taken"
    );
    send(&running, Signal::SIGHUP);
    running.finish(product::GODWIT_LIMIT).expect_ok();
    let said = std::fs::read_to_string(&out).unwrap();
    assert!(said.lines().any(|line| line.ends_with("0000000000000000")), "signals are blocked: {said}");
    assert_eq!(victim.check(), Verdict::Ok);
}

fn blocked(pid: i32) -> u64 {
    u64::from_str_radix(&status_field(pid, "SigBlk").unwrap(), 16).unwrap()
}

/// A script that never ends is no reason to hang.
#[test]
fn a_signal_ends_a_script_too() {
    require!("root", "cc");
    let scene = Scene::new("script");
    let mut victim = Victim::start(&scene, "threads", &[]);
    let script = scene.dir().join("script");
    std::fs::write(&script, "#!/bin/sh\n: > \"$OUT\"\nexec sleep 60\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (out, images) = (scene.dir().join("out"), scene.subdir("images"));
    let args = [
        "dump",
        "--pid",
        &victim.pid.to_string(),
        "--images-dir",
        images.to_str().unwrap(),
        "--action-script",
    ];
    let mut command = godwit_command(&scene, &args);
    command.arg(&script).env("OUT", &out);
    let running = Running::start(command);
    eventually("the script runs", Duration::from_secs(20), || out.exists());
    send(&running, Signal::SIGTERM);
    let finished = running.finish(Duration::from_secs(20));
    assert_eq!(finished.code(), Some(143), "{finished}");
    victim.expect_untouched();
    assert_eq!(victim.check(), Verdict::Ok);
}

/// A log that cannot be written, such as the terminal of a lost connection, is no failure of the migration.
#[test]
fn a_closed_standard_error_stops_nothing() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("closed");
    let server = Server::start(&scene, CriuVersion::V4_2);
    let mut victim = Victim::start(&scene, "threads", &[]);
    let mut command =
        godwit_command(&scene, &migrate_args(victim.pid, &server, &["--max-rounds", "2", "-vvv"]));
    let broken = || {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let status = command.stdin(Stdio::null()).stdout(broken()).stderr(broken()).status().unwrap();
    assert!(status.success(), "{status}");
    victim.expect_killed();
    let copies = moved::copies(&scene, &victim);
    assert_eq!(copies.len(), 1, "{copies:?}");
    victim.ask();
    eventually("the copy ends", Duration::from_secs(30), || !scene::is_alive(copies[0]));
    assert_eq!(support::victim::verdict(&victim.log(), "the copy is gone"), Verdict::Ok);
}
