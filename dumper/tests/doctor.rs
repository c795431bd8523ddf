//! `godwit doctor`: what of a process cannot be moved, by name, with the reason and a way out; `godwit dump` says the same
//! words before it stops anything.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use nix::unistd::Pid;
use serde_json::Value;
use support::child::{Running, eventually};
use support::product::godwit_command;
use support::victim::{Verdict, Victim};
use support::{Scene, godwit, scene};

/// What `odd.c` can be, what the refusal names, and a piece of the reason.
const KINDS: &[(&str, Subject, &str)] = &[
    ("terminal", Subject::Fd, "(hung up)"),
    ("unix-outside", Subject::Fd, "it is connected to process "),
    ("unix-shared", Subject::Fd, "has this unix socket too"),
    ("unix-rights", Subject::Fd, "descriptors lie in its queue"),
    ("unix-closed", Subject::Fd, "whose other end is closed"),
    ("unix-waiting", Subject::Fd, "a connection of process "),
    ("unix-sent", Subject::Fd, "what it has sent cannot be read"),
    ("tcp-socket", Subject::Fd, "a TCP socket"),
    ("udp-socket", Subject::Fd, "a UDP"),
    ("netlink-socket", Subject::Fd, "netlink"),
    ("vsock", Subject::Fd, "a socket"),
    ("epoll-closed", Subject::Fd, "was added as descriptor 79, and no process of the tree has it"),
    ("epoll-foreign", Subject::Fd, "was added as descriptor 79, and only process"),
    ("epoll-twice", Subject::Fd, "as 78 only, which is watched as well"),
    ("alarm-timer", Subject::Fd, "wakes a sleeping machine"),
    ("packets", Subject::Fd, "packet mode"),
    ("inotify-gone", Subject::Fd, "which has no path any more"),
    ("fanotify-decides", Subject::Fd, "all of them would wait for it"),
    ("fanotify-all", Subject::Fd, "on a whole file system"),
    ("io_uring", Subject::Fd, "(io_uring)"),
    ("perf", Subject::Fd, "(perf)"),
    ("userfaultfd", Subject::Fd, "(userfaultfd)"),
    ("pidfd-outside", Subject::Fd, "which is not of the tree"),
    ("pidfd-thread", Subject::Fd, "PIDFD_THREAD"),
    ("bpf", Subject::Fd, "a BPF map"),
    ("mqueue", Subject::Fd, "a message queue"),
    ("namespace", Subject::Fd, "a handle on a namespace"),
    ("path-only", Subject::Fd, "only names (O_PATH)"),
    ("named-pipe-outside", Subject::Fd, "has this named pipe open"),
    ("device", Subject::Fd, "(TUN, TAP)"),
    ("proc-outside", Subject::Fd, "in /proc, which is not of the tree"),
    ("proc-thread", Subject::Fd, "/task, where nothing is yet"),
    ("lease-breaking", Subject::Fd, "a lease that another process waits for"),
    ("lease-deleted", Subject::Fd, "a lease of a deleted file"),
    ("secret", Subject::Fd, ""),
    ("linked-elsewhere", Subject::Fd, "another link"),
    ("replaced", Subject::Fd, "another file has its path now"),
    ("long-memfd", Subject::Fd, "a restore maps it whole"),
    ("sysv-shm", Subject::Mapping, "System V shared memory"),
    ("pending-trap", Subject::Thread, "SIGTRAP"),
    ("deadline", Subject::Thread, "deadline"),
    ("traced", Subject::Process, "traces it"),
    ("unshare-net", Subject::Process, "a net namespace"),
    ("unshare-ipc", Subject::Process, "a ipc namespace"),
    ("unshare-uts", Subject::Process, "a uts namespace"),
    ("unshare-user", Subject::Process, "a user namespace"),
    ("unshare-cgroup", Subject::Process, "a cgroup namespace"),
    ("unshare-mnt", Subject::Process, "a mnt namespace"),
    ("thread-files", Subject::OtherThread, "a descriptor table (unshare of CLONE_FILES) of its own"),
    ("thread-fs", Subject::OtherThread, "a root and working directory (unshare of CLONE_FS) of its own"),
    ("thread-net", Subject::OtherThread, "another net namespace"),
    ("thread-mnt", Subject::OtherThread, "another mnt namespace"),
];

