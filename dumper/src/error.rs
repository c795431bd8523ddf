//! Why a dump or a migration did not happen.
//!
//! Every variant names its subject and keeps its cause. Whatever it says, the process runs on as before
//! unless it is [`DumpError::Undecided`].

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use godwit_page_server::store::StoreError;
use godwit_page_server::store::sink::SinkError;
use godwit_wire::image::ImageError;
use godwit_wire::journal::JournalError;
use nix::unistd::Pid;

use crate::freeze::seize::FreezeError;
use crate::handover::freezer::FreezerError;
use crate::interrupt::Interrupted;
use crate::link::LinkError;
use crate::predump::pages::PagesError;
use crate::predump::tracker::TrackerError;
use crate::prepare::scripts;
use crate::procfs::ProcfsError;
use crate::refusal::{Findings, Refusals};
use crate::remote::RemoteError;
use crate::step::Step;

/// Why a dump failed.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// Something of the process cannot be dumped.
    #[error(transparent)]
    Refused(#[from] Refusals),
    /// A step was made to fail, or took too long.
    #[error("step {} took longer than {limit:?}: the process runs on; give it more with --timeout", step.name())]
    Deadline {
        /// The step at which the time was over.
        step: Step,
        /// What was allowed.
        limit: Duration,
    },
    /// An action script failed.
    #[error("action script {} failed at {action} ({status}); the process runs on", script.display())]
    Script {
        /// Which.
        script: PathBuf,
        /// The point at which it ran.
        action: &'static str,
        /// How it ended.
        status: ExitStatus,
    },
    /// An action script took too long.
    #[error(
        "action script {} took longer than {limit:?} at {action} and was ended; the process runs on: give it more with \
         --timeout", script.display()
    )]
    ScriptTimeout {
        /// Which.
        script: PathBuf,
        /// The point at which it ran.
        action: &'static str,
        /// What was allowed.
        limit: Duration,
    },
    /// A plugin failed.
    #[error("plugin {plugin}: {what} failed; the process runs on as far as the plugin lets it")]
    Plugin {
        /// Its name, or its file.
        plugin: String,
        /// The hook, or what was done with it.
        what: &'static str,
        /// Its answer.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A step was made to fail by a test.
    #[error("step {} was made to fail {when} its effect", step.name())]
    Injected {
        /// Which.
        step: Step,
        /// `before` or `after`.
        when: &'static str,
    },
    /// A system call failed.
    #[error("{subject}: {what} failed")]
    Sys {
        /// The process, descriptor, file or cgroup.
        subject: String,
        /// The call.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The process ended.
    #[error("process {pid} ended while it was dumped; there is nothing left to move")]
    Died {
        /// Which.
        pid: Pid,
    },
    /// A `/proc` file could not be read or understood.
    #[error(transparent)]
    Proc(#[from] ProcfsError),
    /// The process could not be stopped or let go.
    #[error(transparent)]
    Freeze(#[from] FreezeError),
    /// A system call inside the process failed.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The dirty tracker failed.
    #[error(transparent)]
    Tracker(#[from] TrackerError),
    /// Pages could not be read or handed over.
    #[error(transparent)]
    Pages(#[from] PagesError),
    /// An image could not be encoded.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The images could not be stored.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The local directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The page server cannot be reached, or refused.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The journal of the hand-over failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The lasting freeze failed.
    #[error(transparent)]
    Freezer(#[from] FreezerError),
    /// The destination could not restore; the process runs on here.
    #[error("the destination did not restore it: {why}; the process runs on here{log}")]
    NotRestored {
        /// The destination's reason.
        why: String,
        /// The end of CRIU's log, or nothing.
        log: String,
    },
    /// The hand-over was cut off where only the two journals together can tell which copy lives.
    #[error(
        "the hand-over of session {session} is undecided: {why}; nothing of it runs here, and \
         `godwit session resolve {session}` (with the same --state-dir) ends it"
    )]
    Undecided {
        /// The session.
        session: String,
        /// What happened.
        why: String,
    },
    /// The source was killed, and the destination failed after it had the process.
    #[error(
        "the destination failed after the hand-over: {why}; the sealed images of session {session} at the page \
         server are the copy, restore them there by hand"
    )]
    LostAfterCommit {
        /// The session.
        session: String,
        /// The destination's reason.
        why: String,
    },
    /// The command line asks for something that does not go together.
    #[error("{0}")]
    Usage(String),
    /// Godwit itself failed where it should not: its words stand before this.
    #[error(
        "godwit itself is at fault (its words stand above); process {pid} was let go and runs on as it was"
    )]
    OwnFault {
        /// The process.
        pid: Pid,
    },
    /// The user wants it to end.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// Made to fail by a test.
    #[error(transparent)]
    Fault(#[from] godwit_wire::fault::Injected),
}

impl DumpError {
    /// A failed system call.
    pub fn sys(subject: impl Into<String>, what: &'static str, source: impl Into<io::Error>) -> DumpError {
        DumpError::Sys { subject: subject.into(), what, source: source.into() }
    }

    /// Findings that turned up late. At least one refusal must be among them.
    pub fn from_findings(findings: Findings) -> DumpError {
        DumpError::Refused(Refusals(findings.refusals))
    }

    /// Whether what was sealed may be the only copy, or become it.
    pub fn leaves_images(&self) -> bool {
        matches!(self, DumpError::Undecided { .. } | DumpError::LostAfterCommit { .. })
    }

    /// The exit status that the command line documents.
    pub fn exit_status(&self) -> u8 {
        match self {
            DumpError::Usage(_) => 2,
            DumpError::Refused(_) => 3,
            DumpError::Undecided { .. } | DumpError::LostAfterCommit { .. } => 4,
            DumpError::Script { action, status, .. } => scripts::exit_status(action, *status),
            _ => crate::interrupt::asked().map_or(1, Interrupted::exit_status),
        }
    }
}
