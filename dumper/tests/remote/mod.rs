//! What the tests of `remote` and `freeze` share: their own small C programs, and looks at them from outside.
#![allow(dead_code, reason = "each test program uses a part")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use godwit_dumper::procfs::{maps, status, tree};
use nix::unistd::Pid;

/// Compiles `tests/remote/NAME.c` into `dir`. `GODWIT_VICTIMS` names a directory of compiled ones, for a machine without
/// a compiler.
pub fn compile(dir: &Path, compiler: &str, name: &str, flags: &[&str]) -> PathBuf {
    if let Some(dir) = std::env::var_os("GODWIT_VICTIMS") {
        return Path::new(&dir).join(name);
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/remote").join(format!("{name}.c"));
    let program = dir.join(name);
    let output = Command::new(compiler)
        .args(["-O1", "-Wall", "-Wextra", "-pthread", "-o"])
        .arg(&program)
        .arg(&source)
        .args(flags)
        .output()
        .unwrap();
    assert!(output.status.success(), "{compiler} {name}: {}", String::from_utf8_lossy(&output.stderr));
    program
}

/// A child that is killed and reaped when this is dropped.
pub struct Victim {
    child: Child,
    output: PathBuf,
}

impl Victim {
    /// Starts a program whose standard input stays open until [`Victim::release`].
    pub fn start(dir: &Path, program: &Path, args: &[&str]) -> Victim {
        let output = dir.join(format!("output-{}", args.join("-").replace('/', "_")));
        let file = std::fs::File::create(&output).unwrap();
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stderr(file.try_clone().unwrap())
            .stdout(file)
            .spawn()
            .unwrap();
        Victim { child, output }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// Closes its standard input.
    pub fn release(&mut self) {
        drop(self.child.stdin.take());
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The signal that ended it.
    pub fn signal(&mut self) -> Option<i32> {
        let status = self.child.wait().unwrap();
        std::os::unix::process::ExitStatusExt::signal(&status)
    }

    /// Waits for its end and returns its exit code.
    pub fn wait(&mut self, limit: Duration) -> Option<i32> {
        let until = Instant::now() + limit;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("still running after {limit:?}; it wrote: {}", self.output());
    }

    /// Waits until it has written a line that begins with `word`.
    pub fn wait_for(&self, word: &str) {
        eventually(
            || self.output().lines().any(|line| line.starts_with(word)),
            || format!("no {word}; it wrote: {}", self.output()),
        );
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn eventually(mut done: impl FnMut() -> bool, what: impl Fn() -> String) {
    let until = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < until, "{}", what());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether no thread of the process is traced.
pub fn is_untraced(pid: Pid) -> bool {
    let threads = tree::threads(pid).unwrap_or_default();
    threads.iter().all(|tid| status::read_thread(pid, *tid).is_ok_and(|status| status.tracer_pid == 0))
}

/// Everything the process maps, but for how far its main stack has grown.
pub fn map_of(pid: Pid) -> Vec<String> {
    let vmas = maps::read(pid).unwrap();
    let show = |vma: &maps::Vma| {
        let start = if vma.path == b"[stack]" { 0 } else { vma.start };
        let path = String::from_utf8_lossy(&vma.path).into_owned();
        format!("{start:x}-{:x} {}{}{}{} {path}", vma.end, vma.read, vma.write, vma.exec, vma.shared)
    };
    vmas.iter().map(show).collect()
}

/// Marsaglia's xorshift: all these tests want is a sequence that a seed names.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
