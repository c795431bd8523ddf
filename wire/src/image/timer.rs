//! Interval and POSIX timers of a task.
//!
//! Field numbers and types are those of CRIU's images/timer.proto.

use super::check::schema;

/// `itimer_entry` (images/timer.proto). An interval timer (`man 2 getitimer`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct ItimerEntry {
    /// Interval, seconds.
    #[prost(uint64, required, tag = "1")]
    pub isec: u64,
    /// Interval, microseconds.
    #[prost(uint64, required, tag = "2")]
    pub iusec: u64,
    /// Remaining time, seconds; 0 with an interval is re-armed with the interval.
    #[prost(uint64, required, tag = "3")]
    pub vsec: u64,
    /// Remaining time, microseconds.
    #[prost(uint64, required, tag = "4")]
    pub vusec: u64,
}

/// `posix_timer_entry` (images/timer.proto). A POSIX timer (`man 2 timer_create`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct PosixTimerEntry {
    /// Timer id.
    #[prost(uint32, required, tag = "1")]
    pub it_id: u32,
    /// `CLOCK_*`.
    #[prost(uint32, required, tag = "2")]
    pub clock_id: u32,
    /// Signal sent on expiry.
    #[prost(uint32, required, tag = "3")]
    pub si_signo: u32,
    /// `SIGEV_*`.
    #[prost(uint32, required, tag = "4")]
    pub it_sigev_notify: u32,
    /// Value passed with the signal.
    #[prost(uint64, required, tag = "5")]
    pub sival_ptr: u64,
    /// Overrun count (`man 2 timer_getoverrun`).
    #[prost(uint32, required, tag = "6")]
    pub overrun: u32,
    /// Interval, seconds.
    #[prost(uint64, required, tag = "7")]
    pub isec: u64,
    /// Interval, nanoseconds.
    #[prost(uint64, required, tag = "8")]
    pub insec: u64,
    /// Remaining time, seconds.
    #[prost(uint64, required, tag = "9")]
    pub vsec: u64,
    /// Remaining time, nanoseconds.
    #[prost(uint64, required, tag = "10")]
    pub vnsec: u64,
    /// Thread of `SIGEV_THREAD_ID`, in its pid namespace.
    #[prost(int32, optional, tag = "11")]
    pub notify_thread_id: Option<i32>,
}

/// `task_timers_entry` (images/timer.proto). All timers of a task.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskTimersEntry {
    /// `ITIMER_REAL`.
    #[prost(message, required, tag = "1")]
    pub real: ItimerEntry,
    /// `ITIMER_VIRTUAL`.
    #[prost(message, required, tag = "2")]
    pub virt: ItimerEntry,
    /// `ITIMER_PROF`.
    #[prost(message, required, tag = "3")]
    pub prof: ItimerEntry,
    /// POSIX timers.
    #[prost(message, repeated, tag = "4")]
    pub posix: Vec<PosixTimerEntry>,
}

schema!(ItimerEntry, "itimer_entry", [(1, "isec"), (2, "iusec"), (3, "vsec"), (4, "vusec")], []);

schema!(
    PosixTimerEntry,
    "posix_timer_entry",
    [
        (1, "it_id"),
        (2, "clock_id"),
        (3, "si_signo"),
        (4, "it_sigev_notify"),
        (5, "sival_ptr"),
        (6, "overrun"),
        (7, "isec"),
        (8, "insec"),
        (9, "vsec"),
        (10, "vnsec")
    ],
    []
);

schema!(
    TaskTimersEntry,
    "task_timers_entry",
    [(1, "real"), (2, "virt"), (3, "prof")],
    [(1, ItimerEntry), (2, ItimerEntry), (3, ItimerEntry), (4, PosixTimerEntry)]
);
