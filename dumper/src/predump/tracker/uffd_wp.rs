//! The userfaultfd tracker: asynchronous write-protection, asked and re-armed by PAGEMAP_SCAN in one step.
//!
//! A userfaultfd belongs to the address space that made it, so the task makes one itself by a remote system call; the
//! dumper takes a duplicate and the task closes its own. Only then is it initialised: a dumper that is killed in
//! between leaves a descriptor that does nothing. The kernel resolves a write to a protected page by itself
//! (UFFD_FEATURE_WP_ASYNC, Linux 6.7), and PAGEMAP_SCAN reports the pages that were written and protects them again
//! without a gap, so no stop is needed. When the dumper dies, the protection goes with its descriptor.
//!
//! A mapping that is found not to be registered counts as written, whole, so everything that appeared, moved or grew
//! since is whole in the next collection. The kernel's own word is not taken for that: a scan that meets such a mapping
//! fails after it has protected what lies before, and says nothing of it. What the kernel never reports (a page of a
//! private file mapping given back by MADV_DONTNEED) shows as swapped but not present and is read again at every
//! collection. Neither does it report what a device writes into a page after that was protected: while files are open
//! for direct reads, the collection is made in a short stop, which ends such reads first. Those of an AIO ring go on
//! through any stop: with both, all memory counts as written.
//!
//! A private mapping of a file that may be written is not registered as long as few of its pages are the process's own:
//! those are sent each time. For the kernel leaves marks where protected pages of a file's mapping go away, and
//! MADV_GUARD_INSTALL takes a mark for a page, takes it away, leaves a mark, and so on until the registration ends
//! (mm/madvise.c, madvise_guard_install; Linux 6.15): the thread that makes the call would hang for as long as we track.
//!
//! A mapping can lose its registration without a change of its own: mremap moves another one beside it, the kernel joins
//! the two and takes the registration off what was moved, which by then is both (mm/mremap.c, mremap_userfaultfd_prep).
//! The pages' marks stay, and after the next registration they would pass for protection that is not there. So marks are
//! taken off whatever is registered, before it is protected.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use godwit_wire::fault;
use godwit_wire::plan::PAGE_SIZE;
use nix::errno::Errno;
use nix::unistd::Pid;

use super::present::{self, push};
use super::{Ask, Run, Tracker, TrackerError};
use crate::freeze::seize;
use crate::procfs::fdinfo;
use crate::procfs::maps::{self, Vma};
use crate::remote::{RemoteError, Session};
use crate::sys::memory::Mapping;
use crate::sys::pagemap_scan::{self, CHECK_WPASYNC, Masks, Region, WP_MATCHING, category};
use crate::sys::{pidfd, userfaultfd};

/// Regions that one scan returns at most.
const REGIONS: usize = 4096;
/// Own pages of a writable private mapping of a file from which on it is registered: 16 MiB.
const OWN_PAGES: u64 = 4096;
/// Pages of the self-test.
const TEST_PAGES: usize = 8;
/// Which of them are written after arming.
const TEST_WRITTEN: [usize; 2] = [1, 6];

/// An armed userfaultfd tracker. Dropping it takes the protection off.
#[derive(Debug)]
pub struct UffdWp {
    pid: Pid,
    uffd: OwnedFd,
    /// The address space that the userfaultfd belongs to is gone: the process made an execve.
    is_orphaned: bool,
    /// It had a file open for direct reads at some collection.
    reads_directly: bool,
    /// A device may have written into pages after the last collection protected them: all of them count as written.
    may_have_missed: bool,
    /// Ranges that may have been registered with old marks left in them: they count as not registered.
    unsettled: Vec<Range<u64>>,
}

