//! A dump straight into a directory of the user's, as CRIU's `--images-dir` does.
//!
//! Everything is staged in `DIR/.staging-NNNN` and checked there; then the files are renamed into DIR one by
//! one, the manifest behind the other files and the inventory last. DIR is whole when it holds an inventory. What a
//! killed dump leaves is recognised by its manifest and cleared away by the next dump into the same DIR.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use godwit_wire::fault;
use godwit_wire::image::ImageKind;
use godwit_wire::image::manifest::Manifest;
use godwit_wire::plan::RoundPlan;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::disk::real::RealDisk;
use super::disk::{Disk, EntryKind, read_all, remove_flat_dir};
use super::parent::Level;
use super::pool::Pool;
use super::rules::{Bounds, check_plan};
use super::sink::{Fill, Sealed, Sink, SinkError};
use super::staging::{Means, Staged};
use super::{INVENTORY_NAME, MANIFEST_LEN_MAX, MANIFEST_NAME, PARENT_NAME, STAGING_PREFIX, StoreError};

/// Directories that a chain of `parent` links may have; more is taken for a loop.
pub(crate) const CHAIN_LEN_MAX: usize = 4096;

/// How a dump into a local directory is done.
#[derive(Clone, Debug, Default)]
pub struct LocalOptions {
    /// Directory of the round that this one builds on, relative to the images directory, as CRIU's
    /// `--prev-images-dir`.
    pub prev_images_dir: Option<PathBuf>,
    /// Bounds on the round.
    pub bounds: Bounds,
}

/// An images directory of the user's; takes one round or one final set.
pub struct LocalDir {
    disk: Arc<dyn Disk>,
    bounds: Bounds,
    means: Means,
    base: Option<(Arc<Level>, PathBuf)>,
    state: Mutex<State>,
    /// Keeps a second dump out of the directory.
    _lock: Option<Flock<File>>,
}

#[derive(Default)]
struct State {
    staged: Option<Arc<Staged>>,
    spent: bool,
}

