//! Questions about a terminal (man 2 ioctl_tty; drivers/tty), by a descriptor of either end of a pseudoterminal.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::unistd::Pid;

const TIOCGPGRP: u64 = 0x540f;
const TIOCGETD: u64 = 0x5424;
const TIOCGSID: u64 = 0x5429;
const TIOCGLCKTRMIOS: u64 = 0x5456;
const TIOCGPTN: u64 = 0x8004_5430;
const TIOCGPKT: u64 = 0x8004_5438;
const TIOCGPTLCK: u64 = 0x8004_5439;
const TIOCGEXCL: u64 = 0x8004_5440;

/// The kernel's `struct termios` (include/uapi/asm-generic/termbits.h), which is smaller than that of libc.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Termios {
    /// Input modes.
    pub iflag: u32,
    /// Output modes.
    pub oflag: u32,
    /// Control modes.
    pub cflag: u32,
    /// Local modes.
    pub lflag: u32,
    /// Line discipline.
    pub line: u8,
    /// Control characters.
    pub cc: [u8; 19],
}

/// `struct winsize`: rows, columns, and the same in pixels.
pub type WindowSize = libc::winsize;

/// # Safety
/// `request` must be one by which the kernel writes a `T` and no more.
unsafe fn ask<T: Copy>(fd: BorrowedFd<'_>, request: u64, mut answer: T) -> nix::Result<T> {
    // SAFETY: the caller names a request that writes one T, and `answer` is one.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &raw mut answer) };
    Errno::result(rc).map(|_| answer)
}

/// One of the requests above whose answer is an int.
fn number(fd: BorrowedFd<'_>, request: u64) -> nix::Result<i32> {
    // SAFETY: all of them write one int.
    unsafe { ask(fd, request, 0i32) }
}

/// How it treats what goes through it (TCGETS). EIO: the other end is closed for good.
pub fn termios(fd: BorrowedFd<'_>) -> nix::Result<Termios> {
    // SAFETY: the kernel writes one struct termios.
    unsafe { ask(fd, libc::TCGETS, Termios::default()) }
}

/// What of that cannot be changed (TIOCGLCKTRMIOS).
pub fn termios_locked(fd: BorrowedFd<'_>) -> nix::Result<Termios> {
    // SAFETY: the kernel writes one struct termios.
    unsafe { ask(fd, TIOCGLCKTRMIOS, Termios::default()) }
}

/// The size of its window (TIOCGWINSZ).
pub fn window_size(fd: BorrowedFd<'_>) -> nix::Result<WindowSize> {
    let none = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes one struct winsize.
    unsafe { ask(fd, libc::TIOCGWINSZ, none) }
}

/// Its line discipline, 0 for the ordinary one (TIOCGETD).
pub fn line_discipline(fd: BorrowedFd<'_>) -> nix::Result<i32> {
    number(fd, TIOCGETD)
}

/// The number of the pseudoterminal that a master is of (TIOCGPTN).
pub fn index(master: BorrowedFd<'_>) -> nix::Result<u32> {
    number(master, TIOCGPTN).map(|index| index as u32)
}

/// Whether it gives nobody another descriptor (TIOCGEXCL).
pub fn is_exclusive(fd: BorrowedFd<'_>) -> nix::Result<bool> {
    number(fd, TIOCGEXCL).map(|on| on != 0)
}

/// Whether a master reads in packets (TIOCGPKT).
pub fn is_in_packet_mode(master: BorrowedFd<'_>) -> nix::Result<bool> {
    number(master, TIOCGPKT).map(|on| on != 0)
}

/// Whether the slave cannot be opened yet (TIOCGPTLCK).
pub fn is_locked(master: BorrowedFd<'_>) -> nix::Result<bool> {
    number(master, TIOCGPTLCK).map(|on| on != 0)
}

/// The session whose controlling terminal the slave of a master is, as its leader (TIOCGSID); `None`: of none.
pub fn session(master: BorrowedFd<'_>) -> nix::Result<Option<Pid>> {
    none_if_of_none(number(master, TIOCGSID))
}

/// The foreground process group of that session (TIOCGPGRP); `None`: there is none.
pub fn foreground(master: BorrowedFd<'_>) -> nix::Result<Option<Pid>> {
    none_if_of_none(number(master, TIOCGPGRP))
}

fn none_if_of_none(answer: nix::Result<i32>) -> nix::Result<Option<Pid>> {
    match answer {
        Ok(0) | Err(Errno::ENOTTY) => Ok(None),
        answer => answer.map(|pid| Some(Pid::from_raw(pid))),
    }
}
