//! Endpoints: a runtime thread with one socket each; listening and connecting.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{EndpointConfig, Runtime, TokioRuntime, VarInt};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::error::{QuicError, explain};
use super::keys::Identity;
use super::path::PathSizes;
use super::socket::{self, LinkSocket, Opened, RECEIVE_UNIT_BYTES};
use super::streams::{self, ControlReceiver, ControlSender, LaneReceiver, LaneSender, Side};
use super::tls;
use super::tuning::Tuning;
use crate::control::Envelope;
use crate::error::Code;
use crate::version::ALPN;

/// Handshakes that may be under way at once; further clients are asked to prove their address first.
const HANDSHAKES_MAX: usize = 64;
/// How long a handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Connections that wait to be taken by the server's thread.
const BACKLOG: usize = 64;
/// Sockets of a listener.
const SOCKETS_MAX: usize = 64;
/// How long a closing endpoint waits until its peers have heard of it.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// How long a link that hangs up may still send what was written before, and how often it is looked at.
const SETTLE_LIMIT: Duration = Duration::from_millis(400);
const SETTLE_LOOK: Duration = Duration::from_millis(30);
/// How often [`Connection::part`] looks whether the word is out: a fraction of what starting a thread takes.
const PART_LOOK: Duration = Duration::from_micros(100);

/// What the socket can do; small buffers and missing offload are said to the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketFacts {
    /// Kernel receive buffer in bytes.
    pub recv_buffer_bytes: usize,
    /// Kernel send buffer in bytes.
    pub send_buffer_bytes: usize,
    /// Datagrams in one `sendmsg` (UDP_SEGMENT, man 7 udp); 1 without segmentation offload.
    pub send_segments: usize,
    /// Datagrams in one `recvmsg` (UDP_GRO); 1 without.
    pub recv_segments: usize,
}

/// One or several listening endpoints on one address, each with a socket and a thread of its own.
#[derive(Debug)]
pub struct Listener {
    cores: Vec<Arc<Core>>,
    /// With the number of the endpoint: tasks of an endpoint must not own it, its end waits for them.
    backlog: Mutex<mpsc::Receiver<(usize, quinn::Connection)>>,
}

impl Listener {
    /// Listens on a UDP address, with one socket; port 0 takes a free one.
    ///
    /// # Errors
    /// [`QuicError::Bind`], [`QuicError::KeyFile`], [`QuicError::KeySet`].
    pub fn bind(address: SocketAddr, identity: &Identity, tuning: &Tuning) -> Result<Self, QuicError> {
        Self::bind_many(address, identity, tuning, 1)
    }

    /// As [`Listener::bind`], with 1 to 64 sockets: a thread each, and each client's packets to one of them.
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub fn bind_many(
        address: SocketAddr,
        identity: &Identity,
        tuning: &Tuning,
        sockets: usize,
    ) -> Result<Self, QuicError> {
        let crypto = Arc::new(tls::server(identity)?);
        let config_for = {
            let tuning = tuning.clone();
            move |sizes: PathSizes, buffer_bytes: usize| {
                let mut config = quinn::ServerConfig::with_crypto(Arc::clone(&crypto) as _);
                config.transport_config(tuning.transport(sizes, Side::Server, buffer_bytes)).migration(false);
                config
            }
        };
        let bind = |source| QuicError::Bind { address, source };
        let opened =
            socket::open(address, sockets.clamp(1, SOCKETS_MAX), tuning.socket_buffer_bytes).map_err(bind)?;
        let any = tuning.sizes(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
        let (sender, backlog) = mpsc::channel(BACKLOG);
        let mut cores = Vec::new();
        for opened in opened {
            let config = config_for(any, opened.recv_buffer_bytes);
            let core = Core::start(address, opened, Some(config), identity, tuning, Side::Server)?;
            cores.push(Arc::new(core));
        }
        for (at, core) in cores.iter().enumerate() {
            let (tuning, config_for) = (tuning.clone(), config_for.clone());
            let (socket, buffer_bytes) = (Arc::clone(&core.socket), core.recv_buffer_bytes);
            let config_for = move |peer| {
                let sizes = tuning.sizes(peer);
                socket.expect_payload(sizes.bound);
                config_for(sizes, buffer_bytes)
            };
            core.handle.spawn(accept_loop(at, core.endpoint.clone(), config_for, sender.clone()));
        }
        Ok(Listener { cores, backlog: Mutex::new(backlog) })
    }

    /// The address that it listens on.
    ///
    /// # Errors
    /// [`QuicError::Bind`] when the socket is gone.
    pub fn local_addr(&self) -> Result<SocketAddr, QuicError> {
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        self.cores[0].endpoint.local_addr().map_err(|source| QuicError::Bind { address, source })
    }

    /// What a socket can do; all are alike.
    pub fn facts(&self) -> SocketFacts {
        self.cores[0].facts()
    }

    /// Sockets that it listens with.
    pub fn sockets(&self) -> usize {
        self.cores.len()
    }

    /// Waits for the next client whose certificate was accepted; `None` after [`Listener::close`].
    pub fn accept(&self) -> Option<Connection> {
        let mut backlog = self.backlog.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, inner) = self.cores[0].handle.block_on(backlog.recv())?;
        Some(Connection { core: Arc::clone(&self.cores[at]), inner })
    }

