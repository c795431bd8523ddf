//! Plugins: what somebody else knows how to dump, under CRIU's contract (criu/plugin.c; [`crate::sys::plugin`]).
//!
//! All `*.so` of the directory that `--libdir`, or else `CRIU_LIBS_DIR`, names are loaded, in order of their names, and
//! told that a dump begins, or a round on its own. One that cannot be loaded, or does not want to, is an error, before
//! anything is touched. Without a directory none is loaded: CRIU would look into `/usr/lib/criu`, and the plugins that
//! lie there are built for its insides.
//!
//! | hook | asked | where |
//! |---|---|---|
//! | `PAUSE_DEVICES` | of each task, just before it is stopped | [`pause_devices`] |
//! | `CHECKPOINT_DEVICES` | of each stopped task | [`checkpoint_devices`] |
//! | `DUMP_EXT_FILE` | for a descriptor of a kind that godwit does not dump | [`dump_ext_file`] |
//! | `HANDLE_DEVICE_VMA` | for a shared mapping of a device, before the freeze and under it, more than once | [`handles_device`] |
//! | `DUMP_UNIX_SK`, `DUMP_EXT_MOUNT`, `DUMP_EXT_LINK` | for sockets, mounts and network devices that are not dumped whole | [`dump_unix_sk`], [`dump_ext_mount`], [`dump_ext_link`] |
//!
//! At each hook the plugins that have it are asked in turn, until one answers other than `-ENOTSUP`. Hooks are called by one
//! thread at a time. At the end each is told how it went: before the process runs on, where the dump failed; after the
//! hand-over, where it did not.
//!
//! A restore needs those plugins that said so (`add_inventory_plugin`), and only they are named in the inventory: each must
//! take its name off the list there, or CRIU refuses the images.
//!
//! What plugins write goes along as images: [`super::image_dir`].

use std::ffi::{CString, c_int};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use godwit_wire::image::inventory::PluginsEntry;
use nix::errno::Errno;
use nix::unistd::Pid;

use super::image_dir::ImageDir;
use crate::error::DumpError;
use crate::options::{Options, Stage};
use crate::sys::plugin::{self, Call, Hook, Plugin};

/// What plugins are told after a failure.
const FAILED: c_int = -1;

/// Those of the dump that this program makes: the contract knows one dump a program, and so do the functions that plugins
/// find by name.
static LOADED: Mutex<Option<Arc<Loaded>>> = Mutex::new(None);

#[derive(Debug)]
struct Loaded {
    plugins: Vec<Plugin>,
    stage: c_int,
    /// Held while one is called.
    turn: Mutex<()>,
    has_ended: AtomicBool,
    /// What they write to.
    _image_dir: Option<OwnedFd>,
}

/// The plugins of a dump. Dropping it tells those that were not told yet that the dump failed.
#[derive(Debug)]
pub struct Plugins {
    loaded: Arc<Loaded>,
}

impl Plugins {
    /// Loads them and tells them that it begins.
    ///
    /// # Errors
    /// [`DumpError::Plugin`] for one that cannot be loaded or does not want to; those before it are told of the failure.
    /// When the directory cannot be read.
    pub fn load(options: &Options, image_dir: &ImageDir) -> Result<Plugins, DumpError> {
        let paths = options.libdir.as_deref().map_or_else(|| Ok(Vec::new()), objects)?;
        let loaded = paths.iter().map(|path| {
            Plugin::load(path).map_err(|error| failed(&path.display().to_string(), "loading it", error))
        });
        let loaded = loaded.collect::<Result<Vec<_>, _>>()?;
        let dir = image_dir.for_plugins().map(|dir| dir.try_clone_to_owned()).transpose();
        let dir =
            dir.map_err(|source| DumpError::sys("the directory for plugins", "duplicating it", source))?;
        let stage = match options.stage {
            Stage::Dump => 0,
            Stage::PreDump => 1,
        };
        Plugins::begin(loaded, stage, dir)
    }

