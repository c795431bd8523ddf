//! Reads an image directory as a restore would, godwit's or CRIU's own, and says what is wrong with it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use godwit_wire::image::extent::extent_hash;
use godwit_wire::image::manifest::{FileDigest, Manifest, PagesDigest};
use godwit_wire::image::{self, Checked, ImageError, ImageKind, ImageReader};
use godwit_wire::plan::{EXTENT_SLOTS, PAGE_SIZE, PE_LAZY, PageOwner, PagesPlan};

use super::disk::real::RealDisk;
use super::disk::{Disk, EntryKind, read_all};
use super::local::{CHAIN_LEN_MAX, behind_link};
use super::parent::{Level, owner_of};
use super::{INVENTORY_NAME, MANIFEST_LEN_MAX, MANIFEST_NAME, PARENT_NAME};

/// Longest image file that is decoded, in bytes; page files are not.
const IMAGE_LEN_MAX: u64 = 1 << 30;
/// `core.tc.task_state` of a zombie (criu/include/pstree.h, `TASK_DEAD`): only its core image exists.
const TASK_DEAD: u32 = 2;

/// What a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A whole set: `criu restore` has everything it needs.
    Complete,
    /// A whole round of a pre-dump: memory only, for a later set to build on.
    RoundOnly,
    /// Something is missing or wrong; the faults say what.
    Broken,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Complete => "complete",
            Verdict::RoundOnly => "round only",
            Verdict::Broken => "broken",
        })
    }
}

/// What [`inspect`] found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The directory.
    pub dir: PathBuf,
    /// What it is.
    pub verdict: Verdict,
    /// Why it is broken: file, and what is wrong with it.
    pub faults: Vec<Finding>,
    /// What a reader should know, but harms no restore.
    pub notes: Vec<Finding>,
    /// Directories that it builds on, nearest first.
    pub chain: Vec<PathBuf>,
    /// Image files that were decoded.
    pub images_decoded: usize,
    /// Pages whose bytes lie in this directory.
    pub pages_present: u64,
    /// Pages that are found through the chain.
    pub pages_in_parent: u64,
    /// Bytes of all files in this directory, holes included.
    pub size_bytes: u64,
    /// Pids of the tasks, as the images name them.
    pub tasks: Vec<u32>,
    /// Whether there is a manifest, against which every file and page was checked.
    pub manifest: Option<Manifest>,
}

/// A sentence about one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// File name, or the directory's for what concerns it as a whole.
    pub file: String,
    /// What is found.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file, self.what)
    }
}

/// Decodes and checks an image directory: records and required fields of every known image, lengths of page files,
/// coverage of every page through the chain of `parent` links, presence of what each task needs, and, where there
/// is a manifest, the hash of every file and page.
///
/// # Errors
/// Only if the directory itself cannot be read; everything else is a finding.
pub fn inspect(dir: &Path) -> io::Result<Report> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir)?);
    let mut files = BTreeMap::new();
    let mut faults = Vec::new();
    for entry in disk.list(Path::new(""))? {
        if entry.kind == EntryKind::File {
            match disk.open(Path::new(&entry.name)).and_then(|file| file.size()) {
                Ok(len) => drop(files.insert(entry.name, len)),
                Err(e) => faults.push(Finding { file: entry.name, what: e.to_string() }),
            }
        }
    }
    let report = Report {
        dir: dir.to_owned(),
        verdict: Verdict::Broken,
        faults,
        notes: Vec::new(),
        chain: Vec::new(),
        images_decoded: 0,
        pages_present: 0,
        pages_in_parent: 0,
        size_bytes: files.values().sum(),
        tasks: Vec::new(),
        manifest: None,
    };
    let mut inspection = Inspection { disk, files, report, cores: BTreeMap::new(), ids: BTreeMap::new() };
    inspection.images();
    inspection.pages();
    inspection.manifest();
    inspection.judge();
    Ok(inspection.report)
}

