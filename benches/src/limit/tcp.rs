//! TCP, plain and under TLS 1.3 (rustls, AES-128-GCM): blocking sockets, one thread a side.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::far::{self, Job, Receiver, Way};
use super::file::Writer;
use super::measured::{Clock, Measured};
use super::source;

/// Length of one write, and of one read, in bytes.
const PIECE: usize = 256 << 10;
/// What the receiver answers once it has all.
const ALL_THERE: [u8; 1] = [1];

/// Sends bytes over loopback to a process that drops them or writes them to `file`; with `keys`, under TLS.
///
/// # Errors
/// When a connection cannot be made or is lost.
pub fn send(bytes: u64, keys: Option<&Path>, file: Option<PathBuf>) -> io::Result<Measured> {
    let way = if keys.is_some() { Way::Tls } else { Way::Tcp };
    let mut receiver = Receiver::start(&Job { way, bytes, file, keys: keys.map(Path::to_owned) })?;
    let stream = TcpStream::connect(receiver.address)?;
    match keys {
        None => send_over(stream, bytes, &mut receiver),
        Some(keys) => {
            let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
            let session = ClientConnection::new(Arc::new(client(keys)?), name).map_err(io::Error::other)?;
            send_over(StreamOwned::new(session, stream), bytes, &mut receiver)
        }
    }
}

fn send_over(mut stream: impl Read + Write, bytes: u64, receiver: &mut Receiver) -> io::Result<Measured> {
    // The handshake is done, and the source is there, before the clock starts.
    stream.write_all(&ALL_THERE)?;
    stream.read_exact(&mut [0; 1])?;
    source::cold();
    let clock = Clock::start()?;
    for piece in source::pieces(bytes, PIECE) {
        stream.write_all(&piece)?;
    }
    stream.flush()?;
    stream.read_exact(&mut [0; 1])?;
    receiver.done(&clock)
}

/// The receiving process.
pub(super) fn receive(job: &Job) -> io::Result<(u64, Clock)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let writer = job.file.as_deref().map(Writer::start).transpose()?;
    far::listening(listener.local_addr()?)?;
    let (stream, _) = listener.accept()?;
    if job.way == Way::Tcp {
        return receive_over(stream, job.bytes, writer);
    }
    let session = ServerConnection::new(Arc::new(server(job.keys()?)?)).map_err(io::Error::other)?;
    receive_over(StreamOwned::new(session, stream), job.bytes, writer)
}

fn receive_over(
    mut stream: impl Read + Write,
    bytes: u64,
    mut writer: Option<Writer>,
) -> io::Result<(u64, Clock)> {
    stream.read_exact(&mut [0; 1])?;
    stream.write_all(&ALL_THERE)?;
    stream.flush()?;
    let clock = Clock::start()?;
    let mut buffer = vec![1; PIECE];
    let mut left = bytes;
    while left > 0 {
        let room = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = stream.read(&mut buffer[..room])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(writer) = &mut writer {
            writer.take(&buffer[..read]);
        }
        left -= read as u64;
    }
    writer.map_or(Ok(bytes), Writer::finish)?;
    stream.write_all(&ALL_THERE)?;
    stream.flush()?;
    Ok((bytes, clock))
}

/// aws-lc-rs with the one cipher that godwit's own connections agree on.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    Arc::new(provider)
}

fn client(keys: &Path) -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for root in certificates(&keys.join("ca.pem"))? {
        roots.add(root).map_err(io::Error::other)?;
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn server(keys: &Path) -> io::Result<ServerConfig> {
    let key = PrivateKeyDer::from_pem_file(keys.join("server.key")).map_err(io::Error::other)?;
    ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(certificates(&keys.join("server.pem"))?, key)
        .map_err(io::Error::other)
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(path).map_err(io::Error::other)?;
    all.collect::<Result<_, _>>().map_err(io::Error::other)
}
