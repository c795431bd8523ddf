//! The bytes of a lane in their order, also where the path loses many packets at once.
//!
//! quinn's own buffer ends the connection when it holds more than 1024 pieces with gaps between them ("too many gaps in
//! stream buffer"), and a congestion window of a few thousand packets that meets a full queue makes that many within
//! one round trip. So as soon as much comes in behind a missing piece, pieces are taken out of it as they come, and
//! wait here. Not from the beginning: taking each piece by itself costs a receiver about a tenth of its time.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::Poll;

use bytes::{Buf, Bytes};
use quinn::{ReadError, RecvStream};

use crate::error::Malformed;

/// Most bytes that may wait for a missing one. An honest client is never further ahead: it keeps what was not
/// acknowledged from the first missing byte on, and keeps no more than its send window, the largest of which this is.
pub(super) const AHEAD_MAX_BYTES: usize = 64 << 20;

/// Bytes that a connection may receive while the next one of a stream is missing, before pieces are taken in any order:
/// more than a round trip in a local network brings, and at most a few hundred packets, of which each is a gap less
/// than quinn's bound.
const BEHIND_GAP_BYTES: u64 = 512 << 10;

/// Pieces of a stream, each with its offset; none overlaps another, as quinn gives no byte twice.
#[derive(Debug, Default)]
struct Pieces {
    /// Offset of the first byte that was not taken yet.
    next: u64,
    waiting: BTreeMap<u64, Piece>,
    /// What those that wait cost, in bytes of memory.
    held: usize,
}

#[derive(Debug)]
struct Piece {
    bytes: Bytes,
    cost: usize,
}

/// A piece costs no less than the packet that it came in, which it keeps in memory: a client that sends single bytes
/// makes the server hold no more than one that sends pages.
const PIECE_COST_MIN: usize = 1200;
/// A shorter piece is copied out of its packet.
const COPIED_BELOW: usize = 1024;

impl Pieces {
    fn put(&mut self, offset: u64, bytes: Bytes) -> Result<(), Malformed> {
        let cost = bytes.len().max(PIECE_COST_MIN);
        self.held += cost;
        if self.held > AHEAD_MAX_BYTES {
            return Err(Malformed::Value { what: "bytes ahead of a missing one", value: self.held as u64 });
        }
        let bytes = if bytes.len() < COPIED_BELOW { Bytes::copy_from_slice(&bytes) } else { bytes };
        self.waiting.insert(offset, Piece { bytes, cost });
        Ok(())
    }

    /// Copies what is next into `out`; says how much that was.
    fn take(&mut self, out: &mut [u8]) -> usize {
        let mut filled = 0;
        while filled < out.len() {
            let Some(mut piece) = self.waiting.first_entry().filter(|piece| *piece.key() == self.next) else {
                break;
            };
            let length = piece.get().bytes.len().min(out.len() - filled);
            piece.get_mut().bytes.copy_to_slice(&mut out[filled..filled + length]);
            let rest = piece.remove();
            (filled, self.next) = (filled + length, self.next + length as u64);
            if rest.bytes.is_empty() {
                self.held -= rest.cost;
            } else {
                self.waiting.insert(self.next, rest);
            }
        }
        filled
    }
}

/// Why a read did not give the bytes.
#[derive(Debug)]
pub(super) enum Unread {
    /// The stream or its connection ended otherwise.
    Failed(ReadError),
    /// The client finished it after so many of the bytes.
    Finished(usize),
    /// The client is further ahead than it may be.
    TooFar(Malformed),
}

/// A stream that is read in order.
#[derive(Debug)]
pub(super) struct OrderedStream {
    connection: quinn::Connection,
    stream: RecvStream,
    pieces: Pieces,
    /// Whether quinn gives pieces in any order from now on; there is no way back.
    is_unordered: bool,
}

