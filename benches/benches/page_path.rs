//! The page path at the source: pages are read out of a process (this one) and handed to a sink.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use divan::Bencher;
use divan::counter::BytesCount;
use godwit_benches::workload::{Content, fill};
use godwit_dumper::pool::Pool;
use godwit_dumper::predump::pages::{GOES_ON, NONE_HOT, Owners, PageSource};
use godwit_page_server::store::sink::{Fill, Sealed, Sink, SinkError};
use godwit_page_server::store::{LocalDir, LocalOptions};
use godwit_wire::image::manifest::Manifest;
use godwit_wire::plan::{PAGE_SIZE, PE_PRESENT, PageOwner, PageRun, PagesPlan, RoundKind, RoundPlan};
use nix::unistd::Pid;

const LEN: usize = 64 << 20;
const CONTENTS: [Content; 3] = [Content::Random, Content::Text, Content::ZeroHeavy];
/// Buffers of the path, 1 MiB each.
const BUFFERS: usize = 16;
const TMPFS: &str = "/dev/shm";

fn main() {
    divan::Divan::default().max_time(Duration::from_millis(300)).config_with_args().main();
}

/// Takes everything and keeps nothing.
struct Null;

impl Sink for Null {
    fn begin(&self, _: &RoundPlan) -> Result<(), SinkError> {
        Ok(())
    }

    fn fill(&self, fill: Fill) -> Result<(), SinkError> {
        divan::black_box(&fill);
        Ok(())
    }

    fn image(&self, _: u32, _: &str, _: Bytes) -> Result<(), SinkError> {
        Ok(())
    }

    fn seal(&self, _: u32, _: &Manifest) -> Result<Sealed, SinkError> {
        Ok(Sealed::default())
    }

    fn abandon(&self, _: u32) -> Result<(), SinkError> {
        Ok(())
    }
}

/// Page-aligned memory with that content, in runs of `run` pages with a page left out behind each.
struct Memory {
    bytes: Vec<u8>,
    plan: RoundPlan,
}

impl Memory {
    fn new(content: Content, run: u64) -> Memory {
        let page = PAGE_SIZE as usize;
        let mut bytes = vec![0; LEN + page];
        let start = bytes.as_ptr().align_offset(page);
        fill(content, &mut bytes[start..start + LEN]);
        let first = bytes[start..].as_ptr() as u64;
        let runs = (0..LEN as u64 / PAGE_SIZE)
            .step_by(run as usize + 1)
            .map(|at| PageRun {
                vaddr: first + at * PAGE_SIZE,
                nr_pages: run.min(LEN as u64 / PAGE_SIZE - at),
                flags: PE_PRESENT,
            })
            .collect();
        let pages = vec![PagesPlan { owner: PageOwner::Task(1), pages_id: 1, runs }];
        Memory { bytes, plan: RoundPlan { round: 1, base_round: None, kind: RoundKind::Round, pages } }
    }

    fn send(&self, pool: &Pool, readers: usize, sink: &dyn Sink) {
        let source = PageSource {
            owners: Owners::One(Pid::this()),
            live: true,
            readers,
            segments: &[],
            hashed_slots: 0,
            pool,
            hot: &NONE_HOT,
            stop: &GOES_ON,
        };
        let sent = source.send_all(&self.plan, sink).expect("pages of this process");
        divan::black_box((sent, &self.bytes));
    }

    fn len(&self) -> u64 {
        self.plan.pages.iter().map(PagesPlan::slots).sum::<u64>() * PAGE_SIZE
    }
}

#[divan::bench(args = CONTENTS, consts = [1, 2])]
fn into_nothing<const READERS: usize>(bencher: Bencher<'_, '_>, content: Content) {
    let (memory, pool) = (Memory::new(content, LEN as u64), Pool::new(BUFFERS));
    bencher.counter(BytesCount::new(memory.len())).bench_local(|| memory.send(&pool, READERS, &Null));
}

/// Written pages lie in runs of so many.
#[divan::bench(args = [1, 4, 32])]
fn runs_into_nothing(bencher: Bencher<'_, '_>, run: u64) {
    let (memory, pool) = (Memory::new(Content::Random, run), Pool::new(BUFFERS));
    bencher.counter(BytesCount::new(memory.len())).bench_local(|| memory.send(&pool, 2, &Null));
}

#[divan::bench(args = CONTENTS)]
fn into_a_directory_on_tmpfs(bencher: Bencher<'_, '_>, content: Content) {
    let (memory, pool) = (Memory::new(content, LEN as u64), Pool::new(BUFFERS));
    bencher
        .counter(BytesCount::new(memory.len()))
        .with_inputs(|| {
            let dir = tempfile::tempdir_in(Path::new(TMPFS)).expect("a directory on a tmpfs");
            let sink = LocalDir::create(dir.path(), LocalOptions::default()).expect("an images directory");
            sink.begin(&memory.plan).expect("a round");
            (dir, sink)
        })
        .bench_local_refs(|(_, sink)| memory.send(&pool, 2, sink));
}