impl UffdWp {
    /// Makes a userfaultfd in the process, in one short stop of one thread.
    ///
    /// # Errors
    /// When the process cannot be stopped, or may not make one.
    pub fn attach(pid: Pid) -> Result<UffdWp, TrackerError> {
        let frozen = seize::seize_one(pid)?;
        let tid = frozen.threads().first().map_or(pid, |thread| thread.tid);
        let mut session = frozen.remote(tid)?;
        let flags = userfaultfd::UFFD_USER_MODE_ONLY | (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
        let theirs = session.syscall(libc::SYS_userfaultfd, [flags, 0, 0, 0, 0, 0])?;
        let mut theirs = Theirs { session: &mut session, fd: Some(theirs) };
        fault::point("mid.tracker.made")?;
        let taken = pidfd::getfd(frozen.pidfd(), theirs.fd.unwrap_or_default() as i32);
        fault::point("mid.tracker.taken")?;
        let closed = theirs.close();
        drop(theirs);
        session.finish()?;
        frozen.thaw()?;
        closed?;
        fault::point("mid.tracker.closed")?;
        let uffd = taken.map_err(|source| TrackerError::Userfaultfd { pid, what: "pidfd_getfd", source })?;
        UffdWp::with(pid, uffd)
    }

    fn with(pid: Pid, uffd: OwnedFd) -> Result<UffdWp, TrackerError> {
        userfaultfd::api(uffd.as_fd(), userfaultfd::FEATURE_WP_ASYNC)
            .map_err(|source| TrackerError::Userfaultfd { pid, what: "UFFDIO_API", source })?;
        Ok(UffdWp {
            pid,
            uffd,
            is_orphaned: false,
            reads_directly: false,
            may_have_missed: false,
            unsettled: Vec::new(),
        })
    }

    /// Collects every mapping.
    fn collect_all(&mut self, vmas: &[Vma], is_stopped: bool) -> Result<Vec<Run>, TrackerError> {
        // Opened anew each time: an open one stays with the address space that an execve left.
        let pagemap = open_pagemap(self.pid)?;
        let unsettled = if is_stopped { self.unsettled.clone() } else { std::mem::take(&mut self.unsettled) };
        let mut regions = vec![Region::default(); REGIONS];
        let mut runs = Vec::new();
        for vma in vmas {
            if vma.is_vdso() {
                push(&mut runs, vma.range());
                continue;
            }
            let mut here = Vec::new();
            if unsettled.iter().any(|range| range.start < vma.end && vma.start < range.end) {
                // As one that is found not to be registered.
                if !is_stopped && self.register(vma)? {
                    self.collect_one(&pagemap, vma, is_stopped, &mut regions, &mut Vec::new())?;
                }
                push(&mut here, vma.range());
            } else {
                self.collect_one(&pagemap, vma, is_stopped, &mut regions, &mut here)?;
            }
            if vma.has_file() {
                self.given_back(&pagemap, vma, &mut regions, &mut here)?;
                here.sort_by_key(|run| run.vaddr);
            }
            here.iter().for_each(|run| present::join(&mut runs, run.vaddr..run.end()));
        }
        Ok(runs)
    }

    /// Collects one mapping: what was written is reported and, while the process runs, protected again.
    fn collect_one(
        &mut self,
        pagemap: &File,
        vma: &Vma,
        is_stopped: bool,
        regions: &mut [Region],
        runs: &mut Vec<Run>,
    ) -> Result<(), TrackerError> {
        let there = category::PRESENT | category::SWAPPED;
        let masks = Masks { inverted: 0, all: category::WRITTEN, any: there, returned: there };
        let flags = if is_stopped { CHECK_WPASYNC } else { WP_MATCHING | CHECK_WPASYNC };
        let mut at = vma.start;
        let mut is_whole = false;
        while at < vma.end {
            let range = at..vma.end;
            match pagemap_scan::scan(pagemap.as_fd(), &range, flags, &masks, regions) {
                Ok((count, end)) => {
                    let found = if is_whole { &[][..] } else { &regions[..count] };
                    found.iter().for_each(|region| push(runs, region.start..region.end));
                    if end <= at {
                        // No kernel does that; what it has not looked at must not pass for clean.
                        present::join(runs, range);
                        return Ok(());
                    }
                    at = end;
                }
                Err(Errno::EPERM) if !is_whole => {
                    push(runs, range);
                    if is_stopped || self.is_better_left_alone(vma)? || !self.register(vma)? {
                        return Ok(());
                    }
                    // The scan is repeated for its protection only.
                    is_whole = true;
                }
                Err(Errno::EPERM) => return Ok(()),
                // It made an execve, or ended, just now.
                Err(Errno::ESRCH) => {
                    self.is_orphaned = true;
                    present::join(runs, range);
                    return Ok(());
                }
                Err(source) => return Err(self.failed("PAGEMAP_SCAN", vma, source)),
            }
        }
        Ok(())
    }

    /// Whether a mapping that is not registered shall stay so: see above.
    fn is_better_left_alone(&self, vma: &Vma) -> Result<bool, TrackerError> {
        if !vma.has_file() || !vma.write {
            return Ok(false);
        }
        let own = present::alive(self.pid, std::slice::from_ref(vma))?;
        Ok(own.iter().map(|run| run.nr_pages).sum::<u64>() < OWN_PAGES)
    }

    /// Registers a mapping and takes old marks off its pages; false where that cannot be. It is then whole in every
    /// collection: it is gone or has changed since it was listed, holds something that cannot be protected, or belongs
    /// to another address space than ours.
    fn register(&mut self, vma: &Vma) -> Result<bool, TrackerError> {
        match userfaultfd::register_wp(self.uffd.as_fd(), &vma.range()) {
            Ok(()) => {
                fault::point("mid.tracker.armed")?;
                self.settle(vma)
            }
            Err(Errno::EINVAL | Errno::EBUSY | Errno::EPERM | Errno::ENOENT) => Ok(false),
            Err(Errno::ENOMEM) => {
                self.is_orphaned = true;
                Ok(false)
            }
            Err(source) => Err(self.failed("UFFDIO_REGISTER", vma, source)),
        }
    }

    /// Takes the marks off all pages of a mapping that was just registered; false where it changed meanwhile.
    fn settle(&mut self, vma: &Vma) -> Result<bool, TrackerError> {
        match userfaultfd::write_protect(self.uffd.as_fd(), &vma.range(), false) {
            Ok(()) => Ok(true),
            // A part of it is registered no more. What follows that part was not looked at.
            Err(Errno::ENOENT | Errno::EAGAIN) => {
                self.unsettled.push(vma.range());
                Ok(false)
            }
            Err(Errno::ESRCH | Errno::ENOMEM) => {
                self.is_orphaned = true;
                Ok(false)
            }
            Err(source) => Err(self.failed("UFFDIO_WRITEPROTECT", vma, source)),
        }
    }

    /// Pages of a private file mapping that look swapped and are not there: their own content may have been given back,
    /// which is never reported.
    fn given_back(
        &self,
        pagemap: &File,
        vma: &Vma,
        regions: &mut [Region],
        runs: &mut Vec<Run>,
    ) -> Result<(), TrackerError> {
        let masks = Masks {
            inverted: category::PRESENT,
            all: category::PRESENT | category::SWAPPED,
            any: 0,
            returned: category::SWAPPED,
        };
        let mut at = vma.start;
        while at < vma.end {
            let (count, end) = match pagemap_scan::scan(pagemap.as_fd(), &(at..vma.end), 0, &masks, regions) {
                // It made an execve, or ended, just now: the mapping counts as written as it is.
                Err(Errno::ESRCH) => return Ok(()),
                found => found.map_err(|source| self.failed("PAGEMAP_SCAN", vma, source))?,
            };
            regions[..count].iter().for_each(|region| push(runs, region.start..region.end));
            at = end.max(at + PAGE_SIZE);
        }
        Ok(())
    }

    /// Whether the process has an AIO ring, through which a device may be writing into any page.
    fn has_ring(&self) -> Result<bool, TrackerError> {
        let vmas = maps::read(self.pid).map_err(|error| {
            let source = io::Error::other(error);
            TrackerError::Open { pid: self.pid, source }
        })?;
        let has_ring = vmas.iter().any(Vma::is_aio_ring);
        if has_ring && !self.may_have_missed {
            tracing::warn!(
                pid = %self.pid,
                "direct reads of an AIO ring are seen by no page table: all memory is sent each time (--tracker hash \
                 compares it)"
            );
        }
        Ok(has_ring)
    }

    fn failed(&self, what: &'static str, vma: &Vma, source: Errno) -> TrackerError {
        TrackerError::Scan { pid: self.pid, what, start: vma.start, end: vma.end, source }
    }
}

impl Tracker for UffdWp {
    fn name(&self) -> &'static str {
        "uffd-wp"
    }

