//! One record of a journal: what happened, to whom, under which token.

use std::fmt;

/// What a record says. The numbers are on disk: none is ever reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, prost::Enumeration)]
pub enum Event {
    /// A record of a later version, which this one does not know.
    Unknown = 0,
    /// The session was opened.
    Open = 1,
    /// Source: the tree is about to be frozen.
    Freezing = 2,
    /// Destination: all images of `final/` are durable and sealed.
    Prepared = 3,
    /// Source: the request to restore goes out; from here the tree stays frozen until both journals agree.
    RestoreSent = 4,
    /// Destination: a restore starts; the facts name its init and its work directory.
    Restoring = 5,
    /// Destination: the tree is restored and held; it has not run.
    Restored = 6,
    /// Source: from here only forward; the frozen tree is about to be killed.
    Committing = 7,
    /// Source: the frozen tree is dead, whole.
    Killed = 8,
    /// Destination: the held tree is about to be released.
    Running = 9,
    /// Destination: what a restore made is killed, and no tree was released.
    Aborted = 10,
    /// Source: the frozen tree runs again.
    Thawed = 11,
    /// An operator decided (`godwit session resolve`); the text says what.
    Resolved = 12,
    /// The session needs nothing more: the images may be removed.
    Released = 13,
    /// A step failed; the text says which and why.
    Failed = 14,
    /// The token was raised: whoever holds a lower one may no longer decide.
    TokenRaised = 15,
    /// Destination: the restorer ended with success; the tree runs on its own.
    Done = 16,
    /// Something worth keeping that changes no state.
    Note = 17,
}

impl Event {
    /// The word that is shown and written in documentation.
    pub fn word(self) -> &'static str {
        match self {
            Event::Unknown => "unknown",
            Event::Open => "open",
            Event::Freezing => "freezing",
            Event::Prepared => "prepared",
            Event::RestoreSent => "restore-sent",
            Event::Restoring => "restoring",
            Event::Restored => "restored",
            Event::Committing => "committing",
            Event::Killed => "killed",
            Event::Running => "running",
            Event::Aborted => "aborted",
            Event::Thawed => "thawed",
            Event::Resolved => "resolved",
            Event::Released => "released",
            Event::Failed => "failed",
            Event::TokenRaised => "token-raised",
            Event::Done => "done",
            Event::Note => "note",
        }
    }

    /// Whether the event moves the session on; [`Event::Note`] and [`Event::TokenRaised`] do not.
    pub fn is_state(self) -> bool {
        !matches!(self, Event::Unknown | Event::Note | Event::TokenRaised)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// One process of a tree, so that it cannot be mistaken for a later one of the same pid.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Member {
    /// Its pid, as the host of this journal sees it.
    #[prost(int32, tag = "1")]
    pub pid: i32,
    /// Its start time, as [`Facts::start_time`].
    #[prost(uint64, tag = "2")]
    pub start_time: u64,
    /// Source: a stop signal had stopped it before the dump, so that it is to stay stopped.
    #[prost(bool, tag = "3")]
    pub was_stopped: bool,
}

/// Members that one record lists at most, by [`Journal::append`](super::Journal::append); of more, the first ones are
/// in notes before it. A member takes at most 21 bytes, so that a list leaves a third of the longest record free.
pub const MEMBERS_PER_RECORD: usize = 2000;

/// What a record knows. Every field is optional: a record gives what is new, [`Facts::merge`] adds it up.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Facts {
    /// Root of the tree, as the host of this journal sees it.
    #[prost(int32, optional, tag = "1")]
    pub pid: Option<i32>,
    /// Its start time in clock ticks since boot (`man 5 proc_pid_stat`, field 22).
    #[prost(uint64, optional, tag = "2")]
    pub start_time: Option<u64>,
    /// `/proc/sys/kernel/random/boot_id` of the host of this journal.
    #[prost(string, optional, tag = "3")]
    pub boot_id: Option<String>,
    /// Name of the session, as in `D/<session>/`.
    #[prost(string, optional, tag = "4")]
    pub session: Option<String>,
    /// Directory of the images.
    #[prost(string, optional, tag = "5")]
    pub images_dir: Option<String>,
    /// Directory of the cgroup that keeps the tree frozen.
    #[prost(string, optional, tag = "6")]
    pub cgroup: Option<String>,
    /// Address of the other side.
    #[prost(string, optional, tag = "7")]
    pub peer: Option<String>,
    /// Process that holds a restored tree (our init, or the restorer), as the host sees it.
    #[prost(int32, optional, tag = "8")]
    pub holder_pid: Option<i32>,
    /// Start time of the holder, as `start_time`.
    #[prost(uint64, optional, tag = "9")]
    pub holder_start_time: Option<u64>,
    /// Inode of the pid namespace the tree was restored into.
    #[prost(uint64, optional, tag = "10")]
    pub pid_ns_inode: Option<u64>,
    /// Directory of the restore's logs, sockets and markers.
    #[prost(string, optional, tag = "11")]
    pub work_dir: Option<String>,
    /// Words for a reader: a cause, a decision, the end of a log.
    #[prost(string, optional, tag = "12")]
    pub text: Option<String>,
    /// Who the other side is: `Connection::peer_identity` of its certificate.
    #[prost(string, optional, tag = "13")]
    pub peer_identity: Option<String>,
    /// Source: all processes of the tree, its root first. Destination: those of the held tree. A journal of before there
    /// were trees has none: its tree is `pid` and `start_time` alone.
    #[prost(message, repeated, tag = "14")]
    pub members: Vec<Member>,
}

