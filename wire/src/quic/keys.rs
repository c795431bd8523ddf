//! Certificates on disk: a private CA that signs servers and clients (`godwit keys`).

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use time::{Duration, OffsetDateTime};

/// How long certificates are valid, from yesterday on, so that clocks that differ a little do no harm.
const VALIDITY: Duration = Duration::days(3652);

/// Why keys could not be made.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file exists already.
    #[error("{} exists already: keys are never overwritten; choose another directory, or remove it first", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file or directory could not be read or written.
    #[error("cannot {op} {}", path.display())]
    Io {
        /// What was done.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A certificate could not be made.
    #[error("cannot make the certificate {}", path.display())]
    Make {
        /// The file it was for.
        path: PathBuf,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// The name would leave the directory.
    #[error("{name:?} cannot name key files: use letters, digits, '.', '_' and '-'")]
    BadName {
        /// The name.
        name: String,
    },
}

/// Where a program's own certificate and key lie, and the CA that it trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The CA's certificate.
    pub ca: PathBuf,
    /// This program's certificate (chain), PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

impl Identity {
    /// `ca.pem`, `client.pem` and `client.key` of a directory that [`init`] made.
    pub fn client(dir: &Path) -> Self {
        Self::named(dir, "client")
    }

    /// `ca.pem`, `server.pem` and `server.key` of a directory that [`init`] made.
    pub fn server(dir: &Path) -> Self {
        Self::named(dir, "server")
    }

    fn named(dir: &Path, name: &str) -> Self {
        let file = |suffix: &str| dir.join(format!("{name}.{suffix}"));
        Identity { ca: dir.join("ca.pem"), cert: file("pem"), key: file("key") }
    }
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// For a page server: carries the names and addresses that clients connect to.
    Server,
    /// For a dumper.
    Client,
}

/// Makes a CA, a server and a client certificate in `dir` (mode 0700; keys 0600). The server's certificate is
/// for localhost, 127.0.0.1, ::1, this host's name, and `sans` (host names or IP addresses).
///
/// # Errors
/// [`KeysError::Exists`] when any of the six files exists; nothing is written then.
pub fn init(dir: &Path, sans: &[String]) -> Result<Vec<PathBuf>, KeysError> {
    let files: Vec<PathBuf> = ["ca", "server", "client"].iter().flat_map(|name| pair(dir, name)).collect();
    refuse_existing(&files)?;
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error("create", dir))?;
    let [ca_cert, ca_key] = pair(dir, "ca");
    let make = |source| KeysError::Make { path: ca_cert.clone(), source };
    let key = new_key().map_err(make)?;
    let params = ca_params().map_err(make)?;
    let cert = params.self_signed(&key).map_err(make)?;
    let issuer = Issuer::new(params, &key);
    let mut names = local_names();
    names.extend(sans.iter().filter(|san| !local_names().contains(san)).cloned());
    // The CA's files come last: a directory with a ca.pem is a whole one.
    issue_by(&issuer, dir, "server", Kind::Server, &names)?;
    issue_by(&issuer, dir, "client", Kind::Client, &[])?;
    write(&ca_key, &key.serialize_pem(), 0o600)?;
    write(&ca_cert, &cert.pem(), 0o644)?;
    Ok(files)
}

/// Makes `NAME.pem` and `NAME.key` in `dir`, signed by the CA in `dir`. A server certificate without `sans` is
/// for the names that [`init`] takes.
///
/// # Errors
/// [`KeysError`] when a file exists, or `ca.pem` and `ca.key` cannot be read.
pub fn issue(dir: &Path, name: &str, kind: Kind, sans: &[String]) -> Result<Vec<PathBuf>, KeysError> {
    if crate::session::name::check_session(name).is_err() {
        return Err(KeysError::BadName { name: name.to_owned() });
    }
    let [ca_cert, ca_key] = pair(dir, "ca");
    let read = |path: &Path| std::fs::read_to_string(path).map_err(io_error("read", path));
    let make = |source| KeysError::Make { path: ca_cert.clone(), source };
    let key = KeyPair::from_pem(&read(&ca_key)?).map_err(make)?;
    let issuer = Issuer::from_ca_cert_pem(&read(&ca_cert)?, key).map_err(make)?;
    let names = if sans.is_empty() && kind == Kind::Server { local_names() } else { sans.to_vec() };
    issue_by(&issuer, dir, name, kind, &names)
}

