//! Identities: an Ed25519 key, a certificate around it, and the fingerprint by which the other side knows it.
//!
//! An identity is a folder (mode 0700) with `key.pem` (PKCS#8, mode 0600) and `certificate.pem` (self-signed; its common
//! name is the peer's name). What counts is the key: see PROTOCOL.md, "Who may do what".

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aws_lc_rs::signature::{self, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use aws_lc_rs::{digest, hmac};
use journal_format::{ErrorKind, FormatError};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::names::PeerName;

/// File name of the private key.
pub const KEY_FILE: &str = "key.pem";
/// File name of the certificate.
pub const CERTIFICATE_FILE: &str = "certificate.pem";

/// Beginning of an Ed25519 SubjectPublicKeyInfo in DER (RFC 8410, section 4); the 32 bytes of the key follow.
const ED25519_SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Why an identity cannot be made or used.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The folder holds something already.
    #[error("{} exists and is not empty; an identity is never overwritten: choose another folder, or move this one away", .dir.display())]
    Exists {
        /// The folder.
        dir: PathBuf,
    },
    /// There is no identity in the folder.
    #[error("there is no identity in {}; make one with 'thirdsite identity new --dir {}'", .dir.display(), .dir.display())]
    Missing {
        /// The folder.
        dir: PathBuf,
    },
    /// Others than the owner may read the key.
    #[error("{} has mode {mode:04o}, so others than its owner can read the private key; make it safe with 'chmod 0600 {}', and make a new identity if somebody may have read it", .path.display(), .path.display())]
    Exposed {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file is not what it should be.
    #[error("{} is not {expected}; restore the folder from a backup, or make a new identity and enrol it", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was expected.
        expected: &'static str,
    },
    /// The certificate belongs to another key.
    #[error("the certificate in {} belongs to another key than the one beside it; restore both from the same backup", .dir.display())]
    Mismatch {
        /// The folder.
        dir: PathBuf,
    },
    /// Keys or certificates cannot be made.
    #[error("a key or certificate cannot be made")]
    Generate(#[source] rcgen::Error),
    /// Input or output failed.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl IdentityError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            IdentityError::Malformed { .. } | IdentityError::Mismatch { .. } => ErrorKind::Corrupt,
            IdentityError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                ErrorKind::Full
            }
            IdentityError::Io { .. } | IdentityError::Generate(_) => ErrorKind::Retry,
            _ => ErrorKind::Invalid,
        }
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    move |source| IdentityError::Io { action, path: path.to_owned(), source }
}

/// The identity of a source or a site, with its private key. It prints its name and fingerprint, never the key.
pub struct Identity {
    name: PeerName,
    key: Ed25519KeyPair,
    key_der: PrivatePkcs8KeyDer<'static>,
    certificate: CertificateDer<'static>,
}

impl Identity {
    /// Makes a new identity in `dir`, which must not exist or be empty. It is there whole and durable, or not at all.
    ///
    /// # Errors
    /// [`IdentityError::Exists`], or input and output.
    pub fn create(dir: &Path, name: &PeerName) -> Result<Self, IdentityError> {
        if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(IdentityError::Exists { dir: dir.to_owned() });
        }
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(io_error("create", parent))?;
        let (key_pem, certificate_pem) = generate(name)?;

