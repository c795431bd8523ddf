//! Unix sockets (man 7 unix): pairs, connections, listeners and datagram sockets inside the tree, with what lies in them.
//!
//! `diag` is what the kernel tells of all of them, `name` the addresses, `losses` what a restore drops, `queue` what waits to be
//! read, `entry` the record in `files.img`.

pub mod diag;
mod entry;
mod losses;
mod name;
mod queue;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::stat::SFlag;
use nix::unistd::Pid;

use godwit_wire::image::fdinfo::FdTypes;

use super::Descriptor;
use super::kind::{Around, Kind};
use crate::collect::tree::Task;
use crate::refusal::Findings;
use crate::sys;
use diag::{Socket, state};

pub use entry::in_order;
pub use queue::Queues;

/// Unix sockets.
pub const KIND: Kind =
    Kind { r#type: FdTypes::Unixsk, is: |descriptor| is(descriptor), check, dump: entry::dump };

const DATAGRAM: u32 = libc::SOCK_DGRAM as u32;
const CLOSE: &str = "let the program close it, or run the program without it";
const ABOVE: &str = "name a process above both, or let the program close the connection first";

/// Whether it is one.
pub fn is(descriptor: &Descriptor) -> bool {
    descriptor.is_file_of_type(SFlag::S_IFSOCK)
        && sys::socket::number(descriptor.copy.as_fd(), libc::SO_DOMAIN) == Ok(libc::AF_UNIX)
}

/// Whether it has an address, which a copy could not have beside it on the same kernel.
pub fn is_bound(descriptor: &Descriptor) -> bool {
    let name = || nix::sys::socket::getsockname::<nix::sys::socket::UnixAddr>(descriptor.copy.as_raw_fd());
    is(descriptor) && name().is_ok_and(|name| name.path_len() > 0)
}

/// The inode number by which sockets name each other.
fn inode(descriptor: &Descriptor) -> u32 {
    descriptor.stat.st_ino as u32
}

/// What links in `/proc` call a socket.
fn link(inode: u32) -> PathBuf {
    format!("socket:[{inode}]").into()
}

/// The unix sockets of a tree, and what they are connected to.
#[derive(Debug, Default)]
pub struct Sockets {
    /// All that the kernel tells of, or why it does not. Not asked where the tree has none.
    all: diag::All,
    unknown: Option<Errno>,
    /// Those that a process of the tree has: the lowest number inside of those that do.
    held: BTreeMap<u32, u32>,
    /// Where connections wait to be accepted: the listening socket of each.
    waits_at: HashMap<u32, u32>,
}

impl Sockets {
    /// Looks at all of a tree.
    pub fn look<'a>(living: impl Iterator<Item = (&'a Task, &'a [Descriptor])>) -> Sockets {
        let mut held = BTreeMap::new();
        for (task, all) in living {
            for descriptor in all.iter().filter(|descriptor| is(descriptor)) {
                let lowest: &mut u32 = held.entry(inode(descriptor)).or_insert(task.inside);
                *lowest = task.inside.min(*lowest);
            }
        }
        if held.is_empty() {
            return Sockets::default();
        }
        let (all, unknown) = match diag::all() {
            Ok(all) => (all, None),
            Err(errno) => (diag::All::new(), Some(errno)),
        };
        let waiting =
            all.iter().flat_map(|(listener, socket)| socket.waiting.iter().map(|one| (*one, *listener)));
        let waits_at = waiting.filter(|(one, _)| *one != 0).collect();
        Sockets { all, unknown, held, waits_at }
    }

    /// The links of these sockets in `/proc`, and of those at the other end.
    pub fn links(&self) -> Vec<PathBuf> {
        let ends = |inode: &u32| {
            let socket = self.all.get(inode);
            let waiting = socket.map(|socket| socket.waiting.clone()).unwrap_or_default();
            let peer = socket.map(|socket| socket.peer);
            waiting.into_iter().chain(peer).chain(self.waits_at.get(inode).copied()).chain([*inode])
        };
        self.held.keys().flat_map(ends).filter(|inode| *inode != 0).map(link).collect()
    }

    fn has(&self, inode: u32) -> bool {
        self.held.contains_key(&inode)
    }

    /// Whom a socket is connected to, or waits to be accepted by.
    fn peer(&self, inode: u32, socket: &Socket) -> u32 {
        if socket.peer != 0 { socket.peer } else { self.waits_at.get(&inode).copied().unwrap_or(0) }
    }

    /// Whether a socket of the tree listens at this address.
    fn listens_at(&self, name: &[u8]) -> bool {
        let sockets = self.held.keys().filter_map(|inode| self.all.get(inode));
        sockets.filter(|socket| socket.state == state::LISTEN).any(|socket| socket.name == name)
    }
}

