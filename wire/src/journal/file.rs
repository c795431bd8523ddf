//! A journal's file: create, open, append, read, lock.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use prost::Message;

use super::record::{Event, Facts, MEMBERS_PER_RECORD, Record, Summary};
use super::{JournalError, Listed, path_of};

/// First bytes of every journal.
const MAGIC: &[u8; 8] = b"GWJRNL1\n";
/// Bytes before a record's protobuf: length and checksum.
const HEAD_LEN: usize = 8;
/// Largest protobuf of a record, in bytes; a restorer's log tail fits.
const RECORD_LEN_MAX: usize = 64 << 10;
/// Largest journal that is read, in bytes: some hundred thousand records.
const FILE_LEN_MAX: u64 = 64 << 20;

/// How often a lock is tried that somebody has, and the pause in between.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

/// An open journal under this program's lock, which ends with the value or with the program.
#[derive(Debug)]
pub struct Journal {
    file: Flock<File>,
    path: PathBuf,
    records: Vec<Record>,
    /// Length of the good part of the file, in bytes.
    good_len: u64,
}

impl Journal {
    /// Makes the journal of a new session and takes its lock; its directory is made if it is missing
    /// (mode 0700). Token 1 is in force; the first record is the caller's.
    ///
    /// # Errors
    /// [`JournalError::Exists`] if the session has one already, [`JournalError::BadId`],
    /// [`JournalError::Io`].
    pub fn create(dir: &Path, session_id: &str) -> Result<Self, JournalError> {
        let path = path_of(dir, session_id)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(io_error("make the directory of", dir))?;
        let file = open_options().create_new(true).open(&path).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => JournalError::Exists { path: path.clone() },
            _ => JournalError::Io { op: "create", path: path.clone(), source },
        })?;
        let mut journal = Self { file: lock(file, &path)?, path, records: Vec::new(), good_len: 0 };
        journal.write(MAGIC)?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync the directory of", dir))?;
        Ok(journal)
    }

    /// Opens the journal of a session and takes its lock; a torn last record is cut away.
    ///
    /// # Errors
    /// [`JournalError::Locked`] if a living program holds it, [`JournalError::Missing`],
    /// [`JournalError::Corrupt`], [`JournalError::Io`].
    pub fn open(dir: &Path, session_id: &str) -> Result<Self, JournalError> {
        let path = path_of(dir, session_id)?;
        let file = open_options().open(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => JournalError::Missing { path: path.clone() },
            _ => JournalError::Io { op: "open", path: path.clone(), source },
        })?;
        let file = lock(file, &path)?;
        let mut journal = Self { file, path, records: Vec::new(), good_len: 0 };
        journal.reload()?;
        journal.cut_tail()?;
        if journal.good_len == 0 {
            journal.write(MAGIC)?;
        }
        Ok(journal)
    }

    /// As [`Journal::open`], but `None` where a living program holds the lock.
    ///
    /// # Errors
    /// As [`Journal::open`], but for [`JournalError::Locked`].
    pub fn try_lock(dir: &Path, session_id: &str) -> Result<Option<Self>, JournalError> {
        match Self::open(dir, session_id) {
            Err(JournalError::Locked { .. }) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Writes a record under the token in force and returns when it is on disk. Of more than [`MEMBERS_PER_RECORD`]
    /// members the first go into notes before it: who finds the record finds the whole list.
    ///
    /// # Errors
    /// [`JournalError::Io`] if it could not be made durable: then it does not count, and the step that it
    /// announces must not be taken. [`JournalError::TooLarge`].
    pub fn append(&mut self, event: Event, mut facts: Facts) -> Result<&Record, JournalError> {
        let token = self.token();
        let notes = facts.members.len().saturating_sub(1) / MEMBERS_PER_RECORD;
        let last = facts.members.split_off(notes * MEMBERS_PER_RECORD);
        for members in std::mem::replace(&mut facts.members, last).chunks(MEMBERS_PER_RECORD) {
            let listed = Facts { members: members.to_vec(), ..Facts::default() };
            self.append_under(token, Event::Note, listed)?;
        }
        self.append_under(token, event, facts)
    }

    /// Raises the token: whoever was given a lower one may no longer decide. Returns the new one.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub fn raise_token(&mut self, text: &str) -> Result<u64, JournalError> {
        let token = self.current_token()?.saturating_add(1);
        let facts = Facts { text: Some(text.to_owned()), ..Facts::default() };
        self.append_under(token, Event::TokenRaised, facts)?;
        Ok(token)
    }

    /// As [`Journal::raise_token`], to a token that another journal of the session has already. One that is not
    /// above the token in force changes nothing. Returns the token in force.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub fn raise_token_to(&mut self, token: u64, text: &str) -> Result<u64, JournalError> {
        let in_force = self.current_token()?;
        if token <= in_force {
            return Ok(in_force);
        }
        let facts = Facts { text: Some(text.to_owned()), ..Facts::default() };
        self.append_under(token, Event::TokenRaised, facts)?;
        Ok(token)
    }

    /// The token in force, read anew from the file.
    ///
    /// # Errors
    /// [`JournalError::Io`], [`JournalError::Corrupt`].
    pub fn current_token(&mut self) -> Result<u64, JournalError> {
        self.reload()?;
        Ok(self.token())
    }

    /// Every record, oldest first.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Where the session stands.
    pub fn summary(&self) -> Summary {
        Summary::of(&self.records)
    }

    /// Whether an event was ever recorded.
    pub fn has(&self, event: Event) -> bool {
        self.records.iter().any(|record| record.kind() == event)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn token(&self) -> u64 {
        self.records.iter().map(|record| record.token).max().unwrap_or(1)
    }

    fn append_under(&mut self, token: u64, event: Event, facts: Facts) -> Result<&Record, JournalError> {
        let record = Record {
            seq: self.records.last().map_or(1, |last| last.seq + 1),
            unix_us: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64),
            event: event as i32,
            token,
            facts: (facts != Facts::default()).then_some(facts),
        };
        let body = record.encode_to_vec();
        if body.len() > RECORD_LEN_MAX {
            return Err(JournalError::TooLarge { path: self.path.clone(), len: body.len() });
        }
        let mut bytes = Vec::with_capacity(HEAD_LEN + body.len());
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        self.write(&bytes)?;
        let last = self.records.len();
        self.records.push(record);
        Ok(&self.records[last])
    }

    /// Writes and syncs at the end of the good part. What a failed write left is cut away, here or by the
    /// next one, so that a record never follows a torn one.
    fn write(&mut self, bytes: &[u8]) -> Result<(), JournalError> {
        let result = self.cut_tail().and_then(|()| {
            let at = SeekFrom::Start(self.good_len);
            self.file.seek(at).map_err(io_error("seek in", &self.path))?;
            self.file.write_all(bytes).map_err(io_error("write", &self.path))?;
            self.file.sync_all().map_err(io_error("sync", &self.path))
        });
        match result {
            Ok(()) => self.good_len += bytes.len() as u64,
            // The record is not counted as written. If cutting fails too, the next writer cuts.
            Err(_) => drop(self.cut_tail()),
        }
        result
    }

    /// Removes whatever lies behind the good part.
    fn cut_tail(&mut self) -> Result<(), JournalError> {
        let len = self.file.metadata().map_err(io_error("look at", &self.path))?.len();
        if len > self.good_len {
            self.file.set_len(self.good_len).map_err(io_error("cut", &self.path))?;
            self.file.sync_all().map_err(io_error("sync", &self.path))?;
        }
        Ok(())
    }

    fn reload(&mut self) -> Result<(), JournalError> {
        let path = self.path.clone();
        self.file.seek(SeekFrom::Start(0)).map_err(io_error("seek in", &path))?;
        let bytes = slurp(&self.file, &path)?;
        (self.records, self.good_len) = decode(&bytes, &path)?;
        Ok(())
    }
}

