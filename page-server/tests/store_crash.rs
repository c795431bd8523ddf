//! The program stopped, or the power cut, at every disk operation: afterwards there is the whole new image or none
//! of it, what was acknowledged is there, and the store can go on.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use godwit_page_server::store::disk::faulty::{Fault, Faulty};
use godwit_page_server::store::disk::model::ModelDisk;
use godwit_page_server::store::disk::real::RealDisk;
use godwit_page_server::store::disk::{Disk, EntryKind};
use godwit_page_server::store::sink::SinkError;
use godwit_page_server::store::{Bounds, LocalDir, Store, StoreError, round_name};
use godwit_wire::plan::RoundKind;
use support::rounds::*;

/// Three rounds, the last a final set.
fn rounds() -> Vec<Round> {
    let mut rng = Rng(11);
    let mut memory = some_memory(2, 300, &mut rng);
    let mut rounds: Vec<Round> = Vec::new();
    for number in 1..=3 {
        let kind = if number == 3 { RoundKind::Final } else { RoundKind::Round };
        rounds.push(round_of(&memory, number, rounds.last(), kind, &mut rng));
        change(&mut memory, &mut rng);
    }
    rounds
}

fn dir_of(round: &Round) -> PathBuf {
    Path::new("s").join(match round.plan.kind {
        RoundKind::Round => round_name(round.plan.round),
        RoundKind::Final => "final".into(),
    })
}

/// Sends the rounds until the disk fails; says how many were acknowledged.
fn send_until_it_fails(disk: Arc<dyn Disk>, rounds: &[Round]) -> Result<usize, usize> {
    send_within(Bounds::default(), disk, rounds)
}

/// As a server does: extents are written by threads of their own, and few of them fit into memory.
const WITH_WRITERS: fn() -> Bounds = || Bounds { writers: 2, buffers_max: 2, ..Bounds::default() };

fn send_within(bounds: Bounds, disk: Arc<dyn Disk>, rounds: &[Round]) -> Result<usize, usize> {
    let Ok(store) = Store::on_disk(disk, bounds) else { return Err(0) };
    let Ok(session) = store.session("s") else { return Err(0) };
    let mut rng = Rng(23);
    for (done, round) in rounds.iter().enumerate() {
        match send(&session, round, &mut rng) {
            Ok(_) => {}
            Err(SinkError::Io { .. } | SinkError::Full { .. }) => return Err(done),
            Err(other) => panic!("a dead disk is an I/O error, not: {other}"),
        }
    }
    Ok(rounds.len())
}

/// A power cut while the next dump clears away what the first cut left.
#[test]
fn power_cut_again_while_a_local_dump_is_cleared_away() {
    let mut rng = Rng(3);
    let memory = some_memory(1, 60, &mut rng);
    let round = round_of(&memory, 1, None, RoundKind::Final, &mut rng);
    let dump = |disk: Arc<dyn Disk>| -> Result<(), String> {
        let local = LocalDir::on_disk(disk, Bounds::default()).map_err(|e| e.to_string())?;
        send(&local, &round, &mut Rng(1)).map(drop).map_err(|e| e.to_string())
    };
    let counted = Arc::new(Faulty::new(ModelDisk::default(), 0, Fault::Full));
    dump(counted.clone()).unwrap();
    let calls = counted.calls();
    for at in calls - 10..calls {
        for again in 1..=16 {
            for seed in 1..8 {
                let model = ModelDisk::default();
                let _ = dump(Arc::new(Faulty::new(model.clone(), at, Fault::Stop)));
                let left = model.cut(seed * 1000 + at);
                let _ = dump(Arc::new(Faulty::new(left.clone(), again, Fault::Stop)));
                let left = left.cut(seed * 1000 + again);
                if left.open(Path::new("inventory.img")).is_err() {
                    let what = format!("cut at {at} and {again}, seed {seed}");
                    dump(Arc::new(left.clone())).unwrap_or_else(|e| panic!("{what}: {e}"));
                }
                assert_eq!(read_back(&left, Path::new("")), memory, "cut at {at} and {again}, seed {seed}");
            }
        }
    }
}

