//! The server's layout: `D/<session>/round-0001 … round-NNNN/` and `D/<session>/final/`.

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use godwit_wire::image::manifest::Manifest;
use godwit_wire::plan::{RoundKind, RoundPlan};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::disk::real::RealDisk;
use super::disk::{Disk, EntryKind};
use super::parent::Level;
use super::pool::Pool;
use super::recover::{Recovered, recover};
use super::rules::{Bounds, check_plan, is_safe_session_name};
use super::sink::{Fill, Sealed, Sink, SinkError};
use super::staging::{Means, MissingSlots, Staged};
use super::workers::Workers;
use super::{FINAL_NAME, PARENT_NAME, STAGING_PREFIX, StoreError, round_name, round_number};

/// Name of the file below `D` that a living server keeps locked.
const LOCK_NAME: &str = ".lock";

/// A directory `D` of sessions, under this program's lock.
pub struct Store {
    inner: Arc<Inner>,
    recovered: Recovered,
}

struct Inner {
    disk: Arc<dyn Disk>,
    bounds: Bounds,
    means: Means,
    open: Mutex<HashSet<String>>,
    /// Held for as long as the store lives; a disk of a test has none.
    _lock: Option<Flock<File>>,
}

impl Store {
    /// Opens a directory of sessions (made, mode 0700, if it is missing), takes its lock, and clears away what a
    /// killed server left half done.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if a living server holds it, [`StoreError::Io`].
    pub fn open(dir: &Path, bounds: Bounds) -> Result<Self, StoreError> {
        let io = |op, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Io { op, path, source }
        };
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(io("making directory", dir))?;
        let path = dir.join(LOCK_NAME);
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW);
        let file = options.open(&path).map_err(io("opening", &path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => StoreError::Locked { path: dir.to_owned() },
            errno => io("locking", &path)(errno.into()),
        })?;
        let disk = RealDisk::open(dir).map_err(io("opening directory", dir))?;
        Self::new(Arc::new(disk), bounds, Some(lock))
    }

    /// A store on any disk, which nobody else may use meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn on_disk(disk: Arc<dyn Disk>, bounds: Bounds) -> Result<Self, StoreError> {
        Self::new(disk, bounds, None)
    }

    fn new(disk: Arc<dyn Disk>, bounds: Bounds, lock: Option<Flock<File>>) -> Result<Self, StoreError> {
        let recovered = recover(&*disk)?;
        let (pool, workers) = (Pool::new(bounds.buffers_shared_max), Workers::start(bounds.writers));
        let means = Means { pool, workers };
        let inner = Inner { disk, bounds, means, open: Mutex::default(), _lock: lock };
        Ok(Self { inner: Arc::new(inner), recovered })
    }

    /// What was found when the store was opened.
    pub fn recovered(&self) -> &Recovered {
        &self.recovered
    }

    /// Opens a session; its directory is made if it is missing. A session that holds sealed rounds goes on from
    /// them.
    ///
    /// # Errors
    /// [`StoreError::Name`]; [`StoreError::InUse`] if the session is open already;
    /// [`StoreError::Finished`] if it holds a final set; [`StoreError::Io`].
    pub fn session(&self, name: &str) -> Result<SessionStore, StoreError> {
        if !is_safe_session_name(name) {
            return Err(StoreError::Name { name: name.chars().take(200).collect() });
        }
        let inner = self.inner.clone();
        if !lock(&inner.open).insert(name.to_owned()) {
            return Err(StoreError::InUse { name: name.to_owned() });
        }
        // From here on the value's drop takes the name back.
        let session = SessionStore { inner, name: name.to_owned(), state: Mutex::default() };
        session.attach()?;
        Ok(session)
    }

    /// Names of all session directories, sorted.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn sessions(&self) -> Result<Vec<String>, StoreError> {
        let root = Path::new("");
        let entries = self.inner.disk.list(root);
        let entries = entries.map_err(|e| self.inner.io("reading directory", root, e))?;
        let named = entries.into_iter().filter(|e| e.kind == EntryKind::Dir && is_safe_session_name(&e.name));
        Ok(named.map(|entry| entry.name).collect())
    }

    /// Directory of a session's final set, whether it is there or not.
    pub fn final_dir(&self, session: &str) -> PathBuf {
        self.inner.disk.shown(&Path::new(session).join(FINAL_NAME))
    }
}

/// One session's directory; its rounds are staged beside their final names. Dropping it removes what was not
/// sealed.
pub struct SessionStore {
    inner: Arc<Inner>,
    name: String,
    state: Mutex<State>,
}

