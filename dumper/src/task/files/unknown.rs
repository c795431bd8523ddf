//! Descriptors that cannot be dumped: what they are, in words that their users know, and the way out.

use std::os::fd::AsRawFd;

use nix::sys::socket::sockopt::SockType;
use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname, getsockopt};
use nix::sys::stat::SFlag;
use nix::sys::statfs::fstatfs;

use super::{Descriptor, filesystem};

/// Why a descriptor is refused, and what to do.
pub type Why = (String, &'static str);

const CLOSE: &str = "let the program close it, or run the program without it";
const TERMINAL: &str =
    "start the program with `setsid` and standard input, output and error on files or /dev/null";

/// Kernel objects without a path: what `/proc/PID/fd/N` calls them, and what they are.
const OBJECTS: [(&str, &str); 12] = [
    ("[io_uring]", "a queue of input and output (io_uring)"),
    ("[perf_event]", "a performance counter (perf)"),
    ("[userfaultfd]", "a handler of page faults (userfaultfd)"),
    ("bpf-prog", "a BPF program"),
    ("bpf-map", "a BPF map"),
    ("bpf_link", "an attached BPF program"),
    ("[landlock-ruleset]", "a set of Landlock rules"),
    ("[fscontext]", "a file system that is being set up"),
    ("seccomp notify", "the supervisor's end of seccomp filters"),
    ("kvm-vm", "a virtual machine (KVM)"),
    ("kvm-vcpu", "a virtual processor (KVM)"),
    ("sync_file", "a fence of a graphics driver"),
];

/// What refuses a descriptor whatever its type: how it was opened, and where.
pub fn of_any(descriptor: &Descriptor) -> Option<Why> {
    let kind = descriptor.file_type();
    if descriptor.only_names() && !matches!(kind, SFlag::S_IFREG | SFlag::S_IFDIR | SFlag::S_IFLNK) {
        return Some((
            "it only names (O_PATH) something that is no file, directory or symbolic link".into(),
            CLOSE,
        ));
    }
    /// `MQUEUE_MAGIC` (ipc/mqueue.c).
    const MESSAGE_QUEUES: i64 = 0x1980_0202;
    let is_file = descriptor.stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    let magic = || filesystem::magic(descriptor.stat.st_dev, || fstatfs(&descriptor.copy));
    if is_file && magic() == Some(MESSAGE_QUEUES) {
        return Some(("a message queue is not dumped yet".into(), CLOSE));
    }
    if is_file && descriptor.target.as_os_str().as_encoded_bytes().starts_with(b"/SYSV") {
        return Some((
            "System V shared memory lives in an IPC namespace, and none is dumped yet".into(),
            "let the program close it, or run the program without it",
        ));
    }
    None
}

/// Why a descriptor of this type is refused: none of those that are dumped.
pub fn of_type(descriptor: &Descriptor) -> Why {
    let target = descriptor.target.to_string_lossy();
    let not_yet = |what: &str| (format!("{what} is not dumped yet"), CLOSE);
    match descriptor.file_type() {
        SFlag::S_IFCHR if is_terminal(&target) => (
            "a console, virtual terminal or `/dev/tty` is not dumped, only pseudoterminals by their own names".into(),
            TERMINAL,
        ),
        SFlag::S_IFCHR if target == "/dev/net/tun" => (
            "a network device of its own (TUN, TAP) lives in a net namespace, and none is dumped yet".into(),
            CLOSE,
        ),
        SFlag::S_IFCHR => ("the state of a device cannot be dumped".into(), CLOSE),
        SFlag::S_IFBLK => ("a block device is not dumped".into(), CLOSE),
        SFlag::S_IFSOCK => not_yet(socket(descriptor)),
        _ => {
            let name = target.strip_prefix("anon_inode:").unwrap_or(&target);
            let known = OBJECTS.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, what)| *what);
            match known.or_else(|| pseudo(name)) {
                Some(what) => not_yet(what),
                None => ("this kind of file is not dumped".into(), CLOSE),
            }
        }
    }
}

/// Objects in file systems that nobody mounts: `net:[4026531840]`, `pidfd:[17]`.
fn pseudo(name: &str) -> Option<&'static str> {
    const KINDS: [&str; 8] = ["net", "ipc", "uts", "user", "pid", "mnt", "cgroup", "time"];
    let (kind, _) = name.split_once(":[")?;
    match kind {
        kind if KINDS.contains(&kind.trim_end_matches("_for_children")) => Some("a handle on a namespace"),
        _ => None,
    }
}

fn socket(descriptor: &Descriptor) -> &'static str {
    let family =
        getsockname::<SockaddrStorage>(descriptor.copy.as_raw_fd()).ok().and_then(|name| name.family());
    let is_stream =
        getsockopt(&descriptor.copy, SockType).is_ok_and(|kind| kind == nix::sys::socket::SockType::Stream);
    match family {
        Some(AddressFamily::Unix) => "a Unix socket",
        Some(AddressFamily::Inet | AddressFamily::Inet6) if is_stream => "a TCP socket",
        Some(AddressFamily::Inet | AddressFamily::Inet6) => "a UDP or raw socket",
        Some(AddressFamily::Netlink) => "a socket to the kernel (netlink)",
        Some(AddressFamily::Packet) => "a socket for raw packets",
        Some(AddressFamily::Vsock) => "a socket to a virtual machine's host (vsock)",
        _ => "a socket",
    }
}

fn is_terminal(target: &str) -> bool {
    ["/dev/tty", "/dev/console"].iter().any(|prefix| target.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_on_namespaces_are_known() {
        assert_eq!(pseudo("net:[4026531840]"), Some("a handle on a namespace"));
        assert_eq!(pseudo("pid_for_children:[1]"), Some("a handle on a namespace"));
        assert_eq!(pseudo("dmabuf:[17]"), None);
    }
}