/// Reads the journal of a session without its lock.
///
/// # Errors
/// [`JournalError::Missing`], [`JournalError::Corrupt`], [`JournalError::BadId`], [`JournalError::Io`].
pub fn read(dir: &Path, session_id: &str) -> Result<Vec<Record>, JournalError> {
    read_path(&path_of(dir, session_id)?)
}

/// Whether a living program holds the lock of a session's journal.
///
/// # Errors
/// [`JournalError::Missing`], [`JournalError::BadId`], [`JournalError::Io`].
pub fn is_locked(dir: &Path, session_id: &str) -> Result<bool, JournalError> {
    probe(&path_of(dir, session_id)?)
}

/// Every journal of a directory, by id; a directory that does not exist holds none.
///
/// # Errors
/// [`JournalError::Io`] if the directory cannot be read.
pub fn list(dir: &Path) -> Result<Vec<Listed>, JournalError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io_error("read the directory of", dir)(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(io_error("read the directory of", dir))?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.strip_suffix(".journal")) else { continue };
        let Ok(path) = path_of(dir, id) else { continue };
        let summary = read_path(&path).map(|records| Summary::of(&records));
        let locked = probe(&path).unwrap_or(false);
        found.push(Listed { id: id.to_owned(), path, locked, summary });
    }
    found.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(found)
}

