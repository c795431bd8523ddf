//! The record of a unix socket in `files.img`.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};

use godwit_wire::image::fdinfo::{FdTypes, FileEntry};
use godwit_wire::image::sk_opts::SkOptsEntry;
use godwit_wire::image::sk_unix::UnixSkEntry;

use super::{inode, name, not_told, queue};
use crate::collect::ids::NET_NS;
use crate::error::DumpError;
use crate::refusal::Findings;
use crate::sys;
use crate::task::files::{Around, Descriptor, FileTable, fown};

/// The socket has passed the check under freeze.
pub fn dump(
    around: &Around<'_>,
    id: u32,
    descriptor: &Descriptor,
    table: &mut FileTable,
) -> Result<FileEntry, DumpError> {
    let (pid, sockets) = (around.pid, &around.tree.sockets);
    let refused = |(why, way_out): super::Why| {
        let mut late = Findings::default();
        late.refuse(descriptor.subject(pid), why, way_out);
        DumpError::from_findings(late)
    };
    let socket = sockets.all.get(&inode(descriptor)).ok_or_else(|| refused(not_told(sockets)))?;
    let bound = name::bound(descriptor, socket).map_err(|why| refused((why, super::CLOSE)))?;
    let opts = options(descriptor.copy.as_fd()).map_err(|errno| {
        DumpError::sys(format!("fd {} of process {pid}", descriptor.fd), "getsockopt", errno)
    })?;
    table.sockets.extend(queue::copy(pid, descriptor, socket, id)?);
    table.has_addresses |= !socket.name.is_empty();
    let usk = UnixSkEntry {
        id,
        ino: inode(descriptor),
        r#type: socket.r#type,
        state: socket.state,
        flags: descriptor.file_flags(),
        uflags: 0,
        backlog: socket.unsent,
        peer: sockets.peer(inode(descriptor), socket),
        fown: fown::read(pid, descriptor)?,
        opts,
        name: socket.name.clone(),
        shutdown: Some(i32::from(socket.shutdown)).filter(|shut| *shut != 0),
        deleted: bound.as_ref().filter(|bound| bound.deleted).map(|_| true),
        name_dir: bound.as_ref().and_then(|bound| bound.directory.clone()),
        file_perms: bound.map(|bound| bound.perms),
        ns_id: Some(NET_NS),
        mnt_id: None,
    };
    Ok(FileEntry { r#type: FdTypes::Unixsk.into(), id, usk: Some(usk), ..FileEntry::default() })
}

/// Files in an order in which restore finds whom a socket is connected to: of one direction, the other end comes first
/// (criu/sk-unix.c, try_resolve_unix_peer). Of two, the second finds the first.
pub fn in_order(files: &[FileEntry]) -> Vec<&FileEntry> {
    let peers: HashMap<u32, u32> =
        files.iter().filter_map(|file| file.usk.as_ref()).map(|socket| (socket.ino, socket.peer)).collect();
    let waits_for = |file: &FileEntry| {
        let socket = file.usk.as_ref()?;
        let is_mutual = peers.get(&socket.peer) == Some(&socket.ino);
        (socket.peer != 0 && !is_mutual).then_some(socket.peer)
    };
    let (mut waiting, mut ordered): (Vec<_>, Vec<_>) =
        files.iter().partition(|file| waits_for(file).is_some());
    let mut placed: HashSet<u32> =
        ordered.iter().filter_map(|file| file.usk.as_ref()).map(|socket| socket.ino).collect();
    while !waiting.is_empty() {
        let (ready, rest): (Vec<&FileEntry>, Vec<_>) =
            waiting.iter().partition(|file| waits_for(file).is_some_and(|peer| placed.contains(&peer)));
        if ready.is_empty() {
            // A ring, of which no order is right.
            ordered.extend(rest);
            break;
        }
        placed.extend(ready.iter().filter_map(|file| file.usk.as_ref()).map(|socket| socket.ino));
        ordered.extend(ready);
        waiting = rest;
    }
    ordered
}

fn options(fd: BorrowedFd<'_>) -> nix::Result<SkOptsEntry> {
    let number = |option| sys::socket::number(fd, option).map(|value| value as u32);
    let flag = |option| sys::socket::number(fd, option).map(|value| Some(value != 0));
    let (so_snd_tmo_sec, so_snd_tmo_usec) = sys::socket::time(fd, libc::SO_SNDTIMEO)?;
    let (so_rcv_tmo_sec, so_rcv_tmo_usec) = sys::socket::time(fd, libc::SO_RCVTIMEO)?;
    let [lingers, linger_seconds] = sys::socket::pair(fd, libc::SO_LINGER)?;
    let filter = sys::socket::filter(fd)?;
    let instruction = |one: &libc::sock_filter| {
        u64::from(one.code) << 48 | u64::from(one.jt) << 40 | u64::from(one.jf) << 32 | u64::from(one.k)
    };
    Ok(SkOptsEntry {
        so_sndbuf: number(libc::SO_SNDBUF)?,
        so_rcvbuf: number(libc::SO_RCVBUF)?,
        so_snd_tmo_sec,
        so_snd_tmo_usec,
        so_rcv_tmo_sec,
        so_rcv_tmo_usec,
        reuseaddr: flag(libc::SO_REUSEADDR)?,
        so_priority: Some(number(libc::SO_PRIORITY)?),
        so_rcvlowat: Some(number(libc::SO_RCVLOWAT)?),
        so_mark: Some(number(libc::SO_MARK)?).filter(|mark| *mark != 0),
        so_passcred: flag(libc::SO_PASSCRED)?,
        so_passsec: flag(libc::SO_PASSSEC)?,
        so_dontroute: flag(libc::SO_DONTROUTE)?,
        so_no_check: flag(libc::SO_NO_CHECK)?,
        so_filter: filter.iter().map(instruction).collect(),
        so_reuseport: flag(libc::SO_REUSEPORT)?,
        so_broadcast: flag(libc::SO_BROADCAST)?,
        so_keepalive: flag(libc::SO_KEEPALIVE)?,
        so_oobinline: Some(number(libc::SO_OOBINLINE)?),
        so_linger: (lingers != 0).then_some(linger_seconds as u32),
        // Since 5.14; restore sets the sizes as if by hand without it.
        so_buf_lock: number(libc::SO_BUF_LOCK).ok(),
        ..SkOptsEntry::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_end_of_one_direction_comes_first() {
        let file = |ino, peer| FileEntry {
            usk: Some(UnixSkEntry { ino, peer, ..UnixSkEntry::default() }),
            ..FileEntry::default()
        };
        let order = |files: &[FileEntry]| -> Vec<u32> {
            in_order(files).iter().filter_map(|file| file.usk.as_ref()).map(|socket| socket.ino).collect()
        };
        assert_eq!(order(&[file(1, 2), file(2, 3), file(3, 0), file(4, 5), file(5, 4)]), [3, 4, 5, 2, 1]);
        assert_eq!(order(&[file(1, 2), file(2, 3), file(3, 1)]).len(), 3);
    }
}
