//! What a restore drops of unix sockets.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{UnixAddr, getpeername, getsockopt};

use super::diag::{Socket, state};
use super::{DATAGRAM, inode, name};
use crate::refusal::Findings;
use crate::sys;
use crate::task::files::{Around, Descriptor};

/// Options that CRIU has no field for, or does not set: number, name, what it is on a new socket.
const OPTIONS: [(i32, &str, i32); 6] = [
    (libc::SO_REUSEADDR, "SO_REUSEADDR", 0),
    (libc::SO_PEEK_OFF, "SO_PEEK_OFF", -1),
    (libc::SO_TIMESTAMP, "SO_TIMESTAMP", 0),
    (libc::SO_TIMESTAMPNS, "SO_TIMESTAMPNS", 0),
    (libc::SO_BINDTOIFINDEX, "SO_BINDTODEVICE", 0),
    (libc::SO_PASSPIDFD, "SO_PASSPIDFD", 0),
];

/// Names them. The socket has passed what refuses.
pub fn name(around: &Around<'_>, descriptor: &Descriptor, findings: &mut Findings) {
    let Some(socket) = around.tree.sockets.all.get(&inode(descriptor)) else { return };
    let mut lose = |what: String| findings.lose(descriptor.subject(around.pid), what);
    let copy = descriptor.copy.as_fd();
    for (option, name, initial) in OPTIONS {
        if sys::socket::number(copy, option).is_ok_and(|value| value != initial) {
            lose(format!("its {name} is not set after a restore"));
        }
    }
    if let Ok(waiting @ 1..) = waiting(copy, socket) {
        if sys::socket::number(copy, libc::SO_PASSCRED) == Ok(1) {
            lose(format!(
                "who sent the {waiting} bytes that wait at it (SCM_CREDENTIALS) is the restore afterwards"
            ));
        }
        if socket.r#type == DATAGRAM && !socket.name.is_empty() {
            lose(format!(
                "the addresses of those who sent what waits at it ({waiting} bytes and more) are not restored, but for one that is connected to it"
            ));
        }
    }
    if has_error(descriptor) {
        lose("an error that it has not been told (SO_ERROR) is gone after a restore".into());
    }
    if name::is_dropped(socket) {
        lose(
            "its address is not restored: connections are made without one (getsockname, getpeername)".into(),
        );
    }
    if socket.r#type == DATAGRAM && socket.peer == 0 && is_connected(descriptor) {
        lose("the socket that it is connected to is closed, and it is not connected after a restore (ENOTCONN)".into());
    }
    if socket.r#type != DATAGRAM && socket.state == state::ESTABLISHED {
        peer_credentials(around, descriptor, socket, lose);
    }
}

/// Whether it is connected: also to one that is closed, and whatever the state, which being connected to sets too.
fn is_connected(descriptor: &Descriptor) -> bool {
    getpeername::<UnixAddr>(descriptor.copy.as_raw_fd()) != Err(Errno::ENOTCONN)
}

/// How many bytes can be read from it; of datagrams, those of the first.
pub fn waiting(copy: BorrowedFd<'_>, socket: &Socket) -> nix::Result<usize> {
    if socket.state == state::LISTEN { Ok(0) } else { sys::pipe::readable_bytes(copy) }
}

/// Whether an error waits to be told. `poll` does not take it away.
pub fn has_error(descriptor: &Descriptor) -> bool {
    let mut asked = [PollFd::new(descriptor.copy.as_fd(), PollFlags::empty())];
    poll(&mut asked, PollTimeout::ZERO).is_ok()
        && asked[0].revents().is_some_and(|found| found.contains(PollFlags::POLLERR))
}

/// Restore makes both ends as root, in the process with the lowest number that has one of them.
fn peer_credentials(
    around: &Around<'_>,
    descriptor: &Descriptor,
    socket: &Socket,
    mut lose: impl FnMut(String),
) {
    let Ok(told) = getsockopt(&descriptor.copy, PeerCredentials) else { return };
    let sockets = &around.tree.sockets;
    let holder = |inode: u32| sockets.held.get(&inode).copied();
    let own = holder(inode(descriptor));
    let makers = [own, holder(sockets.peer(inode(descriptor), socket)).or(own)];
    let number = around.tree.number_of(nix::unistd::Pid::from_raw(told.pid()));
    if (told.uid(), told.gid()) != (0, 0) || makers.iter().any(|maker| *maker != number) {
        lose(format!(
            "who is at its other end (SO_PEERCRED: process {}, user {}, group {}) is told as whom the restore makes it by",
            told.pid(),
            told.uid(),
            told.gid()
        ));
    }
}
