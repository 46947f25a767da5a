//! A port: accepts connections and serves each with one service, over HTTP/1.1 and HTTP/2, with TLS and without.
//!
//! HTTP/1.1 is hyper's, HTTP/2 our own (`crate::http2`). Not here: what is answered. Bound by the composition root before anything is served,
//! so that addresses are known. A port may have several addresses, some with TLS and some without; its bounds are for all of them together.
//! Always holds:
//! - errors of a peer never end the port; errors of the system (no more files) are logged, counted, and waited out;
//! - at the largest number of connections a new one is closed at once and counted, so that its client tries another relay
//!   rather than waits in a queue that nobody sees; so is one too many of a client, where [`PortConfig::max_connections_per_client`] says so;
//! - a connection that sends nothing is closed after [`PortConfig::FIRST_BYTES`], one whose peer vanished after a missed ping,
//!   one that takes no bytes after [`PortConfig::write_stall`];
//! - a [`Lasting`] answer over HTTP/1.1 keeps of its connection only the socket and the body, and ends as the client closes;
//! - when told to stop: no new connections, the open ones are asked to finish (GOAWAY) one after the other, and cut off when told so.

mod accept;
mod clients;
mod connections;
mod files;
mod lasting;
mod mistaken;
mod pacing;
mod preface;
mod quiet;
mod secure;
mod serve;
mod socket;

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener as StdListener},
    num::{NonZeroU32, NonZeroUsize},
    sync::Arc,
    time::Duration,
};

use http::Extensions;
use rustix::net::sockopt;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use self::{
    connections::{ConnectionId, ConnectionStats, Connections, Seen},
    files::fit_connections,
    lasting::Lasting,
    pacing::Pacing,
    serve::{Opened, Refused, Server, Stop},
};
pub use crate::http2::Keepalive;
use crate::{http2, telemetry::names, tls, types::ClientKey};

/// Where a port listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Port 0 takes a free one.
    pub addr: SocketAddr,
    /// Whether TLS is spoken there.
    pub secure: bool,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.secure { "https" } else { "http" }, self.addr)
    }
}

/// How a port serves.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// Where to listen; not empty.
    pub addresses: Vec<Address>,
    /// With which certificate, at addresses with TLS.
    pub tls: Option<tls::Server>,
    /// Which port it is, for metrics and logs.
    pub port: names::Port,
    /// Largest number of connections.
    pub max_connections: NonZeroUsize,
    /// Largest number of connections of one client, by its address; `None` sets none.
    pub max_connections_per_client: Option<NonZeroUsize>,
    /// Largest number of HTTP/2 streams a connection may have open; more are refused to that connection.
    pub max_streams: NonZeroU32,
    /// Bytes of one stream's answer that may wait for its client to read them, behind what the handler keeps itself.
    pub stream_buffer: NonZeroUsize,
    /// Pings on HTTP/2 connections, probes of TCP on others; `None` sends none.
    pub keepalive: Option<Keepalive>,
    /// How long a connection may take no bytes while there are some for it.
    pub write_stall: Duration,
    /// How long it takes until all connections were asked to leave, once the port stops; less where they are few.
    pub leave_spread: Duration,
    /// How old a connection may be, give or take a quarter, before it is asked to leave; `None` sets no age.
    pub max_age: Option<Duration>,
}

impl PortConfig {
    /// A relay serves a rack; beyond this, files and memory want a look first.
    pub const MAX_CONNECTIONS: NonZeroUsize = NonZeroUsize::new(100_000).expect("not zero");
    /// One connection of a busy client has thousands of calls at once, but not more.
    pub const MAX_STREAMS: NonZeroU32 = NonZeroU32::new(100_000).expect("not zero");
    /// 128 KiB: as much as a socket buffer; what is more waits as a position in the history, at no cost.
    pub const STREAM_BUFFER: NonZeroUsize = NonZeroUsize::new(128 << 10).expect("not zero");
    /// See there.
    pub const KEEPALIVE: Keepalive = Keepalive::DEFAULT;
    /// How long a connection may take for its first bytes. A client that connects has them ready.
    pub const FIRST_BYTES: Duration = Duration::from_secs(10);
    /// Longer than any pause of a client that will read on; what waits for it meanwhile is bounded.
    pub const WRITE_STALL: Duration = Duration::from_secs(120);

    /// A port of kind `port` at `addr`, without TLS, with defaults for the rest.
    #[must_use]
    pub fn new(port: names::Port, addr: SocketAddr) -> Self {
        Self {
            addresses: vec![Address { addr, secure: false }],
            tls: None,
            port,
            max_connections: Self::MAX_CONNECTIONS,
            max_connections_per_client: None,
            max_streams: Self::MAX_STREAMS,
            stream_buffer: Self::STREAM_BUFFER,
            keepalive: Some(Self::KEEPALIVE),
            write_stall: Self::WRITE_STALL,
            leave_spread: Duration::ZERO,
            max_age: None,
        }
    }

