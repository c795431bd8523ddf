//! Why the server cannot serve, or a session ended.

use std::io;
use std::path::PathBuf;

use godwit_wire::error::{Code, SessionError};
use godwit_wire::journal::JournalError;
use godwit_wire::quic::QuicError;

use crate::restore::HandoverError;
use crate::store::StoreError;
use crate::store::sink::SinkError;

/// Why the server cannot serve, or a session ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No certificate was named.
    #[error(
        "no certificate: give --keys DIR, or --cert, --key and --client-ca (`godwit keys init DIR` makes a set)"
    )]
    Keys,
    /// The link does not work.
    #[error(transparent)]
    Link(#[from] QuicError),
    /// The session broke the protocol, or its peer ended it.
    #[error("session with {peer}: {source}")]
    Session {
        /// Address of the client.
        peer: std::net::SocketAddr,
        /// What happened.
        #[source]
        source: SessionError,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The criu program is no use.
    #[error("--restore needs criu 4.1 or newer, but {}: {why}; install it, or name it by --criu or GODWIT_CRIU", criu.display())]
    Criu {
        /// The program.
        criu: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A step of a hand-over failed.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// An operator lets a copy run, and the source's tree may be alive.
    #[error(
        "the journal of session {id} does not show that the source's tree is dead, and two must not run: run `godwit \
         session resolve {id}` at the source, or make sure that it is dead there and add --force"
    )]
    MayLive {
        /// The session.
        id: String,
    },
    /// A system call failed.
    #[error("cannot {what}")]
    Io {
        /// What was done.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// The code by which a client hears of a failed store call.
pub fn code_of(error: &SinkError) -> Code {
    match error {
        SinkError::Full { .. } => Code::Full,
        SinkError::Malformed { .. } => Code::Malformed,
        SinkError::Io { .. } | SinkError::Link { .. } => Code::Storage,
        SinkError::Incomplete { .. } | SinkError::Mismatch { .. } => Code::Mismatch,
        SinkError::Refused { .. } | SinkError::NotCovered { .. } | SinkError::WantData { .. } => {
            Code::RoundRefused
        }
    }
}

/// An error and its causes in one line. Causes that the line above has in its words already are left out.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}
