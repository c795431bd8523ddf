//! Rounds of random memory through both front doors: what is read back through the chain is the memory.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use godwit_page_server::store::disk::Disk;
use godwit_page_server::store::disk::model::ModelDisk;
use godwit_page_server::store::disk::real::RealDisk;
use godwit_page_server::store::sink::{Content, Fill, Sink, SinkError};
use godwit_page_server::store::{Bounds, LocalDir, LocalOptions, Store, StoreError, round_name};
use godwit_wire::plan::{PE_PARENT, PE_PRESENT, PageOwner, PageRun, PagesPlan, RoundKind, RoundPlan};
use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};
use support::rounds::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn memory_is_read_back_through_the_chain(seed: u64, owners in 1u32..4, pages in 0u64..700, rounds in 1u32..6) {
        let mut rng = Rng(seed);
        let disk = ModelDisk::default();
        let store = Store::on_disk(Arc::new(disk.clone()), Bounds::default()).unwrap();
        let mut session = store.session("s").unwrap();
        let mut memory = some_memory(owners, pages, &mut rng);
        let mut base: Option<Round> = None;
        for number in 1..=rounds {
            let kind = if number == rounds { RoundKind::Final } else { RoundKind::Round };
            let round = round_of(&memory, number, base.as_ref(), kind, &mut rng);
            send(&session, &round, &mut rng).unwrap();
            let name = if kind == RoundKind::Final { "final".into() } else { round_name(number) };
            prop_assert_eq!(&read_back(&disk, &Path::new("s").join(name)), &memory);
            change(&mut memory, &mut rng);
            base = Some(round);
            if number < rounds && rng.one_in(3) {
                // The chain is read from disk again.
                drop(session);
                session = store.session("s").unwrap();
            }
        }
    }
}

#[test]
fn a_local_chain_has_relative_links() {
    let mut rng = Rng(7);
    let root = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(root.path()).unwrap();
    let mut memory = some_memory(2, 300, &mut rng);
    let mut base: Option<Round> = None;
    for number in 1..=3u32 {
        let kind = if number == 3 { RoundKind::Final } else { RoundKind::Round };
        let prev_images_dir = base.is_some().then(|| format!("../{}", number - 1).into());
        let options = LocalOptions { prev_images_dir, ..LocalOptions::default() };
        let local = LocalDir::create(&root.path().join(number.to_string()), options).unwrap();
        let round = round_of(&memory, number, base.as_ref(), kind, &mut rng);
        send(&local, &round, &mut rng).unwrap();
        assert_eq!(read_back(&disk, Path::new(&number.to_string())), memory);
        change(&mut memory, &mut rng);
        base = Some(round);
    }
    let names: Vec<_> = disk.list(Path::new("3")).unwrap().into_iter().map(|entry| entry.name).collect();
    assert!(!names.iter().any(|name| name.starts_with('.')), "{names:?}");
    let moved = root.path().join("elsewhere");
    std::fs::create_dir(&moved).unwrap();
    for number in 1..=3 {
        let from = root.path().join(number.to_string());
        std::fs::rename(from, moved.join(number.to_string())).unwrap();
    }
    let before = base.unwrap().memory;
    assert_eq!(read_back(&RealDisk::open(&moved).unwrap(), Path::new("3")), before, "it can be moved");
    let full = LocalDir::create(&moved.join("3"), LocalOptions::default());
    assert!(matches!(full, Err(StoreError::Finished { .. })));
}

fn one_run(round: u32, base_round: Option<u32>, runs: &[(u64, u64, u32)]) -> RoundPlan {
    let run = |&(vaddr, nr_pages, flags)| PageRun { vaddr, nr_pages, flags };
    let runs = runs.iter().map(run).collect();
    let pages = vec![PagesPlan { owner: PageOwner::Task(17), pages_id: 1, runs }];
    RoundPlan { round, base_round, kind: RoundKind::Round, pages }
}

fn sealed_base(store: &Store, rng: &mut Rng) -> (godwit_page_server::store::SessionStore, Round) {
    let session = store.session("s").unwrap();
    let memory = Memory::from([(PageOwner::Task(17), (0..4).map(|i| (0x1000 * (i + 1), i + 1)).collect())]);
    let round = round_of(&memory, 1, None, RoundKind::Round, rng);
    send(&session, &round, rng).unwrap();
    (session, round)
}

