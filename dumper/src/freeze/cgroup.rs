//! The cgroup v2 that a tree has of its own, frozen while its processes are stopped one by one.
//!
//! A process that is not stopped yet may fork; in a frozen cgroup none does, so the tree is listed once and all of it is
//! asked to stop. Then the cgroup is thawed: a thread that PTRACE_INTERRUPT asked to stop goes from the one to
//! the other without an instruction of its program (kernel/signal.c, get_signal), and calls that are lent to a
//! thread end only in a cgroup that is not frozen. So the cgroup is frozen for some milliseconds, and what holds the
//! tree afterwards is ptrace, as without it.
//!
//! A dumper that is killed meanwhile leaves a frozen cgroup. Before it freezes one, it locks and marks it (flock, an
//! extended attribute of the directory); the lock dies with it, the mark stays. So a mark without a lock is a
//! leftover, which the next run thaws, or `godwit doctor --sweep`; and a frozen cgroup without a mark is somebody
//! else's, and is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use godwit_wire::fault;
use nix::dir::Dir;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use nix::unistd::Pid;

use super::error::FreezeError;
use crate::error::DumpError;
use crate::handover::chain;
use crate::procfs::{ProcfsError, cgroup as membership, stat, tree};
use crate::sys::{mount, xattr};

/// The mark of a cgroup that a dumper freezes.
const MARK: &CStr = c"user.godwit.freezing";
/// How long a cgroup that nobody asked us to freeze may take; a busy task took 8 ms.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);
/// Pause between two looks at what the kernel is doing.
const POLL_INTERVAL: Duration = Duration::from_micros(100);
/// How deep a process may stand below the root of its tree.
const DEPTH_MAX: usize = 4096;

/// A cgroup that is frozen before the processes of a tree are stopped.
#[derive(Debug)]
pub struct OwnCgroup {
    dir: OwnedFd,
    /// As it is called in messages.
    name: String,
    root: Pid,
    /// Whether the user named it: then it must be frozen, and others may be in it.
    is_named: bool,
}

impl OwnCgroup {
    /// The one that the user named, or that the tree has of its own.
    ///
    /// # Errors
    /// When the named one is none, or not one for this tree.
    pub fn choose(named: Option<&Path>, root: Pid, path: &str) -> Result<Option<OwnCgroup>, DumpError> {
        match named {
            Some(named) => OwnCgroup::named(named, root)
                .map(Some)
                .map_err(|why| DumpError::Usage(format!("--freeze-cgroup: {why}"))),
            None => Ok(OwnCgroup::find(root, path)),
        }
    }

    /// The cgroup that holds the tree below `root` and nobody else, if there is such a one and it can be frozen. `path` is
    /// the one that all of the tree are in, as `/proc/PID/cgroup` shows it.
    fn find(root: Pid, path: &str) -> Option<OwnCgroup> {
        let below_root = path.trim_start_matches('/');
        if below_root.is_empty() || below_root.split('/').any(|name| name == "..") {
            return None;
        }
        let hierarchy = mount::cgroup2().ok()?;
        let dir = open_dir(hierarchy.as_fd(), below_root).ok()?;
        let own = OwnCgroup { dir, name: path.to_owned(), root, is_named: false };
        (own.can_be_frozen() && own.is_alone()).then_some(own)
    }

