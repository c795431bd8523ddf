//! One frozen dump into a directory: every victim, restored by CRIU 4.1 and 4.2, which are the judge.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use support::lab::{BOTH, CriuVersion, Restored};
use support::product::{godwit, report};
use support::untouched;
use support::victim::{Libc, Verdict, Victim};
use support::victims::{self, In, Listed};
use support::{Scene, lab, moved, scene};

fn dump(scene: &Scene, pid: i32, images: &Path, more: &[&str]) -> support::Finished {
    let mut args = vec!["dump", "--json", "--pid"];
    let pid = pid.to_string();
    args.extend([pid.as_str(), "--images-dir", images.to_str().unwrap()]);
    args.extend(more);
    godwit(scene, &args)
}

fn dump_and_restore(scene: &Scene, name: &str, libc: Libc, args: &[&str], version: CriuVersion) -> Verdict {
    let mut victim = Victim::start_with(scene, name, libc, args);
    let images = scene.subdir("images");
    let tree = victim.tree();
    let dumped = dump(scene, victim.pid, &images, &["--criu-version", version.text()]);
    if !dumped.ok() {
        return Verdict::Lost(dumped.to_string());
    }
    victim.expect_killed();
    tree.expect_killed();
    moved::expect_none(scene, &victim);
    victim.ask();
    match Restored::try_from_images(&images, version, &[], &victim) {
        Ok(restored) => restored.verdict(),
        Err(why) => Verdict::Lost(why),
    }
}

/// Which of a list a test goes through.
type Pick = fn(In) -> Vec<Listed>;

fn expect_all_restored(pick: Pick, version: CriuVersion) {
    let scene = Scene::new("dump");
    let mut bad = Vec::new();
    let test = if version == CriuVersion::V4_1 { In::Dump41 } else { In::Dump42 };
    for Listed { name, args, .. } in pick(test) {
        let verdict = dump_and_restore(&scene, name, Libc::Glibc, args, version);
        if verdict != Verdict::Ok {
            bad.push(format!("{name} {args:?}: {verdict:#?}"));
        }
        scene.sweep();
    }
    assert!(bad.is_empty(), "CRIU {}:\n{}", version.text(), bad.join("\n"));
}

#[test]
fn every_victim_comes_back_under_criu_4_1() {
    require!("root", "cc", "criu-4.1");
    expect_all_restored(victims::of, CriuVersion::V4_1);
}

#[test]
fn every_tree_comes_back_under_criu_4_1() {
    require!("root", "cc", "criu-4.1");
    expect_all_restored(victims::trees, CriuVersion::V4_1);
}

#[test]
fn every_victim_comes_back_under_criu_4_2() {
    require!("root", "cc", "criu-4.2");
    expect_all_restored(victims::of, CriuVersion::V4_2);
}

#[test]
fn every_tree_comes_back_under_criu_4_2() {
    require!("root", "cc", "criu-4.2");
    expect_all_restored(victims::trees, CriuVersion::V4_2);
}

#[test]
fn static_musl_victims_come_back() {
    require!("root", "musl", "criu-4.1", "criu-4.2");
    let scene = Scene::new("musl");
    for (name, version) in ["mem", "waits", "timers", "busy"].iter().zip(BOTH.iter().cycle()) {
        assert_eq!(dump_and_restore(&scene, name, Libc::StaticMusl, &[], *version), Verdict::Ok, "{name}");
    }
}

#[test]
fn leave_running_leaves_it_untouched_and_the_images_whole() {
    require!("root", "cc", "criu-4.2");
    expect_left_running(victims::of);
}

#[test]
fn leave_running_leaves_every_task_of_a_tree_untouched() {
    require!("root", "cc", "criu-4.2");
    expect_left_running(victims::trees);
}