fn read_path(path: &Path) -> Result<Vec<Record>, JournalError> {
    let file = open_to_read(path)?;
    Ok(decode(&slurp(&file, path)?, path)?.0)
}

fn probe(path: &Path) -> Result<bool, JournalError> {
    match Flock::lock(open_to_read(path)?, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err((_, Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, errno)) => Err(io_error("lock", path)(errno.into())),
    }
}

fn open_to_read(path: &Path) -> Result<File, JournalError> {
    let opened = OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path);
    opened.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => JournalError::Missing { path: path.to_owned() },
        _ => io_error("open", path)(source),
    })
}

fn slurp(file: &File, path: &Path) -> Result<Vec<u8>, JournalError> {
    let mut bytes = Vec::new();
    file.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    if bytes.len() as u64 > FILE_LEN_MAX {
        return Err(JournalError::Corrupt { path: path.to_owned(), offset: 0, why: "it is too long" });
    }
    Ok(bytes)
}

/// The records, and the length of the part that holds them.
fn decode(bytes: &[u8], path: &Path) -> Result<(Vec<Record>, u64), JournalError> {
    let corrupt =
        |offset: usize, why| JournalError::Corrupt { path: path.to_owned(), offset: offset as u64, why };
    if bytes.len() < MAGIC.len() {
        // The program died while it made the file; nothing was recorded yet.
        let torn = MAGIC.starts_with(bytes) || bytes.iter().all(|b| *b == 0);
        return if torn { Ok((Vec::new(), 0)) } else { Err(corrupt(0, "it does not start as a journal")) };
    }
    if !bytes.starts_with(MAGIC) {
        return Err(corrupt(0, "it does not start as a journal"));
    }
    let mut records: Vec<Record> = Vec::new();
    let mut at = MAGIC.len();
    while at < bytes.len() {
        match next_record(&bytes[at..]) {
            Next::Record(record, len) => {
                let expected = records.last().map_or(1, |last| last.seq + 1);
                if record.seq != expected {
                    return Err(corrupt(at, "a record is missing"));
                }
                records.push(*record);
                at += len;
            }
            Next::Torn => break,
            Next::Bad(why) => return Err(corrupt(at, why)),
        }
    }
    Ok((records, at as u64))
}

enum Next {
    Record(Box<Record>, usize),
    /// What a crash during the last append leaves: too short, or the whole rest is zeros or unwritten.
    Torn,
    Bad(&'static str),
}

fn next_record(rest: &[u8]) -> Next {
    let torn_if = |torn: bool, why| if torn { Next::Torn } else { Next::Bad(why) };
    let Some((head, body)) = rest.split_at_checked(HEAD_LEN) else { return Next::Torn };
    let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let crc = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    // One append is one write of at most this size, so a longer rest was not left by a crash.
    let one_append = rest.len() <= HEAD_LEN + RECORD_LEN_MAX;
    if len == 0 || len > RECORD_LEN_MAX {
        return torn_if(one_append && rest.iter().all(|b| *b == 0), "a record has an impossible length");
    }
    if body.len() < len {
        return Next::Torn;
    }
    if crc32fast::hash(&body[..len]) != crc {
        return torn_if(body.len() == len, "a record's checksum is wrong");
    }
    match Record::decode(&body[..len]) {
        Ok(record) => Next::Record(Box::new(record), HEAD_LEN + len),
        Err(_) => Next::Bad("a record does not decode"),
    }
}

/// Takes the lock. Somebody who only looks whether it is held has it for a moment, so it is tried a few times.
fn lock(mut file: File, path: &Path) -> Result<Flock<File>, JournalError> {
    for _ in 0..LOCK_TRIES {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((back, Errno::EWOULDBLOCK)) => file = back,
            Err((_, errno)) => return Err(io_error("lock", path)(errno.into())),
            Ok(locked) => return Ok(locked),
        }
        std::thread::sleep(LOCK_PAUSE);
    }
    Err(JournalError::Locked { path: path.to_owned() })
}