#[test]
fn an_uncovered_page_is_refused_by_address() {
    let store = Store::on_disk(Arc::new(ModelDisk::default()), Bounds::default()).unwrap();
    let (session, _) = sealed_base(&store, &mut Rng(1));
    let refused = session.begin(&one_run(2, Some(1), &[(0x1000, 5, PE_PARENT)])).unwrap_err();
    match refused {
        SinkError::NotCovered { owner, vaddr, round: 2, base_round: Some(1) } => {
            assert_eq!((owner, vaddr), (PageOwner::Task(17), 0x5000));
        }
        other => panic!("{other}"),
    }
    // A task that the base does not know has no page there.
    let mut other = one_run(3, Some(1), &[(0x1000, 1, PE_PARENT)]);
    other.pages[0].owner = PageOwner::Task(18);
    assert!(matches!(session.begin(&other), Err(SinkError::NotCovered { vaddr: 0x1000, .. })));
    assert!(matches!(session.begin(&one_run(9, Some(7), &[])), Err(SinkError::Refused { .. })));
    session.begin(&one_run(10, Some(1), &[(0x1000, 4, PE_PARENT)])).unwrap();
}

#[test]
fn a_slot_is_filled_once_and_on_purpose() {
    let store = Store::on_disk(Arc::new(ModelDisk::default()), Bounds::default()).unwrap();
    let mut rng = Rng(3);
    let (session, base) = sealed_base(&store, &mut rng);
    let memory =
        Memory::from([(PageOwner::Task(17), (0..300).map(|i| (0x10_0000 + 0x1000 * i, i)).collect())]);
    let round = round_of(&memory, 2, Some(&base), RoundKind::Round, &mut rng);
    session.begin(&round.plan).unwrap();
    let fill = |first_slot, content| session.fill(Fill { round: 2, pages_id: 1, first_slot, content });
    let refused = |result| matches!(result, Err(SinkError::Refused { .. }));
    fill(0, Content::Zero { pages: 1 }).unwrap();
    assert!(refused(fill(0, Content::Zero { pages: 1 })), "twice");
    assert!(refused(fill(255, Content::Zero { pages: 2 })), "across an extent");
    assert!(refused(fill(300, Content::Zero { pages: 1 })), "behind the end");
    assert!(refused(fill(1, Content::Zero { pages: 0 })), "nothing");
    assert!(refused(fill(u64::MAX, Content::Zero { pages: 1 })), "overflow");
    assert!(refused(fill(1, Content::Data(Bytes::from(vec![1; 5000])))), "half a page");
    assert!(refused(session.fill(Fill { round: 2, pages_id: 9, first_slot: 0, content: data_of(&[1]) })));
    assert!(refused(session.fill(Fill { round: 4, pages_id: 1, first_slot: 0, content: data_of(&[1]) })));
    let all: Vec<u64> = (0..300).collect();
    fill(1, data_of(&all[1..256])).unwrap();
    for (name, bytes) in &round.images {
        session.image(2, name, bytes.clone()).unwrap();
        assert!(refused(session.image(2, name, bytes.clone())), "{name} twice");
    }
    for name in ["pages-1.img", "pagemap-17.img", "../x.img", "parent", "godwit-manifest.img"] {
        assert!(refused(session.image(2, name, Bytes::from_static(b"x"))), "{name}");
    }
    assert_eq!(format!("{:?}", session.missing(2, 8).unwrap()), "[(1, [256..300])]");
    let early = session.seal(2, &round.manifest).unwrap_err();
    assert!(matches!(&early, SinkError::Incomplete { what, .. } if what.contains("256..300")), "{early}");
    // The last page is announced as the same, but the base does not hold it.
    fill(256, data_of(&all[256..299])).unwrap();
    match fill(299, Content::Same { hashes: hashes_of(&[299]) }) {
        Err(SinkError::WantData { slots, .. }) => assert_eq!(format!("{slots:?}"), "[299..300]"),
        other => panic!("{other:?}"),
    }
    fill(299, data_of(&[1299])).unwrap();
    let wrong = session.seal(2, &round.manifest).unwrap_err();
    assert!(matches!(&wrong, SinkError::Mismatch { why, .. } if why.contains("extent 1")), "{wrong}");
    // A resend replaces the extent, zero pages over old bytes included.
    session.reopen_extent(2, 1, 0).unwrap();
    session.reopen_extent(2, 1, 1).unwrap();
    fill(0, data_of(&[5; 256])).unwrap();
    session.reopen_extent(2, 1, 0).unwrap();
    fill(0, Content::Zero { pages: 1 }).unwrap();
    fill(1, data_of(&all[1..256])).unwrap();
    fill(256, data_of(&all[256..])).unwrap();
    session.seal(2, &round.manifest).unwrap();
}

