//! What the kernel tells of the unix sockets of a network namespace: NETLINK_SOCK_DIAG with `unix_diag` (man 7 sock_diag,
//! include/uapi/linux/unix_diag.h). Sent and received in plain bytes: one request, one kind of answer.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// States, which have the numbers of TCP's.
pub mod state {
    /// Connected; of datagrams, to somebody.
    pub const ESTABLISHED: u32 = 1;
    /// Neither connected nor listening.
    pub const CLOSE: u32 = 7;
    /// Listening.
    pub const LISTEN: u32 = 10;
}

/// A unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// `SOCK_STREAM` and so on.
    pub r#type: u32,
    /// See [`state`].
    pub state: u32,
    /// Its address: a path and a zero byte, or a zero byte and an abstract name; empty: none.
    pub name: Vec<u8>,
    /// Inode number of whom it is connected to; 0 for nobody, one that is gone, and one that was not accepted yet.
    pub peer: u32,
    /// Of a listening one, those that wait to be accepted: their inode numbers, 0 for one that is gone.
    pub waiting: Vec<u32>,
    /// Bytes of its own that its peer has not read, as the kernel accounts them; of a listening one, how many may wait.
    pub unsent: u32,
    /// Bits: 1 reads no more, 2 writes no more.
    pub shutdown: u8,
}

/// All of them, by inode number.
pub type All = HashMap<u32, Socket>;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
/// What was listed changed meanwhile.
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// UDIAG_SHOW_NAME, PEER, ICONS, RQLEN.
const SHOW: u32 = 1 | 4 | 8 | 0x10;
const HEADER: usize = 16;
const RECORD: usize = 16;
/// The kernel fills at most 32 KiB at once.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// How often a list is asked for that changes while it is told.
const ASKED_MAX: u32 = 10;

/// Attributes of an answer.
mod attribute {
    pub const NAME: u16 = 0;
    pub const PEER: u16 = 2;
    pub const ICONS: u16 = 3;
    pub const RQLEN: u16 = 4;
    pub const SHUTDOWN: u16 = 6;
}

/// Asks for every unix socket of the dumper's network namespace.
///
/// # Errors
/// ENOENT where the kernel lacks `unix_diag`, EPROTO for an answer that cannot be read.
pub fn all() -> nix::Result<All> {
    let mut last = All::new();
    for _ in 0..ASKED_MAX {
        let (found, whole) = ask()?;
        last = found;
        if whole {
            break;
        }
    }
    Ok(last)
}

fn ask() -> nix::Result<(All, bool)> {
    let kernel: OwnedFd =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    send(kernel.as_raw_fd(), &request(), MsgFlags::empty())?;
    let (mut found, mut whole) = (All::new(), true);
    let mut answer = vec![0; ANSWER_BYTES_MAX];
    loop {
        let len = match recv(kernel.as_raw_fd(), &mut answer, MsgFlags::empty()) {
            Err(Errno::EINTR) => continue,
            received => received?,
        };
        let (done, complete) = read(&answer[..len], &mut found)?;
        whole &= complete;
        if done {
            return Ok((found, whole));
        }
    }
}

/// A netlink header and a `unix_diag_req`.
fn request() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + 24);
    bytes.extend((HEADER as u32 + 24).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    bytes.extend([0; 8]); // sequence, port
    bytes.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    bytes.extend(u32::MAX.to_ne_bytes()); // every state
    bytes.extend(0u32.to_ne_bytes()); // every inode
    bytes.extend(SHOW.to_ne_bytes());
    bytes.extend([0; 8]); // cookie
    bytes
}

fn number(bytes: &[u8], at: usize) -> nix::Result<u32> {
    let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
    four.map(u32::from_ne_bytes).ok_or(Errno::EPROTO)
}

fn half(bytes: &[u8], at: usize) -> nix::Result<u16> {
    let two = bytes.get(at..at + 2).and_then(|two| two.try_into().ok());
    two.map(u16::from_ne_bytes).ok_or(Errno::EPROTO)
}

/// Reads the messages of one answer: whether they were the last, and whether nothing changed meanwhile.
fn read(mut answer: &[u8], found: &mut All) -> nix::Result<(bool, bool)> {
    let mut whole = true;
    while answer.len() >= HEADER {
        let len = number(answer, 0)? as usize;
        let message = answer.get(..len).filter(|_| len >= HEADER).ok_or(Errno::EPROTO)?;
        whole &= half(message, 6)? & NLM_F_DUMP_INTR == 0;
        match half(message, 4)? {
            NLMSG_DONE => return Ok((true, whole)),
            NLMSG_ERROR => {
                let error = number(message, HEADER)? as i32;
                return Err(Errno::from_raw(-error));
            }
            SOCK_DIAG_BY_FAMILY => {
                let (inode, socket) = record(&message[HEADER..])?;
                found.insert(inode, socket);
            }
            _ => {}
        }
        answer = answer.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok((false, whole))
}

/// A `unix_diag_msg` and its attributes.
fn record(bytes: &[u8]) -> nix::Result<(u32, Socket)> {
    let inode = number(bytes, 4)?;
    let mut socket = Socket { r#type: bytes[1].into(), state: bytes[2].into(), ..Socket::default() };
    let mut rest = bytes.get(RECORD..).ok_or(Errno::EPROTO)?;
    while rest.len() >= 4 {
        let len = usize::from(half(rest, 0)?);
        let value = rest.get(4..len).ok_or(Errno::EPROTO)?;
        match half(rest, 2)? {
            attribute::NAME => socket.name = value.to_vec(),
            attribute::PEER => socket.peer = number(value, 0)?,
            attribute::ICONS => {
                let each = value.chunks_exact(4).map(|one| number(one, 0));
                socket.waiting = each.collect::<nix::Result<_>>()?;
            }
            attribute::RQLEN => socket.unsent = number(value, 4)?,
            attribute::SHUTDOWN => socket.shutdown = *value.first().ok_or(Errno::EPROTO)?,
            _ => {}
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok((inode, socket))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use nix::sys::stat::fstat;

    use super::*;

    fn inode(socket: &impl std::os::fd::AsFd) -> u32 {
        fstat(socket).unwrap().st_ino as u32
    }

    #[test]
    fn a_pair_and_a_listener_are_told_as_they_are() {
        let (one, other) = UnixStream::pair().unwrap();
        one.shutdown(std::net::Shutdown::Write).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        let found = all().unwrap();
        let [one, other] = [inode(&one), inode(&other)];
        assert_eq!((found[&one].peer, found[&other].peer), (other, one));
        assert_eq!((found[&one].shutdown, found[&other].shutdown), (2, 1));
        assert_eq!((found[&one].r#type, found[&one].state), (libc::SOCK_STREAM as u32, state::ESTABLISHED));
        let listening = &found[&inode(&listener)];
        assert_eq!(listening.state, state::LISTEN);
        assert_eq!(listening.name.strip_suffix(b"\0"), Some(path.as_os_str().as_encoded_bytes()));
        assert_eq!(listening.waiting, [inode(&client)]);
    }

    #[test]
    fn answers_that_are_cut_short_are_errors() {
        let mut found = All::new();
        let mut message = 40u32.to_ne_bytes().to_vec();
        message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        message.extend([0; 10]);
        assert_eq!(read(&message, &mut found), Err(Errno::EPROTO));
        let record = [1, 1, 1, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 2, 0];
        assert_eq!(super::record(&record), Err(Errno::EPROTO));
    }
}