/// Opens the store anew and checks that it holds the acknowledged rounds, whole, and perhaps the next one, whole.
fn check_afterwards(disk: Arc<dyn Disk>, rounds: &[Round], acknowledged: usize, what: &str) {
    let store = Store::on_disk(disk.clone(), Bounds::default()).unwrap();
    assert!(store.recovered().broken.is_empty(), "{what}: {:?}", store.recovered().broken);
    let there = |round: &Round| disk.list(&dir_of(round)).is_ok();
    for (index, round) in rounds.iter().enumerate() {
        assert!(there(round) || index >= acknowledged, "{what}: round {} was acknowledged", index + 1);
        assert!(!there(round) || index <= acknowledged, "{what}: round {} out of nothing", index + 1);
        if there(round) {
            assert_eq!(read_back(&*disk, &dir_of(round)), round.memory, "{what}: round {}", index + 1);
            for (name, bytes) in &round.images {
                let held =
                    godwit_page_server::store::disk::read_all(&*disk, &dir_of(round).join(name), 1 << 20);
                assert_eq!(held.unwrap(), *bytes, "{what}: {name}");
            }
        }
    }
    let entries = disk.list(Path::new("s")).unwrap_or_default();
    assert!(entries.iter().all(|entry| !entry.name.starts_with('.')), "{what}: {entries:?}");
    go_on(&store, rounds, what);
}

/// Whatever happened, the dump can be finished.
fn go_on(store: &Store, rounds: &[Round], what: &str) {
    let session = match store.session("s") {
        Ok(session) => session,
        Err(StoreError::Finished { .. }) => return,
        Err(e) => panic!("{what}: {e}"),
    };
    let mut rng = Rng(5);
    let sealed = session.sealed_rounds();
    let base = rounds.iter().rfind(|round| sealed.contains(&round.plan.round));
    let last = round_of(&rounds[2].memory, 9, base, RoundKind::Final, &mut rng);
    send(&session, &last, &mut rng).unwrap_or_else(|e| panic!("{what}: {e}"));
}

fn calls_of(disk: Arc<Faulty<ModelDisk>>, rounds: &[Round]) -> u64 {
    assert_eq!(send_until_it_fails(disk.clone(), rounds), Ok(3));
    disk.calls()
}

#[test]
fn power_cut_at_every_operation() {
    let rounds = rounds();
    let calls = calls_of(Arc::new(Faulty::new(ModelDisk::default(), 0, Fault::Full)), &rounds);
    assert!(calls > 60, "{calls} operations are too few to be all");
    for at in 1..=calls {
        let model = ModelDisk::default();
        let disk = Arc::new(Faulty::new(model.clone(), at, Fault::Stop));
        let acknowledged = send_until_it_fails(disk, &rounds).expect_err("the disk stops before the end");
        for seed in 0..6 {
            let left = Arc::new(model.cut(seed * 1000 + seed.min(1) * at));
            check_afterwards(left, &rounds, acknowledged, &format!("cut at {at}, seed {seed}"));
        }
    }
    // And at the end, with all acknowledged.
    let model = ModelDisk::default();
    assert_eq!(send_until_it_fails(Arc::new(model.clone()), &rounds), Ok(3));
    check_afterwards(Arc::new(model.cut(0)), &rounds, 3, "cut after the end");
}

#[test]
fn power_cut_at_every_operation_while_others_write() {
    let rounds = rounds();
    let counted = Arc::new(Faulty::new(ModelDisk::default(), 0, Fault::Full));
    assert_eq!(send_within(WITH_WRITERS(), counted.clone(), &rounds), Ok(3));
    for at in (1..=counted.calls()).step_by(2) {
        let model = ModelDisk::default();
        let disk = Arc::new(Faulty::new(model.clone(), at, Fault::Stop));
        // Which calls there are before the end depends on who was faster.
        let acknowledged = send_within(WITH_WRITERS(), disk, &rounds).unwrap_or_else(|done| done);
        for seed in 0..3 {
            let left = Arc::new(model.cut(seed * 1000 + seed.min(1) * at));
            check_afterwards(left, &rounds, acknowledged, &format!("cut at {at}, seed {seed}, with writers"));
        }
    }
}

