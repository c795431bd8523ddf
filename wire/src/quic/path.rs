//! What the way to a peer takes: the kernel's word on the size of packets.
//!
//! The cost of a link is counted in packets, not in bytes, so a packet is as large as its way allows. The kernel knows
//! the first device of the way, and what routers have told it about the rest; what lies between is found by probes
//! (RFC 8899), which quinn sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use rustix::net::sockopt;

/// Largest UDP payload of IPv4 in bytes: a total length of 65535, less IP and UDP headers. One `sendmsg` with UDP_SEGMENT
/// takes no more either.
pub(super) const PAYLOAD_MAX: u16 = 65507;
/// Smallest one that QUIC works with (RFC 9000 section 14).
pub(super) const PAYLOAD_MIN: u16 = 1200;
/// UDP payload of an Ethernet frame of 1500 bytes with IPv6: what is sent unprobed to where the kernel knows no less.
const PAYLOAD_ETHERNET: u16 = 1452;
/// MTU of a route over the kernel's own loopback device, and of no wire: packets of this size stay within the host. The
/// device says 65536, and IPv4 routes no more than this (`include/net/ip.h`, IP_MAX_MTU).
const MTU_LOOPBACK: u32 = 65535;
/// Headers in front of a UDP payload on IPv4: 20 + 8 bytes.
const HEADERS_V4: u32 = 28;
/// The same on IPv6: 40 + 8 bytes.
const HEADERS_V6: u32 = 48;

/// Sizes of UDP payloads on the way to a peer, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PathSizes {
    /// What is sent before anything is known about the way.
    pub start: u16,
    /// How far probes go: what the first device takes.
    pub bound: u16,
}

impl PathSizes {
    /// Asks the kernel for the way to `peer`, and takes no more than `limit`.
    pub fn of(peer: SocketAddr, limit: Option<u16>) -> PathSizes {
        let limit = limit.unwrap_or(PAYLOAD_MAX).clamp(PAYLOAD_MIN, PAYLOAD_MAX);
        Self::from_mtu(route_mtu(peer), peer).at_most(limit)
    }

    fn from_mtu(mtu: Option<u32>, peer: SocketAddr) -> PathSizes {
        let headers = if peer.ip().to_canonical().is_ipv4() { HEADERS_V4 } else { HEADERS_V6 };
        // No route is an error that the first packet will report.
        let Some(mtu) = mtu else { return PathSizes { start: PAYLOAD_MIN, bound: PAYLOAD_ETHERNET } };
        let bound = u16::try_from(mtu.saturating_sub(headers)).unwrap_or(PAYLOAD_MAX);
        let bound = bound.clamp(PAYLOAD_MIN, PAYLOAD_MAX);
        let start = if mtu >= MTU_LOOPBACK { bound } else { bound.min(PAYLOAD_ETHERNET) };
        PathSizes { start, bound }
    }

    fn at_most(self, limit: u16) -> PathSizes {
        PathSizes { start: self.start.min(limit), bound: self.bound.min(limit) }
    }

    /// Whether the packets do not leave the host.
    pub fn is_local(self) -> bool {
        self.start > PAYLOAD_ETHERNET
    }
}

/// MTU of the route to `peer` in bytes, with what routers on the way have said (man 7 ip, IP_MTU). Nothing is sent:
/// connecting a UDP socket only looks the route up.
fn route_mtu(peer: SocketAddr) -> Option<u32> {
    let ip = peer.ip().to_canonical();
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // A scope belongs to the address: link-local peers have no route without it.
    let peer = if ip == peer.ip() { peer } else { SocketAddr::from((ip, peer.port())) };
    socket.connect(peer).ok()?;
    if ip.is_ipv4() { sockopt::ip_mtu(&socket) } else { sockopt::ipv6_mtu(&socket) }.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(mtu: u32, peer: &str) -> (u16, u16) {
        let PathSizes { start, bound } = PathSizes::from_mtu(Some(mtu), peer.parse().unwrap());
        (start, bound)
    }

    #[test]
    fn headers_are_taken_off_and_wires_are_probed() {
        assert_eq!(sizes(1500, "192.0.2.1:1"), (1452, 1472));
        assert_eq!(sizes(1500, "[2001:db8::1]:1"), (1452, 1452));
        assert_eq!(sizes(9000, "192.0.2.1:1"), (1452, 8972));
        assert_eq!(sizes(1420, "192.0.2.1:1"), (1392, 1392), "a tunnel starts at what it takes");
        assert_eq!(sizes(65534, "192.0.2.1:1"), (1452, 65506), "no loopback");
        assert_eq!(sizes(65535, "127.0.0.1:1"), (65507, 65507));
        assert_eq!(sizes(65536, "[::1]:1"), (65488, 65488));
        assert_eq!(sizes(576, "192.0.2.1:1"), (1200, 1200), "QUIC does not go below");
        assert_eq!(sizes(u32::MAX, "192.0.2.1:1"), (65507, 65507));
        assert_eq!(sizes(0, "192.0.2.1:1"), (1200, 1200));
    }

    #[test]
    fn a_mapped_address_has_the_headers_of_ipv4() {
        assert_eq!(sizes(1500, "[::ffff:192.0.2.1]:1"), (1452, 1472));
    }

    #[test]
    fn a_limit_holds_for_both() {
        let limited = PathSizes::from_mtu(Some(65536), "127.0.0.1:1".parse().unwrap()).at_most(6000);
        assert_eq!(limited, PathSizes { start: 6000, bound: 6000 });
    }

    #[test]
    fn the_loopback_device_says_its_size() {
        let local = PathSizes::of("127.0.0.1:9".parse().unwrap(), None);
        let mtu: u32 = std::fs::read_to_string("/sys/class/net/lo/mtu").unwrap().trim().parse().unwrap();
        let mtu = mtu.min(MTU_LOOPBACK);
        assert_eq!(local, PathSizes::from_mtu(Some(mtu), "127.0.0.1:9".parse().unwrap()));
    }
}
