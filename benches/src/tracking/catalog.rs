//! What of the trackers' cost is measured, by name.

use std::io;
use std::time::Duration;

use godwit_dumper::predump::tracker::Choice;
use serde::Serialize;

use super::Writer;
use super::cost::{self, Cost};
use super::scan;
use crate::summary::Series;
use crate::workload::hot_set::How;

/// A measurement of a tracker's cost.
#[derive(Clone, Debug)]
pub struct Tracking {
    /// Its name in results.
    pub name: String,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Scan(scan::Settings),
    Cost(cost::Settings),
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct TrackingResult {
    /// Its name.
    pub name: String,
    /// Length of a collection alone, in milliseconds.
    #[serde(skip_serializing_if = "Series::is_empty")]
    pub scan_ms: Series,
    /// Throughput of a process that writes as fast as it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
}

/// Memory that is scanned, and that the writer has, in MiB.
const SCAN_MIB: u64 = 4096;
const WRITER_MIB: u64 = 1024;
/// The same of a suite that only shows that everything works.
const QUICK_MIB: u64 = 64;
/// Pages of a hundred that are written between two scans.
const WRITTEN_PERCENT: [u32; 3] = [0, 10, 100];
/// Hot sets of the writers, in pages of a hundred, with what they write.
const WRITERS: [(u32, How); 3] = [(10, How::Counter), (10, How::Random), (100, How::Random)];
/// Time between two rounds.
const INTERVAL: Duration = Duration::from_secs(1);
const INTERVAL_QUICK: Duration = Duration::from_millis(100);
/// Rounds before the tracker is taken off again.
const ROUNDS: usize = 4;

/// All of them. `quick` takes memory and time down.
pub fn catalog(quick: bool, repeats: usize) -> Vec<Tracking> {
    let tracker = Choice::UffdWp;
    let (scan_mib, writer_mib) = if quick { (QUICK_MIB, QUICK_MIB) } else { (SCAN_MIB, WRITER_MIB) };
    let interval = if quick { INTERVAL_QUICK } else { INTERVAL };
    let scans = WRITTEN_PERCENT.into_iter().map(|written_percent| {
        let settings = scan::Settings { memory_mib: scan_mib, written_percent, tracker, repeats };
        let name = format!("scan of {scan_mib} MiB, {written_percent} % written, uffd-wp");
        Tracking { name, what: What::Scan(settings) }
    });
    let costs = WRITERS.into_iter().map(|(hot_percent, how)| {
        let writer = Writer { memory_mib: writer_mib, hot_percent, how };
        let settings = cost::Settings { writer, tracker, interval, rounds: ROUNDS, repeats };
        let word = crate::workload::value_name(&how);
        let name = format!("writer of {hot_percent} % of {writer_mib} MiB ({word}), tracked by uffd-wp");
        Tracking { name, what: What::Cost(settings) }
    });
    scans.chain(costs).collect()
}

impl Tracking {
    /// Measures it.
    ///
    /// # Errors
    /// When the process cannot be started, or the tracker does not work here.
    pub fn run(&self) -> io::Result<TrackingResult> {
        let name = self.name.clone();
        match self.what {
            What::Scan(settings) => {
                let scans = scan::measure(settings)?;
                let scan_ms = scans.iter().map(|scan| scan.wall.as_secs_f64() * 1e3).collect();
                Ok(TrackingResult { name, scan_ms, cost: None })
            }
            What::Cost(settings) => {
                let cost = Some(cost::measure(settings)?);
                Ok(TrackingResult { name, scan_ms: Series::default(), cost })
            }
        }
    }
}

impl TrackingResult {
    /// In one line.
    pub fn line(&self) -> String {
        let shown = |series: &Series, digits: usize| {
            let (least, most) = series.spread();
            format!("{:.digits$} ({least:.digits$}-{most:.digits$})", series.median())
        };
        match &self.cost {
            None => format!("{}: {} ms", self.name, shown(&self.scan_ms, 1)),
            Some(cost) => format!(
                "{}: {:.0} pages/s untracked; between rounds {} of that, in rounds {}; a round takes {} ms, its scan {} ms",
                self.name,
                cost.untracked.median(),
                shown(&cost.between_share, 2),
                shown(&cost.within_share, 2),
                shown(&cost.round_ms, 0),
                shown(&cost.scan_ms, 1),
            ),
        }
    }
}
