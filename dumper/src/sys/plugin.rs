//! Plugins of CRIU's: shared objects with a table of hooks, and what they find in the program that loads them.
//!
//! The contract is that of criu/include/criu-plugin.h, version 0.2, as CRIU 4.2 has it: an object exports
//! `CR_PLUGIN_DESC`, a record of name, `init`, `exit`, version, length of the table, and the table. Of the program a
//! plugin may want `criu_get_image_dir`, the one public function, and three that CRIU's own plugins use besides; they are
//! exported by these very names (build.rs). All names are bound when the object is loaded, so that one which wants more of
//! CRIU's insides fails there, and not under freeze.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use nix::unistd::Pid;

/// Length of CRIU 4.2's table.
pub const HOOKS: usize = 13;
/// The newest version of the contract that CRIU 4.2 takes: 0.2.0.
pub const VERSION_MAX: u32 = 2 << 8;
/// Bytes of a plugin's name that are looked at.
const NAME_LEN_MAX: usize = 255;

/// Where the record's name and its functions stand; the table follows.
#[repr(C)]
struct Descriptor {
    name: *const c_char,
    init: Option<unsafe extern "C" fn(c_int) -> c_int>,
    exit: Option<unsafe extern "C" fn(c_int, c_int)>,
    version: c_uint,
    max_hooks: c_uint,
}

/// A place of the table that is asked while a process is dumped. The others are of restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// A unix socket whose peer is not dumped.
    DumpUnixSk = 0,
    /// A descriptor of a kind that is not dumped.
    DumpExtFile = 2,
    /// A mount whose root is not dumped.
    DumpExtMount = 4,
    /// A network device of a kind that is not dumped.
    DumpExtLink = 6,
    /// A mapping of what is no regular file.
    HandleDeviceVma = 7,
    /// A task is about to be stopped.
    PauseDevices = 10,
    /// A task is stopped.
    CheckpointDevices = 11,
}

impl Hook {
    /// Its name there.
    pub fn name(self) -> &'static str {
        match self {
            Hook::DumpUnixSk => "DUMP_UNIX_SK",
            Hook::DumpExtFile => "DUMP_EXT_FILE",
            Hook::DumpExtMount => "DUMP_EXT_MOUNT",
            Hook::DumpExtLink => "DUMP_EXT_LINK",
            Hook::HandleDeviceVma => "HANDLE_DEVICE_VMA",
            Hook::PauseDevices => "PAUSE_DEVICES",
            Hook::CheckpointDevices => "CHECKPOINT_DEVICES",
        }
    }
}

/// What a hook is asked.
#[derive(Clone, Copy, Debug)]
pub enum Call<'a> {
    /// [`Hook::DumpUnixSk`].
    UnixSk {
        /// Our duplicate.
        fd: BorrowedFd<'a>,
        /// Its inode.
        inode: u32,
    },
    /// [`Hook::DumpExtFile`].
    ExtFile {
        /// Our duplicate.
        fd: BorrowedFd<'a>,
        /// Id in `files.img`.
        id: u32,
    },
    /// [`Hook::DumpExtMount`].
    ExtMount {
        /// Where it is mounted.
        mountpoint: &'a CStr,
        /// Its number in `/proc/PID/mountinfo`.
        mnt_id: i32,
    },
    /// [`Hook::DumpExtLink`].
    ExtLink {
        /// Interface index.
        index: i32,
        /// Hardware type (`ARPHRD_*`).
        kind: i32,
        /// What the kernel calls its kind.
        name: &'a CStr,
    },
    /// [`Hook::HandleDeviceVma`].
    DeviceVma {
        /// The mapped file.
        fd: BorrowedFd<'a>,
        /// What `fstat` tells of it.
        stat: &'a libc::stat,
    },
    /// [`Hook::PauseDevices`].
    Pause(Pid),
    /// [`Hook::CheckpointDevices`].
    Checkpoint(Pid),
}

impl Call<'_> {
    /// Whom it is for.
    pub fn hook(&self) -> Hook {
        match self {
            Call::UnixSk { .. } => Hook::DumpUnixSk,
            Call::ExtFile { .. } => Hook::DumpExtFile,
            Call::ExtMount { .. } => Hook::DumpExtMount,
            Call::ExtLink { .. } => Hook::DumpExtLink,
            Call::DeviceVma { .. } => Hook::HandleDeviceVma,
            Call::Pause(_) => Hook::PauseDevices,
            Call::Checkpoint(_) => Hook::CheckpointDevices,
        }
    }
}