    /// The cgroup that the user named; an error says in words what is wrong with it.
    fn named(path: &Path, root: Pid) -> Result<OwnCgroup, String> {
        let name = path.display().to_string();
        let dir = File::open(path).map(OwnedFd::from).map_err(|error| format!("{name}: {error}"))?;
        if !fstatfs(&dir).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC) {
            return Err(format!("{name} is no directory of a cgroup v2 hierarchy"));
        }
        let own = OwnCgroup { dir, name: name.clone(), root, is_named: true };
        if !own.can_be_frozen() {
            return Err(format!(
                "{name} has no cgroup.freeze that may be written: is it the root, or mounted read-only?"
            ));
        }
        let members = own.all_members().map_err(|error| format!("{name}: {error}"))?;
        if members.contains(&Pid::this()) {
            return Err(format!("godwit itself is in {name}: start it from elsewhere"));
        }
        if !members.contains(&root) {
            return Err(format!("process {root} is not in {name}"));
        }
        Ok(own)
    }

    fn can_be_frozen(&self) -> bool {
        self.open("cgroup.freeze", OFlag::O_WRONLY).is_ok()
    }

    /// Whether nobody is in it, or below it, who is not of the tree.
    fn is_alone(&self) -> bool {
        let Ok(members) = members(self.dir.as_fd()) else { return false };
        let mut known = BTreeMap::from([(self.root, true)]);
        members.iter().all(|pid| descends(*pid, &mut known)) && self.is_empty_below()
    }

    fn is_empty_below(&self) -> bool {
        let Ok(children) = directories(self.dir.as_fd()) else { return false };
        children.iter().all(|child| {
            let events = open_dir(self.dir.as_fd(), child).and_then(|dir| read(dir.as_fd(), "cgroup.events"));
            events.is_ok_and(|events| events.lines().any(|line| line == "populated 0"))
        })
    }

    /// Freezes it, until the value is dropped. `None` where it is in use or does not come to rest in time, and nobody asked
    /// for it.
    ///
    /// # Errors
    /// Where the user named it, when it cannot be frozen.
    pub fn freeze(&self, limit: Duration) -> Result<Option<Still<'_>>, FreezeError> {
        match self.freeze_within(if self.is_named { limit } else { limit.min(SETTLE_LIMIT) }) {
            Ok(still) => Ok(Some(still)),
            Err(error) if self.is_named || matches!(error, FreezeError::Injected(_)) => Err(error),
            Err(error) => {
                tracing::warn!("{}: its processes are stopped one by one", chain(&error));
                Ok(None)
            }
        }
    }

    fn freeze_within(&self, limit: Duration) -> Result<Still<'_>, FreezeError> {
        let lock = lock(self.dir.as_fd())
            .map_err(|source| self.failed("locking it (another godwit may be freezing it)", source))?;
        let inside = self.all_members().map_err(|source| self.failed("listing it", source))?;
        if inside.contains(&Pid::this()) {
            let source = io::Error::other("godwit itself has come into it");
            return Err(self.failed("freezing it", source));
        }
        if is_asked_to_freeze(self.dir.as_fd())
            .map_err(|source| self.failed("reading cgroup.freeze", source))?
        {
            return Err(FreezeError::FrozenCgroup { cgroup: self.name.clone() });
        }
        xattr::mark(lock.as_fd(), MARK).map_err(|errno| self.failed("marking it", errno.into()))?;
        let still = Still { own: self, lock: Some(lock) };
        fault::point("mid.cgroup.marked")?;
        self.write("1")?;
        fault::point("mid.cgroup.freezing")?;
        let begun = Instant::now();
        while !has_line(self.dir.as_fd(), "frozen 1")
            .map_err(|source| self.failed("reading cgroup.events", source))?
        {
            if begun.elapsed() > limit {
                return Err(FreezeError::SlowCgroup {
                    cgroup: self.name.clone(),
                    waited: limit,
                    who: self.who_runs(),
                });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        fault::point("mid.cgroup.frozen")?;
        tracing::info!(cgroup = self.name, settled = ?begun.elapsed(), "frozen while the processes are stopped");
        Ok(still)
    }

    /// Threads that the freezer waits for, in words.
    fn who_runs(&self) -> String {
        let mut told = Vec::new();
        for pid in self.all_members().unwrap_or_default() {
            for tid in tree::threads(pid).unwrap_or_default() {
                if let Ok(stat) = stat::read_thread(pid, tid)
                    && matches!(stat.state, b'D' | b'R')
                {
                    let at = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/wchan"));
                    let at = at.ok().filter(|name| name != "0").unwrap_or_else(|| "?".to_owned());
                    told.push(format!(
                        "thread {tid} is in state {}, in kernel function {at}",
                        char::from(stat.state)
                    ));
                }
            }
        }
        told.truncate(3);
        told.join("; ")
    }

    fn all_members(&self) -> io::Result<BTreeSet<Pid>> {
        members_below(self.dir.as_fd())
    }

    fn open(&self, file: &str, flags: OFlag) -> io::Result<File> {
        open(self.dir.as_fd(), file, flags)
    }

    fn write(&self, text: &str) -> Result<(), FreezeError> {
        self.open("cgroup.freeze", OFlag::O_WRONLY)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|source| self.failed("writing cgroup.freeze", source))
    }

    fn failed(&self, what: &'static str, source: io::Error) -> FreezeError {
        FreezeError::Cgroup { cgroup: self.name.clone(), what, source }
    }
}

