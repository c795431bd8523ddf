//! SIGINT, SIGTERM and SIGHUP end the suite as an error does: what was started is ended, what was made is removed.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use nix::libc::{SIGHUP, SIGINT, SIGTERM};

static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From here on the signals only leave a note, which [`check`] finds.
///
/// # Errors
/// When a handler cannot be installed.
pub fn install() -> io::Result<()> {
    let asked = ASKED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(asked))?;
    }
    Ok(())
}

/// # Errors
/// Once a signal asked for the end; every wait calls this.
pub fn check() -> io::Result<()> {
    match ASKED.get() {
        Some(asked) if asked.load(Ordering::Relaxed) => Err(io::Error::other("ended by a signal")),
        _ => Ok(()),
    }
}
