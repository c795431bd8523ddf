//! Processes whose memory is moved.
//!
//! The program `workload` is all of them; a new kind of memory is a variant of [`Content`]. The process is the leader
//! of its session, holds no descriptor but 0, 1 and 2, and makes the file that it was given once its memory is filled.

mod content;
pub mod heap;
pub mod hot_set;
pub mod sample;
mod victim;

use std::io;
use std::path::Path;

pub use content::{Content, fill};
pub use victim::Victim;

use crate::link::Link;
use hot_set::Plan;

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

/// What is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// What fills its memory.
    pub content: Content,
    /// What of it is rewritten for ever, if anything.
    pub hot: Option<Plan>,
    /// Who has it.
    pub shape: Shape,
}

/// Who has the memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// One process of one thread.
    #[default]
    One,
    /// A process and so many children less one, each with a part of it.
    Processes(u32),
    /// One process of so many threads.
    Threads(u32),
}

impl Workload {
    /// Memory that is filled and left alone.
    pub fn still(content: Content) -> Workload {
        Workload { content, hot: None, shape: Shape::One }
    }

    /// Its name in results: that of its content, and with a hot set its share, how it is rewritten and the rate.
    pub fn name(self) -> String {
        let content = match self.shape {
            Shape::One => value_name(&self.content),
            Shape::Processes(count) => format!("{}-of-{count}-processes", value_name(&self.content)),
            Shape::Threads(count) => format!("{}-of-{count}-threads", value_name(&self.content)),
        };
        match self.hot {
            None => content,
            Some(plan) => {
                let speed = match plan.rate_mib_s {
                    0 => "full-speed".to_owned(),
                    rate => format!("at-{rate}"),
                };
                format!("{content}-hot-{}-{}-{speed}", plan.hot_percent, value_name(&plan.how))
            }
        }
    }

    /// Arguments of the program `workload`.
    fn args(self, memory_mib: u64, ready: &Path) -> Vec<String> {
        let mut args = vec!["--content".to_owned(), value_name(&self.content)];
        args.extend(["--memory-mib".to_owned(), memory_mib.to_string()]);
        args.extend(["--ready".to_owned(), ready.to_string_lossy().into_owned()]);
        match self.shape {
            Shape::One => {}
            Shape::Processes(count) => args.extend(["--processes".to_owned(), count.to_string()]),
            Shape::Threads(count) => args.extend(["--threads".to_owned(), count.to_string()]),
        }
        if let Some(plan) = self.hot {
            args.extend(["--hot-percent".to_owned(), plan.hot_percent.to_string()]);
            args.extend(["--rate-mib-s".to_owned(), plan.rate_mib_s.to_string()]);
            args.extend(["--how".to_owned(), value_name(&plan.how)]);
        }
        args
    }

    /// Starts it at the source of a link, and waits until its memory is filled. `dir` takes its files.
    ///
    /// # Errors
    /// When it cannot be started or ends before it is ready.
    pub fn start(self, memory_mib: u64, link: &Link, dir: &Path) -> io::Result<Victim> {
        let ready = dir.join("ready");
        let mut command = link.at_source(&crate::beside("workload")?);
        command.args(self.args(memory_mib, &ready)).current_dir("/");
        Victim::start(command, &ready, dir)
    }
}

/// As the command line calls it.
pub fn value_name(value: &impl clap::ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hot_set::How;

    #[test]
    fn a_hot_set_is_named_and_passed_on() {
        let still = Workload::still(Content::ZeroHeavy);
        assert_eq!(still.name(), "zero-heavy");
        let plan = Plan { hot_percent: 10, rate_mib_s: 100, how: How::Counter };
        let hot = Workload { hot: Some(plan), ..still };
        assert_eq!(hot.name(), "zero-heavy-hot-10-counter-at-100");
        let args = hot.args(64, Path::new("/r"));
        assert!(args.windows(2).any(|pair| pair == ["--how", "counter"]), "{args:?}");
        assert_eq!(still.args(64, Path::new("/r")).len(), 6);
    }
}
