//! What a limit reports: bytes, time, and CPU time of one or both sides.

use std::io;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// What moving some bytes took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Bytes that were moved, not counting headers.
    pub bytes: u64,
    /// From the first byte until the last one had arrived.
    pub wall: Duration,
    /// CPU time (user and system) of this side, all threads.
    pub cpu: Duration,
    /// CPU time of the other process, where there is one.
    pub far_cpu: Option<Duration>,
}

impl Measured {
    /// MiB a second.
    pub fn mib_per_s(&self) -> f64 {
        self.bytes as f64 / f64::from(1 << 20) / self.wall.as_secs_f64()
    }

    /// CPU-seconds of this side per GiB.
    pub fn cpu_s_per_gib(&self) -> f64 {
        self.per_gib(self.cpu)
    }

    /// CPU-seconds of the other side per GiB.
    pub fn far_cpu_s_per_gib(&self) -> Option<f64> {
        self.far_cpu.map(|cpu| self.per_gib(cpu))
    }

    fn per_gib(&self, time: Duration) -> f64 {
        time.as_secs_f64() / (self.bytes as f64 / f64::from(1 << 30))
    }
}

/// Wall time and CPU time from a moment on.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    wall: Instant,
    cpu: Duration,
}

impl Clock {
    /// Starts now.
    ///
    /// # Errors
    /// When the kernel does not tell the CPU time.
    pub fn start() -> io::Result<Clock> {
        let cpu = cpu_time()?;
        Ok(Clock { wall: Instant::now(), cpu })
    }

    /// CPU time of this process, all threads, since the start.
    ///
    /// # Errors
    /// As [`Clock::start`].
    pub fn cpu(&self) -> io::Result<Duration> {
        Ok(cpu_time()?.saturating_sub(self.cpu))
    }

    /// Time since the start.
    pub fn wall(&self) -> Duration {
        self.wall.elapsed()
    }

    /// What was measured since the start.
    ///
    /// # Errors
    /// As [`Clock::start`].
    pub fn stop(&self, bytes: u64) -> io::Result<Measured> {
        Ok(Measured { bytes, wall: self.wall(), cpu: self.cpu()?, far_cpu: None })
    }
}

/// CPU time (user and system) of this process so far, in whole microseconds.
fn cpu_time() -> io::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = |time: TimeVal| (time.tv_sec() * 1_000_000 + time.tv_usec()).unsigned_abs();
    Ok(Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_per_second_and_per_gib() {
        let half = Duration::from_millis(500);
        let measured = Measured { bytes: 512 << 20, wall: half, cpu: half, far_cpu: Some(2 * half) };
        assert!((measured.mib_per_s() - 1024.0).abs() < 1e-9);
        assert!((measured.cpu_s_per_gib() - 1.0).abs() < 1e-9);
        assert!((measured.far_cpu_s_per_gib().unwrap() - 2.0).abs() < 1e-9);
    }

    #[test]
    fn the_clock_counts_work_and_not_sleep() {
        let clock = Clock::start().unwrap();
        std::thread::sleep(Duration::from_millis(30));
        let asleep = clock.cpu().unwrap();
        let mut sum = 0u64;
        while clock.cpu().unwrap() < asleep + Duration::from_millis(20) {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(clock.wall() >= Duration::from_millis(30) + Duration::from_millis(15));
        assert_eq!(clock.stop(7).unwrap().bytes, 7);
    }
}
