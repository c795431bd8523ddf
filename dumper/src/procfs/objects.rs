//! What /proc/PID/fdinfo/FD tells of kernel objects without a path (`man 5 proc_pid_fdinfo`; the show_fdinfo of each).

use super::ParseError;
use super::fdinfo::FdInfo;
use super::fields::{decimal, split_at_byte, unsigned, unsigned32, words};

impl FdInfo {
    /// The value of the line with this key, trimmed; an error if there is none.
    fn line(&self, key: &'static str) -> Result<&[u8], ParseError> {
        self.extra(key).ok_or_else(|| ParseError::new(key, b"(no such line)"))
    }

    /// The lines that begin with this word.
    fn lines_of<'a>(&'a self, first: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let lines = self.extras.iter().map(Vec::as_slice);
        lines.filter(move |line| line.starts_with(first.as_bytes()))
    }

    /// The value of an event counter (fs/eventfd.c).
    pub fn event_counter(&self) -> Result<u64, ParseError> {
        unsigned(self.line("eventfd-count")?, 16, "eventfd-count")
    }

    /// Whether an event counter is a semaphore (fs/eventfd.c, since 6.7); `None` where the kernel does not say.
    pub fn is_semaphore(&self) -> Option<bool> {
        self.extra("eventfd-semaphore").map(|flag| flag != b"0")
    }

    /// The signals that a descriptor takes, bit n-1 for signal n (fs/signalfd.c).
    pub fn taken_signals(&self) -> Result<u64, ParseError> {
        unsigned(self.line("sigmask")?, 16, "sigmask")
    }

    /// A timer (fs/timerfd.c).
    pub fn timer(&self) -> Result<Timer, ParseError> {
        Ok(Timer {
            clock: decimal(self.line("clockid")?, "clockid")?,
            ticks: unsigned(self.line("ticks")?, 10, "ticks")?,
            settime_flags: unsigned32(self.line("settime flags")?, 8, "settime flags")?,
            value: pair(self.line("it_value")?)?,
            interval: pair(self.line("it_interval")?)?,
        })
    }

    /// What an epoll set watches, in the kernel's order (fs/eventpoll.c).
    pub fn epoll_targets(&self) -> Result<Vec<EpollTarget>, ParseError> {
        self.lines_of("tfd:").map(epoll_target).collect()
    }

    /// The watches of an inotify group, newest first (fs/notify/fdinfo.c).
    pub fn inotify_watches(&self) -> Result<Vec<Watch>, ParseError> {
        self.lines_of("inotify ").map(|line| watch(line, "wd")).collect()
    }

    /// A fanotify group and its marks, newest first (fs/notify/fdinfo.c).
    pub fn fanotify(&self) -> Result<Fanotify, ParseError> {
        let mut group = Fanotify { flags: 0, event_flags: 0, marks: Vec::new() };
        let mut seen_flags = false;
        for line in self.lines_of("fanotify ") {
            let fields = fields(line);
            let number = |key| unsigned32(find(&fields, key, line)?, 16, key);
            match fields.first() {
                Some((b"flags", _)) => {
                    (group.flags, group.event_flags) = (number("flags")?, number("event-flags")?);
                    seen_flags = true;
                }
                Some((b"ino", _)) => group.marks.push(Mark::Inode(number("mflags")?, watch(line, "mflags")?)),
                Some((b"mnt_id", _)) => group.marks.push(Mark::Mount {
                    mount: number("mnt_id")? as i32,
                    flags: number("mflags")?,
                    mask: number("mask")?,
                    ignored_mask: number("ignored_mask")?,
                }),
                _ => group.marks.push(Mark::Other),
            }
        }
        if seen_flags { Ok(group) } else { Err(ParseError::new("fanotify flags", b"(no such line)")) }
    }

    /// Whose handle it is (fs/pidfs.c, kernel/fork.c): the pid as the reader sees it, -1 if it was waited for, 0 if the
    /// reader cannot see it.
    pub fn handle_of(&self) -> Result<i32, ParseError> {
        decimal(self.line("Pid")?, "Pid")
    }
}

/// A timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer {
    /// `CLOCK_*`.
    pub clock: i32,
    /// Expirations that were not read yet.
    pub ticks: u64,
    /// Flags of `timerfd_settime`.
    pub settime_flags: u32,
    /// Time left, zero if it is not armed: seconds, nanoseconds.
    pub value: (u64, u64),
    /// Interval, likewise.
    pub interval: (u64, u64),
}

