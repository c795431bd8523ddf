//! What waits in sockets to be read, looked at and left there (MSG_PEEK).
//!
//! A stream is looked at in one piece. Packets are walked by SO_PEEK_OFF, which belongs to the open file: nobody else has it,
//! its processes stand still, and it is put back whatever happens.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recvmsg};
use nix::unistd::Pid;

use godwit_wire::image::sk_packet::SkPacketEntry;

use super::diag::{Socket, state};
use super::{DATAGRAM, losses};
use crate::error::DumpError;
use crate::sys;
use crate::task::files::Descriptor;

/// Packets and pieces of streams, in order.
pub type Queues = Vec<(SkPacketEntry, Vec<u8>)>;

const PACKET_BYTES: usize = 256 << 10;
const STREAM: u32 = libc::SOCK_STREAM as u32;

/// Copies what waits at a socket, whose id in images is `id`. What errors wait was asked before.
///
/// # Errors
/// When it cannot be looked at, carries descriptors, or less is found than waits.
pub fn copy(pid: Pid, descriptor: &Descriptor, socket: &Socket, id: u32) -> Result<Queues, DumpError> {
    let failed = |what| {
        move |errno: Errno| {
            DumpError::sys(format!("the unix socket at fd {} of process {pid}", descriptor.fd), what, errno)
        }
    };
    let fd = descriptor.copy.as_fd();
    let waiting = losses::waiting(fd, socket).map_err(failed("SIOCINQ"))?;
    // The first datagram may be empty, with others behind it.
    if socket.state == state::LISTEN || socket.r#type != DATAGRAM && waiting == 0 {
        return Ok(Queues::new());
    }
    let packets = read(fd, socket, waiting).map_err(failed("MSG_PEEK of what waits at it"))?;
    let found: usize = packets.iter().map(Vec::len).sum();
    if socket.r#type != DATAGRAM && found != waiting || found < waiting {
        return Err(failed("what waits at it is not told whole")(Errno::EIO));
    }
    let entry =
        |bytes: Vec<u8>| (SkPacketEntry { id_for: id, length: bytes.len() as u32, scm: Vec::new() }, bytes);
    Ok(packets.into_iter().map(entry).collect())
}

fn read(fd: BorrowedFd<'_>, socket: &Socket, waiting: usize) -> nix::Result<Vec<Vec<u8>>> {
    let before = sys::socket::number(fd, libc::SO_PEEK_OFF)?;
    if socket.r#type == STREAM && before < 0 {
        // All of it at once, unless credentials part it.
        if let Some(bytes) = peek(fd, waiting)?.filter(|bytes| bytes.len() == waiting) {
            return Ok(vec![bytes]);
        }
    }
    let _put_back = PeekOffset { fd, before };
    walk(fd, socket, waiting)
}

/// The offset of peeks as the program left it.
struct PeekOffset<'a> {
    fd: BorrowedFd<'a>,
    before: i32,
}

impl Drop for PeekOffset<'_> {
    fn drop(&mut self) {
        if let Err(errno) = sys::socket::set_peek_offset(self.fd, self.before) {
            tracing::error!(%errno, offset = self.before, "SO_PEEK_OFF of a socket cannot be put back");
        }
    }
}

fn walk(fd: BorrowedFd<'_>, socket: &Socket, waiting: usize) -> nix::Result<Vec<Vec<u8>>> {
    sys::socket::set_peek_offset(fd, 0)?;
    let (mut packets, mut found, mut room) = (Vec::new(), 0, PACKET_BYTES);
    // Behind the last byte an end or an error would be told, and an error taken away.
    let ends = socket.r#type == STREAM || socket.r#type != DATAGRAM && socket.shutdown & 1 != 0;
    while !(ends && found >= waiting) {
        match peek(fd, room)? {
            None => break,
            // Cut: once more, with room for it.
            Some(bytes) if bytes.len() > room => {
                room = bytes.len().max(room * 2);
                sys::socket::set_peek_offset(fd, found as i32)?;
            }
            Some(bytes) => {
                found += bytes.len();
                packets.push(bytes);
            }
        }
    }
    Ok(packets)
}

/// The next packet or piece, at most `room` bytes; one byte more than `room` for one that is longer. `None`: nothing is there.
fn peek(fd: BorrowedFd<'_>, room: usize) -> nix::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; room];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let (len, cut) = {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        // Without room for them no descriptor is made ours.
        match recvmsg::<()>(fd.as_raw_fd(), &mut parts, None, flags) {
            Err(Errno::EAGAIN) => return Ok(None),
            told => told.map(|told| (told.bytes, told.flags.contains(MsgFlags::MSG_TRUNC)))?,
        }
    };
    bytes.resize(if cut { room + 1 } else { len }, 0);
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    fn offset(socket: &impl AsFd) -> i32 {
        sys::socket::number(socket.as_fd(), libc::SO_PEEK_OFF).unwrap()
    }

    #[test]
    fn packets_are_read_whole_in_order_and_left_there() {
        let (one, other) = UnixDatagram::pair().unwrap();
        let socket = Socket { r#type: DATAGRAM, state: state::ESTABLISHED, ..Socket::default() };
        let sent: [Vec<u8>; 4] = [vec![], vec![1; 10], vec![2; 3], vec![]];
        sent.iter().for_each(|packet| assert_eq!(one.send(packet).unwrap(), packet.len()));
        assert_eq!(read(other.as_fd(), &socket, 0).unwrap(), sent);
        assert_eq!(offset(&other), -1);
        let mut bytes = [0; 20];
        let lens: Vec<usize> = sent.iter().map(|_| other.recv(&mut bytes).unwrap()).collect();
        assert_eq!(lens, [0, 10, 3, 0]);
    }

    #[test]
    fn a_packet_that_is_longer_than_the_room_is_read_again() {
        let (one, other) = UnixDatagram::pair().unwrap();
        let value = 4 << 20;
        nix::sys::socket::setsockopt(&one, nix::sys::socket::sockopt::SndBufForce, &value).unwrap();
        let long = vec![7; PACKET_BYTES + 5000];
        one.send(&[1]).unwrap();
        one.send(&long).unwrap();
        let socket = Socket { r#type: DATAGRAM, state: state::ESTABLISHED, ..Socket::default() };
        assert!(read(other.as_fd(), &socket, 1).unwrap() == [vec![1], long]);
    }

    #[test]
    fn a_stream_is_read_without_moving_the_programs_own_peeks() {
        use std::io::Write;
        let (mut one, other) = UnixStream::pair().unwrap();
        one.write_all(b"abcdef").unwrap();
        let socket = Socket { r#type: STREAM, state: state::ESTABLISHED, ..Socket::default() };
        assert_eq!(read(other.as_fd(), &socket, 6).unwrap(), [b"abcdef"]);
        assert_eq!(offset(&other), -1);
        sys::socket::set_peek_offset(other.as_fd(), 2).unwrap();
        assert_eq!(read(other.as_fd(), &socket, 6).unwrap(), [b"abcdef"]);
        assert_eq!(offset(&other), 2);
    }
}
