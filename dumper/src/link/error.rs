//! What can go wrong with a page server, from the dumper's side.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use godwit_wire::error::{Code, Malformed, SessionError};
use godwit_wire::quic::QuicError;

use crate::interrupt::Interrupted;

/// What can go wrong with a page server.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The link could not be made, or broke.
    #[error(transparent)]
    Quic(#[from] QuicError),
    /// The server refused, ended the session, or broke the protocol.
    #[error("page server {peer}: {source}")]
    Session {
        /// The server.
        peer: SocketAddr,
        /// What happened.
        #[source]
        source: SessionError,
    },
    /// The link broke earlier; every later call says so.
    #[error(transparent)]
    Gone(Arc<LinkError>),
    /// The server did not answer in time, although the link lives.
    #[error("page server {peer} did not answer {request} within {waited:?}{}", way_out_of(request))]
    Silent {
        /// The server.
        peer: SocketAddr,
        /// What was asked for.
        request: &'static str,
        /// How long was waited.
        waited: Duration,
    },
    /// Another request, made by another thread, made this one void.
    #[error("{request} to page server {peer} was overtaken by another request")]
    Overtaken {
        /// The server.
        peer: SocketAddr,
        /// What was asked for.
        request: &'static str,
    },
    /// The server gave up a round; the session goes on.
    #[error("page server {peer} gave up round {round} ({code}): {text}")]
    RoundFailed {
        /// The server.
        peer: SocketAddr,
        /// The round.
        round: u32,
        /// Its code.
        code: Code,
        /// Its words.
        text: String,
    },
    /// The restore failed, and nothing of it is left there.
    #[error("page server {peer} could not restore the tree: {reason}\n{log_tail}")]
    RestoreFailed {
        /// The server.
        peer: SocketAddr,
        /// Why.
        reason: String,
        /// Last lines of criu's log.
        log_tail: String,
    },
    /// The restored tree could not be released; its images are kept, and the source stays dead.
    #[error("page server {peer} could not let the restored tree run: {reason}\n{log_tail}")]
    ReleaseFailed {
        /// The server.
        peer: SocketAddr,
        /// Why, and what to do.
        reason: String,
        /// Last lines of criu's log.
        log_tail: String,
    },
    /// The answer is not one to this request.
    #[error("page server {peer} answered with {reply}, which is no answer to what was asked")]
    Unexpected {
        /// The server.
        peer: SocketAddr,
        /// What it said.
        reply: &'static str,
    },
    /// The dumper made a frame that the protocol does not allow.
    #[error("a frame of round {round} cannot be sent")]
    Frame {
        /// The round.
        round: u32,
        /// Which bound it breaks.
        #[source]
        source: Malformed,
    },
    /// The user wants it to end, and the answer is not waited for.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// A thread could not be started.
    #[error("no thread for the link to {peer}")]
    Thread {
        /// The server.
        peer: SocketAddr,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}

/// The option that bounds the wait for an answer to a request, where there is one.
fn way_out_of(request: &str) -> &'static str {
    match request {
        "Seal" => ": give it more with --seal-timeout",
        "Restore" => ": give it more with --restore-timeout",
        "OpenSession" | "RoundBegin" | "RoundAbandon" => ": give it more with --stall-timeout",
        _ => "",
    }
}

impl LinkError {
    /// The server's code, where it gave one.
    pub fn code(&self) -> Option<Code> {
        match self {
            LinkError::Gone(error) => error.code(),
            LinkError::RoundFailed { code, .. } => Some(*code),
            LinkError::Session { source: SessionError::PeerFailed { code, .. }, .. } => Some(*code),
            LinkError::Quic(QuicError::Closed { code, .. }) => Some(*code),
            _ => None,
        }
    }
}