impl LocalDir {
    /// Opens an images directory (made, mode 0700, if it is missing) and clears away what a killed dump left
    /// in it.
    ///
    /// # Errors
    /// [`StoreError::Finished`] if it holds an inventory already; [`StoreError::Foreign`] if it holds other images
    /// or a parent link; [`StoreError::Locked`] while another dump writes there; [`StoreError::Io`], also for a
    /// previous directory that cannot be read or is not relative.
    pub fn create(dir: &Path, options: LocalOptions) -> Result<Self, StoreError> {
        let io = |op, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Io { op, path, source }
        };
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(io("making directory", dir))?;
        let file = File::open(dir).map_err(io("opening directory", dir))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => StoreError::Locked { path: dir.to_owned() },
            errno => io("locking directory", dir)(errno.into()),
        })?;
        let base = match options.prev_images_dir {
            None => None,
            Some(prev) => {
                let loaded = load_chain(dir, &prev);
                Some((loaded.map_err(io("reading the previous directory", &dir.join(&prev)))?, prev))
            }
        };
        let disk = RealDisk::open(dir).map_err(io("opening directory", dir))?;
        Self::new(Arc::new(disk), options.bounds, base, Some(lock))
    }

    /// An images directory that is the root of any disk, which nobody else may use meanwhile; without a base.
    ///
    /// # Errors
    /// As [`LocalDir::create`].
    pub fn on_disk(disk: Arc<dyn Disk>, bounds: Bounds) -> Result<Self, StoreError> {
        Self::new(disk, bounds, None, None)
    }

    fn new(
        disk: Arc<dyn Disk>,
        bounds: Bounds,
        base: Option<(Arc<Level>, PathBuf)>,
        lock: Option<Flock<File>>,
    ) -> Result<Self, StoreError> {
        let root = Path::new("");
        let io = |op, source| StoreError::Io { op, path: disk.shown(root), source };
        if disk.open(Path::new(INVENTORY_NAME)).is_ok() {
            return Err(StoreError::Finished { path: disk.shown(root) });
        }
        sweep(&*disk).map_err(|e| io("clearing", e))?;
        let entries = disk.list(root).map_err(|e| io("reading directory", e))?;
        let image = |name: &str| name == PARENT_NAME || name.ends_with(".img");
        if let Some(entry) = entries.into_iter().find(|entry| image(&entry.name)) {
            return Err(StoreError::Foreign { path: disk.shown(root), name: entry.name });
        }
        // The readers of a dump write themselves: they are as many as there are cores.
        let means = Means { pool: Pool::new(bounds.buffers_shared_max), workers: None };
        Ok(Self { disk, bounds, means, base, state: Mutex::default(), _lock: lock })
    }

    /// The images directory.
    pub fn dir(&self) -> PathBuf {
        self.disk.shown(Path::new(""))
    }

    /// Whether there is a previous directory that lists pages, which a round may build on.
    pub fn has_base(&self) -> bool {
        self.base.is_some()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn staged(&self, round: u32) -> Result<Arc<Staged>, SinkError> {
        let staged = self.state().staged.clone().filter(|staged| staged.plan().round == round);
        staged.ok_or_else(|| SinkError::Refused { round, why: "it is not open".into() })
    }

    fn publish(&self, staged: &Staged) -> Result<(), SinkError> {
        let (disk, root) = (&self.disk, Path::new(""));
        let io = |op, path: &Path, e| SinkError::io(op, disk.shown(path), e);
        let rename = |name: &str| {
            disk.rename(&staged.dir().join(name), Path::new(name))
                .map_err(|e| io("renaming to", Path::new(name), e))
        };
        let sync = || disk.sync_dir(root).map_err(|e| io("syncing directory", root, e));
        let point = |name| fault::point(name).map_err(|e| io(name, root, e.into()));
        // Before the first file moves, the staging directory and with it the manifest must be there to stay.
        sync()?;
        let entries = disk.list(staged.dir()).map_err(|e| io("reading directory", staged.dir(), e))?;
        for entry in entries {
            if entry.name != INVENTORY_NAME && entry.name != MANIFEST_NAME {
                rename(&entry.name)?;
                point("mid.store.renamed")?;
            }
        }
        // A crash before this point leaves the manifest in the staging directory, behind it in DIR: either way
        // the sweep knows which files of DIR are ours.
        rename(MANIFEST_NAME)?;
        sync()?;
        point("mid.store.manifest")?;
        rename(INVENTORY_NAME)?;
        sync()?;
        // The images are whole and durable; an empty directory that stays is no reason to fail.
        if let Err(e) = disk.remove_dir(staged.dir()) {
            tracing::warn!("{} is left behind: {e}", disk.shown(staged.dir()).display());
        }
        Ok(())
    }
}

impl Sink for LocalDir {
    fn begin(&self, plan: &RoundPlan) -> Result<(), SinkError> {
        let round = plan.round;
        let refused = |why: &str| Err(SinkError::Refused { round, why: why.to_owned() });
        check_plan(plan, &self.bounds)?;
        let mut state = self.state();
        if state.spent {
            return refused("this directory takes one round only");
        }
        let base = match (plan.base_round, &self.base) {
            (None, _) => None,
            (Some(_), Some((level, link))) => Some((level.clone(), link.as_path())),
            (Some(_), None) => return refused("there is no previous directory to build on"),
        };
        let dir = PathBuf::from(format!("{STAGING_PREFIX}{round:04}"));
        let staged = Staged::begin(self.disk.clone(), dir, plan, self.bounds, base, &self.means)?;
        *state = State { staged: Some(Arc::new(staged)), spent: true };
        Ok(())
    }

    fn fill(&self, fill: Fill) -> Result<(), SinkError> {
        self.staged(fill.round)?.fill(&fill)
    }

    fn image(&self, round: u32, name: &str, bytes: Bytes) -> Result<(), SinkError> {
        self.staged(round)?.image(name, &bytes)
    }

    fn seal(&self, round: u32, manifest: &Manifest) -> Result<Sealed, SinkError> {
        let staged = self.staged(round)?;
        let mut sealed = staged.finish(manifest)?;
        fault::point("mid.store.staged")
            .map_err(|e| SinkError::io("sealing", staged.dir().to_owned(), e.into()))?;
        let start = Instant::now();
        self.publish(&staged)?;
        sealed.fsync_us += start.elapsed().as_micros() as u64;
        self.state().staged = None;
        Ok(sealed)
    }

