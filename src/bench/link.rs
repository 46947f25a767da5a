//! [`Link`]: a [`Session`] on a socket, driven by the task that owns it, and [`Endpoint`], the address of a server.
//!
//! Always holds: it reads into a buffer of its thread, so an idle connection needs no memory for reading.

use std::{
    fmt, io,
    net::Ipv4Addr,
    pin::Pin,
    str::FromStr,
    task::{Context, Poll, ready},
    time::Duration,
};

use thiserror::Error;
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    net::{TcpSocket, TcpStream},
};

use super::wire::{OnEvent, Sender, Session, WireError};
use crate::tls::{self, Speaks};

/// A connection with or without TLS.
pub(super) type Socket = tls::Stream<TcpStream, tls::ClientStream<TcpStream>>;

/// Timeout for one connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);
/// Connections that come from one address of this machine.
const CONNECTIONS_OF_AN_ADDRESS: u64 = 25_000;
/// Reads in a row before other connections have their turn.
pub(super) const READS: usize = 16;
/// Bytes per read of a thread.
pub(super) const READ_BYTES: usize = 256 << 10;

/// The address of a server: `http://host:port`, `host:port`, or `https://host:port`, which needs TLS settings.
#[derive(Clone, Debug)]
pub struct Endpoint {
    addr: String,
    is_secure: bool,
    tls: Option<tls::Client>,
}

/// Why a connection failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LinkError {
    /// It could not be made.
    #[error("cannot connect to {addr}")]
    Connect {
        /// The address.
        addr: String,
        /// The system's error.
        source: io::Error,
    },
    /// The system ended it.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// The server closed it.
    #[error("the server closed the connection")]
    Closed,
    /// The server's data is invalid.
    #[error("{0}")]
    Wire(String),
}

