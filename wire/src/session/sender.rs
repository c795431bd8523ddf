//! The dumper's side of a session. Twin of `receiver`.

use std::collections::VecDeque;

use bytes::Bytes;

use super::message::{Reply, Request, SealRequest};
use super::phase::{Order, Phase};
use super::plan;
use crate::control::{
    CHUNK_LEN_MAX, Image, ImageChunk, ManifestChunk, Prepare, RoundAbandon, Seal, ToClient, ToServer,
};
use crate::error::{Code, Malformed, SessionError};
use crate::version;

/// Takes requests, gives control messages; takes control messages, gives replies.
#[derive(Debug)]
pub struct Sender {
    order: Order,
    outbox: VecDeque<ToServer>,
    /// Versions and features of `Hello`.
    offered: (Vec<u32>, u64),
}

impl Sender {
    /// A session before its greeting.
    pub fn new() -> Self {
        Sender { order: Order::new(), outbox: VecDeque::new(), offered: (Vec::new(), 0) }
    }

    /// Where the session stands.
    pub fn phase(&self) -> Phase {
        self.order.phase
    }

    /// The program asks for something: queues its messages.
    ///
    /// # Errors
    /// [`SessionError::Misused`] when it is not allowed now; nothing is queued then.
    pub fn handle_local(&mut self, request: Request) -> Result<(), SessionError> {
        self.order.request(&request).map_err(SessionError::Misused)?;
        match request {
            Request::Hello(hello) => {
                self.offered = (hello.versions.clone(), hello.features);
                self.queue(hello);
            }
            Request::Open(open) => self.queue(open),
            Request::Begin(plan) => {
                let (begin, chunks, end) = plan::cut(&plan);
                self.queue(begin);
                chunks.into_iter().for_each(|chunk| self.queue(chunk));
                self.queue(end);
            }
            Request::Image { round, name, bytes } => {
                self.queue(Image { round, name, size: bytes.len() as u64 });
                chunks(bytes).for_each(|bytes| self.queue(ImageChunk { bytes }));
            }
            Request::Seal(seal) => self.queue_seal(seal),
            Request::Abandon { round } => self.queue(RoundAbandon { round }),
            Request::Restore(restore) => self.queue(restore),
            Request::Commit(commit) => self.queue(commit),
            Request::Abort(abort) => self.queue(abort),
            Request::Close(close) => self.queue(close),
            Request::Query(query) => self.queue(query),
            Request::Resolve(resolve) => self.queue(resolve),
        }
        Ok(())
    }

    /// The server said something. `None` for a reply that an `Abort` has made void.
    ///
    /// # Errors
    /// [`SessionError::PeerMisbehaved`] when it is not allowed now, [`SessionError::PeerFailed`] when the server
    /// refused or ended the session. Nothing more may be said after an error.
    pub fn handle_message(&mut self, message: ToClient) -> Result<Option<Reply>, SessionError> {
        let reply = Reply::from(message.body.ok_or_else(|| empty("ToClient"))?);
        let aborting = self.order.phase == Phase::Aborting;
        self.order.reply(&reply).map_err(SessionError::PeerMisbehaved)?;
        match reply {
            Reply::Error(error) => {
                let (code, text, hint) = (Code::from_number(error.code), error.text, error.hint);
                Err(SessionError::PeerFailed { code, text, hint })
            }
            Reply::Refused(refused) => {
                let (code, text) = (Code::from_number(refused.code), refused.text);
                Err(SessionError::PeerFailed { code, text, hint: String::new() })
            }
            Reply::HelloAck(ack) => {
                if !version::was_offered(ack.version, ack.features, &self.offered.0, self.offered.1) {
                    let what =
                        format!("version {} with features {:#x} was not offered", ack.version, ack.features);
                    return Err(Malformed::Contradiction { what }.into());
                }
                Ok(Some(Reply::HelloAck(ack)))
            }
            Reply::Restored(_) | Reply::RestoreFailed(_) if aborting => Ok(None),
            reply => Ok(Some(reply)),
        }
    }

    /// The link is gone. Returns where the session stood.
    pub fn handle_closed(&mut self) -> Phase {
        self.outbox.clear();
        std::mem::replace(&mut self.order.phase, Phase::Closed)
    }

    /// The next message for the server.
    pub fn poll_transmit(&mut self) -> Option<ToServer> {
        self.outbox.pop_front()
    }

    fn queue_seal(&mut self, seal: SealRequest) {
        let SealRequest { round, epoch, frames, manifest } = seal;
        let manifest_size = manifest.len() as u64;
        match self.order.phase {
            Phase::Sealing(open) if open.is_final => {
                self.queue(Prepare { round, epoch, frames, manifest_size })
            }
            _ => self.queue(Seal { round, epoch, frames, manifest_size }),
        }
        chunks(manifest).for_each(|bytes| self.queue(ManifestChunk { bytes }));
    }

    fn queue(&mut self, message: impl Into<ToServer>) {
        self.outbox.push_back(message.into());
    }
}

impl Default for Sender {
    fn default() -> Self {
        Self::new()
    }
}

fn chunks(bytes: Bytes) -> impl Iterator<Item = Bytes> {
    (0..bytes.len())
        .step_by(CHUNK_LEN_MAX)
        .map(move |at| bytes.slice(at..bytes.len().min(at + CHUNK_LEN_MAX)))
}

pub(super) fn empty(envelope: &str) -> Malformed {
    Malformed::Control { length: 0, why: format!("an empty {envelope}") }
}
