//! Timer descriptors (man 2 timerfd_create).
//!
//! A periodic timer that has expired lies still until somebody reads it or asks for its time, and counts then what it
//! missed. To fdinfo alone, which CRIU reads, it looks disarmed, and would be so for ever; so it is asked for its time first,
//! by which the process loses nothing.
//!
//! Restore arms them last, with what was left of their time. One with TFD_TIMER_ABSTIME it sets to the whole second of the moment and what was left, which is up to a second early, and
//! sets off at once one that is not armed at all (criu/pie/restorer.c, timerfd_arm). So an absolute time is handed over as
//! what is left of it, unless its clock can be set: monotonic clocks go on where they stood, and nothing but
//! `/proc/PID/fdinfo` tells the two apart.

use std::os::fd::{AsFd, AsRawFd};

use godwit_wire::image::fdinfo::{FdTypes, FileEntry};
use godwit_wire::image::timerfd::TimerfdEntry;
use nix::unistd::Pid;

use super::kind::{Around, Kind};
use super::{Descriptor, FileTable, fown};
use crate::error::DumpError;
use crate::procfs::fdinfo;
use crate::procfs::objects::Timer;
use crate::refusal::Findings;
use crate::sys;

/// Timer descriptors.
pub const KIND: Kind =
    Kind { r#type: FdTypes::Timerfd, is: |descriptor| descriptor.is_object("[timerfd]"), check, dump };

/// Flag of `timerfd_settime` (include/uapi/linux/timerfd.h).
const TFD_TIMER_ABSTIME: u32 = 1;

/// Whether it is to expire at a moment of a clock that can be set.
fn is_by_the_calendar(timer: &Timer) -> bool {
    let is_absolute = timer.settime_flags & TFD_TIMER_ABSTIME != 0;
    is_absolute && timer.clock == libc::CLOCK_REALTIME && timer.value != (0, 0)
}

fn check(around: &Around<'_>, descriptor: &Descriptor, findings: &mut Findings) {
    let Ok(timer) = descriptor.info.timer() else { return };
    if ![libc::CLOCK_REALTIME, libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME].contains(&timer.clock) {
        findings.refuse(
            descriptor.subject(around.pid),
            format!("its clock ({}) wakes a sleeping machine, and CRIU restores no such timer", timer.clock),
            "let the program use the clock of that name without ALARM, or close it",
        );
    }
    if is_by_the_calendar(&timer) {
        findings.lose(
            descriptor.subject(around.pid),
            "it is set to a time of day (CLOCK_REALTIME, TFD_TIMER_ABSTIME); CRIU restores that up to a second early, so it \
             is handed over a second later",
        );
    }
}

/// The timer as it stands once it was asked.
fn told(around: &Around<'_>, descriptor: &Descriptor) -> Result<Timer, DumpError> {
    let subject = || format!("fd {} of process {}", descriptor.fd, around.pid);
    sys::timerfd::time_left(descriptor.copy.as_fd())
        .map_err(|errno| DumpError::sys(subject(), "timerfd_gettime", errno))?;
    let now = fdinfo::read(Pid::this(), descriptor.copy.as_raw_fd())?;
    now.timer().map_err(|error| DumpError::sys(subject(), "its fdinfo", std::io::Error::other(error)))
}

fn dump(
    around: &Around<'_>,
    id: u32,
    descriptor: &Descriptor,
    _: &mut FileTable,
) -> Result<FileEntry, DumpError> {
    let timer = told(around, descriptor)?;
    let (settime_flags, late) = match is_by_the_calendar(&timer) {
        true => (timer.settime_flags, 1),
        false => (0, 0),
    };
    let tfd = TimerfdEntry {
        id,
        flags: descriptor.file_flags(),
        fown: fown::read(around.pid, descriptor)?,
        clockid: timer.clock as u32,
        ticks: timer.ticks,
        settime_flags,
        vsec: timer.value.0 + late,
        vnsec: timer.value.1,
        isec: timer.interval.0,
        insec: timer.interval.1,
    };
    Ok(FileEntry { r#type: FdTypes::Timerfd.into(), id, tfd: Some(tfd), ..FileEntry::default() })
}