/// `(SECONDS, NANOSECONDS)`
fn pair(text: &[u8]) -> Result<(u64, u64), ParseError> {
    let bad = || ParseError::new("a timer's time", text);
    let inner = text.strip_prefix(b"(").and_then(|text| text.strip_suffix(b")")).ok_or_else(bad)?;
    let (seconds, nanos) = split_at_byte(inner, b',').ok_or_else(bad)?;
    let number = |text: &[u8]| unsigned(text.trim_ascii(), 10, "a timer's time");
    Ok((number(seconds)?, number(nanos)?))
}

/// A descriptor that an epoll set watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpollTarget {
    /// The number that it was added under; what has that number now may be another file.
    pub fd: i32,
    /// `EPOLL*` bits.
    pub events: u32,
    /// What the program gave along.
    pub data: u64,
    /// Position of the file.
    pub pos: i64,
    /// Inode of the file.
    pub inode: u64,
    /// Device of the file, in the kernel's own form.
    pub device: u32,
}

/// `tfd: N events: X data: X pos:N ino:X sdev:X`, numbers padded.
fn epoll_target(line: &[u8]) -> Result<EpollTarget, ParseError> {
    let fields = fields(line);
    let find = |key: &'static str| find(&fields, key, line);
    Ok(EpollTarget {
        fd: decimal(find("tfd")?, "tfd")?,
        events: unsigned32(find("events")?, 16, "events")?,
        data: unsigned(find("data")?, 16, "data")?,
        pos: decimal(find("pos")?, "pos")?,
        inode: unsigned(find("ino")?, 16, "ino")?,
        device: unsigned32(find("sdev")?, 16, "sdev")?,
    })
}

/// What a watch or mark is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Its number, of an inotify watch.
    pub wd: i32,
    /// Inode of the file.
    pub inode: u64,
    /// Device of the file, in the kernel's own form.
    pub device: u32,
    /// Events.
    pub mask: u32,
    /// Events that are ignored.
    pub ignored_mask: u32,
    /// Type and bytes of the file's handle; `None` where its file system has none.
    pub handle: Option<(u32, Vec<u8>)>,
}

/// A mark of a fanotify group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// On a file or directory, with the flags of the mark.
    Inode(u32, Watch),
    /// On a mount.
    Mount {
        /// The mount's id.
        mount: i32,
        /// Flags of the mark.
        flags: u32,
        /// Events.
        mask: u32,
        /// Events that are ignored.
        ignored_mask: u32,
    },
    /// On something else: a file system, a mount namespace.
    Other,
}

/// A fanotify group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fanotify {
    /// Flags of `fanotify_init`.
    pub flags: u32,
    /// Open flags of the descriptors that come with events.
    pub event_flags: u32,
    /// Its marks.
    pub marks: Vec<Mark>,
}

/// `... wd:X ino:X sdev:X mask:X ignored_mask:X fhandle-bytes:X fhandle-type:X f_handle:HEX`, the last three only where the
/// file system has handles; `number` is the field that stands in `wd`.
fn watch(line: &[u8], number: &'static str) -> Result<Watch, ParseError> {
    let fields = fields(line);
    let find = |key: &'static str| find(&fields, key, line);
    let number32 = |key| unsigned32(find(key)?, 16, key);
    let handle = match find("f_handle") {
        Ok(text) => Some((number32("fhandle-type")?, bytes_of_hex(text, number32("fhandle-bytes")?)?)),
        Err(_) => None,
    };
    Ok(Watch {
        wd: number32(number)? as i32,
        inode: unsigned(find("ino")?, 16, "ino")?,
        device: number32("sdev")?,
        mask: number32("mask")?,
        ignored_mask: number32("ignored_mask")?,
        handle,
    })
}

/// Bytes as two digits each, as many as were announced.
fn bytes_of_hex(text: &[u8], len: u32) -> Result<Vec<u8>, ParseError> {
    let bytes: Result<Vec<u8>, ParseError> =
        text.chunks(2).map(|pair| Ok(unsigned(pair, 16, "f_handle")? as u8)).collect();
    bytes.and_then(|bytes| match bytes.len() == len as usize && text.len().is_multiple_of(2) {
        true => Ok(bytes),
        false => Err(ParseError::new("f_handle", text)),
    })
}

/// `KEY:VALUE` and `KEY: VALUE` of a line; words without a colon before them are passed over.
fn fields(line: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut found = Vec::new();
    let mut words = words(line).peekable();
    while let Some(word) = words.next() {
        match split_at_byte(word, b':') {
            Some((key, b"")) => found.extend(words.next().map(|value| (key, value))),
            Some(pair) => found.push(pair),
            None => {}
        }
    }
    found
}

