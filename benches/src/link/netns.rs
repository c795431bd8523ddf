//! Two hosts and a cable: a veth pair between two namespaces, with a token bucket (`man 8 tc-tbf`) at each end.

use std::io;
use std::path::Path;

use super::Link;
use super::namespace::Namespace;

/// The destination.
pub(super) const ADDRESS: &str = "10.77.43.2";

/// Device at the source.
const SOURCE_DEVICE: &str = "gwbench0";

/// Device at the destination.
const DESTINATION_DEVICE: &str = "gwbench1";

/// Most bytes that go out at once: a bucket that holds 2 ms of the rate, and never less than four of the largest
/// unsegmented packets, so that no packet needs to be cut up on the way.
fn burst_bytes(rate_mbit: u32) -> u64 {
    (u64::from(rate_mbit) * 250).max(256 * 1024)
}

pub(super) fn open(dir: &Path, rate_mbit: u32) -> io::Result<Link> {
    let source = Namespace::new("source", dir)?;
    let destination = Namespace::new("destination", dir)?;
    let there = destination.pid().to_string();
    source.output(
        "ip",
        &["link", "add", SOURCE_DEVICE, "type", "veth", "peer", "name", DESTINATION_DEVICE, "netns", &there],
    )?;
    let ends =
        [(&source, SOURCE_DEVICE, "10.77.43.1/30"), (&destination, DESTINATION_DEVICE, "10.77.43.2/30")];
    for (namespace, device, address) in ends {
        namespace.output("ip", &["address", "add", address, "dev", device])?;
        namespace.output("ip", &["link", "set", device, "up"])?;
    }
    for (namespace, device, _) in ends {
        let (rate, burst) = (format!("{rate_mbit}mbit"), burst_bytes(rate_mbit).to_string());
        let bucket = ["rate", &rate, "burst", &burst, "latency", "20ms"];
        let mut args = vec!["qdisc", "add", "dev", device, "root", "tbf"];
        args.extend(bucket);
        namespace.output("tc", &args)?;
    }
    Ok(Link {
        source,
        router: None,
        destination: Some(destination),
        device: SOURCE_DEVICE,
        address: ADDRESS,
        rate_mbit: Some(rate_mbit),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_two_milliseconds_of_its_rate_or_more() {
        assert_eq!(burst_bytes(10_000), 2_500_000);
        assert_eq!(burst_bytes(100), 256 * 1024);
    }
}
