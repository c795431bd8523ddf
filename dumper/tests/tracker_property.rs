//! One property for every tracker that works here: whatever a process did to its memory, rounds that were made while it
//! ran and a last set of it as it stands still hold exactly what it has.
//!
//! A program (`remote/driven.c`) does what it is told, at random and from a seed: maps, unmaps, moves, grows, cuts, maps
//! over, protects, gives back, forks, reads files into its pages, writes files under its mappings; others write into its
//! memory. Two threads of its own write all the time. Each tracker has a program of its own that is told the same.
//!
//! `GODWIT_TRACKER_SEED` tries one seed, `GODWIT_TRACKER_SEEDS` so many, and one that nobody chose; `GODWIT_FULL=1` many.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "remote/copies.rs"]
mod copies;
mod remote;
mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use copies::Copy;
use godwit_dumper::predump::tracker::{Choice, soft_dirty, uffd_wp};
use godwit_dumper::sys::process_vm;
use godwit_wire::plan::PAGE_SIZE;
use nix::unistd::Pid;
use support::huge::Reserved;
use support::random::{Random, number};

const AREAS: u64 = 12;
/// From this one on they are anonymous, and may have guards: those that the kernel installs into a tracked mapping of a
/// file keep the program busy until it is tracked no more.
const ANONYMOUS: u64 = 10;
const GUARD_INSTALL: u64 = 8;
const AREA_PAGES: u64 = 512;
const FILE_PAGES: u64 = 1024;
const ROUNDS: u64 = 6;
/// Pages of 2 MiB that the programs may take.
const HUGE_PAGES: u64 = 12;

/// The program, and what it was told, to be read beside a difference.
struct Driven {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    told: Vec<String>,
}

impl Driven {
    fn start(dir: &Path, program: &Path) -> Driven {
        let mut command = Command::new(program);
        let mut child = command
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut driven = Driven { orders: child.stdin.take(), answers, child, told: Vec::new() };
        driven.expect("READY");
        driven
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    fn expect(&mut self, word: &str) {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), word, "it ended ({:?}) at {:?}", self.child.try_wait(), self.told.last());
    }

    fn tell(&mut self, order: &str) {
        writeln!(self.orders.as_mut().unwrap(), "{order}").unwrap();
        self.told.push(order.to_owned());
    }

    fn wait(&mut self) {
        writeln!(self.orders.as_mut().unwrap(), "!").unwrap();
        self.expect("DONE");
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A part of an area.
struct Part {
    area: u64,
    first: u64,
    pages: u64,
}

fn part(random: &mut Random) -> Part {
    let (area, first) = (random.below(AREAS), random.below(AREA_PAGES));
    // Most are small; some are whole page tables.
    let most = if random.below(4) == 0 { AREA_PAGES } else { 40 };
    Part { area, first, pages: 1 + random.below(most.min(AREA_PAGES - first)) }
}

fn map(random: &mut Random, part: &Part) -> String {
    let Part { area, mut first, mut pages } = *part;
    let kind = match area {
        ANONYMOUS.. => random.below(2),
        _ => *random.pick(&[0, 0, 0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 6, 7, 8, 9]),
    };
    if random.below(2) == 0 || kind >= 7 {
        (first, pages) = (0, AREA_PAGES);
    }
    let offset = if kind >= 7 { 0 } else { random.below(FILE_PAGES - AREA_PAGES) };
    format!("m {area} {first} {pages} {kind} {offset}")
}

fn remap(random: &mut Random, part: &Part) -> String {
    let Part { area, mut first, mut pages } = *part;
    let (mut to, mode) = (random.below(AREAS), random.below(4));
    let mut to_first = random.below(AREA_PAGES);
    // Whole page tables are moved in another way than pages are.
    if random.below(3) == 0 {
        (first, pages, to_first) = (0, AREA_PAGES, 0);
    }
    let mut new_pages = match random.below(3) {
        0 => pages,
        1 => 1 + random.below(pages),
        _ => pages + random.below(AREA_PAGES),
    };
    if mode == 3 {
        new_pages = pages;
    }
    if to == area || to >= ANONYMOUS {
        to = (area + 1) % ANONYMOUS;
    }
    format!("M {area} {first} {pages} {new_pages} {mode} {to} {to_first}")
}

fn order(random: &mut Random) -> String {
    let whole = part(random);
    let Part { area, first, pages } = whole;
    let value = random.next() >> 20;
    let protection = random.below(5);
    match random.below(32) {
        0..3 => map(random, &whole),
        3 => format!("u {area} {first} {pages}"),
        4..7 => remap(random, &whole),
        7 | 8 => format!("p {area} {first} {pages} {protection}"),
        9 => format!("p {area} 0 {AREA_PAGES} 0"),
        10 => format!("k {area} {first} {pages} {value}"),
        11 => format!("b {} {value}", random.below(256)),
        12 => format!("s {} {value}", random.below(64)),
        13 | 14 => {
            format!("f {} {} {} {value}", random.below(2), random.below(FILE_PAGES - 64), 1 + pages % 64)
        }
        15 => format!("t {} {}", random.below(2), random.below(FILE_PAGES)),
        16 => format!("R {area} {first} {pages} {value}"),
        17 => format!("r {area} {first} {pages}"),
        18..23 => match (random.below(12), area) {
            (GUARD_INSTALL, ..ANONYMOUS) => format!("r {area} {first} {pages}"),
            (advice, _) => format!("a {area} {first} {pages} {advice}"),
        },
        _ => format!("w {area} {first} {pages} {} {value}", 1 + random.below(5)),
    }
}

/// Another process writes into a page.
fn write_from_outside(pid: Pid, random: &mut Random) {
    let Part { area, first, .. } = part(random);
    let at = 0x2000_0000_0000 + (area << 26) + first * PAGE_SIZE + random.below(PAGE_SIZE - 8);
    let _ = process_vm::write(pid, at, &random.next().to_le_bytes());
}

/// Follows one program; how many pages were left to rounds, in all its last sets.
fn follow(choice: Choice, program: &Path, seed: u64) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let mut driven = Driven::start(dir.path(), program);
    let mut random = Random::new(seed);
    for area in 0..AREAS {
        driven.tell(&format!("m {area} 0 {AREA_PAGES} {} 0", if area < ANONYMOUS { area % 6 } else { 0 }));
        driven.tell(&format!("w {area} 0 {AREA_PAGES} 2 {area}"));
    }
    driven.wait();
    let mut copy = Copy::begin(choice, driven.pid());
    copy.round();
    for round in 1..=ROUNDS {
        // Few or many, so that each is sometimes the last before a round.
        for _ in 0..1 + random.below(60) {
            driven.tell(&order(&mut random));
            if random.below(6) == 0 {
                write_from_outside(driven.pid(), &mut random);
            }
        }
        // They are done while the round is made, or before it.
        if random.below(2) == 0 {
            driven.wait();
        }
        copy.round();
        if random.below(2) == 0 {
            driven.tell(&order(&mut random));
        }
        driven.wait();
        if round % 2 == 0 {
            let differences = copy.differences();
            assert!(
                differences.is_empty(),
                "GODWIT_TRACKER_SEED={seed} {choice:?} round {round}: {} pages differ, such as\n{}\n--- told last\n{}",
                differences.len(),
                differences[..differences.len().min(10)].join("\n"),
                driven.told[driven.told.len().saturating_sub(120)..].join("\n")
            );
        }
    }
    copy.taken_over
}

