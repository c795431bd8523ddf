//! The deadline of the freeze: collecting may not stand in the way of the process for ever.

use std::time::{Duration, Instant};

use crate::error::DumpError;
use crate::step::Step;

/// A clock that runs from the freeze on.
#[derive(Clone, Copy, Debug)]
pub struct Alarm {
    begun: Instant,
    limit: Duration,
}

impl Alarm {
    /// Starts the clock.
    pub fn start(limit: Duration) -> Alarm {
        Alarm { begun: Instant::now(), limit }
    }

    /// Errs once the time is over: the caller then lets the process run on.
    ///
    /// # Errors
    /// [`DumpError::Deadline`], naming `step`.
    pub fn check(&self, step: Step) -> Result<(), DumpError> {
        if self.begun.elapsed() > self.limit {
            return Err(DumpError::Deadline { step, limit: self.limit });
        }
        Ok(())
    }

    /// When the time is over.
    pub fn ends(&self) -> Instant {
        self.begun + self.limit
    }

    /// When the freeze began.
    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// Time since the freeze began.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}
