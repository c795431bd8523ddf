//! Changes of a memory map that a tracker could be fooled by, one at a time: half of a mapping replaced after it was
//! listed, whole page tables moved to where others were tracked, an execve.
#![allow(clippy::unwrap_used, missing_docs)]

mod remote;
mod support;

use std::path::Path;

use godwit_dumper::predump::held::Held;
use godwit_dumper::predump::rounds;
use godwit_dumper::predump::tracker::{self, Ask, Choice, Run, Tracker, soft_dirty, uffd_wp};
use godwit_dumper::procfs::maps::{self, Vma};
use godwit_wire::plan::PAGE_SIZE;
use nix::sys::signal::{Signal, kill};
use remote::{Victim, compile};

const AREA: u64 = 0x2000_0000_0000;
const AREA_PAGES: u64 = 2048;

fn listed(victim: &Victim) -> Vec<Vma> {
    rounds::with_pages(victim.pid(), &maps::read(victim.pid()).unwrap())
}

/// What it reports of a running process.
fn ask(tracker: &mut dyn Tracker, vmas: &[Vma]) -> Vec<Run> {
    let held = Held::default();
    tracker.collect(&Ask { vmas, held: &held, is_stopped: false, until: None }).unwrap()
}

/// Which pages of the area are in `runs`, by number.
fn of_area(runs: &[Run]) -> Vec<u64> {
    let has = |at: u64| runs.iter().any(|run| run.vaddr <= at && at < run.end());
    (0..AREA_PAGES).filter(|page| has(AREA + page * PAGE_SIZE)).collect()
}

fn step(victim: &Victim, word: &str) {
    kill(victim.pid(), Signal::SIGUSR1).unwrap();
    victim.wait_for(word);
}

fn follow(choice: Choice, dir: &Path, program: &Path) {
    let victim = Victim::start(dir, program, &[]);
    victim.wait_for("READY");
    let mut tracker = tracker::attach(choice, victim.pid(), 1).unwrap();
    let (all, none): (Vec<u64>, Vec<u64>) = ((0..AREA_PAGES).collect(), Vec::new());
    let collect = |tracker: &mut Box<dyn Tracker>| of_area(&ask(tracker.as_mut(), &listed(&victim)));
    let before = listed(&victim);
    assert_eq!(of_area(&ask(tracker.as_mut(), &before)), all);
    assert_eq!(collect(&mut tracker), none);

    step(&victim, "REPLACED");
    // As in a round that listed the mappings just before.
    let found = of_area(&ask(tracker.as_mut(), &before));
    let lost = (0..100).map(|i| 2 * i).chain(AREA_PAGES / 2..AREA_PAGES).find(|page| !found.contains(page));
    assert_eq!(lost, None, "a written page was not reported");
    collect(&mut tracker);
    assert_eq!(collect(&mut tracker), none);

    step(&victim, "MAPPED");
    collect(&mut tracker);
    collect(&mut tracker);
    step(&victim, "MOVED");
    assert_eq!(collect(&mut tracker), all, "pages that were moved to tracked addresses");
    collect(&mut tracker);
    assert_eq!(collect(&mut tracker), none);

    // The kernel joins what is moved with what it comes to lie beside, and may forget that it tracked both.
    step(&victim, "BESIDE");
    collect(&mut tracker);
    collect(&mut tracker);
    for word in ["JOINED", "WRITTEN"] {
        step(&victim, word);
        let found = collect(&mut tracker);
        let lost = (0..50).map(|i| 3 * i).find(|page| !found.contains(page));
        assert_eq!(lost, None, "{word}: a written page was not reported");
    }
    collect(&mut tracker);
    assert_eq!(collect(&mut tracker), none);

    step(&victim, "EXECUTED");
    assert_eq!(collect(&mut tracker), all, "the memory after an execve");
    collect(&mut tracker);
    collect(&mut tracker);
    assert_eq!(collect(&mut tracker), none, "the new memory is not tracked");
}

fn follow_with(choice: Choice) {
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), "cc", "steps", &["-static"]);
    follow(choice, dir.path(), &program);
}

#[test]
fn uffd_wp_is_not_fooled() {
    require!("root");
    if let Err(why) = uffd_wp::self_test() {
        eprintln!("SKIP uffd-wp: {why}");
        assert!(std::env::var("GODWIT_REQUIRE").as_deref() != Ok("all"), "a required test cannot run");
        return;
    }
    follow_with(Choice::UffdWp);
}

#[test]
#[ignore = "needs soft-dirty bits (CONFIG_MEM_SOFT_DIRTY), which most kernels lack: run it on one that has them"]
fn soft_dirty_is_not_fooled() {
    require!("root");
    soft_dirty::self_test().unwrap();
    follow_with(Choice::SoftDirty);
}
