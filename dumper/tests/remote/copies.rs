//! The copy of a process as rounds make it, by the product's own lists and readers, and what a restore would find in it.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use godwit_dumper::collect::tree::Task;
use godwit_dumper::freeze::seize;
use godwit_dumper::pool::Pool;
use godwit_dumper::predump::held::{self, Held};
use godwit_dumper::predump::pages::{self, Owners, PageSource, Sent};
use godwit_dumper::predump::rounds::{self, Base, Listed};
use godwit_dumper::predump::segments::{Comparing, PagesIds, Segments};
use godwit_dumper::predump::tracker::{self, Ask, Choice, Tracker};
use godwit_dumper::procfs::maps::{self, Vma};
use godwit_dumper::task::shmem::Holder;
use godwit_dumper::task::{files, shmem, vmas};
use godwit_page_server::store::sink::{Content, Fill, Sealed, Sink, SinkError};
use godwit_wire::image::manifest::Manifest;
use godwit_wire::plan::{PAGE_SIZE, PageOwner, PageRun, PagesPlan, RoundKind, RoundPlan};
use nix::unistd::Pid;

pub const PAGE: usize = PAGE_SIZE as usize;
/// Present or swapped (Documentation/admin-guide/mm/pagemap.rst).
const IS_THERE: u64 = 0b11 << 62;

/// Pages by address, or by offset of a segment.
type Memory = BTreeMap<u64, Arc<[u8]>>;
/// Pages by owner.
type Memories = BTreeMap<u64, Memory>;

/// The key of the task's own memory; segments have their inode numbers.
const TASK: u64 = 0;

/// Pages by pages file and slot.
type Pages = BTreeMap<(u32, u64), Arc<[u8]>>;

/// Keeps what is handed over.
#[derive(Default)]
struct Slots(Mutex<Pages>);

impl Sink for Slots {
    fn begin(&self, _: &RoundPlan) -> Result<(), SinkError> {
        Ok(())
    }

