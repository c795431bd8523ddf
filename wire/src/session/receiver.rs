//! The page server's side of a session. Twin of `sender`.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::message::{Reply, Request, SealRequest};
use super::phase::{Order, Phase};
use super::plan::PlanBuilder;
use super::sender::empty;
use super::{IMAGE_LEN_MAX, MANIFEST_LEN_MAX, name};
use crate::control::{CHUNK_LEN_MAX, Image, ServerBound, ToClient, ToServer};
use crate::error::{Malformed, OutOfOrder, SessionError};

/// Takes control messages, gives requests; takes replies, gives control messages.
#[derive(Debug)]
pub struct Receiver {
    order: Order,
    outbox: VecDeque<ToClient>,
    /// A request that has not come whole.
    partial: Option<Partial>,
}

#[derive(Debug)]
enum Partial {
    Plan(PlanBuilder),
    Image {
        round: u32,
        name: String,
        bytes: Gather,
    },
    /// Also whether it came as `Prepare`.
    Seal {
        seal: SealRequest,
        is_final: bool,
        bytes: Gather,
    },
}

impl Receiver {
    /// A session before its greeting.
    pub fn new() -> Self {
        Receiver { order: Order::new(), outbox: VecDeque::new(), partial: None }
    }

    /// Where the session stands.
    pub fn phase(&self) -> Phase {
        self.order.phase
    }

    /// The program answers: queues its message. Answers that the order of things has made void (to a restore
    /// that is being aborted, about a round that is over) are dropped.
    ///
    /// # Errors
    /// [`SessionError::Misused`] when it is not allowed now; nothing is queued then.
    pub fn handle_local(&mut self, reply: Reply) -> Result<(), SessionError> {
        let void = match &reply {
            Reply::Restored(_) | Reply::RestoreFailed(_) => self.order.phase == Phase::Aborting,
            Reply::RoundFailed(failed) => {
                self.order.is_dead(failed.round) || matches!(self.order.phase, Phase::Abandoning(_))
            }
            _ => false,
        };
        if !void {
            self.order.reply(&reply).map_err(SessionError::Misused)?;
            self.outbox.push_back(reply.into());
        }
        Ok(())
    }

    /// The client said something. `None` while a request is not whole, and for what was sent for a round
    /// before the client knew that it had failed.
    ///
    /// # Errors
    /// [`SessionError::PeerMisbehaved`] when it is not allowed now, [`SessionError::Malformed`] when its parts do
    /// not fit. Nothing more may be said after an error but [`Reply::Error`].
    pub fn handle_message(&mut self, message: ToServer) -> Result<Option<Request>, SessionError> {
        let body = message.body.ok_or_else(|| empty("ToServer"))?;
        let Some((request, is_final)) = self.assemble(body)? else { return Ok(None) };
        let round = match &request {
            Request::Image { round, .. } => Some(*round),
            Request::Seal(seal) => Some(seal.round),
            _ => None,
        };
        if self.order.phase == Phase::Open && round.is_some_and(|round| self.order.is_dead(round)) {
            return Ok(None);
        }
        self.order.request(&request).map_err(SessionError::PeerMisbehaved)?;
        match (self.order.phase, is_final) {
            (Phase::Sealing(open), Some(is_final)) if open.is_final != is_final => {
                let message = if is_final { "Prepare" } else { "Seal" };
                Err(SessionError::PeerMisbehaved(OutOfOrder {
                    message,
                    phase: "for this kind of round".to_owned(),
                }))
            }
            _ => Ok(Some(request)),
        }
    }

    /// The link is gone. Returns where the session stood.
    pub fn handle_closed(&mut self) -> Phase {
        self.outbox.clear();
        self.partial = None;
        std::mem::replace(&mut self.order.phase, Phase::Closed)
    }

    /// The next message for the client.
    pub fn poll_transmit(&mut self) -> Option<ToClient> {
        self.outbox.pop_front()
    }

