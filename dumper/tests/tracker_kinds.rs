//! Every way in which a page can come to hold something else, one at a time: what each tracker says of it, and what the
//! last set does with the page. The table in `KERNELS.md` ("Ways to change a page") is what this test finds.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "remote/copies.rs"]
mod copies;
mod remote;
mod support;

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use copies::Copy;
use godwit_dumper::freeze::seize;
use godwit_dumper::predump::tracker::{Choice, soft_dirty, uffd_wp};
use godwit_dumper::sys::{process_vm, ptrace};
use godwit_wire::plan::PAGE_SIZE;
use nix::sys::stat::{major, minor};
use nix::unistd::Pid;

const KERNELS: &str = include_str!("../KERNELS.md");

/// Where the program's areas lie: anonymous memory, a private mapping of a file (its first half changed), a memfd mapped
/// shared, the same mapped private, and a file mapped shared.
const ANONYMOUS: u64 = 0;
const OF_FILE: u64 = 1;
const SHARED: u64 = 2;
const SHARED_FILE: u64 = 4;
/// A page of the private mapping that is the file's.
const UNCHANGED: u64 = 40;

/// Ways to change a page of an area.
const WAYS: [(&str, u64); 21] = [
    ("write", ANONYMOUS),
    ("read", ANONYMOUS),
    ("direct", ANONYMOUS),
    ("aio", ANONYMOUS),
    ("splice-in", ANONYMOUS),
    ("splice-out", ANONYMOUS),
    ("splice-gift", ANONYMOUS),
    ("fork", ANONYMOUS),
    ("process_vm_writev", ANONYMOUS),
    ("ptrace", ANONYMOUS),
    ("proc-mem", ANONYMOUS),
    ("dontneed", ANONYMOUS),
    ("dontneed-file", OF_FILE),
    ("write-file", OF_FILE),
    ("write-shared", SHARED),
    ("write-memfd", SHARED),
    ("other-mapping", SHARED),
    ("remove", SHARED),
    ("hole", SHARED),
    ("outside-memfd", SHARED),
    ("write-shared-file", SHARED_FILE),
];