struct Inspection {
    disk: Arc<dyn Disk>,
    /// Regular files and their lengths.
    files: BTreeMap<String, u64>,
    report: Report,
    cores: BTreeMap<u64, image::core::CoreEntry>,
    ids: BTreeMap<u64, image::core::TaskKobjIdsEntry>,
}

impl Inspection {
    fn fault(&mut self, file: impl Into<String>, what: impl fmt::Display) {
        self.report.faults.push(Finding { file: file.into(), what: what.to_string() });
    }

    fn note(&mut self, file: impl Into<String>, what: impl fmt::Display) {
        self.report.notes.push(Finding { file: file.into(), what: what.to_string() });
    }

    fn read(&mut self, name: &str) -> Option<Vec<u8>> {
        let read = read_all(&*self.disk, Path::new(name), IMAGE_LEN_MAX);
        read.map_err(|e| self.fault(name, e)).ok()
    }

    fn images(&mut self) {
        let names: Vec<String> = self.files.keys().cloned().collect();
        for name in names {
            let Some((kind, id)) = ImageKind::parse_name(&name) else {
                if name.ends_with(".img") {
                    self.note(name, "it is no image that godwit knows");
                }
                continue;
            };
            if matches!(kind, ImageKind::Pages | ImageKind::Manifest) {
                continue;
            }
            let Some(bytes) = self.read(&name) else { continue };
            match self.decode(kind, id, &name, &bytes) {
                Ok(true) => self.report.images_decoded += 1,
                Ok(false) => self.note(name, "its content is not decoded"),
                Err(e) => self.report.faults.push(Finding { file: name, what: without_name(&e) }),
            }
        }
    }