        // The rename is what makes the identity appear; it fails on a folder that has content.
        let leaf = dir.file_name().and_then(|leaf| leaf.to_str()).unwrap_or("identity");
        let staging = parent.join(format!(".{leaf}.{}.new", std::process::id()));
        let written = write_folder(&staging, &key_pem, &certificate_pem).and_then(|()| {
            fs::rename(&staging, dir).map_err(|error| match error.kind() {
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => {
                    IdentityError::Exists { dir: dir.to_owned() }
                }
                _ => io_error("rename the new folder to", dir)(error),
            })
        });
        if written.is_err() {
            // What is left over holds no identity that anybody was told of.
            fs::remove_dir_all(&staging).ok();
        }
        written?;
        sync_folder(parent)?;
        Self::load(dir)
    }

    /// Reads the identity in `dir`.
    ///
    /// # Errors
    /// [`IdentityError::Exposed`] if others than the owner can read the key, [`IdentityError::Missing`], damage, or input
    /// and output.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let key_path = dir.join(KEY_FILE);
        let certificate_path = dir.join(CERTIFICATE_FILE);
        let key_pem = read_private(dir, &key_path)?;
        let malformed = |path: &Path, expected| IdentityError::Malformed { path: path.to_owned(), expected };
        let certificate_pem = fs::read(&certificate_path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => malformed(&certificate_path, "there"),
            _ => io_error("read", &certificate_path)(error),
        })?;

        let key_der = PrivatePkcs8KeyDer::from_pem_slice(&key_pem)
            .map_err(|_| malformed(&key_path, "a private key in PKCS#8"))?;
        let key = Ed25519KeyPair::from_pkcs8(key_der.secret_pkcs8_der())
            .map_err(|_| malformed(&key_path, "an Ed25519 key"))?;
        let certificate = CertificateDer::from_pem_slice(&certificate_pem)
            .map_err(|_| malformed(&certificate_path, "a certificate"))?;
        let parsed = parse_certificate(&certificate)
            .ok_or_else(|| malformed(&certificate_path, "a certificate of an Ed25519 key"))?;
        let name =
            parsed.name.ok_or_else(|| malformed(&certificate_path, "a certificate with a peer's name"))?;
        if parsed.public_key.0 != key.public_key().as_ref() {
            return Err(IdentityError::Mismatch { dir: dir.to_owned() });
        }
        Ok(Self { name, key, key_der, certificate })
    }

    /// The name given when it was made.
    pub fn name(&self) -> &PeerName {
        &self.name
    }

    /// The public key.
    pub fn public_key(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.key.public_key().as_ref());
        PublicKey(bytes)
    }

    /// What the other side has to enrol.
    pub fn fingerprint(&self) -> Fingerprint {
        self.public_key().fingerprint()
    }

    /// Signs `bytes`. Callers begin them with a prefix of their own, so that no signature can be taken for another's.
    pub fn sign(&self, bytes: &[u8]) -> Signature {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.key.sign(bytes).as_ref());
        Signature(signature)
    }

    /// A secret for one purpose that stays the same as long as the key does.
    pub(crate) fn derived_secret(&self, purpose: &str) -> [u8; 32] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.key_der.secret_pkcs8_der());
        let mut secret = [0; 32];
        secret.copy_from_slice(hmac::sign(&key, purpose.as_bytes()).as_ref());
        secret
    }

    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    pub(crate) fn private_key(&self) -> PrivatePkcs8KeyDer<'static> {
        self.key_der.clone_key()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("name", &self.name)
            .field("fingerprint", &self.fingerprint())
            .finish_non_exhaustive()
    }
}

fn generate(name: &PeerName) -> Result<(String, String), IdentityError> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(IdentityError::Generate)?;
    let mut parameters =
        rcgen::CertificateParams::new(vec!["thirdsite".to_owned()]).map_err(IdentityError::Generate)?;
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, name.as_str());
    let certificate = parameters.self_signed(&key).map_err(IdentityError::Generate)?;
    Ok((key.serialize_pem(), certificate.pem()))
}

fn write_folder(dir: &Path, key_pem: &str, certificate_pem: &str) -> Result<(), IdentityError> {
    fs::DirBuilder::new().mode(0o700).create(dir).map_err(io_error("create", dir))?;
    write_new(&dir.join(KEY_FILE), key_pem.as_bytes(), 0o600)?;
    write_new(&dir.join(CERTIFICATE_FILE), certificate_pem.as_bytes(), 0o644)?;
    sync_folder(dir)
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), IdentityError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(io_error("create", path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io_error("write", path))
}

