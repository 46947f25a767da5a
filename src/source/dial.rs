//! [`Dialler`]: opens every connection to etcd: for feeds, forwarded calls, the relay's own requests, and the version
//! probe.
//!
//! Not here: the protocol on the connection. Callers get a [`ByteStream`], and know nothing of TCP or TLS.
//! Always holds: the caller bounds the wait; a connection that is dropped while it is made leaves nothing behind; an
//! `https://` member is never reached without TLS.

use std::io;

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::Endpoint;
use crate::tls::{self, Speaks};

/// A connection to a member, as the code that uses it sees it.
pub(super) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> ByteStream for S {}

/// Opens connections to members; see the module. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Dialler {
    tls: Option<tls::Client>,
}

impl Dialler {
    /// Reaches members over TCP, and `https://` members over TLS if `tls` is given.
    #[must_use]
    pub fn new(tls: Option<tls::Client>) -> Self {
        Self { tls }
    }

    /// Whether members may see a certificate of the relay. By its name etcd could take a client's call for one of the
    /// relay's own.
    #[must_use]
    pub fn shows_certificate(&self) -> bool {
        self.tls.as_ref().is_some_and(tls::Client::has_certificate)
    }

    /// Connects to a member. Cancel safe.
    ///
    /// # Errors
    /// If its name cannot be resolved, it refuses the connection, or it cannot be trusted.
    pub(super) async fn dial(&self, endpoint: &Endpoint, speaks: Speaks) -> io::Result<impl ByteStream + use<>> {
        let tls = match &self.tls {
            _ if !endpoint.is_secure() => None,
            Some(tls) => Some(tls),
            None => return Err(io::Error::new(io::ErrorKind::InvalidInput, "the relay has no settings for https://")),
        };
        let (host, port) = endpoint.host_and_port();
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        Ok(match tls {
            None => tls::Stream::Plain(stream),
            Some(tls) => tls::Stream::Tls(Box::new(tls.connect(host, stream, speaks).await?)),
        })
    }
}