impl Facts {
    /// Takes over every field that `newer` gives; members are added to those that are known, since a long list stands in
    /// several records.
    pub fn merge(&mut self, newer: &Facts) {
        fn take<T: Clone>(old: &mut Option<T>, new: &Option<T>) {
            if new.is_some() {
                old.clone_from(new);
            }
        }
        take(&mut self.pid, &newer.pid);
        take(&mut self.start_time, &newer.start_time);
        take(&mut self.boot_id, &newer.boot_id);
        take(&mut self.session, &newer.session);
        take(&mut self.images_dir, &newer.images_dir);
        take(&mut self.cgroup, &newer.cgroup);
        take(&mut self.peer, &newer.peer);
        take(&mut self.holder_pid, &newer.holder_pid);
        take(&mut self.holder_start_time, &newer.holder_start_time);
        take(&mut self.pid_ns_inode, &newer.pid_ns_inode);
        take(&mut self.work_dir, &newer.work_dir);
        take(&mut self.text, &newer.text);
        take(&mut self.peer_identity, &newer.peer_identity);
        self.members.extend_from_slice(&newer.members);
    }
}

/// One entry of a journal.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Record {
    /// Number of the record, from 1, without gaps.
    #[prost(uint64, tag = "1")]
    pub seq: u64,
    /// When it was written, in microseconds since 1970 (UTC).
    #[prost(uint64, tag = "2")]
    pub unix_us: u64,
    /// What happened; read it with [`Record::kind`].
    #[prost(enumeration = "Event", tag = "3")]
    pub event: i32,
    /// Generation of the right to decide, from 1.
    #[prost(uint64, tag = "4")]
    pub token: u64,
    /// What is known.
    #[prost(message, optional, tag = "5")]
    pub facts: Option<Facts>,
}

impl Record {
    /// What happened; [`Event::Unknown`] for a number of a later version.
    pub fn kind(&self) -> Event {
        Event::try_from(self.event).unwrap_or(Event::Unknown)
    }
}

impl fmt::Display for Record {
    /// A line for a reader: time in seconds since 1970, event, token, words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, micros) = (self.unix_us / 1_000_000, self.unix_us % 1_000_000);
        write!(f, "{seconds}.{micros:06} {} token={}", self.kind(), self.token)?;
        match self.facts.as_ref().and_then(|facts| facts.text.as_deref()) {
            Some(text) => write!(f, " {text}"),
            None => Ok(()),
        }
    }
}

/// A journal added up: where its session stands.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Summary {
    /// The last event that moved the session on; `None` for an empty journal.
    pub state: Option<Event>,
    /// The token in force.
    pub token: u64,
    /// All facts, the newest of each, and all members since the last [`Event::Restoring`].
    pub facts: Facts,
    /// Number of records.
    pub records: u64,
    /// When the last record was written, in microseconds since 1970 (UTC).
    pub unix_us: u64,
}

impl Summary {
    /// Adds up the records of one journal, in order.
    pub fn of(records: &[Record]) -> Self {
        let mut sum = Summary::default();
        for record in records {
            if record.kind().is_state() {
                sum.state = Some(record.kind());
            }
            sum.token = sum.token.max(record.token);
            sum.records += 1;
            sum.unix_us = record.unix_us;
            // A restore that is begun anew makes a new tree; the processes of the one before are gone.
            if record.kind() == Event::Restoring {
                sum.facts.members.clear();
            }
            if let Some(facts) = &record.facts {
                sum.facts.merge(facts);
            }
        }
        sum
    }
}
