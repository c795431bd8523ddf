//! Bytes that fill slots of several pages files: each slot once, with its own page, whatever is short.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use godwit_page_server::store::disk::model::ModelDisk;
use godwit_page_server::store::sink::{Content, Fill, Sink, SinkError};
use godwit_page_server::store::{Bounds, LocalDir, SessionStore, Store};
use godwit_wire::frame::CopyTo;
use godwit_wire::plan::RoundKind;
use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};
use support::rounds::*;

fn images(sink: &dyn Sink, round: &Round) {
    for (name, bytes) in &round.images {
        sink.image(round.plan.round, name, bytes.clone()).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn memory_that_is_shared_arrives_whole(
        seed: u64,
        children in 0u32..4,
        pages in 1u64..700,
        buffers in 1usize..5,
        writers in 0usize..2,
        is_local: bool,
    ) {
        let mut rng = Rng(seed);
        let memory = forked_memory(children, pages, &mut rng);
        let round = round_of(&memory, 1, None, RoundKind::Final, &mut rng);
        let bounds = Bounds { buffers_max: buffers, buffers_shared_max: buffers, writers, ..Bounds::default() };
        let disk = ModelDisk::default();
        let copied = if is_local {
            let local = LocalDir::on_disk(Arc::new(disk.clone()), bounds).unwrap();
            local.begin(&round.plan).unwrap();
            let copied = fill_spread(&local, &round, &mut rng).unwrap();
            images(&local, &round);
            local.seal(1, &round.manifest).unwrap();
            prop_assert_eq!(&read_back(&disk, Path::new("")), &memory);
            copied
        } else {
            let store = Store::on_disk(Arc::new(disk.clone()), bounds).unwrap();
            let session = store.session("s").unwrap();
            session.begin(&round.plan).unwrap();
            let copied = fill_spread(&session, &round, &mut rng).unwrap();
            images(&session, &round);
            session.seal(1, &round.manifest).unwrap();
            prop_assert_eq!(&read_back(&disk, Path::new("s/final")), &memory);
            copied
        };
        prop_assert!(children == 0 || pages < 50 || copied > pages / 2 * u64::from(children), "{}", copied);
    }
}

/// A round of a task with 300 pages and a child that has the same, and its first 256 pages' bytes.
fn open(disk: &ModelDisk) -> (Store, SessionStore, Round, Bytes) {
    let store = Store::on_disk(Arc::new(disk.clone()), Bounds::default()).unwrap();
    let session = store.session("s").unwrap();
    let mut memory = forked_memory(0, 300, &mut Rng(5));
    let parent = memory.values().next().unwrap().clone();
    memory.insert(godwit_wire::plan::PageOwner::Task(2), parent);
    let round = round_of(&memory, 1, None, RoundKind::Final, &mut Rng(6));
    session.begin(&round.plan).unwrap();
    let Content::Data(bytes) = data_of(&round.slots[&1][..256]) else { panic!("no data") };
    (store, session, round, bytes)
}

#[test]
fn places_that_are_not_there_or_not_free_are_refused() {
    let good = CopyTo { at: 0, pages: 256, pages_id: 2, first_slot: 0 };
    let cases: [(&str, &[CopyTo]); 9] = [
        ("a file that is not listed", &[CopyTo { pages_id: 3, ..good }]),
        ("behind the end", &[CopyTo { at: 0, pages: 45, pages_id: 2, first_slot: 256 }]),
        ("across an extent", &[CopyTo { pages: 2, first_slot: 255, ..good }]),
        ("no pages", &[CopyTo { pages: 0, ..good }]),
        ("pages that are not there", &[CopyTo { at: 1, ..good }]),
        ("far behind the end", &[CopyTo { first_slot: u64::MAX, ..good }]),
        ("its own slots", &[CopyTo { pages_id: 1, ..good }]),
        ("the same slots twice", &[good, good]),
        (
            "slots that overlap",
            &[CopyTo { pages: 9, ..good }, CopyTo { at: 9, pages: 9, first_slot: 8, ..good }],
        ),
    ];
    for (what, copies) in cases {
        let (_store, session, _, bytes) = open(&ModelDisk::default());
        let content = Content::Spread { bytes, copies: copies.to_vec() };
        let refused = session.fill(Fill { round: 1, pages_id: 1, first_slot: 0, content });
        assert!(matches!(refused, Err(SinkError::Refused { .. })), "{what}: {refused:?}");
    }
}

#[test]
fn a_place_that_is_wrong_fills_none() {
    let (_store, session, _, bytes) = open(&ModelDisk::default());
    let good = CopyTo { at: 0, pages: 256, pages_id: 2, first_slot: 0 };
    let copies = vec![good, CopyTo { pages: 45, first_slot: 256, ..good }];
    let content = Content::Spread { bytes: bytes.clone(), copies };
    session.fill(Fill { round: 1, pages_id: 1, first_slot: 0, content }).unwrap_err();
    let missing = format!("{:?}", session.missing(1, 8).unwrap());
    assert_eq!(missing, "[(1, [0..300]), (2, [0..300])]");
    // Half a page more is no page.
    let content = Content::Spread { bytes: bytes.slice(..5000), copies: vec![CopyTo { pages: 1, ..good }] };
    session.fill(Fill { round: 1, pages_id: 1, first_slot: 0, content }).unwrap_err();
}

#[test]
fn bytes_that_are_not_those_of_a_place_are_found_by_its_hash() {
    let (_store, session, round, bytes) = open(&ModelDisk::default());
    let fill = |pages_id, first_slot, content| {
        session.fill(Fill { round: 1, pages_id, first_slot, content }).unwrap();
    };
    // Two pages of the child the wrong way round.
    let copy = |at, first_slot, pages| CopyTo { at, pages, pages_id: 2, first_slot };
    let copies = vec![copy(0, 1, 1), copy(1, 0, 1), copy(2, 2, 254)];
    fill(1, 0, Content::Spread { bytes: bytes.clone(), copies });
    fill(1, 256, data_of(&round.slots[&1][256..]));
    fill(2, 256, data_of(&round.slots[&2][256..]));
    images(&session, &round);
    let wrong = session.seal(1, &round.manifest).unwrap_err();
    assert!(
        matches!(&wrong, SinkError::Mismatch { file, why, .. } if file == "pages-2.img" && why.contains("extent 0")),
        "{wrong}"
    );
    // An extent that copies filled is sent again like any other; the one that they came from stays.
    session.reopen_extent(1, 2, 0).unwrap();
    fill(2, 0, Content::Data(bytes));
    session.seal(1, &round.manifest).unwrap();
}
