//! What differs between processors: registers of a call, restart of an interrupted one, and the signal frame.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("godwit dumps x86-64 processes only");
