//! The clocks of the task, so that they go on where they were: `timens-0.img` (images/timens.proto).
//!
//! Restore always makes a new time namespace and sets its offsets so that CLOCK_MONOTONIC and CLOCK_BOOTTIME
//! show these values. What counts is what the task sees, so a time namespace of its own is added in.

use std::fs;
use std::time::Duration;

use bytes::Bytes;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use godwit_wire::image::timens::{TimensEntry, Timespec};
use godwit_wire::image::{ImageKind, ImageWriter};

use crate::error::DumpError;

const NANOS: i128 = 1_000_000_000;

/// The image, with the clocks as the task sees them now.
///
/// # Errors
/// When the offsets of the task's time namespace cannot be read or make no sense.
pub fn image(pid: Pid) -> Result<(String, Bytes), DumpError> {
    let theirs = offsets(&format!("/proc/{pid}/timens_offsets"))?;
    let ours = offsets("/proc/self/timens_offsets")?;
    let seen = |clock, ours: i128, theirs: i128| -> Result<Timespec, DumpError> {
        let now =
            clock_gettime(clock).map_err(|errno| DumpError::sys("the clock", "clock_gettime", errno))?;
        let nanos = Duration::from(now).as_nanos() as i128 - ours + theirs;
        let tv_sec = u64::try_from(nanos.div_euclid(NANOS)).map_err(|_| {
            DumpError::sys(format!("process {pid}"), "its clock is before 0; reading it", bad())
        })?;
        Ok(Timespec { tv_sec, tv_nsec: nanos.rem_euclid(NANOS) as u64 })
    };
    let entry = TimensEntry {
        monotonic: seen(ClockId::CLOCK_MONOTONIC, ours.monotonic, theirs.monotonic)?,
        boottime: seen(ClockId::CLOCK_BOOTTIME, ours.boottime, theirs.boottime)?,
    };
    Ok((ImageKind::Timens.file_name(0), ImageWriter::single(ImageKind::Timens, &entry)?))
}

/// Offsets against the host's clocks, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Offsets {
    monotonic: i128,
    boottime: i128,
}

/// Reads `timens_offsets` (man 7 time_namespaces): lines of clock, seconds, nanoseconds. The file is absent on
/// a kernel without time namespaces: all clocks are the host's.
fn offsets(path: &str) -> Result<Offsets, DumpError> {
    match fs::read_to_string(path) {
        Ok(text) => parse(&text).ok_or_else(|| DumpError::sys(path, "reading it", bad())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Offsets::default()),
        Err(source) => Err(DumpError::sys(path, "reading it", source)),
    }
}

fn parse(text: &str) -> Option<Offsets> {
    let mut offsets = Offsets::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let clock = words.next()?;
        let seconds: i64 = words.next()?.parse().ok()?;
        let nanos: i64 = words.next()?.parse().ok()?;
        let total = i128::from(seconds) * NANOS + i128::from(nanos);
        match clock {
            "monotonic" | "1" => offsets.monotonic = total,
            "boottime" | "7" => offsets.boottime = total,
            _ => return None,
        }
    }
    Some(offsets)
}

fn bad() -> std::io::Error {
    std::io::Error::from(std::io::ErrorKind::InvalidData)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_with_either_name_and_garbage_is_refused() {
        let text = "monotonic           -5         7\nboottime             3  999999999\n";
        let offsets = parse(text).unwrap();
        assert_eq!(offsets.monotonic, -5 * NANOS + 7);
        assert_eq!(offsets.boottime, 3 * NANOS + 999_999_999);
        for bad in ["monotonic", "monotonic x 0", "wall 1 1", "monotonic 99999999999999999999 0"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