/// An open round, for those who fill it.
pub(crate) type OpenRound = Arc<Staged>;

#[derive(Default)]
struct State {
    open: BTreeMap<u32, Arc<Staged>>,
    /// Sealed rounds; the level is read when a round first builds on it.
    sealed: BTreeMap<u32, Option<Arc<Level>>>,
    /// No round up to this number is accepted any more.
    last_used: u32,
    finished: bool,
}

impl SessionStore {
    fn attach(&self) -> Result<(), StoreError> {
        let (disk, dir) = (&self.inner.disk, Path::new(&self.name));
        match disk.make_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(|e| self.inner.io("making directory", dir, e))?,
        }
        disk.sync_dir(Path::new("")).map_err(|e| self.inner.io("syncing directory", Path::new(""), e))?;
        let entries = disk.list(dir).map_err(|e| self.inner.io("reading directory", dir, e))?;
        let mut state = self.state();
        for entry in entries.iter().filter(|entry| entry.kind == EntryKind::Dir) {
            if entry.name == FINAL_NAME {
                return Err(StoreError::Finished { path: disk.shown(&dir.join(FINAL_NAME)) });
            }
            if let Some(round) = round_number(&entry.name) {
                state.sealed.insert(round, None);
                state.last_used = state.last_used.max(round);
            }
        }
        Ok(())
    }

    /// The session's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The session's directory.
    pub fn dir(&self) -> PathBuf {
        self.inner.disk.shown(Path::new(&self.name))
    }

    /// Directory of the final set, whether it is there or not.
    pub fn final_dir(&self) -> PathBuf {
        self.inner.disk.shown(&Path::new(&self.name).join(FINAL_NAME))
    }

    /// Numbers of the sealed rounds that a round may build on, in order.
    pub fn sealed_rounds(&self) -> Vec<u32> {
        self.state().sealed.keys().copied().collect()
    }

    /// Whether the final set is sealed.
    pub fn is_finished(&self) -> bool {
        self.state().finished
    }

    /// Slots of an open round that are not filled, by pages file, at most `count_max` ranges each.
    ///
    /// # Errors
    /// [`SinkError::Refused`] if the round is not open.
    pub fn missing(&self, round: u32, count_max: usize) -> Result<Vec<MissingSlots>, SinkError> {
        Ok(self.staged(round)?.missing(count_max))
    }

    /// Names of the images of an open round that arrived.
    ///
    /// # Errors
    /// [`SinkError::Refused`] if the round is not open.
    pub fn images(&self, round: u32) -> Result<Vec<String>, SinkError> {
        Ok(self.staged(round)?.images())
    }

    /// Opens an extent of an open round for a resend: all its slots are to be filled again.
    ///
    /// # Errors
    /// [`SinkError::Refused`] if there is no such extent, or while it is being filled.
    pub fn reopen_extent(&self, round: u32, pages_id: u32, extent: u64) -> Result<(), SinkError> {
        self.staged(round)?.reopen_extent(pages_id, extent)
    }

    /// An open round, to put frames into.
    ///
    /// # Errors
    /// [`SinkError::Refused`] if the round is not open.
    pub(crate) fn round(&self, round: u32) -> Result<OpenRound, SinkError> {
        self.staged(round)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn staged(&self, round: u32) -> Result<Arc<Staged>, SinkError> {
        let open = self.state().open.get(&round).cloned();
        open.ok_or_else(|| SinkError::Refused { round, why: "it is not open".into() })
    }

    fn final_name(&self, plan: &RoundPlan) -> PathBuf {
        Path::new(&self.name).join(match plan.kind {
            RoundKind::Round => round_name(plan.round),
            RoundKind::Final => FINAL_NAME.to_owned(),
        })
    }

    /// The level of a sealed round, with the chain below it.
    fn level(&self, state: &mut State, round: u32) -> Result<Option<Arc<Level>>, SinkError> {
        // Walk down to a level that is in memory, then read upwards.
        let mut pending = Vec::new();
        let mut next = Some(round);
        let mut parent = None;
        while let Some(number) = next {
            match state.sealed.get(&number) {
                None if pending.is_empty() => return Ok(None),
                None => return Err(self.broken(number, "a round that another builds on is missing")),
                Some(Some(level)) => {
                    parent = Some(level.clone());
                    break;
                }
                Some(None) => {
                    pending.push(number);
                    next = self.parent_of(number)?;
                }
            }
        }
        for number in pending.into_iter().rev() {
            let dir = Path::new(&self.name).join(round_name(number));
            let level = Level::load(self.inner.disk.clone(), dir.clone(), parent);
            let level = Arc::new(level.map_err(|e| self.io("reading page lists of", &dir, e))?);
            state.sealed.insert(number, Some(level.clone()));
            parent = Some(level);
        }
        Ok(parent)
    }

    fn parent_of(&self, round: u32) -> Result<Option<u32>, SinkError> {
        let link = Path::new(&self.name).join(round_name(round)).join(PARENT_NAME);
        let target = match self.inner.disk.read_link(&link) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| self.io("reading link", &link, e))?,
        };
        let name = target.to_str().and_then(|target| target.strip_prefix("../"));
        match name.and_then(round_number).filter(|parent| *parent < round) {
            Some(parent) => Ok(Some(parent)),
            None => Err(self.broken(round, "its parent link does not name an earlier round")),
        }
    }

    fn broken(&self, round: u32, why: &str) -> SinkError {
        let path = Path::new(&self.name).join(round_name(round));
        self.io("reading", &path, io::Error::new(io::ErrorKind::InvalidData, why))
    }

    fn io(&self, op: &'static str, path: &Path, source: io::Error) -> SinkError {
        SinkError::io(op, self.inner.disk.shown(path), source)
    }
}

