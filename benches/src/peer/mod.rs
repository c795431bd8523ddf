//! What moves memory in a run: godwit and what a user could pick instead.
//!
//! A new peer: a variant of [`Peer`], its name, and a function that makes a [`Sample`] of one run, in a file beside
//! this one. [`Stage`] has what such a function needs.

mod criu;
mod criu_rounds;
mod godwit;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

use crate::link::{Counters, Link, Timeline};
use crate::measure::{Ended, Running, Usage};
use crate::workload::Victim;

/// Rounds while the process runs, where their number is given.
pub const FIXED_ROUNDS: u32 = 3;

/// Who moves it, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// `godwit dump --to` a page server.
    Godwit,
    /// `godwit migrate --no-restore`: rounds while it runs, then one freeze.
    GodwitRounds,
    /// The same with [`FIXED_ROUNDS`] rounds, as CRIU's loop.
    GodwitFixedRounds,
    /// `godwit dump --images-dir`.
    GodwitLocal,
    /// `criu dump --page-server` to `criu page-server`.
    CriuPageServer,
    /// The same with `--tls`.
    CriuTls,
    /// `criu dump` into a directory.
    CriuLocal,
    /// [`FIXED_ROUNDS`] times `criu pre-dump --track-mem`, then `criu dump`, each with a page server.
    CriuRounds,
    /// The same into directories.
    CriuRoundsLocal,
}

impl Peer {
    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Peer::Godwit => "godwit",
            Peer::GodwitRounds => "godwit rounds",
            Peer::GodwitFixedRounds => "godwit 3 rounds",
            Peer::GodwitLocal => "godwit local",
            Peer::CriuPageServer => "criu page server",
            Peer::CriuTls => "criu page server --tls",
            Peer::CriuLocal => "criu local",
            Peer::CriuRounds => "criu 3 pre-dumps",
            Peer::CriuRoundsLocal => "criu 3 pre-dumps local",
        }
    }

    /// One run.
    ///
    /// # Errors
    /// When a program of it cannot be started or fails.
    pub fn run(self, stage: &Stage<'_>, victim: &Victim) -> io::Result<Sample> {
        match self {
            Peer::Godwit => godwit::to_server(stage, victim, godwit::Command::Dump),
            Peer::GodwitRounds => godwit::to_server(stage, victim, godwit::Command::Migrate),
            Peer::GodwitFixedRounds => {
                godwit::to_server(stage, victim, godwit::Command::Rounds(FIXED_ROUNDS))
            }
            Peer::GodwitLocal => godwit::local(stage, victim),
            Peer::CriuPageServer => criu::to_server(stage, victim, criu::Tls::No),
            Peer::CriuTls => criu::to_server(stage, victim, criu::Tls::Yes),
            Peer::CriuLocal => criu::local(stage, victim),
            Peer::CriuRounds => criu_rounds::rounds(stage, victim, criu_rounds::Where::Server),
            Peer::CriuRoundsLocal => criu_rounds::rounds(stage, victim, criu_rounds::Where::Here),
        }
    }
}

/// What one run cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// From the start of the dumper to its end, in seconds: all bytes are in the page cache of the destination.
    pub wall_s: f64,
    /// Time that fsync took of it, in seconds. CRIU calls none.
    pub fsync_s: f64,
    /// How long the process stood still, in seconds.
    pub freeze_s: f64,
    /// Rounds, the last one too.
    pub rounds: u32,
    /// Memory of the process that no file holds, in bytes.
    pub memory_bytes: u64,
    /// Bytes that left the source: at the queue of a shaped link, else at the device.
    pub wire_bytes: Option<u64>,
    /// Part of a shaped link's rate that was used from the start of the dumper to its end, fsync taken off.
    pub link_use: Option<f64>,
    /// The same while it was sending: between 2 % and 98 % of the bytes.
    pub link_use_sending: Option<f64>,
    /// The dumper.
    pub source: Usage,
    /// The server; for CRIU's, which serves once and ends, with its start and end.
    pub server: Option<Usage>,
}

impl Sample {
    /// Wall time for comparisons: without fsync, which only godwit waits for.
    pub fn compared_s(&self) -> f64 {
        self.wall_s - self.fsync_s
    }

    /// Adds what a link counted.
    fn with_link(mut self, link: &Link, counted: Counters, timeline: &Timeline) -> Sample {
        let bytes = counted.qdisc_bytes.unwrap_or(counted.sent_bytes);
        self.wire_bytes = Some(bytes);
        if let Some(rate) = link.rate_bytes() {
            self.link_use = Some(bytes as f64 / self.compared_s() / rate);
            // The device counts the headers of packets sent in one piece once, the queue counts all.
            let whole = bytes as f64 / (counted.sent_bytes as f64).max(1.0);
            self.link_use_sending = timeline.sending_rate().map(|sending| sending * whole / rate);
        }
        self
    }
}

/// Programs that take part.
#[derive(Clone, Debug)]
pub struct Programs {
    /// This suite, as meter.
    pub suite: String,
    /// The dumper.
    pub godwit: String,
    /// The page server.
    pub page_server: String,
    /// The criu to compare with.
    pub criu: String,
}

impl Programs {
    /// Those built beside the suite, and the given CRIU.
    ///
    /// # Errors
    /// When one is missing.
    pub fn find(criu: &Path) -> io::Result<Programs> {
        let [suite, godwit, page_server] = ["suite", "godwit", "godwit-page-server"].map(crate::beside);
        let criu = criu.to_string_lossy().into_owned();
        Ok(Programs { suite: suite?, godwit: godwit?, page_server: page_server?, criu })
    }
}

/// Where a run takes place.
pub struct Stage<'a> {
    /// Programs.
    pub programs: &'a Programs,
    /// The link.
    pub link: &'a Link,
    /// Keys of both sides (`godwit keys init`).
    pub keys: &'a Path,
    /// An empty directory for this run's images, journals and logs.
    pub dir: &'a Path,
    /// Whether the images of godwit are read back and checked after the run, which is not measured.
    pub check: bool,
}

/// A side of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where the victim is.
    Source,
    /// Where the images go.
    Destination,
}

impl Stage<'_> {
    /// A program under the meter; its result goes to `NAME.meter`.
    pub fn metered(&self, side: Side, name: &str, program: &str) -> Command {
        let mut command = match side {
            Side::Source => self.link.at_source(&self.programs.suite),
            Side::Destination => self.link.at_destination(&self.programs.suite),
        };
        command.arg("meter").arg(self.dir.join(format!("{name}.meter"))).arg(program);
        command
    }

    /// Starts a command; see [`Running::start`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, command: Command, name: &str) -> io::Result<Running> {
        Running::start(command, name, self.dir)
    }

    /// A new directory of this run.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make_dir(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.dir.join(name);
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// Runs what moves memory and adds what the link counted to the sample it makes.
    ///
    /// # Errors
    /// Those of `run`.
    pub fn counted(&self, run: impl FnOnce() -> io::Result<Sample>) -> io::Result<Sample> {
        let before = self.link.counters()?;
        let (sample, timeline) = Timeline::of(self.link, run)?;
        let counted = self.link.counters()?.since(before);
        Ok(sample.with_link(self.link, counted, &timeline))
    }
}

/// What the meter said; an error when it said nothing.
fn metered(ended: &Ended) -> io::Result<crate::measure::Metered> {
    ended.metered.ok_or_else(|| io::Error::other("the meter left no result"))
}
