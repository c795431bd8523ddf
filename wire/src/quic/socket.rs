//! The UDP socket under an endpoint: large kernel buffers, batches as large as the kernel takes, and a socket that goes
//! dead for chosen peers when a fault point says so, which is what a cut cable looks like (no close frame, no ICMP).

use std::collections::HashSet;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::Sleep;

use super::bucket::Bucket;
use super::path::PAYLOAD_MAX;

/// Largest UDP payload that quinn is told to take, and with it the size of its receive buffers: 32 of this. Pages are
/// touched as far as packets fill them.
pub(super) const RECEIVE_UNIT_BYTES: u16 = 65527;

/// IP and UDP headers of a datagram, which count for the bandwidth limit.
const HEADERS_V4_BYTES: usize = 28;
const HEADERS_V6_BYTES: usize = 48;

/// How long a connection waits for the bandwidth limit before it looks whether the limit was changed.
const LIMIT_LOOK: Duration = Duration::from_millis(50);

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

/// Datagrams that this kernel takes and gives in one call: UDP_SEGMENT and UDP_GRO (man 7 udp), tried on a socket of
/// its own. 1 where there is no offload.
///
/// # Errors
/// When there is no UDP socket to be had.
pub fn offload() -> io::Result<(usize, usize)> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    let state = UdpSocketState::new((&socket).into())?;
    Ok((state.max_gso_segments(), state.gro_segments()))
}

/// The runtime's socket, wrapped.
#[derive(Debug)]
pub(super) struct LinkSocket {
    pub inner: Arc<dyn AsyncUdpSocket>,
    pub cuts: CutList,
    pub traffic: Traffic,
    pub bucket: Arc<Bucket>,
    /// Largest UDP payload that a connection here may send, in bytes.
    pub payload_bound: AtomicUsize,
}

impl LinkSocket {
    pub(super) fn new(inner: Arc<dyn AsyncUdpSocket>, bucket: Arc<Bucket>) -> Self {
        LinkSocket {
            inner,
            cuts: CutList::default(),
            traffic: Traffic::default(),
            bucket,
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

/// What a batch is on the wire, as far as IP goes.
fn wire_bytes(transmit: &Transmit<'_>) -> u64 {
    let headers = if transmit.destination.is_ipv4() { HEADERS_V4_BYTES } else { HEADERS_V6_BYTES };
    (transmit.contents.len() + datagrams(transmit) * headers) as u64
}

/// Ready when the socket has room and the bandwidth limit has nothing against it.
#[derive(Debug)]
struct LinkPoller {
    inner: Pin<Box<dyn UdpPoller>>,
    bucket: Arc<Bucket>,
    /// Runs while the bucket is in debt.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl UdpPoller for LinkPoller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while let Some(wait) = this.bucket.wait(Instant::now()) {
            let until = tokio::time::Instant::now() + wait.min(LIMIT_LOOK);
            let sleep = this.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
            sleep.as_mut().reset(until);
            ready!(sleep.as_mut().poll(cx));
        }
        this.sleep = None;
        this.inner.as_mut().poll_writable(cx)
    }
}

impl AsyncUdpSocket for LinkSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        let inner = Arc::clone(&self.inner).create_io_poller();
        Box::pin(LinkPoller { inner, bucket: Arc::clone(&self.bucket), sleep: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.cuts.holds(&transmit.destination) {
            return Ok(());
        }
        // A connection that is refused here asks its poller, which waits for the same account.
        let counted = self.bucket.rate().is_some().then(|| wire_bytes(transmit));
        if let Some(bytes) = counted
            && self.bucket.take(bytes, Instant::now()).is_err()
        {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if let Err(error) = self.inner.try_send(transmit) {
            counted.inspect(|bytes| self.bucket.give_back(*bytes));
            return Err(error);
        }
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
