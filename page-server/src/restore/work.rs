//! The work directory of one restore attempt: how its processes and any incarnation of the server talk.
//!
//! Everything is a file, since the server may die and another one come: the plan, who the init is, that the tree is
//! held, the decision (a fifo that the hook reads), how criu ended. A file appears whole, by rename.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use super::process::Identity;

const PLAN: &str = "plan.json";
const INIT: &str = "init.json";
const HELD: &str = "held";
const ABORT: &str = "abort";
const DECISION: &str = "decision";
const OUTCOME: &str = "outcome";
/// Bytes of a log that are shown in a message.
const TAIL_LEN_MAX: usize = 4096;

/// What to restore, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    /// The program that holds the hidden subcommands: this server.
    pub program: PathBuf,
    pub criu: PathBuf,
    pub images_dir: PathBuf,
    /// Options for `criu restore`, checked.
    pub options: Vec<String>,
    /// A pid and mount namespace of its own, or the host's.
    pub own_pidns: bool,
    /// How long criu may take until the tree is held, and from the release until it ends, in milliseconds.
    pub limit_ms: u64,
    /// The operator's action scripts. Plans of before it was there have none.
    #[serde(default)]
    pub action_scripts: Vec<PathBuf>,
}

impl Plan {
    pub(super) fn limit(&self) -> Duration {
        Duration::from_millis(self.limit_ms)
    }
}

/// What the hook was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Release,
    Abort,
}

/// A work directory; the value is only its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WorkDir(PathBuf);

impl WorkDir {
    pub(super) fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Makes the directory with its plan and its fifo; what an earlier try under this name left goes.
    pub(super) fn create(path: PathBuf, plan: &Plan) -> io::Result<Self> {
        match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        let work = Self(path);
        nix::unistd::mkfifo(&work.0.join(DECISION), Mode::S_IRUSR | Mode::S_IWUSR)?;
        work.put(PLAN, &serde_json::to_vec(plan)?)?;
        Ok(work)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn plan(&self) -> io::Result<Plan> {
        Ok(serde_json::from_slice(&std::fs::read(self.0.join(PLAN))?)?)
    }

    pub(super) fn put_init(&self, init: &Identity) -> io::Result<()> {
        self.put(INIT, &serde_json::to_vec(init)?)
    }

    /// Who the init is; `None` until it was started.
    pub(super) fn init(&self) -> io::Result<Option<Identity>> {
        self.get(INIT)?.map(|bytes| Ok(serde_json::from_slice(&bytes)?)).transpose()
    }

    /// Says that the tree is held, and its root's pid as criu's pid namespace has it.
    pub(super) fn put_held(&self, root: i32) -> io::Result<()> {
        self.put(HELD, root.to_string().as_bytes())
    }

    pub(super) fn held(&self) -> io::Result<Option<i32>> {
        let Some(bytes) = self.get(HELD)? else { return Ok(None) };
        let pid = String::from_utf8_lossy(&bytes).trim().parse();
        pid.map(Some)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the mark of the held tree has no pid"))
    }

    /// Keeps an attempt that has not begun from beginning.
    pub(super) fn put_abort(&self) -> io::Result<()> {
        self.put(ABORT, b"")
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.0.join(ABORT).exists()
    }

    /// How criu ended, in words; it begins with `ok` for success.
    pub(super) fn put_outcome(&self, words: &str) -> io::Result<()> {
        self.put(OUTCOME, words.as_bytes())
    }

    pub(super) fn outcome(&self) -> io::Result<Option<String>> {
        Ok(self.get(OUTCOME)?.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()))
    }

    /// Tells the hook. `false` if none listens: it has not come that far, or is gone.
    pub(super) fn decide(&self, decision: Decision) -> io::Result<bool> {
        let mut options = OpenOptions::new();
        let opened = options.write(true).custom_flags(libc::O_NONBLOCK).open(self.0.join(DECISION));
        let mut fifo = match opened {
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => return Ok(false),
            other => other?,
        };
        let line: &[u8] = match decision {
            Decision::Release => b"release\n",
            Decision::Abort => b"abort\n",
        };
        match fifo.write_all(line) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether a hook listens: the tree is held.
    pub(super) fn is_listening(&self) -> bool {
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_NONBLOCK).open(self.0.join(DECISION)).is_ok()
    }

    /// The hook's end of the fifo. It is opened for writing too, so that a server which opens it and dies does
    /// not end the hook's reading.
    pub(super) fn listen(&self) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.0.join(DECISION))
    }

    pub(super) fn criu_log(&self) -> PathBuf {
        self.0.join("restore.log")
    }

    pub(super) fn init_log(&self) -> PathBuf {
        self.0.join("init.log")
    }

    /// The words for a message: errors and warnings of criu's log, then what the init said.
    pub(super) fn log_tail(&self) -> String {
        let read =
            |path: PathBuf| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
        let criu = read(self.criu_log());
        let told = |line: &&str| line.contains("Error") || line.contains("Warn") || line.contains("cut at");
        let lines: Vec<&str> = criu.lines().filter(told).collect();
        let mut text = lines.join("\n");
        if lines.is_empty() {
            text = criu;
        }
        let init = read(self.init_log());
        text.push_str(if init.is_empty() || text.is_empty() { "" } else { "\n" });
        text.push_str(init.trim_end());
        let from = text.len().saturating_sub(TAIL_LEN_MAX);
        let from = (from..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
        text.split_off(from)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut tmp = OsString::from(name);
        tmp.push(".tmp");
        let tmp = self.0.join(tmp);
        std::fs::write(&tmp, bytes)?;
        std::fs::rename(tmp, self.0.join(name))
    }

    fn get(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match std::fs::read(self.0.join(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }
}