fn open_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
    options
}

fn io_error(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::Io { op, path, source }
}

#[cfg(test)]
mod tests {
    use super::super::Member;
    use super::*;

    fn facts(pid: i32) -> Facts {
        Facts { pid: Some(pid), text: Some("words".into()), ..Facts::default() }
    }

    fn three_records(dir: &Path) -> PathBuf {
        let mut journal = Journal::create(dir, "s1").unwrap();
        journal.append(Event::Open, facts(7)).unwrap();
        journal.append(Event::Freezing, Facts::default()).unwrap();
        journal.append(Event::RestoreSent, facts(8)).unwrap();
        journal.path().to_owned()
    }

    #[test]
    fn records_add_up_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        three_records(dir.path());
        let mut journal = Journal::open(dir.path(), "s1").unwrap();
        let sum = journal.summary();
        assert_eq!((sum.state, sum.token, sum.records), (Some(Event::RestoreSent), 1, 3));
        assert_eq!(sum.facts.pid, Some(8));
        assert_eq!(journal.raise_token("by hand").unwrap(), 2);
        assert_eq!(journal.summary().state, Some(Event::RestoreSent), "a raised token moves nothing on");
        assert_eq!(journal.append(Event::Killed, Facts::default()).unwrap().token, 2);
    }

    #[test]
    fn one_writer_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let held = Journal::create(dir.path(), "s1").unwrap();
        assert!(matches!(Journal::open(dir.path(), "s1"), Err(JournalError::Locked { .. })));
        assert!(Journal::try_lock(dir.path(), "s1").unwrap().is_none());
        assert!(is_locked(dir.path(), "s1").unwrap());
        assert!(matches!(Journal::create(dir.path(), "s1"), Err(JournalError::Exists { .. })));
        drop(held);
        assert!(!is_locked(dir.path(), "s1").unwrap());
        assert!(Journal::try_lock(dir.path(), "s1").unwrap().is_some());
    }

    #[test]
    fn cut_anywhere_it_reads_as_the_records_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = three_records(dir.path());
        let whole = std::fs::read(&path).unwrap();
        let all = read(dir.path(), "s1").unwrap();
        let mut seen = 0;
        for len in 0..=whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            let records = read(dir.path(), "s1").unwrap();
            assert!(all.starts_with(&records), "cut at {len}");
            assert!(records.len() >= seen);
            seen = records.len();
            let mut journal = Journal::open(dir.path(), "s1").unwrap();
            journal.append(Event::Note, Facts::default()).unwrap();
            drop(journal);
            assert_eq!(read(dir.path(), "s1").unwrap().len(), records.len() + 1, "cut at {len}");
        }
        assert_eq!(seen, 3);
    }

    #[test]
    fn a_torn_last_record_of_any_content_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let path = three_records(dir.path());
        let whole = std::fs::read(&path).unwrap();
        let lens = [0, 1, 7, 8, 9, 40];
        for len in lens {
            let mut torn = whole.clone();
            torn.extend(std::iter::repeat_n(0, len));
            std::fs::write(&path, &torn).unwrap();
            assert_eq!(read(dir.path(), "s1").unwrap().len(), 3, "{len} zeros behind");
        }
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &flipped).unwrap();
        assert_eq!(read(dir.path(), "s1").unwrap().len(), 2);
    }

    #[test]
    fn damage_before_the_last_record_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = three_records(dir.path());
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 0x10;
            std::fs::write(&path, &bad).unwrap();
            match read(dir.path(), "s1") {
                Err(JournalError::Corrupt { .. }) => {}
                // A length that now reaches behind the end looks like a torn append; no record is made up.
                Ok(records) => assert!(records.len() < 3, "byte {at}"),
                Err(e) => panic!("byte {at}: {e}"),
            }
        }
    }

    fn members(pids: std::ops::Range<i32>) -> Vec<Member> {
        pids.map(|pid| Member { pid, start_time: u64::MAX - pid as u64, was_stopped: pid % 3 == 0 }).collect()
    }

    #[test]
    fn a_list_of_members_of_any_length_is_read_back_whole() {
        let dir = tempfile::tempdir().unwrap();
        let most = MEMBERS_PER_RECORD as i32;
        for count in [0, 1, 3, most - 1, most, most + 1, 2 * most, 2 * most + 1, 9 * most] {
            let id = count.to_string();
            let mut journal = Journal::create(dir.path(), &id).unwrap();
            journal.append(Event::Open, facts(7)).unwrap();
            // The longest numbers there are, beside the longest text of a page server.
            let all = members(i32::MAX - count..i32::MAX);
            let text = Some("x".repeat(8 << 10));
            let last = journal
                .append(Event::Freezing, Facts { members: all.clone(), text, ..Facts::default() })
                .unwrap();
            assert!(last.kind() == Event::Freezing && last.encoded_len() <= RECORD_LEN_MAX);
            let sum = Summary::of(&read(dir.path(), &id).unwrap());
            assert!(sum.state == Some(Event::Freezing) && sum.facts.members == all, "{count}");
            assert_eq!(sum.records, 2 + (count - 1).max(0) as u64 / MEMBERS_PER_RECORD as u64);
        }
    }

    #[test]
    fn a_list_that_was_cut_off_comes_without_the_record_that_it_is_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(dir.path(), "s1").unwrap();
        journal.append(Event::Open, facts(7)).unwrap();
        let all = members(1..2 * MEMBERS_PER_RECORD as i32);
        journal.append(Event::Freezing, Facts { members: all, ..Facts::default() }).unwrap();
        let path = journal.path().to_owned();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(Summary::of(&read(dir.path(), "s1").unwrap()).state, Some(Event::Open));
    }

    /// Bytes as programs wrote them before there were members: `open` with the process, `freezing` with its hold.
    #[test]
    fn a_journal_without_members_is_read_and_written_as_ever() {
        let hex = "47574a524e4c310a290000009bf008990801100a180120012a1f08e7241086a43c1a06612d626f6f74220173\
         2a022f643a03683a315a022f6b13000000f52f3b6208021014180220012a09320773696773746f70";
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        let (records, good_len) = decode(&bytes, Path::new("old")).unwrap();
        assert_eq!((records.len(), good_len), (2, bytes.len() as u64));
        let sum = Summary::of(&records);
        assert_eq!(
            (sum.state, sum.facts.pid, sum.facts.start_time),
            (Some(Event::Freezing), Some(4711), Some(987_654))
        );
        assert_eq!((sum.facts.cgroup.as_deref(), sum.facts.members.len()), (Some("sigstop"), 0));
        let mut again = MAGIC.to_vec();
        for body in records.iter().map(Message::encode_to_vec) {
            again.extend_from_slice(&(body.len() as u32).to_le_bytes());
            again.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
            again.extend_from_slice(&body);
        }
        assert_eq!(again, bytes);
    }

    #[test]
    fn members_of_an_earlier_restore_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(dir.path(), "s1").unwrap();
        for pids in [1..4, 7..9] {
            journal.append(Event::Restoring, Facts::default()).unwrap();
            let held = Facts { members: members(pids), ..Facts::default() };
            journal.append(Event::Restored, held).unwrap();
        }
        assert_eq!(journal.summary().facts.members, members(7..9));
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for id in ["", ".", "..", "a/b", ".x", "a b", "a\0", &"x".repeat(129)] {
            assert!(matches!(path_of(Path::new("/tmp"), id), Err(JournalError::BadId { .. })), "{id:?}");
        }
        assert!(path_of(Path::new("/tmp"), "app-17_3.x").is_ok());
    }

    #[test]
    fn a_directory_lists_its_journals() {
        let dir = tempfile::tempdir().unwrap();
        assert!(list(&dir.path().join("none")).unwrap().is_empty());
        three_records(dir.path());
        let _held = Journal::create(dir.path(), "s2").unwrap();
        std::fs::write(dir.path().join("other"), "x").unwrap();
        std::fs::write(dir.path().join("bad.journal"), "not a journal at all").unwrap();
        let found = list(dir.path()).unwrap();
        let brief: Vec<_> = found.iter().map(|l| (l.id.as_str(), l.locked, l.summary.is_ok())).collect();
        assert_eq!(brief, [("bad", false, false), ("s1", false, true), ("s2", true, true)]);
    }
}
