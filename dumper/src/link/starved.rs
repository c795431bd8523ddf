//! Whether the threads that drive the link wait for a processor: then it is full for want of time, and not of capacity.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// What the threads of QUIC are called; each has a connection or more.
const THREADS: &str = "godwit-quic";
/// A thread that ran or wanted to run for so large a part of the time holds up what it drives.
const BUSY_SHARE: f64 = 0.7;
/// It is starved where of that time it spent so large a part in waiting.
const WAITING_SHARE: f64 = 0.2;

/// Times of one thread since it began (`/proc/PID/task/TID/schedstat`, Documentation/scheduler/sched-stats.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Times {
    ran_ns: u64,
    waited_ns: u64,
}

impl Times {
    fn parse(text: &str) -> Option<Times> {
        let mut fields = text.split_ascii_whitespace().map(str::parse);
        match (fields.next(), fields.next()) {
            (Some(Ok(ran_ns)), Some(Ok(waited_ns))) => Some(Times { ran_ns, waited_ns }),
            _ => None,
        }
    }

    /// Whether a thread that had `before` so long ago was starved since then.
    fn is_starved(self, before: Times, ago: Duration) -> bool {
        let ran = self.ran_ns.saturating_sub(before.ran_ns) as f64;
        let waited = self.waited_ns.saturating_sub(before.waited_ns) as f64;
        let wanted = ran + waited;
        wanted > ago.as_nanos() as f64 * BUSY_SHARE && waited > wanted * WAITING_SHARE
    }
}

/// The threads of this program's links.
#[derive(Debug, Default)]
pub(super) struct LinkThreads {
    threads: Vec<(PathBuf, Times)>,
    seen: Duration,
}

impl LinkThreads {
    /// Those that run now. Where the kernel does not tell their times, none is ever starved.
    pub(super) fn find() -> LinkThreads {
        let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten().map(|task| task.path());
        let is_one = |task: &PathBuf| {
            fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim_end().starts_with(THREADS))
        };
        let threads = tasks.filter(is_one).map(|task| (task.join("schedstat"), Times::default()));
        LinkThreads { threads: threads.collect(), seen: Duration::ZERO }
    }

    /// Whether one of them was starved since the last look.
    pub(super) fn look(&mut self, now: Duration) -> bool {
        let ago = now.saturating_sub(std::mem::replace(&mut self.seen, now));
        let mut is_starved = false;
        for (path, before) in &mut self.threads {
            let Some(times) = fs::read_to_string(path).ok().and_then(|text| Times::parse(&text)) else {
                continue;
            };
            is_starved |= times.is_starved(*before, ago);
            *before = times;
        }
        is_starved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_waits_for_a_processor_is_starved_and_an_idle_or_a_running_one_is_not() {
        let times = |text: &str| Times::parse(text).unwrap();
        assert_eq!(times("2500 700 12\n"), Times { ran_ns: 2500, waited_ns: 700 });
        assert_eq!(Times::parse("x 1"), None);
        let (before, ago) = (times("1000 100 1"), Duration::from_nanos(100));
        assert!(times("1050 140 2").is_starved(before, ago));
        assert!(!times("1090 105 2").is_starved(before, ago), "it runs");
        assert!(!times("1005 110 2").is_starved(before, ago), "it has little to do");
    }

    #[test]
    fn threads_are_found_by_their_name() {
        let (leave, left) = std::sync::mpsc::channel::<()>();
        let named = std::thread::Builder::new().name(format!("{THREADS}-1"));
        let thread = named.spawn(move || left.recv().is_err()).unwrap();
        let mut found = LinkThreads::find();
        // A thread names itself, which may take it a moment.
        while found.threads.is_empty() {
            std::thread::yield_now();
            found = LinkThreads::find();
        }
        assert!(!found.look(Duration::from_secs(3600)), "it sleeps");
        drop(leave);
        assert!(thread.join().unwrap());
    }
}
