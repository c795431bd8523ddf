//! Facts about the running kernel: how long it is up, and which boot this is.

use std::path::Path;

use super::fields::{decimal, split_at_byte, words};
use super::{ParseError, ProcfsError, SHORT_BYTES, read_parsed};

/// Parses /proc/uptime, `SECONDS.HUNDREDTHS IDLE`, to microseconds.
pub fn parse_uptime(text: &[u8]) -> Result<u64, ParseError> {
    let bad = || ParseError::new("uptime", text);
    let first = words(text).next().ok_or_else(bad)?;
    let (seconds, hundredths) = split_at_byte(first, b'.').ok_or_else(bad)?;
    let seconds: u64 = decimal(seconds, "uptime")?;
    let hundredths: u64 = decimal(hundredths, "uptime")?;
    if hundredths > 99 {
        return Err(bad());
    }
    seconds.checked_mul(1_000_000).and_then(|us| us.checked_add(hundredths * 10_000)).ok_or_else(bad)
}

/// Time since boot in microseconds, to a hundredth of a second (/proc/uptime), in the reader's time namespace.
pub fn uptime_us() -> Result<u64, ProcfsError> {
    read_parsed(Path::new("/proc/uptime"), SHORT_BYTES, parse_uptime)
}

/// Parses a boot id: 36 characters, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
pub fn parse_boot_id(text: &[u8]) -> Result<String, ParseError> {
    let text = text.trim_ascii();
    let fits = text.len() == 36 && text.iter().all(|&b| b == b'-' || b.is_ascii_hexdigit());
    std::str::from_utf8(text)
        .ok()
        .filter(|_| fits)
        .map(str::to_owned)
        .ok_or_else(|| ParseError::new("boot_id", text))
}

/// A name for this boot that no other boot of any machine has (/proc/sys/kernel/random/boot_id).
pub fn boot_id() -> Result<String, ProcfsError> {
    read_parsed(Path::new("/proc/sys/kernel/random/boot_id"), SHORT_BYTES, parse_boot_id)
}