/// Why it cannot be dumped, and what to do.
type Why = (String, &'static str);

fn check(around: &Around<'_>, descriptor: &Descriptor, findings: &mut Findings) {
    let refused = match around.tree.sockets.all.get(&inode(descriptor)) {
        Some(socket) => why_not(around, descriptor, socket),
        None => Some(not_told(&around.tree.sockets)),
    };
    match refused {
        Some((why, way_out)) => findings.refuse(descriptor.subject(around.pid), why, way_out),
        None => losses::name(around, descriptor, findings),
    }
}

fn not_told(sockets: &Sockets) -> Why {
    match sockets.unknown {
        Some(errno) => (
            format!("the kernel does not tell of unix sockets ({errno})"),
            "load the kernel's module unix_diag on this machine",
        ),
        None => ("it is a unix socket of another network namespace, and none is dumped yet".into(), CLOSE),
    }
}

fn why_not(around: &Around<'_>, descriptor: &Descriptor, socket: &Socket) -> Option<Why> {
    if let Some(other) = around.tree.holder_elsewhere(&descriptor.target) {
        return Some((
            format!("process {other} has this unix socket too, and only sockets inside the tree are dumped"),
            ABOVE,
        ));
    }
    if descriptor.info.extra("scm_fds").is_some_and(|count| count != b"0") {
        return Some((
            "descriptors lie in its queue (SCM_RIGHTS), and those are not dumped yet".into(),
            "let the program receive them first",
        ));
    }
    let not_connected = match socket.state {
        state::LISTEN => why_not_listening(around, socket),
        _ => why_not_connected(around, inode(descriptor), socket),
    };
    not_connected
        .or_else(|| has_hidden_error(descriptor, socket))
        .or_else(|| name::why_not(around, descriptor, socket))
}

/// Looking into a queue of packets takes an error away that the program has not been told (net/core/datagram.c).
fn has_hidden_error(descriptor: &Descriptor, socket: &Socket) -> Option<Why> {
    (socket.r#type != libc::SOCK_STREAM as u32 && losses::has_error(descriptor)).then(|| {
        (
            "an error waits at it (SO_ERROR), which looking into it would take away".into(),
            "let the program read from it first",
        )
    })
}

/// Of one that listens: all that wait to be accepted are of the tree.
fn why_not_listening(around: &Around<'_>, socket: &Socket) -> Option<Why> {
    let accept = "let the program accept it first";
    socket.waiting.iter().find_map(|waiting| match waiting {
        0 => Some((
            "a connection waits at it whose other end is closed, and what that sent cannot be read".into(),
            accept,
        )),
        waiting if around.tree.sockets.has(*waiting) || is_new(around, *waiting) => None,
        waiting => Some((format!("a connection of {} waits at it", whose(around, *waiting)), accept)),
    })
}

fn why_not_connected(around: &Around<'_>, inode: u32, socket: &Socket) -> Option<Why> {
    let sockets = &around.tree.sockets;
    let peer = sockets.peer(inode, socket);
    if peer == 0 {
        let is_whole =
            socket.state != state::ESTABLISHED || socket.r#type == DATAGRAM || socket.shutdown == 3;
        return (!is_whole && !settles(inode))
            .then(|| ("it is connected to what the kernel does not tell of".into(), CLOSE));
    }
    if !sockets.has(peer) && !is_new(around, peer) {
        return Some((
            format!(
                "it is connected to {}, and only connections inside the tree are dumped",
                whose(around, peer)
            ),
            ABOVE,
        ));
    }
    if socket.peer == 0 {
        return (socket.unsent != 0).then(|| {
            (
                "it waits to be accepted, and what it has sent cannot be read".into(),
                "let the program accept the connection first",
            )
        });
    }
    let other = sockets.all.get(&peer)?;
    (other.peer != inode && other.name.is_empty())
        .then(|| ("it is connected to a socket without an address that is connected elsewhere".into(), CLOSE))
}

/// How often a connection is looked at that is about to be accepted, and how long in between.
const LOOKS_MAX: u32 = 5;
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Whether a connection is a whole one at another look: it may have been accepted while all were listed.
fn settles(inode: u32) -> bool {
    (0..LOOKS_MAX).any(|_| {
        std::thread::sleep(LOOK_AGAIN);
        let all = diag::all().unwrap_or_default();
        let is_waited_for = || all.values().any(|other| other.waiting.contains(&inode));
        all.get(&inode).is_some_and(|now| now.peer != 0 || now.shutdown == 3) || is_waited_for()
    })
}

/// Whether a process of the tree has a socket that it had not when its descriptors were listed: it runs. Under freeze none has.
fn is_new(around: &Around<'_>, inode: u32) -> bool {
    let link = link(inode);
    let has = |pid: Pid| {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        fds.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|target| target == link)
    };
    around.tree.tasks().any(has)
}

/// Who has a socket that the tree has not.
fn whose(around: &Around<'_>, inode: u32) -> String {
    match around.tree.holder_elsewhere(&link(inode)) {
        Some(other) => format!("process {other}"),
        None => "a socket that no process has open (it may lie in a queue)".into(),
    }
}
