//! A round under its staging name: accepted, filled, checked, written out. What it becomes, a directory of a
//! session or files of a local directory, is its caller's matter.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

use bytes::Bytes;
use godwit_wire::image::manifest::{FileDigest, Manifest};
use godwit_wire::image::{ImageKind, pagemap};
use godwit_wire::plan::{PAGE_SIZE, RoundKind, RoundPlan};

use super::assembly::{Arrival, Whole};
use super::disk::{Disk, DiskFile, remove_flat_dir};
use super::pages::{FillError, PagesFile};
use super::parent::Level;
use super::pool::{Buffer, Pool, Share};
use super::rules::{Bounds, is_image_of_dump};
use super::sink::{Content, Fill, Sealed, SinkError};
use super::workers::{Job, Workers};
use super::{INVENTORY_NAME, MANIFEST_NAME, PARENT_NAME};

/// Number of a pages file, and its slots that are not filled, in order.
pub type MissingSlots = (u32, Vec<Range<u64>>);

/// A round that is not sealed yet. Its directory is flat: image files and the link `parent`.
pub(crate) struct Staged {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    plan: RoundPlan,
    bounds: Bounds,
    base: Option<Arc<Level>>,
    pages: HashMap<u32, PagesFile>,
    images: Mutex<Images>,
    /// Writers of pages and images share it; the seal holds it alone, so that it sees no write half done.
    gate: RwLock<State>,
    share: Arc<Share>,
    workers: Option<Arc<Workers>>,
    /// Extents that were opened so far.
    opened: AtomicU64,
    queued: Mutex<Queued>,
    /// Told when nothing is queued any more.
    written: Condvar,
}

/// What was handed to the writers and is not written yet.
#[derive(Default)]
struct Queued {
    extents: usize,
    /// The first of them that could not be written. The round takes nothing more then.
    failed: Option<Failed>,
    /// Nobody wants the round any more: what is queued need not be written.
    dropped: bool,
}

/// A failed write of a writer, for everybody who asks.
struct Failed {
    path: PathBuf,
    kind: io::ErrorKind,
    code: Option<i32>,
    text: String,
}

impl Failed {
    fn new(path: &Path, error: &io::Error) -> Self {
        let (kind, code) = (error.kind(), error.raw_os_error());
        Self { path: path.to_owned(), kind, code, text: error.to_string() }
    }

    fn error(&self) -> (&Path, io::Error) {
        let error = self
            .code
            .map_or_else(|| io::Error::new(self.kind, self.text.clone()), io::Error::from_raw_os_error);
        (&self.path, error)
    }
}

/// Who keeps and writes what arrives for a round.
#[derive(Clone)]
pub(crate) struct Means {
    pub(crate) pool: Arc<Pool>,
    /// Without them, whoever completes an extent writes it.
    pub(crate) workers: Option<Arc<Workers>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// A sync failed or the round was handed on: what is on disk is no longer known to be ours to change.
    Shut,
    /// All of it is durable: it is removed by nobody, whoever may have given it up meanwhile.
    Sealed,
}

#[derive(Default)]
struct Images {
    files: BTreeMap<String, Image>,
    /// Files in `files` that are open.
    kept_open: usize,
    /// Kept in memory until everything else is durable.
    inventory: Option<Bytes>,
}

struct Image {
    digest: FileDigest,
    /// `None` once it is synced, and while it is being written.
    file: Option<Arc<dyn DiskFile>>,
}

impl Staged {
    /// Accepts a checked plan: makes the directory, the page lists, the page files at full length, and the link.
    /// On an error nothing is left behind, as far as the disk allows.
    pub(crate) fn begin(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        plan: &RoundPlan,
        bounds: Bounds,
        base: Option<(Arc<Level>, &Path)>,
        means: &Means,
    ) -> Result<Self, SinkError> {
        let (base, link) = base.unzip();
        if let Some(base) = &base {
            for pages in &plan.pages {
                if let Some(vaddr) = base.first_uncovered(pages) {
                    let (round, base_round, owner) = (plan.round, plan.base_round, pages.owner);
                    return Err(SinkError::NotCovered { round, base_round, owner, vaddr });
                }
            }
        }
        disk.make_dir(&dir).map_err(|e| SinkError::io("making directory", disk.shown(&dir), e))?;
        let mut staged = Self {
            disk,
            dir,
            plan: plan.clone(),
            bounds,
            base,
            pages: HashMap::new(),
            images: Mutex::default(),
            gate: RwLock::new(State::Open),
            share: Share::new(&means.pool, bounds.buffers_max),
            workers: means.workers.clone(),
            opened: AtomicU64::new(1),
            queued: Mutex::default(),
            written: Condvar::new(),
        };
        match staged.lay_out(link) {
            Ok(()) => Ok(staged),
            Err(e) => {
                // The first error is the one to tell; a leftover is swept by recovery.
                let _ = remove_flat_dir(&*staged.disk, &staged.dir);
                Err(e)
            }
        }
    }

