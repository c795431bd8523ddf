//! The UDP socket: large kernel buffers, and a socket that goes dead for chosen peers when a fault point says
//! so, which is what a cut cable looks like (no close frame, no ICMP).

use std::collections::HashSet;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use socket2::{Domain, Protocol, Socket, Type};

/// Wanted size of both kernel buffers in bytes; the kernel caps it (`net.core.rmem_max`, `wmem_max`).
const BUFFER_BYTES: usize = 4 << 20;

/// Opens a socket with large buffers; returns what the kernel gave (receive, send), in bytes.
pub(super) fn open(address: SocketAddr) -> io::Result<(UdpSocket, usize, usize)> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // `[::]` serves IPv4 too where the kernel lets it.
        let _ = socket.set_only_v6(false);
    }
    // Smaller buffers cost throughput, not correctness: what the kernel gave is reported instead.
    let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    socket.bind(&address.into())?;
    // The kernel reports twice what is usable (man 7 socket, SO_RCVBUF).
    let sizes = (socket.recv_buffer_size()? / 2, socket.send_buffer_size()? / 2);
    Ok((socket.into(), sizes.0, sizes.1))
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

/// The runtime's socket behind a [`CutList`].
#[derive(Debug)]
pub(super) struct CutSocket {
    pub(super) inner: Arc<dyn AsyncUdpSocket>,
    pub(super) cuts: Arc<CutList>,
}

impl AsyncUdpSocket for CutSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.cuts.holds(&transmit.destination) { Ok(()) } else { self.inner.try_send(transmit) }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = self.inner.poll_recv(cx, bufs, meta);
        if let Poll::Ready(Ok(count)) = &received {
            for meta in meta.iter_mut().take(*count).filter(|meta| self.cuts.holds(&meta.addr)) {
                meta.len = 0;
            }
        }
        received
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