/// Why an object is no plugin.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be loaded: no such file, no shared object, or one that wants what this program does not export.
    #[error(transparent)]
    Open(libloading::Error),
    /// It has no record.
    #[error("it exports no CR_PLUGIN_DESC (plugins without it, as before CRIU 1.5, are not loaded)")]
    NoDescriptor,
    /// Its record has no name, or one that is longer than 255 bytes.
    #[error("its CR_PLUGIN_DESC has no name")]
    NoName,
    /// It was made for a later contract.
    #[error("it has version {:#x} of the contract, and {VERSION_MAX:#x} is the latest that is known", .0)]
    Version(u32),
    /// Its table is longer than that of CRIU 4.2.
    #[error("its table has {} hooks and that of CRIU 4.2 {HOOKS}: build it for that release", .0)]
    Hooks(u32),
}

/// Any function; what it takes is told by its place in the table.
type AnyFunction = unsafe extern "C" fn();

#[cfg(test)]
type MadeOfOne = extern "C" fn(c_int) -> c_int;
#[cfg(test)]
type MadeOfTwo = extern "C" fn(c_int, c_int) -> c_int;

/// Held by tests: what plugins tell the program is kept once for all of it.
#[cfg(test)]
pub(crate) static ALONE: Mutex<()> = Mutex::new(());

/// A hook of a test's own.
#[cfg(test)]
#[derive(Clone, Copy, Debug)]
pub(crate) enum Made {
    /// One that takes a pid.
    OfOne(MadeOfOne),
    /// One that takes a descriptor and an id.
    OfTwo(MadeOfTwo),
}

/// A loaded plugin.
#[derive(Debug)]
pub struct Plugin {
    name: String,
    init: Option<unsafe extern "C" fn(c_int) -> c_int>,
    exit: Option<unsafe extern "C" fn(c_int, c_int)>,
    hooks: [Option<AnyFunction>; HOOKS],
    /// Keeps the functions where they are.
    _library: Library,
}

