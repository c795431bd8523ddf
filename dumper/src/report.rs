//! What a dump or migration did: for a person, and as one JSON object.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use godwit_wire::image::stats::{DumpStatsEntry, StatsEntry};
use godwit_wire::image::{ImageError, ImageKind, ImageWriter};
use godwit_wire::plan::PAGE_SIZE;
use hdrhistogram::Histogram;
use nix::unistd::Pid;
use serde::Serialize;

use crate::link::{LinkCounters, Shares};
use crate::predump::pages::{self, Counts};
use crate::refusal::Loss;

/// Percentiles of a time, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Percentiles {
    /// Values counted.
    pub count: u64,
    /// Median.
    pub p50_us: u64,
    /// 90 % are at most this.
    pub p90_us: u64,
    /// 99 % are at most this.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}

impl Percentiles {
    /// Of a histogram of microseconds.
    pub fn of(histogram: &Histogram<u64>) -> Percentiles {
        Percentiles {
            count: histogram.len(),
            p50_us: histogram.value_at_quantile(0.5),
            p90_us: histogram.value_at_quantile(0.9),
            p99_us: histogram.value_at_quantile(0.99),
            max_us: histogram.max(),
        }
    }
}

/// One pre-dump round, or the last set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RoundReport {
    /// Number of the round.
    pub round: u32,
    /// Pages of the process that were looked at.
    pub pages_scanned: u64,
    /// Pages left to the round before.
    pub pages_in_parent: u64,
    /// Pages sent as bytes.
    pub pages_data: u64,
    /// Pages sent as zeros.
    pub pages_zero: u64,
    /// Pages sent by the hash of what the round before holds.
    pub pages_same: u64,
    /// Pages sent as what they differ in from the round before.
    pub pages_delta: u64,
    /// Pages that another process holds too, sent by naming their slots beside its bytes.
    pub pages_copied: u64,
    /// Pages that were listed and gone when they were read.
    pub pages_gone: u64,
    /// From the scan to the acknowledgement.
    pub duration_us: u64,
    /// Time that the server's last fsync took.
    pub fsync_us: u64,
}

impl RoundReport {
    /// Pages sent, of any kind.
    pub fn pages_sent(&self) -> u64 {
        self.pages_data + self.pages_zero + self.pages_same + self.pages_delta + self.pages_copied
    }

    /// With the pages of shared memory segments added.
    pub fn with_shared(mut self, shared: SharedPages) -> RoundReport {
        self.pages_scanned += shared.in_parent + shared.data + shared.zero;
        self.pages_in_parent += shared.in_parent;
        self.pages_data += shared.data;
        self.pages_zero += shared.zero;
        self
    }
}

/// Pages of shared memory segments in a round, or in the last set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SharedPages {
    /// Left to the round before.
    pub in_parent: u64,
    /// Sent as bytes.
    pub data: u64,
    /// Sent as zeros.
    pub zero: u64,
}

impl SharedPages {
    /// Of what was sent, and what was left to the round before.
    pub fn of(sent: Counts, in_parent: u64) -> SharedPages {
        SharedPages { in_parent, data: sent.data, zero: sent.zero }
    }
}

/// The way to a page server, as it was at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Way {
    /// UDP payload of a full packet, in bytes.
    pub packet_bytes: u16,
    /// Packets that are sent in one call; 1 without segmentation offload, or where one packet is all that a call takes.
    pub packets_a_call: usize,
    /// Smoothed round-trip time, in microseconds.
    pub rtt_us: u64,
    /// Packets believed lost.
    pub lost_packets: u64,
}

impl Way {
    fn of(link: &LinkCounters) -> Option<Way> {
        (link.sent_bytes > 0).then_some(Way {
            packet_bytes: link.mtu_bytes,
            packets_a_call: link.segments,
            rtt_us: link.rtt.as_micros() as u64,
            lost_packets: link.lost_packets,
        })
    }
}

