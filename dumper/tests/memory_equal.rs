//! A copy's memory is its source's, mapping by mapping and page by page: looked at while the source lies frozen with
//! all its pages sent, and again when the restored copy has not run yet. The source changes its memory and its map
//! from several threads (`victims/churn.c`) before, between and during 1 to 10 rounds.
//!
//! A failure names its seed and number of rounds. `GODWIT_MEMORY_SEED` tries one seed, with `GODWIT_MEMORY_ROUNDS`
//! rounds; `GODWIT_MEMORY_TRACKER` chooses the tracker; `GODWIT_FULL=1` tries many.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::child::{Finished, Running};
use support::lab::{BOTH, CriuVersion, Restored};
use support::memory::{self, Difference, Mapping};
use support::product::{Server, godwit_command, migrate_args, report};
use support::victim::{Verdict, Victim};
use support::{Scene, images};

/// One migration that is to be compared.
#[derive(Clone, Debug)]
struct Run {
    program: &'static str,
    seed: u64,
    rounds: u32,
    criu: CriuVersion,
    options: &'static [&'static str],
}

/// What a frozen source held, and where its images lie.
struct Sealed {
    victim: Victim,
    source: Vec<Mapping>,
    rseq: Vec<u64>,
    images: PathBuf,
    report: Value,
}

/// Holds the source at `post-dump`, when all of it is sealed and it still lies frozen, until the file `go` is made.
fn write_hold(dir: &Path) -> PathBuf {
    let script = dir.join("hold");
    let dir = dir.display();
    let text = format!(
        "#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" = post-dump ] || exit 0\n: >{dir}/frozen\n\
         for i in $(seq 6000); do [ -e {dir}/go ] && exit 0; sleep 0.01; done\nexit 1\n"
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    script
}