/// A frozen cgroup. Dropping it thaws it, as [`Still::thaw`] does.
#[derive(Debug)]
pub struct Still<'a> {
    own: &'a OwnCgroup,
    /// Until it is thawed.
    lock: Option<Flock<File>>,
}

impl Still<'_> {
    /// Lets the cgroup run again: whoever was asked to stop by ptrace does so instead.
    ///
    /// # Errors
    /// When the kernel refuses; it lies still then, and `doctor --sweep` thaws it.
    pub fn thaw(mut self) -> Result<(), FreezeError> {
        self.undo()
    }

    fn undo(&mut self) -> Result<(), FreezeError> {
        let Some(lock) = self.lock.take() else { return Ok(()) };
        self.own.write("0")?;
        let thawed = fault::point("mid.cgroup.thawed");
        xattr::unmark(lock.as_fd(), MARK)
            .map_err(|errno| self.own.failed("taking the mark off", errno.into()))?;
        Ok(thawed?)
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            tracing::warn!(%error, "run `godwit doctor --sweep`");
        }
    }
}

/// Thaws the cgroups that killed dumpers left frozen around these processes; a line for each.
///
/// # Errors
/// When one is found and cannot be thawed.
pub fn thaw_left(pids: impl Iterator<Item = Pid>) -> Result<Vec<String>, FreezeError> {
    let mut lines = Vec::new();
    let mut paths = BTreeSet::new();
    for pid in pids {
        match membership::read(pid) {
            Ok(all) => paths.extend(all.into_iter().filter(|one| one.hierarchy == 0).map(|one| one.path)),
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error.into()),
        }
    }
    if paths.is_empty() {
        return Ok(lines);
    }
    let Ok(hierarchy) = mount::cgroup2() else { return Ok(lines) };
    let mut looked_at = BTreeSet::new();
    for path in paths {
        // The one that was frozen may be further up.
        let path = String::from_utf8_lossy(&path);
        let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
        for depth in (1..=names.len()).rev() {
            let name = names[..depth].join("/");
            if names[..depth].contains(&"..") || !looked_at.insert(name.clone()) {
                continue;
            }
            lines.extend(thaw_one(hierarchy.as_fd(), &name)?);
        }
    }
    Ok(lines)
}

fn thaw_one(hierarchy: BorrowedFd<'_>, name: &str) -> Result<Option<String>, FreezeError> {
    let failed = |what| move |source| FreezeError::Cgroup { cgroup: format!("/{name}"), what, source };
    let is_left = |dir: BorrowedFd<'_>| xattr::is_marked(dir, MARK).unwrap_or(false);
    let Ok(dir) = open_dir(hierarchy, name) else { return Ok(None) };
    if !is_left(dir.as_fd()) {
        return Ok(None);
    }
    // Whoever has the lock is freezing it just now.
    let Ok(lock) = lock(dir.as_fd()) else { return Ok(None) };
    if !is_left(dir.as_fd()) {
        return Ok(None);
    }
    let was_frozen = is_asked_to_freeze(dir.as_fd()).map_err(failed("reading cgroup.freeze"))?;
    open(dir.as_fd(), "cgroup.freeze", OFlag::O_WRONLY)
        .and_then(|mut file| file.write_all(b"0"))
        .map_err(failed("thawing it"))?;
    xattr::unmark(lock.as_fd(), MARK).map_err(|errno| failed("taking the mark off")(errno.into()))?;
    let told = format!("cgroup /{name}: left frozen by a killed godwit, its processes run again");
    Ok(was_frozen.then_some(told))
}

