//! Child processes with a time limit and bounded output. Nothing here waits without end.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Output beyond this is read and dropped, so that a program that loops cannot fill memory.
const OUTPUT_BYTES_MAX: usize = 4 << 20;

/// A program that ended, or was killed at its time limit.
pub struct Finished {
    /// `None` when the time limit came first.
    pub status: Option<ExitStatus>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
    command: String,
}

impl Finished {
    /// Whether it ended in time with exit status 0.
    pub fn ok(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// The exit status; `None` after a signal or at the time limit.
    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }

    /// Itself, if it ended with exit status 0.
    ///
    /// # Panics
    /// Otherwise, with all it printed.
    #[track_caller]
    pub fn expect_ok(self) -> Self {
        assert!(self.ok(), "{self}");
        self
    }

    /// Itself, if it failed by an exit status of its own (not by a signal, a time limit or a panic).
    ///
    /// # Panics
    /// Otherwise, with all it printed.
    #[track_caller]
    pub fn expect_refusal(self) -> Self {
        let code = self.code();
        assert!(code.is_some_and(|code| code != 0 && code != 101), "expected a refusal: {self}");
        assert!(!self.stderr.contains("panicked at"), "a panic is no refusal: {self}");
        self
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.status {
            Some(status) => writeln!(f, "{} ended with {status} after {:?}", self.command, self.took)?,
            None => writeln!(f, "{} was killed at its time limit after {:?}", self.command, self.took)?,
        }
        write!(f, "--- stdout\n{}\n--- stderr\n{}", tail(&self.stdout), tail(&self.stderr))
    }
}

/// The last lines of a text: enough to see why something failed.
pub fn tail(text: &str) -> &str {
    let from = text.char_indices().rev().nth(6000).map_or(0, |(at, _)| at);
    &text[from..]
}

/// A running child whose output is being collected. Killed when dropped.
pub struct Running {
    child: Child,
    stdout: Collector,
    stderr: Collector,
    command: String,
    started: Instant,
}

struct Collector {
    text: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    fn new(mut from: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&text);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(n) = from.read(&mut buffer) {
                if n == 0 {
                    break;
                }
                let mut text = into.lock().unwrap();
                let room = OUTPUT_BYTES_MAX.saturating_sub(text.len());
                text.extend_from_slice(&buffer[..n.min(room)]);
            }
        });
        Self { text, thread: Some(thread) }
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap()).into_owned()
    }

    /// Waits a moment for the end of the stream: a grandchild may hold the pipe open, and is not waited for.
    fn all(&mut self) -> String {
        let until = Instant::now() + Duration::from_secs(2);
        if let Some(thread) = self.thread.take() {
            while !thread.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        self.so_far()
    }
}

impl Running {
    /// Starts `command` with its output collected and stdin on /dev/null.
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let text = format!("{command:?}");
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {text}: {error}"));
        let stdout = Collector::new(child.stdout.take().unwrap());
        let stderr = Collector::new(child.stderr.take().unwrap());
        Self { child, stdout, stderr, command: text, started: Instant::now() }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn stdout(&self) -> String {
        self.stdout.so_far()
    }

    pub fn stderr(&self) -> String {
        self.stderr.so_far()
    }

    /// The exit status if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// SIGKILL, and reaped.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until `found` answers something about what was printed so far (stdout, stderr), the child ends,
    /// or the time is over.
    pub fn wait_for<T>(&mut self, limit: Duration, found: impl Fn(&str, &str) -> Option<T>) -> Option<T> {
        let until = Instant::now() + limit;
        loop {
            let has_ended = self.ended().is_some();
            if has_ended {
                self.stdout.all();
                self.stderr.all();
            }
            let over = has_ended || Instant::now() >= until;
            if let Some(answer) = found(&self.stdout.so_far(), &self.stderr.so_far()) {
                return Some(answer);
            }
            if over {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end, or kills at the limit.
    pub fn finish(mut self, limit: Duration) -> Finished {
        let until = Instant::now() + limit;
        let mut status = self.ended();
        while status.is_none() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(3));
            status = self.ended();
        }
        let took = self.started.elapsed();
        if status.is_none() {
            self.kill();
        }
        Finished {
            status,
            stdout: self.stdout.all(),
            stderr: self.stderr.all(),
            took,
            command: std::mem::take(&mut self.command),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            self.kill();
        }
    }
}

/// Runs a command to its end or its time limit.
pub fn run(command: Command, limit: Duration) -> Finished {
    Running::start(command).finish(limit)
}

/// Polls until `holds`, or panics naming `what` when `limit` is over.
#[track_caller]
pub fn eventually(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < until, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