impl OrderedStream {
    pub(super) fn new(connection: quinn::Connection, stream: RecvStream) -> Self {
        OrderedStream { connection, stream, pieces: Pieces::default(), is_unordered: false }
    }

    /// Fills `out`.
    pub(super) async fn read_exact(&mut self, out: &mut [u8]) -> Result<(), Unread> {
        let mut filled = 0;
        while !self.is_unordered && filled < out.len() {
            match self.read_in_order(&mut out[filled..]).await? {
                Some(0) => return Err(Unread::Finished(filled)),
                Some(length) => {
                    filled += length;
                    self.pieces.next += length as u64;
                }
                None => self.is_unordered = true,
            }
        }
        filled += self.pieces.take(&mut out[filled..]);
        while filled < out.len() {
            let chunk = self.stream.read_chunk(AHEAD_MAX_BYTES, false).await.map_err(Unread::Failed)?;
            let Some(chunk) = chunk else { return Err(Unread::Finished(filled)) };
            self.pieces.put(chunk.offset, chunk.bytes).map_err(Unread::TooFar)?;
            filled += self.pieces.take(&mut out[filled..]);
        }
        Ok(())
    }

    /// Waits for the next bytes, 0 at the end; `None` when too much has come behind a gap.
    async fn read_in_order(&mut self, out: &mut [u8]) -> Result<Option<usize>, Unread> {
        let (mut wakes, mut received_bytes) = (0, 0);
        let read = poll_fn(|context| {
            if let Poll::Ready(read) = self.stream.poll_read(context, out) {
                return Poll::Ready(read.map(Some));
            }
            // Woken for nothing: what came for this stream lies behind a gap.
            wakes += 1;
            let now_bytes = if wakes < 2 { 0 } else { self.connection.stats().udp_rx.bytes };
            if wakes == 2 {
                received_bytes = now_bytes;
            }
            if now_bytes - received_bytes > BEHIND_GAP_BYTES { Poll::Ready(Ok(None)) } else { Poll::Pending }
        });
        read.await.map_err(Unread::Failed)
    }

    /// Refuses what is still to come.
    pub(super) fn stop(&mut self, code: quinn::VarInt) {
        let _ = self.stream.stop(code);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_in_any_order_give_the_stream(
            lengths in proptest::collection::vec(1usize..50, 1..60),
            order in any::<u64>(),
            reads in proptest::collection::vec(1usize..200, 1..20),
        ) {
            let stream: Vec<u8> = (0..lengths.iter().sum::<usize>()).map(|at| ((at * 31) >> 2) as u8).collect();
            let mut cut = Vec::new();
            for length in lengths {
                let at = cut.last().map_or(0, |(at, bytes): &(u64, Bytes)| *at as usize + bytes.len());
                cut.push((at as u64, Bytes::copy_from_slice(&stream[at..at + length])));
            }
            cut.sort_by_key(|(at, _)| (at ^ order).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let (mut pieces, mut got) = (Pieces::default(), Vec::new());
            for ((at, bytes), read) in cut.into_iter().zip(reads.into_iter().cycle()) {
                pieces.put(at, bytes).unwrap();
                let mut out = vec![0; read];
                let length = pieces.take(&mut out);
                got.extend_from_slice(&out[..length]);
            }
            let mut rest = vec![0; stream.len()];
            let length = pieces.take(&mut rest);
            got.extend_from_slice(&rest[..length]);
            prop_assert_eq!(got, stream);
            prop_assert_eq!(pieces.held, 0);
        }
    }

    #[test]
    fn too_much_ahead_is_refused() {
        let mut pieces = Pieces::default();
        let mebibyte = Bytes::from(vec![0; 1 << 20]);
        for at in 0..64 {
            pieces.put(1 + (at << 20), mebibyte.clone()).unwrap();
        }
        assert!(pieces.put(1 + (64 << 20), Bytes::from_static(b"x")).is_err());
        assert_eq!(pieces.take(&mut [0; 10]), 0);
    }
}
