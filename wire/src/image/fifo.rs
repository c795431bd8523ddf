//! Named pipes.
//!
//! Field numbers and types are those of CRIU's images/fifo.proto.

use super::check::schema;

/// `fifo_entry` (images/fifo.proto). One end of a named pipe.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FifoEntry {
    /// Id in `files.img`.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Inode of the pipe.
    #[prost(uint32, required, tag = "2")]
    pub pipe_id: u32,
    /// File entry of the path.
    #[prost(uint32, optional, tag = "3")]
    pub regf_id: Option<u32>,
}

schema!(FifoEntry, "fifo_entry", [(1, "id"), (2, "pipe_id")], []);