struct Program {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Program {
    fn start(dir: &Path, program: &Path) -> Program {
        let mut command = Command::new(program);
        let mut child = command.arg(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut program = Program { orders: child.stdin.take().unwrap(), answers, child };
        assert_eq!(program.answer(), "READY");
        program
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Changes a page in one way: the program by itself, or somebody else.
    fn change(&mut self, way: &str, page: u64, at: u64) {
        let pid = self.pid();
        match way {
            "process_vm_writev" => assert_eq!(process_vm::write(pid, at, b"changed").unwrap(), 7),
            "ptrace" => {
                let frozen = seize::seize(pid).unwrap();
                ptrace::poke(pid, at, 7).unwrap();
                frozen.thaw().unwrap();
            }
            "proc-mem" => {
                let mem = OpenOptions::new().write(true).open(format!("/proc/{pid}/mem")).unwrap();
                mem.write_all_at(b"changed", at).unwrap();
            }
            "outside-memfd" => {
                let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
                let is_memfd = |path: &PathBuf| {
                    std::fs::read_link(path).unwrap().to_string_lossy().starts_with("/memfd:kinds")
                };
                let path = fds.map(|entry| entry.unwrap().path()).find(is_memfd).unwrap();
                let file = OpenOptions::new().write(true).open(path).unwrap();
                file.write_all_at(b"changed", page * PAGE_SIZE).unwrap();
            }
            _ => assert!(self.tell(way, page), "{way}"),
        }
    }

    /// Whether it could.
    fn tell(&mut self, way: &str, page: u64) -> bool {
        writeln!(self.orders, "{way} {page}").unwrap();
        match self.answer().as_str() {
            "DONE" => true,
            "none" => false,
            _ => panic!("{way}: it ended"),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start() -> (tempfile::TempDir, Program) {
    // On a disk, where files can be read past the page cache.
    let dir = tempfile::tempdir().unwrap();
    let program = remote::compile(dir.path(), "cc", "kinds", &[]);
    let program = Program::start(dir.path(), &program);
    (dir, program)
}

/// What the table says of a way: the cell of a tracker.
fn told(way: &str, tracker: &str) -> Option<String> {
    let cells = |line: &'static str| line.split('|').map(str::trim).collect::<Vec<_>>();
    let header = KERNELS.lines().find(|line| line.starts_with("| way |")).map(cells)?;
    let column = header.iter().position(|cell| *cell == tracker)?;
    let row = KERNELS.lines().find(|line| line.starts_with(&format!("| `{way}` |"))).map(cells)?;
    row.get(column).map(|cell| (*cell).to_owned())
}

fn try_all(choice: Choice, tracker: &str) {
    let (_dir, mut program) = start();
    let mut copy = Copy::begin(choice, program.pid());
    let mut wrong = Vec::new();
    for (index, (way, area)) in WAYS.into_iter().enumerate() {
        // Each way has a page of its own.
        let page = if way == "write-file" { UNCHANGED } else { index as u64 };
        let at = 0x3000_0000_0000 + (area << 32) + page * PAGE_SIZE;
        copy.round();
        copy.round();
        let before = copy.fate(at);
        let is_calm = ["the file's", "left to a round"].iter().any(|fate| before.ends_with(fate));
        // Few own pages of a file's mapping are not tracked.
        let is_untracked = choice == Choice::UffdWp && area == OF_FILE;
        let is_calm = is_untracked || is_calm && !before.starts_with("seen");
        assert!(is_calm, "{way}: before anything happened it is {before}");
        program.change(way, page, at);
        let fate = copy.fate(at);
        println!("{tracker}: {way}: {fate}");
        if told(way, tracker).as_deref() != Some(fate.as_str()) {
            wrong.push(format!("{way}: {fate}, and KERNELS.md says {:?}", told(way, tracker)));
        }
        let differences = copy.differences();
        assert!(differences.is_empty(), "{tracker}: {way}: {differences:#?}");
    }
    assert!(wrong.is_empty(), "{tracker}:\n{}", wrong.join("\n"));
}

fn has_uffd_wp() -> bool {
    if let Err(why) = uffd_wp::self_test() {
        eprintln!("SKIP uffd-wp: {why}");
        assert!(std::env::var("GODWIT_REQUIRE").as_deref() != Ok("all"), "a required test cannot run");
        return false;
    }
    true
}

#[test]
fn uffd_wp_sees_what_the_table_says() {
    require!("root", "cc");
    if has_uffd_wp() {
        try_all(Choice::UffdWp, "uffd-wp");
    }
}

#[test]
#[ignore = "needs soft-dirty bits (CONFIG_MEM_SOFT_DIRTY), which most kernels lack: run it on one that has them"]
fn soft_dirty_sees_what_the_table_says() {
    require!("root", "cc");
    soft_dirty::self_test().unwrap();
    try_all(Choice::SoftDirty, "soft-dirty");
}

#[test]
fn hash_sees_what_the_table_says() {
    require!("root", "cc");
    try_all(Choice::Hash, "hash");
}

#[test]
fn a_guard_in_a_private_mapping_of_a_file_does_not_hold_its_program_up() {
    require!("root", "cc");
    if !has_uffd_wp() {
        return;
    }
    let (_dir, mut program) = start();
    let mut copy = Copy::begin(Choice::UffdWp, program.pid());
    copy.round();
    copy.round();
    if !program.tell("guard-file", 3) {
        eprintln!("SKIP a guard in a mapping of a file: this kernel has none (Linux 6.15)");
        return;
    }
    copy.round();
    let differences = copy.differences();
    assert!(differences.is_empty(), "{differences:#?}");
}

/// A program with a userfaultfd of its own is refused by name (`doctor`, `leftovers`); with one that another process
/// holds, the range is the other's, and no less right.
#[test]
fn a_range_of_another_userfaultfd_is_sent_each_time() {
    require!("root", "cc");
    if !has_uffd_wp() {
        return;
    }
    let (_dir, mut program) = start();
    assert!(program.tell("own-userfaultfd", 0));
    let (inside, outside) = (0x3000_0000_0000 + PAGE_SIZE, 0x3000_0000_0000 + 20 * PAGE_SIZE);
    for (choice, expected) in [(Choice::UffdWp, "seen, sent"), (Choice::Hash, "not seen, left to a round")] {
        let mut copy = Copy::begin(choice, program.pid());
        copy.round();
        copy.round();
        assert_eq!(
            (copy.fate(inside).as_str(), copy.fate(outside).as_str()),
            (expected, "not seen, left to a round")
        );
        assert!(program.tell("write", 1));
        assert_eq!(copy.fate(inside), "seen, sent");
        let differences = copy.differences();
        assert!(differences.is_empty(), "{choice:?}: {differences:#?}");
    }
}

/// A cgroup whose processes read a disk slowly.
struct SlowDisk(PathBuf);

impl SlowDisk {
    /// Controllers of the first cgroup version only.
    fn new(file: &Path, pid: Pid) -> Option<SlowDisk> {
        let group = Path::new("/sys/fs/cgroup/blkio").join(format!("godwit-test-{pid}"));
        std::fs::create_dir(&group).ok()?;
        let group = SlowDisk(group);
        let device = std::fs::metadata(file).unwrap().dev();
        let limit = format!("{}:{} 4096", major(device), minor(device));
        std::fs::write(group.0.join("blkio.throttle.read_bps_device"), limit).ok()?;
        std::fs::write(group.0.join("cgroup.procs"), pid.to_string()).ok()?;
        Some(group)
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // One that has processes yet is not removed.
        for pid in std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = std::fs::write("/sys/fs/cgroup/blkio/cgroup.procs", pid);
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// A disk writes into a page long after the request was made, and no page table shows when.
fn direct_read_in_flight(choice: Choice) {
    let (dir, mut program) = start();
    let Some(_slow) = SlowDisk::new(&dir.path().join("kinds.file"), program.pid()) else {
        eprintln!("SKIP a direct read in flight: no disk can be made slow here (cgroup v1, blkio)");
        return;
    };
    let mut copy = Copy::begin(choice, program.pid());
    copy.round();
    let at = 0x3000_0000_0000 + 5 * PAGE_SIZE;
    program.change("aio-start", 5, at);
    let page_now = || {
        let mut page = [0; PAGE_SIZE as usize];
        let mem = std::fs::File::open(format!("/proc/{}/mem", program.pid())).unwrap();
        mem.read_exact_at(&mut page, at).map(|()| page).unwrap()
    };
    let before = page_now();
    copy.round();
    copy.round();
    let is_in_flight = page_now() == before;
    program.change("aio-end", 5, at);
    let mut after = [0; PAGE_SIZE as usize];
    let mem = std::fs::File::open(format!("/proc/{}/mem", program.pid())).unwrap();
    mem.read_exact_at(&mut after, at).unwrap();
    assert!(is_in_flight && after != before, "the disk was not slow enough to show anything");
    let differences = copy.differences();
    assert!(differences.is_empty(), "{choice:?}: {differences:#?}");
}

#[test]
fn what_a_disk_writes_after_a_round_is_in_the_last_set_by_uffd_wp() {
    require!("root", "cc");
    if has_uffd_wp() {
        direct_read_in_flight(Choice::UffdWp);
    }
}

#[test]
fn what_a_disk_writes_after_a_round_is_in_the_last_set_by_hash() {
    require!("root", "cc");
    direct_read_in_flight(Choice::Hash);
}
