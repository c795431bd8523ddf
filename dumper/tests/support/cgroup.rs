//! A cgroup v2 for a test, given back at its end.

use super::victim::{Libc, Victim, compile};
use super::{Scene, scene};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The first cgroup v2 mount in which cgroups can be made.
fn hierarchy() -> Result<PathBuf, String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let of_v2 = mounts.lines().filter(|line| line.contains(" - cgroup2 "));
    let mut tried = "no cgroup2 mount".to_owned();
    for line in of_v2 {
        let root = PathBuf::from(line.split(' ').nth(4).unwrap());
        let probe = root.join(format!("test-probe-{}", std::process::id()));
        match std::fs::create_dir(&probe) {
            Ok(()) => {
                let _ = std::fs::remove_dir(&probe);
                return Ok(root);
            }
            Err(error) => tried = format!("{}: {error}", root.display()),
        }
    }
    Err(tried)
}

pub fn why_none() -> Option<String> {
    hierarchy().err()
}

/// A process kept still by the freezer of version 1, which holds it where no stop and no other freezer reaches it.
pub struct KeptStill(PathBuf);

impl KeptStill {
    /// `None` where there is no such freezer.
    pub fn new(pid: i32) -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let is_freezer = |line: &&str| line.contains(" - cgroup ") && line.ends_with("freezer");
        let root = mounts.lines().find(is_freezer)?.split(' ').nth(4).unwrap().to_owned();
        let path = Path::new(&root).join(format!("test-{}-{pid}", std::process::id()));
        std::fs::create_dir(&path).ok()?;
        let kept = Self(path);
        std::fs::write(kept.0.join("cgroup.procs"), pid.to_string()).unwrap();
        std::fs::write(kept.0.join("freezer.state"), "FROZEN").unwrap();
        super::child::eventually("it is kept still", Duration::from_secs(5), || {
            std::fs::read_to_string(kept.0.join("freezer.state")).unwrap().trim() == "FROZEN"
        });
        Some(kept)
    }
}

impl Drop for KeptStill {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("freezer.state"), "THAWED");
        let root = self.0.parent().unwrap().join("cgroup.procs");
        for pid in std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = std::fs::write(&root, pid);
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Everything in it is killed, and it is removed, when it is dropped.
pub struct Cgroup(PathBuf);

impl Cgroup {
    pub fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = hierarchy().unwrap().join(format!("test-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// One inside of this.
    pub fn child(&self, name: &str) -> Self {
        let path = self.0.join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Its path as `/proc/PID/cgroup` of `member` shows it.
    pub fn name_of(member: i32) -> String {
        let text = scene::proc_text(member, "cgroup");
        text.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned()
    }

    pub fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.0.join(file)).unwrap()
    }

    pub fn write(&self, file: &str, text: &str) {
        std::fs::write(self.0.join(file), text).unwrap();
    }

    /// Whether it was told to freeze.
    pub fn is_frozen(&self) -> bool {
        self.read("cgroup.freeze").trim() == "1"
    }

    /// A victim that is started inside.
    pub fn start(&self, scene: &Scene, name: &str, args: &[&str]) -> Victim {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.0.join("cgroup.procs"))
            .arg(compile(name, Libc::Glibc))
            .args(args);
        let victim = Victim::start_command(scene, name, command);
        assert!(self.read("cgroup.procs").lines().any(|line| line == victim.pid.to_string()));
        victim
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("cgroup.freeze"), "0");
        let _ = std::fs::write(self.0.join("cgroup.kill"), "1");
        let until = Instant::now() + Duration::from_secs(5);
        while std::fs::remove_dir(&self.0).is_err() && self.0.exists() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
