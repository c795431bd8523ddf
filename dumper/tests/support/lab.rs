//! CRIU, crit and the guest, by way of `deploy/lab/lab`.

use super::child::{Finished, Running, run};
use super::victim::{Verdict, Victim, verdict};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CriuVersion {
    V4_1,
    V4_2,
}

/// Both, for loops: images must restore under each.
pub const BOTH: [CriuVersion; 2] = [CriuVersion::V4_1, CriuVersion::V4_2];

impl CriuVersion {
    pub fn text(self) -> &'static str {
        match self {
            Self::V4_1 => "4.1",
            Self::V4_2 => "4.2",
        }
    }
}

/// The lab's command: `GODWIT_LAB_CMD`, or the one of this tree.
pub fn command() -> Command {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/lab/lab").into_os_string();
    Command::new(std::env::var_os("GODWIT_LAB_CMD").unwrap_or_else(own))
}

/// An executable that behaves as CRIU of that version. The error says why there is none.
pub fn criu(version: CriuVersion) -> Result<PathBuf, String> {
    static FOUND: [OnceLock<Result<PathBuf, String>>; 2] = [OnceLock::new(), OnceLock::new()];
    let (slot, variable) = match version {
        CriuVersion::V4_1 => (&FOUND[0], "GODWIT_CRIU_41"),
        CriuVersion::V4_2 => (&FOUND[1], "GODWIT_CRIU_42"),
    };
    slot.get_or_init(|| program(variable, &["paths", "--v", version.text(), "--wrapper"])).clone()
}

/// An executable that behaves as crit.
pub fn crit() -> Result<PathBuf, String> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    FOUND.get_or_init(|| program("GODWIT_CRIT", &["paths", "--crit"])).clone()
}

/// Whether the guest can be started.
pub fn guest() -> Result<(), String> {
    let mut build = command();
    build.args(["build", "vm"]);
    let built = run(build, Duration::from_secs(300));
    if built.ok() { Ok(()) } else { Err(built.to_string()) }
}

fn program(variable: &str, ask: &[&str]) -> Result<PathBuf, String> {
    let path = match std::env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => {
            let mut lab = command();
            lab.args(ask);
            let answer = run(lab, Duration::from_secs(300));
            if !answer.ok() {
                return Err(answer.to_string());
            }
            PathBuf::from(answer.stdout.trim())
        }
    };
    if path.is_file() { Ok(path) } else { Err(format!("{} is no file ({variable})", path.display())) }
}

/// `criu dump` of a process into a new directory `dir`.
pub fn criu_dump(version: CriuVersion, pid: i32, dir: &Path, options: &[&str]) -> Finished {
    std::fs::create_dir_all(dir).unwrap();
    let mut dump = Command::new(criu(version).unwrap());
    dump.args(["dump", "-v2", "-o", "criu-dump.log", "-t", &pid.to_string(), "-D"]).arg(dir).args(options);
    run(dump, Duration::from_secs(60))
}

/// A tree that CRIU restored into a pid namespace of its own, under `lab restore`. Dies with this value.
pub struct Restored {
    lab: Running,
    /// As the host numbers it.
    pub pid: i32,
    log: PathBuf,
}

impl Restored {
    /// Restores `images` and waits until the tree runs.
    ///
    /// # Panics
    /// With the restore log when CRIU refuses.
    #[track_caller]
    pub fn from_images(images: &Path, version: CriuVersion, options: &[&str], victim: &Victim) -> Self {
        match Self::try_from_images(images, version, options, victim) {
            Ok(restored) => restored,
            Err(why) => panic!("CRIU {} does not restore {}: {why}", version.text(), images.display()),
        }
    }

    pub fn try_from_images(
        images: &Path,
        version: CriuVersion,
        options: &[&str],
        victim: &Victim,
    ) -> Result<Self, String> {
        let mut restore = command();
        restore
            .args(["restore", "--v", version.text(), "--timeout", "60", "--hold", "120"])
            .arg(images)
            .args(restore_options(images))
            .args(options);
        let mut lab = Running::start(restore);
        let pid = lab.wait_for(Duration::from_secs(70), |stdout, _| {
            let line = stdout.lines().find(|line| line.starts_with("restored "))?;
            line.split(' ').find_map(|word| word.strip_prefix("pid="))?.parse().ok()
        });
        match pid {
            Some(pid) => Ok(Self { lab, pid, log: victim.dir().join("log") }),
            None => Err(lab.finish(Duration::from_secs(1)).to_string()),
        }
    }

    /// Waits for the end of the tree and reads what it said. It must have been asked.
    pub fn verdict(self) -> Verdict {
        self.verdict_within(Duration::from_secs(90))
    }

    pub fn verdict_within(self, limit: Duration) -> Verdict {
        let ended = self.lab.finish(limit);
        let log = String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned();
        match verdict(&log, &ended.stdout) {
            Verdict::Ok if !ended.ok() => Verdict::Lost(format!("OK, but {ended}")),
            Verdict::Lost(why) => Verdict::Lost(format!("{why}\n{ended}")),
            other => other,
        }
    }
}

/// The options that godwit says these images need, from their manifest; none for CRIU's own images.
fn restore_options(images: &Path) -> Vec<String> {
    let Ok(bytes) = std::fs::read(images.join("godwit-manifest.img")) else { return Vec::new() };
    match super::product::manifest_restore_options(&bytes) {
        Ok(options) => options,
        Err(why) => panic!("{}/godwit-manifest.img: {why}", images.display()),
    }
}
