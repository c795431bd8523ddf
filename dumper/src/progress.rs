//! A progress bar a round on a terminal, plain lines otherwise.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use godwit_page_server::store::sink::{Fill, Sealed, Sink, SinkError, Takes};
use godwit_wire::image::manifest::Manifest;
use godwit_wire::plan::{PAGE_SIZE, RoundPlan};
use indicatif::{ProgressBar, ProgressStyle};

use crate::report::RoundReport;

/// Shows how far a round is.
pub struct Progress {
    bar: Option<ProgressBar>,
    lines: bool,
    done: AtomicU64,
}

impl Progress {
    /// Starts a round of `pages` pages; shows nothing when not `wanted`.
    pub fn start(wanted: bool, round: u32, pages: u64) -> Progress {
        let terminal = std::io::stderr().is_terminal();
        let bar = (wanted && terminal).then(|| {
            let bar = ProgressBar::new(pages * PAGE_SIZE);
            if let Ok(style) = ProgressStyle::with_template(
                "{prefix} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            ) {
                bar.set_style(style);
            }
            bar.set_prefix(format!("round {round}"));
            bar
        });
        Progress { bar, lines: wanted && !terminal, done: AtomicU64::new(0) }
    }

    /// A sink that counts what passes.
    pub fn watch<'a>(&'a self, sink: &'a dyn Sink) -> Watched<'a> {
        Watched { progress: self, sink }
    }

    /// Ends the round.
    pub fn finish(&self, report: &RoundReport) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.lines || self.bar.is_some() {
            let _ = writeln!(
                std::io::stderr(),
                "round {}: {} pages sent, {} in the round before, {:.1} ms",
                report.round,
                report.pages_sent(),
                report.pages_in_parent,
                report.duration_us as f64 / 1e3
            );
        }
    }
}

/// Passes everything on and counts pages.
pub struct Watched<'a> {
    progress: &'a Progress,
    sink: &'a dyn Sink,
}

impl Sink for Watched<'_> {
    fn begin(&self, plan: &RoundPlan) -> Result<(), SinkError> {
        self.sink.begin(plan)
    }

    fn fill(&self, fill: Fill) -> Result<(), SinkError> {
        let pages = fill.content.pages() + fill.content.copied();
        self.sink.fill(fill)?;
        let done = self.progress.done.fetch_add(pages, Ordering::Relaxed) + pages;
        if let Some(bar) = &self.progress.bar {
            bar.set_position(done * PAGE_SIZE);
        }
        Ok(())
    }

    fn image(&self, round: u32, name: &str, bytes: Bytes) -> Result<(), SinkError> {
        self.sink.image(round, name, bytes)
    }

    fn seal(&self, round: u32, manifest: &Manifest) -> Result<Sealed, SinkError> {
        self.sink.seal(round, manifest)
    }

    fn abandon(&self, round: u32) -> Result<(), SinkError> {
        self.sink.abandon(round)
    }

    fn takes(&self) -> Takes {
        self.sink.takes()
    }

    fn check_round(&self, round: u32) -> Result<(), SinkError> {
        self.sink.check_round(round)
    }
}
