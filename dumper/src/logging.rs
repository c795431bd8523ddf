//! Log lines on standard error.

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;

/// Starts logging: warnings and errors, more with each `-v`; `RUST_LOG` has the last word.
pub fn start(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let logger = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Stderr).with_target(false);
    // Another subscriber may be there already, in a test: its lines are as good.
    let _ = logger.try_init();
}

/// Standard error that never fails: a line that cannot be written is dropped. The subscriber would tell of a failure
/// by a macro that panics, and a terminal that was closed must not end a hand-over.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Prints a line for the user. One who reads no more stops nothing: what was done is done, and is told by the status.
pub fn tell(text: impl std::fmt::Display) {
    let _ = writeln!(io::stdout(), "{text}");
}
