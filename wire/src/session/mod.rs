//! The session as two state machines without a clock or a socket: [`Sender`] at the dumper, [`Receiver`] at
//! the page server.
//!
//! Both take whole [`Request`]s and [`Reply`]s on their program's side and single control messages on the
//! peer's side, and both hold to one table of what may follow what ([`Phase`]). Reading order: `message`
//! (requests and replies), `phase` (the table), `plan` (page lists in chunks), `sender`, `receiver` (twins),
//! `gate` (which frames count), `name` (names that become paths).

mod gate;
mod message;
pub mod name;
mod phase;
mod plan;
mod receiver;
mod sender;

pub use gate::{Admit, FrameGate};
pub use message::{Reply, Request, SealRequest};
pub use phase::{Phase, Round};
pub use plan::{LISTS_MAX, RUNS_MAX, SLOTS_MAX};
pub use receiver::Receiver;
pub use sender::Sender;

/// Largest image file that travels whole, in bytes.
pub const IMAGE_LEN_MAX: u64 = 256 << 20;
/// Largest manifest, in bytes: the extent hashes of about 2 TiB of memory.
pub const MANIFEST_LEN_MAX: u64 = 64 << 20;
