//! Pending signals.
//!
//! Field numbers and types are those of CRIU's images/siginfo.proto.

use super::check::schema;

/// `siginfo_entry` (images/siginfo.proto). One pending signal.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SiginfoEntry {
    /// The kernel's `siginfo_t`, 128 bytes (`PTRACE_PEEKSIGINFO`).
    #[prost(bytes = "vec", required, tag = "1")]
    pub siginfo: Vec<u8>,
}

/// `signal_queue_entry` (images/siginfo.proto). Pending signals in the order of the queue.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SignalQueueEntry {
    /// Oldest first.
    #[prost(message, repeated, tag = "1")]
    pub signals: Vec<SiginfoEntry>,
}

schema!(SiginfoEntry, "siginfo_entry", [(1, "siginfo")], []);

schema!(SignalQueueEntry, "signal_queue_entry", [], [(1, SiginfoEntry)]);