fn find<'a>(fields: &[(&'a [u8], &'a [u8])], key: &'static str, line: &[u8]) -> Result<&'a [u8], ParseError> {
    let found = fields.iter().find(|(name, _)| *name == key.as_bytes());
    found.map(|(_, value)| *value).ok_or_else(|| ParseError::new(key, line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::fdinfo::parse;

    #[test]
    fn a_timer_is_read_as_the_kernel_prints_it() {
        let text =
            b"pos:\t0\nflags:\t02004002\nmnt_id:\t16\nino:\t1\nclockid: 1\nticks: 3\nsettime flags: 03\n\
            it_value: (5, 49406829)\nit_interval: (1, 0)\n";
        let timer = parse(text).unwrap().timer().unwrap();
        let wanted = Timer { clock: 1, ticks: 3, settime_flags: 3, value: (5, 49_406_829), interval: (1, 0) };
        assert_eq!(timer, wanted);
        for wrong in [&b"3, 4"[..], b"(3 4)", b"(3, x)", b""] {
            assert!(pair(wrong).is_err());
        }
    }

    #[test]
    fn targets_of_epoll_are_read_as_the_kernel_prints_them() {
        let text = b"pos:\t0\nflags:\t02\nmnt_id:\t16\nino:\t1\n\
            tfd:        5 events: 40000019 data: ffffffffffffffff  pos:0 ino:61af sdev:7\n\
            tfd:       12 events:        1 data:                7  pos:-1 ino:1 sdev:800001\n";
        let targets = parse(text).unwrap().epoll_targets().unwrap();
        let first =
            EpollTarget { fd: 5, events: 0x4000_0019, data: u64::MAX, pos: 0, inode: 0x61af, device: 7 };
        assert_eq!(targets[0], first);
        assert_eq!((targets[1].fd, targets[1].pos, targets[1].device), (12, -1, 0x80_0001));
        assert!(epoll_target(b"tfd: 5 events: 1 data: 7 pos:0").is_err());
    }

    #[test]
    fn watches_and_marks_are_read_as_the_kernel_prints_them() {
        let text = b"flags:\t00\n\
            inotify wd:3 ino:1 sdev:1b mask:fff ignored_mask:0 fhandle-bytes:c fhandle-type:81 f_handle:5e3247d70100000000000000\n\
            inotify wd:10 ino:99e191 sdev:fe00000 mask:84000100 ignored_mask:0 \n";
        let watches = parse(text).unwrap().inotify_watches().unwrap();
        assert_eq!((watches[0].wd, watches[0].mask, watches[0].device), (3, 0xfff, 0x1b));
        let (kind, bytes) = watches[0].handle.clone().unwrap();
        assert_eq!((kind, bytes.len(), bytes[0]), (0x81, 12, 0x5e));
        assert_eq!((watches[1].wd, &watches[1].handle), (16, &None));
        let text = b"flags:\t00\nfanotify flags:2 event-flags:8000\n\
            fanotify sdev:1b mflags:0 mask:18 ignored_mask:0\n\
            fanotify mnt_id:1e mflags:40 mask:18 ignored_mask:2\n\
            fanotify ino:99e191 sdev:fe00000 mflags:1 mask:20 ignored_mask:18 fhandle-bytes:2 fhandle-type:1 f_handle:91e1\n";
        let group = parse(text).unwrap().fanotify().unwrap();
        assert_eq!((group.flags, group.event_flags, group.marks.len()), (2, 0x8000, 3));
        assert_eq!(group.marks[0], Mark::Other);
        assert_eq!(group.marks[1], Mark::Mount { mount: 0x1e, flags: 0x40, mask: 0x18, ignored_mask: 2 });
        assert!(matches!(&group.marks[2], Mark::Inode(1, watch) if watch.ignored_mask == 0x18));
        assert!(bytes_of_hex(b"123", 2).is_err() && bytes_of_hex(b"1234", 3).is_err());
    }

    #[test]
    fn counters_masks_and_handles_are_read() {
        let text = b"flags:\t02\neventfd-count:               1f\neventfd-id: 3\neventfd-semaphore: 1\n\
            sigmask:\t0000000000000200\nPid:\t-1\nNSpid:\t-1\n";
        let info = parse(text).unwrap();
        assert_eq!((info.event_counter().unwrap(), info.is_semaphore()), (0x1f, Some(true)));
        assert_eq!((info.taken_signals().unwrap(), info.handle_of().unwrap()), (0x200, -1));
        assert!(parse(b"flags:\t02\n").unwrap().timer().is_err());
    }
}
