//! A victim that stamps a log, and a real criu to dump it with.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The criu of a version ("4.1", "4.2"), or `None` after saying why not. `GODWIT_REQUIRE=all` makes a skip a failure.
pub fn require(test: &str, version: &str) -> Option<PathBuf> {
    let found = find(version);
    if let Err(why) = &found {
        eprintln!("SKIP {test}: {why}");
        assert_ne!(
            std::env::var("GODWIT_REQUIRE").as_deref(),
            Ok("all"),
            "{test} was skipped though required: {why}"
        );
    }
    found.ok()
}

fn find(version: &str) -> Result<PathBuf, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("criu wants root".into());
    }
    if Command::new("cc").arg("--version").output().is_err() {
        return Err("there is no C compiler for the victim".into());
    }
    let variable = format!("GODWIT_CRIU_{}", version.replace('.', ""));
    if let Some(path) = std::env::var_os(&variable) {
        return Ok(path.into());
    }
    let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/lab/lab");
    let output = Command::new(&lab).args(["paths", "--v", version, "--wrapper"]).output();
    match output {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).trim().into()),
        _ => Err(format!("{variable} is not set, and the lab has no criu {version}")),
    }
}

/// Stamps a line "nanoseconds pid-namespace count checksum" every millisecond; the count and the memory go on only
/// if the process does. With a second argument N it has a child, that has one too, and so on, N in all: the I-th stamps
/// the log whose name has ".I" behind it.
const VICTIM: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/stat.h>

int main(int argc, char **argv) {
    static unsigned char memory[4 << 20];
    for (size_t i = 0; i < sizeof memory; i++) memory[i] = i * 7 + (i >> 12);
    if (argc < 2) return 2;
    char name[4096];
    snprintf(name, sizeof name, "%s", argv[1]);
    for (int i = 1; argc > 2 && i <= atoi(argv[2]) && fork() == 0; i++)
        snprintf(name, sizeof name, "%s.%d", argv[1], i);
    int log = open(name, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (log < 0) return 2;
    for (unsigned long count = 0;; count++) {
        unsigned long sum = 0;
        for (size_t i = 0; i < sizeof memory; i += 4096) sum = sum * 31 + memory[i];
        struct stat ns;
        memset(&ns, 0, sizeof ns);
        stat("/proc/self/ns/pid", &ns);
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        char line[160];
        int len = snprintf(line, sizeof line, "%ld%09ld %lu %lu %lx\n", now.tv_sec, now.tv_nsec,
                           (unsigned long)ns.st_ino, count, sum);
        if (write(log, line, len) != len) return 3;
        usleep(1000);
    }
}
"#;

/// Images of a dumped victim, and the log it wrote.
pub struct Dumped {
    pub images: PathBuf,
    /// One a process, the root's first.
    pub logs: Vec<PathBuf>,
    pub pid: i32,
    root: tempfile::TempDir,
}

/// A line of the victim's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub unix_ns: u64,
    pub pid_ns: u64,
    pub count: u64,
    pub sum: u64,
}

impl Dumped {
    /// Starts a victim and dumps it with criu, which kills it.
    pub fn new(criu: &Path) -> Self {
        Self::tree(criu, 0)
    }

    /// The same of a tree, with this many processes below its root.
    pub fn tree(criu: &Path, below: usize) -> Self {
        let root = tempfile::tempdir().unwrap();
        let program = victim(root.path());
        let log = root.path().join("log");
        let mut logs = vec![log.clone()];
        logs.extend((1..=below).map(|nth| root.path().join(format!("log.{nth}"))));
        let mut child = start(&program, &log, below);
        let pid = child.id() as i32;
        wait("the victim runs", || logs.iter().all(|log| count_lines(log) > 20));
        let mut pids = vec![pid];
        while let Some(child) = only_child(*pids.last().unwrap()) {
            pids.push(child);
        }
        assert_eq!(pids.len(), logs.len());
        let images = root.path().join("s/final");
        std::fs::create_dir_all(&images).unwrap();
        let mut dump = Command::new(criu);
        dump.args(["dump", "-v2", "-o", "dump.log", "-t", &pid.to_string(), "-D"]).arg(&images);
        let status = dump.arg("-W").arg(root.path()).stdin(Stdio::null()).status().unwrap();
        let dump_log = std::fs::read_to_string(root.path().join("dump.log")).unwrap_or_default();
        assert!(status.success(), "criu dump: {status}\n{dump_log}");
        child.wait().unwrap();
        wait("the machine's init reaps the dumped processes", || {
            pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
        });
        Self { images, logs, pid, root }
    }

    pub fn dir(&self) -> &Path {
        self.root.path()
    }

    /// No count twice, none left out, memory unchanged: of each process one, always the same.
    pub fn check_one_life(&self) {
        for log in &self.logs {
            for pair in stamps(log).windows(2) {
                assert_eq!(pair[0].count + 1, pair[1].count, "{}: {pair:?}", log.display());
                assert_eq!(pair[0].sum, pair[1].sum, "{}: {pair:?}", log.display());
                assert!(pair[0].unix_ns < pair[1].unix_ns, "{}: {pair:?}", log.display());
            }
        }
    }

    /// Waits until every process of the tree has stamped some more.
    pub fn wait_running(&self) {
        let before: Vec<_> = self.logs.iter().map(|log| count_lines(log)).collect();
        wait("the restored victim runs", || {
            self.logs.iter().zip(&before).all(|(log, before)| count_lines(log) > before + 20)
        });
    }

    /// Looks for a while that nobody stamps.
    pub fn check_silent(&self) {
        let count = || self.logs.iter().map(|log| stamps(log).len()).collect::<Vec<_>>();
        let before = count();
        std::thread::sleep(Duration::from_millis(150));
        assert_eq!(count(), before, "something ran");
    }
}

fn stamps(log: &Path) -> Vec<Stamp> {
    let text = std::fs::read_to_string(log).unwrap();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let number = |text: Option<&str>, radix| u64::from_str_radix(text.unwrap(), radix).unwrap();
    let stamp = |line: &str| {
        let mut words = line.split(' ');
        Stamp {
            unix_ns: number(words.next(), 10),
            pid_ns: number(words.next(), 10),
            count: number(words.next(), 10),
            sum: number(words.next(), 16),
        }
    };
    whole.lines().map(stamp).collect()
}

fn victim(dir: &Path) -> PathBuf {
    let source = dir.join("victim.c");
    std::fs::write(&source, VICTIM).unwrap();
    let program = dir.join("victim");
    let status = Command::new("cc").args(["-O1", "-o"]).arg(&program).arg(&source).status().unwrap();
    assert!(status.success());
    program
}

fn start(program: &Path, log: &Path, below: usize) -> Child {
    let mut command = Command::new("setsid");
    command.arg(program).arg(log);
    if below > 0 {
        command.arg(below.to_string());
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/").spawn().unwrap()
}

fn only_child(pid: i32) -> Option<i32> {
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap().trim().parse().ok()
}

fn count_lines(path: &Path) -> usize {
    std::fs::read(path).map_or(0, |bytes| bytes.iter().filter(|b| **b == b'\n').count())
}

/// Waits for something, at most twenty seconds.
pub fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within 20 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}