#[test]
fn program_stopped_at_every_operation_of_a_real_disk() {
    let rounds = rounds();
    let calls = calls_of(Arc::new(Faulty::new(ModelDisk::default(), 0, Fault::Full)), &rounds);
    for at in (1..=calls).step_by(3) {
        let root = tempfile::tempdir().unwrap();
        let disk = Arc::new(Faulty::new(RealDisk::open(root.path()).unwrap(), at, Fault::Stop));
        let acknowledged = send_until_it_fails(disk, &rounds).expect_err("the disk stops before the end");
        let left = Arc::new(RealDisk::open(root.path()).unwrap());
        check_afterwards(left, &rounds, acknowledged, &format!("stopped at {at}"));
    }
}

/// A local directory is whole when, and only when, it holds an inventory.
#[test]
fn power_cut_at_every_operation_of_a_local_dump() {
    let mut rng = Rng(3);
    let memory = some_memory(2, 300, &mut rng);
    let round = round_of(&memory, 1, None, RoundKind::Final, &mut rng);
    let dump = |disk: Arc<dyn Disk>| -> Result<(), ()> {
        let local = LocalDir::on_disk(disk, Bounds::default()).map_err(drop)?;
        send(&local, &round, &mut Rng(1)).map(drop).map_err(drop)
    };
    let counted = Arc::new(Faulty::new(ModelDisk::default(), 0, Fault::Full));
    dump(counted.clone()).unwrap();
    for at in 1..=counted.calls() {
        let model = ModelDisk::default();
        let acknowledged = dump(Arc::new(Faulty::new(model.clone(), at, Fault::Stop))).is_ok();
        for seed in 0..40 {
            let left = model.cut(seed * 1000 + seed.min(1) * at);
            let what = format!("cut at {at}, seed {seed}");
            let whole = left.open(Path::new("inventory.img")).is_ok();
            assert!(whole || !acknowledged, "{what}");
            if whole {
                assert_eq!(read_back(&left, Path::new("")), memory, "{what}");
                continue;
            }
            // The next dump clears what was left and succeeds.
            let other = round_of(&Memory::new(), 1, None, RoundKind::Final, &mut rng);
            let local = LocalDir::on_disk(Arc::new(left.clone()), Bounds::default());
            let local = local.unwrap_or_else(|e| panic!("{what}: {e}"));
            send(&local, &other, &mut rng).unwrap_or_else(|e| panic!("{what}: {e}"));
            let names: Vec<_> =
                left.list(Path::new("")).unwrap().into_iter().map(|entry| entry.name).collect();
            assert!(!names.iter().any(|name| name.starts_with("pages-")), "{what}: {names:?}");
        }
    }
}

#[test]
fn leftovers_go_and_sealed_directories_stay() {
    let rounds = rounds();
    let root = tempfile::tempdir().unwrap();
    assert_eq!(send_until_it_fails(Arc::new(RealDisk::open(root.path()).unwrap()), &rounds), Ok(3));
    let session = root.path().join("s");
    std::fs::create_dir(session.join(".staging-round-0009")).unwrap();
    std::fs::write(session.join(".staging-round-0009/pages-1.img"), "half").unwrap();
    std::fs::create_dir(root.path().join("not-a-round")).unwrap();
    std::fs::remove_file(session.join("round-0002/pages-1.img")).unwrap();
    let store = Store::open(root.path(), Bounds::default()).unwrap();
    let found = store.recovered();
    assert_eq!(found.removed, [session.join(".staging-round-0009")]);
    assert_eq!(found.sealed, 2);
    assert_eq!(found.broken.len(), 1, "{found:?}");
    assert_eq!(found.broken[0].0, session.join("round-0002"));
    assert!(session.join("round-0002").exists() && root.path().join("not-a-round").exists());
    let kind = |entry: godwit_page_server::store::disk::Entry| (entry.name, entry.kind);
    let entries = RealDisk::open(&session).unwrap().list(Path::new("")).unwrap();
    assert!(entries.into_iter().map(kind).any(|e| e == ("final".into(), EntryKind::Dir)));
}