/// The whole of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The process, or the root of the tree.
    pub pid: i32,
    /// Living processes that were dumped.
    pub processes: usize,
    /// Processes that had ended and were not waited for.
    pub zombies: usize,
    /// Session at the page server, or the local directory.
    pub session: String,
    /// The dirty tracker, or `none` without rounds.
    pub tracker: String,
    /// Pre-dump rounds, and the last set.
    pub rounds: Vec<RoundReport>,
    /// How long the process stood still before its images were whole, in milliseconds.
    pub freeze_ms: f64,
    /// From the freeze until the process ran at the destination, in milliseconds; equal to `freeze_ms` when it
    /// was not restored there.
    pub downtime_ms: f64,
    /// From start to end, in milliseconds.
    pub total_ms: f64,
    /// Memory of the process that was covered, in bytes.
    pub memory_bytes: u64,
    /// Bytes of UDP payload sent to the page server; 0 for a local directory.
    pub wire_bytes: u64,
    /// What the pages took on the way to a page server, by their form.
    pub link: Shares,
    /// The way itself; nothing for a local directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub way: Option<Way>,
    /// Whether it runs at the destination.
    pub restored: bool,
    /// Its pid there, as the destination's host sees it.
    pub restored_pid: Option<i32>,
    /// Time that freezes took (a round may need short ones).
    pub freezes: Percentiles,
    /// Time that reads of up to 1 MiB of pages took.
    pub page_reads: Percentiles,
    /// Time that rounds took.
    pub round_durations: Percentiles,
    /// What a restore drops, by name.
    pub losses: Vec<String>,
    /// How to restore by hand, when it was not restored.
    pub restore_command: Option<String>,
}

/// What a report is made from.
pub struct Outcome<'a> {
    /// The process, or the root of the tree.
    pub pid: Pid,
    /// Living processes that were dumped.
    pub processes: usize,
    /// Processes that had ended and were not waited for.
    pub zombies: usize,
    /// Session or directory.
    pub session: &'a str,
    /// The dirty tracker, if rounds ran.
    pub tracker: Option<&'static str>,
    /// Rounds and last set.
    pub reports: Vec<RoundReport>,
    /// Times of page reads, in microseconds.
    pub read_latency_us: Histogram<u64>,
    /// How long the freeze took, if there was one.
    pub freeze: Option<Duration>,
    /// From the freeze until it ran again somewhere.
    pub downtime: Duration,
    /// From start to end.
    pub total: Duration,
    /// What went over the link.
    pub link: LinkCounters,
    /// Its pid at the destination.
    pub restored_pid: Option<i32>,
    /// What a restore drops.
    pub losses: &'a [Loss],
    /// The restore by hand.
    pub restore_command: Option<String>,
}

impl Report {
    /// Adds everything up.
    pub fn new(outcome: Outcome<'_>) -> Report {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let mut freezes = pages::latency_histogram();
        if let Some(freeze) = outcome.freeze {
            freezes.saturating_record(freeze.as_micros() as u64);
        }
        let mut rounds = pages::latency_histogram();
        for round in &outcome.reports {
            rounds.saturating_record(round.duration_us);
        }
        let memory_pages = outcome.reports.last().map_or(0, |last| last.pages_scanned);
        Report {
            pid: outcome.pid.as_raw(),
            processes: outcome.processes,
            zombies: outcome.zombies,
            session: outcome.session.to_owned(),
            tracker: outcome.tracker.unwrap_or("none").to_owned(),
            freeze_ms: ms(outcome.freeze.unwrap_or_default()),
            downtime_ms: ms(outcome.downtime),
            total_ms: ms(outcome.total),
            memory_bytes: memory_pages * PAGE_SIZE,
            wire_bytes: outcome.link.sent_bytes,
            way: Way::of(&outcome.link),
            link: outcome.link.shares,
            restored: outcome.restored_pid.is_some(),
            restored_pid: outcome.restored_pid,
            freezes: Percentiles::of(&freezes),
            page_reads: Percentiles::of(&outcome.read_latency_us),
            round_durations: Percentiles::of(&rounds),
            rounds: outcome.reports,
            losses: outcome.losses.iter().map(ToString::to_string).collect(),
            restore_command: outcome.restore_command,
        }
    }
}

