//! Limits, contents and trackers as lines of the table.

use std::fmt::Write as _;

use super::{ContentResult, LimitResult};
use crate::summary::Series;
use crate::tracking::catalog::TrackingResult;

/// What the machine could do at all.
pub fn limits(text: &mut String, limits: &[LimitResult]) {
    if limits.is_empty() {
        return;
    }
    let title = "limits of this machine";
    let _ =
        writeln!(text, "\n{title:<44} {:>24} {:>10} {:>10}", "MiB/s (least-most)", "CPU s/GiB", "receiver");
    for limit in limits {
        let (least, most) = limit.mib_per_s.spread();
        let rate = format!("{:.0} ({least:.0}-{most:.0})", limit.mib_per_s.median());
        let receiver = if limit.receiver_cpu_s_per_gib.is_empty() {
            String::new()
        } else {
            median(&limit.receiver_cpu_s_per_gib)
        };
        let cpu = median(&limit.cpu_s_per_gib);
        let _ = writeln!(text, "  {:<42} {rate:>24} {cpu:>10} {receiver:>10}", limit.limit);
    }
}

fn median(series: &Series) -> String {
    format!("{:.3}", series.median())
}

/// How well the workloads' memory packs.
pub fn contents(text: &mut String, contents: &[ContentResult]) {
    if contents.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "\n{:<44} {:>12} {:>12} {:>12}",
        "what packing leaves of the memory", "lz4 64 KiB", "zstd -1", "zero pages"
    );
    for content in contents {
        let name = &content.content;
        let _ = match (&content.packs, &content.skipped) {
            (Some(packs), _) => writeln!(
                text,
                "  {name:<42} {:>12.3} {:>12.3} {:>12.3}",
                packs.lz4, packs.zstd, packs.zero_pages
            ),
            (None, why) => writeln!(text, "  {name:<42} SKIP: {}", why.as_deref().unwrap_or_default()),
        };
    }
}

/// What tracking costs.
pub fn tracking(text: &mut String, tracking: &[TrackingResult]) {
    if tracking.is_empty() {
        return;
    }
    let _ = writeln!(text, "\nwhat tracking costs");
    for one in tracking {
        let _ = writeln!(text, "  {}", one.line());
    }
}
