//! What can go wrong between the two programs, told apart by who is at fault, and the table of codes.

use crate::codec::Truncated;
use crate::frame::Codec;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)+) => {
        /// Why a peer refused, failed or closed: the number travels, the text is for people.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[$doc])* $name,)+
            /// A code of a newer peer.
            Unknown(u32),
        }

        impl Code {
            /// Every code that this version knows.
            pub const ALL: &[Code] = &[$(Code::$name),+];

            /// The number on the wire.
            pub fn number(self) -> u32 {
                match self {
                    $(Code::$name => $number,)+
                    Code::Unknown(number) => number,
                }
            }

            /// The code with this number.
            pub fn from_number(number: u32) -> Code {
                match number {
                    $($number => Code::$name,)+
                    other => Code::Unknown(other),
                }
            }

            /// Its short name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Code::$name => $text,)+
                    Code::Unknown(_) => "unknown code",
                }
            }
        }
    };
}

codes! {
    /// Nothing went wrong: the peer is done.
    Done = 0, "done";
    /// Bytes that are no message of this protocol.
    Malformed = 1, "malformed";
    /// A message that is not allowed now.
    OutOfOrder = 2, "out of order";
    /// No common protocol version.
    Version = 3, "no common version";
    /// Feature bits that the server does not know.
    Feature = 4, "unknown feature";
    /// The session name is not a plain name.
    BadName = 5, "bad name";
    /// The session name is taken.
    NameTaken = 6, "name taken";
    /// The server has as many sessions as it takes.
    Busy = 7, "too many sessions";
    /// The server is about to stop.
    Draining = 8, "draining";
    /// Restore was asked for, and this server does not offer it.
    NoRestore = 9, "restore not offered";
    /// No such session.
    NoSession = 10, "no such session";
    /// The secret or the token is not that of the session.
    BadToken = 11, "wrong token";
    /// The round broke a rule of the store.
    RoundRefused = 12, "round refused";
    /// The disk or the quota is full.
    Full = 13, "no space left";
    /// A file system call failed at the server.
    Storage = 14, "storage failed";
    /// What arrived is not complete or differs from its manifest.
    Mismatch = 15, "mismatch";
    /// The restore failed.
    Restore = 16, "restore failed";
    /// The journal does not allow this step.
    Journal = 17, "journal forbids";
    /// The peer exceeded a limit.
    Limit = 18, "limit exceeded";
    /// A fault of the peer itself.
    Internal = 19, "internal error";
    /// The decision needs to be forced, or contradicts what was decided.
    Undecided = 20, "cannot decide";
    /// The session belongs to another client.
    NotYours = 21, "another client's session";
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Code::Unknown(number) => write!(f, "unknown code {number}"),
            known => f.write_str(known.name()),
        }
    }
}

/// Bytes that are no message of this protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The message ended too early.
    #[error(transparent)]
    Truncated(#[from] Truncated),
    /// A fixed value is another one.
    #[error("{what} is {value:#x}: not of this protocol or version")]
    Value {
        /// Which field.
        what: &'static str,
        /// What it holds.
        value: u64,
    },
    /// A value lies outside its bounds.
    #[error("{what} is {value}, and the bound is {bound}")]
    Bound {
        /// Which field.
        what: &'static str,
        /// What it holds.
        value: u64,
        /// The largest value allowed.
        bound: u64,
    },
    /// The payload's checksum is another one than the header says.
    #[error(
        "the payload of the frame at slot {first_slot} of pages-{pages_id}.img has checksum {found:#010x}, its header says {header:#010x}"
    )]
    Checksum {
        /// The frame's pages file.
        pages_id: u32,
        /// The frame's first slot.
        first_slot: u64,
        /// As computed.
        found: u32,
        /// As announced.
        header: u32,
    },
    /// What is packed does not unpack to the announced pages.
    #[error(
        "the {codec:?} payload of the frame at slot {first_slot} of pages-{pages_id}.img is broken: {why}"
    )]
    Packed {
        /// The frame's pages file.
        pages_id: u32,
        /// The frame's first slot.
        first_slot: u64,
        /// How it is packed.
        codec: Codec,
        /// What is wrong with it.
        why: String,
    },
    /// A control message is no protobuf message, or an envelope without a known message.
    #[error("a control message of {length} bytes cannot be decoded: {why}")]
    Control {
        /// Its length in bytes.
        length: usize,
        /// What is wrong with it.
        why: String,
    },
    /// The parts of a message contradict each other.
    #[error("{what}")]
    Contradiction {
        /// Which parts, with their values.
        what: String,
    },
}

/// A message that the protocol does not allow at this point.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} is not allowed {phase}")]
pub struct OutOfOrder {
    /// Name of the message.
    pub message: &'static str,
    /// Where the session stands.
    pub phase: String,
}

/// What a session state machine answers when it cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The peer sent bytes that are no message.
    #[error("the peer sent what is not godwit's protocol: {0}")]
    Malformed(#[from] Malformed),
    /// The peer broke the order of messages.
    #[error("the peer broke the protocol: {0}")]
    PeerMisbehaved(OutOfOrder),
    /// This program asked for something that is not allowed now.
    #[error("this program broke the protocol: {0}")]
    Misused(OutOfOrder),
    /// The peer ended the session.
    #[error("the peer ended the session ({code}): {text}{hint}", hint = spaced(hint))]
    PeerFailed {
        /// The peer's code.
        code: Code,
        /// The peer's text.
        text: String,
        /// What the peer says can be done about it; may be empty.
        hint: String,
    },
}

impl SessionError {
    /// The code to close the connection with.
    pub fn code(&self) -> Code {
        match self {
            SessionError::Malformed(_) => Code::Malformed,
            SessionError::PeerMisbehaved(_) | SessionError::Misused(_) => Code::OutOfOrder,
            SessionError::PeerFailed { code, .. } => *code,
        }
    }
}

fn spaced(hint: &str) -> String {
    if hint.is_empty() { String::new() } else { format!(" ({hint})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_own_number_and_comes_back_from_it() {
        for (index, code) in Code::ALL.iter().enumerate() {
            assert_eq!(code.number() as usize, index, "{code}");
            assert_eq!(Code::from_number(code.number()), *code);
        }
        assert_eq!(Code::from_number(9999), Code::Unknown(9999));
    }
}
