//! Settings of QUIC: sizes of packets, windows, times.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::path::PathSizes;
use super::streams::Side;

/// Bytes that the congestion window starts with at least: what a switch holds for a port, and a few packets of any size.
const INITIAL_WINDOW_BYTES: u64 = 64 << 10;
/// Packets that it starts with at least; one alone would never be sent if it were larger than the window.
const INITIAL_WINDOW_PACKETS: u64 = 10;
/// Window of what the page server says: control messages of at most 1 MiB.
const TALK_WINDOW_BYTES: u32 = 4 << 20;

/// Settings of a link.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Bytes of pages that one connection may have under way or unread, at first and on short ways.
    pub window_bytes: u32,
    /// The most that all connections of a session may have, on long ways ([`Tuning::window_for`]).
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
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            window_bytes: 4 << 20,
            window_max_bytes: 64 << 20,
            payload_max_bytes: None,
            socket_buffer_bytes: 4 << 20,
            keep_alive: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(15),
            connect_limit: Duration::from_secs(5),
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