/// Migrates a churning program in exactly so many rounds, without a restore, and looks at it while it lies frozen.
fn seal(scene: &Scene, server: &Server, run: &Run) -> Result<Sealed, String> {
    let (seed, threads) = (run.seed.to_string(), (1 + run.seed % 4).to_string());
    let pause_us = ["20", "100", "300", "2000"][(run.seed / 4 % 4) as usize];
    let victim = Victim::start(scene, run.program, &[&seed, &threads, pause_us]);
    let hold = scene.subdir("hold");
    let (name, rounds) = (format!("{}-{}", victim.pid, run.seed), run.rounds.to_string());
    let script = write_hold(&hold);
    let tracker = std::env::var("GODWIT_MEMORY_TRACKER").unwrap_or_else(|_| "auto".to_owned());
    let mut options = vec!["--no-restore", "--name", &name, "--rounds", &rounds, "--tracker", &tracker];
    options.extend(["--timeout", "60s", "--action-script", script.to_str().unwrap()]);
    options.extend(run.options);
    let mut running = Running::start(godwit_command(scene, &migrate_args(victim.pid, server, &options)));
    while !hold.join("frozen").exists() {
        if running.ended().is_some() {
            let finished = running.finish(Duration::ZERO);
            return Err(format!("not migrated: {finished}\n--- the program's log\n{}", victim.log()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let log = victim.log();
    let addresses = log.lines().filter_map(|line| line.strip_prefix("RSEQ "));
    let rseq: Vec<u64> = addresses.map(|address| u64::from_str_radix(address, 16).unwrap()).collect();
    let source = memory::look(victim.pid, &rseq);
    std::fs::write(hold.join("go"), "").unwrap();
    let finished = running.finish(Duration::from_secs(120));
    if !finished.ok() {
        return Err(format!("not migrated: {finished}"));
    }
    expect_rounds(&finished, run)?;
    let (images, report) = (server.images.join(name).join("final"), report(&finished));
    Ok(Sealed { victim, source, rseq, images, report })
}

/// That there were as many rounds as asked for, and that the last set leaves something to them.
fn expect_rounds(finished: &Finished, run: &Run) -> Result<(), String> {
    let report = report(finished);
    let rounds = report["rounds"].as_array().unwrap();
    let last = rounds.last().unwrap();
    if rounds.len() != run.rounds as usize + 1 {
        return Err(format!("{} rounds and sets: {report}", rounds.len()));
    }
    if run.rounds > 0 && last["pages_in_parent"].as_u64() == Some(0) {
        return Err(format!("the rounds were no use: {report}"));
    }
    Ok(())
}

/// Restores, compares before a single instruction of the copy ran, and lets the copy check itself.
fn compare(sealed: &Sealed, run: &Run) -> Result<Vec<Difference>, String> {
    let victim = &sealed.victim;
    let restored = Restored::try_from_images(&sealed.images, run.criu, &["--leave-stopped"], victim)?;
    let copy = memory::look(restored.pid, &sealed.rseq);
    let differences = memory::differences(&sealed.source, &copy);
    victim.ask();
    kill(Pid::from_raw(restored.pid), Signal::SIGCONT).map_err(|errno| errno.to_string())?;
    match restored.verdict() {
        Verdict::Ok => Ok(differences),
        other if differences.is_empty() => Err(format!("equal when it was restored, and then {other:?}")),
        _ => Ok(differences),
    }
}

fn try_one(scene: &Scene, server: &Server, run: &Run) -> Result<usize, String> {
    let mut sealed = seal(scene, server, run)?;
    sealed.victim.expect_killed();
    let differences = compare(&sealed, run)?;
    if !differences.is_empty() {
        let session = sealed.images.parent().unwrap();
        let tell = |Difference { page, text }: &Difference| match page {
            Some(page) => format!("{text}; {}", memory::history(session, sealed.victim.pid as u32, *page)),
            None => text.clone(),
        };
        let first = differences.iter().take(12).map(tell).collect::<Vec<_>>().join("\n");
        return Err(format!("{} differences:\n{first}", differences.len()));
    }
    let compared = memory::pages_compared(&sealed.source);
    let _ = std::fs::remove_dir_all(sealed.images.parent().unwrap());
    Ok(compared)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// What is tried: one seed that was asked for, or a row of fixed ones and some that nobody chose.
fn runs() -> Vec<Run> {
    let criu = |seed: u64| BOTH[(seed % 2) as usize];
    // The page server is next door, so that by itself a dump neither packs pages nor spares any.
    let options = |seed: u64| match seed % 3 {
        0 => &["--compress", "lz4", "--delta", "always"][..],
        1 => &["--compress", "zstd:-1", "--delta", "always"],
        _ => &[],
    };
    let run = |seed: u64, rounds: u32| Run {
        program: "churn",
        seed,
        rounds,
        criu: criu(seed),
        options: options(seed),
    };
    if let Some(seed) = number("GODWIT_MEMORY_SEED") {
        return vec![run(seed, number("GODWIT_MEMORY_ROUNDS").unwrap_or(3) as u32)];
    }
    let is_full = std::env::var("GODWIT_FULL").as_deref() == Ok("1");
    let by_chance = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let count = number("GODWIT_MEMORY_RUNS").unwrap_or(if is_full { 120 } else { 2 });
    let fixed = (1..=10).map(|seed| run(seed, seed as u32));
    let random = (0..count).map(|n| run(by_chance + n, 1 + ((by_chance + n) % 10) as u32));
    if number("GODWIT_MEMORY_RUNS").is_some() { random.collect() } else { fixed.chain(random).collect() }
}

#[test]
fn every_page_of_the_copy_is_the_sources() {
    require!("root", "cc", "criu-4.1", "criu-4.2", "page-server");
    let scene = Scene::new("equal");
    let server = Server::start_with(&scene, &[], &[]);
    let (mut bad, mut pages, runs) = (Vec::new(), 0, runs());
    for run in &runs {
        match try_one(&scene, &server, run) {
            Ok(compared) => pages += compared,
            Err(why) => bad.push(format!(
                "GODWIT_MEMORY_SEED={} GODWIT_MEMORY_ROUNDS={} under CRIU {}: {why}",
                run.seed,
                run.rounds,
                run.criu.text()
            )),
        }
        scene.sweep();
    }
    assert!(bad.is_empty(), "{} of {} migrations:\n{}", bad.len(), runs.len(), bad.join("\n\n"));
    assert!(pages > 100 * runs.len(), "only {pages} pages were compared in {} migrations", runs.len());
}

/// Pages that are written over and over travel by what the round before holds of them, and are right.
#[test]
fn pages_that_hardly_change_are_spared_and_equal() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("spared");
    let server = Server::start_with(&scene, &[], &[]);
    let ways: [&'static [&'static str]; 3] = [
        &["--compress", "lz4", "--delta", "always"],
        &["--compress", "zstd", "--delta", "always"],
        &["--compress", "never", "--delta", "always"],
    ];
    for (seed, options) in (3..).zip(ways) {
        let run = Run { program: "hot", seed, rounds: 4, criu: CriuVersion::V4_2, options };
        let mut sealed = seal(&scene, &server, &run).unwrap();
        sealed.victim.expect_killed();
        let report = &sealed.report;
        let pages = |form: &str| report["link"][form]["page_bytes"].as_u64().unwrap() / 4096;
        // The second round notes what it sends; the third, the fourth and the last set can spare.
        assert!(pages("same") >= 512 && pages("delta") >= 512, "{report}");
        let of_rounds = |field: &str| -> u64 {
            report["rounds"].as_array().unwrap().iter().map(|round| round[field].as_u64().unwrap()).sum()
        };
        assert_eq!((of_rounds("pages_same"), of_rounds("pages_delta")), (pages("same"), pages("delta")));
        let payload = |form: &str| report["link"][form]["payload_bytes"].as_u64().unwrap();
        assert_eq!(payload("same"), pages("same") * 16);
        assert!(payload("delta") * 8 < pages("delta") * 4096, "{report}");
        let differences = compare(&sealed, &run).unwrap();
        assert!(differences.is_empty(), "{options:?}: {differences:#?}");
        scene.sweep();
    }
}

/// The comparison must see what it is there to see: one byte of one page.
#[test]
fn one_changed_byte_is_one_difference() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("unequal");
    let server = Server::start_with(&scene, &[], &[]);
    let run = Run { program: "churn", seed: 77, rounds: 2, criu: CriuVersion::V4_2, options: &[] };
    let mut sealed = seal(&scene, &server, &run).unwrap();
    sealed.victim.expect_killed();
    // In the middle of the file lies what is in no library and on no stack: the areas of the threads.
    let file = images::find(&sealed.images, "pages-*.img");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096 + 1234;
    bytes[middle] ^= 1;
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, bytes).unwrap();
    let differences = compare(&sealed, &run).unwrap();
    assert_eq!(differences.len(), 1, "{differences:#?}");
}

/// As above, for what the tracker cannot tell: without the alive set, memory that was given back comes back.
#[test]
fn memory_that_comes_back_is_a_difference() {
    require!("root", "cc", "criu-4.2", "page-server");
    let scene = Scene::new("stale");
    let server = Server::start_with(&scene, &[], &[]);
    let options = &["--no-alive-set"];
    let run = Run { program: "churn", seed: 5, rounds: 5, criu: CriuVersion::V4_2, options };
    let mut sealed = seal(&scene, &server, &run).unwrap();
    sealed.victim.expect_killed();
    // Pages of mappings that are gone cannot be restored at all; those of mappings that stayed are seen.
    match compare(&sealed, &run) {
        Ok(differences) => assert!(!differences.is_empty(), "no page came back"),
        Err(why) => assert!(why.contains("criu restore failed"), "{why}"),
    }
}
