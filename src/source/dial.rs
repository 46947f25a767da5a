//! [`Dialler`]: opens every connection to etcd, whoever needs it: feeds, forwarded calls, the relay's own questions, the version probe.
//!
//! Not here: what is spoken on the connection. Callers see a [`ByteStream`] and nothing of TCP or TLS.
//! Always holds: whoever calls bounds the wait; a connection that is dropped while it is made leaves nothing behind; `https://` is never
//! reached without TLS.

use std::io;

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::Endpoint;
use crate::tls::{self, Speaks};

/// A connection to a member, as far as those who speak on it can tell.
pub(super) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> ByteStream for S {}

/// See the module. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Dialler {
    tls: Option<tls::Client>,
}

impl Dialler {
    /// Reaches members over TCP, and those with `https://` over TLS, if there is `tls`.
    #[must_use]
    pub fn new(tls: Option<tls::Client>) -> Self {
        Self { tls }
    }

    /// Whether members may see a certificate of the relay, by whose name etcd could take a call for one of the relay's own.
    #[must_use]
    pub fn shows_certificate(&self) -> bool {
        self.tls.as_ref().is_some_and(tls::Client::has_certificate)
    }

    /// Connects to a member. Cancel safe.
    ///
    /// # Errors
    /// Where its name is not known, it does not accept, or it is not to be believed.
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
