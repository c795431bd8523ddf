//! A lane over a long path that loses packets: a relay between client and server holds each datagram for a while and
//! loses some.
#![allow(clippy::unwrap_used)]

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use godwit_wire::control::ToServer;
use godwit_wire::frame::{Codec, FrameHeader, Join, Kind, Secret, SessionId};
use godwit_wire::quic::{Identity, Incoming, Listener, QuicError, Tuning, connect, keys};

/// Which datagrams of pages the relay loses.
#[derive(Clone, Copy)]
enum Loss {
    /// Every other one of `count`, from the one numbered `from` on: a queue that is full, and a sender that gives two
    /// for each one that leaves it.
    EveryOther { from: usize, count: usize },
    /// One of so many, spread by a generator.
    OneOf(u64),
}

impl Loss {
    fn loses(self, number: usize) -> bool {
        match self {
            Loss::EveryOther { from, count } => {
                (from..from + count).contains(&number) && number.is_multiple_of(2)
            }
            Loss::OneOf(n) => mix(number as u64).is_multiple_of(n),
        }
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (value ^ value >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ value >> 32
}

/// Datagrams below this length are not pages.
const FULL: usize = 1000;
/// How long the relay holds what goes to the server.
const HELD: Duration = Duration::from_millis(60);

/// Threads that carry datagrams both ways, until dropped.
struct Relay {
    address: SocketAddr,
    lost: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    socket
}

impl Relay {
    fn start(server: SocketAddr, loss: Loss) -> Relay {
        let (near, far) = (Arc::new(socket()), Arc::new(socket()));
        far.connect(server).unwrap();
        let relay = Relay { address: near.local_addr().unwrap(), lost: Arc::default(), over: Arc::default() };
        let (held, due) = mpsc::channel::<(Instant, Box<[u8]>)>();
        let (client, clients) = mpsc::channel();
        let (lost, over) = (Arc::clone(&relay.lost), Arc::clone(&relay.over));
        {
            let near = Arc::clone(&near);
            std::thread::spawn(move || {
                let (mut bytes, mut number) = (vec![0; 65536], 0);
                let mut client = Some(client);
                while !over.load(Ordering::Relaxed) {
                    let Ok((length, from)) = near.recv_from(&mut bytes) else { continue };
                    client.take().map(|client| client.send(from));
                    if length >= FULL {
                        number += 1;
                        if loss.loses(number) {
                            lost.fetch_add(1, Ordering::Relaxed);
                            continue;
                        }
                    }
                    let _ = held.send((Instant::now() + HELD, bytes[..length].into()));
                }
            });
        }
        let onward = Arc::clone(&far);
        std::thread::spawn(move || {
            for (due, datagram) in due {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let _ = onward.send(&datagram);
            }
        });
        let over = Arc::clone(&relay.over);
        std::thread::spawn(move || {
            let mut bytes = vec![0; 65536];
            let Ok(client) = clients.recv() else { return };
            while !over.load(Ordering::Relaxed) {
                let Ok(length) = far.recv(&mut bytes) else { continue };
                let _ = near.send_to(&bytes[..length], client);
            }
        });
        relay
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// The smallest packets: within a host the window is no larger than the socket's buffer, and thousands of them must fit.
fn tuning() -> Tuning {
    Tuning {
        payload_max_bytes: Some(1200),
        window_bytes: 64 << 20,
        window_max_bytes: 64 << 20,
        ..Tuning::default()
    }
}

/// Sends so many frames of 64 KiB and expects each, in order.
fn carry(frames: u64, loss: Loss) -> usize {
    let dir = tempfile::tempdir().unwrap();
    keys::init(&dir.path().join("keys"), &[]).unwrap();
    let dir = dir.path().join("keys");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Listener::bind(any, &Identity::server(&dir), &tuning()).unwrap();
    let relay = Relay::start(server.local_addr().unwrap(), loss);
    let header = |frame: u64| FrameHeader {
        round: 1,
        epoch: 0,
        pages_id: 1,
        first_slot: frame * 16,
        pages: 16,
        kind: Kind::Data,
        codec: Codec::Raw,
        length: 0,
        checksum: 0,
    };
    let payload = |frame: u64| {
        let words = (0..8192).map(|word| mix(frame << 16 | word).to_le_bytes());
        Bytes::from(words.collect::<Vec<_>>().concat())
    };
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let connection = server.accept().unwrap();
            let Incoming::Lane(mut lane) = connection.accept::<ToServer>().unwrap() else {
                panic!("a lane was expected");
            };
            lane.join().unwrap();
            let mut count = 0;
            let failed = |count: u64, error: QuicError| format!("frame {count}: {error}");
            while let Some(header) = lane.header().map_err(|error| failed(count, error))? {
                assert_eq!(header.first_slot, count * 16);
                let mut payload = vec![0; header.length as usize];
                lane.payload(&mut payload).map_err(|error| failed(count, error))?;
                header.unpack(payload.into()).unwrap();
                count += 1;
            }
            Ok::<u64, String>(count)
        });
        let address = format!("127.0.0.1:{}", relay.address.port());
        let connection = connect(&address, &Identity::client(&dir), &tuning()).unwrap();
        let mut lane = connection.open_lane().unwrap();
        lane.join(&Join { session_id: SessionId(1), secret: Secret([7; 16]), lane: 0, epoch: 0 }).unwrap();
        for frame in 0..frames {
            let payload = payload(frame);
            let header = header(frame).with_payload(Codec::Raw, &payload).unwrap();
            if let Err(error) = lane.send(&header, payload) {
                panic!("frame {frame} could not be sent: {error}; the server: {:?}", receiver.join());
            }
        }
        lane.finish();
        assert_eq!(receiver.join().unwrap(), Ok(frames));
    });
    relay.lost.load(Ordering::Relaxed)
}

#[test]
fn a_queue_that_drops_every_other_packet_does_not_end_the_link() {
    let lost = carry(400, Loss::EveryOther { from: 8000, count: 5000 });
    assert!(lost > 1500, "{lost} lost");
}

#[test]
fn one_packet_of_fifty_is_lost() {
    let lost = carry(20, Loss::OneOf(50));
    assert!(lost > 5, "{lost} lost");
}