    pub(in crate::front) fn pacing(&self) -> Arc<Pacing> {
        Pacing::new(self.port, self.leave_spread, self.max_age)
    }

    /// How much a client may ask for over HTTP/2.
    fn http2(&self) -> http2::Limits {
        http2::Limits { max_streams: self.max_streams.get(), keepalive: self.keepalive, ..http2::Limits::default() }
    }
}

/// Why a port cannot be bound.
#[derive(Debug, Error)]
#[error("cannot listen on {addr} for {}; check that no other process listens there and that this machine has the address", .port.as_str())]
pub struct BindError {
    addr: SocketAddr,
    port: names::Port,
    #[source]
    cause: io::Error,
}

/// The address of a client, put into the extensions of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddr(pub SocketAddr);

impl ClientAddr {
    /// Whose share of the relay what comes from there counts for.
    #[must_use]
    pub fn key(self) -> ClientKey {
        ClientKey::from(self.0.ip())
    }
}

/// What a client's certificate says, put into the extensions of each request of a client that had to show one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate(pub Arc<tls::Names>);

/// Cancelled when the connection that a request came over is asked to leave; without a connection, `otherwise`, which is when the relay stops.
#[must_use]
pub fn leave(extensions: &Extensions, otherwise: &CancellationToken) -> CancellationToken {
    extensions.get().unwrap_or(otherwise).clone()
}

/// A bound port that serves nothing yet; clients can connect and wait.
#[derive(Debug)]
pub struct Bound {
    listeners: Vec<Listener>,
    config: PortConfig,
    connections: Arc<Connections>,
    pacing: Arc<Pacing>,
}

/// A place where a port listens.
#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    address: Address,
}

impl Bound {
    /// Binds a port. `connections` shows those of all ports.
    ///
    /// # Errors
    /// Where an address is taken or not this machine's, or there are no threads for TLS.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn bind(config: PortConfig, connections: Arc<Connections>) -> Result<Self, BindError> {
        let listeners = config.addresses.iter().map(|address| {
            let failed = |cause| BindError { addr: address.addr, port: config.port, cause };
            if address.secure {
                let none = || io::Error::new(io::ErrorKind::InvalidInput, "there is no certificate for TLS");
                config.tls.as_ref().ok_or_else(none).and_then(tls::Server::start).map_err(failed)?;
            }
            let listener = StdListener::bind(address.addr).map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            if let Some(keepalive) = config.keepalive {
                probe(&listener, keepalive).map_err(failed)?;
            }
            let socket = TcpListener::from_std(listener).map_err(failed)?;
            let addr = socket.local_addr().map_err(failed)?;
            Ok(Listener { socket, address: Address { addr, ..*address } })
        });
        let (listeners, pacing) = (listeners.collect::<Result<_, _>>()?, config.pacing());
        Ok(Self { listeners, config, connections, pacing })
    }

    /// Where it listens first, with the real port.
    ///
    /// # Panics
    /// Where the configuration had no address.
    #[must_use]
    pub fn address(&self) -> Address {
        self.listeners[0].address
    }

    /// The same without saying whether TLS is spoken there.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.address().addr
    }

    /// Everywhere it listens.
    pub fn addresses(&self) -> impl Iterator<Item = Address> {
        self.listeners.iter().map(|listener| listener.address)
    }

    /// Asks its connections to leave.
    #[must_use]
    pub fn pacing(&self) -> Arc<Pacing> {
        self.pacing.clone()
    }

    /// Which port it is.
    #[must_use]
    pub fn port(&self) -> names::Port {
        self.config.port
    }
}

/// Probes of TCP that may stay without an answer.
const PROBES: u32 = 4;

/// Has TCP do what pings do, for clients that speak HTTP/1.1. Accepted connections take it over from the listener.
fn probe(listener: &StdListener, keepalive: Keepalive) -> io::Result<()> {
    // Linux takes whole seconds in this range.
    let fit = |time: Duration| time.clamp(Duration::from_secs(1), Duration::from_secs(32_767));
    sockopt::set_tcp_keepidle(listener, fit(keepalive.interval))?;
    sockopt::set_tcp_keepintvl(listener, fit(keepalive.timeout / PROBES))?;
    sockopt::set_tcp_keepcnt(listener, PROBES)?;
    Ok(sockopt::set_socket_keepalive(listener, true)?)
}

#[cfg(test)]
mod tests;