#[test]
fn what_differs_from_the_manifest_is_not_sealed() {
    let mut rng = Rng(5);
    let memory = some_memory(2, 40, &mut rng);
    let good = round_of(&memory, 1, None, RoundKind::Final, &mut rng);
    type Spoil = fn(&mut Round);
    let spoils: [(&str, Spoil); 8] = [
        ("another image", |r| r.images[1].1 = Bytes::from_static(b"pstree.img of 2")),
        ("a longer image", |r| r.images[1].1 = Bytes::from_static(b"pstree.img of 1 ")),
        ("one image more", |r| r.images.push(("fs-1.img".into(), Bytes::from_static(b"x")))),
        ("one image less", |r| drop(r.images.pop())),
        ("no inventory", |r| drop(r.images.remove(0))),
        ("another round", |r| r.manifest.round = 2),
        ("a page list", |r| r.manifest.files.last_mut().unwrap().blake3[3] ^= 1),
        ("another kind", |r| r.manifest.kind = RoundKind::Round),
    ];
    for (what, spoil) in spoils {
        let disk = ModelDisk::default();
        let store = Store::on_disk(Arc::new(disk.clone()), Bounds::default()).unwrap();
        let session = store.session("s").unwrap();
        let mut bad = good.clone();
        spoil(&mut bad);
        let result = send(&session, &bad, &mut rng);
        assert!(
            matches!(result, Err(SinkError::Mismatch { .. } | SinkError::Incomplete { .. })),
            "{what}: {result:?}"
        );
        session.abandon(1).unwrap();
        assert!(disk.list(Path::new("s")).unwrap().is_empty(), "{what}");
        let again = round_of(&memory, 2, None, RoundKind::Final, &mut rng);
        send(&session, &again, &mut rng).unwrap();
        assert!(matches!(session.begin(&good.plan), Err(SinkError::Refused { .. })), "it is finished");
    }
}

#[test]
fn one_living_server_a_directory_and_one_session_a_name() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("D");
    let store = Store::open(&dir, Bounds::default()).unwrap();
    assert!(matches!(Store::open(&dir, Bounds::default()), Err(StoreError::Locked { .. })));
    let session = store.session("s").unwrap();
    assert!(matches!(store.session("s"), Err(StoreError::InUse { .. })));
    session.begin(&one_run(1, None, &[(0x1000, 1, PE_PRESENT)])).unwrap();
    assert!(
        matches!(session.begin(&one_run(1, None, &[])), Err(SinkError::Refused { .. })),
        "a number twice"
    );
    std::mem::forget(session);
    drop(store);
    // The name stays taken in the forgotten store, which also keeps the lock, as a living server would.
    assert!(matches!(Store::open(&dir, Bounds::default()), Err(StoreError::Locked { .. })));

    let local = root.path().join("local");
    let held = LocalDir::create(&local, LocalOptions::default()).unwrap();
    assert!(matches!(LocalDir::create(&local, LocalOptions::default()), Err(StoreError::Locked { .. })));
    drop(held);
    std::fs::write(local.join("disk.img"), "not ours").unwrap();
    assert!(matches!(LocalDir::create(&local, LocalOptions::default()), Err(StoreError::Foreign { .. })));
    assert!(local.join("disk.img").exists());
}

#[test]
fn a_chain_of_hundreds_of_rounds_is_read_again() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path(), Bounds::default()).unwrap();
    let session = store.session("s").unwrap();
    let mut rng = Rng(9);
    let mut memory = Memory::from([(PageOwner::Task(17), (1..4).map(|i| (0x1000 * i, i)).collect())]);
    let mut base: Option<Round> = None;
    for number in 1..=600 {
        memory.get_mut(&PageOwner::Task(17)).unwrap().insert(0x1000, u64::from(number) + 9);
        let round = round_of(&memory, number, base.as_ref(), RoundKind::Round, &mut rng);
        send(&session, &round, &mut rng).unwrap();
        base = Some(round);
    }
    drop((session, store));
    let store = Store::open(root.path(), Bounds::default()).unwrap();
    let session = store.session("s").unwrap();
    let last = round_of(&memory, 601, base.as_ref(), RoundKind::Final, &mut rng);
    send(&session, &last, &mut rng).unwrap();
    let disk = RealDisk::open(root.path()).unwrap();
    assert_eq!(read_back(&disk, Path::new("s/final")), memory);
    let report = godwit_page_server::store::inspect::inspect(&root.path().join("s/final")).unwrap();
    assert_eq!(report.chain.len(), 600);
    assert!(!report.faults.iter().any(|fault| fault.file.contains("parent")), "{:?}", report.faults);
    let options = LocalOptions { prev_images_dir: Some("../s/round-0600".into()), ..LocalOptions::default() };
    let local = LocalDir::create(&root.path().join("local"), options).unwrap();
    let next = round_of(&memory, 601, base.as_ref(), RoundKind::Final, &mut rng);
    send(&local, &next, &mut rng).unwrap();
}