fn expect_left_running(pick: Pick) {
    let scene = Scene::new("running");
    for listed in pick(In::LeaveRunning) {
        let Listed { name, args, .. } = listed;
        let mut victim = Victim::start(&scene, name, args);
        let images = scene.subdir("images");
        let before = victim.tree().states(untouched::busy_of(name));
        let round = scene.subdir("round");
        let pre_dump =
            ["pre-dump", "--pid", &victim.pid.to_string(), "--images-dir", round.to_str().unwrap()];
        godwit(&scene, &pre_dump).expect_ok();
        before.expect_untouched();
        if let Err(what) = before.again() {
            panic!("{name} {args:?}: after a pre-dump: {what}");
        }
        dump(&scene, victim.pid, &images, &["--leave-running", "--criu-version", "4.2"]).expect_ok();
        before.expect_untouched();
        if let Err(what) = before.again() {
            panic!("{name} {args:?}: after the dump: {what}");
        }
        assert_eq!(victim.check(), Verdict::Ok, "{name}: the source");
        // The copy is asked by the same file, and answers for itself. Files that the source's own check
        // changed have another size, which CRIU notices: those victims are not restored here.
        if listed.is_in(In::SecondCopy) {
            std::fs::write(victim.dir().join("log"), "").unwrap();
            let restored = Restored::from_images(&images, CriuVersion::V4_2, &[], &victim);
            assert_eq!(restored.verdict(), Verdict::Ok, "{name}: the copy");
        }
        scene.sweep();
    }
}

#[test]
fn leave_stopped_leaves_it_stopped_until_it_is_continued() {
    require!("root", "cc", "criu-4.2");
    let scene = Scene::new("stopped");
    let mut victim = Victim::start(&scene, "signals", &[]);
    let images = scene.subdir("images");
    dump(&scene, victim.pid, &images, &["--leave-stopped"]).expect_ok();
    let state = scene::status_field(victim.pid, "State").unwrap();
    assert!(state.starts_with('T') && !state.contains("tracing"), "state is {state}");
    assert_eq!(scene::status_field(victim.pid, "TracerPid").as_deref(), Some("0"));
    victim.signal(Signal::SIGCONT);
    victim.expect_untouched();
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn a_stopped_process_comes_back_stopped() {
    require!("root", "cc", "criu-4.2");
    let scene = Scene::new("was-stopped");
    let mut victim = Victim::start(&scene, "threads", &[]);
    victim.signal(Signal::SIGSTOP);
    support::child::eventually("it is stopped", std::time::Duration::from_secs(5), || {
        scene::status_field(victim.pid, "State").is_some_and(|state| state.starts_with('T'))
    });
    let images = scene.subdir("images");
    dump(&scene, victim.pid, &images, &[]).expect_ok();
    victim.expect_killed();
    victim.ask();
    let restored = Restored::from_images(&images, CriuVersion::V4_2, &[], &victim);
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(scene::status_field(restored.pid, "State").unwrap().starts_with('T'), "it runs");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(restored.pid), Signal::SIGCONT).unwrap();
    assert_eq!(restored.verdict(), Verdict::Ok);
}

#[test]
fn a_process_restored_by_hand_can_be_dumped_again() {
    require!("root", "cc", "criu-4.1", "criu-4.2");
    let scene = Scene::new("again");
    // What is restored on the host becomes a child of this process, so that its pid is free once it was reaped.
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let mut victim = Victim::start(&scene, "timers", &[]);
    let first = scene.subdir("first");
    dump(&scene, victim.pid, &first, &[]).expect_ok();
    victim.expect_killed();
    // On the host itself, where its pid is free: `criu restore -d` as the report says it.
    let mut images = first;
    for (name, version) in [("second", CriuVersion::V4_1), ("third", CriuVersion::V4_2)] {
        let mut restore = std::process::Command::new(lab::criu(version).unwrap());
        restore.args(["restore", "-d", "-v2", "-o", "restore.log", "-D"]).arg(&images);
        support::run(restore, std::time::Duration::from_secs(30)).expect_ok();
        images = scene.subdir(name);
        dump(&scene, victim.pid, &images, &[]).expect_ok();
        nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(victim.pid), None).unwrap();
    }
    nix::sys::prctl::set_child_subreaper(false).unwrap();
    victim.ask();
    let restored = Restored::from_images(&images, CriuVersion::V4_2, &[], &victim);
    assert_eq!(restored.verdict(), Verdict::Ok);
}

