//! The suite, small: every kind of peer and link once, what it writes, and what an interrupted one leaves.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use godwit_benches::conditions::Conditions;
use godwit_benches::link::LinkKind;
use godwit_benches::peer::{Peer, Programs, Sample};
use godwit_benches::report::{Results, ScenarioResult, json, svg, table};
use godwit_benches::runner::{Outcome, Runner, Settings};
use godwit_benches::scenario::Scenario;
use godwit_benches::targets;
use godwit_benches::workload::{Content, Workload};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const MEMORY_MIB: u64 = 16;
const MIB: u64 = 1 << 20;

/// What the suite needs; without it a test says SKIP, which the gate takes for a failure.
fn require() -> Option<Programs> {
    let found =
        if nix::unistd::geteuid().is_root() { criu() } else { Err("run the tests as root".to_owned()) };
    let found = found.and_then(|criu| Programs::find(&criu).map_err(|error| error.to_string()));
    match found {
        Ok(programs) => Some(programs),
        Err(why) => {
            eprintln!("SKIP smoke: {why}");
            let forbidden = std::env::var("GODWIT_REQUIRE").as_deref() == Ok("all");
            assert!(!forbidden, "GODWIT_REQUIRE=all and missing: {why}");
            None
        }
    }
}

fn criu() -> Result<PathBuf, String> {
    if let Some(criu) = std::env::var_os("GODWIT_CRIU_42").or_else(|| std::env::var_os("GODWIT_CRIU")) {
        return Ok(criu.into());
    }
    let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/lab/lab");
    let output =
        Command::new(lab).args(["paths", "--wrapper"]).output().map_err(|error| error.to_string())?;
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() { Ok(path.into()) } else { Err("the lab has no CRIU".to_owned()) }
}

fn settings(images: &Path) -> Settings {
    Settings { repeats: 1, images: images.to_owned(), on_disk: false, warm_up: true }
}

fn run(runner: &Runner, link: LinkKind, peers: &[Peer]) -> Outcome {
    let scenario = Scenario {
        operation: "one-shot",
        workload: Workload::still(Content::Random),
        memory_mib: MEMORY_MIB,
        link,
        peers: peers.to_vec(),
        once: true,
    };
    let outcome = runner.run(&scenario, &mut |line| eprintln!("{line}")).unwrap();
    assert_eq!(outcome.failure, None);
    outcome
}

/// What holds of every run, whoever did it.
fn assert_measured(peer: Peer, sample: &Sample) {
    let name = peer.name();
    assert!(sample.freeze_s > 0.0 && sample.freeze_s <= sample.wall_s, "{name}: {sample:?}");
    assert!(sample.fsync_s >= 0.0 && sample.compared_s() > 0.0, "{name}: {sample:?}");
    assert!((MEMORY_MIB * MIB..(MEMORY_MIB + 8) * MIB).contains(&sample.memory_bytes), "{name}: {sample:?}");
    assert!(sample.source.cpu_s > 0.0 && sample.source.rss_bytes > MIB, "{name}: {sample:?}");
    match sample.server {
        Some(server) => {
            assert!(server.rss_bytes > MIB, "{name}: {sample:?}");
            let wire = sample.wire_bytes.unwrap();
            assert!((MEMORY_MIB * MIB..2 * MEMORY_MIB * MIB).contains(&wire), "{name}: {wire}");
        }
        None => assert_eq!(sample.wire_bytes, None, "{name}"),
    }
}

#[test]
fn every_peer_is_measured_and_written_down() {
    let Some(programs) = require() else { return };
    let images = tempfile::tempdir_in("/dev/shm").unwrap();
    let conditions = Conditions::gather(&programs, &settings(images.path()), true).unwrap();
    let runner = Runner::new(programs, settings(images.path())).unwrap();
    let peers = [Peer::Godwit, Peer::CriuPageServer, Peer::CriuTls, Peer::GodwitLocal, Peer::CriuLocal];
    let loopback = run(&runner, LinkKind::Loopback, &peers);
    let shaped = run(&runner, LinkKind::Shaped { rate_mbit: 1000 }, &peers[..2]);
    for (peer, samples) in loopback.samples.iter().chain(&shaped.samples) {
        assert_eq!(samples.len(), 1);
        assert_measured(*peer, &samples[0]);
    }
    for (peer, samples) in &shaped.samples {
        let part = samples[0].link_use.unwrap();
        assert!(part > 0.0 && part < 1.05, "{}: {part} of the link", peer.name());
    }
    drop(runner);
    assert_eq!(fs::read_dir(images.path()).unwrap().count(), 0, "the suite left something behind");

    let scenarios = vec![ScenarioResult::of(&loopback), ScenarioResult::of(&shaped)];
    let targets = targets::judge(&scenarios, &[], &[]);
    let results = Results {
        schema: 1,
        conditions,
        scenarios,
        limits: vec![],
        contents: vec![],
        tracking: vec![],
        targets,
        virtual_machine: None,
    };
    assert_written(&results);
}

fn assert_written(results: &Results) {
    let out = tempfile::tempdir().unwrap();
    json::write(results, out.path()).unwrap();
    svg::write(results, out.path()).unwrap();
    let read: Value = serde_json::from_slice(&fs::read(out.path().join("results.json")).unwrap()).unwrap();
    let peers = read["scenarios"][0]["peers"].as_array().unwrap();
    assert_eq!(peers.len(), 5);
    let ratio = &peers[0]["time_over"][0];
    assert_eq!(ratio["peer"], "criu page server");
    assert!(ratio["ratio"]["median"].as_f64().unwrap() > 0.0);
    assert!(read["conditions"]["criu"].as_str().unwrap().starts_with("4."));
    for plot in ["time.svg", "wire.svg", "cpu.svg", "freeze.svg"] {
        let plot = fs::read_to_string(out.path().join(plot)).unwrap();
        assert!(plot.contains("criu page server --tls") && plot.ends_with("</svg>\n"));
    }
    assert!(!out.path().join("limits.svg").exists(), "a plot of nothing");
    let text = table::render(results);
    let of_target = "random memory over loopback: time over CRIU's page server ";
    assert!(text.lines().any(|line| line.trim().starts_with(of_target) && !line.contains("not measured")));
}

#[test]
fn an_interrupted_suite_leaves_nothing() {
    let Some(programs) = require() else { return };
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (images, errors) = (dir.path().join("images"), dir.path().join("errors"));
    fs::create_dir(&images).unwrap();
    let mut suite = Command::new(&programs.suite)
        .args(["--quick", "--only", "one-shot/random/loopback", "--repeats", "100", "--criu", &programs.criu])
        .arg("--on-disk")
        .arg(&images)
        .arg("--out")
        .arg(dir.path().join("out"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&errors).unwrap())
        .spawn()
        .unwrap();
    let said = || fs::read_to_string(&errors).unwrap();
    within("its first run", || said().contains("warm-up"));
    kill(Pid::from_raw(i32::try_from(suite.id()).unwrap()), Signal::SIGINT).unwrap();
    let mut status = None;
    within("its end", || {
        status = suite.try_wait().unwrap();
        status.is_some()
    });
    assert!(!status.unwrap().success());
    assert!(said().contains("ended by a signal"), "{}", said());
    assert_eq!(fs::read_dir(&images).unwrap().count(), 0, "the suite left files behind");
    // Whatever it started was given a path below this directory.
    let own = images.to_string_lossy().into_owned();
    let left = fs::read_dir("/proc").unwrap().flatten().find(|entry| {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(&own)
    });
    assert!(left.is_none(), "a process runs on: {left:?}");
}

#[track_caller]
fn within(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited 60 s for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
