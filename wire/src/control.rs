//! Control messages: two envelopes, `ToServer` and `ToClient`, each with exactly one message, as
//! length-delimited protobuf. This file is the schema.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::error::Malformed;
use crate::image::cpuinfo::CpuinfoX86Entry;

/// Longest encoded message in bytes, without its length prefix.
pub const MESSAGE_LEN_MAX: usize = 1 << 20;
/// Bytes of content in one `ImageChunk` or `ManifestChunk` at most.
pub const CHUNK_LEN_MAX: usize = 256 << 10;

/// An envelope: what travels on the control stream in one direction.
pub trait Envelope: Message + Default + Clone {
    /// Name of the message inside, as in fault points and logs; "Empty" when there is none.
    fn name(&self) -> &'static str;

    /// Encodes with the length prefix.
    ///
    /// # Errors
    /// [`Malformed::Bound`] when it is longer than [`MESSAGE_LEN_MAX`].
    fn to_wire(&self) -> Result<Bytes, Malformed> {
        let length = self.encoded_len();
        if length > MESSAGE_LEN_MAX {
            let (value, bound) = (length as u64, MESSAGE_LEN_MAX as u64);
            return Err(Malformed::Bound { what: "length of a control message", value, bound });
        }
        let mut wire = BytesMut::with_capacity(4 + length);
        wire.put_u32_le(length as u32);
        wire.put_slice(&self.encode_to_vec());
        Ok(wire.freeze())
    }

    /// Decodes the bytes behind the length prefix.
    ///
    /// # Errors
    /// [`Malformed::Control`] when they are no protobuf, or no message that this version knows.
    fn from_wire(bytes: &[u8]) -> Result<Self, Malformed> {
        let broken = |why: String| Malformed::Control { length: bytes.len(), why };
        let envelope = Self::decode(bytes).map_err(|why| broken(why.to_string()))?;
        match envelope.name() {
            "Empty" => Err(broken("it holds no message that this version knows".to_owned())),
            _ => Ok(envelope),
        }
    }
}

/// Checks a length prefix before anything is allocated for it.
///
/// # Errors
/// [`Malformed::Bound`] above [`MESSAGE_LEN_MAX`].
pub fn message_length(prefix: [u8; 4]) -> Result<usize, Malformed> {
    let length = u32::from_le_bytes(prefix) as usize;
    if length > MESSAGE_LEN_MAX {
        let (value, bound) = (length as u64, MESSAGE_LEN_MAX as u64);
        return Err(Malformed::Bound { what: "length of a control message", value, bound });
    }
    Ok(length)
}

macro_rules! envelope {
    ($(#[$doc:meta])* $envelope:ident, $body:ident, $name:tt, $tags:tt { $($message:ident = $tag:tt,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, prost::Message)]
        pub struct $envelope {
            /// The message.
            #[prost(oneof = $name, tags = $tags)]
            pub body: Option<$body>,
        }

        $(#[$doc])*
        #[derive(Clone, PartialEq, prost::Oneof)]
        pub enum $body {
            $(#[doc = concat!("See [`", stringify!($message), "`].")] #[prost(message, tag = $tag)] $message($message),)+
        }

        impl Envelope for $envelope {
            fn name(&self) -> &'static str {
                match &self.body {
                    None => "Empty",
                    $(Some($body::$message(_)) => stringify!($message),)+
                }
            }
        }

        $(impl From<$message> for $envelope {
            fn from(message: $message) -> Self {
                $envelope { body: Some($body::$message(message)) }
            }
        })+
    };
}

envelope! {
    /// From the client to the server.
    ToServer, ServerBound, "ServerBound", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17" {
        Hello = 1,
        OpenSession = 2,
        RoundBegin = 3,
        PlanChunk = 4,
        PlanEnd = 5,
        Image = 6,
        ImageChunk = 7,
        Seal = 8,
        Prepare = 9,
        ManifestChunk = 10,
        RoundAbandon = 11,
        Restore = 12,
        Commit = 13,
        Abort = 14,
        CloseSession = 15,
        SessionQuery = 16,
        SessionResolve = 17,
    }
}

envelope! {
    /// From the server to the client.
    ToClient, ClientBound, "ClientBound", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18" {
        HelloAck = 1,
        Refused = 2,
        SessionOpened = 3,
        RoundAccepted = 4,
        RoundFailed = 5,
        Resend = 6,
        RoundSealed = 7,
        Prepared = 8,
        RoundAbandoned = 9,
        Restored = 10,
        RestoreFailed = 11,
        Done = 12,
        Failed = 13,
        Aborted = 14,
        SessionClosed = 15,
        SessionStatus = 16,
        SessionResolved = 17,
        Error = 18,
    }
}