impl Sink for SessionStore {
    fn begin(&self, plan: &RoundPlan) -> Result<(), SinkError> {
        let round = plan.round;
        let refused = |why: String| Err(SinkError::Refused { round, why });
        check_plan(plan, &self.inner.bounds)?;
        let mut state = self.state();
        if state.finished {
            return refused("the final set is sealed: this session takes no more rounds".into());
        }
        if round <= state.last_used {
            return refused(format!("rounds up to {} were used before", state.last_used));
        }
        if state.open.len() >= self.inner.bounds.open_rounds_max {
            return refused(format!("{} rounds are open already: seal or abandon one", state.open.len()));
        }
        let base = match plan.base_round {
            None => None,
            Some(base) => match self.level(&mut state, base)? {
                Some(level) => Some((level, Path::new("..").join(round_name(base)))),
                None => return refused(format!("base round {base} is not sealed")),
            },
        };
        // A number is spent even if what follows fails.
        state.last_used = round;
        let dir = Path::new(&self.name).join(format!("{STAGING_PREFIX}{}", round_name(round)));
        let base = base.as_ref().map(|(level, link)| (level.clone(), link.as_path()));
        let staged =
            Staged::begin(self.inner.disk.clone(), dir, plan, self.inner.bounds, base, &self.inner.means)?;
        state.open.insert(round, Arc::new(staged));
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
        if manifest.session != self.name {
            let why = format!("it is of session {:?}", manifest.session);
            return Err(SinkError::Mismatch { round, file: super::MANIFEST_NAME.into(), why });
        }
        let mut sealed = staged.finish(manifest)?;
        let start = std::time::Instant::now();
        let (disk, target, session) =
            (&self.inner.disk, self.final_name(staged.plan()), Path::new(&self.name));
        disk.rename(staged.dir(), &target).map_err(|e| self.io("renaming to", &target, e))?;
        disk.sync_dir(session).map_err(|e| self.io("syncing directory", session, e))?;
        sealed.fsync_us += start.elapsed().as_micros() as u64;
        let mut state = self.state();
        state.open.remove(&round);
        match staged.plan().kind {
            RoundKind::Final => state.finished = true,
            RoundKind::Round => {
                let level = Level::of_plan(disk.clone(), target, staged.plan(), staged.base().cloned());
                state.sealed.insert(round, Some(Arc::new(level)));
            }
        }
        Ok(sealed)
    }

    fn abandon(&self, round: u32) -> Result<(), SinkError> {
        let staged = self.state().open.remove(&round);
        staged.map_or(Ok(()), |staged| staged.remove())
    }
}

impl Drop for SessionStore {
    fn drop(&mut self) {
        let open = std::mem::take(&mut self.state().open);
        for (round, staged) in open {
            if let Err(e) = staged.remove() {
                tracing::warn!(session = self.name, round, "an unsealed round is left behind: {e}");
            }
        }
        lock(&self.inner.open).remove(&self.name);
    }
}

impl Inner {
    fn io(&self, op: &'static str, path: &Path, source: io::Error) -> StoreError {
        StoreError::Io { op, path: self.disk.shown(path), source }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
