//! The UDP socket under an endpoint: large kernel buffers, batches as large as the kernel takes, and a socket that goes
//! dead for chosen peers when a fault point says so, which is what a cut cable looks like (no close frame, no ICMP).

use std::collections::HashSet;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use socket2::{Domain, Protocol, Socket, Type};

use super::path::PAYLOAD_MAX;

/// Largest UDP payload that quinn is told to take, and with it the size of its receive buffers: 32 of this. Pages are
/// touched as far as packets fill them.
pub(super) const RECEIVE_UNIT_BYTES: u16 = 65527;

/// A bound socket, and what the kernel gave it.
pub(super) struct Opened {
    pub socket: UdpSocket,
    pub recv_buffer_bytes: usize,
    pub send_buffer_bytes: usize,
}

/// Opens `count` sockets with large buffers on one address; the kernel gives each peer's packets to one of them. Only
/// the first bind decides whether the address is free: further ones join it by SO_REUSEPORT, which the first one gets
/// behind its bind. A second server never has the flag at its first bind, and so is refused as ever.
pub(super) fn open(address: SocketAddr, count: usize, buffer_bytes: usize) -> io::Result<Vec<Opened>> {
    let first = unbound(address, buffer_bytes)?;
    first.bind(&address.into())?;
    let address = first.local_addr()?;
    let mut sockets = vec![first];
    for _ in 1..count {
        // The kernel looks at the flag of both when the second one binds.
        sockets[0].set_reuse_port(true)?;
        let further = unbound(address.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?, buffer_bytes)?;
        further.set_reuse_port(true)?;
        further.bind(&address)?;
        sockets.push(further);
    }
    sockets.into_iter().map(finished).collect()
}

fn unbound(address: SocketAddr, buffer_bytes: usize) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // `[::]` serves IPv4 too where the kernel lets it.
        let _ = socket.set_only_v6(false);
    }
    // Smaller buffers cost throughput, not correctness: what the kernel gave is reported instead.
    let _ = socket.set_recv_buffer_size(buffer_bytes);
    let _ = socket.set_send_buffer_size(buffer_bytes);
    Ok(socket)
}

fn finished(socket: Socket) -> io::Result<Opened> {
    // The kernel reports twice what is usable (man 7 socket, SO_RCVBUF).
    let (recv_buffer_bytes, send_buffer_bytes) =
        (socket.recv_buffer_size()? / 2, socket.send_buffer_size()? / 2);
    Ok(Opened { socket: socket.into(), recv_buffer_bytes, send_buffer_bytes })
}

/// Peers that the socket is dead for.
#[derive(Debug, Default)]
pub(super) struct CutList {
    any: AtomicBool,
    peers: Mutex<HashSet<SocketAddr>>,
}

impl CutList {
    pub(super) fn cut(&self, peer: SocketAddr) {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).insert(peer);
        self.any.store(true, Ordering::Release);
    }

    fn holds(&self, peer: &SocketAddr) -> bool {
        self.any.load(Ordering::Acquire)
            && self.peers.lock().unwrap_or_else(PoisonError::into_inner).contains(peer)
    }
}

/// What went through a socket: whether offload is in effect shows in datagrams a call.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub send_calls: AtomicU64,
    pub sent_datagrams: AtomicU64,
    pub received_units: AtomicU64,
    pub received_datagrams: AtomicU64,
}

/// The runtime's socket, wrapped.
#[derive(Debug)]
pub(super) struct LinkSocket {
    pub inner: Arc<dyn AsyncUdpSocket>,
    pub cuts: CutList,
    pub traffic: Traffic,
    /// Largest UDP payload that a connection here may send, in bytes.
    pub payload_bound: AtomicUsize,
}

impl LinkSocket {
    pub(super) fn new(inner: Arc<dyn AsyncUdpSocket>) -> Self {
        LinkSocket {
            inner,
            cuts: CutList::default(),
            traffic: Traffic::default(),
            payload_bound: AtomicUsize::new(0),
        }
    }

    /// A connection may send payloads of this size from now on.
    pub(super) fn expect_payload(&self, bytes: u16) {
        self.payload_bound.fetch_max(usize::from(bytes), Ordering::Relaxed);
    }
}

fn datagrams(transmit: &Transmit<'_>) -> usize {
    transmit.segment_size.map_or(1, |size| transmit.contents.len().div_ceil(size.max(1)))
}

impl AsyncUdpSocket for LinkSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.cuts.holds(&transmit.destination) {
            return Ok(());
        }
        self.inner.try_send(transmit)?;
        self.traffic.send_calls.fetch_add(1, Ordering::Relaxed);
        self.traffic.sent_datagrams.fetch_add(datagrams(transmit) as u64, Ordering::Relaxed);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = self.inner.poll_recv(cx, bufs, meta);
        if let Poll::Ready(Ok(count)) = &received {
            let mut datagrams = 0;
            for meta in meta.iter_mut().take(*count) {
                datagrams += meta.len.div_ceil(meta.stride.max(1));
                if self.cuts.holds(&meta.addr) {
                    meta.len = 0;
                }
            }
            self.traffic.received_units.fetch_add(*count as u64, Ordering::Relaxed);
            self.traffic.received_datagrams.fetch_add(datagrams as u64, Ordering::Relaxed);
        }
        received
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    /// No more than one `sendmsg` takes: beyond it the kernel refuses the whole batch, and quinn takes that for a black
    /// hole.
    fn max_transmit_segments(&self) -> usize {
        let payload = self.payload_bound.load(Ordering::Relaxed).max(1);
        self.inner.max_transmit_segments().min(usize::from(PAYLOAD_MAX) / payload).max(1)
    }

    /// quinn makes room for this many of the largest payload a received unit; but a unit of segments is no larger than
    /// one IP packet, which is what [`RECEIVE_UNIT_BYTES`] has room for.
    fn max_receive_segments(&self) -> usize {
        1
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_one_address_share_its_clients_and_let_no_other_in() {
        let opened = open(SocketAddr::from(([127, 0, 0, 1], 0)), 2, 1 << 20).unwrap();
        let address = opened[0].socket.local_addr().unwrap();
        assert_eq!(opened[1].socket.local_addr().unwrap(), address);
        for count in [1, 2] {
            let refused = open(address, count, 1 << 20).map(|_| ()).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        }
        let clients: Vec<_> = (0..64).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        for client in &clients {
            client.send_to(b"x", address).unwrap();
        }
        // On loopback a datagram lies in its socket's queue when `sendto` returns.
        let counts = opened.iter().map(|opened| {
            opened.socket.set_nonblocking(true).unwrap();
            std::iter::from_fn(|| opened.socket.recv_from(&mut [0; 8]).ok()).count()
        });
        let counts: Vec<_> = counts.collect();
        assert_eq!(counts.iter().sum::<usize>(), clients.len(), "{counts:?}");
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    }
}
