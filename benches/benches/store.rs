//! The store on a tmpfs: slots filled in whole extents and in small runs, zeros, and the seal with its checks.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use divan::Bencher;
use divan::counter::BytesCount;
use godwit_benches::workload::{Content as Memory, fill};
use godwit_page_server::store::sink::{Content, Fill, Sink};
use godwit_page_server::store::{LocalDir, LocalOptions};
use godwit_wire::image::extent::extent_hash;
use godwit_wire::image::manifest::{FileDigest, Manifest, PagesDigest};
use godwit_wire::image::pagemap;
use godwit_wire::plan::{
    EXTENT_SLOTS, PAGE_SIZE, PE_PRESENT, PageOwner, PageRun, PagesPlan, RoundKind, RoundPlan,
};
use tempfile::TempDir;

const SLOTS: u64 = 64 * EXTENT_SLOTS;
const LEN: u64 = SLOTS * PAGE_SIZE;
const TMPFS: &str = "/dev/shm";
const INVENTORY: &str = "inventory.img";

fn main() {
    divan::Divan::default().max_time(Duration::from_millis(300)).config_with_args().main();
}

fn plan() -> RoundPlan {
    let runs = vec![PageRun { vaddr: 1 << 32, nr_pages: SLOTS, flags: PE_PRESENT }];
    let pages = vec![PagesPlan { owner: PageOwner::Task(1), pages_id: 1, runs }];
    RoundPlan { round: 1, base_round: None, kind: RoundKind::Round, pages }
}

fn extent() -> Bytes {
    let mut bytes = vec![0; (EXTENT_SLOTS * PAGE_SIZE) as usize];
    fill(Memory::Random, &mut bytes);
    bytes.into()
}

/// A directory with an open round.
fn open() -> (TempDir, LocalDir) {
    let dir = tempfile::tempdir_in(Path::new(TMPFS)).expect("a directory on a tmpfs");
    let sink = LocalDir::create(dir.path(), LocalOptions::default()).expect("an images directory");
    sink.begin(&plan()).expect("a round");
    (dir, sink)
}

/// Fills every slot by the same extent over and over, in runs of `run` slots, a divisor of an extent's.
fn fill_all(sink: &LocalDir, extent: &Bytes, run: u64) {
    for first_slot in (0..SLOTS).step_by(run as usize) {
        let at = (first_slot % EXTENT_SLOTS * PAGE_SIZE) as usize;
        let content = Content::Data(extent.slice(at..at + (run * PAGE_SIZE) as usize));
        sink.fill(Fill { round: 1, pages_id: 1, first_slot, content }).expect("room");
    }
}

#[divan::bench(args = [1, 8, EXTENT_SLOTS])]
fn fill_by_runs(bencher: Bencher<'_, '_>, run: u64) {
    let extent = extent();
    bencher
        .counter(BytesCount::new(LEN))
        .with_inputs(open)
        .bench_local_refs(|(_, sink)| fill_all(sink, &extent, run));
}

#[divan::bench]
fn fill_with_zeros(bencher: Bencher<'_, '_>) {
    bencher.counter(BytesCount::new(LEN)).with_inputs(open).bench_local_refs(|(_, sink)| {
        for first_slot in (0..SLOTS).step_by(EXTENT_SLOTS as usize) {
            let content = Content::Zero { pages: EXTENT_SLOTS as u32 };
            sink.fill(Fill { round: 1, pages_id: 1, first_slot, content }).expect("room");
        }
    });
}

#[divan::bench]
fn seal(bencher: Bencher<'_, '_>) {
    let (extent, inventory, plan) = (extent(), Bytes::from_static(b"what an inventory holds"), plan());
    let pages = &plan.pages[0];
    let pagemap = pagemap::encode(pages).expect("a pagemap");
    let manifest = Manifest {
        session: "bench".into(),
        round: 1,
        base_round: None,
        kind: RoundKind::Round,
        restore_options: Vec::new(),
        root_pid: 1,
        dumped_at_us: 1,
        tool_version: "bench".into(),
        files: vec![
            FileDigest::of(INVENTORY, &inventory),
            FileDigest::of(&pages.owner.pagemap_name(), &pagemap),
        ],
        pages: vec![PagesDigest {
            pages_id: 1,
            nr_pages: SLOTS,
            extents: vec![extent_hash(&extent); (SLOTS / EXTENT_SLOTS) as usize],
        }],
    };
    bencher
        .counter(BytesCount::new(LEN))
        .with_inputs(|| {
            let (dir, sink) = open();
            fill_all(&sink, &extent, EXTENT_SLOTS);
            sink.image(1, INVENTORY, inventory.clone()).expect("an image");
            (dir, sink)
        })
        .bench_local_refs(|(_, sink)| sink.seal(1, &manifest).expect("a sealed round"));
}
