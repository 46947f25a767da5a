//! [`dial`]: opens every connection to etcd, whoever needs it: feeds, forwarded calls, the relay's own questions, the version probe.
//!
//! Not here: what is spoken on the connection. Callers see a [`ByteStream`] and nothing of TCP, so that what is put between the two (TLS)
//! concerns this file alone.
//! Always holds: whoever calls bounds the wait; a connection that is dropped while it is made leaves nothing behind.

use std::io;

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::Endpoint;

/// A connection to a member, as far as those who speak on it can tell.
pub(super) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> ByteStream for S {}

/// Connects to a member. Cancel safe.
///
/// # Errors
/// Where its name is not known or it does not accept.
pub(super) async fn dial(endpoint: &Endpoint) -> io::Result<impl ByteStream + use<>> {
    let stream = TcpStream::connect(endpoint.host_and_port()).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
