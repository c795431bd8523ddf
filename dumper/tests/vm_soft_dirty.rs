//! What the host's kernel or its rights do not show, in a guest: the soft-dirty tracker, swap, protection keys, raised
//! limits, a security profile, a long way that loses packets, Linux 6.12. One boot, many programs: each is moved by
//! `godwit migrate` to a page server that restores it, or is a test program of the host's that runs there again.
//!
//! `GODWIT_FULL=1` moves every program that is about memory, alone and in three rounds, with both trackers, to both
//! CRIUs. `GODWIT_GUEST_CASE` picks the cases whose names contain it.
#![allow(clippy::unwrap_used)]

mod remote;
mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::victim::{Libc, Verdict, compile, verdict};
use support::{Scene, Witness, lab, product};

/// What runs in the guest.
#[derive(Clone, Debug)]
enum How {
    /// Moved with so many rounds. `criu` is `far` for the server behind a way that loses packets.
    Moved { criu: &'static str, tracker: &'static str, rounds: u32 },
    /// Under a security profile: refused by name.
    Confined,
    /// A test program, with variables and arguments.
    Tested { variables: Vec<String>, filter: &'static str },
}

#[derive(Clone, Debug)]
struct Case {
    name: String,
    /// The victim, or the test program.
    program: &'static str,
    args: &'static [&'static str],
    how: How,
}

fn moved(
    program: &'static str,
    args: &'static [&'static str],
    criu: &'static str,
    tracker: &'static str,
    rounds: u32,
) -> Case {
    let name = format!("{program}-{rounds}-{tracker}-{criu}");
    Case { name, program, args, how: How::Moved { criu, tracker, rounds } }
}

/// A setting of the victim `unkept` that the host may not be able to make.
fn dropped(setting: &'static [&'static str]) -> Case {
    let how = How::Moved { criu: "4.2", tracker: "soft-dirty", rounds: 0 };
    Case { name: format!("unkept-{}", setting[0]), program: "unkept", args: setting, how }
}

fn tested(name: &str, program: &'static str, variables: &[&str], filter: &'static str) -> Case {
    let variables = variables.iter().map(|&variable| variable.to_owned()).collect();
    Case { name: name.to_owned(), program, args: &[], how: How::Tested { variables, filter } }
}

/// 16 MiB, two writers, a record each 5 ms, few enough pages a second that a round leaves some alone.
const BUSY: &[&str] = &["16", "2", "5000", "200"];

/// The programs that are about memory, with arguments for a slow machine.
const MEMORY: &[(&str, &[&str])] = &[
    ("busy", BUSY),
    ("mutator", &["3", "2000"]),
    ("churn", &["5", "3", "2000"]),
    ("alive", &[]),
    ("mem", &[]),
    ("shmem", &[]),
    ("segments", &[]),
    ("ghost", &[]),
    ("flags", &[]),
    ("grow", &[]),
    ("many", &[]),
    ("shrink", &[]),
    ("aio", &[]),
    ("swap", &[]),
];