fn issue_by(
    issuer: &Issuer<'_, impl rcgen::SigningKey>,
    dir: &Path,
    name: &str,
    kind: Kind,
    sans: &[String],
) -> Result<Vec<PathBuf>, KeysError> {
    let [cert_path, key_path] = pair(dir, name);
    refuse_existing(&[cert_path.clone(), key_path.clone()])?;
    let make = |source| KeysError::Make { path: cert_path.clone(), source };
    let key = new_key().map_err(make)?;
    let mut params = CertificateParams::new(sans.to_vec()).map_err(make)?;
    set_validity(&mut params);
    params.distinguished_name.push(DnType::CommonName, format!("godwit {name}"));
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match kind {
        Kind::Server => ExtendedKeyUsagePurpose::ServerAuth,
        Kind::Client => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    let cert = params.signed_by(&key, issuer).map_err(make)?;
    write(&key_path, &key.serialize_pem(), 0o600)?;
    write(&cert_path, &cert.pem(), 0o644)?;
    Ok(vec![cert_path, key_path])
}

fn ca_params() -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    set_validity(&mut params);
    // A name of its own for every CA: two of the same name would be told apart only by a signature error.
    let serial = OffsetDateTime::now_utc().unix_timestamp_nanos();
    params.distinguished_name.push(DnType::CommonName, format!("godwit CA {serial:x}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn set_validity(params: &mut CertificateParams) {
    params.not_before = OffsetDateTime::now_utc() - Duration::days(1);
    params.not_after = params.not_before + VALIDITY;
    params.distinguished_name = rcgen::DistinguishedName::new();
}

fn new_key() -> Result<KeyPair, rcgen::Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
}

fn local_names() -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    names.extend(host.filter(|host| !host.is_empty() && host != "localhost"));
    names
}

fn pair(dir: &Path, name: &str) -> [PathBuf; 2] {
    [dir.join(format!("{name}.pem")), dir.join(format!("{name}.key"))]
}

fn refuse_existing(files: &[PathBuf]) -> Result<(), KeysError> {
    match files.iter().find(|path| path.symlink_metadata().is_ok()) {
        Some(path) => Err(KeysError::Exists { path: path.clone() }),
        None => Ok(()),
    }
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), KeysError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = file.map_err(io_error("create", path))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io_error("write", path))
}

fn io_error<'a>(op: &'static str, path: &'a Path) -> impl Fn(io::Error) -> KeysError + use<'a> {
    move |source| KeysError::Io { op, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn init_writes_six_files_with_closed_keys_and_never_overwrites() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("keys");
        let files = init(&dir, &["10.0.0.7".to_owned(), "db.example".to_owned()]).unwrap();
        assert_eq!(files.len(), 6);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir), 0o700);
        for file in files.iter().filter(|path| path.extension().unwrap() == "key") {
            assert_eq!(mode(file), 0o600, "{file:?}");
        }
        let before = std::fs::read(dir.join("ca.pem")).unwrap();
        assert!(matches!(init(&dir, &[]), Err(KeysError::Exists { .. })));
        assert_eq!(std::fs::read(dir.join("ca.pem")).unwrap(), before);
        issue(&dir, "other", Kind::Client, &[]).unwrap();
        assert!(matches!(issue(&dir, "other", Kind::Client, &[]), Err(KeysError::Exists { .. })));
        assert!(matches!(issue(&dir, "../x", Kind::Client, &[]), Err(KeysError::BadName { .. })));
    }
}