    fn collect(&mut self, ask: &Ask<'_>) -> Result<Vec<Run>, TrackerError> {
        let vmas = ask.vmas;
        if ask.is_stopped {
            return if self.may_have_missed { Ok(all_of(vmas)) } else { self.collect_all(vmas, true) };
        }
        if self.is_orphaned {
            tracing::info!(pid = %self.pid, "it made an execve: its new memory is tracked from here on");
            *self = UffdWp::attach(self.pid)?;
        }
        let read_directly = reads_directly(self.pid)?;
        let collected = if read_directly {
            let frozen = seize::seize(self.pid)?;
            let collected = self.collect_all(vmas, false);
            frozen.thaw()?;
            collected?
        } else {
            self.collect_all(vmas, false)?
        };
        // A file was opened for direct reads meanwhile, and one may have been on its way into any page.
        let is_late = !read_directly && reads_directly(self.pid)?;
        self.reads_directly |= read_directly || is_late;
        // What was asked of a ring before this collection may arrive after it, in pages that are protected now.
        let may_miss = self.reads_directly && self.has_ring()?;
        let has_missed = std::mem::replace(&mut self.may_have_missed, may_miss);
        Ok(if is_late || has_missed { all_of(vmas) } else { collected })
    }
}

fn all_of(vmas: &[Vma]) -> Vec<Run> {
    let mut all = Vec::new();
    vmas.iter().for_each(|vma| push(&mut all, vma.range()));
    all
}

