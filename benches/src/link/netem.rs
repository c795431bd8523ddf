//! Two hosts far apart: a router between them delays and loses packets (`man 8 tc-netem`).
//!
//! The router is a namespace of its own so that it sees packets as they are on a wire: at the sender's device a queue
//! sees what segmentation offload sends in one piece, and would lose ten packets at once.

use std::io;
use std::path::Path;

use super::Link;
use super::namespace::Namespace;

/// The destination.
pub(super) const ADDRESS: &str = "10.77.45.2";

/// Device at the source.
const SOURCE_DEVICE: &str = "gwbench0";

/// How far apart, and how good the way is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Far {
    /// Round-trip time in milliseconds, half of it each way.
    pub rtt_ms: u32,
    /// Packets of ten thousand that are lost, each way.
    pub lost_per_10k: u32,
    /// Rate in Mbit/s, each way.
    pub rate_mbit: u32,
}

/// Bytes of a packet, for the length of the queue.
const PACKET_BYTES: u64 = 1500;
/// Time that the router's queue is long, in milliseconds.
const QUEUE_MS: u64 = 50;

impl Far {
    /// Percent of packets that are lost.
    pub(super) fn lost_percent(self) -> f64 {
        f64::from(self.lost_per_10k) / 100.0
    }

    /// What netem is told: it holds the packets that are under way and those that wait.
    fn netem(self) -> Vec<String> {
        let held_ms = u64::from(self.rtt_ms) / 2 + QUEUE_MS;
        let limit = (u64::from(self.rate_mbit) * 1000 * held_ms / 8 / PACKET_BYTES).max(20);
        let mut words = vec!["netem".to_owned(), "delay".to_owned(), format!("{}us", self.rtt_ms * 500)];
        if self.lost_per_10k > 0 {
            words.extend(["loss".to_owned(), format!("{}%", self.lost_percent())]);
        }
        words.extend(["rate".to_owned(), format!("{}mbit", self.rate_mbit)]);
        words.extend(["limit".to_owned(), limit.to_string()]);
        words
    }
}

pub(super) fn open(dir: &Path, far: Far) -> io::Result<Link> {
    let source = Namespace::new("source", dir)?;
    let router = Namespace::new("router", dir)?;
    let destination = Namespace::new("destination", dir)?;
    let ends = [
        (&source, SOURCE_DEVICE, "10.77.44.2/24", "gwrouter0", "10.77.44.1"),
        (&destination, "gwbench1", "10.77.45.2/24", "gwrouter1", "10.77.45.1"),
    ];
    router.output("sysctl", &["-q", "-w", "net.ipv4.ip_forward=1"])?;
    for (end, device, address, router_device, router_address) in ends {
        let there = router.pid().to_string();
        end.output(
            "ip",
            &["link", "add", device, "type", "veth", "peer", "name", router_device, "netns", &there],
        )?;
        // The device cuts everything into packets before it hands it over.
        end.output("ip", &["link", "set", device, "gso_max_segs", "1", "up"])?;
        end.output("ip", &["address", "add", address, "dev", device])?;
        router.output("ip", &["address", "add", &format!("{router_address}/24"), "dev", router_device])?;
        router.output("ip", &["link", "set", router_device, "up"])?;
        end.output("ip", &["route", "add", "default", "via", router_address])?;
        let netem = far.netem();
        let mut args = vec!["qdisc", "add", "dev", router_device, "root"];
        args.extend(netem.iter().map(String::as_str));
        router.output("tc", &args)?;
    }
    let address = ADDRESS;
    let destination = Some(destination);
    Ok(Link { source, router: Some(router), destination, device: SOURCE_DEVICE, address, rate_mbit: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_holds_what_is_under_way_and_fifty_milliseconds() {
        let words = Far { rtt_ms: 20, lost_per_10k: 10, rate_mbit: 120 }.netem().join(" ");
        assert_eq!(words, "netem delay 10000us loss 0.1% rate 120mbit limit 600");
        let words = Far { rtt_ms: 1, lost_per_10k: 0, rate_mbit: 1 }.netem().join(" ");
        assert_eq!(words, "netem delay 500us rate 1mbit limit 20");
    }
}
