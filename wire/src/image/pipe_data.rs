//! Bytes in pipes and named pipes.
//!
//! Files: `pipes-data.img`, `fifo-data.img`. Field numbers and types are those of CRIU's
//! images/pipe-data.proto.

use super::check::schema;

/// `pipe_data_entry` (images/pipe-data.proto). One pipe; its bytes follow the record.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PipeDataEntry {
    /// Inode of the pipe.
    #[prost(uint32, required, tag = "1")]
    pub pipe_id: u32,
    /// How many bytes follow.
    #[prost(uint32, required, tag = "2")]
    pub bytes: u32,
    /// Capacity in bytes (`F_GETPIPE_SZ`).
    #[prost(uint32, optional, tag = "3")]
    pub size: Option<u32>,
}

schema!(PipeDataEntry, "pipe_data_entry", [(1, "pipe_id"), (2, "bytes")], []);