    fn begin(plugins: Vec<Plugin>, stage: c_int, image_dir: Option<OwnedFd>) -> Result<Plugins, DumpError> {
        plugin::clear_inventory();
        plugin::set_image_dir(image_dir.as_ref().map(std::os::fd::AsFd::as_fd));
        for (number, plugin) in plugins.iter().enumerate() {
            tracing::debug!(name = plugin.name(), "plugin loaded");
            let answer = plugin.init(stage);
            if answer != 0 {
                plugins[..number].iter().for_each(|begun| begun.exit(stage, FAILED));
                plugin::set_image_dir(None);
                let why = std::io::Error::other(format!("its init answered {answer}"));
                return Err(failed(plugin.name(), "its beginning", why));
            }
        }
        let (turn, has_ended) = (Mutex::default(), AtomicBool::new(false));
        let loaded = Arc::new(Loaded { plugins, stage, turn, has_ended, _image_dir: image_dir });
        *registry() = Some(Arc::clone(&loaded));
        Ok(Plugins { loaded })
    }

    /// Stands for what plugins hold while a process is stopped. Made behind the stop, so that it is dropped, and they are
    /// told of the failure, before the process runs on.
    pub fn ending(&self) -> Ending<'_> {
        Ending { loaded: &self.loaded, outcome: FAILED }
    }
}

impl Drop for Plugins {
    fn drop(&mut self) {
        self.loaded.end(FAILED);
        *registry() = None;
        plugin::set_image_dir(None);
    }
}

/// Tells the plugins how it ended when it is dropped: badly, unless [`Ending::done`] was called.
#[derive(Debug)]
#[must_use = "dropping it tells the plugins that the dump failed"]
pub struct Ending<'a> {
    loaded: &'a Loaded,
    outcome: c_int,
}

impl Ending<'_> {
    /// It went well.
    pub fn done(mut self) {
        self.outcome = 0;
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.loaded.end(self.outcome);
    }
}

impl Loaded {
    /// Once.
    fn end(&self, outcome: c_int) {
        if !self.has_ended.swap(true, Ordering::SeqCst) {
            let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            self.plugins.iter().for_each(|plugin| plugin.exit(self.stage, outcome));
        }
    }

    fn run(&self, call: &Call<'_>) -> Result<Option<i32>, DumpError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        for plugin in &self.plugins {
            match plugin.call(call) {
                None => {}
                Some(answer) if answer == -libc::ENOTSUP => {}
                Some(answer) if answer < 0 => {
                    let why = std::io::Error::from(Errno::from_raw(answer.saturating_neg()));
                    return Err(failed(plugin.name(), call.hook().name(), why));
                }
                Some(answer) => return Ok(Some(answer)),
            }
        }
        Ok(None)
    }
}

fn registry() -> MutexGuard<'static, Option<Arc<Loaded>>> {
    LOADED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(
    plugin: &str,
    what: &'static str,
    source: impl std::error::Error + Send + Sync + 'static,
) -> DumpError {
    DumpError::Plugin { plugin: plugin.to_owned(), what, source: Box::new(source) }
}

/// The shared objects of a directory, by name.
fn objects(libdir: &Path) -> Result<Vec<PathBuf>, DumpError> {
    let entries = std::fs::read_dir(libdir).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.map_err(|source| {
        DumpError::sys(format!("plugin directory {}", libdir.display()), "reading it", source)
    })?;
    let paths = entries.into_iter().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> =
        paths.filter(|path| path.as_os_str().as_bytes().ends_with(b".so")).collect();
    paths.sort();
    // Without a slash the loader would look elsewhere.
    paths.into_iter().map(std::path::absolute).collect::<Result<_, _>>().map_err(|source| {
        DumpError::sys(format!("plugin directory {}", libdir.display()), "finding it", source)
    })
}

/// Asks; `None` where no plugin knows what it is about.
fn ask(call: &Call<'_>) -> Result<Option<i32>, DumpError> {
    let loaded = registry().clone();
    loaded.map_or(Ok(None), |loaded| loaded.run(call))
}

fn has(hook: Hook) -> bool {
    registry().as_ref().is_some_and(|loaded| loaded.plugins.iter().any(|plugin| plugin.has(hook)))
}

