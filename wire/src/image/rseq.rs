//! Restartable sequences registration of a thread.
//!
//! Field numbers and types are those of CRIU's images/rseq.proto.

use super::check::schema;

/// `rseq_entry` (images/rseq.proto). `PTRACE_GET_RSEQ_CONFIGURATION` (`man 2 ptrace`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct RseqEntry {
    /// Address of the registered `struct rseq`.
    #[prost(uint64, required, tag = "1")]
    pub rseq_abi_pointer: u64,
    /// Its size in bytes.
    #[prost(uint32, required, tag = "2")]
    pub rseq_abi_size: u32,
    /// Word before each abort handler.
    #[prost(uint32, required, tag = "3")]
    pub signature: u32,
    /// Address of the active critical section, if it is to survive the restore.
    #[prost(uint64, optional, tag = "4")]
    pub rseq_cs_pointer: Option<u64>,
}

schema!(RseqEntry, "rseq_entry", [(1, "rseq_abi_pointer"), (2, "rseq_abi_size"), (3, "signature")], []);
