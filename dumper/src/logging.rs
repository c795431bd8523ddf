//! Log lines on standard error.

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
    let logger =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // Another subscriber may be there already, in a test: its lines are as good.
    let _ = logger.try_init();
}
