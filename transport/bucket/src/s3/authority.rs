//! The certificates of an authority that the settings name.

use std::path::{Path, PathBuf};
use std::{fs, io};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use thiserror::Error;

/// One or more certificates, known to be usable.
#[derive(Clone, Debug)]
pub struct Authority {
    pem: Vec<u8>,
}

/// Why a file is not one of certificates.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// It cannot be read.
    #[error("'{path}' cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It has no certificates in PEM.
    #[error("'{path}' has no certificate in PEM, which begins with '-----BEGIN CERTIFICATE-----'")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// One of its certificates is damaged.
    #[error("certificate {number} of '{path}' cannot be used: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which one, from 1.
        number: usize,
        /// Why not.
        reason: String,
    },
}

impl Authority {
    /// Reads and checks a file of certificates.
    ///
    /// # Errors
    /// If there are none, or one cannot be used.
    pub fn read(path: &Path) -> Result<Self, AuthorityError> {
        let pem = fs::read(path).map_err(|source| AuthorityError::Read { path: path.to_owned(), source })?;
        let mut roots = RootCertStore::empty();
        for (index, certificate) in CertificateDer::pem_slice_iter(&pem).enumerate() {
            let damaged =
                |reason| AuthorityError::Damaged { path: path.to_owned(), number: index + 1, reason };
            let certificate = certificate.map_err(|error| damaged(format!("{error:?}")))?;
            roots.add(certificate).map_err(|error| damaged(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(AuthorityError::Empty { path: path.to_owned() });
        }
        Ok(Self { pem })
    }

    pub(super) fn pem(&self) -> &[u8] {
        &self.pem
    }
}
