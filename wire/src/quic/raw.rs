//! A lane without frames: what QUIC alone can carry with these settings, for the benchmarks to compare with.
//!
//! Both calls run on the endpoint's own thread, as a program made for nothing else would: no other thread is woken.

use bytes::Bytes;
use quinn::VarInt;

use super::endpoint::Connection;
use super::error::QuicError;

/// Sends `chunk` again and again on a new lane, until `total_bytes` are on their way; waits until the peer has all.
///
/// # Errors
/// [`QuicError`] when the link is lost.
pub fn send(connection: &Connection, chunk: &Bytes, total_bytes: u64) -> Result<(), QuicError> {
    let (inner, chunk) = (connection.inner().clone(), chunk.clone());
    let task = connection.handle().spawn(async move {
        let mut stream = inner.open_uni().await.map_err(|error| error.to_string())?;
        let mut left_bytes = total_bytes;
        while left_bytes > 0 && !chunk.is_empty() {
            let length = usize::try_from(left_bytes).map_or(chunk.len(), |left| left.min(chunk.len()));
            stream.write_chunk(chunk.slice(..length)).await.map_err(|error| error.to_string())?;
            left_bytes -= length as u64;
        }
        stream.finish().map_err(|error| error.to_string())?;
        stream.stopped().await.map(drop).map_err(|error| error.to_string())
    });
    wait(connection, task)
}

/// Takes the next lane and reads it to its end; returns its bytes.
///
/// # Errors
/// [`QuicError`] when the link is lost.
pub fn receive(connection: &Connection) -> Result<u64, QuicError> {
    let inner = connection.inner().clone();
    let task = connection.handle().spawn(async move {
        let mut stream = inner.accept_uni().await.map_err(|error| error.to_string())?;
        let mut chunks: [Bytes; 64] = std::array::from_fn(|_| Bytes::new());
        let mut total_bytes = 0;
        while let Some(count) = stream.read_chunks(&mut chunks).await.map_err(|error| error.to_string())? {
            total_bytes +=
                chunks[..count].iter_mut().map(|chunk| std::mem::take(chunk).len() as u64).sum::<u64>();
        }
        Ok(total_bytes)
    });
    wait(connection, task)
}

/// Waits until the peer closes the connection.
pub fn wait_closed(connection: &Connection) {
    let _ = connection.handle().block_on(connection.inner().closed());
}

/// Closes it in peace.
pub fn close(connection: &Connection) {
    connection.inner().close(VarInt::from_u32(0), b"");
}

fn wait<T>(
    connection: &Connection,
    task: tokio::task::JoinHandle<Result<T, String>>,
) -> Result<T, QuicError> {
    let peer = connection.peer();
    let outcome = connection.handle().block_on(task).map_err(|why| why.to_string()).and_then(|done| done);
    outcome.map_err(|why| QuicError::Lost { peer, why })
}