    /// Closes every connection, telling the peers why.
    pub fn close(&self, code: Code, text: &str) {
        for core in &self.cores {
            core.endpoint.close(VarInt::from_u32(code.number()), text.as_bytes());
        }
        for core in &self.cores {
            core.close(code, text);
        }
    }
}

async fn accept_loop(
    at: usize,
    endpoint: quinn::Endpoint,
    config_for: impl Fn(SocketAddr) -> quinn::ServerConfig,
    backlog: mpsc::Sender<(usize, quinn::Connection)>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    while let Some(incoming) = endpoint.accept().await {
        let peer = incoming.remote_address();
        let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
            if incoming.may_retry() {
                let _ = incoming.retry();
            } else {
                incoming.refuse();
            }
            continue;
        };
        let connecting = match incoming.accept_with(Arc::new(config_for(peer))) {
            Ok(connecting) => connecting,
            Err(error) => {
                tracing::debug!(%peer, %error, "a first packet was no use");
                continue;
            }
        };
        let backlog = backlog.clone();
        tokio::spawn(async move {
            let _permit = permit;
            match tokio::time::timeout(HANDSHAKE_LIMIT, connecting).await {
                Err(_) => tracing::debug!(%peer, "a handshake took too long"),
                Ok(Err(error)) => tracing::debug!(%peer, %error, "a handshake failed"),
                Ok(Ok(connection)) => {
                    if let Err(mpsc::error::TrySendError::Full((_, connection))) =
                        backlog.try_send((at, connection))
                    {
                        connection.close(VarInt::from_u32(Code::Busy.number()), b"too many new connections");
                    }
                }
            }
        });
    }
}

/// Connects to a page server, on a socket and a thread of its own.
///
/// # Errors
/// Whatever [`QuicError`] says about addresses, files, certificates and the way there.
pub fn connect(address: &str, identity: &Identity, tuning: &Tuning) -> Result<Connection, QuicError> {
    connect_speaking(address, identity, tuning, ALPN)
}

