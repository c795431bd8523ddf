//! The control stream and the lanes, as blocking calls, with a fault point before and after every control
//! message: `{client|server}.{send|recv}.{before|after}.{MessageName}`.

use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use quinn::{ReadError, RecvStream, SendStream, WriteError};

use super::endpoint::Connection;
use super::error::QuicError;
use super::reorder::{OrderedStream, Unread};
use crate::control::{self, Envelope};
use crate::error::{Code, Malformed};
use crate::fault;
use crate::frame::{FrameHeader, HEADER_LEN, JOIN_LEN, Join};

/// How long a new lane may take to say which session it joins.
const JOIN_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of an unwanted payload that are read at a time.
const SKIPPED_LEN: usize = 16 << 10;
/// How long a payload of at most an extent may take: its reader holds a buffer that others wait for.
const PAYLOAD_LIMIT: Duration = Duration::from_secs(120);
/// Less than this, sent within the limit of a stall, is talk that keeps the link alive, and nothing that was to be sent.
const STALL_BYTES: u64 = 16 << 10;
/// What a packet needs to be on its way before the fault behind a send fires.
const SEND_SETTLES: Duration = Duration::from_millis(50);

/// Which end of the link this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The dumper.
    Client,
    /// The page server.
    Server,
}

impl Side {
    fn word(self) -> &'static str {
        match self {
            Side::Client => "client",
            Side::Server => "server",
        }
    }
}

/// A stream as quinn gives it.
pub(super) enum Accepted {
    Control((SendStream, RecvStream)),
    Lane(RecvStream),
}

/// Sends control messages. Several threads may use it.
#[derive(Debug)]
pub struct ControlSender {
    connection: Connection,
    stream: Mutex<SendStream>,
}

impl ControlSender {
    pub(super) fn new(connection: Connection, stream: SendStream) -> Self {
        ControlSender { connection, stream: Mutex::new(stream) }
    }

    /// Sends a message; waits while the peer takes nothing, as long as anything moves.
    ///
    /// # Errors
    /// [`QuicError`] when the link is lost or a fault point fired; [`QuicError::Silent`] when the peer lives and takes
    /// nothing for [`super::Tuning::stall_limit`]. The stream is of no use afterwards.
    pub fn send<Out: Envelope>(&self, message: &Out) -> Result<(), QuicError> {
        let peer = self.connection.peer();
        let mut wire = [message.to_wire().map_err(|source| QuicError::Malformed { peer, source })?];
        fire(&self.connection, "send.before", message.name(), Duration::ZERO)?;
        {
            let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
            let write = stream.write_all_chunks(&mut wire);
            unless_stalled(&self.connection, write, "room for a message")?;
        }
        fire(&self.connection, "send.after", message.name(), SEND_SETTLES)
    }

    /// Says that nothing more is sent, and waits until the peer has all of it, but no longer than `limit`.
    pub fn finish(&self, limit: Duration) {
        let stopped = {
            let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = stream.finish();
            stream.stopped()
        };
        self.connection.handle().block_on(async {
            let _ = tokio::time::timeout(limit, stopped).await;
        });
    }

    /// The connection that carries it.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }
}

/// Receives control messages.
#[derive(Debug)]
pub struct ControlReceiver<In: Envelope> {
    connection: Connection,
    stream: RecvStream,
    /// Bytes of messages that are not whole yet; at most one message and a packet.
    pending: BytesMut,
    kind: PhantomData<In>,
}

impl<In: Envelope> ControlReceiver<In> {
    pub(super) fn new(connection: Connection, stream: RecvStream) -> Self {
        ControlReceiver { connection, stream, pending: BytesMut::new(), kind: PhantomData }
    }

    /// Waits for the next message; `None` when the peer has finished the stream. What came in part before the
    /// limit passed is kept for the next call.
    ///
    /// # Errors
    /// [`QuicError::Silent`] when `limit` passes, [`QuicError::Malformed`] for bytes that are no message, and when
    /// the link is lost.
    pub fn recv(&mut self, limit: Option<Duration>) -> Result<Option<In>, QuicError> {
        let deadline = limit.map(|limit| (limit, Instant::now() + limit));
        let peer = self.connection.peer();
        let malformed = |source| QuicError::Malformed { peer, source };
        loop {
            if let Some(message) = self.decode().map_err(malformed)? {
                fire(&self.connection, "recv.before", message.name(), Duration::ZERO)?;
                return Ok(Some(message));
            }
            let Some(chunk) = self.read_chunk(deadline)? else {
                let rest = self.pending.len();
                let why =
                    || Malformed::Control { length: rest, why: "the stream ended within it".to_owned() };
                return if rest == 0 { Ok(None) } else { Err(malformed(why())) };
            };
            self.pending.extend_from_slice(&chunk);
        }
    }

