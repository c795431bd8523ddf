//! Every tracker that works here, against a program that changes its memory and its memory map as fast as it can:
//! rounds are copied while it runs, the last one while it is stopped, and then every byte is compared.
//!
//! `GODWIT_TRACKER_RUNS` sets the number of programs (default 4), `GODWIT_TRACKER_SEED` the first seed.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "remote/copies.rs"]
mod copies;
mod remote;
mod support;

use std::path::Path;
use std::time::Duration;

use copies::Copy;
use godwit_dumper::predump::tracker::{self, Choice};
use remote::{Random, Victim, compile};

const ROUNDS: usize = 8;

fn follow(choice: Choice, dir: &Path, program: &Path, seed: u64) {
    let file = dir.join("file");
    let victim = Victim::start(dir, program, &[&seed.to_string(), file.to_str().unwrap()]);
    victim.wait_for("READY");
    let pid = victim.pid();
    let mut random = Random(seed | 1);
    let mut copy = Copy::begin(choice, pid);
    for _ in 0..ROUNDS {
        copy.round();
        std::thread::sleep(Duration::from_millis(random.below(40)));
    }
    let differences = copy.differences();
    assert!(
        differences.is_empty(),
        "{choice:?}, seed {seed}: {} pages differ, such as\n{}",
        differences.len(),
        differences[..differences.len().min(10)].join("\n")
    );
    assert!(
        copy.taken_over > 100,
        "{choice:?}, seed {seed}: rounds were no use, {} pages taken over",
        copy.taken_over
    );
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn follow_many(choice: Choice) {
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), "cc", "changer", &[]);
    let first = number("GODWIT_TRACKER_SEED", 1);
    for seed in first..first + number("GODWIT_TRACKER_RUNS", 4) {
        follow(choice, dir.path(), &program, seed);
    }
}

#[test]
fn uffd_wp_misses_no_page_of_a_program_that_changes_its_map() {
    require!("root", "cc");
    if let Err(why) = tracker::uffd_wp::self_test() {
        eprintln!("SKIP uffd-wp: {why}");
        assert!(std::env::var("GODWIT_REQUIRE").as_deref() != Ok("all"), "a required test cannot run");
        return;
    }
    follow_many(Choice::UffdWp);
}

#[test]
#[ignore = "needs soft-dirty bits (CONFIG_MEM_SOFT_DIRTY), which most kernels lack: run it on one that has them"]
fn soft_dirty_misses_no_page_of_a_program_that_changes_its_map() {
    require!("root", "cc");
    tracker::soft_dirty::self_test().unwrap();
    follow_many(Choice::SoftDirty);
}

#[test]
fn hash_misses_no_page_of_a_program_that_changes_its_map() {
    require!("root", "cc");
    follow_many(Choice::Hash);
}
