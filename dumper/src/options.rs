//! What a dump or migration was asked to do, after the command line was checked.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use nix::unistd::Pid;

use crate::error::DumpError;
use crate::link::limit::Rate;
use crate::link::{Compress, Delta};
use crate::predump::tracker::Choice;
use crate::prepare::cpu_match::CpuCap;
use crate::task::files::provided::AllProvided;

/// What happens to the source once its images are whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    /// It is killed: it lives on elsewhere, or in its images.
    Kill,
    /// It runs on.
    Run,
    /// It is left stopped by SIGSTOP.
    Stop,
}

/// Where the images go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A local directory, as `criu dump --images-dir`.
    Local {
        /// The directory; it must not hold images.
        images_dir: PathBuf,
        /// The directory of the round that this one builds on, relative to `images_dir`.
        prev_images_dir: Option<PathBuf>,
    },
    /// A page server.
    Remote {
        /// `HOST:PORT`.
        address: String,
        /// Directory of `ca.pem`, `client.pem` and `client.key`.
        keys: PathBuf,
        /// Name of the session's directory at the server; by default pid and start time.
        name: Option<String>,
    },
}

/// When pre-dump rounds end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoundLimits {
    /// At least this many pre-dump rounds, whatever they bring.
    pub rounds_min: u32,
    /// At most this many pre-dump rounds; 0 for none.
    pub rounds_max: u32,
    /// Rounds end once the next freeze is predicted to be shorter than this.
    pub downtime_target: Duration,
}

/// Whether a set is made, or a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A dump or a migration: a final set.
    Dump,
    /// One round on its own; the process runs.
    PreDump,
}

/// How long each phase may take before it is given up and undone. The help of `godwit migrate` tells the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Each of: connecting, one action script, the freeze until everything is collected.
    pub step: Duration,
    /// A page server that lives and takes nothing, or leaves a request unanswered that costs it little.
    pub stall: Duration,
    /// A page server that verifies a round or the final set and makes it durable.
    pub seal: Duration,
    /// A page server that restores.
    pub restore: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            step: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            seal: Duration::from_secs(600),
            restore: Duration::from_secs(600),
        }
    }
}

/// A release of CRIU, as far as images depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CriuVersion {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

impl CriuVersion {
    /// Whether its restore knows guard regions: from 4.2 on.
    pub fn restores_guards(self) -> bool {
        self >= CriuVersion { major: 4, minor: 2 }
    }
}

impl FromStr for CriuVersion {
    type Err = String;

    /// `4.2`, or with anything behind it, as `criu --version` says it: `4.2.1`.
    fn from_str(text: &str) -> Result<CriuVersion, String> {
        let mut parts = text.splitn(3, '.').map(str::parse);
        match (parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor))) if major >= 4 => Ok(CriuVersion { major, minor }),
            (Some(Ok(_)), Some(Ok(_))) => Err(format!("CRIU {text} does not restore what godwit writes")),
            _ => Err(format!("{text:?} is not a version such as 4.2")),
        }
    }
}

impl fmt::Display for CriuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// One dump or migration.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is made.
    pub stage: Stage,
    /// The root of the tree.
    pub pid: Pid,
    /// Where the images go.
    pub destination: Destination,
    /// What happens to the source.
    pub afterwards: Afterwards,
    /// Whether the page server restores the tree.
    pub restore: bool,
    /// How the restored tree's pid namespace is chosen at the server.
    pub restore_pidns: RestorePidns,
    /// Which dirty tracker.
    pub tracker: Choice,
    /// When rounds end.
    pub limits: RoundLimits,
    /// Refuse what restore would drop in silence.
    pub strict: bool,
    /// The root's session may lie outside of the tree: it is restored into that of `criu`.
    pub shell_job: bool,
    /// Never kill the source before the destination has restored it; refuse trees whose locks need that.
    pub no_kill_first: bool,
    /// Time the collection under freeze may take before it is given up: [`Timeouts::step`].
    pub freeze_timeout: Duration,
    /// The cgroup v2 to freeze while the processes are stopped; without it the tree's own, if it has one.
    pub freeze_cgroup: Option<PathBuf>,
    /// How long each phase may take.
    pub timeouts: Timeouts,
    /// Programs to run at the named points of a dump, in order.
    pub action_scripts: Vec<PathBuf>,
    /// Where plugins for CRIU lie; without it none is loaded.
    pub libdir: Option<PathBuf>,
    /// What of the processor must be the same where the process is restored.
    pub cpu_cap: CpuCap,
    /// The CRIU that will restore, where the user said so; else what the page server says, or any from 4.1 on.
    pub criu_version: Option<CriuVersion>,
    /// Threads that read pages, at least 1.
    pub readers: usize,
    /// Whether and how pages are compressed on the way to a page server.
    pub compress: Compress,
    /// Whether pages are sent by what the base round holds of them.
    pub delta: Delta,
    /// Connections that carry pages to a page server, at least 1.
    pub connections: u32,
    /// How fast the link to a page server may send, at first.
    pub bandwidth_limit: Rate,
    /// Take the alive set at the last freeze. Only a test turns it off, to see pages go wrong.
    pub alive_set: bool,
    /// How many bytes of a deleted file may go into the images.
    pub ghost_limit: u64,
    /// What whoever restores provides.
    pub provided: AllProvided,
    /// Whether links may be made beside files whose path is gone.
    pub link_remap: bool,
    /// Where journals are kept.
    pub state_dir: PathBuf,
    /// Show a progress bar when standard error is a terminal.
    pub progress: bool,
}

impl Options {
    /// What the command line by itself cannot rule out.
    ///
    /// # Errors
    /// [`DumpError::Usage`].
    pub fn check(&self) -> Result<(), DumpError> {
        match self.provided.first() {
            Some(provided) if self.restore => Err(DumpError::Usage(format!(
                "--external {provided}: a page server that restores has nothing to give in its place; add --no-restore, and \
                 restore by hand with --inherit-fd fd[N]:{provided}"
            ))),
            _ if self.link_remap && self.stage == Stage::Dump && self.afterwards != Afterwards::Kill => {
                Err(DumpError::Usage(
                    "--link-remap: the links that it makes are taken away where the process goes on, and the images could \
                     not be restored without; leave --leave-running and --leave-stopped out"
                        .into(),
                ))
            }
            _ => Ok(()),
        }
    }
}

/// Which pid namespace the page server restores into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum RestorePidns {
    /// A new one if the pid is taken there or both ends are the same machine.
    #[default]
    Auto,
    /// Always a new one.
    New,
    /// The server's own.
    Host,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_criu_version_is_two_numbers_and_whatever_follows() {
        let version = |text: &str| text.parse::<CriuVersion>();
        assert_eq!(version("4.2").unwrap(), CriuVersion { major: 4, minor: 2 });
        assert_eq!(version("4.1.1").unwrap().to_string(), "4.1");
        assert!(version("4.2.1").unwrap().restores_guards() && version("5.0").unwrap().restores_guards());
        assert!(!version("4.1.1").unwrap().restores_guards());
        assert!(["", "4", "x.2", "4.x", "3.19"].iter().all(|text| version(text).is_err()));
    }
}
