//! What cannot be dumped, said by name: the subject, why, and the way out.
//!
//! The same checks serve `godwit doctor`, the look before a dump touches anything, and the re-check under
//! freeze. A finding is a [`Refusal`] (the dump does not happen) or a [`Loss`] (it happens, something is
//! not restored; refused with `--strict`).

use std::fmt;

use nix::unistd::Pid;

/// What a finding is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A process as a whole.
    Process(Pid),
    /// One thread of a process.
    Thread(Pid),
    /// An open descriptor of a process.
    Descriptor {
        /// The process.
        pid: Pid,
        /// The descriptor's number.
        fd: i32,
        /// What `/proc/PID/fd/N` points at.
        target: String,
    },
    /// A mapping of a process.
    Mapping {
        /// The process.
        pid: Pid,
        /// First address.
        start: u64,
        /// Address behind the last byte.
        end: u64,
        /// The name in `/proc/PID/maps`, may be empty.
        name: String,
    },
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Process(pid) => write!(f, "process {pid}"),
            Subject::Thread(tid) => write!(f, "thread {tid}"),
            Subject::Descriptor { pid, fd, target } => write!(f, "process {pid}, fd {fd} ({target})"),
            Subject::Mapping { pid, start, end, name } if name.is_empty() => {
                write!(f, "process {pid}, mapping {start:#x}-{end:#x}")
            }
            Subject::Mapping { pid, start, end, name } => {
                write!(f, "process {pid}, mapping {start:#x}-{end:#x} ({name})")
            }
        }
    }
}

/// Something that cannot be dumped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What it is about.
    pub subject: Subject,
    /// Why it cannot be dumped.
    pub why: String,
    /// What the user can do about it.
    pub way_out: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.subject, self.why, self.way_out)
    }
}

/// Something that a restore drops in silence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// What it is about.
    pub subject: Subject,
    /// What is lost.
    pub what: String,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.what)
    }
}

/// The refusals and losses found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// What cannot be dumped.
    pub refusals: Vec<Refusal>,
    /// What would be lost in silence.
    pub losses: Vec<Loss>,
    /// What could happen to it beside that, should the dumper be killed in the wrong moment.
    pub risks: Vec<Loss>,
}

impl Findings {
    /// Adds what was found elsewhere.
    pub fn append(&mut self, other: Findings) {
        self.refusals.extend(other.refusals);
        self.losses.extend(other.losses);
        self.risks.extend(other.risks);
    }

    /// Notes that `subject` cannot be dumped.
    pub fn refuse(&mut self, subject: Subject, why: impl Into<String>, way_out: impl Into<String>) {
        self.refusals.push(Refusal { subject, why: why.into(), way_out: way_out.into() });
    }

    /// Notes that a restore drops something of `subject`.
    pub fn lose(&mut self, subject: Subject, what: impl Into<String>) {
        self.losses.push(Loss { subject, what: what.into() });
    }

    /// Notes that `subject` may come to harm if the dumper is killed.
    pub fn risk(&mut self, subject: Subject, what: impl Into<String>) {
        self.risks.push(Loss { subject, what: what.into() });
    }

    /// `Ok` if nothing was refused.
    ///
    /// # Errors
    /// All refusals, as one error.
    pub fn verdict(self) -> Result<Vec<Loss>, Refusals> {
        if self.refusals.is_empty() { Ok(self.losses) } else { Err(Refusals(self.refusals)) }
    }
}

/// One or more refusals, as an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refusals(pub Vec<Refusal>);

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => write!(f, "cannot be dumped: {one}"),
            many => {
                write!(f, "cannot be dumped, for {} reasons:", many.len())?;
                many.iter().try_for_each(|refusal| write!(f, "\n  {refusal}"))
            }
        }
    }
}