/// As [`connect`], but offering another protocol by ALPN.
///
/// # Errors
/// As [`connect`].
#[doc(hidden)]
pub fn connect_speaking(
    address: &str,
    identity: &Identity,
    tuning: &Tuning,
    alpn: &[u8],
) -> Result<Connection, QuicError> {
    let resolve = |source| QuicError::Resolve { address: address.to_owned(), source };
    let peers: Vec<SocketAddr> = address.to_socket_addrs().map_err(resolve)?.collect();
    let name = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    let crypto = Arc::new(tls::client(identity, alpn)?);
    let mut failed = resolve(std::io::ErrorKind::NotFound.into());
    for peer in peers {
        match connect_one(peer, name, Arc::clone(&crypto), identity, tuning) {
            Ok(connection) => return Ok(connection),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn connect_one(
    peer: SocketAddr,
    name: &str,
    crypto: Arc<QuicClientConfig>,
    identity: &Identity,
    tuning: &Tuning,
) -> Result<Connection, QuicError> {
    let local = match peer {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let opened = socket::open(local, 1, tuning.socket_buffer_bytes)
        .map_err(|source| QuicError::Bind { address: local, source })?;
    let opened = opened.into_iter().next().ok_or_else(|| QuicError::Bind {
        address: local,
        source: std::io::ErrorKind::AddrNotAvailable.into(),
    })?;
    let core = Arc::new(Core::start(local, opened, None, identity, tuning, Side::Client)?);
    let sizes = tuning.sizes(peer);
    core.socket.expect_payload(sizes.bound);
    let mut config = quinn::ClientConfig::new(crypto);
    config.transport_config(tuning.transport(sizes, Side::Client, core.recv_buffer_bytes));
    let waited = tuning.connect_limit;
    let outcome = core.handle.block_on(async {
        let connecting = core
            .endpoint
            .connect_with(config, peer, name)
            .map_err(|why| QuicError::Lost { peer, why: format!("{name:?} cannot be called: {why}") })?;
        match tokio::time::timeout(waited, connecting).await {
            Err(_) | Ok(Err(quinn::ConnectionError::TimedOut)) => {
                Err(QuicError::Unreachable { peer, waited })
            }
            Ok(Err(error)) => Err(explain(error, peer, identity)),
            Ok(Ok(inner)) => Ok(inner),
        }
    });
    match outcome {
        Ok(inner) => Ok(Connection { core, inner }),
        Err(error) => {
            core.close(Code::Done, "");
            Err(error)
        }
    }
}

/// A connection whose peer was authenticated.
#[derive(Clone, Debug)]
pub struct Connection {
    core: Arc<Core>,
    inner: quinn::Connection,
}

/// A stream that the client opened.
#[derive(Debug)]
pub enum Incoming<In: Envelope> {
    /// A control stream.
    Control(ControlSender, ControlReceiver<In>),
    /// A lane.
    Lane(LaneReceiver),
}

impl Connection {
    /// Opens the control stream.
    ///
    /// # Errors
    /// [`QuicError`] when the connection is lost, or the server refused our certificate.
    pub fn open_control<In: Envelope>(&self) -> Result<(ControlSender, ControlReceiver<In>), QuicError> {
        let (send, recv) =
            self.core.handle.block_on(self.inner.open_bi()).map_err(|error| self.explain(error))?;
        Ok((ControlSender::new(self.clone(), send), ControlReceiver::new(self.clone(), recv)))
    }

    /// Opens a lane.
    ///
    /// # Errors
    /// As [`Connection::open_control`].
    pub fn open_lane(&self) -> Result<LaneSender, QuicError> {
        let send = self.core.handle.block_on(self.inner.open_uni()).map_err(|error| self.explain(error))?;
        Ok(LaneSender::new(self.clone(), send))
    }

    /// Waits for the next stream that the client opens.
    ///
    /// # Errors
    /// [`QuicError`] when the connection is closed or lost.
    pub fn accept<In: Envelope>(&self) -> Result<Incoming<In>, QuicError> {
        let next = self.core.handle.block_on(async {
            tokio::select! {
                control = self.inner.accept_bi() => control.map(streams::Accepted::Control),
                lane = self.inner.accept_uni() => lane.map(streams::Accepted::Lane),
            }
        });
        match next.map_err(|error| self.explain(error))? {
            streams::Accepted::Control((send, recv)) => Ok(Incoming::Control(
                ControlSender::new(self.clone(), send),
                ControlReceiver::new(self.clone(), recv),
            )),
            streams::Accepted::Lane(recv) => Ok(Incoming::Lane(LaneReceiver::new(self.clone(), recv))),
        }
    }

    /// Closes the connection, telling the peer why. Data on the way is lost.
    pub fn close(&self, code: Code, text: &str) {
        self.inner.close(VarInt::from_u32(code.number()), text.as_bytes());
    }

    /// Closes it where both sides have said all there is to say: waits only until the word is out. Where it is lost, the
    /// peer waits for its idle timeout, and nothing else comes of it.
    pub fn part(&self) {
        if self.is_closed() {
            return;
        }
        let sent = || self.inner.stats().udp_tx.datagrams;
        let before = sent();
        self.close(Code::Done, "");
        let deadline = Instant::now() + CLOSE_LIMIT;
        // A closed connection sends nothing else. It is counted as it is written, under the lock under which it is sent.
        while sent() == before && Instant::now() < deadline {
            std::thread::sleep(PART_LOOK);
        }
        self.core.is_parted.store(true, Ordering::Relaxed);
    }

    /// Closes it, and waits until the peer had a fair chance to hear of it: a program that ends at once takes the word
    /// with it. What was written before is let out first, for a short while: quinn holds the word back where the
    /// congestion window is full of it, and then never says it.
    pub fn hang_up(&self, code: Code, text: &str) {
        // On a long way nothing moves for a round trip while the window is full.
        let rtt = self.stats().rtt;
        let (limit, look) = (SETTLE_LIMIT.max(rtt * 4), SETTLE_LOOK.max(rtt * 3 / 2));
        let deadline = Instant::now() + limit.min(CLOSE_LIMIT * 2);
        let mut sent = 0;
        while !self.is_closed() && Instant::now() < deadline {
            let before = std::mem::replace(&mut sent, self.stats().sent_bytes);
            if before == sent {
                break;
            }
            std::thread::sleep(look);
        }
        self.core.close(code, text);
    }

    /// Whether its packets stay within the host.
    pub fn is_local(&self) -> bool {
        self.core.tuning.sizes(self.peer()).is_local()
    }

    /// Whether the connection is over.
    pub fn is_closed(&self) -> bool {
        self.inner.close_reason().is_some()
    }

    /// Waits until the connection is over, but no longer than `limit`. Says whether it is.
    pub fn wait_closed(&self, limit: Duration) -> bool {
        self.core.handle.block_on(async { tokio::time::timeout(limit, self.inner.closed()).await.is_ok() })
    }

    /// Makes the link dead from now on: nothing goes out, not even a close; nothing comes in.
    pub fn cut(&self) {
        self.core.socket.cuts.cut(self.peer());
    }

    /// Address of the peer.
    pub fn peer(&self) -> SocketAddr {
        self.inner.remote_address()
    }

    /// Who the peer is: the first 32 hex digits of the BLAKE3 hash of its certificate; empty where it showed none.
    pub fn peer_identity(&self) -> String {
        let chain = self.inner.peer_identity();
        let chain =
            chain.and_then(|any| any.downcast::<Vec<rustls_pki_types::CertificateDer<'static>>>().ok());
        let leaf = chain.and_then(|chain| chain.first().map(|leaf| blake3::hash(leaf).to_hex()));
        leaf.map_or_else(String::new, |hash| hash.as_str()[..32].to_owned())
    }

    /// The connection itself and the runtime that drives it: what the settings are worth without anything above them.
    #[doc(hidden)]
    pub fn raw(&self) -> (quinn::Connection, tokio::runtime::Handle) {
        (self.inner.clone(), self.core.handle.clone())
    }

    /// What the socket can do.
    pub fn facts(&self) -> SocketFacts {
        self.core.facts()
    }

    /// Counters of this connection.
    pub fn stats(&self) -> Stats {
        let stats = self.inner.stats();
        Stats {
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            lost_packets: stats.path.lost_packets,
            mtu_bytes: stats.path.current_mtu,
            rtt: stats.path.rtt,
            min_rtt: self.inner.min_rtt(),
        }
    }

    /// Sets the window for pages, now that the way is known.
    pub(super) fn widen(&self, lane: u32) {
        let core = &self.core;
        let sizes = core.tuning.sizes(self.peer());
        let window = core.tuning.window(sizes, core.recv_buffer_bytes, self.inner.min_rtt(), lane);
        match core.side {
            Side::Client => self.inner.set_send_window(u64::from(window)),
            Side::Server => self.inner.set_receive_window(VarInt::from_u32(window)),
        }
    }

    /// How long the peer may take nothing.
    pub(super) fn stall_limit(&self) -> Duration {
        self.core.tuning.stall_limit
    }

    pub(super) fn inner(&self) -> &quinn::Connection {
        &self.inner
    }

    pub(super) fn side(&self) -> Side {
        self.core.side
    }

    pub(super) fn handle(&self) -> &tokio::runtime::Handle {
        &self.core.handle
    }

    pub(super) fn explain(&self, error: quinn::ConnectionError) -> QuicError {
        explain(error, self.peer(), &self.core.identity)
    }
}

/// Counters of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// UDP payload sent, in bytes.
    pub sent_bytes: u64,
    /// UDP payload received, in bytes.
    pub received_bytes: u64,
    /// Packets believed lost.
    pub lost_packets: u64,
    /// UDP payload of a full packet, in bytes.
    pub mtu_bytes: u16,
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Shortest round-trip time that was seen.
    pub min_rtt: Duration,
}

/// An endpoint and the thread that runs it.
#[derive(Debug)]
struct Core {
    endpoint: quinn::Endpoint,
    handle: tokio::runtime::Handle,
    socket: Arc<LinkSocket>,
    recv_buffer_bytes: usize,
    send_buffer_bytes: usize,
    identity: Identity,
    tuning: Tuning,
    side: Side,
    thread: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
    /// The peers know that all is said, so that nobody waits for them at the end.
    is_parted: AtomicBool,
}

impl Core {
    fn start(
        address: SocketAddr,
        opened: Opened,
        server: Option<quinn::ServerConfig>,
        identity: &Identity,
        tuning: &Tuning,
        side: Side,
    ) -> Result<Self, QuicError> {
        let bind = |source| QuicError::Bind { address, source };
        let Opened { socket, recv_buffer_bytes, send_buffer_bytes } = opened;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(bind)?;
        let handle = runtime.handle().clone();
        let (endpoint, socket) = {
            let _guard = handle.enter();
            let socket = Arc::new(LinkSocket::new(
                TokioRuntime.wrap_udp_socket(socket).map_err(bind)?,
                Arc::clone(&tuning.bucket),
            ));
            let mut config = EndpointConfig::default();
            if config.max_udp_payload_size(RECEIVE_UNIT_BYTES).is_err() {
                return Err(bind(std::io::ErrorKind::InvalidInput.into()));
            }
            let shared = Arc::clone(&socket);
            let endpoint =
                quinn::Endpoint::new_with_abstract_socket(config, server, shared, Arc::new(TokioRuntime));
            (endpoint.map_err(bind)?, socket)
        };
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("godwit-quic".to_owned()).spawn(move || {
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        });
        let thread = Mutex::new(Some((stop, thread.map_err(bind)?)));
        let (identity, tuning) = (identity.clone(), tuning.clone());
        Ok(Core {
            endpoint,
            handle,
            socket,
            recv_buffer_bytes,
            send_buffer_bytes,
            identity,
            tuning,
            side,
            thread,
            is_parted: AtomicBool::new(false),
        })
    }

    fn facts(&self) -> SocketFacts {
        SocketFacts {
            recv_buffer_bytes: self.recv_buffer_bytes,
            send_buffer_bytes: self.send_buffer_bytes,
            send_segments: self.socket.inner.max_transmit_segments(),
            recv_segments: self.socket.inner.max_receive_segments(),
        }
    }

    fn close(&self, code: Code, text: &str) {
        self.endpoint.close(VarInt::from_u32(code.number()), text.as_bytes());
        let endpoint = self.endpoint.clone();
        self.handle.block_on(async move {
            let _ = tokio::time::timeout(CLOSE_LIMIT, endpoint.wait_idle()).await;
        });
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if self.endpoint.open_connections() > 0 && !*self.is_parted.get_mut() {
            self.close(Code::Done, "");
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((stop, thread)) = thread {
            let _ = stop.send(());
            let _ = thread.join();
        }
    }
}