/// Whether a cgroup, by its path as `/proc/PID/cgroup` shows it, lies frozen: by itself or with one further up.
pub fn is_frozen(path: &str) -> bool {
    let below_root = path.trim_start_matches('/');
    let look = || {
        let hierarchy = mount::cgroup2().ok()?;
        let dir = open_dir(hierarchy.as_fd(), below_root).ok()?;
        has_line(dir.as_fd(), "frozen 1").ok()
    };
    !below_root.is_empty() && look().unwrap_or(false)
}

/// Whether a process is one of those that `known` says so of, or descends from it; the answer is noted there.
fn descends(pid: Pid, known: &mut BTreeMap<Pid, bool>) -> bool {
    let (mut way, mut at) = (Vec::new(), pid);
    let answer = loop {
        if let Some(answer) = known.get(&at) {
            break *answer;
        }
        way.push(at);
        match stat::read(at) {
            Ok(stat) if stat.ppid > 0 && way.len() < DEPTH_MAX => at = Pid::from_raw(stat.ppid),
            // It has ended meanwhile.
            Err(error) if ProcfsError::is_gone(&error) && at == pid => return true,
            _ => break false,
        }
    };
    known.extend(way.into_iter().map(|pid| (pid, answer)));
    answer
}

/// The processes in a cgroup, those of the cgroups below it not counted.
fn members(dir: BorrowedFd<'_>) -> io::Result<BTreeSet<Pid>> {
    // 0 is a process that this pid namespace does not see.
    let number = |line: &str| line.parse().map(Pid::from_raw).map_err(io::Error::other);
    read(dir, "cgroup.procs")?.lines().map(number).collect()
}

fn members_below(dir: BorrowedFd<'_>) -> io::Result<BTreeSet<Pid>> {
    let mut all = members(dir)?;
    for child in directories(dir)? {
        match open_dir(dir, &child) {
            Ok(child) => all.extend(members_below(child.as_fd())?),
            // Removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// Names of the cgroups right below one.
fn directories(dir: BorrowedFd<'_>) -> io::Result<Vec<String>> {
    let mut listing = Dir::from_fd(open_dir(dir, ".")?)?;
    let mut found = Vec::new();
    for entry in listing.iter() {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_dir = || {
            let stat = fstatat(dir, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
            stat.is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR)
        };
        if name != "." && name != ".." && is_dir() {
            found.push(name);
        }
    }
    Ok(found)
}

/// Locks a cgroup for whoever freezes or thaws it, until the value is dropped or we die.
fn lock(dir: BorrowedFd<'_>) -> io::Result<Flock<File>> {
    let own = File::from(open_dir(dir, ".")?);
    Flock::lock(own, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into())
}

fn is_asked_to_freeze(dir: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(read(dir, "cgroup.freeze")?.trim() == "1")
}

fn has_line(dir: BorrowedFd<'_>, wanted: &str) -> io::Result<bool> {
    Ok(read(dir, "cgroup.events")?.lines().any(|line| line == wanted))
}

fn read(dir: BorrowedFd<'_>, file: &str) -> io::Result<String> {
    io::read_to_string(open(dir, file, OFlag::O_RDONLY)?)
}

fn open_dir(at: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(openat(at, path, flags, Mode::empty())?)
}

fn open(dir: BorrowedFd<'_>, file: &str, flags: OFlag) -> io::Result<File> {
    Ok(File::from(openat(dir, file, flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())?))
}
