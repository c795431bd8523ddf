//! A round under its staging name: accepted, filled, checked, written out. What it becomes, a directory of a
//! session or files of a local directory, is its caller's matter.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use bytes::Bytes;
use godwit_wire::image::manifest::{FileDigest, Manifest};
use godwit_wire::image::{ImageKind, pagemap};
use godwit_wire::plan::{RoundKind, RoundPlan};

use super::disk::{Disk, DiskFile, remove_flat_dir};
use super::pages::{FillError, PagesFile};
use super::parent::Level;
use super::rules::{Bounds, is_image_of_dump};
use super::sink::{Fill, Sealed, SinkError};
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
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// A sync failed or the round was handed on: what is on disk is no longer known to be ours to change.
    Shut,
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

    pub(crate) fn fill(&self, fill: &Fill) -> Result<(), SinkError> {
        let _writing = self.writing()?;
        let Some(file) = self.pages.get(&fill.pages_id) else {
            return Err(self.refused(format!("it lists no pages-{}.img", fill.pages_id)));
        };
        file.fill(fill.first_slot, &fill.content, self.base.as_deref()).map_err(|e| self.fill_error(file, e))
    }

    /// Opens an extent for a resend.
    pub(crate) fn reopen_extent(&self, pages_id: u32, extent: u64) -> Result<(), SinkError> {
        let _writing = self.writing()?;
        let Some(file) = self.pages.get(&pages_id) else {
            return Err(self.refused(format!("it lists no pages-{pages_id}.img")));
        };
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
        if *state == State::Shut {
            return Err(self.refused("it cannot be sealed after a failed sync: abandon it".into()));
        }
        // Encoding validates it, so that no name in it occurs twice.
        let bytes = manifest.encode().map_err(|e| self.refused(format!("its manifest: {e}")))?;
        self.check(manifest)?;
        *state = State::Shut;
        self.write_out(&bytes)
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
            for (name, image) in &mut images.files {
                stored += image.digest.size;
                if name == INVENTORY_NAME {
                    continue;
                }
                let path = self.dir.join(name);
                let file = image.file.take().map_or_else(|| self.disk.open(&path), Ok);
                file.and_then(|file| file.sync()).map_err(|e| self.io("syncing", &path, e))?;
            }
            images.inventory.clone().unwrap_or_default()
        };
        self.write_synced(MANIFEST_NAME, manifest)?;
        self.sync_dir()?;
        self.write_synced(INVENTORY_NAME, &inventory)?;
        self.sync_dir()?;
        Ok(Sealed { bytes_stored: stored, fsync_us: start.elapsed().as_micros() as u64 })
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
        *self.gate.write().unwrap_or_else(PoisonError::into_inner) = State::Shut;
        remove_flat_dir(&*self.disk, &self.dir).map_err(|e| self.io("removing", &self.dir, e))
    }

    fn writing(&self) -> Result<std::sync::RwLockReadGuard<'_, State>, SinkError> {
        let state = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        match *state {
            State::Open => Ok(state),
            State::Shut => Err(self.refused("it takes nothing more".into())),
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
        }
    }

    fn io(&self, op: &'static str, path: &Path, source: io::Error) -> SinkError {
        SinkError::io(op, self.disk.shown(path), source)
    }

    fn refused(&self, why: String) -> SinkError {
        SinkError::Refused { round: self.plan.round, why }
    }

    fn incomplete(&self, what: String) -> SinkError {
        SinkError::Incomplete { round: self.plan.round, what }
    }

    fn mismatch(&self, file: &str, why: String) -> SinkError {
        SinkError::Mismatch { round: self.plan.round, file: file.to_owned(), why }
    }
}

/// Image files whose descriptor stays open until the seal.
const KEPT_OPEN_MAX: usize = 64;
