//! Pseudoterminals (man 7 pty) whose both ends, or the master alone, are in the tree.
//!
//! Restore opens masters until one has the number that it had, then the slaves by their paths, and sets the controlling
//! terminal of a session through its leader, which must be in the tree (criu/tty.c). What waits in a terminal to be read could
//! only be had by reading it away from a process that may run on; it is left out, and named.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{SFlag, major, minor, stat};
use nix::unistd::Pid;

use godwit_wire::image::fdinfo::{FdTypes, FileEntry};
use godwit_wire::image::tty::{TermiosEntry, TtyFileEntry, TtyInfoEntry, TtyPtyEntry, TtyType, WinsizeEntry};

use super::kind::{Around, Kind};
use super::{Descriptor, FileTable, fown, reg};
use crate::error::DumpError;
use crate::procfs::stat as proc_stat;
use crate::refusal::{Findings, Subject};
use crate::sys::{pipe, tty};

/// Both ends of pseudoterminals.
pub const KIND: Kind = Kind { r#type: FdTypes::Tty, is, check, dump };

/// Device numbers (Documentation/admin-guide/devices.txt): `/dev/ptmx`, and the slaves.
const MASTER: (u64, u64) = (5, 2);
const SLAVE_MAJOR: u64 = 136;

/// The largest number of a pseudoterminal that CRIU knows (criu/tty.c, MAX_PTY_INDEX).
const INDEX_MAX: u32 = 1000;

const CLOSE: &str = "let the program close it, or run the program without it";
const OUTSIDE: &str = "name the process that holds the other end (a terminal, `script`, sshd), or start the program with \
                       `setsid` and standard input, output and error on files or /dev/null";

/// Whether it is the master of one.
pub fn is_master(descriptor: &Descriptor) -> bool {
    let device = (major(descriptor.stat.st_rdev), minor(descriptor.stat.st_rdev));
    descriptor.is_file_of_type(SFlag::S_IFCHR) && device == MASTER && !descriptor.only_names()
}

fn is_slave(descriptor: &Descriptor) -> bool {
    let is_of_major = major(descriptor.stat.st_rdev) == SLAVE_MAJOR;
    descriptor.is_file_of_type(SFlag::S_IFCHR) && is_of_major && !descriptor.only_names()
}

/// Whether it is an end of one.
pub fn is(descriptor: &Descriptor) -> bool {
    is_master(descriptor) || is_slave(descriptor)
}

/// Its number.
fn index(descriptor: &Descriptor) -> nix::Result<u32> {
    match is_master(descriptor) {
        true => tty::index(descriptor.copy.as_fd()),
        false => Ok(minor(descriptor.stat.st_rdev) as u32),
    }
}

/// The path of its slave: where restore looks for that of a master.
pub fn slave_path(descriptor: &Descriptor) -> Option<PathBuf> {
    if is_slave(descriptor) {
        return Some(descriptor.target.clone());
    }
    slave_beside(&descriptor.target, index(descriptor).ok()?)
}

/// The path of a master's slave, for a descriptor of any process; `None` for what is no master. The number stands in its
/// fdinfo.
pub fn slave_of_link(pid: Pid, fd: &OsStr, target: &Path) -> Option<PathBuf> {
    if !target.ends_with("ptmx") {
        return None;
    }
    let told = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", fd.display())).ok()?;
    let index = told.lines().find_map(|line| line.strip_prefix("tty-index:"))?.trim().parse().ok()?;
    slave_beside(target, index)
}

/// Where restore looks for the slave of a master that was opened at `master` (criu/tty.c, pty_alloc_fake_reg).
fn slave_beside(master: &Path, index: u32) -> Option<PathBuf> {
    let (dir, index) = (master.parent()?, index.to_string());
    Some(if dir.ends_with("pts") { dir.join(index) } else { dir.join("pts").join(index) })
}

fn check(around: &Around<'_>, descriptor: &Descriptor, findings: &mut Findings) {
    let subject = || descriptor.subject(around.pid);
    if let Err((why, way_out)) = pair(around, descriptor) {
        return findings.refuse(subject(), why, way_out);
    }
    reg::check(around, descriptor, findings);
    let fd = descriptor.copy.as_fd();
    if tty::line_discipline(fd).is_ok_and(|discipline| discipline != 0) {
        findings.refuse(subject(), "a terminal with a line discipline of its own is not dumped", CLOSE);
    }
    if let Ok(waiting @ 1..) = pipe::readable_bytes(fd) {
        findings
            .lose(subject(), format!("the {waiting} bytes that wait to be read from the terminal are lost"));
    }
    if tty::is_exclusive(fd).unwrap_or(false) {
        findings.lose(subject(), "the terminal is no longer exclusive (TIOCEXCL): CRIU restores it without");
    }
    if tty::termios(fd).is_ok_and(|termios| termios.cflag & libc::CBAUD == libc::BOTHER) {
        findings
            .lose(subject(), "the terminal's speed is none that has a name, and CRIU restores only those");
    }
    if is_master(descriptor) {
        check_session(around, descriptor, findings);
    }
}

/// Whether what restore needs of the other end is there.
fn pair(around: &Around<'_>, descriptor: &Descriptor) -> Result<(), (String, &'static str)> {
    let broken = |errno: Errno| match errno {
        Errno::EIO => {
            ("its other end is closed for good (hung up), and that is not dumped".to_owned(), CLOSE)
        }
        errno => (format!("it does not tell of itself ({errno})"), CLOSE),
    };
    tty::termios(descriptor.copy.as_fd()).map_err(broken)?;
    let index = index(descriptor).map_err(broken)?;
    if index > INDEX_MAX {
        return Err((
            format!("CRIU knows pseudoterminals up to number {INDEX_MAX}, and this is {index}"),
            CLOSE,
        ));
    }
    let path = slave_path(descriptor).unwrap_or_default();
    if !around.tree.terminals().has_master_of(&path) {
        return Err(("the other end of this terminal is not open in the tree".into(), OUTSIDE));
    }
    if let Some(other) = around.tree.holder_elsewhere(&path) {
        return Err((
            format!(
                "process {other} has an end of the terminal {} open, and is not of the tree",
                path.display()
            ),
            "name a process above both, or end that process first",
        ));
    }
    let device = stat(&reg::in_root(around.pid, &path)).map(|stat| stat.st_rdev);
    if !device.is_ok_and(|device| (major(device), minor(device)) == (SLAVE_MAJOR, u64::from(index))) {
        return Err((format!("its slave is not at {}, where a restore opens it", path.display()), CLOSE));
    }
    Ok(())
}

/// What a restore does for the session whose controlling terminal it is.
fn check_session(around: &Around<'_>, master: &Descriptor, findings: &mut Findings) {
    let subject = || master.subject(around.pid);
    let fd = master.copy.as_fd();
    let is_locked = tty::termios_locked(fd).is_ok_and(|locked| locked != tty::Termios::default());
    if is_locked && !around.tree.terminals().has_slave(&slave_path(master).unwrap_or_default()) {
        findings.lose(
            subject(),
            "its settings are locked, and CRIU locks them before it sets them: those that are locked become the default",
        );
    }
    let Ok(Some(leader)) = tty::session(fd) else { return };
    if !around.tree.has_task(leader) {
        return findings.refuse(
            subject(),
            format!("it is the controlling terminal of session {leader}, whose leader is not of the tree"),
            "name a process above both",
        );
    }
    if foreground(around, fd).is_none() {
        findings.lose(
            subject(),
            "the process group in its foreground is gone; after a restore it is that of the session's leader",
        );
    }
}

/// The foreground process group of a master's session, by its number inside; `None` for one that is empty.
fn foreground(around: &Around<'_>, master: BorrowedFd<'_>) -> Option<u32> {
    around.tree.group(tty::foreground(master).ok()??)
}

/// Checks the controlling terminal of a process: one whose master is in the tree, with the leader of the session.
pub fn check_controlling(around: &Around<'_>, findings: &mut Findings) {
    let Ok(found) = proc_stat::read(around.pid) else { return };
    if found.tty_nr == 0 {
        return;
    }
    let has_leader = around.tree.has_task(Pid::from_raw(found.session));
    let is_ours =
        of_number(found.tty_nr).is_some_and(|index| around.tree.terminals().has_master_of_session(index));
    if !has_leader || !is_ours {
        findings.refuse(
            Subject::Process(around.pid),
            "it has a controlling terminal whose other end is not open in the tree",
            OUTSIDE,
        );
    } else if found.session != around.pid.as_raw() {
        findings.lose(
            Subject::Process(around.pid),
            "it has no controlling terminal (/dev/tty) after a restore: CRIU gives that to the leader of the session alone",
        );
    }
}

/// The number of the pseudoterminal that `/proc/PID/stat` calls so (include/linux/kdev_t.h, new_encode_dev).
fn of_number(tty_nr: i32) -> Option<u32> {
    let number = tty_nr as u32;
    (u64::from(number >> 8 & 0xfff) == SLAVE_MAJOR).then_some(number & 0xff | number >> 12 & 0xf_ff00)
}

fn dump(
    around: &Around<'_>,
    id: u32,
    descriptor: &Descriptor,
    table: &mut FileTable,
) -> Result<FileEntry, DumpError> {
    let of_path = table.next_id();
    let path = reg::dump(around, of_path, descriptor, table)?;
    table.push(path);
    let index = index(descriptor)
        .map_err(|errno| failed(around, descriptor, "the number of the pseudoterminal", errno))?;
    let tty_info_id = index << 1 | u32::from(is_master(descriptor));
    if table.ttys.iter().all(|known| known.id != tty_info_id) {
        let info = info(around, descriptor, tty_info_id, index)?;
        table.ttys.push(info);
    }
    let fown = fown::read(around.pid, descriptor)?;
    let tty = TtyFileEntry { id, tty_info_id, flags: descriptor.file_flags(), fown, regf_id: Some(of_path) };
    Ok(FileEntry { r#type: FdTypes::Tty.into(), id, tty: Some(tty), ..FileEntry::default() })
}

fn failed(around: &Around<'_>, descriptor: &Descriptor, what: &'static str, errno: Errno) -> DumpError {
    DumpError::sys(format!("fd {} of process {}", descriptor.fd, around.pid), what, errno)
}

fn info(
    around: &Around<'_>,
    descriptor: &Descriptor,
    id: u32,
    index: u32,
) -> Result<TtyInfoEntry, DumpError> {
    let errno = |what| move |errno| failed(around, descriptor, what, errno);
    let fd = descriptor.copy.as_fd();
    let is_master = is_master(descriptor);
    let (sid, pgrp) = match is_master {
        true => session_of_master(around, fd).map_err(errno("TIOCGSID"))?,
        false => session_of_holder(around, index)?,
    };
    let mut locked = tty::termios_locked(fd).map_err(errno("TIOCGLCKTRMIOS"))?;
    // Restore locks settings before it sets them: both ends show the same ones, so the slave's entry locks what that of
    // the master has set.
    if is_master && around.tree.terminals().has_slave(&slave_path(descriptor).unwrap_or_default()) {
        locked = tty::Termios::default();
    }
    let size = tty::window_size(fd).map_err(errno("TIOCGWINSZ"))?;
    Ok(TtyInfoEntry {
        id,
        r#type: TtyType::Pty.into(),
        locked: is_master && tty::is_locked(fd).map_err(errno("TIOCGPTLCK"))?,
        exclusive: tty::is_exclusive(fd).map_err(errno("TIOCGEXCL"))?,
        packet_mode: is_master && tty::is_in_packet_mode(fd).map_err(errno("TIOCGPKT"))?,
        sid,
        pgrp,
        rdev: descriptor.stat.st_rdev as u32,
        termios: Some(entry(&tty::termios(fd).map_err(errno("TCGETS"))?)),
        termios_locked: Some(entry(&locked)),
        winsize: Some(WinsizeEntry {
            ws_row: size.ws_row.into(),
            ws_col: size.ws_col.into(),
            ws_xpixel: size.ws_xpixel.into(),
            ws_ypixel: size.ws_ypixel.into(),
        }),
        pty: Some(TtyPtyEntry { index }),
        dev: Some(descriptor.stat.st_dev as u32),
        uid: Some(descriptor.stat.st_uid),
        gid: Some(descriptor.stat.st_gid),
    })
}

/// A master tells whose controlling terminal its slave is, whoever asks.
fn session_of_master(around: &Around<'_>, master: BorrowedFd<'_>) -> nix::Result<(u32, u32)> {
    let Some(sid) = tty::session(master)?.and_then(|leader| around.tree.number_of(leader)) else {
        return Ok((0, 0));
    };
    Ok((sid, foreground(around, master).unwrap_or(sid)))
}

/// A slave tells it to the session alone. CRIU asks in the first process that has it.
fn session_of_holder(around: &Around<'_>, index: u32) -> Result<(u32, u32), DumpError> {
    let found = proc_stat::read(around.pid)?;
    let sid = around.tree.number_of(Pid::from_raw(found.session));
    Ok(match sid {
        Some(sid) if of_number(found.tty_nr) == Some(index) => {
            (sid, around.tree.group(Pid::from_raw(found.tpgid)).unwrap_or(sid))
        }
        _ => (0, 0),
    })
}

/// As restore takes it: speeds stand among the control modes; the control characters are packed, four in each word, and the
/// other words of the field are not looked at (criu/tty.c, termios_copy).
fn entry(termios: &tty::Termios) -> TermiosEntry {
    let mut c_cc = vec![0; termios.cc.len()];
    for (word, characters) in c_cc.iter_mut().zip(termios.cc.chunks(4)) {
        let mut bytes = [0; 4];
        bytes[..characters.len()].copy_from_slice(characters);
        *word = u32::from_le_bytes(bytes);
    }
    TermiosEntry {
        c_iflag: termios.iflag,
        c_oflag: termios.oflag,
        c_cflag: termios.cflag,
        c_lflag: termios.lflag,
        c_line: termios.line.into(),
        c_ispeed: 0,
        c_ospeed: 0,
        c_cc,
    }
}

/// The terminals of a tree.
#[derive(Debug, Default)]
pub struct Terminals {
    /// Paths of the slaves of its masters, with their numbers, and whether one is that of a session.
    masters: Vec<(PathBuf, u32, bool)>,
    slaves: Vec<PathBuf>,
}

impl Terminals {
    /// Those among descriptors.
    pub fn of<'a>(all: impl Iterator<Item = &'a Descriptor>) -> Terminals {
        let mut found = Terminals::default();
        for descriptor in all.filter(|descriptor| is(descriptor)) {
            let (Some(path), Ok(index)) = (slave_path(descriptor), index(descriptor)) else { continue };
            if is_master(descriptor) {
                let session = tty::session(descriptor.copy.as_fd());
                found.masters.push((path, index, session.is_ok_and(|leader| leader.is_some())));
            } else {
                found.slaves.push(path);
            }
        }
        found
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.masters.is_empty() && self.slaves.is_empty()
    }

    /// The paths of the slaves whose master is among them.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.masters.iter().map(|(path, ..)| path.as_path())
    }

    /// Whether the master of the slave at `path` is among them, and no other with its number.
    pub fn has_master_of(&self, path: &Path) -> bool {
        let mine = self.masters.iter().find(|(of, ..)| of == path);
        mine.is_some_and(|(_, index, _)| {
            self.masters.iter().all(|(of, other, _)| other != index || of == path)
        })
    }

    /// Whether the slave at `path` is among them.
    pub fn has_slave(&self, path: &Path) -> bool {
        self.slaves.iter().any(|of| of == path)
    }

    /// Whether a master with this number is, of a terminal that is the controlling one of a session.
    pub fn has_master_of_session(&self, index: u32) -> bool {
        self.masters.iter().any(|(_, of, is_of_session)| *of == index && *is_of_session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slaves_are_looked_for_beside_their_master() {
        let slave = |master: &str| slave_beside(Path::new(master), 7);
        assert_eq!(slave("/dev/ptmx"), Some("/dev/pts/7".into()));
        assert_eq!(slave("/dev/pts/ptmx"), Some("/dev/pts/7".into()));
    }

    #[test]
    fn numbers_of_controlling_terminals_are_taken_apart() {
        assert_eq!(of_number(136 << 8 | 3), Some(3));
        assert_eq!(of_number(136 << 8 | 3 << 20 | 7), Some(0x307));
        assert_eq!(of_number(4 << 8 | 1), None);
        assert_eq!(of_number(0), None);
    }
}