/// The plugins that a restore needs.
pub fn inventory() -> PluginsEntry {
    PluginsEntry { plugins: plugin::inventory() }
}

/// Whether a plugin wants to know of tasks before they are stopped.
pub fn may_pause_devices() -> bool {
    has(Hook::PauseDevices)
}

/// A task is about to be stopped: its devices are to be brought to rest.
///
/// # Errors
/// [`DumpError::Plugin`] of the one that failed.
pub fn pause_devices(pid: Pid) -> Result<(), DumpError> {
    ask(&Call::Pause(pid)).map(drop)
}

/// A task is stopped: what its devices hold is to be saved.
///
/// # Errors
/// [`DumpError::Plugin`] of the one that failed.
pub fn checkpoint_devices(pid: Pid) -> Result<(), DumpError> {
    ask(&Call::Checkpoint(pid)).map(drop)
}

/// Whether a plugin may know descriptors that are not dumped otherwise. Which, it tells only when it dumps one.
pub fn may_dump_files() -> bool {
    has(Hook::DumpExtFile)
}

/// Has a descriptor dumped; `false` if no plugin knows it. `fd` is our duplicate, `id` that of its file entry.
///
/// # Errors
/// [`DumpError::Plugin`] of the one that failed.
pub fn dump_ext_file(fd: BorrowedFd<'_>, id: u32) -> Result<bool, DumpError> {
    ask(&Call::ExtFile { fd, id }).map(|answer| answer.is_some())
}

/// Whether a plugin may know mappings of devices.
pub fn may_handle_devices() -> bool {
    has(Hook::HandleDeviceVma)
}

/// Whether a plugin sees to mappings of this device.
///
/// # Errors
/// [`DumpError::Plugin`] of the one that failed.
pub fn handles_device(fd: BorrowedFd<'_>, stat: &libc::stat) -> Result<bool, DumpError> {
    ask(&Call::DeviceVma { fd, stat }).map(|answer| answer.is_some())
}

/// Has a unix socket dumped whose peer is not dumped; `false` if no plugin knows it.
///
/// # Errors
/// [`DumpError::Plugin`] of the one that failed.
pub fn dump_unix_sk(fd: BorrowedFd<'_>, inode: u32) -> Result<bool, DumpError> {
    ask(&Call::UnixSk { fd, inode }).map(|answer| answer.is_some())
}

/// Has a mount dumped whose root is not dumped; `false` if no plugin knows it. A path with a zero in it is none.
///
/// # Errors
/// [`DumpError::Plugin`] of the one that failed.
pub fn dump_ext_mount(mountpoint: &Path, mnt_id: i32) -> Result<bool, DumpError> {
    let Ok(mountpoint) = CString::new(mountpoint.as_os_str().as_bytes()) else { return Ok(false) };
    ask(&Call::ExtMount { mountpoint: &mountpoint, mnt_id }).map(|answer| answer.is_some())
}