    /// Says that a message was taken into account: the fault point behind its receipt.
    ///
    /// # Errors
    /// [`QuicError::Injected`] when it fired.
    pub fn taken(&self, name: &str) -> Result<(), QuicError> {
        fire(&self.connection, "recv.after", name, Duration::ZERO)
    }

    fn decode(&mut self) -> Result<Option<In>, Malformed> {
        let Some(prefix) = self.pending.first_chunk::<4>() else { return Ok(None) };
        let length = control::message_length(*prefix)?;
        if self.pending.len() - 4 < length {
            return Ok(None);
        }
        self.pending.advance(4);
        In::from_wire(&self.pending.split_to(length)).map(Some)
    }

    fn read_chunk(&mut self, deadline: Option<(Duration, Instant)>) -> Result<Option<Bytes>, QuicError> {
        let read = self.stream.read_chunk(control::MESSAGE_LEN_MAX, true);
        let peer = self.connection.peer();
        let handle = self.connection.handle();
        let chunk = match deadline {
            None => handle.block_on(read),
            Some((waited, deadline)) => {
                let timed = async { tokio::time::timeout_at(deadline.into(), read).await };
                let silent = QuicError::Silent { peer, what: "control message", waited };
                handle.block_on(timed).map_err(|_| silent)?
            }
        };
        chunk.map(|chunk| chunk.map(|chunk| chunk.bytes)).map_err(|error| read_error(&self.connection, error))
    }
}

/// The client's end of a lane.
#[derive(Debug)]
pub struct LaneSender {
    connection: Connection,
    stream: SendStream,
}

impl LaneSender {
    pub(super) fn new(connection: Connection, stream: SendStream) -> Self {
        LaneSender { connection, stream }
    }

    /// Says which session the lane belongs to; before the first frame.
    ///
    /// # Errors
    /// [`QuicError`] when the link is lost.
    pub fn join(&mut self, join: &Join) -> Result<(), QuicError> {
        self.connection.widen(join.lane);
        let write = self.stream.write_chunk(Bytes::copy_from_slice(&join.encode()));
        self.connection.handle().block_on(write).map_err(|error| write_error(&self.connection, error))
    }

    /// Sends a frame; waits while the window is full, as long as anything moves.
    ///
    /// # Errors
    /// [`QuicError`] when the link is lost, or the server refused the lane; [`QuicError::Silent`] when it lives and takes
    /// nothing for [`super::Tuning::stall_limit`]: a process may be standing still for it. The lane is of no use afterwards.
    pub fn send(&mut self, header: &FrameHeader, payload: Bytes) -> Result<(), QuicError> {
        self.send_parts(header, &[], payload)
    }

    /// As [`LaneSender::send`], for a payload that begins with a table.
    ///
    /// # Errors
    /// As there.
    pub fn send_parts(
        &mut self,
        header: &FrameHeader,
        table: &[u8],
        payload: Bytes,
    ) -> Result<(), QuicError> {
        let mut parts = [Bytes::from([&header.encode()[..], table].concat()), payload];
        let write = self.stream.write_all_chunks(&mut parts);
        unless_stalled(&self.connection, write, "room for a frame")
    }

    /// Says that no more frames come.
    pub fn finish(&mut self) {
        let _ = self.stream.finish();
    }

    /// Waits until the server has read all of a finished lane.
    #[doc(hidden)]
    pub fn wait_taken(&self) {
        let _ = self.connection.handle().block_on(self.stream.stopped());
    }
}

/// Waits until `write` is done, as long as anything of the connection moves.
fn unless_stalled(
    connection: &Connection,
    write: impl Future<Output = Result<(), WriteError>>,
    what: &'static str,
) -> Result<(), QuicError> {
    let limit = connection.stall_limit();
    connection.handle().block_on(async {
        tokio::pin!(write);
        let mut sent_bytes = connection.stats().sent_bytes;
        loop {
            if let Ok(written) = tokio::time::timeout(limit, &mut write).await {
                return written.map_err(|error| write_error(connection, error));
            }
            let before = std::mem::replace(&mut sent_bytes, connection.stats().sent_bytes);
            if sent_bytes - before < STALL_BYTES {
                return Err(QuicError::Silent { peer: connection.peer(), what, waited: limit });
            }
        }
    })
}

/// The server's end of a lane.
#[derive(Debug)]
pub struct LaneReceiver {
    connection: Connection,
    stream: OrderedStream,
}

impl LaneReceiver {
    pub(super) fn new(connection: Connection, stream: RecvStream) -> Self {
        let stream = OrderedStream::new(connection.inner().clone(), stream);
        LaneReceiver { connection, stream }
    }

