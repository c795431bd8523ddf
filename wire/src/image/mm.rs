//! Address space of a task.
//!
//! Files: `mm-PID.img`. Field numbers and types are those of CRIU's images/mm.proto.

use super::check::schema;
use super::vma::VmaEntry;

/// `aio_ring_entry` (images/mm.proto). A ring of `io_setup`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AioRingEntry {
    /// Context id: start address of the ring.
    #[prost(uint64, required, tag = "1")]
    pub id: u64,
    /// Requests the ring was made for.
    #[prost(uint32, required, tag = "2")]
    pub nr_req: u32,
    /// Length of the mapping in bytes.
    #[prost(uint32, required, tag = "3")]
    pub ring_len: u32,
}

/// `mm_entry` (images/mm.proto). The one record of `mm-PID.img`; addresses from `/proc/PID/stat` (`man 5
/// proc_pid_stat`), set again by `PR_SET_MM_MAP`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MmEntry {
    /// First address of the program text.
    #[prost(uint64, required, tag = "1")]
    pub mm_start_code: u64,
    /// End of the program text.
    #[prost(uint64, required, tag = "2")]
    pub mm_end_code: u64,
    /// First address of initialised data.
    #[prost(uint64, required, tag = "3")]
    pub mm_start_data: u64,
    /// End of initialised data.
    #[prost(uint64, required, tag = "4")]
    pub mm_end_data: u64,
    /// Bottom of the stack.
    #[prost(uint64, required, tag = "5")]
    pub mm_start_stack: u64,
    /// Start of the heap.
    #[prost(uint64, required, tag = "6")]
    pub mm_start_brk: u64,
    /// Current end of the heap, as `brk(0)` says it.
    #[prost(uint64, required, tag = "7")]
    pub mm_brk: u64,
    /// First address of the arguments.
    #[prost(uint64, required, tag = "8")]
    pub mm_arg_start: u64,
    /// End of the arguments.
    #[prost(uint64, required, tag = "9")]
    pub mm_arg_end: u64,
    /// First address of the environment.
    #[prost(uint64, required, tag = "10")]
    pub mm_env_start: u64,
    /// End of the environment.
    #[prost(uint64, required, tag = "11")]
    pub mm_env_end: u64,
    /// Id of the program's file in `files.img`.
    #[prost(uint32, required, tag = "12")]
    pub exe_file_id: u32,
    /// `/proc/PID/auxv` as 64-bit words.
    #[prost(uint64, repeated, packed = "false", tag = "13")]
    pub mm_saved_auxv: Vec<u64>,
    /// Mappings sorted by address, guard regions behind them.
    #[prost(message, repeated, tag = "14")]
    pub vmas: Vec<VmaEntry>,
    /// `PR_GET_DUMPABLE`.
    #[prost(int32, optional, tag = "15")]
    pub dumpable: Option<i32>,
    /// Rings of `io_setup`.
    #[prost(message, repeated, tag = "16")]
    pub aios: Vec<AioRingEntry>,
    /// `PR_GET_THP_DISABLE`.
    #[prost(bool, optional, tag = "17")]
    pub thp_disabled: Option<bool>,
}

schema!(AioRingEntry, "aio_ring_entry", [(1, "id"), (2, "nr_req"), (3, "ring_len")], []);

schema!(
    MmEntry,
    "mm_entry",
    [
        (1, "mm_start_code"),
        (2, "mm_end_code"),
        (3, "mm_start_data"),
        (4, "mm_end_data"),
        (5, "mm_start_stack"),
        (6, "mm_start_brk"),
        (7, "mm_brk"),
        (8, "mm_arg_start"),
        (9, "mm_arg_end"),
        (10, "mm_env_start"),
        (11, "mm_env_end"),
        (12, "exe_file_id")
    ],
    [(14, VmaEntry), (16, AioRingEntry)]
);