/// What no host shows, and one of everything else.
fn usual() -> Vec<Case> {
    vec![
        moved("busy", BUSY, "4.2", "soft-dirty", 3),
        moved("busy", BUSY, "far", "soft-dirty", 3),
        moved("mutator", &["3", "2000"], "4.1", "soft-dirty", 3),
        moved("churn", &["5", "3", "2000"], "4.2", "soft-dirty", 3),
        moved("alive", &[], "4.1", "soft-dirty", 3),
        moved("mem", &[], "4.2", "soft-dirty", 3),
        moved("shmem", &[], "4.1", "soft-dirty", 3),
        moved("swap", &[], "4.2", "soft-dirty", 3),
        moved("swap", &[], "4.1", "uffd-wp", 3),
        moved("raised", &[], "4.2", "soft-dirty", 0),
        moved("pkeys", &["lost"], "4.1", "soft-dirty", 1),
        // This kernel gives timer ids in order only, which the host's may not show.
        moved("timers", &[], "4.1", "soft-dirty", 1),
        moved("seccomp", &[], "4.1", "soft-dirty", 1),
        moved("privileges", &["user"], "4.2", "soft-dirty", 1),
        dropped(&["flusher"]),
        Case { name: "confined".to_owned(), program: "alive", args: &[], how: How::Confined },
        tested("steps-soft-dirty", "tracker_steps", &[], "soft_dirty"),
        tested("steps-uffd-wp", "tracker_steps", &[], "uffd_wp"),
        tested("property-soft-dirty", "tracker_property", &["GODWIT_TRACKER_SEEDS=2"], "soft_dirty"),
        tested("property-uffd-wp", "tracker_property", &["GODWIT_TRACKER_SEEDS=1"], "uffd_wp"),
        tested("property-hash", "tracker_property", &["GODWIT_TRACKER_SEEDS=1"], "hash"),
        tested("kinds-soft-dirty", "tracker_kinds", &[], "soft_dirty_sees"),
        tested("kinds-uffd-wp", "tracker_kinds", &[], "uffd_wp_sees"),
        tested("kinds-hash", "tracker_kinds", &[], "hash_sees"),
        tested(
            "equal-soft-dirty",
            "memory_equal",
            &["GODWIT_MEMORY_SEED=14", "GODWIT_MEMORY_ROUNDS=3", "GODWIT_MEMORY_TRACKER=soft-dirty"],
            "every",
        ),
    ]
}

fn full() -> Vec<Case> {
    let mut cases = usual();
    for &(program, args) in MEMORY {
        for criu in ["4.1", "4.2"] {
            cases.push(moved(program, args, criu, "soft-dirty", 0));
            cases.push(moved(program, args, criu, "soft-dirty", 3));
            cases.push(moved(program, args, criu, "uffd-wp", 3));
        }
    }
    for tracker in ["soft-dirty", "uffd-wp"] {
        let chosen = format!("GODWIT_MEMORY_TRACKER={tracker}");
        cases.push(tested(
            &format!("equal-many-{tracker}"),
            "memory_equal",
            &[&chosen, "GODWIT_MEMORY_RUNS=10"],
            "every",
        ));
    }
    cases.push(tested("rounds-soft-dirty", "tracker_rounds", &["GODWIT_TRACKER_RUNS=3"], "soft_dirty"));
    cases.push(tested("rounds-uffd-wp", "tracker_rounds", &["GODWIT_TRACKER_RUNS=3"], "uffd_wp"));
    let mut names = std::collections::BTreeSet::new();
    cases.retain(|case| names.insert(case.name.clone()));
    cases
}

fn line(case: &Case) -> String {
    let Case { name, program, args, how } = case;
    let args = args.join(" ");
    match how {
        How::Moved { criu, tracker, rounds } => {
            format!("moved {name} {criu} {tracker} {rounds} {program} {args}")
        }
        How::Confined => format!("confined {name} {program}"),
        How::Tested { variables, filter } => {
            format!("tested {name} {} -- {program} {filter}", variables.join(" "))
        }
    }
}

