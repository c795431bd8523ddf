//! The sealed rounds below a round: which pages they hold, and where the bytes of a page lie in the chain.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use godwit_wire::image::{ImageKind, pagemap};
use godwit_wire::plan::{PAGE_SIZE, PE_PARENT, PageOwner, PageRun, PagesPlan, RoundPlan};

use super::disk::{Disk, DiskFile, EntryKind, read_all};

/// Longest page list file that is read, in bytes; a run takes at most 30.
const PAGEMAP_LEN_MAX: u64 = 512 << 20;
/// Open pages files that a level keeps.
const OPEN_FILES_MAX: usize = 16;

/// A sealed directory, and through it the whole chain below.
pub struct Level {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    owners: HashMap<PageOwner, OwnerPages>,
    parent: Option<Arc<Level>>,
    files: Mutex<HashMap<u32, Arc<dyn DiskFile>>>,
}

struct OwnerPages {
    pages_id: u32,
    runs: Vec<Placed>,
}

/// A run, and its first slot if it is present.
#[derive(Clone, Copy)]
struct Placed {
    run: PageRun,
    first_slot: u64,
}

/// Where the bytes of some consecutive pages lie.
struct Spot<'l> {
    level: &'l Level,
    pages_id: u32,
    slot: u64,
    /// Pages that follow each other there, from the one asked for.
    pages: u64,
}

impl Level {
    /// The level of a round that was just sealed from its plan.
    pub fn of_plan(disk: Arc<dyn Disk>, dir: PathBuf, plan: &RoundPlan, parent: Option<Arc<Level>>) -> Self {
        Self::new(disk, dir, plan.pages.iter(), parent)
    }

    /// Reads the page lists of a sealed directory.
    ///
    /// # Errors
    /// What the disk answers; [`io::ErrorKind::InvalidData`] for a list that breaks the format's rules.
    pub fn load(disk: Arc<dyn Disk>, dir: PathBuf, parent: Option<Arc<Level>>) -> io::Result<Self> {
        let plans = read_page_lists(&*disk, &dir)?;
        Ok(Self::new(disk, dir, plans.iter(), parent))
    }

    /// The level of a directory whose page lists were read already.
    pub fn of_lists(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        lists: &[PagesPlan],
        parent: Option<Arc<Level>>,
    ) -> Self {
        Self::new(disk, dir, lists.iter(), parent)
    }

    fn new<'p>(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        plans: impl Iterator<Item = &'p PagesPlan>,
        parent: Option<Arc<Level>>,
    ) -> Self {
        let owners = plans.map(|pages| (pages.owner, OwnerPages::of(pages))).collect();
        Self { disk, dir, owners, parent, files: Mutex::new(HashMap::new()) }
    }

    /// Address of the first page that a list calls unchanged and this directory does not list.
    pub fn first_uncovered(&self, pages: &PagesPlan) -> Option<u64> {
        let mut unchanged = pages.runs.iter().filter(|run| !run.is_present());
        let Some(owner) = self.owners.get(&pages.owner) else { return unchanged.next().map(|run| run.vaddr) };
        unchanged.find_map(|run| {
            let mut vaddr = run.vaddr;
            while vaddr < run.end() {
                match owner.find(vaddr) {
                    Some(placed) => vaddr = placed.run.end(),
                    None => return Some(vaddr),
                }
            }
            None
        })
    }

    /// Reads consecutive pages of an owner into `buf` (whole pages), as many as lie together in one file of the chain;
    /// returns their bytes, 0 if the chain does not hold the first.
    ///
    /// # Errors
    /// What the disk answers.
    pub fn read_run(&self, owner: PageOwner, vaddr: u64, buf: &mut [u8]) -> io::Result<usize> {
        let Some(spot) = self.locate(owner, vaddr) else { return Ok(0) };
        let len = usize::try_from(spot.pages.saturating_mul(PAGE_SIZE)).unwrap_or(usize::MAX).min(buf.len());
        spot.level.file(spot.pages_id)?.read_at(&mut buf[..len], spot.slot * PAGE_SIZE)?;
        Ok(len)
    }

    fn locate(&self, owner: PageOwner, vaddr: u64) -> Option<Spot<'_>> {
        let mut level = self;
        let mut pages = u64::MAX;
        loop {
            let listed = level.owners.get(&owner)?;
            let placed = listed.find(vaddr)?;
            pages = pages.min((placed.run.end() - vaddr) / PAGE_SIZE);
            if placed.run.is_present() {
                let slot = placed.first_slot + (vaddr - placed.run.vaddr) / PAGE_SIZE;
                return Some(Spot { level, pages_id: listed.pages_id, slot, pages });
            }
            // A page that was left for a lazy restore is nowhere in the chain.
            level = level.parent.as_deref().filter(|_| placed.run.flags & PE_PARENT != 0)?;
        }
    }

    fn file(&self, pages_id: u32) -> io::Result<Arc<dyn DiskFile>> {
        let mut files = self.files.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(file) = files.get(&pages_id) {
            return Ok(file.clone());
        }
        if files.len() >= OPEN_FILES_MAX {
            files.clear();
        }
        let file = self.disk.open(&self.dir.join(ImageKind::Pages.file_name(pages_id.into())))?;
        files.insert(pages_id, file.clone());
        Ok(file)
    }
}

impl OwnerPages {
    fn of(pages: &PagesPlan) -> Self {
        let mut next = 0;
        let place = |run: &PageRun| {
            let placed = Placed { run: *run, first_slot: next };
            next += if run.is_present() { run.nr_pages } else { 0 };
            placed
        };
        Self { pages_id: pages.pages_id, runs: pages.runs.iter().map(place).collect() }
    }

    fn find(&self, vaddr: u64) -> Option<Placed> {
        let behind = self.runs.partition_point(|placed| placed.run.vaddr <= vaddr);
        self.runs[..behind].last().filter(|placed| vaddr < placed.run.end()).copied()
    }
}

/// Reads every page list of a directory.
///
/// # Errors
/// What the disk answers; [`io::ErrorKind::InvalidData`] for a list that breaks the format's rules.
pub fn read_page_lists(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<PagesPlan>> {
    let mut plans = Vec::new();
    for entry in disk.list(dir)? {
        if entry.kind != EntryKind::File {
            continue;
        }
        let Some(owner) = owner_of(&entry.name) else { continue };
        let path = dir.join(&entry.name);
        let bytes = read_all(disk, &path, PAGEMAP_LEN_MAX)?;
        plans.push(pagemap::decode(owner, &bytes).map_err(|e| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}: {e}", disk.shown(&path).display()))
        })?);
    }
    Ok(plans)
}

/// Whose page list a file name says it is.
pub fn owner_of(name: &str) -> Option<PageOwner> {
    match ImageKind::parse_name(name)? {
        (ImageKind::Pagemap, pid) => u32::try_from(pid).ok().map(PageOwner::Task),
        (ImageKind::PagemapShmem, id) => Some(PageOwner::Shmem(id)),
        _ => None,
    }
}
