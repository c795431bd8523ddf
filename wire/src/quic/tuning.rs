//! Settings of QUIC: sizes of packets, windows, times.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::bucket::Bucket;
use super::path::PathSizes;
use super::streams::Side;

/// Bytes that the congestion window starts with at least: what a switch holds for a port, and a few packets of any size.
const INITIAL_WINDOW_BYTES: u64 = 64 << 10;
/// Packets that it starts with at least; one alone would never be sent if it were larger than the window.
const INITIAL_WINDOW_PACKETS: u64 = 10;
/// Window of what the page server says: control messages of at most 1 MiB.
const TALK_WINDOW_BYTES: u32 = 4 << 20;

/// What a way is expected to carry, in bytes a second: 10 Gbit/s.
const EXPECTED_BYTES_PER_SECOND: f64 = 1.25e9;

/// Settings of a link.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Bytes of pages that one connection may have under way or unread, at first and on short ways.
    pub window_bytes: u32,
    /// The most that the first connection of a session may have, on long ways; each further one may have half of the one
    /// before, but no less than `window_bytes`. So eight of them have less than 96 MiB by default.
    pub window_max_bytes: u32,
    /// Largest UDP payload in bytes (1200 to 65507); without it, what the way takes.
    pub payload_max_bytes: Option<u16>,
    /// Wanted size of both kernel buffers of a socket in bytes; the kernel caps it (`net.core.rmem_max`, `wmem_max`).
    pub socket_buffer_bytes: usize,
    /// How often an idle link says that it lives.
    pub keep_alive: Duration,
    /// After how long without a word a link is lost; the smaller one of both ends counts.
    pub idle_timeout: Duration,
    /// How long to wait for the server's first answer.
    pub connect_limit: Duration,
    /// How long a peer that lives may take nothing of what is sent to it, as one whose disk hangs does.
    pub stall_limit: Duration,
    /// How fast everything that has these settings or a clone of them may send together; without a limit by default.
    pub bucket: Arc<Bucket>,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            window_bytes: 4 << 20,
            window_max_bytes: 32 << 20,
            payload_max_bytes: None,
            socket_buffer_bytes: 4 << 20,
            keep_alive: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(15),
            connect_limit: Duration::from_secs(5),
            stall_limit: Duration::from_secs(30),
            bucket: Arc::default(),
        }
    }
}

impl Tuning {
    /// `buffer_bytes` is what the socket's receive buffer holds.
    pub(super) fn transport(
        &self,
        sizes: PathSizes,
        side: Side,
        buffer_bytes: usize,
    ) -> Arc<TransportConfig> {
        let mut transport = TransportConfig::default();
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(sizes.bound);
        let mut cubic = CubicConfig::default();
        let packets = INITIAL_WINDOW_PACKETS * u64::from(sizes.start);
        cubic.initial_window(packets.max(INITIAL_WINDOW_BYTES));
        // Pages go one way only. A stream's own window cannot be changed later, that of the connection can.
        let (stream_window, window, send_window) = match side {
            Side::Client => (TALK_WINDOW_BYTES, TALK_WINDOW_BYTES, self.window_bytes),
            Side::Server => {
                (self.window_max_bytes, self.first_window(sizes, buffer_bytes), TALK_WINDOW_BYTES)
            }
        };
        transport
            .initial_mtu(sizes.start)
            .mtu_discovery_config(Some(discovery))
            .congestion_controller_factory(Arc::new(cubic))
            .stream_receive_window(VarInt::from_u32(stream_window))
            .receive_window(VarInt::from_u32(window))
            .send_window(u64::from(send_window))
            .max_concurrent_bidi_streams(VarInt::from_u32(1))
            .max_concurrent_uni_streams(VarInt::from_u32(64))
            .datagram_receive_buffer_size(None)
            .keep_alive_interval(Some(self.keep_alive))
            .max_idle_timeout(IdleTimeout::try_from(self.idle_timeout).ok());
        Arc::new(transport)
    }

    /// The window of a connection with a lane of that number, once the way's round-trip time is known: what comes at
    /// [`EXPECTED_BYTES_PER_SECOND`] within two of them, so that a lost packet does not stop the others.
    pub(super) fn window(&self, sizes: PathSizes, buffer_bytes: usize, rtt: Duration, lane: u32) -> u32 {
        let first = self.first_window(sizes, buffer_bytes);
        if sizes.is_local() {
            return first;
        }
        let most = self.window_max_bytes.checked_shr(lane).unwrap_or(0).max(first);
        let wanted = (2.0 * EXPECTED_BYTES_PER_SECOND * rtt.as_secs_f64()).min(f64::from(u32::MAX));
        (wanted as u32).clamp(first, most)
    }

    /// Within a host nothing holds packets but the receiver's buffer: what is more than that is lost.
    fn first_window(&self, sizes: PathSizes, buffer_bytes: usize) -> u32 {
        if !sizes.is_local() {
            return self.window_bytes;
        }
        let least = 3 * u32::from(sizes.start);
        self.window_bytes.min(u32::try_from(buffer_bytes).unwrap_or(u32::MAX)).max(least)
    }

    pub(super) fn sizes(&self, peer: SocketAddr) -> PathSizes {
        PathSizes::of(peer, self.payload_max_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIRE: PathSizes = PathSizes { start: 1452, bound: 1472 };
    const LOCAL: PathSizes = PathSizes { start: 65507, bound: 65507 };

    #[test]
    fn windows_follow_the_round_trip_within_their_bounds() {
        let tuning = Tuning::default();
        let window = |millis, lane| tuning.window(WIRE, 4 << 20, Duration::from_millis(millis), lane);
        assert_eq!(window(0, 0), 4 << 20);
        assert_eq!(window(5, 0), 12_500_000);
        assert_eq!(window(100, 0), 32 << 20);
        assert_eq!(window(100, 1), 16 << 20);
        assert_eq!(window(100, 200), 4 << 20);
        let sum: u32 = (0..8).map(|lane| window(10_000, lane)).sum();
        assert!(sum < 96 << 20, "{sum}");
    }

    #[test]
    fn within_a_host_the_window_is_what_the_buffer_holds() {
        let tuning = Tuning::default();
        let window = |buffer| tuning.window(LOCAL, buffer, Duration::from_millis(100), 0);
        assert_eq!(window(4 << 20), 4 << 20);
        assert_eq!(window(1 << 20), 1 << 20);
        assert_eq!(window(1000), 3 * 65507, "a few packets always");
    }
}
