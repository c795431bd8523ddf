//! Private pages that a fork left shared: sent once for all processes that hold them, kept apart in the images, and
//! shared again after the restore.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;

use serde_json::Value;
use support::Scene;
use support::lab::{BOTH, CriuVersion, Restored};
use support::moved::{self, copies};
use support::product::{Server, godwit, migrate_args, report};
use support::victim::{Verdict, Victim};

/// Pages of the memory that the tasks of `cow` share.
const PAGES: u64 = 4096;

fn sum(report: &Value, field: &str) -> u64 {
    report["rounds"].as_array().unwrap().iter().map(|round| round[field].as_u64().unwrap()).sum()
}

/// What the four tasks of `cow` hold of that memory (`victims/cow.c`).
#[derive(Default)]
struct Held {
    /// Pages of all tasks.
    pages: u64,
    /// Different contents, over all addresses.
    contents: u64,
    /// Pages that a task has for itself after CRIU's restore, which shares a child's page with its parent where their
    /// mappings are the same: not those of the first child, of whose mapping another protection cut a page off.
    own: u64,
}

fn held() -> Held {
    (0..PAGES).fold(Held::default(), |held, page| {
        let changed = |who: u64, stride: u64| page % stride == who;
        let is_dropped = page >= 100 && (page - 100) % 200 == 0;
        let by = |who: u64, stride: u64, before: Option<u64>| {
            if changed(who, stride) { Some(who + 1) } else { before }
        };
        let (root, first) = (by(0, 13, Some(0)), by(1, 7, Some(0)));
        let second = by(2, 11, Some(0)).filter(|_| !is_dropped);
        let below = by(3, 5, second).filter(|_| !is_dropped);
        let all = [root, first, second, below];
        let own = [true, true, second != root, below != second];
        let is_own = |(page, own): (&Option<u64>, bool)| page.is_some() && own;
        Held {
            pages: held.pages + all.iter().flatten().count() as u64,
            contents: held.contents + all.iter().flatten().collect::<BTreeSet<_>>().len() as u64,
            own: held.own + all.iter().zip(own).filter(|held| is_own(*held)).count() as u64,
        }
    })
}

/// Proportional and whole resident size of all tasks of a copy, in KiB (Documentation/filesystems/proc.rst).
fn memory_kib(scene: &Scene, victim: &Victim) -> (u64, u64) {
    let of = |text: &str, name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    let tasks = copies(scene, victim);
    assert_eq!(tasks.len(), 4);
    tasks.iter().fold((0, 0), |(pss, rss), pid| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        (pss + of(&text, "Pss:"), rss + of(&text, "Rss:"))
    })
}

#[test]
fn pages_that_a_fork_left_shared_travel_once_and_are_shared_again() {
    require!("root", "cc", "criu-4.1", "criu-4.2", "page-server");
    let Held { pages, contents, own } = held();
    for version in BOTH {
        for rounds in ["0", "3"] {
            let scene = Scene::new("cow");
            let server = Server::start(&scene, version);
            let mut victim = Victim::start(&scene, "cow", &[]);
            let options = ["--max-rounds", rounds, "--downtime-target", "1ms"];
            let moved = moved::migrate(&scene, &mut victim, &server, &options);
            let report = &moved.report;
            let (data, copied) = (sum(report, "pages_data"), sum(report, "pages_copied"));
            // Besides that memory there are stacks, the heap and the data of libraries: some hundred pages.
            assert!((contents..contents + 400).contains(&data), "{data} of {contents} contents: {report}");
            assert!(copied >= pages - contents, "{copied} of {pages} pages in {contents} contents: {report}");
            let bytes = |form: &str| report["link"][form]["page_bytes"].as_u64().unwrap();
            assert_eq!(bytes("copies") / 4096, copied, "{report}");
            assert_eq!((bytes("raw") + bytes("lz4") + bytes("zstd")) / 4096, data, "{report}");
            let wire = report["wire_bytes"].as_u64().unwrap();
            assert!(wire < (contents + 800) * 4096, "{wire} bytes on the wire: {report}");
            let (pss, rss) = memory_kib(&scene, &victim);
            // What all have besides counts whole here.
            assert!(
                rss >= pages * 4 && pss <= rss - (pages - own) * 4,
                "{pss} of {rss} KiB, {own} of {pages} pages"
            );
            assert_eq!(moved.check(&victim), Verdict::Ok, "CRIU {}, {rounds} rounds", version.text());
        }
    }
}

/// A page that another process's bytes filled wrongly would be seen: one word of one page of a child is another.
#[test]
fn a_wrong_page_of_a_child_is_noticed() {
    require!("root", "cc", "criu-4.2", "page-server");
    for name in ["cow", "cow_writers"] {
        let scene = Scene::new("cow-wrong");
        let server = Server::start_with(&scene, &[], &[]);
        let mut victim = Victim::start(&scene, name, &[]);
        let args = migrate_args(victim.pid, &server, &["--no-restore", "--name", "wrong", "--rounds", "0"]);
        let finished = godwit(&scene, &args).expect_ok();
        victim.expect_killed();
        assert!(sum(&report(&finished), "pages_copied") > 1000, "{finished}");
        let dir = server.images.join("wrong/final");
        // Pages files are numbered as processes are listed, from the root on. The middle is that memory.
        let file = dir.join("pages-2.img");
        let mut bytes = std::fs::read(&file).unwrap();
        let word = bytes.len() / 2 / 4096 * 4096 + 4088;
        bytes[word] ^= 1;
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, bytes).unwrap();
        victim.ask();
        let restored = Restored::from_images(&dir, CriuVersion::V4_2, &[], &victim);
        let verdict = restored.verdict();
        assert!(
            matches!(&verdict, Verdict::Bad(lines) if lines.iter().any(|line| line.contains(" page "))),
            "{name}: {verdict:?}"
        );
    }
}

/// What is equal when it is read may differ at once: all tasks write all the time, and the contents they write are few.
#[test]
fn copies_are_right_while_parent_and_children_write() {
    require!("root", "cc", "criu-4.1", "criu-4.2", "page-server");
    let ways: [&[&str]; 4] = [
        &["--rounds", "4"],
        &["--rounds", "3", "--compress", "lz4", "--delta", "always"],
        &["--rounds", "3", "--connections", "3", "--compress", "zstd"],
        &["--rounds", "2", "--tracker", "hash"],
    ];
    for version in BOTH {
        let scene = Scene::new("cow-writers");
        let server = Server::start(&scene, version);
        for (options, args) in
            ways.iter().zip([["3", "8", "4"], ["5", "8", "16"], ["2", "48", "64"], ["3", "8", "2"]])
        {
            let mut victim = Victim::start(&scene, "cow_writers", &args);
            let moved = moved::migrate(&scene, &mut victim, &server, options);
            assert_eq!(moved.check(&victim), Verdict::Ok, "CRIU {}: {options:?} {args:?}", version.text());
            let report = &moved.report;
            let rounds = report["rounds"].as_array().unwrap();
            let of = |round: usize, field: &str| rounds[round][field].as_u64().unwrap();
            let (tasks, pages) = (1 + args[0].parse::<u64>().unwrap(), args[1].parse::<u64>().unwrap() * 256);
            // A page has one of three contents in each task.
            assert!(of(0, "pages_data") < pages * 3 + 1000, "{report}");
            assert!(of(0, "pages_copied") > pages * tasks.saturating_sub(3), "{report}");
            assert!(
                (1..rounds.len()).any(|round| of(round, "pages_copied") > 0),
                "in no later round: {report}"
            );
        }
    }
}
