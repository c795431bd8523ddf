//! Under which conditions was measured: without them a number says nothing.

use std::fs;
use std::io;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::measure::parse_status_kib;
use crate::peer::Programs;
use crate::runner::Settings;

/// The machine, the programs and the settings.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Conditions {
    /// When the suite began, UTC, RFC 3339.
    pub date: String,
    /// Kernel release.
    pub kernel: String,
    /// Processors that the suite may use.
    pub cores: usize,
    /// Their model.
    pub cpu_model: String,
    /// Processes that wanted to run in the minute before the suite began: on a quiet machine nearly none.
    pub load: f64,
    /// Memory of the machine in bytes.
    pub memory_bytes: u64,
    /// What `godwit --version` says.
    pub godwit: String,
    /// Commit it was built from, where a repository is around.
    pub revision: Option<String>,
    /// `release` or `dev`: how godwit was built, as far as the suite can tell from its own build.
    pub profile: String,
    /// What `criu --version` says.
    pub criu: String,
    /// Measured repeats.
    pub repeats: usize,
    /// `tmpfs` or `disk`: where both sides' images went.
    pub images_on: String,
    /// Whether memory was a sixteenth and repeats fewer.
    pub quick: bool,
}

impl Conditions {
    /// Asks the machine and the programs.
    ///
    /// # Errors
    /// When a program does not say its version.
    pub fn gather(programs: &Programs, settings: &Settings, quick: bool) -> io::Result<Conditions> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Ok(Conditions {
            date: OffsetDateTime::now_utc().format(&Rfc3339).map_err(io::Error::other)?,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            cpu_model: model.map_or("unknown", |(_, model)| model.trim()).to_owned(),
            load: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
            memory_bytes: parse_status_kib(&read("/proc/meminfo"), "MemTotal").unwrap_or(0) * 1024,
            godwit: said(&programs.godwit, &["--version"])?.trim_start_matches("godwit ").to_owned(),
            revision: said("git", &["rev-parse", "--short=12", "HEAD"]).ok(),
            profile: if cfg!(debug_assertions) { "dev" } else { "release" }.to_owned(),
            criu: said(&programs.criu, &["--version"])?.trim_start_matches("Version: ").to_owned(),
            repeats: settings.repeats,
            images_on: if settings.on_disk { "disk" } else { "tmpfs" }.to_owned(),
            quick,
        })
    }
}

/// The first line that a program prints.
fn said(program: &str, args: &[&str]) -> io::Result<String> {
    let failed = |why: String| io::Error::other(format!("{program} {}: {why}", args.join(" ")));
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(output.status.to_string()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}