fn seeds() -> Vec<u64> {
    if let Ok(text) = std::env::var("GODWIT_TRACKER_SEED") {
        return vec![text.parse().unwrap()];
    }
    let is_full = std::env::var("GODWIT_FULL").as_deref() == Ok("1");
    let by_chance = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let (fixed, random) = if is_full { (60, 60) } else { (3, 1) };
    let fixed = number("GODWIT_TRACKER_SEEDS", fixed);
    (1..=fixed).chain((0..random).map(|n| by_chance as u64 + n)).collect()
}

fn follow_many(choice: Choice) {
    let dir = tempfile::tempdir().unwrap();
    let program = remote::compile(dir.path(), "cc", "driven", &[]);
    // Without them no huge page of hugetlbfs is mapped, and the rest goes on.
    let _huge = Reserved::new(HUGE_PAGES).inspect_err(|why| eprintln!("without hugetlbfs: {why}")).ok();
    let seeds = seeds();
    let left: u64 = seeds.iter().map(|seed| follow(choice, &program, *seed)).sum();
    assert!(left > 1000 * seeds.len() as u64, "{choice:?}: rounds were no use, {left} pages left to them");
}

#[test]
fn uffd_wp_and_the_last_set_hold_what_the_process_has() {
    require!("root", "cc");
    if let Err(why) = uffd_wp::self_test() {
        eprintln!("SKIP uffd-wp: {why}");
        assert!(std::env::var("GODWIT_REQUIRE").as_deref() != Ok("all"), "a required test cannot run");
        return;
    }
    follow_many(Choice::UffdWp);
}

#[test]
#[ignore = "needs soft-dirty bits (CONFIG_MEM_SOFT_DIRTY), which most kernels lack: run it on one that has them"]
fn soft_dirty_and_the_last_set_hold_what_the_process_has() {
    require!("root", "cc");
    soft_dirty::self_test().unwrap();
    follow_many(Choice::SoftDirty);
}

#[test]
fn hash_and_the_last_set_hold_what_the_process_has() {
    require!("root", "cc");
    follow_many(Choice::Hash);
}
