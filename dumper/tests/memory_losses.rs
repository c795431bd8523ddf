//! What a restore drops of a process's memory: named by the doctor and by the dump, refused with `--strict`, and never at
//! the process's cost.
#![allow(clippy::unwrap_used)]

mod support;

use support::lab::{CriuVersion, Restored};
use support::product::{godwit, report};
use support::victim::{Verdict, Victim};
use support::{Finished, Scene};

/// A property of the victim `losses`, and what is said of it.
const LOSSES: &[(&str, &str)] = &[
    ("sealed", "it is sealed (mseal)"),
    ("locked-on-fault", "MLOCK_ONFAULT"),
    ("locked-for-ever", "MCL_FUTURE"),
    ("named", "([anon:a name]): its name (PR_SET_VMA_ANON_NAME)"),
    ("merged", "PR_SET_MEMORY_MERGE"),
    ("long-auxv", "the last 4 words of its auxiliary vector"),
    ("placed", "the NUMA policy of its memory"),
    ("guarded", "its 2 guard pages become ordinary memory, unless CRIU 4.2"),
    ("guarded-and-locked", "its 2 guard pages in locked memory become ordinary memory"),
    ("pkey", "it has a protection key (pkey_mprotect)"),
    ("aio", "requests of its AIO context that are in flight"),
];

/// What every kernel takes that godwit runs on.
const ALWAYS: &[&str] = &["locked-on-fault", "locked-for-ever", "long-auxv", "aio"];

fn dump(scene: &Scene, pid: i32, more: &[&str]) -> Finished {
    let images = scene.subdir("images");
    let pid = pid.to_string();
    let mut args = vec!["dump", "--json", "--leave-running", "--pid", &pid, "--images-dir"];
    args.push(images.to_str().unwrap());
    args.extend(more);
    godwit(scene, &args)
}

/// The victim with that property, unless it cannot have it here.
fn start(scene: &Scene, property: &str) -> Option<Victim> {
    let victim = Victim::start(scene, "losses", &[property]);
    let log = victim.log();
    let Some(why) = log.lines().find_map(|line| line.strip_prefix("UNSUPPORTED ")) else {
        return Some(victim);
    };
    assert!(!ALWAYS.contains(&property), "{property}: {why}");
    println!("{property}: not on this machine: {why}");
    None
}

#[test]
fn what_is_lost_of_memory_is_named_and_refused_when_strict() {
    require!("root", "cc");
    let scene = Scene::new("losses");
    let mut wrong = Vec::new();
    for (property, says) in LOSSES {
        let Some(mut victim) = start(&scene, property) else { continue };
        let doctor = godwit(&scene, &["doctor", "--pid", &victim.pid.to_string()]).expect_ok();
        if !doctor.stdout.contains(says) {
            wrong.push(format!("{property}: the doctor does not say {says:?}: {doctor}"));
        }
        let strict = dump(&scene, victim.pid, &["--strict"]);
        if strict.ok() || !strict.stderr.contains(says) {
            wrong.push(format!("{property}: --strict does not refuse with {says:?}: {strict}"));
        }
        victim.expect_untouched();
        let dumped = dump(&scene, victim.pid, &[]).expect_ok();
        let losses = report(&dumped)["losses"].to_string();
        if losses.matches(says).count() != 1 {
            wrong.push(format!("{property}: the report does not say {says:?} once: {losses}"));
        }
        victim.expect_untouched();
        if victim.check() != Verdict::Ok {
            wrong.push(format!("{property}: the victim noticed: {}", victim.log()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_breakpoint_in_the_text_is_refused_by_name() {
    require!("root", "cc");
    let scene = Scene::new("breakpoint");
    let mut victim = Victim::start(&scene, "losses", &["breakpoint"]);
    let doctor = godwit(&scene, &["doctor", "--pid", &victim.pid.to_string()]);
    assert!(doctor.stdout.contains("has set a breakpoint at 0x"), "{doctor}");
    let refused = dump(&scene, victim.pid, &[]).expect_refusal();
    assert!(refused.stderr.contains("remove the probe"), "{refused}");
    victim.expect_untouched();
    assert_eq!(victim.check(), Verdict::Ok);
}

#[test]
fn an_ordinary_process_loses_nothing_of_its_memory() {
    require!("root", "cc");
    let scene = Scene::new("nothing-lost");
    for name in ["mem", "threads", "many", "flags"] {
        let mut victim = Victim::start(&scene, name, &[]);
        let dumped = dump(&scene, victim.pid, &["--strict"]).expect_ok();
        assert_eq!(report(&dumped)["losses"], serde_json::json!([]), "{name}");
        assert_eq!(victim.check(), Verdict::Ok, "{name}");
    }
}

#[test]
fn guards_are_kept_where_criu_4_2_restores_and_lost_by_name_elsewhere() {
    require!("root", "cc", "criu-4.1", "criu-4.2");
    let scene = Scene::new("guards");
    let told = |finished: &Finished| report(finished)["losses"].to_string().contains("guard pages");
    for (said, version, is_lost) in [
        (&[][..], CriuVersion::V4_1, true),
        (&["--criu-version", "4.1.1"], CriuVersion::V4_1, true),
        // Images without guards restore under the newer one too.
        (&[], CriuVersion::V4_2, true),
        (&["--criu-version", "4.2"], CriuVersion::V4_2, false),
    ] {
        let args: &[&str] = if is_lost { &["lost"] } else { &[] };
        let mut victim = Victim::start(&scene, "guards", args);
        if victim.log().contains("NOTE no guards in anonymous") {
            eprintln!("SKIP guards: this kernel has none (Linux 6.13)");
            assert!(std::env::var("GODWIT_REQUIRE").as_deref() != Ok("all"), "a required test cannot run");
            return;
        }
        let images = scene.subdir("guarded");
        let pid = victim.pid.to_string();
        let mut args = vec!["dump", "--json", "--pid", &pid, "--images-dir", images.to_str().unwrap()];
        args.extend(said);
        let dumped = godwit(&scene, &args).expect_ok();
        assert_eq!(told(&dumped), is_lost, "{said:?}: {dumped}");
        victim.expect_killed();
        victim.ask();
        if !is_lost {
            let older = Restored::try_from_images(&images, CriuVersion::V4_1, &[], &victim);
            assert!(older.is_err(), "CRIU 4.1 takes images with guards: they could be written for it");
        }
        let restored = Restored::from_images(&images, version, &[], &victim);
        assert_eq!(restored.verdict(), Verdict::Ok, "{said:?}, CRIU {}", version.text());
    }
    let mut victim = Victim::start(&scene, "guards", &[]);
    dump(&scene, victim.pid, &["--strict"]).expect_refusal();
    dump(&scene, victim.pid, &["--strict", "--criu-version", "4.2"]).expect_ok();
    dump(&scene, victim.pid, &["--criu-version", "3.19"]).expect_refusal();
    assert_eq!(victim.check(), Verdict::Ok);
}
