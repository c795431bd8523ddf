//! `inspect` on what the store and criu wrote: whole sets are told from rounds, and every kind of damage is named.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use godwit_page_server::store::inspect::{Report, Verdict, inspect};
use godwit_page_server::store::{Bounds, Store};
use godwit_wire::image::ImageKind;
use godwit_wire::image::inventory::InventoryEntry;
use godwit_wire::plan::RoundKind;
use support::criu::{Dumped, require};
use support::rounds::*;

/// A round and a final set that builds on it; the final set's images are nothing that restores.
fn chain(root: &Path) -> (PathBuf, PathBuf) {
    let mut rng = Rng(17);
    let mut memory = some_memory(2, 400, &mut rng);
    let store = Store::open(root, Bounds::default()).unwrap();
    let session = store.session("s").unwrap();
    let mut first = round_of(&memory, 1, None, RoundKind::Round, &mut rng);
    let inventory = InventoryEntry { img_version: 0, ..InventoryEntry::default() };
    let bytes = godwit_wire::image::ImageWriter::single(ImageKind::Inventory, &inventory).unwrap();
    first.replace_image("inventory.img", bytes);
    send(&session, &first, &mut rng).unwrap();
    change(&mut memory, &mut rng);
    let last = round_of(&memory, 2, Some(&first), RoundKind::Final, &mut rng);
    send(&session, &last, &mut rng).unwrap();
    (root.join("s/round-0001"), root.join("s/final"))
}

fn faults(report: &Report) -> String {
    report.faults.iter().map(|fault| format!("{fault}\n")).collect()
}

#[test]
fn a_round_is_never_called_complete() {
    let root = tempfile::tempdir().unwrap();
    let (round, last) = chain(root.path());
    let report = inspect(&round).unwrap();
    assert_eq!(report.verdict, Verdict::RoundOnly, "{}", faults(&report));
    assert!(report.manifest.is_some() && report.pages_present > 0 && report.chain.is_empty());
    let report = inspect(&last).unwrap();
    assert_eq!(report.chain.len(), 1);
    assert!(report.pages_in_parent > 0);
    // Its images are no images: the pages are right, the rest is named.
    assert_eq!(report.verdict, Verdict::Broken);
    for fault in &report.faults {
        assert!(!fault.file.contains("pages-") && !fault.file.contains("pagemap-"), "{fault}");
    }
}

#[test]
fn damage_to_a_round_is_named() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 7] = [
        ("inventory.img", |dir| std::fs::remove_file(dir.join("inventory.img")).unwrap()),
        ("extent 0", |dir| flip(&dir.join("pages-1.img"), 5000)),
        ("bytes", |dir| cut(&dir.join("pages-1.img"), 4096)),
        ("pagemap-1.img", |dir| flip(&dir.join("pagemap-1.img"), 20)),
        ("pagemap-1.img", |dir| cut(&dir.join("pagemap-1.img"), 1)),
        ("godwit-manifest.img", |dir| flip(&dir.join("godwit-manifest.img"), 40)),
        ("pages-2.img", |dir| std::fs::remove_file(dir.join("pages-2.img")).unwrap()),
    ];
    for (index, (named, damage)) in damages.into_iter().enumerate() {
        let root = tempfile::tempdir().unwrap();
        let (round, _) = chain(root.path());
        damage(&round);
        let report = inspect(&round).unwrap();
        assert_eq!(report.verdict, Verdict::Broken, "damage {index}");
        assert!(faults(&report).contains(named), "damage {index}: {}", faults(&report));
    }
}

#[test]
fn a_broken_chain_is_named() {
    let root = tempfile::tempdir().unwrap();
    let (round, last) = chain(root.path());
    std::fs::rename(&round, root.path().join("s/elsewhere")).unwrap();
    assert!(faults(&inspect(&last).unwrap()).contains("leads to ../round-0001"));
    std::fs::rename(root.path().join("s/elsewhere"), &round).unwrap();
    cut(&round.join("pages-1.img"), 4096);
    assert!(faults(&inspect(&last).unwrap()).contains("restore would hang"));
    std::fs::remove_file(round.join("pagemap-1.img")).unwrap();
    assert!(faults(&inspect(&last).unwrap()).contains("is in no directory of the chain"));
    std::fs::remove_file(last.join("parent")).unwrap();
    assert!(faults(&inspect(&last).unwrap()).contains("is in no directory of the chain"));
    std::os::unix::fs::symlink(".", last.join("parent")).unwrap();
    assert!(faults(&inspect(&last).unwrap()).contains("longer than"), "a loop ends");
}

#[test]
fn a_set_of_criu_is_complete_until_something_is_missing() {
    for version in ["4.1", "4.2"] {
        let Some(criu) = require("a_set_of_criu_is_complete_until_something_is_missing", version) else {
            return;
        };
        let dumped = Dumped::new(&criu);
        let report = inspect(&dumped.images).unwrap();
        assert_eq!(report.verdict, Verdict::Complete, "criu {version}: {}", faults(&report));
        assert_eq!(report.tasks, [dumped.pid as u32]);
        assert!(report.pages_present >= 1024, "4 MiB of memory");
        assert!(report.manifest.is_none());
        for name in ["core", "ids", "mm", "fs", "pagemap"].map(|kind| format!("{kind}-{}.img", dumped.pid)) {
            check_missing(&dumped.images, &name);
        }
        for name in ["pstree.img", "files.img", "inventory.img", "pages-1.img"] {
            check_missing(&dumped.images, name);
        }
        let core = dumped.images.join(format!("core-{}.img", dumped.pid));
        cut(&core, 1);
        assert!(faults(&inspect(&dumped.images).unwrap()).contains("core-"));
    }
}

fn check_missing(dir: &Path, name: &str) {
    let (from, to) = (dir.join(name), dir.parent().unwrap().join(name));
    std::fs::rename(&from, &to).unwrap();
    let report = inspect(dir).unwrap();
    assert_eq!(report.verdict, Verdict::Broken, "without {name}");
    assert!(faults(&report).contains(name), "without {name}: {}", faults(&report));
    std::fs::rename(to, from).unwrap();
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0x40;
    std::fs::write(path, bytes).unwrap();
}

fn cut(path: &Path, by: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() - by).unwrap();
}