    fn abandon(&self, round: u32) -> Result<(), SinkError> {
        let mut state = self.state();
        if state.staged.as_ref().is_none_or(|staged| staged.plan().round != round) {
            return Ok(());
        }
        let Some(staged) = state.staged.take() else { return Ok(()) };
        // A seal that failed half way may have moved files into the directory already; they go first, while the
        // manifest still names them.
        let root = Path::new("");
        if self.disk.open(Path::new(INVENTORY_NAME)).is_err() {
            sweep(&*self.disk).map_err(|e| SinkError::io("clearing", self.disk.shown(root), e))?;
        }
        staged.remove()?;
        state.spent = false;
        Ok(())
    }
}

impl Drop for LocalDir {
    fn drop(&mut self) {
        let round = self.state().staged.as_ref().map(|staged| staged.plan().round);
        if let Some(Err(e)) = round.map(|round| self.abandon(round)) {
            tracing::warn!("an unsealed dump is left in {}: {e}", self.dir().display());
        }
    }
}

/// Removes what a killed dump left in a directory that holds no inventory: its staging directories, and the files
/// that a manifest shows to be already renamed.
fn sweep(disk: &dyn Disk) -> io::Result<()> {
    let root = Path::new("");
    let entries = disk.list(root)?;
    let staging: Vec<_> = entries
        .iter()
        .filter(|entry| entry.kind == EntryKind::Dir && entry.name.starts_with(STAGING_PREFIX))
        .map(|entry| PathBuf::from(&entry.name))
        .collect();
    let manifests = staging.iter().map(PathBuf::as_path).chain([root]).map(|dir| dir.join(MANIFEST_NAME));
    for path in manifests {
        let Ok(bytes) = read_all(disk, &path, MANIFEST_LEN_MAX) else { continue };
        let Ok(manifest) = Manifest::decode(&bytes) else { continue };
        let pages = manifest.pages.iter().map(|pages| ImageKind::Pages.file_name(pages.pages_id.into()));
        let files = manifest.files.iter().map(|file| file.name.clone());
        for name in pages.chain(files).chain([PARENT_NAME.to_owned()]) {
            if entries.iter().any(|entry| entry.name == name && entry.kind != EntryKind::Dir) {
                remove_if_there(disk, Path::new(&name))?;
            }
        }
        // The names are gone for good before the list of them goes.
        disk.sync_dir(root)?;
        remove_if_there(disk, &path)?;
    }
    staging.iter().try_for_each(|dir| remove_flat_dir(disk, dir))
}

fn remove_if_there(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Reads the directory that `prev` names from `dir`, and all that its `parent` links lead to.
fn load_chain(dir: &Path, prev: &Path) -> io::Result<Arc<Level>> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    if prev.is_absolute() {
        return Err(invalid(
            "it must be given relative to the images directory, so that both can be moved".into(),
        ));
    }
    let mut dirs = vec![dir.join(prev)];
    while let Some(link) = read_link(&dirs[dirs.len() - 1].join(PARENT_NAME))? {
        if dirs.len() == CHAIN_LEN_MAX {
            return Err(invalid(format!(
                "its chain of parent links has more than {CHAIN_LEN_MAX} directories"
            )));
        }
        dirs.push(behind_link(&dirs[dirs.len() - 1], &link)?);
    }
    let mut level: Option<Arc<Level>> = None;
    for dir in dirs.iter().rev() {
        let disk = RealDisk::open(dir)?;
        level = Some(Arc::new(Level::load(Arc::new(disk), PathBuf::new(), level)?));
    }
    level.ok_or_else(|| invalid("it names no directory".into()))
}

/// The directory that a `parent` link in `dir` leads to. Without resolving, the names of a long chain would add up
/// to a path that no system call takes.
pub(crate) fn behind_link(dir: &Path, link: &Path) -> io::Result<PathBuf> {
    std::fs::canonicalize(dir.join(link))
}

fn read_link(path: &Path) -> io::Result<Option<PathBuf>> {
    match std::fs::read_link(path) {
        Ok(target) => Ok(Some(target)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
