//! What the two programs say to each other, whole: chunks are put together before and cut after.

use bytes::Bytes;

use crate::control::{
    Abort, Aborted, CloseSession, Commit, Done, Error, Failed, Hello, HelloAck, OpenSession, Prepared,
    Refused, Resend, Restore, RestoreFailed, Restored, RoundAbandoned, RoundAccepted, RoundFailed,
    RoundSealed, SessionClosed, SessionOpened, SessionQuery, SessionResolve, SessionResolved, SessionStatus,
};
use crate::plan::RoundPlan;

/// What the client asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Greets.
    Hello(Hello),
    /// Opens a session.
    Open(OpenSession),
    /// Announces a round with its page lists.
    Begin(RoundPlan),
    /// Hands over a small image file. Not answered.
    Image {
        /// Number of the round.
        round: u32,
        /// File name.
        name: String,
        /// Content.
        bytes: Bytes,
    },
    /// Everything of the round was sent: `Seal`, or `Prepare` for the final set.
    Seal(SealRequest),
    /// Drops an unsealed round.
    Abandon {
        /// Number of the round.
        round: u32,
    },
    /// Restores the final set and holds it.
    Restore(Restore),
    /// Lets the restored tree run.
    Commit(Commit),
    /// Undoes the hand-over.
    Abort(Abort),
    /// Ends the session with what is sealed.
    Close(CloseSession),
    /// Asks how a session stands.
    Query(SessionQuery),
    /// Decides a session.
    Resolve(SessionResolve),
}

/// Seals a round.
#[derive(Clone, Debug, PartialEq)]
pub struct SealRequest {
    /// Number of the round.
    pub round: u32,
    /// Epoch in which `frames` were counted.
    pub epoch: u32,
    /// Frames sent for the round in that epoch.
    pub frames: u64,
    /// The encoded manifest (`wire::image::manifest`).
    pub manifest: Bytes,
}

impl Request {
    /// Name of the message that carries it, as in fault points.
    pub fn name(&self) -> &'static str {
        match self {
            Request::Hello(_) => "Hello",
            Request::Open(_) => "OpenSession",
            Request::Begin(_) => "RoundBegin",
            Request::Image { .. } => "Image",
            Request::Seal(_) => "Seal",
            Request::Abandon { .. } => "RoundAbandon",
            Request::Restore(_) => "Restore",
            Request::Commit(_) => "Commit",
            Request::Abort(_) => "Abort",
            Request::Close(_) => "CloseSession",
            Request::Query(_) => "SessionQuery",
            Request::Resolve(_) => "SessionResolve",
        }
    }
}

macro_rules! replies {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// What the server answers.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Reply { $($(#[$doc])* $name($name),)+ }

        impl Reply {
            /// Name of the message.
            pub fn name(&self) -> &'static str {
                match self { $(Reply::$name(_) => stringify!($name),)+ }
            }
        }

        $(impl From<$name> for Reply {
            fn from(message: $name) -> Self {
                Reply::$name(message)
            }
        })+

        impl From<Reply> for crate::control::ToClient {
            fn from(reply: Reply) -> Self {
                match reply { $(Reply::$name(message) => message.into(),)+ }
            }
        }

        impl From<crate::control::ClientBound> for Reply {
            fn from(body: crate::control::ClientBound) -> Self {
                match body { $(crate::control::ClientBound::$name(message) => Reply::$name(message),)+ }
            }
        }
    };
}

replies! {
    /// To `Hello`.
    HelloAck,
    /// To `Hello` or `OpenSession`.
    Refused,
    /// To `OpenSession`.
    SessionOpened,
    /// To a round's page lists.
    RoundAccepted,
    /// At any moment while a round is open.
    RoundFailed,
    /// To `Seal` or `Prepare`.
    Resend,
    /// To `Seal`.
    RoundSealed,
    /// To `Prepare`.
    Prepared,
    /// To `RoundAbandon`.
    RoundAbandoned,
    /// To `Restore`.
    Restored,
    /// To `Restore`.
    RestoreFailed,
    /// To `Commit`.
    Done,
    /// To `Commit`.
    Failed,
    /// To `Abort`.
    Aborted,
    /// To `CloseSession`.
    SessionClosed,
    /// To `SessionQuery`.
    SessionStatus,
    /// To `SessionResolve`.
    SessionResolved,
    /// At any moment: the session ends.
    Error,
}
