//! The part of the suite that runs in the lab's virtual machine (`deploy/lab`): its kernel has netem and soft-dirty
//! tracking, which the host's may not have.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::report::GuestResults;

/// Memory of the machine in MiB.
const MEMORY_MIB: u32 = 3072;
/// How long it may run, in seconds.
const LIMIT_S: u32 = 900;
/// CRIU 4.2 in it.
const CRIU: &str = "/criu42/criu";
/// The lab, from the directory that the suite is started in.
const LAB: &str = "deploy/lab/lab";

/// Huge pages as on most servers: where they are everywhere, a byte that is written makes 2 MiB soft-dirty.
const PREPARED: &str = "echo madvise >/sys/kernel/mm/transparent_hugepage/enabled; exec \"$@\"";

/// Runs the suite there and brings its results back. `only` and `repeats` are passed on.
///
/// # Errors
/// When the lab fails, or no results come back.
pub fn run(only: &[String], repeats: usize) -> io::Result<GuestResults> {
    let dir = tempfile::Builder::new().prefix("godwit-bench-vm-").tempdir()?;
    let mut lab = Command::new(std::env::var_os("GODWIT_LAB_CMD").unwrap_or_else(|| LAB.into()));
    lab.args(["vm", "--mem", &MEMORY_MIB.to_string(), "--timeout", &LIMIT_S.to_string()]);
    for name in ["suite", "workload", "godwit", "godwit-page-server"] {
        let program = stripped(&crate::beside(name)?, &dir.path().join(name))?;
        lab.arg("--in").arg(format!("{}:{name}", program.display()));
    }
    let out = dir.path().join("out");
    lab.arg("--out")
        .arg(&out)
        .args(["--", "sh", "-c", PREPARED, "sh", "./suite", "--in-vm", "--out", "out", "--criu", CRIU]);
    lab.args(["--repeats", &repeats.to_string()]);
    lab.args(only.iter().flat_map(|name| ["--only", name]));
    // Its console is a serial line, which ends lines in its own way.
    let status = lab.stdin(Stdio::null()).stdout(io::stderr()).status()?;
    let results = fs::read(out.join("results.json"))
        .map_err(|_| io::Error::other(format!("no results from the virtual machine: {status}")))?;
    Ok(serde_json::from_slice(&results)?)
}

/// A copy without debugging information, which is most of a program and would have to go through the initramfs.
fn stripped(program: &str, into: &Path) -> io::Result<PathBuf> {
    let status = Command::new("strip").arg("-o").arg(into).arg(program).status();
    if !status.is_ok_and(|status| status.success()) {
        fs::copy(program, into)?;
    }
    Ok(into.to_owned())
}