#[test]
fn a_chain_of_rounds_restores_what_was_there_at_the_last() {
    require!("root", "cc", "criu-4.1", "criu-4.2");
    let scene = Scene::new("chain");
    for version in BOTH {
        let mut victim = Victim::start(&scene, "alive", &[]);
        let chain = scene.subdir("chain");
        let pid = victim.pid.to_string();
        let mut previous: Option<String> = None;
        for round in 1..=3 {
            let dir = chain.join(round.to_string());
            let mut args = vec!["pre-dump", "--pid", &pid, "--images-dir", dir.to_str().unwrap()];
            args.extend(previous.as_deref().into_iter().flat_map(|previous| ["--prev-images-dir", previous]));
            godwit(&scene, &args).expect_ok();
            victim.expect_untouched();
            victim.tell(&format!("step-{round}"));
            support::child::eventually("the step is taken", std::time::Duration::from_secs(5), || {
                victim.log().contains(&format!("STEP {round}"))
            });
            previous = Some(format!("../{round}"));
        }
        let last = chain.join("4");
        dump(&scene, victim.pid, &last, &["--prev-images-dir", "../3"]).expect_ok();
        victim.expect_killed();
        victim.ask();
        let restored = Restored::from_images(&last, version, &[], &victim);
        assert_eq!(restored.verdict(), Verdict::Ok, "CRIU {}", version.text());
    }
}

