//! Loopback UDP with segmentation offload both ways, without crypto and without a protocol: what the kernel can carry.
//!
//! The receiver says what it has after every MiB, and the sender keeps a bounded number of bytes on their way, so that
//! the socket's buffer does not overflow. What is lost all the same is sent again: only bytes that arrived count.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use quinn::udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSockRef, UdpSocketState};

use super::far::{self, Job, Receiver, Way};
use super::measured::{Clock, Measured};
use super::source;

/// UDP payload of an Ethernet frame in bytes, as QUIC counts it.
pub const ETHERNET: usize = 1452;
/// Most bytes that one `sendmsg` takes.
const BATCH_MAX: usize = 65507;
/// Most segments the kernel takes in one `sendmsg` (UDP_MAX_SEGMENTS, include/linux/udp.h), with room for older ones.
const SEGMENTS_MAX: usize = 45;
/// Wanted socket buffers in bytes; the kernel caps them.
const BUFFER: usize = 4 << 20;
/// Bytes that may be on their way.
const ON_THE_WAY_MAX: u64 = 1 << 20;
/// The receiver says what it has after so many bytes.
const REPORT: u64 = 256 << 10;
/// After so long without a word, what was on the way is lost.
const SILENCE: Duration = Duration::from_millis(20);
/// How long nothing at all may arrive.
const LIMIT: Duration = Duration::from_secs(10);

/// A socket with its offload.
struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl Socket {
    fn open() -> io::Result<Socket> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // Smaller ones only cost throughput.
        let _ = state.set_recv_buffer_size(UdpSockRef::from(&socket), BUFFER);
        let _ = state.set_send_buffer_size(UdpSockRef::from(&socket), BUFFER);
        Ok(Socket { socket, state })
    }

    fn send(&self, to: SocketAddr, contents: &[u8], segment: usize) -> io::Result<()> {
        let segment_size = (contents.len() > segment).then_some(segment);
        let transmit = Transmit { destination: to, ecn: None, contents, segment_size, src_ip: None };
        loop {
            match self.state.try_send(UdpSockRef::from(&self.socket), &transmit) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(PollFlags::POLLOUT, LIMIT)?;
                }
                done => return done,
            }
        }
    }

    fn wait(&self, flags: PollFlags, limit: Duration) -> io::Result<bool> {
        let timeout = PollTimeout::try_from(limit).map_err(io::Error::other)?;
        Ok(poll(&mut [PollFd::new(self.socket.as_fd(), flags)], timeout)? > 0)
    }
}

/// Sends datagrams of `segment` bytes over loopback, as many in one call as the kernel takes.
///
/// # Errors
/// When the sockets fail, or nothing arrives.
pub fn send(bytes: u64, segment: usize) -> io::Result<Measured> {
    let mut receiver = Receiver::start(&Job { way: Way::Udp, bytes, file: None, keys: None })?;
    let socket = Socket::open()?;
    let to = receiver.address;
    let segments = (BATCH_MAX / segment).clamp(1, SEGMENTS_MAX).min(socket.state.max_gso_segments());
    let batch = segment * segments;
    source::cold();
    let clock = Clock::start()?;
    let (mut sent, mut arrived) = (0u64, 0u64);
    let mut heard = Instant::now();
    let mut reports = vec![0; 64 << 10];
    let mut pieces = source::pieces(u64::MAX / 2, batch);
    while arrived < bytes {
        if sent - arrived < ON_THE_WAY_MAX && sent < bytes {
            let Some(piece) = pieces.next() else { break };
            socket.send(to, &piece, segment)?;
            sent += piece.len() as u64;
        } else if !socket.wait(PollFlags::POLLIN, SILENCE)? {
            sent = arrived;
        }
        // Several reports may come as one.
        while let Ok(len) = socket.socket.recv(&mut reports) {
            let last = reports[..len].last_chunk().map_or(0, |last| u64::from_le_bytes(*last));
            arrived = arrived.max(last);
            heard = Instant::now();
        }
        if heard.elapsed() > LIMIT {
            return Err(io::Error::other("no datagram arrives"));
        }
        // More may have arrived than is thought to be on the way, once something was given up as lost.
        sent = sent.max(arrived);
    }
    receiver.done(&clock)
}

/// The receiving process.
pub(super) fn receive(job: &Job) -> io::Result<(u64, Clock)> {
    let socket = Socket::open()?;
    far::listening(socket.socket.local_addr()?)?;
    let mut buffers = vec![1; BATCH_SIZE * (64 << 10)];
    let mut clock = None;
    let (mut bytes, mut reported) = (0, 0);
    let mut from = None;
    while bytes < job.bytes {
        let is_there = socket.wait(PollFlags::POLLIN, if clock.is_some() { SILENCE / 2 } else { LIMIT })?;
        let clock = match clock {
            Some(clock) => clock,
            None if !is_there => return Err(io::Error::other("no datagram arrives")),
            None => *clock.insert(Clock::start()?),
        };
        if is_there {
            bytes += take(&socket, &mut buffers, &mut from)?;
        }
        if let Some(from) = from
            && (bytes - reported >= REPORT || bytes >= job.bytes || !is_there)
        {
            reported = bytes;
            socket.send(from, &bytes.to_le_bytes(), 8)?;
        }
        if clock.wall() > LIMIT * 6 {
            return Err(io::Error::other("datagrams arrive too slowly"));
        }
    }
    let clock = clock.ok_or_else(|| io::Error::other("nothing to receive"))?;
    Ok((bytes, clock))
}

fn take(socket: &Socket, buffers: &mut [u8], from: &mut Option<SocketAddr>) -> io::Result<u64> {
    let mut metas = [RecvMeta::default(); BATCH_SIZE];
    let mut slices: Vec<IoSliceMut<'_>> = buffers.chunks_mut(64 << 10).map(IoSliceMut::new).collect();
    let count = match socket.state.recv(UdpSockRef::from(&socket.socket), &mut slices, &mut metas) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
        count => count?,
    };
    if let Some(meta) = metas[..count].last() {
        *from = Some(meta.addr);
    }
    Ok(metas[..count].iter().map(|meta| meta.len as u64).sum())
}