impl From<WireError> for LinkError {
    fn from(error: WireError) -> Self {
        Self::Wire(error.to_string())
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Link {
    socket: Socket,
    session: Session,
    /// Bytes were written that TLS may hold back until it is flushed.
    unflushed: bool,
}

impl Link {
    /// Connects to a server that may send `stream_window` bytes ahead on a stream.
    pub(super) async fn connect(endpoint: &Endpoint, stream_window: u32) -> Result<Self, LinkError> {
        Self::connect_as(endpoint, stream_window, 0).await
    }

    /// The same as one of many connections. An address has some 28,000 ports for connections to one server, so on this
    /// machine further ones come from further addresses.
    pub(super) async fn connect_as(endpoint: &Endpoint, stream_window: u32, number: u64) -> Result<Self, LinkError> {
        Ok(Self {
            socket: connect_as(endpoint, Speaks::Http2, number).await?,
            session: Session::open(endpoint.addr(), stream_window),
            unflushed: false,
        })
    }

    /// Connects to a server that sends frames on stream 1 without a request.
    pub(super) async fn listen(endpoint: &Endpoint) -> Result<Self, LinkError> {
        Ok(Self { socket: connect(endpoint, Speaks::Http2).await?, session: Session::listening(1), unflushed: false })
    }

    /// Opens streams and sends on them. The data is written at the next [`Self::poll`].
    pub(super) fn sender(&mut self) -> &mut Sender {
        self.session.sender()
    }

    /// Writes what is waiting, and passes on what arrives. Ready only when the connection has ended.
    pub(super) fn poll<E: From<LinkError> + From<WireError>>(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
        on: OnEvent<'_, E>,
    ) -> Poll<E> {
        for _ in 0..READS {
            if let Err(error) = self.write(context) {
                return Poll::Ready(LinkError::Io(error).into());
            }
            let mut read = ReadBuf::new(buffer);
            match ready!(Pin::new(&mut self.socket).poll_read(context, &mut read)) {
                Ok(()) if read.filled().is_empty() => return Poll::Ready(LinkError::Closed.into()),
                Ok(()) => {}
                Err(error) => return Poll::Ready(LinkError::Io(error).into()),
            }
            if let Err(error) = self.session.input(read.filled(), on) {
                return Poll::Ready(error);
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn write(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        loop {
            let out = self.session.output();
            if out.is_empty() {
                if self.unflushed && Pin::new(&mut self.socket).poll_flush(context)?.is_ready() {
                    self.unflushed = false;
                }
                return Ok(());
            }
            match Pin::new(&mut self.socket).poll_write(context, out) {
                Poll::Ready(Ok(written)) => {
                    self.unflushed = true;
                    out.drain(..written);
                    // The large buffer of the beginning is not kept for thousands of connections.
                    out.shrink_to(4096);
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(()),
            }
        }
    }
}

/// A socket to this address, without Nagle's delay.
pub(super) async fn connect(endpoint: &Endpoint, speaks: Speaks) -> Result<Socket, LinkError> {
    connect_from(endpoint, speaks, None).await
}

/// The same as one of many connections; see [`Link::connect_as`].
pub(super) async fn connect_as(endpoint: &Endpoint, speaks: Speaks, number: u64) -> Result<Socket, LinkError> {
    connect_from(endpoint, speaks, source(endpoint, number)).await
}

/// The address for a connection of this number, if the system should not choose it.
fn source(endpoint: &Endpoint, number: u64) -> Option<Ipv4Addr> {
    let server = endpoint.host().parse::<Ipv4Addr>().ok().filter(Ipv4Addr::is_loopback)?;
    let further = u8::try_from(number / CONNECTIONS_OF_AN_ADDRESS).ok().filter(|further| *further > 0)?;
    let [a, b, c, d] = server.octets();
    Some(Ipv4Addr::new(a, b, c, d.checked_add(further)?))
}

async fn connect_from(endpoint: &Endpoint, speaks: Speaks, source: Option<Ipv4Addr>) -> Result<Socket, LinkError> {
    let failed = |source| LinkError::Connect { addr: endpoint.addr().to_owned(), source };
    let connected = tokio::time::timeout(CONNECT_PATIENCE, async {
        let socket = match source {
            None => TcpStream::connect(endpoint.addr()).await?,
            Some(source) => {
                let socket = TcpSocket::new_v4()?;
                // Ports whose last connections ended a moment ago may be used again.
                socket.set_reuseaddr(true)?;
                socket.bind((source, 0).into())?;
                let server = endpoint.addr().parse().map_err(|_| io::ErrorKind::InvalidInput)?;
                socket.connect(server).await?
            }
        };
        socket.set_nodelay(true)?;
        Ok::<_, io::Error>(match &endpoint.tls {
            None => Socket::Plain(socket),
            Some(tls) => Socket::Tls(Box::new(tls.connect(endpoint.host(), socket, speaks).await?)),
        })
    });
    connected.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(failed)
}

impl Endpoint {
    /// `host:port`.
    #[must_use]
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// Whether it begins with `https://`.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.is_secure
    }

    /// The same address, with `tls` if it begins with `https://`.
    #[must_use]
    pub fn with(self, tls: Option<&tls::Client>) -> Self {
        Self { tls: tls.filter(|_| self.is_secure).cloned(), ..self }
    }

    fn host(&self) -> &str {
        let host = self.addr.rsplit_once(':').map_or(&*self.addr, |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

/// Compares the addresses.
impl PartialEq for Endpoint {
    fn eq(&self, other: &Self) -> bool {
        (&self.addr, self.is_secure) == (&other.addr, other.is_secure)
    }
}

impl Eq for Endpoint {}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (is_secure, rest) = match text.strip_prefix("https://") {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix("http://").unwrap_or(text)),
        };
        let addr = rest.trim_end_matches('/');
        match addr.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && !addr.contains('/') && port.parse::<u16>().is_ok() => {
                Ok(Self { addr: addr.to_owned(), is_secure, tls: None })
            }
            _ => Err(format!("invalid endpoint `{text}`; write it like http://127.0.0.1:2379")),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.is_secure { "https" } else { "http" }, self.addr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_connections_on_one_machine_come_from_several_addresses() {
        let source = |endpoint: &str, number| source(&endpoint.parse().expect("an endpoint"), number);
        assert_eq!(source("127.0.0.1:1", 24_999), None);
        assert_eq!(source("127.0.0.1:1", 25_000), Some(Ipv4Addr::new(127, 0, 0, 2)));
        assert_eq!(source("127.0.0.1:1", 60_000), Some(Ipv4Addr::new(127, 0, 0, 3)));
        for endpoint in ["10.0.0.1:1", "localhost:1", "[::1]:1"] {
            assert_eq!(source(endpoint, 60_000), None, "{endpoint}");
        }
    }

    #[test]
    fn endpoints() {
        for text in ["127.0.0.1:2379", "http://127.0.0.1:2379", "http://127.0.0.1:2379/"] {
            assert_eq!(
                text.parse::<Endpoint>().map(|endpoint| endpoint.to_string()),
                Ok("http://127.0.0.1:2379".to_owned())
            );
        }
        let secure: Endpoint = "https://[::1]:1".parse().expect("an endpoint");
        assert_eq!((secure.to_string().as_str(), secure.host(), secure.is_secure()), ("https://[::1]:1", "::1", true));
        for text in ["", "a", "a:b", ":1", "http://a:1/path", "a:70000"] {
            text.parse::<Endpoint>().expect_err(text);
        }
    }
}
