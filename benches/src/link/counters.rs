//! What the kernel counts of a link.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Link;

/// Bytes over a link's device at the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Went out. A packet that segmentation offload sends in one piece counts its headers once.
    pub sent_bytes: u64,
    /// Came in.
    pub received_bytes: u64,
    /// Went through the queue of a shaped link, every header counted.
    pub qdisc_bytes: Option<u64>,
}

impl Counters {
    /// What was counted since.
    pub fn since(self, before: Counters) -> Counters {
        let qdisc_bytes = match (self.qdisc_bytes, before.qdisc_bytes) {
            (Some(after), Some(before)) => Some(after.saturating_sub(before)),
            _ => None,
        };
        Counters {
            sent_bytes: self.sent_bytes.saturating_sub(before.sent_bytes),
            received_bytes: self.received_bytes.saturating_sub(before.received_bytes),
            qdisc_bytes,
        }
    }
}

/// A device's line in /proc/net/dev (`man 5 proc_pid_net`): eight counters of what came in, eight of what went out.
pub(super) fn parse_net_dev(table: &str, device: &str) -> Option<Counters> {
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'))?;
    let mut fields = line.split_whitespace().map(str::parse);
    let received_bytes = fields.next()?.ok()?;
    let sent_bytes = fields.nth(7)?.ok()?;
    Some(Counters { sent_bytes, received_bytes, qdisc_bytes: None })
}

/// The bytes of the root queue in what `tc -s -j qdisc show` prints.
pub(super) fn parse_qdisc_bytes(shown: &str) -> io::Result<u64> {
    let queues: Value = serde_json::from_str(shown)?;
    let root =
        queues.as_array().and_then(|queues| queues.iter().find(|queue| queue["root"] == Value::Bool(true)));
    root.and_then(|queue| queue["bytes"].as_u64()).ok_or_else(|| io::Error::other("tc shows no root queue"))
}

/// Whether /proc/net/tcp holds a listening socket (state 0A) on a port.
pub(super) fn parse_tcp_listens(table: &str, port: u16) -> bool {
    let local = format!(":{port:04X}");
    table.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next().is_some_and(|address| address.ends_with(&local)) && fields.nth(1) == Some("0A")
    })
}

/// How far a transfer was, over time: seconds since its begin, bytes sent so far.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    samples: Vec<(f64, u64)>,
}

impl Timeline {
    /// Samples a link every five milliseconds while `run` runs.
    ///
    /// # Errors
    /// Those of `run`, and when the link's counters cannot be read.
    pub fn of<T>(link: &Link, run: impl FnOnce() -> io::Result<T>) -> io::Result<(T, Timeline)> {
        let over = AtomicBool::new(false);
        let begun = Instant::now();
        let begin = link.sent_bytes()?;
        thread::scope(|scope| {
            let sampler = scope.spawn(|| {
                let mut samples = vec![(0.0, 0)];
                while !over.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(5));
                    let sent = link.sent_bytes()?.saturating_sub(begin);
                    samples.push((begun.elapsed().as_secs_f64(), sent));
                }
                io::Result::Ok(Timeline { samples })
            });
            let done = run();
            over.store(true, Ordering::Relaxed);
            let timeline =
                sampler.join().map_err(|_| io::Error::other("the sampler of a link panicked"))??;
            Ok((done?, timeline))
        })
    }

    /// Bytes a second from the moment 2 % of all bytes were out until 98 % were: the rate while it was sending,
    /// without what comes before and after.
    pub fn sending_rate(&self) -> Option<f64> {
        let total = self.samples.last()?.1 as f64;
        let at = |part: f64| self.samples.iter().find(|(_, sent)| *sent as f64 >= total * part);
        let ((begin_s, begin), (end_s, end)) = (at(0.02)?, at(0.98)?);
        (end_s > begin_s).then(|| (end - begin) as f64 / (end_s - begin_s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NET_DEV: &str = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
gwbench0: 1534 17 0 0 0 0 0 0 98765432109 70 0 0 0 0 0 0
gwbench01: 1 1 0 0 0 0 0 0 2 1 0 0 0 0 0 0
";

    #[test]
    fn a_device_is_found_by_its_whole_name() {
        let counted = parse_net_dev(NET_DEV, "gwbench0").unwrap();
        assert_eq!((counted.received_bytes, counted.sent_bytes), (1534, 98_765_432_109));
        assert_eq!(parse_net_dev(NET_DEV, "gwbench"), None);
        assert_eq!(parse_net_dev("gwbench0: 1 2", "gwbench0"), None);
    }

    #[test]
    fn the_root_queue_is_counted() {
        let shown = r#"[{"kind":"fq","parent":"1:","bytes":7},
            {"kind":"tbf","handle":"8001:","root":true,"options":{"rate":125000000},"bytes":1073741824,"packets":9}]"#;
        assert_eq!(parse_qdisc_bytes(shown).unwrap(), 1 << 30);
        assert!(parse_qdisc_bytes("[]").is_err());
        assert!(parse_qdisc_bytes("").is_err());
    }

    #[test]
    fn only_a_listening_socket_counts() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n\
            0: 0100007F:2631 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1 1\n\
            1: 0100007F:2632 0100007F:2631 01 00000000:00000000 00:00000000 00000000 0 0 1 1\n";
        assert!(parse_tcp_listens(table, 9777));
        assert!(!parse_tcp_listens(table, 9778));
        assert!(!parse_tcp_listens(table, 1));
    }

    #[test]
    fn a_rate_is_taken_while_it_was_sending() {
        // A second of preparations, four of sending at 25 a second, two of waiting.
        let samples = vec![(0.0, 0), (1.0, 0), (2.0, 25), (3.0, 50), (4.0, 75), (5.0, 100), (7.0, 100)];
        let rate = Timeline { samples }.sending_rate().unwrap();
        assert!((rate - 25.0).abs() < 1e-9, "{rate}");
        assert_eq!(Timeline::default().sending_rate(), None);
    }
}
