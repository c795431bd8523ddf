//! Every tracker that works here, against a program that changes its memory and its memory map as fast as it can:
//! rounds are copied while it runs, the last one while it is stopped, and then every byte is compared.
//!
//! `GODWIT_TRACKER_RUNS` sets the number of programs (default 4), `GODWIT_TRACKER_SEED` the first seed.
#![allow(clippy::unwrap_used, missing_docs)]

mod remote;
mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use godwit_dumper::freeze::seize;
use godwit_dumper::predump::tracker::{self, Choice, Tracker, present};
use godwit_dumper::predump::{plan, rounds};
use godwit_dumper::procfs::maps::{self, Vma};
use godwit_wire::plan::{PAGE_SIZE, PE_PARENT, PageOwner, PageRun, PagesPlan};
use nix::unistd::Pid;
use remote::{Random, Victim, compile};

const ROUNDS: usize = 8;
const PAGE: usize = PAGE_SIZE as usize;

/// What the destination would hold: each page by its address.
type Memory = BTreeMap<u64, Vec<u8>>;

/// The copy of a process, as rounds make it.
struct Copy {
    pid: Pid,
    mem: File,
    base: Option<PagesPlan>,
    memory: Memory,
    taken_over: u64,
}

impl Copy {
    fn new(pid: Pid) -> Copy {
        let mem = File::open(format!("/proc/{pid}/mem")).unwrap();
        Copy { pid, mem, base: None, memory: Memory::new(), taken_over: 0 }
    }

    fn page(&self, at: u64) -> Option<Vec<u8>> {
        let mut page = vec![0; PAGE];
        self.mem.read_exact_at(&mut page, at).ok().map(|()| page)
    }

    /// One round: what is listed is read or taken over, the rest forgotten.
    fn round(&mut self, tracker: &mut dyn Tracker, is_stopped: bool) -> Vec<Vma> {
        let vmas = rounds::with_pages(self.pid, &maps::read_with_flags(self.pid).unwrap());
        let dirty = tracker.collect(&vmas, is_stopped).unwrap();
        let alive = present::alive(self.pid, &vmas).unwrap();
        assert_sorted("alive", &alive);
        assert_sorted("dirty", &dirty);
        let runs = plan::split(&alive, &dirty, self.base.as_ref());
        let (mut memory, mut covered) = (Memory::new(), Vec::new());
        for run in &runs {
            for at in (run.vaddr..run.end()).step_by(PAGE) {
                let page = if run.flags == PE_PARENT {
                    self.taken_over += 1;
                    let page = self.memory.remove(&at);
                    assert!(page.is_some(), "{at:#x} is left to a base round that has it not");
                    page
                } else {
                    self.page(at)
                };
                assert!(page.is_some() || !is_stopped, "{at:#x} is listed and cannot be read");
                if let Some(page) = page {
                    memory.insert(at, page);
                    covered.push(PageRun { vaddr: at, nr_pages: 1, flags: run.flags });
                }
            }
        }
        self.memory = memory;
        self.base = Some(PagesPlan { owner: PageOwner::Task(1), pages_id: 1, runs: covered });
        vmas
    }

    /// What a restore would put at `at`.
    fn restored(&self, vma: &Vma, at: u64, file: &Option<File>) -> Vec<u8> {
        if let Some(page) = self.memory.get(&at) {
            return page.clone();
        }
        let mut page = vec![0; PAGE];
        if let Some(file) = file {
            let mut done = 0;
            while done < PAGE {
                match file.read_at(&mut page[done..], vma.pgoff + (at - vma.start) + done as u64).unwrap() {
                    0 => break,
                    count => done += count,
                }
            }
        }
        page
    }

    /// Every page of the stopped process that differs from its copy.
    fn differences(&self, vmas: &[Vma]) -> Vec<String> {
        let mut differences = Vec::new();
        for vma in vmas {
            let link = format!("/proc/{}/map_files/{:x}-{:x}", self.pid, vma.start, vma.end);
            let file = vma.has_file().then(|| File::open(link).unwrap());
            for at in (vma.start..vma.end).step_by(PAGE) {
                // What cannot be read, a guard or what lies behind a file's end, has no content to compare.
                let Some(page) = self.page(at) else { continue };
                if page != self.restored(vma, at, &file) {
                    let listed = self.memory.contains_key(&at);
                    let path = String::from_utf8_lossy(&vma.path);
                    differences
                        .push(format!("{at:#x} of {:x}-{:x} {path} listed: {listed}", vma.start, vma.end));
                }
            }
        }
        differences
    }
}

fn assert_sorted(what: &str, runs: &[PageRun]) {
    let wrong = runs.windows(2).find(|pair| pair[0].end() > pair[1].vaddr);
    assert!(wrong.is_none(), "{what}: {wrong:x?} are not in order");
}

fn follow(choice: Choice, dir: &Path, program: &Path, seed: u64) {
    let file = dir.join("file");
    let victim = Victim::start(dir, program, &[&seed.to_string(), file.to_str().unwrap()]);
    victim.wait_for("READY");
    let pid = victim.pid();
    let mut random = Random(seed | 1);
    let mut tracker = tracker::attach(choice, pid).unwrap();
    let mut copy = Copy::new(pid);
    for _ in 0..ROUNDS {
        copy.round(tracker.as_mut(), false);
        std::thread::sleep(Duration::from_millis(random.below(40)));
    }
    let frozen = seize::seize(pid).unwrap();
    let vmas = copy.round(tracker.as_mut(), true);
    let differences = copy.differences(&vmas);
    let name = tracker.name();
    assert!(
        differences.is_empty(),
        "{name}, seed {seed}: {} pages differ, such as\n{}",
        differences.len(),
        { differences[..differences.len().min(10)].join("\n") }
    );
    assert!(
        copy.taken_over > 100,
        "{name}, seed {seed}: rounds were no use, {} pages taken over",
        copy.taken_over
    );
    frozen.thaw().unwrap();
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn follow_many(choice: Choice) {
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), "cc", "changer", &[]);
    let first = number("GODWIT_TRACKER_SEED", 1);
    for seed in first..first + number("GODWIT_TRACKER_RUNS", 4) {
        follow(choice, dir.path(), &program, seed);
    }
}

#[test]
fn uffd_wp_misses_no_page_of_a_program_that_changes_its_map() {
    require!("root", "cc");
    if let Err(why) = tracker::uffd_wp::self_test() {
        eprintln!("SKIP uffd-wp: {why}");
        assert!(std::env::var("GODWIT_REQUIRE").as_deref() != Ok("all"), "a required test cannot run");
        return;
    }
    follow_many(Choice::UffdWp);
}

#[test]
#[ignore = "needs soft-dirty bits (CONFIG_MEM_SOFT_DIRTY), which most kernels lack: run it on one that has them"]
fn soft_dirty_misses_no_page_of_a_program_that_changes_its_map() {
    require!("root", "cc");
    tracker::soft_dirty::self_test().unwrap();
    follow_many(Choice::SoftDirty);
}
