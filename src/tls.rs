//! TLS on both sides: for clients that connect to the relay ([`Server`]), and for the relay as a client of etcd ([`Client`]).
//!
//! Not here: sockets, and who may do what. A port asks [`Server::handshake`] for a stream, and the dialler upstream asks [`Client::connect`];
//! neither knows rustls.
//!
//! rustls does the protocol and ring the cryptography. aws-lc-rs, the alternative, encrypts what is delivered no faster (0.23 µs for a record of
//! 150 bytes) and shakes hands a fifth faster, but is some ten times as much C to build, with tools of its own.
//! Always holds:
//! - files are read at the start and followed from then on (`follow`): new handshakes use what the files contain, and a set of files that
//!   cannot be used changes nothing;
//! - an open connection is never touched by such a change;
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
        /// Why.
        cause: io::Error,
    },
    /// A file has something else than what is expected of it.
    #[error("{} has no usable {wanted} in PEM form{}", .path.display(), colon(.cause))]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should have.
        wanted: &'static str,
        /// What is wrong with it, where it is there.
        cause: String,
    },
    /// A certificate and a key do not belong together, or are of a kind that is not supported.
    #[error("{} and {} cannot be used together: {cause}", .cert.display(), .key.display())]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        cause: String,
    },
    /// Certificate authorities or revocation lists cannot be used.
    #[error("{}: {cause}", .path.display())]
    Trust {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// This machine trusts no authority.
    #[error("this machine has no trusted certificate authorities{}; name those of etcd with --cacert", colon(.0))]
    NoRoots(String),
    /// No certificate could be made, or no key of the process's own.
    #[error("cannot make a certificate or a key: {0}")]
    Generate(String),
    /// The versions and cipher suites that were asked for leave nothing.
    #[error("no version of TLS is left with these cipher suites and versions: {0}")]
    Nothing(String),
}

fn colon(cause: &str) -> String {
    if cause.is_empty() { String::new() } else { format!(": {cause}") }
}

/// Where all cryptography comes from.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