/// First message: what the client speaks.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    /// Protocol versions it speaks.
    #[prost(uint32, repeated, tag = "1")]
    pub versions: Vec<u32>,
    /// Feature bits it wants (`wire::version`).
    #[prost(uint64, tag = "2")]
    pub features: u64,
    /// Its release, for people.
    #[prost(string, tag = "3")]
    pub tool_version: String,
}

/// Asks for a session.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OpenSession {
    /// Name of the session's directory; a plain name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Pid of the root task, as the source sees it.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    /// Start time of the root task in clock ticks (`/proc/PID/stat` field 22).
    #[prost(uint64, tag = "3")]
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id` of the source.
    #[prost(string, tag = "4")]
    pub boot_id: String,
    /// Whether `Restore` will be asked for.
    #[prost(bool, tag = "5")]
    pub want_restore: bool,
    /// In which pid namespace to restore.
    #[prost(enumeration = "RestorePidns", tag = "6")]
    pub restore_pidns: i32,
    /// Memory of the tree in bytes, as far as known; for admission.
    #[prost(uint64, tag = "7")]
    pub memory_estimate_bytes: u64,
    /// Options that `criu restore` needs for these images (`--shell-job`, ...).
    #[prost(string, repeated, tag = "8")]
    pub restore_options: Vec<String>,
    /// Whether to go on in a session directory that holds sealed rounds of an earlier command.
    #[prost(bool, tag = "9")]
    pub go_on: bool,
}

/// Announces a round; its page lists follow.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RoundBegin {
    /// Its number; higher than all before.
    #[prost(uint32, tag = "1")]
    pub round: u32,
    /// The sealed round that it builds on.
    #[prost(uint32, optional, tag = "2")]
    pub base_round: Option<u32>,
    /// Whether this is the final set.
    #[prost(bool, tag = "3")]
    pub is_final: bool,
    /// How many page lists follow.
    #[prost(uint32, tag = "4")]
    pub lists: u32,
}

/// A run of pages (`wire::plan::PageRun`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Run {
    /// Address of the first page divided by 4096.
    #[prost(uint64, tag = "1")]
    pub page: u64,
    /// Length in pages.
    #[prost(uint64, tag = "2")]
    pub nr_pages: u64,
    /// `PE_*` bits.
    #[prost(uint32, tag = "3")]
    pub flags: u32,
}

/// Part of a page list.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PlanPart {
    /// Owner: a task's pid.
    #[prost(uint32, optional, tag = "1")]
    pub task: Option<u32>,
    /// Owner: a shared segment's shmid.
    #[prost(uint64, optional, tag = "2")]
    pub shmem: Option<u64>,
    /// Number of the pages file.
    #[prost(uint32, tag = "3")]
    pub pages_id: u32,
    /// Its runs, sorted by address.
    #[prost(message, repeated, tag = "4")]
    pub runs: Vec<Run>,
}

/// Some parts of the page lists.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PlanChunk {
    /// Number of the round.
    #[prost(uint32, tag = "1")]
    pub round: u32,
    /// The parts; a list may continue in the next chunk.
    #[prost(message, repeated, tag = "2")]
    pub parts: Vec<PlanPart>,
}

/// The page lists are complete.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PlanEnd {
    /// Number of the round.
    #[prost(uint32, tag = "1")]
    pub round: u32,
    /// Runs in all lists.
    #[prost(uint64, tag = "2")]
    pub runs: u64,
    /// Slots in all pages files.
    #[prost(uint64, tag = "3")]
    pub slots: u64,
}

/// Announces a small image file; its bytes follow in chunks.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Image {
    /// Number of the round.
    #[prost(uint32, tag = "1")]
    pub round: u32,
    /// File name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Size in bytes.
    #[prost(uint64, tag = "3")]
    pub size: u64,
}

/// Next bytes of the announced image.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageChunk {
    /// At most [`CHUNK_LEN_MAX`] bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub bytes: Bytes,
}

/// All of a pre-dump round was sent: verify, make durable, give it its name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Seal {
    /// Number of the round.
    #[prost(uint32, tag = "1")]
    pub round: u32,
    /// Epoch that the client counts frames in.
    #[prost(uint32, tag = "2")]
    pub epoch: u32,
    /// Frames sent for this round in this epoch, on all lanes.
    #[prost(uint64, tag = "3")]
    pub frames: u64,
    /// Size of the encoded manifest in bytes; it follows in chunks.
    #[prost(uint64, tag = "4")]
    pub manifest_size: u64,
}

/// All of the final set was sent: the first step of the hand-over.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Prepare {
    /// Number of the round.
    #[prost(uint32, tag = "1")]
    pub round: u32,
    /// Epoch that the client counts frames in.
    #[prost(uint32, tag = "2")]
    pub epoch: u32,
    /// Frames sent for this round in this epoch, on all lanes.
    #[prost(uint64, tag = "3")]
    pub frames: u64,
    /// Size of the encoded manifest in bytes; it follows in chunks.
    #[prost(uint64, tag = "4")]
    pub manifest_size: u64,
}

/// Next bytes of the announced manifest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ManifestChunk {
    /// At most [`CHUNK_LEN_MAX`] bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub bytes: Bytes,
}

/// Drops an unsealed round.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RoundAbandon {
    /// Number of the round.
    #[prost(uint32, tag = "1")]
    pub round: u32,
}

/// Restore the prepared images, and hold the tree.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Restore {}

/// The source tree is dead: let the restored tree run.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Commit {
    /// The token in force, as the source's journal has it (`wire::journal`).
    #[prost(uint64, tag = "1")]
    pub token: u64,
}

/// Undo: the source tree runs on.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Abort {
    /// Why, for the server's log and journal.
    #[prost(string, tag = "1")]
    pub reason: String,
}

/// The session ends with what is sealed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CloseSession {}

/// Asks how a session stands.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionQuery {
    /// Its id; 0 to ask by name.
    #[prost(uint64, tag = "1")]
    pub session_id: u64,
    /// Its name, when the id is 0.
    #[prost(string, tag = "2")]
    pub name: String,
}

/// Decides a session whose two sides lost each other.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionResolve {
    /// Its id.
    #[prost(uint64, tag = "1")]
    pub session_id: u64,
    /// The raised token of the source's journal; the server's journal takes it over if it is higher.
    #[prost(uint64, tag = "2")]
    pub token: u64,
    /// Which copy is to live.
    #[prost(enumeration = "Decision", tag = "3")]
    pub decision: i32,
    /// Whether the operator forces it without the other side's word.
    #[prost(bool, tag = "4")]
    pub forced: bool,
    /// State of the source's journal, for the server's journal.
    #[prost(string, tag = "5")]
    pub proof: String,
}

/// What was agreed on, and what this server offers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HelloAck {
    /// The selected protocol version.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The selected feature bits.
    #[prost(uint64, tag = "2")]
    pub features: u64,
    /// Release of the server, for people.
    #[prost(string, tag = "3")]
    pub tool_version: String,
    /// Whether sessions may ask for restore.
    #[prost(bool, tag = "4")]
    pub restore_allowed: bool,
    /// Version of the server's criu (`4.1.1`); empty when there is none.
    #[prost(string, tag = "5")]
    pub criu_version: String,
    /// `boot_id` of the server's kernel.
    #[prost(string, tag = "6")]
    pub boot_id: String,
    /// What the server's processor can do, as an image would hold it. Servers before it was there say nothing, and it is
    /// not compared then; so does a server whose processor nobody knows.
    #[prost(message, optional, boxed, tag = "7")]
    pub cpu: Option<Box<CpuinfoX86Entry>>,
}

/// The greeting or the session is refused.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Refused {
    /// Code (`wire::error::Code`).
    #[prost(uint32, tag = "1")]
    pub code: u32,
    /// Why, and what to do.
    #[prost(string, tag = "2")]
    pub text: String,
}

/// The session is open.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionOpened {
    /// Its id.
    #[prost(uint64, tag = "1")]
    pub session_id: u64,
    /// The secret that its lanes show, 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub secret: Bytes,
    /// Lanes it may have.
    #[prost(uint32, tag = "3")]
    pub lanes_max: u32,
    /// Epoch to join lanes with.
    #[prost(uint32, tag = "4")]
    pub epoch: u32,
    /// Whether both ends run on one kernel.
    #[prost(bool, tag = "5")]
    pub same_boot: bool,
    /// The session's directory at the server, for people.
    #[prost(string, tag = "6")]
    pub images_dir: String,
    /// Rounds that are sealed there already, sorted; round numbers go on behind the last.
    #[prost(uint32, repeated, tag = "7")]
    pub sealed_rounds: Vec<u32>,
    /// The token in force (`wire::journal`).
    #[prost(uint64, tag = "8")]
    pub journal_token: u64,
}

/// The page lists are accepted: send frames.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RoundAccepted {
    /// Number of the round.
    #[prost(uint32, tag = "1")]
    pub round: u32,
    /// Epoch for its frames.
    #[prost(uint32, tag = "2")]
    pub epoch: u32,
}

/// The round is over, unsealed; the session goes on.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RoundFailed {
    /// Number of the round.
    #[prost(uint32, tag = "1")]
    pub round: u32,
    /// Code.
    #[prost(uint32, tag = "2")]
    pub code: u32,
    /// Why.
    #[prost(string, tag = "3")]
    pub text: String,
}

/// Slots of a pages file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SlotRange {
    /// First slot.
    #[prost(uint64, tag = "1")]
    pub first: u64,
    /// Number of slots, at least 1.
    #[prost(uint64, tag = "2")]
    pub count: u64,
}

/// Slots to be sent as DATA.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Want {
    /// Number of the pages file.
    #[prost(uint32, tag = "1")]
    pub pages_id: u32,
    /// Sorted ranges.
    #[prost(message, repeated, tag = "2")]
    pub slots: Vec<SlotRange>,
}

/// Some slots are not what was announced: send them under the new epoch, and seal again.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Resend {
    /// Number of the round.
    #[prost(uint32, tag = "1")]
    pub round: u32,
    /// Epoch for the frames from now on.
    #[prost(uint32, tag = "2")]
    pub epoch: u32,
    /// What to send.
    #[prost(message, repeated, tag = "3")]
    pub wants: Vec<Want>,
}

/// The round is durable.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RoundSealed {
    /// Number of the round.
    #[prost(uint32, tag = "1")]
    pub round: u32,
    /// Bytes of all files of the round, holes included.
    #[prost(uint64, tag = "2")]
    pub bytes_stored: u64,
    /// Time of the final fsync calls in microseconds.
    #[prost(uint64, tag = "3")]
    pub fsync_us: u64,
}

/// The final set is durable.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Prepared {
    /// Number of the round.
    #[prost(uint32, tag = "1")]
    pub round: u32,
    /// Bytes of all files of the round, holes included.
    #[prost(uint64, tag = "2")]
    pub bytes_stored: u64,
    /// Time of the final fsync calls in microseconds.
    #[prost(uint64, tag = "3")]
    pub fsync_us: u64,
    /// Its directory at the server, for people.
    #[prost(string, tag = "4")]
    pub dir: String,
}

/// The round is gone.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RoundAbandoned {
    /// Number of the round.
    #[prost(uint32, tag = "1")]
    pub round: u32,
}

/// The tree is restored and held.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Restored {
    /// Pid of the root task as the server's host sees it.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Whether it lives in a pid namespace of its own.
    #[prost(bool, tag = "2")]
    pub own_pidns: bool,
    /// Time of the restore in microseconds.
    #[prost(uint64, tag = "3")]
    pub restore_us: u64,
}

/// The restore failed, and nothing of it is left.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RestoreFailed {
    /// Why.
    #[prost(string, tag = "1")]
    pub reason: String,
    /// Last lines of criu's log.
    #[prost(string, tag = "2")]
    pub log_tail: String,
}

/// The restored tree runs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Done {
    /// Pid of the root task as the server's host sees it.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Time from Commit to the release, in microseconds.
    #[prost(uint64, tag = "2")]
    pub resume_us: u64,
}

/// The restored tree could not be released; the images are kept.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Failed {
    /// Why, and what to do.
    #[prost(string, tag = "1")]
    pub reason: String,
    /// Last lines of criu's log.
    #[prost(string, tag = "2")]
    pub log_tail: String,
}

/// Nothing of the tree is left at the destination but sealed images.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Aborted {}

/// The session is closed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionClosed {}

/// How a session stands.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionStatus {
    /// Its id.
    #[prost(uint64, tag = "1")]
    pub session_id: u64,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Name of its state (`journal::State`).
    #[prost(string, tag = "3")]
    pub state: String,
    /// Its journal, a line a record.
    #[prost(string, repeated, tag = "4")]
    pub records: Vec<String>,
    /// Pid of the restored root task; 0 when there is none.
    #[prost(uint32, tag = "5")]
    pub pid: u32,
    /// Its directory at the server.
    #[prost(string, tag = "6")]
    pub images_dir: String,
}

/// The session is decided.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionResolved {
    /// Name of its state now.
    #[prost(string, tag = "1")]
    pub state: String,
    /// Pid of the restored root task; 0 when there is none.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    /// What was done, for people.
    #[prost(string, tag = "3")]
    pub text: String,
    /// The token in force now.
    #[prost(uint64, tag = "4")]
    pub token: u64,
}

/// The session ends here.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Error {
    /// Code.
    #[prost(uint32, tag = "1")]
    pub code: u32,
    /// What failed.
    #[prost(string, tag = "2")]
    pub text: String,
    /// What can be done; may be empty.
    #[prost(string, tag = "3")]
    pub hint: String,
}

/// In which pid namespace a tree is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum RestorePidns {
    /// A new one when the pid is taken at the server.
    Auto = 0,
    /// Always a new one.
    New = 1,
    /// The server's; fails when the pid is taken.
    Host = 2,
}

/// Which copy is to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Decision {
    /// Decide nothing: bring the journals together and do what they say.
    Show = 0,
    /// The source tree runs on; the destination's copy is given up.
    Source = 1,
    /// The destination's copy runs; the source tree is dead or given up.
    Destination = 2,
}
