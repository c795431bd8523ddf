//! The whole path with the soft-dirty tracker, in a guest whose kernel has it (the host's may not).
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use support::victim::{Libc, Verdict, compile, verdict};
use support::{Scene, Witness, lab, product};

/// Runs in the guest: keys, server, victims, migrations; everything that a check needs goes to out/.
const JOB: &str = r#"#!/bin/bash
exec 2>out/stderr
set -x
export GODWIT_STATE_DIR=/tmp/source
./godwit keys init /tmp/keys || exit 90
./godwit-page-server serve --listen 127.0.0.1:7430 --images-dir /tmp/images --keys /tmp/keys --restore \
    --criu "$(command -v "$CRIU")" --state-dir /tmp/destination >out/server.out 2>out/server.err &
for i in $(seq 100); do grep -q 'listening on' out/server.out && break; sleep 0.1; done

# migrate NAME VICTIM ARGS: out/NAME/ gets the report, the victim's log and the rest.
migrate() {
    local name=$1; shift
    mkdir -p "out/$name"; cd "out/$name" || exit 91
    "$@" >>log 2>&1 </dev/null &
    local pid=$!
    for i in $(seq 300); do grep -q READY log && break; sleep 0.1; done
    /job/godwit migrate --pid "$pid" --to 127.0.0.1:7430 --keys /tmp/keys --name "$name" \
        --tracker soft-dirty --max-rounds 4 --json >report.json 2>godwit.err
    echo $? >status
    sleep 1
    touch check
    for i in $(seq 400); do grep -qE '^(OK|BAD|BROKEN)' log && break; sleep 0.1; done
    cd /job || exit 91
}
migrate busy /job/busy 64 2 5000 1500
migrate mutator /job/mutator 3 2000
migrate alive /job/alive
# This kernel gives timer ids in order only, which the host's may not show.
migrate timers /job/timers
exit 0
"#;

fn run_in_guest(scene: &Scene, criu: &str) -> PathBuf {
    let job = scene.dir().join("job.sh");
    std::fs::write(&job, JOB).unwrap();
    std::fs::set_permissions(&job, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let out = scene.dir().join(format!("out-{criu}"));
    let mut vm = lab::command();
    vm.args(["vm", "--mem", "3072", "--timeout", "280", "--out"]).arg(&out);
    let mut take = |file: &Path, name: &str| {
        vm.arg("--in").arg(format!("{}:{name}", file.display()));
    };
    take(Path::new(env!("CARGO_BIN_EXE_godwit")), "godwit");
    take(&product::page_server_program().unwrap(), "godwit-page-server");
    take(&job, "job.sh");
    for name in ["busy", "mutator", "alive", "timers"] {
        take(&compile(name, Libc::StaticGlibc), name);
    }
    vm.args(["--", "env", &format!("CRIU={criu}"), "./job.sh"]);
    let finished = support::run(vm, Duration::from_secs(300));
    let logs = ["stderr", "server.err", "busy/godwit.err", "mutator/godwit.err", "alive/godwit.err"]
        .map(|name| format!("--- {name}\n{}", std::fs::read_to_string(out.join(name)).unwrap_or_default()));
    assert!(finished.ok(), "{finished}\n{}", logs.join("\n"));
    out
}

fn expect_moved(out: &Path, name: &str) -> Value {
    let dir = out.join(name);
    let text = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap_or_default();
    let context = format!("{}\n{}\n{}", text("godwit.err"), text("log"), text("../server.err"));
    assert_eq!(text("status").trim(), "0", "{name}: {context}");
    assert_eq!(verdict(&text("log"), ""), Verdict::Ok, "{name}: {context}");
    let report: Value =
        serde_json::from_str(text("report.json").trim()).unwrap_or_else(|error| panic!("{error}: {context}"));
    assert_eq!(report["tracker"], "soft-dirty", "{report}");
    assert_eq!(report["restored"], true, "{report}");
    report
}

fn expect_all(criu: &str) {
    let scene = Scene::new("vm");
    let out = run_in_guest(&scene, criu);
    let report = expect_moved(&out, "busy");
    let rounds = report["rounds"].as_array().unwrap();
    assert!(rounds.len() >= 2, "{report}");
    let sent = |n: usize| rounds[n]["pages_data"].as_u64().unwrap();
    assert!(sent(rounds.len() - 1) < sent(0), "the last set is as large as the first: {report}");
    let witness = Witness::read(&out.join("busy")).unwrap();
    witness.expect_one_life();
    assert_eq!(witness.stretches().len(), 2, "{}", witness.describe());
    expect_moved(&out, "mutator");
    expect_moved(&out, "alive");
    expect_moved(&out, "timers");
}

#[test]
fn soft_dirty_moves_programs_that_criu_4_1_restores() {
    require!("root", "cc", "vm", "page-server");
    expect_all("criu");
}

#[test]
#[ignore = "a second boot of the guest; CRIU 4.2 restores the same images on the host in every run"]
fn soft_dirty_moves_programs_that_criu_4_2_restores() {
    require!("root", "cc", "vm", "page-server");
    expect_all("criu42");
}
