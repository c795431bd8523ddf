//! A directory for one test. What still lives in it at the end is killed, unmounted and removed.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// The tests of one program run one at a time, whatever runner started them: they freeze processes, and their
/// time limits assume a machine to themselves.
static ALONE: Mutex<()> = Mutex::new(());

/// The directory of one test and the guard that it runs alone.
pub struct Scene {
    dir: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    /// A new empty directory that everybody may write: victims change their uid.
    pub fn new(name: &str) -> Self {
        let alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let dir = tempfile::Builder::new().prefix(&format!("scene-{name}-")).tempdir().unwrap().keep();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).unwrap();
        let dir = dir.canonicalize().unwrap();
        Self { dir, _alone: alone }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A new directory in it, named `name` or, when that is taken, `name-2` and so on.
    pub fn subdir(&self, name: &str) -> PathBuf {
        let mut path = self.dir.join(name);
        let mut number = 2;
        while path.exists() {
            path = self.dir.join(format!("{name}-{number}"));
            number += 1;
        }
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        path
    }

    /// The processes whose working directory is in this scene, as the host numbers them: every copy of every
    /// victim, wherever it was restored.
    pub fn processes(&self) -> Vec<i32> {
        pids().filter(|pid| cwd_is_below(*pid, &self.dir)).collect()
    }

    /// Kills what lives in the scene, and with it the pid namespaces that hold it (a restored tree's init).
    pub fn sweep(&self) {
        for _ in 0..50 {
            let here = self.processes();
            if here.is_empty() {
                return;
            }
            let own = namespace(std::process::id() as i32);
            let foreign: BTreeSet<u64> =
                here.iter().filter_map(|pid| namespace(*pid)).filter(|ns| Some(*ns) != own).collect();
            let inits: Vec<i32> =
                pids().filter(|pid| namespace(*pid).is_some_and(|ns| foreign.contains(&ns))).collect();
            for pid in here.iter().chain(&inits) {
                thaw(*pid);
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("scene {}: some processes cannot be killed: {:?}", self.dir.display(), self.processes());
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.sweep();
        for target in mounts_below(&self.dir) {
            let _ = nix::mount::umount2(&target, nix::mount::MntFlags::MNT_DETACH);
        }
        if std::env::var_os("GODWIT_KEEP").is_some() {
            eprintln!("kept: {}", self.dir.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// All processes of the machine.
pub fn pids() -> impl Iterator<Item = i32> {
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect::<Vec<i32>>()
        .into_iter()
}

/// The inode of a process's pid namespace.
pub fn namespace(pid: i32) -> Option<u64> {
    std::fs::metadata(format!("/proc/{pid}/ns/pid")).ok().map(|meta| meta.ino())
}

/// The text of `/proc/PID/NAME`; empty when the process is gone.
pub fn proc_text(pid: i32, name: &str) -> String {
    std::fs::read(format!("/proc/{pid}/{name}"))
        .map_or_else(|_| String::new(), |text| String::from_utf8_lossy(&text).into_owned())
}

/// A field of `/proc/PID/status`.
pub fn status_field(pid: i32, name: &str) -> Option<String> {
    let text = proc_text(pid, "status");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// Whether a process exists and is not a zombie.
pub fn is_alive(pid: i32) -> bool {
    status_field(pid, "State").is_some_and(|state| !state.starts_with(['Z', 'X']))
}

fn cwd_is_below(pid: i32, dir: &Path) -> bool {
    std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir))
        || std::fs::read_link(format!("/proc/{pid}/root")).is_ok_and(|root| root.starts_with(dir))
}

/// A frozen cgroup keeps its tasks from dying of a plain SIGKILL only on v1; on v2 it does not. Thawed anyway,
/// so that nothing of a failed test stays frozen.
fn thaw(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
}

fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut found: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(PathBuf::from)
        .filter(|path| path.starts_with(dir))
        .collect();
    found.reverse();
    found
}