/// A descriptor of the process's own, open until this is dropped.
struct Theirs<'s, 'f> {
    session: &'s mut Session<'f>,
    fd: Option<u64>,
}

impl Theirs<'_, '_> {
    fn close(&mut self) -> Result<(), RemoteError> {
        let Some(fd) = self.fd else { return Ok(()) };
        let closed = self.session.syscall(libc::SYS_close, [fd, 0, 0, 0, 0, 0]);
        if matches!(closed, Ok(_) | Err(RemoteError::Call { .. })) {
            self.fd = None;
        }
        closed.map(drop)
    }
}

impl Drop for Theirs<'_, '_> {
    fn drop(&mut self) {
        // A number that was closed already may be another descriptor's by now: the other threads run.
        let is_closed = matches!(self.session.come_back(), Ok(Some((libc::SYS_close, _))));
        if !is_closed && let Err(error) = self.close() {
            tracing::warn!(%error, "a userfaultfd that does nothing stays in the process until the next dump");
        }
    }
}

fn open_pagemap(pid: Pid) -> Result<File, TrackerError> {
    File::open(format!("/proc/{pid}/pagemap")).map_err(|source| TrackerError::Open { pid, source })
}

/// Whether a file is open past the page cache (O_DIRECT): a device then writes into the process's pages, and no page
/// table shows when.
fn reads_directly(pid: Pid) -> Result<bool, TrackerError> {
    let fds = fdinfo::list(pid).map_err(|error| {
        let source = io::Error::other(error);
        TrackerError::Open { pid, source }
    })?;
    let is_direct = |fd: i32| fdinfo::read(pid, fd).is_ok_and(|info| info.flags & libc::O_DIRECT as u32 != 0);
    Ok(fds.into_iter().any(is_direct))
}

/// Tries it on memory of our own: written pages must be seen once, and no others.
///
/// # Errors
/// Why it cannot be used here.
pub fn self_test() -> Result<(), String> {
    let this = Pid::this();
    let page = PAGE_SIZE as usize;
    let mut memory = Mapping::anonymous(TEST_PAGES * page).map_err(|errno| errno.to_string())?;
    (0..TEST_PAGES).for_each(|index| memory.bytes()[index * page] = 1);
    let uffd = userfaultfd::create().map_err(|errno| format!("userfaultfd: {errno}"))?;
    let tracker = UffdWp::with(this, uffd).map_err(|error| crate::commands::chain(&error))?;
    let pagemap = open_pagemap(this).map_err(|error| crate::commands::chain(&error))?;
    let start = memory.addr();
    let range = start..start + (TEST_PAGES * page) as u64;
    userfaultfd::register_wp(tracker.uffd.as_fd(), &range)
        .map_err(|errno| format!("UFFDIO_REGISTER: {errno}"))?;
    let there = category::PRESENT | category::SWAPPED;
    let masks = Masks { inverted: 0, all: category::WRITTEN, any: there, returned: there };
    let mut regions = vec![Region::default(); TEST_PAGES];
    let mut seen = || -> Result<Vec<Region>, String> {
        let flags = WP_MATCHING | CHECK_WPASYNC;
        let (count, _) = pagemap_scan::scan(pagemap.as_fd(), &range, flags, &masks, &mut regions)
            .map_err(|errno| format!("PAGEMAP_SCAN: {errno}"))?;
        Ok(regions[..count].to_vec())
    };
    seen()?;
    TEST_WRITTEN.iter().for_each(|index| memory.bytes()[index * page] = 2);
    let (first, second) = (seen()?, seen()?);
    let is_seen = |index: usize| {
        let addr = start + (index * page) as u64;
        first.iter().any(|region| region.start <= addr && addr < region.end)
    };
    let wrong = (0..TEST_PAGES).any(|index| is_seen(index) != TEST_WRITTEN.contains(&index));
    if wrong || !second.is_empty() { Err("writes are not reported as they are".to_owned()) } else { Ok(()) }
}
