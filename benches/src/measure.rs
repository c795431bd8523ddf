//! What a program cost: a small parent, the meter, runs it and asks the kernel afterwards.
//!
//! The meter is `suite meter RESULT PROGRAM ARGS...`. Its `RUSAGE_CHILDREN` are those of exactly one program and what
//! that program waited for; and being small itself it does not stand in the peak of a program it forks (the kernel
//! keeps the peak across exec). Programs that go on (a page server) are read from `/proc/PID`.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, killpg};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::interrupt;

/// CPU time and peak memory of one side of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// User and system time in seconds.
    pub cpu_s: f64,
    /// Peak resident memory in bytes.
    pub rss_bytes: u64,
}

/// What the meter says of a program that ended.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Metered {
    /// From its start to its end, in seconds.
    pub wall_s: f64,
    /// CPU time and peak memory.
    pub usage: Usage,
}

/// Runs a program and writes what it cost to `result`; exits as the program did.
///
/// # Errors
/// When the program cannot be started or the result not be written.
pub fn meter(result: &Path, program: &[String]) -> io::Result<ExitCode> {
    let (name, args) = program.split_first().ok_or_else(|| io::Error::other("meter: which program?"))?;
    let begun = Instant::now();
    let status = Command::new(name).args(args).status().map_err(|error| named(name, &error))?;
    let wall_s = begun.elapsed().as_secs_f64();
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    let cpu_s = seconds(usage.user_time()) + seconds(usage.system_time());
    let rss_bytes = u64::try_from(usage.max_rss()).unwrap_or(0) * 1024;
    let metered = Metered { wall_s, usage: Usage { cpu_s, rss_bytes } };
    fs::write(result, serde_json::to_vec(&metered)?)?;
    let code = status.code().unwrap_or(128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Memory that [`back_memory`] touches for a byte that a run writes: a pass of free page reporting takes a sixteenth of
/// what is free, and may come at any time.
const BACKED_TIMES: u64 = 4;
/// As much it touches at most, and so long, once a run's own need is met.
const BACKED_MAX: u64 = 4 << 30;
const BACKING_LIMIT: Duration = Duration::from_secs(6);
/// Length of a piece of it in bytes.
const BACKED_PIECE: usize = 128 << 20;

/// Touches more memory than a run will write, and gives it back: what a hypervisor took from this machine while it was
/// free (balloon, free page reporting) it brings back page by page at first use, five times slower than usual. Which run
/// would pay for that is chance. `run_bytes` is the memory of the process that is moved.
pub fn back_memory(run_bytes: u64) {
    let least = (run_bytes + run_bytes / 4).min(BACKED_MAX);
    let most = (run_bytes * BACKED_TIMES).min(BACKED_MAX);
    let (begun, mut touched) = (Instant::now(), 0);
    let mut pieces = Vec::new();
    while touched < least || (touched < most && begun.elapsed() < BACKING_LIMIT) {
        pieces.push(std::hint::black_box(vec![1_u8; BACKED_PIECE]));
        touched += BACKED_PIECE as u64;
    }
}

fn named(program: &str, error: &io::Error) -> io::Error {
    io::Error::other(format!("cannot run {program}: {error}"))
}

/// A program under way, the leader of its process group. Dropping it ends it.
pub struct Running {
    child: Child,
    name: String,
    dir: PathBuf,
}

/// What a program left behind.
pub struct Ended {
    /// What it cost; nothing for a program that was not metered.
    pub metered: Option<Metered>,
    /// What it wrote on standard output.
    pub stdout: String,
}

impl Running {
    /// Starts a command in a process group of its own. `name` is for messages, and for its files in `dir`:
    /// `NAME.out`, `NAME.err`, `NAME.meter`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command, name: &str, dir: &Path) -> io::Result<Running> {
        command.process_group(0);
        Running::start_leader(command, name, dir)
    }

    /// As [`Running::start`], for a program that makes itself the leader of a session: a group's leader could not.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_leader(mut command: Command, name: &str, dir: &Path) -> io::Result<Running> {
        let file = |end: &str| File::create(dir.join(format!("{name}.{end}")));
        let child = command
            .stdin(Stdio::null())
            .stdout(file("out")?)
            .stderr(file("err")?)
            .spawn()
            .map_err(|error| named(name, &error))?;
        Ok(Running { child, name: name.to_owned(), dir: dir.to_owned() })
    }

    /// The pid of what was started: of the meter, where there is one.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(0)
    }

    /// What it has written on standard output so far.
    pub fn stdout(&self) -> String {
        self.read("out")
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// With what it wrote on standard error, when it failed or took longer than `limit`.
    pub fn wait(mut self, limit: Duration) -> io::Result<Ended> {
        let mut status = None;
        wait_until(limit, &format!("{} to end", self.name), || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })
        .map_err(|error| self.failed(&error.to_string()))?;
        if !status.is_some_and(|status: ExitStatus| status.success()) {
            return Err(self.failed("failed"));
        }
        let metered = fs::read(self.dir.join(format!("{}.meter", self.name))).ok();
        let metered = metered.map(|bytes| serde_json::from_slice(&bytes)).transpose()?;
        Ok(Ended { metered, stdout: self.stdout() })
    }

    /// Waits until `ready` says so of the running program.
    ///
    /// # Errors
    /// When the program ends before, or it takes longer than `limit`.
    pub fn wait_ready(
        &mut self,
        limit: Duration,
        mut ready: impl FnMut(&Running) -> io::Result<bool>,
    ) -> io::Result<()> {
        wait_until(limit, &format!("{} to be ready", self.name), || {
            if self.child.try_wait()?.is_some() {
                return Err(self.failed("ended before it was ready"));
            }
            ready(self)
        })
    }

    /// An error that names the program and quotes what it complained of.
    pub fn failed(&self, what: &str) -> io::Error {
        let complaint = self.read("err");
        let tail: Vec<&str> = complaint.trim().lines().rev().take(12).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        io::Error::other(format!("{}: {what}: {}", self.name, tail.join("\n")))
    }

    fn read(&self, end: &str) -> String {
        let bytes = fs::read(self.dir.join(format!("{}.{end}", self.name))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // A dumper puts its victim right on SIGTERM; only what does not hear that is killed.
        let group = Pid::from_raw(self.pid());
        let _ = killpg(group, Signal::SIGTERM);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// Asks every two milliseconds until `done`.
///
/// # Errors
/// Those of `done`; after `limit`; when the suite was told to end.
pub fn wait_until(limit: Duration, what: &str, mut done: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let begun = Instant::now();
    while !done()? {
        interrupt::check()?;
        if begun.elapsed() > limit {
            return Err(io::Error::other(format!("waited {} s for {what}", limit.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// What a running process has used so far.
///
/// # Errors
/// When it is gone.
pub fn usage_of(pid: i32) -> io::Result<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let bad = |what: &str| io::Error::other(format!("/proc/{pid}/{what} is not understood"));
    Ok(Usage {
        cpu_s: parse_stat_cpu_s(&stat).ok_or_else(|| bad("stat"))?,
        rss_bytes: parse_status_kib(&status, "VmHWM").ok_or_else(|| bad("status"))? * 1024,
    })
}

/// The only child of a process: what the meter runs.
pub fn child_of(pid: i32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// User and system time (`man 5 proc`, stat fields 14 and 15), which the kernel counts in hundredths of a second.
fn parse_stat_cpu_s(stat: &str) -> Option<f64> {
    // The command in parentheses may hold spaces and parentheses.
    let fields = stat.get(stat.rfind(')')? + 1..)?;
    let ticks: Vec<u64> = fields.split_whitespace().skip(11).take(2).flat_map(str::parse).collect();
    match ticks[..] {
        [user, system] => Some((user + system) as f64 / 100.0),
        _ => None,
    }
}

/// A `NAME:  1234 kB` line of /proc/PID/status.
pub(crate) fn parse_status_kib(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_behind_a_command_with_parentheses() {
        let stat =
            "42 (a) b) S 1 42 42 0 -1 4194560 95 0 0 0 120 30 7 8 20 0 1 0 100 1000 10 18446744073709551615";
        assert_eq!(parse_stat_cpu_s(stat), Some(1.5));
        assert_eq!(parse_stat_cpu_s("42 (cut"), None);
        assert_eq!(parse_stat_cpu_s("42 (short) S 1 2"), None);
    }

    #[test]
    fn a_status_line_is_found_by_its_whole_name() {
        let status = "VmHWMX:\t 1 kB\nVmHWM:\t  2048 kB\nThreads:\t1\n";
        assert_eq!(parse_status_kib(status, "VmHWM"), Some(2048));
        assert_eq!(parse_status_kib(status, "Threads"), None);
        assert_eq!(parse_status_kib(status, "VmRSS"), None);
    }

    #[test]
    fn a_failed_program_is_named_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no room >&2; exit 3"]);
        let running = Running::start(command, "shell", dir.path()).unwrap();
        let error = running.wait(Duration::from_secs(10)).err().unwrap().to_string();
        assert!(error.contains("shell") && error.contains("no room"), "{error}");
    }

    #[test]
    fn what_is_dropped_does_not_run_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("60");
        let running = Running::start(command, "sleep", dir.path()).unwrap();
        let pid = running.pid();
        drop(running);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
