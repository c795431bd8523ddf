//! QUIC: the only room that knows quinn, rustls and tokio.
//!
//! Everything above it is blocking code on ordinary threads: the runtime (one thread per endpoint) moves
//! packets, and a thread that reads or writes a stream waits for it. So disk work never delays an
//! acknowledgement, and the windows of QUIC are the bounded queues. Reading order: `keys` (certificates on
//! disk), `tls`, `tuning` (settings) and `path` (sizes of packets), `endpoint` (listen, connect), `streams` (control
//! stream and lanes), `reorder` (a lane's bytes in their order, whatever the path loses), `socket` (buffers and batches,
//! and a socket that can go dead on request), `bucket` (how fast it may send), `error`.

mod bucket;
mod endpoint;
mod error;
pub mod keys;
mod path;
#[doc(hidden)]
pub mod raw;
mod reorder;
mod socket;
mod streams;
mod tls;
mod tuning;

pub use bucket::{Bucket, RATE_MAX_BYTES_PER_SECOND, RATE_MIN_BYTES_PER_SECOND};
pub use endpoint::{Connection, Incoming, Listener, SocketFacts, Stats, connect, connect_speaking};
pub use error::QuicError;
pub use keys::{Identity, KeysError};
pub use socket::offload;
pub use streams::{ControlReceiver, ControlSender, LaneReceiver, LaneSender, Side};
pub use tls::random;
pub use tuning::Tuning;