impl Report {
    /// Who else was dumped, in words; nothing for a single process.
    fn family(&self) -> String {
        let others = self.processes.saturating_sub(1);
        let zombies = if self.zombies > 0 { format!(", {} zombies", self.zombies) } else { String::new() };
        match (others, self.zombies) {
            (0, 0) => String::new(),
            (1, _) => format!(" and 1 process below it{zombies}"),
            _ => format!(" and {others} processes below it{zombies}"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: f64 = (1 << 20) as f64;
        for round in &self.rounds {
            writeln!(
                f,
                "round {:>2}: {:>9} pages sent ({} zero, {} same, {} in part, {} of another process, {} gone), {} in the round before, {:.1} ms (fsync {:.1} ms)",
                round.round,
                round.pages_sent(),
                round.pages_zero,
                round.pages_same,
                round.pages_delta,
                round.pages_copied,
                round.pages_gone,
                round.pages_in_parent,
                round.duration_us as f64 / 1e3,
                round.fsync_us as f64 / 1e3,
            )?;
        }
        writeln!(
            f,
            "process {}{} ({:.1} MiB, tracker {}): frozen {:.1} ms, down {:.1} ms, {:.1} ms in all, {:.1} MiB on the wire",
            self.pid,
            self.family(),
            self.memory_bytes as f64 / MIB,
            self.tracker,
            self.freeze_ms,
            self.downtime_ms,
            self.total_ms,
            self.wire_bytes as f64 / MIB,
        )?;
        let forms = [
            ("as they are", self.link.raw),
            ("by lz4", self.link.lz4),
            ("by zstd", self.link.zstd),
            ("in part", self.link.delta),
            ("by their hash", self.link.same),
            ("with those of another process", self.link.copies),
        ];
        for (form, share) in forms.iter().filter(|(_, share)| share.frames > 0) {
            let (pages, payload) = (share.page_bytes as f64 / MIB, share.payload_bytes as f64 / MIB);
            writeln!(f, "pages sent {form}: {pages:.1} MiB in {payload:.1} MiB, {} frames", share.frames)?;
        }
        if let Some(way) = &self.way {
            writeln!(
                f,
                "packets of {} bytes, {} a call, {} lost; round trip {:.1} ms",
                way.packet_bytes,
                way.packets_a_call,
                way.lost_packets,
                way.rtt_us as f64 / 1e3
            )?;
        }
        for loss in &self.losses {
            writeln!(f, "not restored: {loss}")?;
        }
        match (self.restored_pid, &self.restore_command) {
            (Some(pid), _) => {
                write!(f, "it runs at the destination as process {pid} (session {})", self.session)
            }
            (None, Some(command)) => write!(f, "images: {}; restore them with: {command}", self.session),
            (None, None) => write!(f, "images: {}", self.session),
        }
    }
}

/// Times and counts for `stats-dump` (images/stats.proto), in microseconds and pages.
#[derive(Clone, Copy, Debug, Default)]
pub struct DumpStats {
    /// From the first seize to the last thread's stop.
    pub freezing: Duration,
    /// From the last thread's stop until the images were whole.
    pub frozen: Duration,
    /// Finding and reading pages.
    pub memdump: Duration,
    /// Waiting for pages to be written.
    pub memwrite: Duration,
    /// Pages looked at.
    pub pages_scanned: u64,
    /// Pages left to the parent.
    pub pages_skipped_parent: u64,
    /// Pages of the task in this directory's pages file.
    pub pages_written: u64,
    /// Pages of shared memory segments, holes too.
    pub shared_scanned: u64,
    /// Pages of shared memory segments left to the parent.
    pub shared_skipped_parent: u64,
    /// Pages of shared memory segments in this directory's pages files.
    pub shared_written: u64,
}

impl DumpStats {
    /// The image, as CRIU writes it.
    ///
    /// # Errors
    /// Never for a record of this size; the signature is that of every image.
    pub fn image(&self) -> Result<(String, Bytes), ImageError> {
        let us = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        let dump = DumpStatsEntry {
            freezing_time: us(self.freezing),
            frozen_time: us(self.frozen),
            memdump_time: us(self.memdump),
            memwrite_time: us(self.memwrite),
            pages_scanned: self.pages_scanned,
            pages_skipped_parent: self.pages_skipped_parent,
            pages_written: self.pages_written,
            irmap_resolve: Some(0),
            pages_lazy: 0,
            page_pipes: Some(0),
            page_pipe_bufs: Some(0),
            shpages_scanned: Some(self.shared_scanned),
            shpages_skipped_parent: Some(self.shared_skipped_parent),
            shpages_written: Some(self.shared_written),
        };
        let entry = StatsEntry { dump: Some(dump), restore: None };
        Ok((ImageKind::StatsDump.file_name(0), ImageWriter::single(ImageKind::StatsDump, &entry)?))
    }
}
