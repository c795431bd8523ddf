//! The bandwidth limit of a link: its words on the command line, and the file by which `godwit limit` changes it.
//!
//! `STATE_DIR/limits/PID.lock` is held by the godwit that moves process PID while its link is open; `STATE_DIR/limits/PID`
//! holds the wanted limit. Both go with the link.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use godwit_wire::quic::{Bucket, RATE_MAX_BYTES_PER_SECOND, RATE_MIN_BYTES_PER_SECOND};
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Pid;

/// How often the file is read.
const LOOK: Duration = Duration::from_millis(250);
/// Units of a rate, in bytes a second each; longer ones stand before their own ends.
const UNITS: [(&str, f64); 10] = [
    ("kbit", 125.0),
    ("Mbit", 125e3),
    ("Gbit", 125e6),
    ("kB", 1e3),
    ("KB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
];

/// A bandwidth limit in bytes a second, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate(pub Option<u64>);

/// Reads `800Mbit`, `1.5Gbit`, `100MB`, `64MiB` (per second) or `none`.
impl std::str::FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        if text == "none" {
            return Ok(Rate(None));
        }
        let wrong =
            || format!("{text:?} is no rate such as 800Mbit, 1.5Gbit, 100MB or 64MiB (per second), or none");
        let (number, unit) = UNITS
            .iter()
            .find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, scale)))
            .ok_or_else(wrong)?;
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
            return Err(wrong());
        }
        let bytes = number.parse::<f64>().map_err(|_| wrong())? * unit;
        if bytes < RATE_MIN_BYTES_PER_SECOND as f64 || bytes > RATE_MAX_BYTES_PER_SECOND as f64 {
            return Err(format!("{text} is no rate from 64KiB to 125GB a second; no limit is \"none\""));
        }
        Ok(Rate(Some(bytes as u64)))
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            None => f.write_str("none"),
            Some(rate) => write!(f, "{} bytes/s", rate),
        }
    }
}

fn paths(state_dir: &Path, pid: Pid) -> (PathBuf, PathBuf) {
    let dir = state_dir.join("limits");
    (dir.join(pid.to_string()), dir.join(format!("{pid}.lock")))
}

fn open_lock(path: &Path, create: bool) -> io::Result<File> {
    let nofollow = nix::libc::O_NOFOLLOW;
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nofollow)
        .open(path)
}

/// The thread that follows the file while a link is open.
#[derive(Debug)]
pub struct Watch {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    wanted: PathBuf,
    lock_path: PathBuf,
    _lock: Flock<File>,
}

impl Watch {
    /// Makes the limit of `bucket` changeable by `godwit limit --pid PID`.
    ///
    /// # Errors
    /// When the state directory cannot be written, or another godwit works on the same process.
    pub fn start(state_dir: &Path, pid: Pid, bucket: Arc<Bucket>) -> io::Result<Watch> {
        let (wanted, lock_path) = paths(state_dir, pid);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir.join("limits"))?;
        let lock = Flock::lock(open_lock(&lock_path, true)?, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| io::Error::from(errno))?;
        // What a killed godwit left behind is no wish of today.
        match fs::remove_file(&wanted) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let (stop, stopped) = mpsc::channel();
        let file = wanted.clone();
        let follow = move || {
            while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                let Ok(text) = fs::read_to_string(&file) else { continue };
                match text.trim().parse::<Rate>() {
                    Ok(rate) if rate.0 != bucket.rate() => {
                        bucket.set_rate(rate.0, Instant::now());
                        tracing::warn!(limit = %rate, "the bandwidth limit was changed");
                    }
                    Ok(_) => {}
                    Err(error) => tracing::debug!(%error, "the wanted bandwidth limit cannot be read"),
                }
            }
        };
        let thread = std::thread::Builder::new().name("godwit-limit".to_owned()).spawn(follow)?;
        Ok(Watch { stop: Some(stop), thread: Some(thread), wanted, lock_path, _lock: lock })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // While the lock is still held: nobody takes these files for living ones.
        let _ = fs::remove_file(&self.wanted);
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// Tells the godwit that moves process `pid` its new limit; it takes it within a quarter of a second.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] when no godwit with that state directory has a link open for the process.
pub fn change(state_dir: &Path, pid: Pid, text: &str) -> io::Result<()> {
    let (wanted, lock_path) = paths(state_dir, pid);
    let nobody = || {
        let text = format!(
            "no running godwit sends process {pid} to a page server with the state directory {}",
            state_dir.display()
        );
        io::Error::new(io::ErrorKind::NotFound, text)
    };
    let lock = open_lock(&lock_path, false).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => nobody(),
        _ => error,
    })?;
    if Flock::lock(lock, FlockArg::LockSharedNonblock).is_ok() {
        return Err(nobody());
    }
    let mut file = tempfile::NamedTempFile::new_in(state_dir.join("limits"))?;
    file.write_all(text.as_bytes())?;
    file.persist(wanted).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_a_unit_and_bounds() {
        let rate = |text: &str| text.parse::<Rate>().map(|rate| rate.0);
        assert_eq!(rate("none"), Ok(None));
        assert_eq!(rate("800Mbit"), Ok(Some(100_000_000)));
        assert_eq!(rate("1.5Gbit"), Ok(Some(187_500_000)));
        assert_eq!(rate("100MB"), Ok(Some(100_000_000)));
        assert_eq!(rate("64MiB"), Ok(Some(64 << 20)));
        assert_eq!(rate("64KiB"), Ok(Some(64 << 10)));
        for wrong in
            ["", "5", "MB", "-1MB", "1e3MB", "0MB", "1kbit", "126GB", "NaNMB", "1..5MB", "10mb", "1 MB"]
        {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_a_running_one_is_told_and_nothing_stays() {
        let (dir, pid) = (tempfile::tempdir().unwrap(), Pid::from_raw(77));
        assert_eq!(change(dir.path(), pid, "1MB").unwrap_err().kind(), io::ErrorKind::NotFound);
        let watch = Watch::start(dir.path(), pid, Arc::default()).unwrap();
        assert!(Watch::start(dir.path(), pid, Arc::default()).is_err());
        change(dir.path(), pid, "1MB").unwrap();
        drop(watch);
        assert_eq!(fs::read_dir(dir.path().join("limits")).unwrap().count(), 0);
        assert_eq!(change(dir.path(), pid, "1MB").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
