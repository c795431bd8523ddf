//! TLS 1.3 with certificates of one private CA on both sides.

use std::path::Path;
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::error::QuicError;
use super::keys::Identity;
use crate::version::ALPN;

/// The dumper's side: shows its certificate, verifies the server's against the CA and the name called.
pub(super) fn client(identity: &Identity, alpn: &[u8]) -> Result<QuicClientConfig, QuicError> {
    let misfit = |why: String| key_set(identity, why);
    let files = Files::read(identity)?;
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|why| misfit(why.to_string()))?
        .with_root_certificates(files.roots)
        .with_client_auth_cert(files.chain, files.key)
        .map_err(|why| misfit(why.to_string()))?;
    config.alpn_protocols = vec![alpn.to_vec()];
    QuicClientConfig::try_from(config).map_err(|why| misfit(why.to_string()))
}

/// The page server's side: wants a client certificate of the CA.
pub(super) fn server(identity: &Identity) -> Result<QuicServerConfig, QuicError> {
    let misfit = |why: String| key_set(identity, why);
    let files = Files::read(identity)?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(files.roots), provider())
        .build()
        .map_err(|why| misfit(why.to_string()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|why| misfit(why.to_string()))?
        .with_client_cert_verifier(clients)
        .with_single_cert(files.chain, files.key)
        .map_err(|why| misfit(why.to_string()))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Early data could be replayed; nothing here is worth it.
    config.max_early_data_size = 0;
    QuicServerConfig::try_from(config).map_err(|why| misfit(why.to_string()))
}

struct Files {
    roots: RootCertStore,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Files {
    fn read(identity: &Identity) -> Result<Self, QuicError> {
        let mut roots = RootCertStore::empty();
        for cert in certs(&identity.ca)? {
            roots.add(cert).map_err(|why| key_file(&identity.ca, why.to_string()))?;
        }
        let key = PrivateKeyDer::from_pem_file(&identity.key)
            .map_err(|why| key_file(&identity.key, why.to_string()))?;
        Ok(Files { roots, chain: certs(&identity.cert)?, key })
    }
}

fn certs(path: &Path) -> Result<Vec<CertificateDer<'static>>, QuicError> {
    let certs = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|why| key_file(path, why.to_string()))?;
    if certs.is_empty() {
        return Err(key_file(path, "it holds no certificate".to_owned()));
    }
    Ok(certs)
}

/// AES-128 first: it is what QUIC's packet protection is fastest with where the processor has AES.
fn provider() -> Arc<CryptoProvider> {
    let cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() })
}

/// Random bytes from the source that the keys of TLS come from.
///
/// # Errors
/// When the system has no randomness to give.
pub fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let filled = aws_lc_rs::default_provider().secure_random.fill(&mut bytes);
    filled.map_err(|_| std::io::Error::other("no randomness from the system"))?;
    Ok(bytes)
}

fn key_file(path: &Path, why: String) -> QuicError {
    QuicError::KeyFile { path: path.to_owned(), why }
}

fn key_set(identity: &Identity, why: String) -> QuicError {
    QuicError::KeySet { cert: identity.cert.clone(), ca: identity.ca.clone(), why }
}
