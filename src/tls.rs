//! TLS on both sides: for clients that connect to the relay ([`Server`]), and for the relay as a client of etcd
//! ([`Client`]).
//!
//! Not here: sockets, and permissions. A port gets its streams from [`Server::handshake`], and the dialler upstream
//! from [`Client::connect`]; neither knows rustls.
//!
//! rustls implements the protocol and ring the cryptography. The alternative to ring, aws-lc-rs, encrypts deliveries no
//! faster (0.23 µs for a record of 150 bytes) and completes handshakes a fifth faster, but it has some ten times as
//! much C code to build, with tools of its own.
//! Always holds:
//! - files are read at the start and followed from then on (`follow`): new handshakes use the current files, and a set
//!   of files that cannot be used changes nothing;
//! - such a change never affects an open connection;
//! - no private key is ever printed or logged.

mod client;
mod files;
mod follow;
mod handshakes;
mod names;
mod pem;
mod server;
mod stream;
mod suites;

use std::{io, path::PathBuf, sync::Arc};

use rustls::crypto::CryptoProvider;
use thiserror::Error;

pub use self::{
    client::{Client, ClientOptions, ClientStream, Speaks},
    handshakes::HandshakeError,
    names::Names,
    server::{Accepted, Server, ServerOptions, ServerStream, Source},
    stream::Stream,
    suites::{Suites, UnknownSuite, Version},
};

/// Why files cannot be used for TLS.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {cause}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        cause: io::Error,
    },
    /// A file does not have the expected content.
    #[error("{} has no usable {wanted} in PEM form{}", .path.display(), colon(.cause))]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should have.
        wanted: &'static str,
        /// What is wrong with it, if it is there.
        cause: String,
    },
    /// A certificate and a key do not belong together, or are of a kind that is not supported.
    #[error("{} and {} cannot be used together: {cause}", .cert.display(), .key.display())]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The reason.
        cause: String,
    },
    /// Certificate authorities or revocation lists cannot be used.
    #[error("{}: {cause}", .path.display())]
    Trust {
        /// The file.
        path: PathBuf,
        /// The reason.
        cause: String,
    },
    /// This machine trusts no authority.
    #[error("this machine has no trusted certificate authorities{}; name those of etcd with --cacert", colon(.0))]
    NoRoots(String),
    /// No certificate or key could be generated.
    #[error("cannot generate a certificate or a key: {0}")]
    Generate(String),
    /// The configured versions and cipher suites leave nothing to use.
    #[error("no version of TLS is left with these cipher suites and versions: {0}")]
    Nothing(String),
}

fn colon(cause: &str) -> String {
    if cause.is_empty() { String::new() } else { format!(": {cause}") }
}

/// The source of all cryptography.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
