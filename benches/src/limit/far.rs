//! The second process of a limit: the running program, started with a hidden first argument.
//!
//! It says the port it listens on in a line, then moves the bytes, then says in a line what that took it. It ends when
//! its input does, so it never outlives the one that started it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::measured::{Clock, Measured};
use super::{memory, quic, tcp, udp};
use crate::measure;

/// The hidden first argument.
pub(super) const ARGUMENT: &str = "limit-far-side";

/// If this process was started as the other side of a limit: does its work and says how that ended. Programs that
/// measure limits call it first.
pub fn far_side() -> Option<io::Result<()>> {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() != Some(ARGUMENT) {
        return None;
    }
    let kind = args.next().unwrap_or_default();
    Some(match kind.as_str() {
        "memory" => memory::be_read(false),
        "memory-busy" => memory::be_read(true),
        "receive" => args
            .next()
            .ok_or_else(|| io::Error::other("what is to be received?"))
            .and_then(|job| Ok(serde_json::from_str(&job)?))
            .and_then(|job: Job| receive(&job)),
        other => Err(io::Error::other(format!("no such other side: {other}"))),
    })
}

/// What the receiving process does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Job {
    /// By which way the bytes come.
    pub way: Way,
    /// How many.
    pub bytes: u64,
    /// The file they are written to; none: they are dropped.
    pub file: Option<PathBuf>,
    /// Certificates, where they are needed.
    pub keys: Option<PathBuf>,
}

/// A way to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Way {
    Udp,
    Quic,
    Tcp,
    Tls,
}

impl Job {
    /// Where the certificates lie.
    pub fn keys(&self) -> io::Result<&Path> {
        self.keys.as_deref().ok_or_else(|| io::Error::other("no certificates were given"))
    }
}

/// What the receiver says at the end.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Done {
    bytes: u64,
    cpu_us: u64,
}

fn receive(job: &Job) -> io::Result<()> {
    // The connection lives until the sender has heard that all was read: that time is not the receiver's to wait.
    let (bytes, clock, _connection) = match job.way {
        Way::Udp => udp::receive(job).map(|(bytes, clock)| (bytes, clock, None)),
        Way::Quic => quic::receive(job).map(|(bytes, clock, connection)| (bytes, clock, Some(connection))),
        Way::Tcp | Way::Tls => tcp::receive(job).map(|(bytes, clock)| (bytes, clock, None)),
    }?;
    let done = Done { bytes, cpu_us: clock.cpu()?.as_micros() as u64 };
    say(&serde_json::to_string(&done)?)?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Says where the other side is to connect to.
pub(super) fn listening(address: SocketAddr) -> io::Result<()> {
    say(&address.to_string())
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{line}")?;
    out.flush()
}

/// The receiving process, seen from the sender. Ended on drop.
pub(super) struct Receiver {
    child: Child,
    lines: BufReader<ChildStdout>,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Receiver {
    pub fn start(job: &Job) -> io::Result<Receiver> {
        if job.file.is_some() {
            measure::back_memory(job.bytes);
        }
        let mut command = Command::new(std::env::current_exe()?);
        command.args([ARGUMENT, "receive", &serde_json::to_string(job)?]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().ok_or_else(|| io::Error::other("the receiver has no output"))?;
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut receiver = Receiver { child, lines: BufReader::new(stdout), address: nowhere };
        let line = receiver.line()?;
        receiver.address = line.parse().map_err(|_| io::Error::other(format!("no address: {line:?}")))?;
        Ok(receiver)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.lines.read_line(&mut line)? {
            0 => Err(io::Error::other("the receiver ended before it was done")),
            _ => Ok(line.trim().to_owned()),
        }
    }

    /// Waits until all has arrived; `clock` was started when this side began to send.
    pub fn done(&mut self, clock: &Clock) -> io::Result<Measured> {
        let done: Done = serde_json::from_str(&self.line()?)?;
        let far_cpu = Some(Duration::from_micros(done.cpu_us));
        Ok(Measured { far_cpu, ..clock.stop(done.bytes)? })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