    fn fill(&self, fill: Fill) -> Result<(), SinkError> {
        let bytes = match fill.content {
            Content::Data(bytes) => bytes.to_vec(),
            Content::Zero { pages } => vec![0; pages as usize * PAGE],
            Content::Same { .. } | Content::Delta { .. } => panic!("no page is known to be held"),
            Content::Spread { .. } => panic!("there is no other process"),
        };
        let mut slots = self.0.lock().unwrap();
        for (slot, page) in (fill.first_slot..).zip(bytes.chunks_exact(PAGE)) {
            let twice = slots.insert((fill.pages_id, slot), page.into());
            assert!(twice.is_none(), "slot {slot} is filled twice");
        }
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

/// A copy that is being made.
pub struct Copy {
    task: Task,
    pages_id: u32,
    pages_ids: PagesIds,
    tracker: Box<dyn Tracker>,
    base: Option<Base>,
    held: Held,
    segments: Segments,
    memory: Memories,
    round: u32,
    /// Pages that rounds and last sets left to the round before.
    pub taken_over: u64,
}

impl Copy {
    pub fn begin(choice: Choice, pid: Pid) -> Copy {
        let task = Task::open(pid).unwrap().unwrap();
        let tracker = tracker::attach(choice, pid, 2).unwrap();
        let mut pages_ids = PagesIds::default();
        Copy {
            task,
            pages_id: pages_ids.give(),
            pages_ids,
            tracker,
            base: None,
            held: Held::default(),
            segments: Segments::default(),
            memory: Memories::new(),
            round: 0,
            taken_over: 0,
        }
    }

    /// A round, while it runs.
    pub fn round(&mut self) {
        let listed = self.list(None);
        let segments = shmem::collect_running([(self.task.pid, &listed.vmas[..])].into_iter());
        let comparing = Comparing::patiently(2);
        let of_segments = self.segments.plans(&segments, false, &mut self.pages_ids, &comparing).unwrap();
        let (plans, sent, memory) = self.send(&listed, of_segments, &segments, true);
        self.segments.acknowledge(&plans, &sent.pages);
        let sent = &sent.pages[&self.pages_id];
        if self.tracker.wants_hashes() {
            self.held.acknowledge(&listed.plan, sent);
        }
        self.memory = memory;
        self.base = Some(Base { round: self.round, covered: rounds::covered(listed.plan, sent) });
    }

    fn list(&mut self, stopped_until: Option<Instant>) -> Listed {
        let (tracker, base) = (self.tracker.as_mut(), self.base.as_ref());
        rounds::list(&self.task, self.pages_id, tracker, base, &self.held, stopped_until).unwrap()
    }

    /// The last set, of the process as it stands still; then it runs on, and rounds go on as if it had not been made.
    /// Every page in which the copy differs is named.
    pub fn differences(&mut self) -> Vec<String> {
        let pid = self.task.pid;
        let frozen = seize::seize(pid).unwrap();
        let listed = self.list(Some(Instant::now() + Duration::from_secs(60)));
        let descriptors = &files::open_all(pid, &self.task.pidfd).unwrap();
        let segments = shmem::collect(&[Holder { pid, vmas: &listed.vmas, descriptors }]).unwrap();
        let comparing = Comparing::patiently(2);
        let of_segments = self.segments.plans(&segments, true, &mut self.pages_ids, &comparing).unwrap();
        let (_, _, memory) = self.send(&listed, of_segments, &segments, false);
        let differences = Looking::at(pid, &memory).differences(&listed.vmas);
        frozen.thaw().unwrap();
        differences
    }

    /// What the tracker says of the page at `at`, and what the last set would do with it. The process runs on, and
    /// rounds go on as if nobody had asked.
    pub fn fate(&mut self, at: u64) -> String {
        let (pid, until) = (self.task.pid, Some(Instant::now() + Duration::from_secs(60)));
        let frozen = seize::seize(pid).unwrap();
        let of = |runs: &[PageRun], at: u64| {
            runs.iter().find(|run| run.vaddr <= at && at < run.end()).map(PageRun::is_present)
        };
        let vmas = rounds::with_pages(pid, &maps::read(pid).unwrap());
        let ask = Ask { vmas: &vmas, held: &self.held, is_stopped: true, until };
        let is_seen = of(&self.tracker.collect(&ask).unwrap(), at).is_some();
        let listed = self.list(until);
        let vma = listed.vmas.iter().find(|vma| vma.range().contains(&at)).unwrap();
        let is_segment = vma.shared && vmas::is_memory_file(vma);
        let in_segment = is_segment.then(|| {
            let segments = shmem::collect_running([(pid, &listed.vmas[..])].into_iter());
            let comparing = Comparing::patiently(1);
            let plans = self.segments.plans(&segments, true, &mut self.pages_ids, &comparing).unwrap();
            let plan = plans.iter().find(|plan| plan.owner == PageOwner::Shmem(vma.inode)).unwrap();
            of(&plan.runs, vma.pgoff + at - vma.start)
        });
        frozen.thaw().unwrap();
        let fate = match (in_segment, of(&listed.plan.runs, at)) {
            (Some(Some(true)), _) | (None, Some(true)) => "sent",
            (Some(Some(false)), _) | (None, Some(false)) => "left to a round",
            (None, None) if vma.has_file() => "the file's",
            (Some(None), _) | (None, None) => "a hole",
        };
        let is_seen = match (is_segment, is_seen) {
            (true, _) => "not asked",
            (false, true) => "seen",
            (false, false) => "not seen",
        };
        format!("{is_seen}, {fate}")
    }

    fn send(
        &mut self,
        listed: &Listed,
        of_segments: Vec<PagesPlan>,
        segments: &[shmem::Segment],
        live: bool,
    ) -> (Vec<PagesPlan>, Sent, Memories) {
        self.round += 1;
        let left = listed.plan.runs.iter().filter(|run| !run.is_present()).map(|run| run.nr_pages);
        self.taken_over += left.sum::<u64>();
        let pages: Vec<PagesPlan> = std::iter::once(listed.plan.clone()).chain(of_segments).collect();
        let kind = if live { RoundKind::Round } else { RoundKind::Final };
        let base_round = self.base.as_ref().map(|base| base.round);
        let plan = RoundPlan { round: self.round, base_round, kind, pages };
        plan.validate().unwrap();
        let hashed_slots = if live && self.tracker.wants_hashes() { held::PAGES_MAX } else { 0 };
        let (stop, hot, slots) = (&pages::GOES_ON, &pages::NONE_HOT, Slots::default());
        let (owners, pool) = (Owners::One(self.task.pid), &Pool::new(4));
        let source = PageSource { owners, live, readers: 2, segments, hashed_slots, pool, hot, stop };
        let sent = source.send_all(&plan, &slots).unwrap();
        let mut slots = slots.0.into_inner().unwrap();
        let mut memories = Memories::new();
        for pages in &plan.pages {
            let owner = match pages.owner {
                PageOwner::Task(_) => TASK,
                PageOwner::Shmem(id) => id,
            };
            let (memory, mut slot) = (memories.entry(owner).or_default(), 0);
            for run in &pages.runs {
                for at in (run.vaddr..run.end()).step_by(PAGE) {
                    let page = if run.is_present() {
                        slot += 1;
                        slots.remove(&(pages.pages_id, slot - 1)).unwrap()
                    } else {
                        let held = self.memory.get(&owner).and_then(|memory| memory.get(&at));
                        held.unwrap_or_else(|| panic!("{at:#x} is left to a round that has it not")).clone()
                    };
                    memory.insert(at, page);
                }
            }
        }
        assert!(slots.is_empty(), "pages without a place");
        for gone in &sent.pages[&self.pages_id].gone {
            assert!(live, "{gone:#x} is listed and cannot be read");
            memories.entry(TASK).or_default().remove(gone);
        }
        (plan.pages, sent, memories)
    }
}

/// A stopped process beside what a restore would make of a copy.
struct Looking<'a> {
    pid: Pid,
    mem: File,
    pagemap: File,
    copy: &'a Memories,
}

impl Looking<'_> {
    fn at(pid: Pid, copy: &Memories) -> Looking<'_> {
        let open = |name: &str| File::open(format!("/proc/{pid}/{name}")).unwrap();
        Looking { pid, mem: open("mem"), pagemap: open("pagemap"), copy }
    }

    fn differences(&self, all: &[Vma]) -> Vec<String> {
        let with_pages: Vec<u64> = rounds::with_pages(self.pid, all).iter().map(|vma| vma.start).collect();
        let mut differences = Vec::new();
        for vma in all {
            // A shared mapping of an ordinary file is no memory of the process's own.
            let is_copied = with_pages.contains(&vma.start) || vmas::is_memory_file(vma);
            if !is_copied || vma.path == b"[vsyscall]" {
                continue;
            }
            let link = format!("/proc/{}/map_files/{:x}-{:x}", self.pid, vma.start, vma.end);
            let file = vma.has_file().then(|| File::open(link).ok()).flatten();
            for at in (vma.start..vma.end).step_by(PAGE) {
                let Some(is) = self.page(vma, at) else { continue };
                let restored = self.restored(vma, at, file.as_ref());
                if is != restored {
                    let is_listed = self.copy[&TASK].contains_key(&at);
                    let path = String::from_utf8_lossy(&vma.path);
                    let (start, end) = (vma.start, vma.end);
                    let zeros = [&is, &restored].map(|page| page.iter().all(|byte| *byte == 0));
                    differences.push(format!(
                        "{at:#x} of {start:x}-{end:x} {path} listed: {is_listed}, zeros in source and copy: {zeros:?}"
                    ));
                }
            }
        }
        differences
    }

    /// What the process has there. What cannot be read, a guard or what lies behind a file's end, has no content.
    fn page(&self, vma: &Vma, at: u64) -> Option<Vec<u8>> {
        let mut page = vec![0; PAGE];
        // A page that is not there is not read: that would make it be.
        if !vma.has_file() || vma.path.starts_with(b"/anon_hugepage") {
            let mut word = [0; 8];
            self.pagemap.read_exact_at(&mut word, at / PAGE_SIZE * 8).unwrap();
            if u64::from_le_bytes(word) & IS_THERE == 0 {
                return Some(page);
            }
        }
        self.mem.read_exact_at(&mut page, at).ok().map(|()| page)
    }

    /// What a restore would put there.
    fn restored(&self, vma: &Vma, at: u64, file: Option<&File>) -> Vec<u8> {
        let in_file = vma.pgoff + (at - vma.start);
        let of_task = self.copy[&TASK].get(&at).filter(|_| !vma.shared || vma.is_aio_ring());
        // Nothing of a segment without a page list is anything but a hole.
        let of_segment = vmas::is_memory_file(vma).then(|| self.copy.get(&vma.inode)?.get(&in_file));
        if let Some(page) = of_task.or(of_segment.flatten()) {
            return page.to_vec();
        }
        let mut page = vec![0; PAGE];
        let mut done = if of_segment.is_some() { PAGE } else { 0 };
        while let (true, Some(file)) = (done < PAGE, file) {
            match file.read_at(&mut page[done..], in_file + done as u64).unwrap_or(0) {
                0 => break,
                count => done += count,
            }
        }
        page
    }
}