/// This test's own program lies beside those of the other tests, whose names end in a hash: the newest is meant.
fn test_program(name: &str) -> Result<PathBuf, String> {
    let here = std::env::current_exe().unwrap();
    let is_it = |path: &PathBuf| {
        let file = path.file_name().unwrap().to_string_lossy();
        file.strip_prefix(name).is_some_and(|rest| rest.starts_with('-') && !rest.contains('.'))
    };
    let mut found: Vec<PathBuf> = std::fs::read_dir(here.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(is_it)
        .collect();
    let made = |path: &PathBuf| std::fs::metadata(path).unwrap().modified().unwrap();
    found.sort_by_key(made);
    // What is older than the library was built from other sources, and proves nothing about these.
    let library = std::fs::read_dir(here.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let is_library = |path: &PathBuf| {
        let file = path.file_name().unwrap().to_string_lossy();
        file.starts_with("libgodwit_dumper-") && file.ends_with(".rlib")
    };
    let library = library.filter(is_library).map(|path| made(&path)).max();
    found
        .pop()
        .filter(|newest| library.is_none_or(|library| made(newest) >= library))
        .ok_or_else(|| format!("the test program {name} is not built, or out of date (cargo test --no-run)"))
}

/// A copy without its debugging information, which is most of it.
fn stripped(from: &Path, dir: &Path) -> PathBuf {
    let into = dir.join(from.file_name().unwrap());
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&into).arg(from);
    support::run(strip, Duration::from_secs(60)).expect_ok();
    into
}

fn write_program(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn run_in_guest(scene: &Scene, cases: &[Case], limit_s: u64) -> PathBuf {
    let (dir, out) = (scene.dir(), scene.dir().join("out"));
    write_program(&dir.join("job.sh"), include_str!("guest/job.sh"));
    write_program(&dir.join("lab"), include_str!("guest/lab"));
    let lines: Vec<String> = cases.iter().map(line).collect();
    std::fs::write(dir.join("cases"), lines.join("\n") + "\n").unwrap();
    let mut vm = lab::command();
    vm.args(["vm", "--mem", "3072", "--timeout", &limit_s.to_string(), "--out"]).arg(&out);
    let mut take = |file: &Path, name: &str| {
        vm.arg("--in").arg(format!("{}:{name}", file.display()));
    };
    take(&dir.join("job.sh"), "job.sh");
    take(&dir.join("cases"), "cases");
    take(&dir.join("lab"), "bin/lab");
    take(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/lab/restore-init"), "bin/restore-init");
    let godwit = Path::new(env!("CARGO_BIN_EXE_godwit"));
    take(&stripped(godwit, dir), "bin/godwit");
    take(&stripped(&product::page_server_program().unwrap(), dir), "bin/godwit-page-server");
    let mut known = std::collections::BTreeSet::new();
    for case in
        cases.iter().filter(|case| known.insert((case.program, matches!(case.how, How::Tested { .. }))))
    {
        match case.how {
            How::Tested { .. } => {
                let program = test_program(case.program).unwrap();
                take(&stripped(&program, dir), &format!("tests/{}", case.program));
            }
            _ => take(&compile(case.program, Libc::StaticGlibc), &format!("victims/{}", case.program)),
        }
    }
    // What the test programs start.
    take(&compile("churn", Libc::StaticGlibc), "victims/churn");
    for name in ["changer", "steps", "driven", "kinds"] {
        take(&remote::compile(dir, "cc", name, &["-static"]), &format!("victims/{name}"));
    }
    vm.args(["--", "env", &format!("GODWIT_AT={}", godwit.display()), "./job.sh"]);
    let finished = support::run(vm, Duration::from_secs(limit_s + 30));
    let stderr = std::fs::read_to_string(out.join("stderr")).unwrap_or_default();
    assert!(finished.ok(), "{finished}\n--- the job\n{}", support::child::tail(&stderr));
    out
}

/// The files of a case, and all of them together for a failure.
struct Told {
    dir: PathBuf,
}

impl Told {
    fn text(&self, file: &str) -> String {
        std::fs::read(self.dir.join(file))
            .map_or_else(|_| String::new(), |text| String::from_utf8_lossy(&text).into_owned())
    }

    fn all(&self) -> String {
        let files = ["status", "godwit.err", "doctor.err", "log", "report.json"];
        let told = files.map(|file| format!("--- {file}\n{}", support::child::tail(&self.text(file))));
        told.join("\n")
    }
}

fn check(out: &Path, case: &Case) -> Result<(), String> {
    let told = Told { dir: out.join(&case.name) };
    let wrong = |what: &str| Err(format!("{}: {what}\n{}", case.name, told.all()));
    match &case.how {
        How::Tested { .. } => {
            let passed = told.text("log").lines().any(|line| line.contains("1 passed; 0 failed"));
            if told.text("status").trim() == "0" && passed { Ok(()) } else { wrong("it failed") }
        }
        How::Confined => {
            let refused =
                told.text("status").trim() == "3" && told.text("godwit.err").contains("godwit-test");
            if !told.text("label").contains("godwit-test") {
                return wrong("it is not confined");
            }
            if !refused || !told.text("doctor.json").contains("godwit-test") {
                return wrong("it is not refused by the name of its profile");
            }
            if verdict(&told.text("log"), "") == Verdict::Ok { Ok(()) } else { wrong("it was harmed") }
        }
        How::Moved { criu, tracker, rounds } => {
            if *criu == "far" && lost_packets(&told.text("qdisc")).is_none_or(|count| count == 0) {
                return wrong("nothing was lost on the way");
            }
            if told.text("status").trim() != "0" {
                return wrong("not migrated");
            }
            if verdict(&told.text("log"), "") != Verdict::Ok {
                return wrong("not as it was");
            }
            let Ok(report) = serde_json::from_str::<Value>(told.text("report.json").trim()) else {
                return wrong("no report");
            };
            let by = if *rounds > 0 { *tracker } else { "none" };
            let made = report["rounds"].as_array().map_or(0, Vec::len);
            if report["restored"] != true || report["tracker"] != by || made != *rounds as usize + 1 {
                return wrong("another report was expected");
            }
            check_more(&told, case, &report).or_else(|what| wrong(&what))
        }
    }
}

/// Packets that a queue lost, by `tc -s qdisc`: "Sent 1 bytes 2 pkt (dropped 3, overlimits 0 requeues 0)".
fn lost_packets(shown: &str) -> Option<u64> {
    let (_, rest) = shown.split_once("(dropped ")?;
    rest.split_once(',')?.0.parse().ok()
}

/// What single programs show besides their own verdict.
fn check_more(told: &Told, case: &Case, report: &Value) -> Result<(), String> {
    match case.program {
        "busy" => {
            let witness = Witness::read(&told.dir)?;
            let rounds = report["rounds"].as_array().unwrap();
            let left = rounds.last().unwrap()["pages_in_parent"].as_u64().unwrap_or(0);
            if !witness.faults().is_empty() || witness.stretches().len() != 2 {
                return Err(format!("{:?}\n{}", witness.faults(), witness.describe()));
            }
            if rounds.len() > 1 && left < 500 { Err("the rounds were no use".to_owned()) } else { Ok(()) }
        }
        "pkeys" => {
            let losses = report["losses"].to_string();
            if losses.contains("protection key") { Ok(()) } else { Err("no loss is named".to_owned()) }
        }
        "unkept" => {
            let log = told.text("log");
            if log.contains("UNSUPPORTED") {
                return Err("this kernel has that".to_owned());
            }
            let named = "PR_SET_IO_FLUSHER";
            let is_named = report["losses"].to_string().contains(named);
            if is_named && log.contains("DROPPED") {
                Ok(())
            } else {
                Err(format!("{named} is not named and lost"))
            }
        }
        _ => Ok(()),
    }
}

#[test]
fn what_only_the_guest_shows_is_moved_there() {
    require!("root", "cc", "vm", "page-server");
    let scene = Scene::new("vm");
    let is_full = std::env::var("GODWIT_FULL").as_deref() == Ok("1");
    let only = std::env::var("GODWIT_GUEST_CASE").unwrap_or_default();
    let mut cases = if is_full { full() } else { usual() };
    cases.retain(|case| case.name.contains(&only));
    assert!(!cases.is_empty(), "no case is called {only}");
    let out = run_in_guest(&scene, &cases, if is_full { 2400 } else { 700 });
    let wrong: Vec<String> = cases.iter().filter_map(|case| check(&out, case).err()).collect();
    let servers = ["server-4.1.err", "server-4.2.err", "server-far.err"].map(|name| {
        support::child::tail(&std::fs::read_to_string(out.join(name)).unwrap_or_default()).to_owned()
    });
    assert!(
        wrong.is_empty(),
        "{} of {} cases:\n{}\n--- servers\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n\n"),
        servers.join("\n")
    );
}