impl Plugin {
    /// Loads an object. That runs its constructors, which fill its table.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(path: &Path) -> Result<Plugin, LoadError> {
        std::hint::black_box(EXPORTED);
        // SAFETY: constructors of a library that the user named run here, with the rights of this program: that is what a
        // plugin is for. Nothing of ours is borrowed meanwhile.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(LoadError::Open)?;
        // SAFETY: only the address is taken; by the contract it is that of a record.
        let record = unsafe { library.get::<*const Descriptor>(b"CR_PLUGIN_DESC\0") };
        let record: *const Descriptor = *record.map_err(|_| LoadError::NoDescriptor)?;
        // SAFETY: by the contract a record lies there, for as long as the library is loaded; nobody else changes it, since
        // its constructors are through.
        let Descriptor { name, init, exit, version, max_hooks } = unsafe { record.read() };
        if version > VERSION_MAX {
            return Err(LoadError::Version(version));
        }
        let length = usize::try_from(max_hooks).unwrap_or(usize::MAX);
        if length > HOOKS {
            return Err(LoadError::Hooks(max_hooks));
        }
        let mut hooks = [None; HOOKS];
        for (place, hook) in hooks.iter_mut().take(length).enumerate() {
            // SAFETY: the table follows the record, without a gap, and has as many places as the record says; a place holds
            // the address of a function or null.
            *hook = unsafe { record.add(1).cast::<Option<AnyFunction>>().add(place).read() };
        }
        let name = text(name, NAME_LEN_MAX).ok_or(LoadError::NoName)?;
        Ok(Plugin { name, init, exit, hooks, _library: library })
    }

    /// A plugin whose functions are ours.
    #[cfg(test)]
    pub(crate) fn made_of(
        name: &str,
        init: Option<unsafe extern "C" fn(c_int) -> c_int>,
        exit: Option<unsafe extern "C" fn(c_int, c_int)>,
        hooks: &[(Hook, Made)],
    ) -> Plugin {
        let mut table = [None; HOOKS];
        for (hook, function) in hooks {
            // SAFETY: called as what it is, by its place in the table.
            let function: AnyFunction = unsafe {
                match *function {
                    Made::OfOne(function) => std::mem::transmute::<MadeOfOne, AnyFunction>(function),
                    Made::OfTwo(function) => std::mem::transmute::<MadeOfTwo, AnyFunction>(function),
                }
            };
            table[*hook as usize] = Some(function);
        }
        Plugin { name: name.to_owned(), init, exit, hooks: table, _library: Library::this() }
    }

    /// What it calls itself.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether its table has this hook.
    pub fn has(&self, hook: Hook) -> bool {
        self.hooks[hook as usize].is_some()
    }

    /// Begins; 0 where it is content.
    pub fn init(&self, stage: c_int) -> c_int {
        // SAFETY: by the contract it takes the stage.
        self.init.map_or(0, |init| unsafe { init(stage) })
    }

    /// Ends: 0 after success.
    pub fn exit(&self, stage: c_int, outcome: c_int) {
        if let Some(exit) = self.exit {
            // SAFETY: by the contract it takes the stage and the outcome.
            unsafe { exit(stage, outcome) }
        }
    }

    /// Asks a hook; `None` if it is not in the table. What it answers is a negative errno, or not.
    pub fn call(&self, call: &Call<'_>) -> Option<c_int> {
        type OfTwo = unsafe extern "C" fn(c_int, c_int) -> c_int;
        type OfMount = unsafe extern "C" fn(*const c_char, c_int) -> c_int;
        type OfLink = unsafe extern "C" fn(c_int, c_int, *const c_char) -> c_int;
        type OfDevice = unsafe extern "C" fn(c_int, *const libc::stat) -> c_int;
        type OfPid = unsafe extern "C" fn(c_int) -> c_int;
        let function = self.hooks[call.hook() as usize]?;
        // SAFETY: by the contract the function at this place of the table takes these arguments and returns an int; what
        // is lent to it is there until it returns, and the strings, which CRIU's header has without const, are not written to.
        Some(unsafe {
            match *call {
                Call::UnixSk { fd, inode: number } | Call::ExtFile { fd, id: number } => {
                    let function: OfTwo = std::mem::transmute(function);
                    function(fd.as_raw_fd(), number.cast_signed())
                }
                Call::ExtMount { mountpoint, mnt_id } => {
                    let function: OfMount = std::mem::transmute(function);
                    function(mountpoint.as_ptr(), mnt_id)
                }
                Call::ExtLink { index, kind, name } => {
                    let function: OfLink = std::mem::transmute(function);
                    function(index, kind, name.as_ptr())
                }
                Call::DeviceVma { fd, stat } => {
                    let function: OfDevice = std::mem::transmute(function);
                    function(fd.as_raw_fd(), stat)
                }
                Call::Pause(pid) | Call::Checkpoint(pid) => {
                    let function: OfPid = std::mem::transmute(function);
                    function(pid.as_raw())
                }
            }
        })
    }
}

/// The directory that plugins write to, -1 where there is none.
static IMAGE_DIR: AtomicI32 = AtomicI32::new(-1);
/// The plugins without which the images cannot be restored.
static INVENTORY: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Says where plugins write. The descriptor must stay open until another one is said.
pub fn set_image_dir(dir: Option<BorrowedFd<'_>>) {
    IMAGE_DIR.store(dir.map_or(-1, |dir| dir.as_raw_fd()), Ordering::SeqCst);
}

/// The plugins that said that a restore needs them, in the order in which they said it.
pub fn inventory() -> Vec<String> {
    lock().clone()
}

/// Forgets what plugins said.
pub fn clear_inventory() {
    lock().clear();
}

fn lock() -> MutexGuard<'static, Vec<String>> {
    INVENTORY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A C string of at most so many bytes; none where there is none, or a longer one.
fn text(at: *const c_char, len_max: usize) -> Option<String> {
    if at.is_null() {
        return None;
    }
    // SAFETY: by the contract a string ends with a zero; it is looked for within the bound only.
    let len = unsafe { libc::strnlen(at, len_max + 1) };
    // SAFETY: so many bytes were just read.
    let bytes = unsafe { std::slice::from_raw_parts(at.cast::<u8>(), len) };
    (1..=len_max).contains(&len).then(|| String::from_utf8_lossy(bytes).into_owned())
}

