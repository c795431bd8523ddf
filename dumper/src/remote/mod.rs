//! System calls run inside a stopped thread of another process, without a byte of code put into it.
//!
//! The thread is sent to a `syscall` instruction that is already there (the vDSO has one) and stopped again at the
//! entry and at the exit of the call. What makes this safe is that the thread can *heal itself*: before its
//! registers are touched, a complete signal frame with its whole state is written into its memory, and whatever
//! happens afterwards leads into `rt_sigreturn`:
//!
//! ```text
//!             registers                                      if the tracer dies here
//! parked      at the syscall instruction, rax = rt_sigreturn  the frame is restored at once
//! in a call   behind it, rsp at the frame's first word        `ret` -> restorer -> rt_sigreturn
//! settled     the thread's own, signal mask its own           nothing to do
//! ```
//!
//! Where answers lie in memory the thread makes many calls at one stroke ([`Session::tell`]): a chain of such frames, each with
//! the registers of one call, the last of which leads to the frame with its own state. The order of the table above holds for
//! it, too: whatever happens on the way leads through the chain to its end.
//!
//! One thread traces many, and waits for all of them at the same time: what waits is a future (`waiting`).
//!
//! Signals are blocked only while the thread is parked or in a call, that is, while the frame (which holds the
//! thread's own mask) is in force. Reading order: [`Session`], `surroundings` (the process around it, scratch memory), then `place` (where the frame may lie), `gadget`
//! (the two pieces of existing code), [`arch`] (registers and the frame's layout), [`judge`] (seccomp filters that
//! could stand in the way of healing), `waiting` (bounded waits).

pub mod arch;
mod error;
mod gadget;
pub mod judge;
mod place;
mod session;
mod surroundings;
pub(crate) mod waiting;

pub use error::RemoteError;
pub use gadget::Gadgets;
pub use session::{ANSWER_BYTES, BESIDE_EACH, Scratch, Session, Spot, Target, Telling, Told};
pub use surroundings::{
    SCRATCH_HINT, SCRATCH_NAME, SCRATCH_SLOTS, SCRATCH_STRIDE, Surroundings, find_leftovers,
};