    /// Waits for the join message.
    ///
    /// # Errors
    /// [`QuicError::Silent`] when it does not come, [`QuicError::Malformed`] when it is none.
    pub fn join(&mut self) -> Result<Join, QuicError> {
        let peer = self.connection.peer();
        let mut bytes = [0; JOIN_LEN];
        let read = self.stream.read_exact(&mut bytes);
        let read = self.connection.handle().block_on(async { tokio::time::timeout(JOIN_LIMIT, read).await });
        match read {
            Err(_) => Err(QuicError::Silent { peer, what: "join message", waited: JOIN_LIMIT }),
            Ok(Err(error)) => Err(exact_error(&self.connection, error)),
            Ok(Ok(())) => Join::decode(&bytes).map_err(|source| QuicError::Malformed { peer, source }),
        }
    }

    /// Opens the window for pages, once the lane is known to belong to a session, as the `lane`-th of those that it has
    /// at the same time. What a client says of itself decides about no memory.
    pub fn admitted(&self, lane: u32) {
        self.connection.widen(lane);
    }

    /// Waits for the header of the next frame; `None` when the client has finished the lane. Its payload is to be taken
    /// or skipped before the next one.
    ///
    /// # Errors
    /// [`QuicError::Malformed`] for a header out of bounds, and when the link is lost.
    pub fn header(&mut self) -> Result<Option<FrameHeader>, QuicError> {
        let peer = self.connection.peer();
        let mut bytes = [0; HEADER_LEN];
        let read = self.connection.handle().block_on(self.stream.read_exact(&mut bytes));
        match read {
            Err(Unread::Finished(0)) => return Ok(None),
            Err(error) => return Err(exact_error(&self.connection, error)),
            Ok(()) => {}
        }
        FrameHeader::decode(&bytes).map(Some).map_err(|source| QuicError::Malformed { peer, source })
    }

    /// Waits for the payload of the frame whose header was read last, as it was sent: neither checked nor unpacked.
    /// `payload` is as long as the header says.
    ///
    /// # Errors
    /// When the link is lost.
    pub fn payload(&mut self, payload: &mut [u8]) -> Result<(), QuicError> {
        let peer = self.connection.peer();
        let read = self.stream.read_exact(payload);
        let read =
            self.connection.handle().block_on(async { tokio::time::timeout(PAYLOAD_LIMIT, read).await });
        let silent = QuicError::Silent { peer, what: "rest of a frame", waited: PAYLOAD_LIMIT };
        read.map_err(|_| silent)?.map_err(|error| exact_error(&self.connection, error))
    }

    /// Reads over the payload of a frame that nobody wants; `length` is what its header says.
    ///
    /// # Errors
    /// When the link is lost.
    pub fn skip(&mut self, length: u32) -> Result<(), QuicError> {
        let mut piece = [0; SKIPPED_LEN];
        let mut left = length as usize;
        while left > 0 {
            let piece = &mut piece[..left.min(SKIPPED_LEN)];
            self.payload(piece)?;
            left -= piece.len();
        }
        Ok(())
    }

    /// Refuses further frames.
    pub fn refuse(&mut self, code: Code) {
        self.stream.stop(quinn::VarInt::from_u32(code.number()));
    }

    /// The connection that carries it.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }
}

fn fire(connection: &Connection, place: &str, name: &str, settle: Duration) -> Result<(), QuicError> {
    if !fault::any_armed() {
        return Ok(());
    }
    let Some(action) = fault::passed(&format!("{}.{place}.{name}", connection.side().word())) else {
        return Ok(());
    };
    std::thread::sleep(settle);
    let peer = connection.peer();
    fault::act(action).map_err(|source| {
        if source == fault::Injected::Cut {
            connection.cut();
        }
        QuicError::Injected { peer, source }
    })
}

fn write_error(connection: &Connection, error: WriteError) -> QuicError {
    let peer = connection.peer();
    match error {
        WriteError::ConnectionLost(error) => connection.explain(error),
        WriteError::Stopped(code) => {
            let code = Code::from_number(u32::try_from(code.into_inner()).unwrap_or(u32::MAX));
            QuicError::Closed { peer, code, text: "it takes no more frames on this lane".to_owned() }
        }
        other => QuicError::Lost { peer, why: other.to_string() },
    }
}

fn read_error(connection: &Connection, error: ReadError) -> QuicError {
    match error {
        ReadError::ConnectionLost(error) => connection.explain(error),
        other => QuicError::Lost { peer: connection.peer(), why: other.to_string() },
    }
}

fn exact_error(connection: &Connection, error: Unread) -> QuicError {
    match error {
        Unread::Failed(error) => read_error(connection, error),
        Unread::TooFar(source) => QuicError::Malformed { peer: connection.peer(), source },
        Unread::Finished(have) => {
            let why = format!("a lane ended within a message, after {have} bytes of it");
            QuicError::Lost { peer: connection.peer(), why }
        }
    }
}
