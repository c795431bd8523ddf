//! A tree with more descriptors than godwit may have: refused before anything is touched, with the number that does.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;

use support::product::{GODWIT_LIMIT, Server, godwit_command, migrate_args};
use support::victim::{Verdict, Victim};
use support::{Finished, Scene};

/// A dump by a godwit that may have `most` descriptors.
fn dump_with(scene: &Scene, pid: i32, most: u64) -> Finished {
    let images = scene.subdir("images");
    let pid = pid.to_string();
    let args = ["dump", "--leave-running", "--pid", &pid, "--images-dir", images.to_str().unwrap()];
    run_with(&godwit_command(scene, &args), most)
}

fn run_with(godwit: &Command, most: u64) -> Finished {
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -n $0 && exec \"$@\"", &most.to_string()])
        .arg(godwit.get_program())
        .args(godwit.get_args())
        .envs(godwit.get_envs().filter_map(|(name, value)| Some((name, value?))));
    support::run(limited, GODWIT_LIMIT)
}

#[test]
fn a_tree_of_too_many_descriptors_is_refused_with_the_number_that_is_enough() {
    require!("root", "cc", "page-server");
    let scene = Scene::new("open-files");
    let server = Server::start_with(&scene, &[], &[]);
    for (name, args) in [("crowd_tree", &["60", "1"][..]), ("files", &[])] {
        let mut victim = Victim::start(&scene, name, args);
        let refused = dump_with(&scene, victim.pid, 40).expect_refusal();
        for word in ["open descriptors", "may have 40", "RLIMIT_NOFILE", "LimitNOFILE=", "nr_open"] {
            assert!(refused.stderr.contains(word), "{name}, {word:?}: {refused}");
        }
        victim.expect_untouched();
        let (_, needed) = refused.stderr.split_once("godwit needs ").unwrap();
        let needed: u64 = needed.split(' ').next().unwrap().parse().unwrap();
        dump_with(&scene, victim.pid, needed - 1).expect_refusal();
        dump_with(&scene, victim.pid, needed).expect_ok();
        let live = ["--no-restore", "--leave-running", "--rounds", "2", "--name", name];
        run_with(&godwit_command(&scene, &migrate_args(victim.pid, &server, &live)), needed).expect_ok();
        assert_eq!(victim.check(), Verdict::Ok, "{name}");
    }
}
