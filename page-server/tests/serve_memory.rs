//! What a server keeps in memory is bounded, whatever a client sends and in whatever order.
#![allow(clippy::unwrap_used)]

#[path = "support/client.rs"]
mod client;

use bytes::Bytes;
use client::{Client, Program, lab};
use godwit_wire::control::CloseSession;
use godwit_wire::image::extent::extent_hash;
use godwit_wire::image::manifest::{FileDigest, Manifest, PagesDigest};
use godwit_wire::image::pagemap;
use godwit_wire::plan::{
    EXTENT_SLOTS, PAGE_SIZE, PE_PRESENT, PageOwner, PageRun, PagesPlan, RoundKind, RoundPlan,
};
use godwit_wire::session::{Reply, Request, SealRequest};

const PAGE: usize = PAGE_SIZE as usize;
/// Pages of one frame.
const FRAME_PAGES: u64 = 32;
/// Extents of the round: 384 MiB, three times what a session may take.
const EXTENTS: u64 = 384;

/// The page of a slot.
fn page(slot: u64) -> impl Iterator<Item = u8> {
    (slot | 1 << 63).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes().into_iter().cycle().take(PAGE)
}

fn pages(slots: std::ops::Range<u64>) -> Bytes {
    slots.flat_map(page).collect::<Vec<u8>>().into()
}

/// Every extent of the round is begun before any is completed, last frames first: none may be kept in memory until its
/// rest comes.
#[test]
fn hundreds_of_half_sent_extents_take_no_memory() {
    let dir = lab();
    let program = Program::start(dir.path(), &[]);
    let mut client = Client::connect(dir.path(), &program).unwrap();
    client.open("web");
    let slots = EXTENTS * EXTENT_SLOTS;
    let runs = vec![PageRun { vaddr: PAGE_SIZE, nr_pages: slots, flags: PE_PRESENT }];
    let list = PagesPlan { owner: PageOwner::Task(1), pages_id: 1, runs };
    let (round, kind) = (1, RoundKind::Round);
    let plan = RoundPlan { round, base_round: None, kind, pages: vec![list.clone()] };
    let Ok(Reply::RoundAccepted(accepted)) = client.ask(Request::Begin(plan)) else { panic!("not accepted") };
    let mut frames = 0;
    for within in (0..EXTENT_SLOTS / FRAME_PAGES).rev().map(|part| part * FRAME_PAGES) {
        for first in (0..EXTENTS).map(|extent| extent * EXTENT_SLOTS + within) {
            client.frame(accepted.epoch, 1, first, pages(first..first + FRAME_PAGES));
            frames += 1;
        }
    }
    let hash = |extent| extent_hash(&pages(extent * EXTENT_SLOTS..(extent + 1) * EXTENT_SLOTS));
    let inventory = Bytes::from_static(b"inventory.img");
    let manifest = Manifest {
        session: "web".into(),
        round,
        base_round: None,
        kind,
        restore_options: vec![],
        root_pid: 1,
        dumped_at_us: 1,
        tool_version: "test".into(),
        files: vec![
            FileDigest::of("pagemap-1.img", &pagemap::encode(&list).unwrap()),
            FileDigest::of("inventory.img", &inventory),
        ],
        pages: vec![PagesDigest { pages_id: 1, nr_pages: slots, extents: (0..EXTENTS).map(hash).collect() }],
    };
    client.tell(Request::Image { round, name: "inventory.img".into(), bytes: inventory });
    let (epoch, manifest) = (accepted.epoch, manifest.encode().unwrap());
    let sealed = client.ask(Request::Seal(SealRequest { round, epoch, frames, manifest }));
    assert!(matches!(sealed, Ok(Reply::RoundSealed(_))), "{sealed:?}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < 128 << 10, "the server took {} MiB", peak_kib >> 10);
    client.ask(Request::Close(CloseSession {})).unwrap();
    let held = std::fs::read(dir.path().join("images/web/round-0001/pages-1.img")).unwrap();
    assert_eq!(held.len() as u64, slots * PAGE_SIZE);
    let wrong = (0..slots).zip(held.chunks(PAGE)).find(|(slot, held)| !page(*slot).eq(held.iter().copied()));
    assert!(wrong.is_none(), "slot {:?} holds another page", wrong.map(|(slot, _)| slot));
}