    /// Puts requests together; for a whole `Seal` or `Prepare` also says which of them it was.
    fn assemble(&mut self, body: ServerBound) -> Result<Option<(Request, Option<bool>)>, SessionError> {
        let body = match (self.partial.take(), body) {
            (None, body) => body,
            (Some(partial), body) => return self.go_on(partial, body),
        };
        let whole = match body {
            ServerBound::Hello(hello) => Request::Hello(hello),
            ServerBound::OpenSession(open) => Request::Open(open),
            ServerBound::RoundBegin(begin) => {
                self.partial = Some(Partial::Plan(PlanBuilder::new(&begin)?));
                return Ok(None);
            }
            ServerBound::Image(image) => return self.begin_image(image),
            ServerBound::Seal(s) => {
                return self.begin_seal(s.round, s.epoch, s.frames, s.manifest_size, false);
            }
            ServerBound::Prepare(s) => {
                return self.begin_seal(s.round, s.epoch, s.frames, s.manifest_size, true);
            }
            ServerBound::RoundAbandon(abandon) => Request::Abandon { round: abandon.round },
            ServerBound::Restore(restore) => Request::Restore(restore),
            ServerBound::Commit(commit) => Request::Commit(commit),
            ServerBound::Abort(abort) => Request::Abort(abort),
            ServerBound::CloseSession(close) => Request::Close(close),
            ServerBound::SessionQuery(query) => Request::Query(query),
            ServerBound::SessionResolve(resolve) => Request::Resolve(resolve),
            ServerBound::PlanChunk(_) | ServerBound::PlanEnd(_) => return Err(self.stray("a page list")),
            ServerBound::ImageChunk(_) => return Err(self.stray("an image's bytes")),
            ServerBound::ManifestChunk(_) => return Err(self.stray("a manifest's bytes")),
        };
        Ok(Some((whole, None)))
    }

    fn begin_image(&mut self, image: Image) -> Result<Option<(Request, Option<bool>)>, SessionError> {
        let Image { round, name, size } = image;
        name::check_image(&name).map_err(|why| Malformed::Contradiction { what: why.to_string() })?;
        let bytes = Gather::new("size of an image", size, IMAGE_LEN_MAX)?;
        self.settle(Partial::Image { round, name, bytes })
    }

    fn begin_seal(
        &mut self,
        round: u32,
        epoch: u32,
        frames: u64,
        manifest_size: u64,
        is_final: bool,
    ) -> Result<Option<(Request, Option<bool>)>, SessionError> {
        let bytes = Gather::new("size of a manifest", manifest_size, MANIFEST_LEN_MAX)?;
        let seal = SealRequest { round, epoch, frames, manifest: Bytes::new() };
        self.settle(Partial::Seal { seal, is_final, bytes })
    }

    fn go_on(
        &mut self,
        partial: Partial,
        body: ServerBound,
    ) -> Result<Option<(Request, Option<bool>)>, SessionError> {
        match (partial, body) {
            (Partial::Plan(mut builder), ServerBound::PlanChunk(chunk)) => {
                builder.add(chunk)?;
                self.partial = Some(Partial::Plan(builder));
                Ok(None)
            }
            (Partial::Plan(builder), ServerBound::PlanEnd(end)) => {
                Ok(Some((Request::Begin(builder.finish(&end)?), None)))
            }
            (Partial::Image { round, name, mut bytes }, ServerBound::ImageChunk(chunk)) => {
                bytes.add(&chunk.bytes)?;
                self.settle(Partial::Image { round, name, bytes })
            }
            (Partial::Seal { seal, is_final, mut bytes }, ServerBound::ManifestChunk(chunk)) => {
                bytes.add(&chunk.bytes)?;
                self.settle(Partial::Seal { seal, is_final, bytes })
            }
            _ => Err(self.stray("another message within a request of several messages")),
        }
    }

    /// Gives the request if all its bytes are there, else waits for more.
    fn settle(&mut self, partial: Partial) -> Result<Option<(Request, Option<bool>)>, SessionError> {
        match partial {
            Partial::Image { round, name, bytes } if bytes.is_whole() => {
                Ok(Some((Request::Image { round, name, bytes: bytes.finish() }, None)))
            }
            Partial::Seal { seal, is_final, bytes } if bytes.is_whole() => {
                let seal = SealRequest { manifest: bytes.finish(), ..seal };
                Ok(Some((Request::Seal(seal), Some(is_final))))
            }
            partial => {
                self.partial = Some(partial);
                Ok(None)
            }
        }
    }

    fn stray(&self, message: &'static str) -> SessionError {
        SessionError::PeerMisbehaved(self.order.wrong(message))
    }
}

impl Default for Receiver {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes of announced length that come in chunks. Memory grows with what came, not with what was announced.
#[derive(Debug)]
struct Gather {
    bytes: BytesMut,
    size: u64,
}

impl Gather {
    fn new(what: &'static str, size: u64, bound: u64) -> Result<Self, Malformed> {
        if size > bound {
            return Err(Malformed::Bound { what, value: size, bound });
        }
        Ok(Gather { bytes: BytesMut::new(), size })
    }

    fn add(&mut self, chunk: &[u8]) -> Result<(), Malformed> {
        let fits = self.bytes.len() as u64 + chunk.len() as u64 <= self.size;
        if !fits || chunk.is_empty() || chunk.len() > CHUNK_LEN_MAX {
            return Err(Malformed::Contradiction {
                what: format!("a chunk of {} bytes after {} of {}", chunk.len(), self.bytes.len(), self.size),
            });
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    fn is_whole(&self) -> bool {
        self.bytes.len() as u64 == self.size
    }

    fn finish(self) -> Bytes {
        self.bytes.freeze()
    }
}
