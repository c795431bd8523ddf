//! Trees whose root leads no session (`--shell-job`): refused without the option, and restored into the session of `criu`
//! with it.
#![allow(clippy::unwrap_used)]

mod support;

use support::lab::{BOTH, Restored};
use support::product::{Server, godwit, migrate_args};
use support::scene::status_field;
use support::untouched::Busy;
use support::victim::{Verdict, Victim, session_leader, verdict};
use support::{Scene, Tree, moved};

/// Starts a job in the background, as a shell with job control does, and stays as the leader of its session.
const SHELL: &str = "set -m; bash \"$0\" & wait $!; sleep 1000";

/// The job: one child in its group, one in a group of its own with a child.
const JOB: &str = r#"
field() { cut -d' ' -f$2 /proc/$1/stat; }
session() { field $1 6; }
group() { field $1 5; }
until_there() { until [ -e $1 ]; do sleep 0.02; done; }
(until_there done; exit 7) &
first=$!
set -m
(set +m; (until_there done; exit 8) & wait $!; exit $(($? + 1))) &
second=$!
set +m
until [ "$(group $second)" = $second ]; do sleep 0.01; done
before=$(session $$)
[ $before != $$ ] || echo "FAIL it leads its session"
echo "READY $$"
until_there check
session=$(session $$)
for pid in $first $second; do
    [ "$(session $pid)" = $session ] || echo "FAIL $pid is in session $(session $pid) and not in $session"
done
[ $session != $$ ] || echo "FAIL it leads its session"
[ "$(group $first)" = "$(group $$)" ] || echo "FAIL the first child is in group $(group $first)"
[ "$(group $second)" = $second ] || echo "FAIL the second child is in group $(group $second)"
: > done
wait $first
[ $? = 7 ] || echo "FAIL the first child ended with $?"
wait $second
[ $? = 9 ] || echo "FAIL the second child ended with $?"
echo OK
"#;

/// A shell, and the job that it started.
fn job(scene: &Scene) -> (Victim, i32) {
    let script = scene.dir().join("job");
    std::fs::write(&script, JOB).unwrap();
    let mut shell = session_leader("bash");
    shell.args(["-c", SHELL]).arg(script);
    let victim = Victim::start_command(scene, "job", shell);
    let log = victim.log();
    let pid = log.lines().find_map(|line| line.strip_prefix("READY ")).unwrap().parse().unwrap();
    assert_ne!(pid, victim.pid);
    (victim, pid)
}

#[test]
fn a_job_of_a_shell_is_refused_unless_it_is_called_one() {
    require!("root");
    let scene = Scene::new("no-shell-job");
    let (victim, pid) = job(&scene);
    let before = Tree::of(pid).states(Busy::Forking);
    let images = scene.subdir("images");
    let args = ["dump", "--pid", &pid.to_string(), "--images-dir", images.to_str().unwrap()];
    let refused = godwit(&scene, &args).expect_refusal();
    assert!(refused.stderr.contains("--shell-job"), "{refused}");
    before.again().unwrap_or_else(|what| panic!("{what}\n{refused}"));
    let left = godwit(&scene, &[&args[..], &["--shell-job", "--leave-running"]].concat()).expect_ok();
    before.again().unwrap_or_else(|what| panic!("{what}\n{left}"));
    before.expect_untouched();
    victim.ask();
    support::child::eventually("it has ended", std::time::Duration::from_secs(20), || {
        !support::scene::is_alive(pid)
    });
    assert_eq!(verdict(&victim.log(), "it has ended"), Verdict::Ok);
}

#[test]
fn a_job_of_a_shell_comes_back() {
    require!("root", "criu-4.1", "criu-4.2");
    for version in BOTH {
        let scene = Scene::new("shell-job");
        let (victim, pid) = job(&scene);
        let tree = Tree::of(pid);
        let images = scene.subdir("images");
        let args = ["dump", "-j", "--pid", &pid.to_string(), "--images-dir", images.to_str().unwrap()];
        godwit(&scene, &args).expect_ok();
        tree.expect_killed();
        assert!(support::scene::is_alive(victim.pid), "the shell is gone, and was no part of the tree");
        victim.ask();
        // The option for the restore stands in the manifest.
        let restored = Restored::from_images(&images, version, &[], &victim);
        assert_eq!(restored.verdict(), Verdict::Ok, "CRIU {}", version.text());
    }
}

#[test]
fn a_job_of_a_shell_is_migrated() {
    require!("root", "criu-4.1", "criu-4.2", "page-server");
    for version in BOTH {
        let scene = Scene::new("shell-job-moved");
        let (victim, pid) = job(&scene);
        let server = Server::start(&scene, version);
        let tree = Tree::of(pid);
        let finished =
            godwit(&scene, &migrate_args(pid, &server, &["--shell-job", "--max-rounds", "2"])).expect_ok();
        tree.expect_killed();
        let report = support::product::report(&finished);
        let copy = i32::try_from(report["restored_pid"].as_i64().unwrap()).unwrap();
        assert_eq!(status_field(copy, "Name").as_deref(), Some("bash"), "{finished}");
        let copy = moved::Moved { pid: copy, report };
        assert_eq!(copy.check(&victim), Verdict::Ok, "CRIU {}", version.text());
    }
}