    /// Decodes every record of an image; `false` for kinds that are raw or have no structs here.
    fn decode(&mut self, kind: ImageKind, id: u64, name: &str, bytes: &[u8]) -> Result<bool, ImageError> {
        let reader = || ImageReader::new(kind, name, bytes);
        match kind {
            ImageKind::Inventory => all::<image::inventory::InventoryEntry>(reader()?)?,
            ImageKind::Pstree => all::<image::pstree::PstreeEntry>(reader()?)?,
            ImageKind::Core => drop(self.cores.insert(id, reader()?.only()?)),
            ImageKind::Ids => drop(self.ids.insert(id, reader()?.only()?)),
            ImageKind::Mm => all::<image::mm::MmEntry>(reader()?)?,
            ImageKind::Fs => all::<image::fs::FsEntry>(reader()?)?,
            ImageKind::Fdinfo => all::<image::fdinfo::FdinfoEntry>(reader()?)?,
            ImageKind::Files => all::<image::fdinfo::FileEntry>(reader()?)?,
            ImageKind::FileLocks => all::<image::file_lock::FileLockEntry>(reader()?)?,
            ImageKind::Timens => all::<image::timens::TimensEntry>(reader()?)?,
            ImageKind::Seccomp => all::<image::seccomp::SeccompEntry>(reader()?)?,
            ImageKind::Cgroup => all::<image::cgroup::CgroupEntry>(reader()?)?,
            ImageKind::Cpuinfo => all::<image::cpuinfo::CpuinfoEntry>(reader()?)?,
            ImageKind::Memfd => all::<image::memfd::MemfdInodeEntry>(reader()?)?,
            ImageKind::RemapFilePath => all::<image::remap_file_path::RemapFilePathEntry>(reader()?)?,
            ImageKind::TtyInfo => all::<image::tty::TtyInfoEntry>(reader()?)?,
            ImageKind::TtyData => all::<image::tty::TtyDataEntry>(reader()?)?,
            ImageKind::Utsns => all::<image::utsns::UtsnsEntry>(reader()?)?,
            ImageKind::Userns => all::<image::userns::UsernsEntry>(reader()?)?,
            ImageKind::Pidns => all::<image::pidns::PidnsEntry>(reader()?)?,
            ImageKind::StatsDump | ImageKind::StatsRestore => all::<image::stats::StatsEntry>(reader()?)?,
            ImageKind::PipesData | ImageKind::FifoData => {
                let mut reader = reader()?;
                while let Some(data) = reader.next::<image::pipe_data::PipeDataEntry>()? {
                    reader.take_raw(data.bytes.into())?;
                }
            }
            ImageKind::SkQueues => {
                let mut reader = reader()?;
                while let Some(packet) = reader.next::<image::sk_packet::SkPacketEntry>()? {
                    reader.take_raw(packet.length.into())?;
                }
            }
            ImageKind::GhostFile => {
                let mut reader = reader()?;
                let head = reader.next::<image::ghost_file::GhostFileEntry>()?;
                if head.is_some_and(|head| head.chunks == Some(true)) {
                    while let Some(chunk) = reader.next::<image::ghost_file::GhostChunkEntry>()? {
                        reader.take_raw(chunk.len)?;
                    }
                }
            }
            ImageKind::Pagemap | ImageKind::PagemapShmem => {
                if let Some(owner) = owner_of(name) {
                    image::pagemap::decode(owner, bytes)?;
                }
            }
            // The magic words at least.
            _ => {
                reader()?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Lengths of page files and coverage, here and in every directory below.
    fn pages(&mut self) {
        let mut dir = self.report.dir.clone();
        let mut disk = self.disk.clone();
        let mut levels: Vec<(PathBuf, Arc<dyn Disk>, Vec<PagesPlan>)> = Vec::new();
        loop {
            let Some(lists) = self.page_lists(&dir, &disk) else { return };
            levels.push((dir.clone(), disk.clone(), lists));
            let link = match disk.read_link(Path::new(PARENT_NAME)) {
                Ok(link) => link,
                Err(e) if e.kind() == io::ErrorKind::NotFound => break,
                Err(e) => return self.fault(shown(&dir, PARENT_NAME), e),
            };
            if link.is_absolute() {
                self.note(shown(&dir, PARENT_NAME), "the link is absolute: the directories cannot be moved");
            }
            if levels.len() == CHAIN_LEN_MAX {
                return self
                    .fault(PARENT_NAME, format!("the chain is longer than {CHAIN_LEN_MAX} directories"));
            }
            let opened = behind_link(&dir, &link).and_then(|behind| Ok((RealDisk::open(&behind)?, behind)));
            match opened {
                Ok((opened, behind)) => (disk, dir) = (Arc::new(opened), behind),
                Err(e) => {
                    let text = format!("the link in {} leads to {}: {e}", dir.display(), link.display());
                    return self.fault(PARENT_NAME, text);
                }
            }
            self.report.chain.push(dir.clone());
        }
        self.coverage(levels);
    }

    fn coverage(&mut self, levels: Vec<(PathBuf, Arc<dyn Disk>, Vec<PagesPlan>)>) {
        for run in levels[0].2.iter().flat_map(|list| &list.runs) {
            match run.is_present() {
                true => self.report.pages_present += run.nr_pages,
                false => self.report.pages_in_parent += run.nr_pages,
            }
        }
        let mut below: Option<Arc<Level>> = None;
        for (dir, disk, lists) in levels.into_iter().rev() {
            for list in &lists {
                let name = shown(&dir, &list.owner.pagemap_name());
                let missing = match &below {
                    Some(level) => level.first_uncovered(list),
                    None => list.runs.iter().find(|run| !run.is_present()).map(|run| run.vaddr),
                };
                if let Some(vaddr) = missing {
                    self.fault(&name, format!("the page at {vaddr:#x} is in no directory of the chain"));
                }
                if let Some(run) = list.runs.iter().find(|run| run.flags == PE_LAZY) {
                    self.fault(
                        name,
                        format!("the pages at {:#x} were left at the source of a lazy dump", run.vaddr),
                    );
                }
            }
            below = Some(Arc::new(Level::of_lists(disk, PathBuf::new(), &lists, below)));
        }
    }

    /// The page lists of a directory of the chain, each with a pages file of the right length. `None` ends the walk:
    /// a fault was noted.
    fn page_lists(&mut self, dir: &Path, disk: &Arc<dyn Disk>) -> Option<Vec<PagesPlan>> {
        let lists = match super::parent::read_page_lists(&**disk, Path::new("")) {
            Ok(lists) => lists,
            Err(e) if dir == self.report.dir => {
                // Decoding the images told of it already.
                tracing::debug!("{}: {e}", dir.display());
                return None;
            }
            Err(e) => {
                self.fault(dir.display().to_string(), e);
                return None;
            }
        };
        for list in &lists {
            let name = list.pages_name();
            let expected = list.slots() * PAGE_SIZE;
            match disk.open(Path::new(&name)).and_then(|file| file.size()) {
                Err(e) if e.kind() == io::ErrorKind::NotFound && expected == 0 => {}
                Err(e) => self.fault(shown(dir, &name), e),
                Ok(len) if len < expected => {
                    let what = format!(
                        "{len} bytes are less than the {expected} its list needs: restore would hang"
                    );
                    self.fault(shown(dir, &name), what);
                }
                Ok(len) if len > expected => {
                    self.note(shown(dir, &name), format!("{} bytes behind its last page", len - expected));
                }
                Ok(_) => {}
            }
        }
        Some(lists)
    }

    fn manifest(&mut self) {
        if !self.files.contains_key(MANIFEST_NAME) {
            return;
        }
        let read = read_all(&*self.disk, Path::new(MANIFEST_NAME), MANIFEST_LEN_MAX);
        let Some(bytes) = read.map_err(|e| self.fault(MANIFEST_NAME, e)).ok() else { return };
        let manifest = match Manifest::decode(&bytes) {
            Ok(manifest) => manifest,
            Err(e) => return self.fault(MANIFEST_NAME, without_name(&e)),
        };
        for digest in &manifest.files {
            self.check_file(digest);
        }
        for digest in &manifest.pages {
            self.check_pages(digest);
        }
        let files = manifest.files.iter().map(|file| file.name.clone());
        let pages = manifest.pages.iter().map(|pages| ImageKind::Pages.file_name(pages.pages_id.into()));
        let named: HashSet<String> = files.chain(pages).chain([MANIFEST_NAME.to_owned()]).collect();
        let extra: Vec<String> = self
            .files
            .keys()
            .filter(|name| name.ends_with(".img") && !named.contains(*name))
            .cloned()
            .collect();
        extra.into_iter().for_each(|name| self.note(name, "the manifest does not name it"));
        self.report.manifest = Some(manifest);
    }

    fn check_file(&mut self, digest: &FileDigest) {
        if !self.files.contains_key(&digest.name) {
            return self.fault(&digest.name, "the manifest names it, and it is missing");
        }
        let Some(bytes) = self.read(&digest.name) else { return };
        if !digest.matches(&bytes) {
            self.fault(&digest.name, "it is not the file that the manifest names");
        }
    }

    fn check_pages(&mut self, digest: &PagesDigest) {
        let name = ImageKind::Pages.file_name(digest.pages_id.into());
        let Some(len) = self.files.get(&name).copied() else {
            return self.fault(name, "the manifest names it, and it is missing");
        };
        if digest.nr_pages.checked_mul(PAGE_SIZE) != Some(len) {
            return self.fault(name, format!("it is {len} bytes long instead of {} pages", digest.nr_pages));
        }
        let extent_bytes = EXTENT_SLOTS * PAGE_SIZE;
        let mut buf = vec![0; extent_bytes as usize];
        let file = match self.disk.open(Path::new(&name)) {
            Ok(file) => file,
            Err(e) => return self.fault(name, e),
        };
        for (index, hash) in digest.extents.iter().enumerate() {
            let offset = index as u64 * extent_bytes;
            let part = &mut buf[..(len - offset).min(extent_bytes) as usize];
            if let Err(e) = file.read_at(part, offset) {
                return self.fault(name, e);
            }
            if extent_hash(part) != *hash {
                return self.fault(name, format!("extent {index} is not the one that the manifest names"));
            }
        }
    }

    fn judge(&mut self) {
        let whole = match self.inventory() {
            Some(0) => Verdict::RoundOnly,
            Some(2) => {
                self.tasks();
                Verdict::Complete
            }
            Some(version) => {
                self.fault(
                    INVENTORY_NAME,
                    format!("image version {version} is not one that CRIU 4 restores"),
                );
                Verdict::Broken
            }
            None => Verdict::Broken,
        };
        self.report.verdict = if self.report.faults.is_empty() { whole } else { Verdict::Broken };
    }

    fn inventory(&mut self) -> Option<u32> {
        if !self.files.contains_key(INVENTORY_NAME) {
            self.fault(INVENTORY_NAME, "it is missing: the dump was not finished");
            return None;
        }
        let bytes = self.read(INVENTORY_NAME)?;
        let reader = ImageReader::new(ImageKind::Inventory, INVENTORY_NAME, &bytes).ok()?;
        let inventory = reader.only::<image::inventory::InventoryEntry>().ok()?;
        if inventory.img_version == 2
            && (inventory.root_ids.is_none() || inventory.fdinfo_per_id != Some(true))
        {
            self.fault(INVENTORY_NAME, "it lacks root_ids or fdinfo_per_id, which restore needs");
        }
        Some(inventory.img_version)
    }

    /// What a restore of each task needs (criu-format: deleting one of these made it fail).
    fn tasks(&mut self) {
        let name = ImageKind::Pstree.file_name(0);
        if !self.files.contains_key(&name) {
            return self.fault(name, "it is missing");
        }
        let Some(bytes) = self.read(&name) else { return };
        let reader = ImageReader::new(ImageKind::Pstree, &name, &bytes);
        let Ok(tree) = reader.and_then(|reader| reader.all::<image::pstree::PstreeEntry>()) else { return };
        if tree.iter().filter(|task| task.ppid == 0).count() != 1 {
            self.fault(&name, "it does not have exactly one root");
        }
        let mut needed = BTreeSet::new();
        for task in &tree {
            self.report.tasks.push(task.pid);
            let pid = u64::from(task.pid);
            needed.insert(ImageKind::Core.file_name(pid));
            let dead = self.cores.get(&pid).and_then(|core| core.tc.as_ref()).map(|tc| tc.task_state);
            if dead == Some(TASK_DEAD) {
                continue;
            }
            if task.threads.first() != Some(&task.pid) {
                self.fault(&name, format!("task {pid} does not lead its list of threads"));
            }
            needed.extend(task.threads.iter().map(|tid| ImageKind::Core.file_name((*tid).into())));
            needed.extend([ImageKind::Ids, ImageKind::Mm, ImageKind::Fs].map(|kind| kind.file_name(pid)));
            needed.insert(PageOwner::Task(task.pid).pagemap_name());
            needed.insert(ImageKind::Files.file_name(0));
            let ids = self.ids.get(&pid);
            needed.extend(ids.map(|ids| ImageKind::Fdinfo.file_name(ids.files_id.into())));
        }
        for name in needed {
            if !self.files.contains_key(&name) {
                // A task without descriptors has no fdinfo, and restore takes that for no descriptors.
                match name.starts_with("fdinfo-") {
                    true => self.note(name, "it is missing: its task is restored without descriptors"),
                    false => self.fault(name, "it is missing"),
                }
            }
        }
    }
}

fn all<M: Checked>(mut reader: ImageReader<'_>) -> Result<(), ImageError> {
    while reader.next::<M>()?.is_some() {}
    Ok(())
}

fn shown(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}

/// An image error with its causes; a finding names the file already.
fn without_name(error: &ImageError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
