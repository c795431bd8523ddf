//! No space left, or a failed sync, at every disk operation: the call says so, nothing half done carries a final
//! name, and the same dump succeeds when there is space again.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;

use godwit_page_server::store::disk::Disk;
use godwit_page_server::store::disk::faulty::{Fault, Faulty};
use godwit_page_server::store::disk::model::ModelDisk;
use godwit_page_server::store::disk::real::RealDisk;
use godwit_page_server::store::sink::{Sink, SinkError};
use godwit_page_server::store::{Bounds, LocalDir, LocalOptions, Store};
use godwit_wire::plan::RoundKind;
use support::rounds::*;

#[test]
fn full_or_broken_at_every_operation() {
    full_or_broken(Bounds::default());
}

/// What a writer could not write fails the round too, at its next call or its seal.
#[test]
fn full_or_broken_at_every_operation_while_others_write() {
    full_or_broken(Bounds { writers: 1, buffers_max: 2, ..Bounds::default() });
}

fn full_or_broken(bounds: Bounds) {
    let mut rng = Rng(31);
    let mut memory = some_memory(2, 300, &mut rng);
    let first = round_of(&memory, 1, None, RoundKind::Round, &mut rng);
    change(&mut memory, &mut rng);
    let last = round_of(&memory, 2, Some(&first), RoundKind::Final, &mut rng);
    let counted = Arc::new(Faulty::new(ModelDisk::default(), 0, Fault::Full));
    run(bounds, counted.clone(), &first, &last).unwrap();
    let calls = counted.calls();
    for fault in [Fault::Full, Fault::Broken] {
        for at in 1..=calls {
            let model = ModelDisk::default();
            let result = run(bounds, Arc::new(Faulty::new(model.clone(), at, fault)), &first, &last);
            let what = format!("{fault:?} at {at}");
            match result {
                Err(SinkError::Full { .. }) => assert_eq!(fault, Fault::Full, "{what}"),
                Err(SinkError::Io { .. }) => assert_eq!(fault, Fault::Broken, "{what}"),
                // The store's own opening failed, or a removal that may fail.
                Err(SinkError::Refused { why, .. }) if why == "opening" => {}
                // With threads that write, a run may have fewer calls than the one that was counted.
                Ok(()) if bounds.writers > 0 => {}
                other => panic!("{what}: {other:?}"),
            }
            for name in ["s/round-0001", "s/final"] {
                if model.list(Path::new(name)).is_ok() {
                    let expected = if name == "s/final" { &last } else { &first };
                    assert_eq!(read_back(&model, Path::new(name)), expected.memory, "{what}");
                }
            }
            let store = Store::on_disk(Arc::new(model.clone()), Bounds::default()).unwrap();
            if let Ok(session) = store.session("s") {
                let base = session.sealed_rounds().contains(&1).then_some(&first);
                let again = round_of(&memory, 7, base, RoundKind::Final, &mut rng);
                send(&session, &again, &mut rng).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert_eq!(read_back(&model, Path::new("s/final")), memory, "{what}");
            }
        }
    }
}

fn run(bounds: Bounds, disk: Arc<dyn Disk>, first: &Round, last: &Round) -> Result<(), SinkError> {
    let opening = |_| SinkError::Refused { round: 0, why: "opening".into() };
    let store = Store::on_disk(disk, bounds).map_err(opening)?;
    let session = store.session("s").map_err(opening)?;
    for round in [first, last] {
        if let Err(e) = send(&session, round, &mut Rng(77)) {
            // What the server does when a round fails.
            session.abandon(round.plan.round)?;
            return Err(e);
        }
    }
    Ok(())
}

/// After a failed write the same slots can be sent again in the same round, and zero pages then really are zeros.
#[test]
fn a_failed_write_can_be_repeated() {
    let mut rng = Rng(8);
    let memory = some_memory(1, 300, &mut rng);
    let round = round_of(&memory, 1, None, RoundKind::Final, &mut rng);
    let pages = round.slots[&1].clone();
    for at in 1..40 {
        let disk = ModelDisk::default();
        let faulty = Arc::new(Faulty::new(disk.clone(), at, Fault::Full));
        let Ok(store) = Store::on_disk(faulty, Bounds::default()) else { continue };
        let Ok(session) = store.session("s") else { continue };
        if session.begin(&round.plan).is_err() {
            continue;
        }
        for (index, number) in pages.iter().enumerate() {
            let fill = |content| {
                let first_slot = index as u64;
                session.fill(godwit_page_server::store::sink::Fill {
                    round: 1,
                    pages_id: 1,
                    first_slot,
                    content,
                })
            };
            // First other bytes; half of them get down when it fails.
            if let Err(e) = fill(data_of(&[!*number])) {
                assert!(matches!(e, SinkError::Full { .. }), "{e}");
            } else {
                session.reopen_extent(1, 1, index as u64 / 256).unwrap();
                (0..index).filter(|i| i / 256 == index / 256).for_each(|i| refill(&session, i, pages[i]));
            }
            refill(&session, index, *number);
        }
        for (name, bytes) in &round.images {
            session.image(1, name, bytes.clone()).or_else(|_| session.image(1, name, bytes.clone())).unwrap();
        }
        if session.seal(1, &round.manifest).is_ok() {
            assert_eq!(read_back(&disk, Path::new("s/final")), memory, "full at {at}");
        }
    }
}

fn refill(sink: &dyn Sink, slot: usize, number: u64) {
    use godwit_page_server::store::sink::{Content, Fill};
    let content = || if number == 0 { Content::Zero { pages: 1 } } else { data_of(&[number]) };
    let fill = || sink.fill(Fill { round: 1, pages_id: 1, first_slot: slot as u64, content: content() });
    fill().or_else(|_| fill()).unwrap();
}

#[test]
fn a_full_file_system() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP a_full_file_system: mounting a small tmpfs wants root");
        assert!(std::env::var("GODWIT_REQUIRE").as_deref() != Ok("all"), "a required test cannot run");
        assert!(std::env::var("GODWIT_REQUIRE").is_err(), "skipped though required");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let options = Some("size=1m");
    nix::mount::mount(Some("tmpfs"), root.path(), Some("tmpfs"), nix::mount::MsFlags::empty(), options)
        .unwrap();
    let guard = Unmount(root.path().to_owned());
    let mut rng = Rng(2);
    let large = some_memory(3, 700, &mut rng);
    let small = some_memory(1, 20, &mut rng);
    for local in [true, false] {
        let dir = root.path().join(local.to_string());
        let round = round_of(&large, 1, None, RoundKind::Final, &mut rng);
        let again = round_of(&small, 2, None, RoundKind::Final, &mut rng);
        let failed = if local {
            let sink = LocalDir::create(&dir, LocalOptions::default()).unwrap();
            let failed = send(&sink, &round, &mut rng);
            sink.abandon(1).unwrap();
            send(&sink, &again, &mut rng).unwrap();
            failed
        } else {
            let store = Store::open(&dir, Bounds::default()).unwrap();
            let sink = store.session("s").unwrap();
            let failed = send(&sink, &round, &mut rng);
            sink.abandon(1).unwrap();
            send(&sink, &again, &mut rng).unwrap();
            failed
        };
        assert!(matches!(failed, Err(SinkError::Full { .. })), "{failed:?}");
        let (at, disk) = if local { ("true", "") } else { ("false", "s/final") };
        let disk_root = RealDisk::open(&root.path().join(at)).unwrap();
        assert_eq!(read_back(&disk_root, Path::new(disk)), small);
    }
    drop(guard);
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}