/// Has a network device dumped; `false` if no plugin knows it. `kind` is its hardware type (`ARPHRD_*`), `name` what the
/// kernel calls its kind.
///
/// # Errors
/// [`DumpError::Plugin`] of the one that failed.
pub fn dump_ext_link(index: i32, kind: i32, name: &str) -> Result<bool, DumpError> {
    let Ok(name) = CString::new(name) else { return Ok(false) };
    ask(&Call::ExtLink { index, kind, name: &name }).map(|answer| answer.is_some())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sys::plugin::{ALONE, Made};
    use std::os::fd::AsFd;

    /// What the functions below were told.
    static TOLD: Mutex<Vec<(char, c_int, c_int)>> = Mutex::new(Vec::new());

    fn tell(what: char, first: c_int, second: c_int) {
        TOLD.lock().unwrap_or_else(PoisonError::into_inner).push((what, first, second));
    }

    fn told() -> Vec<(char, c_int, c_int)> {
        std::mem::take(&mut *TOLD.lock().unwrap_or_else(PoisonError::into_inner))
    }

    extern "C" fn begins(stage: c_int) -> c_int {
        tell('i', stage, 0);
        0
    }
    extern "C" fn declines(stage: c_int) -> c_int {
        tell('d', stage, 0);
        5
    }
    extern "C" fn ends(stage: c_int, outcome: c_int) {
        tell('x', stage, outcome);
    }
    extern "C" fn knows_nothing(_: c_int, _: c_int) -> c_int {
        tell('n', 0, 0);
        -libc::ENOTSUP
    }
    extern "C" fn knows_it(_: c_int, id: c_int) -> c_int {
        tell('k', id, 0);
        3
    }
    extern "C" fn fails(pid: c_int) -> c_int {
        tell('f', pid, 0);
        -libc::EBUSY
    }

    type Dumps = extern "C" fn(c_int, c_int) -> c_int;

    fn plugins(answers: &[(Dumps, bool)]) -> Vec<Plugin> {
        let made = answers.iter().enumerate().map(|(number, (dumps, also_fails))| {
            let mut hooks = vec![(Hook::DumpExtFile, Made::OfTwo(*dumps))];
            hooks.extend(also_fails.then_some((Hook::PauseDevices, Made::OfOne(fails))));
            Plugin::made_of(&format!("plugin-{number}"), Some(begins), Some(ends), &hooks)
        });
        made.collect()
    }

    #[test]
    fn the_first_that_does_not_say_enotsup_decides() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let all =
            Plugins::begin(plugins(&[(knows_nothing, false), (knows_it, true), (knows_it, false)]), 0, None);
        let all = all.unwrap();
        assert_eq!(told(), [('i', 0, 0); 3]);
        let file = tempfile::tempfile().unwrap();
        assert!(dump_ext_file(file.as_fd(), 7).unwrap());
        assert_eq!(told(), [('n', 0, 0), ('k', 7, 0)]);
        assert!(may_dump_files() && !may_handle_devices());
        assert!(!dump_unix_sk(file.as_fd(), 1).unwrap() && !dump_ext_mount(Path::new("/x"), 1).unwrap());
        assert!(!dump_ext_link(1, 1, "veth").unwrap());
        checkpoint_devices(Pid::from_raw(9)).unwrap();
        let error = pause_devices(Pid::from_raw(9)).unwrap_err().to_string();
        assert!(error.contains("plugin-1") && error.contains("PAUSE_DEVICES"), "{error}");
        assert_eq!(told(), [('f', 9, 0)]);
        drop(all);
        assert_eq!(told(), [('x', 0, FAILED); 3]);
        assert!(!may_dump_files() && !dump_ext_file(file.as_fd(), 7).unwrap(), "nothing is left of them");
        assert_eq!(told(), []);
    }

    #[test]
    fn they_are_told_once_how_it_ended() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        for (goes_well, outcome) in [(true, 0), (false, FAILED)] {
            let all = Plugins::begin(plugins(&[(knows_it, false)]), 1, None).unwrap();
            let ending = all.ending();
            match goes_well {
                true => ending.done(),
                false => drop(ending),
            }
            assert_eq!(told(), [('i', 1, 0), ('x', 1, outcome)]);
            drop(all);
            assert_eq!(told(), []);
        }
    }

    #[test]
    fn one_that_does_not_want_to_begin_ends_those_before_it() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = plugins(&[(knows_it, false)]);
        all.push(Plugin::made_of("unwilling", Some(declines), Some(ends), &[]));
        let error = Plugins::begin(all, 0, None).unwrap_err().to_string();
        assert!(error.contains("unwilling"), "{error}");
        assert_eq!(told(), [('i', 0, 0), ('d', 0, 0), ('x', 0, FAILED)]);
        assert!(registry().is_none());
    }

    #[test]
    fn objects_are_found_by_name_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.so", "a.so", "c.so.1", "so", "d.txt"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let found = objects(dir.path()).unwrap();
        assert_eq!(found, ["a.so", "b.so"].map(|name| dir.path().join(name)));
        assert!(objects(Path::new("/no/such/dir")).unwrap_err().to_string().contains("/no/such/dir"));
    }
}
