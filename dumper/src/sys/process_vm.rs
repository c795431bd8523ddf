//! `process_vm_readv(2)` and `process_vm_writev(2)`: memory of another process in batches.

use nix::errno::Errno;
use nix::unistd::Pid;

/// A piece of another process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Address there.
    pub addr: u64,
    /// Length in bytes.
    pub len: usize,
}

/// Most pieces the kernel takes in one call (`UIO_MAXIOV`, linux/uio.h).
pub const PIECES_MAX: usize = 1024;

fn iovecs(pieces: &[Remote]) -> Vec<libc::iovec> {
    pieces.iter().map(|r| libc::iovec { iov_base: r.addr as *mut libc::c_void, iov_len: r.len }).collect()
}

/// Reads `pieces`, one behind the other, into `into`; at most [`PIECES_MAX`] of them.
///
/// Returns the number of bytes read. It is short when a piece cannot be read (unmapped, PROT_NONE, a hole in a
/// file) after earlier ones could; the first piece unreadable is EFAULT. ESRCH: no such process.
pub fn read(pid: Pid, pieces: &[Remote], into: &mut [u8]) -> nix::Result<usize> {
    let remote = iovecs(pieces);
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: the kernel writes at most `into.len()` bytes into `into`; the remote addresses are not ours.
    let rc = unsafe {
        libc::process_vm_readv(
            pid.as_raw(),
            &raw const local,
            1,
            remote.as_ptr(),
            remote.len() as libc::c_ulong,
            0,
        )
    };
    Errno::result(rc).map(|n| n as usize)
}

/// Reads `pieces` into as many buffers, pairwise of any length; at most [`PIECES_MAX`] of each.
///
/// Bytes are laid out in order over the buffers. Returns the number of bytes read, short as in [`read`].
pub fn read_vectored(
    pid: Pid,
    pieces: &[Remote],
    into: &mut [std::io::IoSliceMut<'_>],
) -> nix::Result<usize> {
    let remote = iovecs(pieces);
    // SAFETY: IoSliceMut has the layout of struct iovec, each naming writable memory of its length.
    let rc = unsafe {
        libc::process_vm_readv(
            pid.as_raw(),
            into.as_mut_ptr().cast(),
            into.len() as libc::c_ulong,
            remote.as_ptr(),
            remote.len() as libc::c_ulong,
            0,
        )
    };
    Errno::result(rc).map(|n| n as usize)
}

/// Writes `bytes` at `addr` of another process and returns how many were written.
///
/// It honours the protection there: read-only memory is EFAULT (or a short write).
pub fn write(pid: Pid, addr: u64, bytes: &[u8]) -> nix::Result<usize> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: addr as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: the kernel reads `bytes`; the remote address is not ours.
    let rc = unsafe { libc::process_vm_writev(pid.as_raw(), &raw const local, 1, &raw const remote, 1, 0) };
    Errno::result(rc).map(|n| n as usize)
}
