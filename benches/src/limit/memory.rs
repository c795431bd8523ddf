//! Copies: within the process, and out of another one.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use godwit_dumper::sys::process_vm::{self, Remote};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::far;
use super::measured::{Clock, Measured};
use super::source;
use crate::workload::{Content, fill};

/// Length of one copy in bytes.
const BLOCK: usize = 1 << 20;
/// Length of the block that is copied again and again while it is in the cache.
const HOT: usize = 128 << 10;
/// Memory of the process that is read.
const TARGET_MIB: usize = 256;

/// Copies blocks of 1 MiB between two areas that no cache holds.
///
/// # Errors
/// When the CPU time cannot be told.
pub fn copy_cold(bytes: u64) -> io::Result<Measured> {
    let mut into = vec![1u8; source::SOURCE_LEN];
    let from = source::cold();
    let clock = Clock::start()?;
    let laps = bytes.div_ceil(from.len() as u64);
    for _ in 0..laps {
        for (into, from) in into.chunks_mut(BLOCK).zip(from.chunks(BLOCK)) {
            into.copy_from_slice(from);
        }
        std::hint::black_box(&into);
    }
    clock.stop(laps * from.len() as u64)
}

/// Copies one small block again and again.
///
/// # Errors
/// As [`copy_cold`].
pub fn copy_hot(bytes: u64) -> io::Result<Measured> {
    let (from, mut into) = (source::cold().slice(..HOT), vec![1u8; HOT]);
    let laps = bytes.div_ceil(HOT as u64);
    let clock = Clock::start()?;
    for _ in 0..laps {
        into.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&into);
    }
    clock.stop(laps * HOT as u64)
}

/// How another process is read.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Bytes in one call.
    pub call_len: usize,
    /// Threads that read.
    pub threads: usize,
    /// The process is stopped by a signal; else it writes to its memory all the while.
    pub is_stopped: bool,
}

/// Reads the memory of another process by process_vm_readv(2) into a buffer per thread.
///
/// # Errors
/// When the process cannot be started or read.
pub fn read_other(bytes: u64, reading: Reading) -> io::Result<Measured> {
    let target = Target::start(!reading.is_stopped)?;
    if reading.is_stopped {
        target.stop()?;
    }
    let laps = bytes.div_ceil(target.len as u64);
    let share = target.len / reading.threads.max(1);
    let clock = Clock::start()?;
    std::thread::scope(|scope| {
        let target = &target;
        let readers: Vec<_> = (0..reading.threads.max(1))
            .map(|number| {
                let start = target.addr + (number * share) as u64;
                scope.spawn(move || {
                    (0..laps).try_for_each(|_| read_once(target.pid, start, share, reading.call_len))
                })
            })
            .collect();
        readers.into_iter().try_for_each(|reader| match reader.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    clock.stop(laps * (share * reading.threads.max(1)) as u64)
}

fn read_once(pid: Pid, start: u64, len: usize, call_len: usize) -> io::Result<()> {
    let mut buffer = vec![1u8; call_len];
    for at in (0..len).step_by(call_len) {
        let wanted = call_len.min(len - at);
        let piece = Remote { addr: start + at as u64, len: wanted };
        let read = process_vm::read(pid, &[piece], &mut buffer[..wanted])?;
        if read != wanted {
            return Err(io::Error::other(format!("process_vm_readv gave {read} of {wanted} bytes")));
        }
    }
    std::hint::black_box(&buffer);
    Ok(())
}

/// A process with memory to read. Ended on drop.
pub struct Target {
    child: Child,
    /// Its pid.
    pub pid: Pid,
    /// Where its memory begins.
    pub addr: u64,
    /// Length of its memory in bytes.
    pub len: usize,
}

impl Target {
    fn start(is_busy: bool) -> io::Result<Target> {
        let kind = if is_busy { "memory-busy" } else { "memory" };
        let mut child = Command::new(std::env::current_exe()?)
            .args([far::ARGUMENT, kind])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let pid = Pid::from_raw(child.id() as i32);
        let mut line = String::new();
        let read = child.stdout.take().map(|stdout| BufReader::new(stdout).read_line(&mut line));
        // From here on it is ended, whatever the line says.
        let mut target = Target { child, pid, addr: 0, len: TARGET_MIB << 20 };
        read.transpose()?;
        target.addr =
            line.trim().parse().map_err(|_| io::Error::other("the process to read did not start"))?;
        Ok(target)
    }

    fn stop(&self) -> io::Result<()> {
        kill(self.pid, Signal::SIGSTOP)?;
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process that is read: says where its memory is, and waits for the end of its input.
pub(super) fn be_read(is_busy: bool) -> io::Result<()> {
    let mut memory = vec![0u8; TARGET_MIB << 20];
    fill(Content::Random, &mut memory);
    println!("{}", memory.as_ptr() as u64);
    io::stdout().flush()?;
    if is_busy {
        std::thread::spawn(move || {
            for number in 0u64.. {
                memory[(number as usize).wrapping_mul(4099) % (TARGET_MIB << 20)] = number as u8;
                if number % (1 << 20) == 0 {
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
        });
        io::stdin().read_to_end(&mut Vec::new())?;
        return Ok(());
    }
    io::stdin().read_to_end(&mut Vec::new())?;
    std::hint::black_box(&memory);
    Ok(())
}