type AddInventory = unsafe extern "C" fn(*const c_char) -> c_int;
type CheckInventory = unsafe extern "C" fn(*const c_char, usize) -> bool;
type Print = unsafe extern "C" fn(c_uint, *const c_char);
/// What plugins find by name. That [`Plugin::load`] names them keeps them in the program.
const EXPORTED: (extern "C" fn() -> c_int, AddInventory, CheckInventory, Print) =
    (criu_get_image_dir, add_inventory_plugin, check_and_remove_inventory_plugin, print_on_level);

/// The directory of the images, for `openat` (criu/plugin.c); -1 where there is none.
#[unsafe(no_mangle)]
extern "C" fn criu_get_image_dir() -> c_int {
    IMAGE_DIR.load(Ordering::SeqCst)
}

/// A plugin says that a restore needs it (criu/image.c).
///
/// # Safety
/// `name` is a C string or null.
#[unsafe(no_mangle)]
unsafe extern "C" fn add_inventory_plugin(name: *const c_char) -> c_int {
    let Some(name) = text(name, NAME_LEN_MAX) else { return -1 };
    let mut names = lock();
    if !names.contains(&name) {
        names.push(name);
    }
    0
}

/// Whether a plugin said so before; it is forgotten then (criu/image.c). A restore asks that of the images' list.
///
/// # Safety
/// `name` has `len` bytes, or is null.
#[unsafe(no_mangle)]
unsafe extern "C" fn check_and_remove_inventory_plugin(name: *const c_char, len: usize) -> bool {
    let Some(name) = text(name, len.min(NAME_LEN_MAX)) else { return false };
    let mut names = lock();
    let before = names.len();
    names.retain(|known| *known != name);
    names.len() < before
}

/// A line of a plugin's for the log (criu/log.c). It is a `printf` there. What follows the format is not looked at, which the
/// calling conventions of Linux on x86-64 and aarch64 allow, so that the log has the format itself.
///
/// # Safety
/// `format` is a C string or null.
#[unsafe(no_mangle)]
unsafe extern "C" fn print_on_level(level: c_uint, format: *const c_char) {
    const LINE_LEN_MAX: usize = 4096;
    let Some(line) = text(format, LINE_LEN_MAX) else { return };
    let line = line.trim_end();
    match level {
        0 | 1 => tracing::error!("plugin: {line}"),
        2 => tracing::warn!("plugin: {line}"),
        3 => tracing::info!("plugin: {line}"),
        _ => tracing::debug!("plugin: {line}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_that_plugins_give_are_bounded_and_remembered_once() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let add = |name: &CStr| {
            // SAFETY: a C string.
            unsafe { add_inventory_plugin(name.as_ptr()) }
        };
        clear_inventory();
        assert_eq!((add(c"one"), add(c"two"), add(c"one")), (0, 0, 0));
        assert_eq!(inventory(), ["one", "two"]);
        // SAFETY: null is allowed.
        assert_eq!(unsafe { add_inventory_plugin(std::ptr::null()) }, -1);
        let long = std::ffi::CString::new("x".repeat(NAME_LEN_MAX + 1)).unwrap();
        assert_eq!((add(&long), add(c"")), (-1, -1));
        // SAFETY: three bytes.
        assert!(unsafe { check_and_remove_inventory_plugin(c"one".as_ptr(), 3) });
        // SAFETY: three bytes.
        assert!(!unsafe { check_and_remove_inventory_plugin(c"one".as_ptr(), 3) });
        assert_eq!(inventory(), ["two"]);
        clear_inventory();
    }

    #[test]
    fn what_is_no_plugin_is_told_by_name() {
        let missing = Plugin::load(Path::new("/no/such.so")).unwrap_err();
        assert!(matches!(missing, LoadError::Open(_)), "{missing}");
        assert!(crate::handover::chain(&missing).contains("/no/such.so"), "{missing:?}");
        let other = Plugin::load(Path::new("libm.so.6"));
        assert!(matches!(other, Err(LoadError::NoDescriptor)), "{other:?}");
    }
}
