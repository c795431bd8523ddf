//! A network namespace that a process of the suite holds: it goes with the suite, however that ends.

use std::io;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use crate::measure::wait_until;

/// The holder of a namespace.
pub(super) struct Namespace {
    holder: Child,
}

impl Namespace {
    /// A new one, with its loopback up. `dir` takes a file that says when it is there.
    pub(super) fn new(name: &str, dir: &Path) -> io::Result<Namespace> {
        let ready = dir.join(format!("namespace-{name}"));
        let holder = Command::new(crate::beside("suite")?)
            .arg("hold-namespace")
            .arg(&ready)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let mut namespace = Namespace { holder };
        wait_until(Duration::from_secs(10), "a network namespace", || {
            match namespace.holder.try_wait()? {
                Some(_) => Err(io::Error::other("cannot make a network namespace (root is needed)")),
                None => Ok(ready.exists()),
            }
        })?;
        namespace.output("ip", &["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    pub(super) fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// A command in it. nsenter becomes the program: the pid is that of the program.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.pid())).args(["--", program]);
        command
    }

    /// What a command in it prints.
    pub(super) fn output(&self, program: &str, args: &[&str]) -> io::Result<String> {
        let output = self.command(program).args(args).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(io::Error::other(format!("{program} {}: {complaint}", args.join(" "))));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// What the holder does: `suite hold-namespace READY`. It ends when its standard input does, that is with the suite.
///
/// # Errors
/// When the namespace cannot be made.
pub fn hold(ready: &Path) -> io::Result<ExitCode> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    std::fs::File::create(ready)?.flush()?;
    let mut end = [0];
    while matches!(io::stdin().read(&mut end), Ok(1..)) {}
    Ok(ExitCode::SUCCESS)
}
