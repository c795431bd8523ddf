//! What can go wrong on the link, each with the peer's address and, where it is known, the way out.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use quinn::ConnectionError;

use super::keys::Identity;
use crate::error::{Code, Malformed};
use crate::fault::Injected;

/// Why the link does not work.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The address cannot be read or resolved.
    #[error("cannot resolve {address:?}: give HOST:PORT, [IPV6]:PORT or IPV4:PORT")]
    Resolve {
        /// As given.
        address: String,
        /// The resolver's answer.
        #[source]
        source: io::Error,
    },
    /// The socket or the runtime thread could not be made.
    #[error("cannot open a UDP socket on {address}")]
    Bind {
        /// The local address.
        address: SocketAddr,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A certificate or key file cannot be read.
    #[error("cannot read {}: {why}; `godwit keys init DIR` makes a set", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Certificate, key and CA do not go together.
    #[error("the certificate {} cannot be used with its key and {}: {why}", cert.display(), ca.display())]
    KeySet {
        /// The certificate.
        cert: PathBuf,
        /// The CA.
        ca: PathBuf,
        /// What does not fit.
        why: String,
    },
    /// Nobody answered.
    #[error(
        "no page server answers at {peer} (UDP) within {} ms: is it running, and does every firewall between let UDP \
         through?",
        waited.as_millis()
    )]
    Unreachable {
        /// The peer.
        peer: SocketAddr,
        /// How long was waited.
        waited: Duration,
    },
    /// The server's certificate is not accepted here.
    #[error(
        "the certificate of the server at {peer} is not signed by {}: {why}; copy the same ca.pem to both sides, or run \
         `godwit keys issue` where ca.key lies",
        ca.display()
    )]
    ServerCertificate {
        /// The peer.
        peer: SocketAddr,
        /// The CA that is trusted here.
        ca: PathBuf,
        /// The verifier's words.
        why: String,
    },
    /// The server's certificate is for other names.
    #[error(
        "the certificate of the server at {peer} is not for the name it was called by: {why}; run `godwit keys issue \
         --san NAME` for it, or use a name that it carries"
    )]
    ServerName {
        /// The peer.
        peer: SocketAddr,
        /// The verifier's words.
        why: String,
    },
    /// Our certificate is not accepted there.
    #[error(
        "{peer} does not accept the certificate {}: {why}; it must be signed by the CA that the peer trusts: copy the \
         same ca.pem to both sides, or run `godwit keys issue` where ca.key lies",
        cert.display()
    )]
    OwnCertificate {
        /// The peer.
        peer: SocketAddr,
        /// Our certificate.
        cert: PathBuf,
        /// The peer's words.
        why: String,
    },
    /// The peer speaks QUIC, but not this protocol.
    #[error("{peer} does not speak godwit/1: {why}; install the same release of godwit on both sides")]
    Protocol {
        /// The peer.
        peer: SocketAddr,
        /// The TLS or QUIC library's words.
        why: String,
    },
    /// The connection broke.
    #[error("the link to {peer} is lost: {why}")]
    Lost {
        /// The peer.
        peer: SocketAddr,
        /// What is known.
        why: String,
    },
    /// The peer closed the connection with a code.
    #[error("{peer} closed the link ({code}): {text}")]
    Closed {
        /// The peer.
        peer: SocketAddr,
        /// Its code.
        code: Code,
        /// Its words.
        text: String,
    },
    /// The peer did not answer in time, although the link lives.
    #[error("{peer} sent no {what} within {} s", waited.as_secs())]
    Silent {
        /// The peer.
        peer: SocketAddr,
        /// What was waited for.
        what: &'static str,
        /// How long.
        waited: Duration,
    },
    /// The peer sent bytes that are no message.
    #[error("{peer} sent what is not godwit's protocol: {source}")]
    Malformed {
        /// The peer.
        peer: SocketAddr,
        /// What is wrong with them.
        #[source]
        source: Malformed,
    },
    /// A fault point fired.
    #[error("link to {peer}: {source}")]
    Injected {
        /// The peer.
        peer: SocketAddr,
        /// Which fault.
        #[source]
        source: Injected,
    },
}

/// TLS alert "no_application_protocol" (RFC 7301 section 3.2).
const ALERT_NO_ALPN: u64 = 120;
/// Codes of QUIC that carry a TLS alert start here (RFC 9001 section 4.8).
const CRYPTO_ERROR: u64 = 0x100;

/// Puts what quinn says in terms of addresses and files.
pub(super) fn explain(error: ConnectionError, peer: SocketAddr, identity: &Identity) -> QuicError {
    let lost = |why: String| QuicError::Lost { peer, why };
    match error {
        ConnectionError::TransportError(error) => {
            let why = error.reason.clone();
            match alert(u64::from(error.code)) {
                Some(ALERT_NO_ALPN) => QuicError::Protocol { peer, why },
                Some(_) if why.contains("NotValidForName") || why.contains("not valid for name") => {
                    QuicError::ServerName { peer, why }
                }
                Some(_) if why.contains("certificate") => {
                    QuicError::ServerCertificate { peer, ca: identity.ca.clone(), why }
                }
                Some(_) => QuicError::Protocol { peer, why },
                None => lost(error.to_string()),
            }
        }
        ConnectionError::ConnectionClosed(close) => match alert(u64::from(close.error_code)) {
            Some(ALERT_NO_ALPN) => QuicError::Protocol { peer, why: close.to_string() },
            // 42 to 51 and 116: everything that TLS says about the certificate of this side (RFC 8446 section 6.2).
            Some(42..=51 | 116) => {
                QuicError::OwnCertificate { peer, cert: identity.cert.clone(), why: close.to_string() }
            }
            Some(_) => QuicError::Protocol { peer, why: close.to_string() },
            None => lost(close.to_string()),
        },
        ConnectionError::ApplicationClosed(close) => {
            let code = Code::from_number(u32::try_from(close.error_code.into_inner()).unwrap_or(u32::MAX));
            QuicError::Closed { peer, code, text: String::from_utf8_lossy(&close.reason).into_owned() }
        }
        ConnectionError::VersionMismatch => {
            QuicError::Protocol { peer, why: "it has no QUIC version in common".to_owned() }
        }
        ConnectionError::TimedOut => lost("nothing was heard from it for the idle timeout".to_owned()),
        ConnectionError::Reset => lost("it no longer knows the connection; it was restarted".to_owned()),
        ConnectionError::LocallyClosed => lost("it was closed at this end".to_owned()),
        ConnectionError::CidsExhausted => lost("no connection ids are left".to_owned()),
    }
}

fn alert(code: u64) -> Option<u64> {
    code.checked_sub(CRYPTO_ERROR).filter(|alert| *alert < 0x100)
}