fn sync_folder(dir: &Path) -> Result<(), IdentityError> {
    File::open(dir).and_then(|folder| folder.sync_all()).map_err(io_error("sync", dir))
}

/// Reads the key after looking at its mode through the same descriptor.
fn read_private(dir: &Path, path: &Path) -> Result<Vec<u8>, IdentityError> {
    let mut file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => IdentityError::Missing { dir: dir.to_owned() },
        _ => io_error("read", path)(error),
    })?;
    let mode = file.metadata().map_err(io_error("read the mode of", path))?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed { path: path.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(io_error("read", path))?;
    Ok(bytes)
}

/// What is used of a certificate.
pub(crate) struct ParsedCertificate {
    /// Fingerprint of the SubjectPublicKeyInfo as it stands in the certificate.
    pub(crate) fingerprint: Fingerprint,
    pub(crate) public_key: PublicKey,
    /// The common name, if it is a peer's name. Only trustworthy in one's own certificate.
    name: Option<PeerName>,
}

/// Reads a certificate that may come from a peer; none unless it is one of an Ed25519 key.
pub(crate) fn parse_certificate(certificate: &CertificateDer<'_>) -> Option<ParsedCertificate> {
    let (rest, parsed) = X509Certificate::from_der(certificate).ok()?;
    let spki = parsed.public_key().raw;
    let key = spki.strip_prefix(&ED25519_SPKI_PREFIX)?;
    if !rest.is_empty() {
        return None;
    }
    let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok()?.parse().ok());
    Some(ParsedCertificate {
        fingerprint: Fingerprint(sha256(spki)),
        public_key: PublicKey(key.try_into().ok()?),
        name,
    })
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

/// SHA-256 of a peer's SubjectPublicKeyInfo in DER. Printed as 64 lower-case hexadecimal digits; colons are accepted
/// between them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let invalid = || FormatError::Id {
            what: "fingerprint",
            text: text.to_owned(),
            rule: "64 hexadecimal digits, with or without ':' between pairs; 'thirdsite identity show' prints it",
        };
        let digits: Vec<u8> = match text.len() {
            64 => text.bytes().collect(),
            95 if text.bytes().skip(2).step_by(3).all(|byte| byte == b':') => {
                text.bytes().enumerate().filter(|(index, _)| index % 3 != 2).map(|(_, byte)| byte).collect()
            }
            _ => return Err(invalid()),
        };
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |byte: u8| (byte as char).to_digit(16).ok_or_else(invalid);
            *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = FormatError;

    fn try_from(text: String) -> Result<Self, FormatError> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> String {
        fingerprint.to_string()
    }
}

/// An Ed25519 public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The key with these 32 bytes, as in RFC 8032. Bytes that are no key verify nothing.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its 32 bytes, as in RFC 8032.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0
    }

    /// Fingerprint of the identity that has this key.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut spki = ED25519_SPKI_PREFIX.to_vec();
        spki.extend_from_slice(&self.0);
        Fingerprint(sha256(&spki))
    }

    /// Tells whether the key's holder signed `bytes`.
    pub fn verify(&self, bytes: &[u8], signature: &Signature) -> bool {
        UnparsedPublicKey::new(&signature::ED25519, self.0).verify(bytes, &signature.0).is_ok()
    }
}

/// An Ed25519 signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "([u8; 32], [u8; 32])", into = "([u8; 32], [u8; 32])")]
pub struct Signature(pub [u8; 64]);

impl From<([u8; 32], [u8; 32])> for Signature {
    fn from((first, second): ([u8; 32], [u8; 32])) -> Self {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&first);
        bytes[32..].copy_from_slice(&second);
        Self(bytes)
    }
}

impl From<Signature> for ([u8; 32], [u8; 32]) {
    fn from(signature: Signature) -> Self {
        let mut halves = ([0; 32], [0; 32]);
        halves.0.copy_from_slice(&signature.0[..32]);
        halves.1.copy_from_slice(&signature.0[32..]);
        halves
    }
}

#[cfg(test)]
mod tests;