/// What a refusal must name.
#[derive(Clone, Copy)]
enum Subject {
    Fd,
    Mapping,
    Thread,
    /// A thread that is not the first one.
    OtherThread,
    Process,
}

impl Subject {
    fn text(self, pid: i32) -> String {
        match self {
            Subject::Fd => format!("process {pid}, fd 77 ("),
            Subject::Mapping => format!("process {pid}, mapping 0x"),
            Subject::Thread => format!("thread {pid}"),
            Subject::OtherThread => "thread ".to_owned(),
            Subject::Process => format!("process {pid}"),
        }
    }
}

fn examine(scene: &Scene, pid: i32) -> (Option<i32>, Value) {
    let finished = godwit(scene, &["doctor", "--json", "--pid", &pid.to_string()]);
    let told = serde_json::from_str(finished.stdout.trim()).unwrap_or(Value::Null);
    (finished.code(), told)
}

fn refusals(told: &Value) -> Vec<[String; 3]> {
    let list = told["refusals"].as_array().cloned().unwrap_or_default();
    list.iter()
        .map(|one| ["subject", "why", "way_out"].map(|key| one[key].as_str().unwrap_or_default().to_owned()))
        .collect()
}

#[test]
fn each_kind_is_refused_by_name_with_a_way_out_and_in_the_same_words_before_the_freeze() {
    require!("root", "cc");
    let scene = Scene::new("doctor");
    let (mut wrong, mut left_out) = (Vec::new(), Vec::new());
    for (kind, subject, why) in KINDS {
        let mut victim = Victim::start(&scene, "odd", &[kind]);
        if victim.log().contains("CANNOT") {
            left_out.push(format!("{kind}: {}", victim.log().trim().replace('\n', " ")));
            continue;
        }
        if let Err(what) = refused(&scene, &victim, &subject.text(victim.pid), why) {
            wrong.push(format!("{kind}: {what}"));
        }
        // Its tracer waits for the same file, and goes.
        let verdict = victim.check();
        if verdict != Verdict::Ok {
            wrong.push(format!("{kind}: the victim noticed: {verdict:?}"));
        }
    }
    left_out.iter().for_each(|line| eprintln!("not on this machine: {line}"));
    assert!(left_out.len() < KINDS.len() / 2, "{left_out:#?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn refused(scene: &Scene, victim: &Victim, subject: &str, why: &str) -> Result<(), String> {
    let (code, told) = examine(scene, victim.pid);
    if code != Some(3) || told["can_migrate"] != false {
        return Err(format!("doctor ends with {code:?}: {told}"));
    }
    let refusals = refusals(&told);
    if !refusals.iter().any(|[named, reason, _]| named.contains(subject) && reason.contains(why)) {
        return Err(format!("doctor does not say {subject:?} {why:?}: {refusals:#?}"));
    }
    let text = godwit(scene, &["doctor", "--pid", &victim.pid.to_string()]);
    for [named, reason, way_out] in &refusals {
        if way_out.is_empty() || !text.stdout.contains(&format!("refused: {named}: {reason}; {way_out}")) {
            return Err(format!("the lines differ from the JSON: {text}"));
        }
    }
    let images = scene.subdir("images");
    for verb in ["dump", "pre-dump"] {
        let args = [verb, "--pid", &victim.pid.to_string(), "--images-dir", images.to_str().unwrap()];
        let mut dump = godwit_command(scene, &args);
        // Whoever comes as far as the freeze dies of it.
        dump.env("GODWIT_FAULT", "step.before.alarm:kill");
        let dumped = support::run(dump, Duration::from_secs(60));
        if dumped.code() != Some(3) {
            return Err(format!("it is not refused before the freeze: {dumped}"));
        }
        for [named, reason, way_out] in &refusals {
            if !dumped.stderr.contains(&format!("{named}: {reason}; {way_out}")) {
                return Err(format!("{verb} does not say {named}: {reason}; {way_out}: {dumped}"));
            }
        }
        if std::fs::read_dir(&images).unwrap().next().is_some() {
            return Err(format!("{verb} has left something in {}", images.display()));
        }
    }
    Ok(())
}

#[test]
fn every_process_of_the_machine_can_be_asked_about() {
    require!("root");
    let scene = Scene::new("doctor-all");
    let mut wrong = Vec::new();
    let this = std::process::id() as i32;
    // Up to here, and some whose number nobody has.
    let mut pids: Vec<i32> = scene::pids().take(400).collect();
    pids.extend([this, 1, 2, 999_999_999]);
    for &pid in &pids {
        let text = pid.to_string();
        let finished =
            support::run(godwit_command(&scene, &["doctor", "--pid", &text]), Duration::from_secs(30));
        let gone = !std::path::Path::new(&format!("/proc/{pid}")).exists();
        // 0 and 3 are verdicts; 2 says that there is no such process; 1 only for one that ended meanwhile.
        let is_fine = match finished.code() {
            Some(0) => finished.stdout.contains("can be migrated"),
            Some(3) => finished.stdout.contains("refused: "),
            Some(2) => finished.stderr.contains(&text),
            Some(1) => gone,
            _ => false,
        };
        if !is_fine || finished.stderr.contains("panicked") {
            wrong.push(finished.to_string());
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), pids.len(), wrong.join("\n"));
}

#[test]
fn what_is_no_process_to_move_is_said_so() {
    require!("root", "cc");
    let scene = Scene::new("doctor-none");
    let say = |pid: i32| {
        let finished = godwit(&scene, &["doctor", "--pid", &pid.to_string()]);
        finished.stdout.clone() + &finished.stderr
    };
    let kernel_thread =
        scene::pids().find(|pid| scene::status_field(*pid, "Kthread").as_deref() == Some("1"));
    if let Some(pid) = kernel_thread {
        assert!(say(pid).contains("kernel thread"), "{}", say(pid));
    }
    assert!(say(999_999_999).contains("there is no process 999999999"));
    // An ended child that nobody waited for.
    let mut zombie = Command::new("true").spawn().unwrap();
    let pid = zombie.id() as i32;
    eventually("it has ended", Duration::from_secs(5), || {
        scene::status_field(pid, "State").is_some_and(|state| state.starts_with('Z'))
    });
    assert!(say(pid).contains("has ended"), "{}", say(pid));
    zombie.wait().unwrap();
    // A thread is named by its process.
    let victim = Victim::start(&scene, "threads", &[]);
    let thread = *victim.threads().last().unwrap();
    assert_ne!(thread, victim.pid);
    let told = say(thread);
    assert!(
        told.contains(&format!("{thread} is a thread")) && told.contains(&victim.pid.to_string()),
        "{told}"
    );
    // Those above us have the doctor itself in their tree.
    let told = say(Pid::parent().as_raw());
    assert!(told.contains("refused: ") && told.contains("godwit itself"), "{told}");
}

#[test]
fn a_process_that_can_be_moved_is_said_to_and_exit_status_is_zero() {
    require!("root", "cc");
    let scene = Scene::new("doctor-good");
    let victim = Victim::start(&scene, "threads", &[]);
    let (code, told) = examine(&scene, victim.pid);
    assert_eq!((code, &told["can_migrate"]), (Some(0), &Value::from(true)), "{told}");
    assert_eq!(told["pid"].as_i64(), Some(victim.pid.into()));
}

#[test]
fn the_machine_itself_can_be_asked_about() {
    require!("root");
    let scene = Scene::new("doctor-machine");
    let finished = godwit(&scene, &["doctor", "--json"]).expect_ok();
    let told: Value = serde_json::from_str(finished.stdout.trim()).unwrap();
    assert_eq!(told["can_dump"], true, "{told}");
    let asked = told["checks"].to_string();
    assert!(asked.contains("UDP_SEGMENT") && asked.contains("UDP_GRO"), "{asked}");
    let states: Vec<_> =
        told["checks"].as_array().unwrap().iter().map(|check| check["state"].clone()).collect();
    assert!(states.len() >= 9 && states.contains(&"works".into()), "{told}");
    let text = godwit(&scene, &["doctor"]).expect_ok().stdout;
    for check in told["checks"].as_array().unwrap() {
        assert!(text.contains(check["what"].as_str().unwrap()), "{text}");
        assert_eq!(check["state"] == "works", check["why"].is_null(), "{told}");
    }
    // The tracker that the first one named as working is, is the one that a round takes.
    let is_usable = |name: &str| text.contains(&format!("works: tracker {name}"));
    let victim = Victim::start(&scene, "threads", &[]);
    let images = scene.subdir("images");
    for name in ["soft-dirty", "uffd-wp"] {
        let dir = images.join(name);
        let args = ["pre-dump", "--tracker", name, "--pid", &victim.pid.to_string(), "--images-dir"];
        let finished = godwit(&scene, &[&args[..], &[dir.to_str().unwrap()]].concat());
        assert_eq!(finished.ok(), is_usable(name), "{text}\n{finished}");
    }
    // Without capabilities it says so, and that nothing is dumped.
    let mut bare = Command::new("setpriv");
    bare.args(["--bounding-set=-all", "--inh-caps=-all", "--reuid=65534", "--clear-groups"]);
    bare.arg(env!("CARGO_BIN_EXE_godwit")).arg("doctor");
    let finished = support::run(bare, Duration::from_secs(30));
    if finished.code() != Some(127) && !finished.stderr.contains("Permission denied") {
        assert_eq!(finished.code(), Some(3), "{finished}");
        assert!(finished.stdout.contains("missing: capability CAP_SYS_PTRACE"), "{finished}");
    }
}

/// What appears between the look and the freeze is found under freeze: the process runs on, and it is said.
#[test]
fn what_appears_at_the_last_moment_is_refused_and_the_process_runs_on() {
    require!("root", "cc");
    let scene = Scene::new("doctor-late");
    let mut victim = Victim::start(&scene, "odd", &["late-packets"]);
    let (code, told) = examine(&scene, victim.pid);
    assert_eq!(code, Some(0), "{told}");
    let images = scene.subdir("images");
    let pid = victim.pid.to_string();
    let mut dump = godwit_command(&scene, &["dump", "--pid", &pid, "--images-dir", images.to_str().unwrap()]);
    // The look is over, the freeze has not begun.
    dump.env("GODWIT_FAULT", "step.before.alarm:delay-1500").env("RUST_LOG", "godwit_dumper=debug");
    let running = Running::start(dump);
    std::thread::sleep(Duration::from_millis(700));
    victim.tell("open");
    eventually("it has opened", Duration::from_secs(10), || victim.dir().join("opened").exists());
    let finished = running.finish(Duration::from_secs(60));
    assert_eq!(finished.code(), Some(3), "{finished}");
    let why = format!("process {pid}, fd 77 (pipe:[");
    assert!(finished.stderr.contains(&why) && finished.stderr.contains("packet mode"), "{finished}");
    victim.expect_untouched();
    assert!(std::fs::read_dir(&images).unwrap().next().is_none(), "something is left in the directory");
    // Once it is closed nothing is in the way.
    victim.tell("close");
    eventually("it has closed", Duration::from_secs(10), || {
        !std::path::Path::new(&format!("/proc/{pid}/fd/77")).exists()
    });
    assert_eq!(examine(&scene, victim.pid).0, Some(0));
    assert_eq!(victim.check(), Verdict::Ok);
}

/// An operator's script that runs at the beginning can still mend what would be refused.
#[test]
fn a_script_can_mend_what_would_be_refused() {
    require!("root", "cc");
    let scene = Scene::new("doctor-script");
    let mut victim = Victim::start(&scene, "odd", &["late-packets"]);
    victim.tell("open");
    eventually("it has opened", Duration::from_secs(10), || victim.dir().join("opened").exists());
    assert_eq!(examine(&scene, victim.pid).0, Some(3));
    let script = scene.dir().join("mend");
    let text = "#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION = pre-dump ] || exit 0\ncd /proc/$CRTOOLS_INIT_PID/cwd && : > close\n\
                for n in 1 2 3 4 5 6 7 8 9; do sleep 0.2; [ -e /proc/$CRTOOLS_INIT_PID/fd/77 ] || exit 0; done; exit 1\n";
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let images = scene.subdir("images");
    let pid = victim.pid.to_string();
    let args = ["dump", "--leave-running", "--pid", &pid, "--images-dir", images.to_str().unwrap()];
    let finished = godwit(&scene, &[&args[..], &["--action-script", script.to_str().unwrap()]].concat());
    finished.expect_ok();
    assert_eq!(victim.check(), Verdict::Ok);
}
