//! Reads certificates, keys and revocation lists from the content of files.
//!
//! Always holds: an error names the file and what it lacks, and reveals nothing of a key.

use std::{path::Path, sync::Arc, time::SystemTime};

use rustls::{
    RootCertStore,
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
        pem::{Error as PemError, PemObject as _},
    },
};

use super::{Names, TlsError, files::Contents};

/// The beginning of each section of a PEM file.
const MARK: &[u8] = b"-----BEGIN ";

/// The certificates of a file, in their order; at least one.
pub(super) fn certificates(contents: &Contents, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let content = |cause| TlsError::Content { path: path.to_owned(), wanted: "certificate", cause };
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(contents.of(path))
        .collect::<Result<_, _>>()
        .map_err(|error| content(error.to_string()))?;
    if certificates.is_empty() { Err(content(String::new())) } else { Ok(certificates) }
}

/// The private key of a file.
pub(super) fn key(contents: &Contents, path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(contents.of(path)).map_err(|error| {
        let encrypted = contents.of(path).windows(MARK.len() + 9).any(|part| part.ends_with(b"ENCRYPTED"));
        let cause = match error {
            PemError::NoItemsFound if encrypted => "a key with a passphrase is not supported".to_owned(),
            PemError::NoItemsFound => String::new(),
            error => error.to_string(),
        };
        TlsError::Content { path: path.to_owned(), wanted: "private key", cause }
    })
}

/// The authorities of a file, and when the first of their certificates expires.
pub(super) fn roots(contents: &Contents, path: &Path) -> Result<(Arc<RootCertStore>, Option<SystemTime>), TlsError> {
    let certificates = certificates(contents, path)?;
    let not_after = certificates.iter().map(|certificate| Names::of(certificate).not_after()).min();
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(|error| TlsError::Trust { path: path.to_owned(), cause: error.to_string() })?;
    }
    Ok((Arc::new(roots), not_after))
}

/// The revocation lists of a file: PEM, or a single one in DER, as etcd accepts it.
pub(super) fn revocation_lists(
    contents: &Contents,
    path: &Path,
) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let bytes = contents.of(path);
    let content = |cause| TlsError::Content { path: path.to_owned(), wanted: "revocation list", cause };
    if !bytes.windows(MARK.len()).any(|part| part == MARK) {
        if bytes.is_empty() {
            return Err(content("it is empty".to_owned()));
        }
        return Ok(vec![CertificateRevocationListDer::from(bytes.to_vec())]);
    }
    let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| content(error.to_string()))?;
    if lists.is_empty() { Err(content(String::new())) } else { Ok(lists) }
}