    fn lay_out(&mut self, link: Option<&Path>) -> Result<(), SinkError> {
        if let Some(target) = link {
            let at = self.dir.join(PARENT_NAME);
            self.disk.symlink(target, &at).map_err(|e| self.io("making link", &at, e))?;
        }
        let plan = std::mem::take(&mut self.plan.pages);
        for pages in &plan {
            let list = pagemap::encode(pages).map_err(|e| self.refused(e.to_string()))?;
            self.write_image(&pages.owner.pagemap_name(), &list)?;
            let path = self.dir.join(pages.pages_name());
            let file = self.disk.create(&path).map_err(|e| self.io("creating", &path, e))?;
            let open =
                PagesFile::new(file, path.clone(), pages).map_err(|e| self.io("extending", &path, e))?;
            self.pages.insert(pages.pages_id, open);
        }
        self.plan.pages = plan;
        Ok(())
    }

    pub(crate) fn plan(&self) -> &RoundPlan {
        &self.plan
    }

    pub(crate) fn base(&self) -> Option<&Arc<Level>> {
        self.base.as_ref()
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Fills slots from memory.
    pub(crate) fn fill(self: &Arc<Self>, fill: &Fill) -> Result<(), SinkError> {
        let (pages_id, first, pages) = (fill.pages_id, fill.first_slot, fill.content.pages());
        let file = self.file(pages_id)?;
        let base = self.base.as_deref();
        let odd = |len: usize| self.refused(format!("{len} bytes for {pages} pages from slot {first}"));
        match &fill.content {
            Content::Data(bytes) if bytes.len() as u64 != pages * PAGE_SIZE => Err(odd(bytes.len())),
            Content::Data(bytes) => {
                let range = file.check_range(first, pages);
                let slots = range.map_err(|e| self.fill_error(file, e))?;
                if self.workers.is_none() && file.is_whole(&slots) {
                    let _writing = self.writing()?;
                    return file.put_all(&slots, bytes).map_err(|e| self.fill_error(file, e));
                }
                let [spare] = self.buffers()?;
                let mut write = |pages: &mut [u8]| {
                    pages.copy_from_slice(bytes);
                    Ok(Vec::new())
                };
                self.put(pages_id, first, pages, Arrival::Written(spare, &mut write))
            }
            Content::Zero { .. } => {
                let spare = self.spare_for_zeros(pages_id, first)?;
                self.put(pages_id, first, pages, Arrival::Zero(spare))
            }
            Content::Same { hashes } => {
                let [spare] = self.buffers()?;
                let mut write =
                    |pages: &mut [u8]| file.read_base(first, hashes, base, pages).map_err(FillError::Io);
                self.put(pages_id, first, pages, Arrival::Written(spare, &mut write))
            }
            Content::Delta { difference, .. } if difference.len() as u64 != pages * PAGE_SIZE => {
                Err(odd(difference.len()))
            }
            Content::Delta { bases, difference } => {
                let [spare] = self.buffers()?;
                let mut write = |pages: &mut [u8]| {
                    let different = file.read_base(first, bases, base, pages).map_err(FillError::Io)?;
                    combine(pages, difference);
                    Ok(different)
                };
                self.put(pages_id, first, pages, Arrival::Written(spare, &mut write))
            }
            Content::Spread { bytes, copies } => self.put_spread(pages_id, first, bytes, copies),
        }
    }

    /// Buffers for one frame, all at once; waits while there are none, which is until what was completed is written, and
    /// spills extents that are not complete where that alone would not help.
    pub(crate) fn buffers<const N: usize>(&self) -> Result<[Buffer; N], SinkError> {
        loop {
            let seen = match self.share.take() {
                Ok(buffers) => return Ok(buffers),
                Err(seen) => seen,
            };
            let is_writing = self.queued().extents > 0;
            if is_writing || !self.spill()? {
                self.share.wait(seen);
            }
        }
    }

    /// The buffer that a zero page may need in this place.
    pub(crate) fn spare_for_zeros(&self, pages_id: u32, first: u64) -> Result<Option<Buffer>, SinkError> {
        let wanted = self.file(pages_id)?.wants_zeros_written(first);
        wanted.then(|| self.buffers().map(|[spare]| spare)).transpose()
    }

    /// The page of the base round for each of these slots of a pages file, as [`PagesFile::read_base`].
    pub(crate) fn read_base(
        &self,
        pages_id: u32,
        first: u64,
        hashes: &[[u8; 16]],
        pages: &mut [u8],
    ) -> Result<Vec<Range<u64>>, FillError> {
        let Some(file) = self.pages.get(&pages_id) else { return Ok(Vec::new()) };
        file.read_base(first, hashes, self.base.as_deref(), pages).map_err(FillError::Io)
    }

    /// Fills slots. An extent that this completes is written here or by a writer.
    pub(crate) fn put(
        self: &Arc<Self>,
        pages_id: u32,
        first: u64,
        pages: u64,
        arrival: Arrival<'_>,
    ) -> Result<(), SinkError> {
        let _writing = self.writing()?;
        let file = self.file(pages_id)?;
        let failed = |e| self.fill_error(file, e);
        let slots = file.check_range(first, pages).map_err(failed)?;
        let since = self.opened.fetch_add(1, Ordering::Relaxed);
        let (whole, different) = file.put(&slots, since, arrival).map_err(failed)?;
        // Somebody may wait for an extent that can be spilled.
        self.share.pool().nudge();
        // What holds no buffer is bounded by none, and would stand in the queue before what others sent.
        let workers = self.workers.as_ref().filter(|_| whole.as_ref().is_some_and(Whole::has_buffer));
        match (whole, workers) {
            (None, _) => {}
            (Some(whole), Some(workers)) => {
                self.queued().extents += 1;
                workers.submit(Job { staged: Arc::clone(self), pages_id, whole });
            }
            (Some(mut whole), None) => {
                if let Err(e) = file.write(&mut whole) {
                    file.undo(whole, &slots);
                    return Err(failed(FillError::Io(e)));
                }
            }
        }
        if different.is_empty() { Ok(()) } else { Err(failed(FillError::WantData(different))) }
    }

    /// What a writer does.
    pub(crate) fn write_queued(&self, pages_id: u32, mut whole: Whole) {
        let is_wanted = {
            let queued = self.queued();
            !queued.dropped && queued.failed.is_none()
        };
        let written = match self.pages.get(&pages_id) {
            Some(file) if is_wanted => file.write(&mut whole).map_err(|e| Failed::new(&file.path, &e)),
            _ => Ok(()),
        };
        drop(whole);
        let mut queued = self.queued();
        queued.extents -= 1;
        queued.failed = queued.failed.take().or(written.err());
        if queued.extents == 0 {
            self.written.notify_all();
        }
        drop(queued);
        self.share.pool().nudge();
    }

    /// Gives up the buffer of the extent that waits longest; `false` if there is none.
    fn spill(&self) -> Result<bool, SinkError> {
        let _writing = self.writing()?;
        let oldest = self
            .pages
            .values()
            .filter_map(|file| Some((file.oldest()?, file)))
            .min_by_key(|(since, _)| *since);
        let Some((since, file)) = oldest else { return Ok(false) };
        file.spill(since).map_err(|e| self.io("filling", &file.path, e))
    }

    /// Waits until all that is queued is written.
    fn wait_written(&self) {
        let mut queued = self.queued();
        while queued.extents > 0 {
            queued = self.written.wait(queued).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn queued(&self) -> MutexGuard<'_, Queued> {
        self.queued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a writer could not do, to whoever comes next.
    fn check_written(&self) -> Result<(), SinkError> {
        match &self.queued().failed {
            None => Ok(()),
            Some(failed) => {
                let (path, error) = failed.error();
                Err(self.io("filling", path, error))
            }
        }
    }

    /// Whether the round has these slots, in one extent.
    pub(super) fn check_slots(&self, pages_id: u32, first: u64, pages: u64) -> Result<(), SinkError> {
        let file = self.file(pages_id)?;
        file.check_range(first, pages).map(drop).map_err(|e| self.fill_error(file, e))
    }

    fn file(&self, pages_id: u32) -> Result<&PagesFile, SinkError> {
        let file = self.pages.get(&pages_id);
        file.ok_or_else(|| self.refused(format!("it lists no pages-{pages_id}.img")))
    }

    /// Opens an extent for a resend.
    pub(crate) fn reopen_extent(&self, pages_id: u32, extent: u64) -> Result<(), SinkError> {
        // Held alone: a frame that came in between could queue the extent's old bytes, whose hash would then stand for
        // the new ones. The writers themselves need no gate.
        let state = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        if *state != State::Open {
            return Err(self.refused("it takes nothing more".into()));
        }
        self.wait_written();
        let file = self.file(pages_id)?;
        file.reopen_extent(extent).map_err(|e| self.fill_error(file, e))
    }

    /// Slots that are not filled: pages file and ranges, at most `count_max` ranges a file.
    pub(crate) fn missing(&self, count_max: usize) -> Vec<MissingSlots> {
        let mut missing: Vec<_> =
            self.pages.values().map(|file| (file.pages_id, file.missing(count_max))).collect();
        missing.retain(|(_, ranges)| !ranges.is_empty());
        missing.sort_by_key(|(pages_id, _)| *pages_id);
        missing
    }

    /// Names of the images that were handed over.
    pub(crate) fn images(&self) -> Vec<String> {
        self.lock_images().files.keys().filter(|name| is_image_of_dump(name)).cloned().collect()
    }

    pub(crate) fn image(&self, name: &str, bytes: &Bytes) -> Result<(), SinkError> {
        let _writing = self.writing()?;
        if !is_image_of_dump(name) {
            return Err(self.refused(format!("{name:?} is no name for an image file")));
        }
        let (len, len_max) = (bytes.len() as u64, self.bounds.image_size_bytes_max);
        if len > len_max {
            return Err(self.refused(format!("{name} of {len} bytes is above the limit of {len_max}")));
        }
        if name != INVENTORY_NAME {
            return self.write_image(name, bytes);
        }
        self.reserve(name, FileDigest::of(name, bytes))?;
        self.lock_images().inventory = Some(bytes.clone());
        Ok(())
    }

    fn reserve(&self, name: &str, digest: FileDigest) -> Result<(), SinkError> {
        let mut images = self.lock_images();
        if images.files.len() >= self.bounds.images_max.saturating_add(self.plan.pages.len()) {
            return Err(self.refused(format!("more than {} image files", self.bounds.images_max)));
        }
        if images.files.contains_key(name) {
            return Err(self.refused(format!("{name} was handed over before")));
        }
        images.files.insert(name.to_owned(), Image { digest, file: None });
        Ok(())
    }

    fn write_image(&self, name: &str, bytes: &[u8]) -> Result<(), SinkError> {
        self.reserve(name, FileDigest::of(name, bytes))?;
        let path = self.dir.join(name);
        let written = self.disk.create(&path).and_then(|file| {
            file.write_at(bytes, 0)?;
            file.start_writeback(0, bytes.len() as u64);
            Ok(file)
        });
        let mut images = self.lock_images();
        match written {
            Ok(file) => {
                // Few descriptors may be at hand, so that no more than these stay open until the seal; the rest is
                // opened again there.
                if images.kept_open < KEPT_OPEN_MAX {
                    images.kept_open += 1;
                    images.files.entry(name.to_owned()).and_modify(|image| image.file = Some(file));
                }
                Ok(())
            }
            Err(e) => {
                images.files.remove(name);
                drop(images);
                // So that the same image can be handed over again.
                let _ = self.disk.remove_file(&path);
                Err(self.io("writing", &path, e))
            }
        }
    }

    /// Checks everything against the manifest, then makes it durable under the staging name. When it returns,
    /// nothing but the final name is missing.
    pub(crate) fn finish(&self, manifest: &Manifest) -> Result<Sealed, SinkError> {
        let mut state = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        if *state != State::Open {
            return Err(self.refused("it cannot be sealed after a failed sync: abandon it".into()));
        }
        // Encoding validates it, so that no name in it occurs twice.
        let bytes = manifest.encode().map_err(|e| self.refused(format!("its manifest: {e}")))?;
        self.wait_written();
        self.check_written()?;
        self.check(manifest)?;
        *state = State::Shut;
        let sealed = self.write_out(&bytes)?;
        *state = State::Sealed;
        Ok(sealed)
    }

    fn check(&self, manifest: &Manifest) -> Result<(), SinkError> {
        let plan = &self.plan;
        let head = (manifest.round, manifest.base_round, manifest.kind);
        if head != (plan.round, plan.base_round, plan.kind) {
            return Err(self.mismatch(MANIFEST_NAME, format!("it is of {head:?}, not of this round")));
        }
        self.check_pages(manifest)?;
        let images = self.lock_images();
        for wanted in &manifest.files {
            let Some(image) = images.files.get(&wanted.name) else {
                return Err(self.incomplete(format!("{} is missing", wanted.name)));
            };
            if image.digest.size != wanted.size {
                let why = format!("{} bytes arrived instead of {}", image.digest.size, wanted.size);
                return Err(self.mismatch(&wanted.name, why));
            }
            if image.digest.blake3 != wanted.blake3 {
                return Err(self.mismatch(&wanted.name, "its hash is another".into()));
            }
        }
        if images.files.len() != manifest.files.len() {
            let named: HashSet<_> = manifest.files.iter().map(|file| &file.name).collect();
            let extra = images.files.keys().find(|name| !named.contains(name));
            let extra = extra.map_or(MANIFEST_NAME, |name| name);
            return Err(self.mismatch(extra, "the manifest does not name it".into()));
        }
        if images.inventory.is_none() {
            return Err(self.incomplete(format!("{INVENTORY_NAME} is missing")));
        }
        let wants_tree = plan.kind == RoundKind::Final;
        let pstree = ImageKind::Pstree.file_name(0);
        if wants_tree && !images.files.contains_key(&pstree) {
            return Err(self.incomplete(format!("{pstree} is missing in a final set")));
        }
        Ok(())
    }

    fn check_pages(&self, manifest: &Manifest) -> Result<(), SinkError> {
        if manifest.pages.len() != self.pages.len() {
            let why = format!("it names {} pages files, the plan {}", manifest.pages.len(), self.pages.len());
            return Err(self.mismatch(MANIFEST_NAME, why));
        }
        for wanted in &manifest.pages {
            let name = ImageKind::Pages.file_name(wanted.pages_id.into());
            let Some(file) = self.pages.get(&wanted.pages_id) else {
                return Err(self.mismatch(&name, "the plan does not list it".into()));
            };
            let Some(hashes) = file.extent_hashes() else {
                let slots = file.missing(4);
                return Err(self.incomplete(format!("slots {slots:?} of {name} are not filled")));
            };
            let len = file.file().size().map_err(|e| self.io("measuring", &file.path, e))?;
            if len != file.len_bytes() || wanted.nr_pages.checked_mul(4096) != Some(len) {
                let why = format!("it is {len} bytes long, not {} pages", wanted.nr_pages);
                return Err(self.mismatch(&name, why));
            }
            let differs = hashes.iter().zip(&wanted.extents).position(|(ours, theirs)| ours != theirs);
            if differs.is_some() || hashes.len() != wanted.extents.len() {
                let extent = differs.unwrap_or(hashes.len().min(wanted.extents.len()));
                return Err(self.mismatch(&name, format!("the hash of extent {extent} is another")));
            }
        }
        Ok(())
    }

    /// Large files first, the inventory when all else is durable.
    fn write_out(&self, manifest: &[u8]) -> Result<Sealed, SinkError> {
        let start = Instant::now();
        let mut stored = manifest.len() as u64;
        for file in self.pages.values() {
            file.file().sync().map_err(|e| self.io("syncing", &file.path, e))?;
            stored += file.len_bytes();
        }
        let inventory = {
            let mut images = self.lock_images();
            stored += images.files.values().map(|image| image.digest.size).sum::<u64>();
            let files = images.files.iter_mut().filter(|(name, _)| *name != INVENTORY_NAME);
            self.sync_all(files.map(|(name, image)| (self.dir.join(name), image.file.take())).collect())?;
            images.inventory.clone().unwrap_or_default()
        };
        self.write_synced(MANIFEST_NAME, manifest)?;
        self.sync_dir()?;
        self.write_synced(INVENTORY_NAME, &inventory)?;
        self.sync_dir()?;
        Ok(Sealed { bytes_stored: stored, fsync_us: start.elapsed().as_micros() as u64 })
    }

    /// Makes written files durable, several at the same time: a tree has thousands of small ones, and a disk's journal takes
    /// many at one stroke.
    fn sync_all(&self, files: Vec<(PathBuf, Option<Arc<dyn DiskFile>>)>) -> Result<(), SinkError> {
        const THREADS_MAX: usize = 16;
        const EACH_AT_LEAST: usize = 32;
        let threads = files.len().div_ceil(EACH_AT_LEAST).clamp(1, THREADS_MAX);
        let next = Mutex::new(files.into_iter());
        let sync_some = || {
            loop {
                let Some((path, file)) = next.lock().unwrap_or_else(PoisonError::into_inner).next() else {
                    return Ok(());
                };
                let file = file.map_or_else(|| self.disk.open(&path), Ok);
                file.and_then(|file| file.sync()).map_err(|e| self.io("syncing", &path, e))?;
            }
        };
        if threads == 1 {
            return sync_some();
        }
        std::thread::scope(|scope| {
            let syncing: Vec<_> = (0..threads).map(|_| scope.spawn(sync_some)).collect();
            syncing.into_iter().try_for_each(|thread| match thread.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }

    fn write_synced(&self, name: &str, bytes: &[u8]) -> Result<(), SinkError> {
        let path = self.dir.join(name);
        let file = self.disk.create(&path).map_err(|e| self.io("creating", &path, e))?;
        file.write_at(bytes, 0).map_err(|e| self.io("writing", &path, e))?;
        file.sync().map_err(|e| self.io("syncing", &path, e))
    }

    fn sync_dir(&self) -> Result<(), SinkError> {
        self.disk.sync_dir(&self.dir).map_err(|e| self.io("syncing directory", &self.dir, e))
    }

    /// Removes the directory; waits for writers and keeps later ones out.
    pub(crate) fn remove(&self) -> Result<(), SinkError> {
        let mut state = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        if *state == State::Sealed {
            return Ok(());
        }
        *state = State::Shut;
        drop(state);
        self.queued().dropped = true;
        self.wait_written();
        self.pages.values().for_each(PagesFile::drop_open);
        self.share.pool().nudge();
        remove_flat_dir(&*self.disk, &self.dir).map_err(|e| self.io("removing", &self.dir, e))
    }

    fn writing(&self) -> Result<RwLockReadGuard<'_, State>, SinkError> {
        let state = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        match *state {
            State::Open => self.check_written().map(|()| state),
            State::Shut | State::Sealed => Err(self.refused("it takes nothing more".into())),
        }
    }

    fn lock_images(&self) -> MutexGuard<'_, Images> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fill_error(&self, file: &PagesFile, error: FillError) -> SinkError {
        match error {
            FillError::Refused(why) => self.refused(why),
            FillError::WantData(slots) => {
                SinkError::WantData { round: self.plan.round, pages_id: file.pages_id, slots }
            }
            FillError::Io(e) => self.io("filling", &file.path, e),
            FillError::Malformed(source) => SinkError::Malformed { round: self.plan.round, source },
        }
    }

    fn io(&self, op: &'static str, path: &Path, source: io::Error) -> SinkError {
        SinkError::io(op, self.disk.shown(path), source)
    }

    pub(super) fn refused(&self, why: String) -> SinkError {
        SinkError::Refused { round: self.plan.round, why }
    }

    fn incomplete(&self, what: String) -> SinkError {
        SinkError::Incomplete { round: self.plan.round, what }
    }

    fn mismatch(&self, file: &str, why: String) -> SinkError {
        SinkError::Mismatch { round: self.plan.round, file: file.to_owned(), why }
    }
}

/// Combines pages with what they differ in, by exclusive or.
pub(crate) fn combine(pages: &mut [u8], difference: &[u8]) {
    pages.iter_mut().zip(difference).for_each(|(byte, difference)| *byte ^= difference);
}

/// Image files whose descriptor stays open until the seal.
const KEPT_OPEN_MAX: usize = 64;
