//! Raw quinn with godwit's own settings and socket: one connection, one stream, nothing above it.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use godwit_wire::quic::{self, Connection, Identity, Listener, Tuning};

use super::far::{self, Job, Receiver, Way};
use super::file::Writer;
use super::measured::{Clock, Measured};
use super::source;

/// Length of a piece that is handed to quinn, in bytes: as long as a frame of godwit's.
const PIECE: usize = 1 << 20;
/// Pieces of packets that the receiver takes at once.
const CHUNKS: usize = 64;

/// Sends bytes over loopback to a process that drops them, or writes them to `file` from a thread of its own.
///
/// # Errors
/// When a connection cannot be made or is lost.
pub fn send(bytes: u64, keys: &Path, file: Option<PathBuf>) -> io::Result<Measured> {
    let job = Job { way: Way::Quic, bytes, file, keys: Some(keys.to_owned()) };
    let mut receiver = Receiver::start(&job)?;
    let address = receiver.address.to_string();
    let connection =
        quic::connect(&address, &Identity::client(keys), &Tuning::default()).map_err(io::Error::other)?;
    let (inner, runtime) = connection.raw();
    source::cold();
    let clock = Clock::start()?;
    let sent = runtime.spawn(async move {
        let mut stream = inner.open_uni().await?;
        for piece in source::pieces(bytes, PIECE) {
            stream.write_chunk(piece).await?;
        }
        stream.finish()?;
        stream.stopped().await?;
        Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
    });
    runtime.block_on(sent).map_err(io::Error::other)?.map_err(io::Error::other)?;
    receiver.done(&clock)
}

/// The receiving process.
pub(super) fn receive(job: &Job) -> io::Result<(u64, Clock, Connection)> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener =
        Listener::bind(any, &Identity::server(job.keys()?), &Tuning::default()).map_err(io::Error::other)?;
    let writer = job.file.as_deref().map(Writer::start).transpose()?;
    far::listening(listener.local_addr().map_err(io::Error::other)?)?;
    let connection = listener.accept().ok_or_else(|| io::Error::other("nobody connected"))?;
    let (inner, runtime) = connection.raw();
    let clock = Clock::start()?;
    let received = runtime.spawn(async move {
        let mut stream = inner.accept_uni().await?;
        let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
        let (mut writer, mut bytes) = (writer, 0);
        while let Some(count) = stream.read_chunks(&mut chunks).await? {
            for chunk in chunks[..count].iter_mut().map(std::mem::take) {
                bytes += chunk.len() as u64;
                if let Some(writer) = &mut writer {
                    writer.take(&chunk);
                }
            }
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>((writer, bytes))
    });
    let (writer, bytes) = runtime.block_on(received).map_err(io::Error::other)?.map_err(io::Error::other)?;
    let bytes = writer.map_or(Ok(bytes), Writer::finish)?;
    Ok((bytes, clock, connection))
}