#[test]
fn the_report_and_the_check_of_a_directory_agree() {
    require!("root", "cc");
    let scene = Scene::new("report");
    let mut victim = Victim::start(&scene, "busy", &["32", "2"]);
    let images = scene.subdir("images");
    let dumped = dump(&scene, victim.pid, &images, &["--leave-running"]).expect_ok();
    let report = report(&dumped);
    assert!(report["freeze_ms"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["memory_bytes"].as_u64().unwrap() >= 32 << 20, "{report}");
    assert_eq!(report["restored"], false, "{report}");
    godwit(&scene, &["inspect", images.to_str().unwrap()]).expect_ok();
    // One byte of a page changed, one file shorter: inspect says so.
    let pages = support::images::find(&images, "pages-*.img");
    let mut bytes = std::fs::read(&pages).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&pages, &bytes).unwrap();
    godwit(&scene, &["inspect", images.to_str().unwrap()]).expect_refusal();
    bytes[middle] ^= 1;
    bytes.truncate(bytes.len() - 4096);
    std::fs::write(&pages, &bytes).unwrap();
    godwit(&scene, &["inspect", images.to_str().unwrap()]).expect_refusal();
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn memory_that_another_process_shares_is_a_loss_by_name() {
    require!("root", "cc");
    let scene = Scene::new("sharers");
    let mut victim = Victim::start(&scene, "shmem", &[]);
    let doctor = |more: &[&str]| {
        let mut args = vec!["doctor", "--json", "--pid"];
        let pid = victim.pid.to_string();
        args.push(&pid);
        args.extend(more);
        godwit(&scene, &args)
    };
    assert!(!doctor(&[]).expect_ok().stdout.contains("shares it"));
    // A memfd by its descriptor, and anonymous memory, which has none, by its mapping.
    let fds = std::fs::read_dir(format!("/proc/{}/fd", victim.pid)).unwrap().flatten().map(|fd| fd.path());
    let is_memfd = |fd: &PathBuf| std::fs::read_link(fd).unwrap().starts_with("/memfd:sealed (deleted)");
    let _by_descriptor = std::fs::File::open(fds.into_iter().find(is_memfd).unwrap()).unwrap();
    let maps = scene::proc_text(victim.pid, "maps");
    let mapping = maps.lines().find(|line| line.ends_with("/dev/zero (deleted)")).unwrap();
    let (start, end) = mapping.split_once(' ').unwrap().0.split_once('-').unwrap();
    let _by_mapping = std::fs::File::open(format!("/proc/{}/map_files/{start}-{end}", victim.pid)).unwrap();
    let told = doctor(&[]).expect_ok().stdout;
    let us = format!("process {} shares it: after a restore each has its own copy", std::process::id());
    assert_eq!(told.matches(&us).count(), 2, "{told}");
    let images = scene.subdir("images");
    let refused = dump(&scene, victim.pid, &images, &["--strict"]).expect_refusal();
    assert!(refused.stderr.contains(&us), "{refused}");
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn a_deleted_file_that_another_process_has_is_a_loss_by_name() {
    require!("root", "cc");
    let scene = Scene::new("ghost-sharers");
    let mut victim = Victim::start(&scene, "ghost", &[]);
    let doctor =
        || godwit(&scene, &["doctor", "--json", "--pid", &victim.pid.to_string()]).expect_ok().stdout;
    assert!(!doctor().contains("shares it"));
    // One by its descriptor, one by its shared mapping.
    let fds = std::fs::read_dir(format!("/proc/{}/fd", victim.pid)).unwrap().flatten().map(|fd| fd.path());
    let is_sparse = |fd: &PathBuf| std::fs::read_link(fd).unwrap().ends_with("sparse (deleted)");
    let _open = std::fs::File::open(fds.into_iter().find(is_sparse).unwrap()).unwrap();
    let maps = scene::proc_text(victim.pid, "maps");
    let is_shared = |line: &&str| line.contains(" rw-s ") && line.ends_with("/mapped (deleted)");
    let (start, end) =
        maps.lines().find(is_shared).unwrap().split_once(' ').unwrap().0.split_once('-').unwrap();
    let _mapped = std::fs::File::open(format!("/proc/{}/map_files/{start}-{end}", victim.pid)).unwrap();
    let told = doctor();
    let us = format!("process {} shares it: after a restore each has its own copy", std::process::id());
    assert_eq!(told.matches(&us).count(), 2, "{told}");
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn a_program_whose_file_is_deleted_comes_back() {
    require!("root", "cc", "criu-4.1", "criu-4.2");
    let scene = Scene::new("deleted-exe");
    let copy = scene.dir().join("program");
    for version in BOTH {
        std::fs::copy(support::victim::compile("regs", Libc::Glibc), &copy).unwrap();
        let mut victim = Victim::start_command(&scene, "regs", std::process::Command::new(&copy));
        std::fs::remove_file(&copy).unwrap();
        let images = scene.subdir("images");
        let refused = dump(&scene, victim.pid, &images, &["--ghost-limit", "4K"]).expect_refusal();
        assert!(refused.stderr.contains("give --ghost-limit 1M"), "{refused}");
        victim.expect_untouched();
        dump(&scene, victim.pid, &images, &[]).expect_ok();
        victim.expect_killed();
        let restored = Restored::from_images(&images, version, &[], &victim);
        let exe = std::fs::read_link(format!("/proc/{}/exe", restored.pid)).unwrap();
        assert!(exe.to_str().unwrap().ends_with("(deleted)"), "{}", exe.display());
        victim.ask();
        assert_eq!(restored.verdict(), Verdict::Ok, "CRIU {}", version.text());
    }
}

#[test]
fn a_working_directory_that_is_deleted_comes_back() {
    require!("root", "python3", "criu-4.1", "criu-4.2");
    const PROGRAM: &str = "import os, time\n\
        home = os.getcwd()\n\
        os.mkdir('gone', 0o711); os.chdir('gone'); os.rmdir('../gone')\n\
        print('READY', flush=True)\n\
        while not os.path.exists(home + '/check'): time.sleep(0.01)\n\
        cwd = os.readlink('/proc/self/cwd')\n\
        stat = os.stat('.')\n\
        right = cwd.endswith('(deleted)') and stat.st_mode == 0o40711 and stat.st_nlink == 0\n\
        print('OK' if right else f'FAIL {cwd} {stat}\\nBAD 1', flush=True)\n\
        os._exit(0 if right else 1)\n";
    let scene = Scene::new("deleted-cwd");
    for version in BOTH {
        let mut python = support::victim::session_leader("python3");
        python.args(["-c", PROGRAM]);
        let mut victim = Victim::start_command(&scene, "python", python);
        let images = scene.subdir("images");
        dump(&scene, victim.pid, &images, &[]).expect_ok();
        victim.expect_killed();
        victim.ask();
        let restored = Restored::from_images(&images, version, &[], &victim);
        assert_eq!(restored.verdict(), Verdict::Ok, "CRIU {}", version.text());
    }
}
