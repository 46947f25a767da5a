//! A port: accepts connections and serves each with one service, over HTTP/1.1 and HTTP/2, with and without TLS.
//!
//! HTTP/1.1 is hyper's, HTTP/2 is our own (`crate::http2`). The composition root binds ports before anything is served,
//! so that addresses are known. A port may have several addresses, some with TLS and some without; its limits apply to
//! all of them together. Always holds:
//! - errors of a peer never end the port; errors of the system (such as too many open files) are logged and counted,
//!   and accepting resumes after a pause;
//! - a connection beyond the limit is closed at once and counted, so that its client tries another relay instead of
//!   waiting in a hidden queue; the same holds for the limit per client, [`PortConfig::max_connections_per_client`];
//! - a connection that sends nothing is closed after [`PortConfig::FIRST_BYTES`], one whose peer vanished after a
//!   missed ping, and one that accepts no bytes after [`PortConfig::write_stall`];
//! - a [`Lasting`] answer over HTTP/1.1 keeps only the socket and the body of its connection, and ends when the client
//!   closes;
//! - when the port stops, it accepts no new connections. Open ones are asked to finish (GOAWAY) one after the other,
//!   and are cut off on request.

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
mod turns;

use std::{
    fmt, io,
    net::SocketAddr,
    num::{NonZeroU32, NonZeroUsize},
    sync::Arc,
    time::Duration,
};

use http::Extensions;
use rustix::net::sockopt;
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

pub use self::{
    connections::{ConnectionId, ConnectionStats, Connections, Seen},
    files::fit_connections,
    lasting::Lasting,
    pacing::Pacing,
    serve::{Opened, Refused, Server, Stop},
};
pub use crate::http2::Keepalive;
use crate::{batch::Batcher, front::order::Order, http2, rpc::Caller, telemetry::names, tls, types::ClientKey};

/// An address that a port listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Port 0 picks a free port.
    pub addr: SocketAddr,
    /// Whether it uses TLS.
    pub secure: bool,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.secure { "https" } else { "http" }, self.addr)
    }
}

/// The settings of a port.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// The addresses to listen on; not empty.
    pub addresses: Vec<Address>,
    /// The TLS settings, for addresses with TLS.
    pub tls: Option<tls::Server>,
    /// The kind of port, for metrics and logs.
    pub port: names::Port,
    /// Most connections.
    pub max_connections: NonZeroUsize,
    /// Most connections of one client, by its address; `None` sets no limit.
    pub max_connections_per_client: Option<NonZeroUsize>,
    /// Most HTTP/2 streams that a connection may have open; further ones are refused.
    pub max_streams: NonZeroU32,
    /// Bytes of a stream's answer that may wait for its client, in addition to what the handler keeps itself.
    pub stream_buffer: NonZeroUsize,
    /// Pings on HTTP/2 connections and TCP probes on others; `None` sends none.
    pub keepalive: Option<Keepalive>,
    /// How long a connection may accept no bytes while some are waiting.
    pub write_stall: Duration,
    /// Joins what is sent to its connections; `None` makes a system call for each send.
    pub batcher: Option<Arc<Batcher>>,
    /// Where its connections wait for long turns; `None` lets each have one whenever it is ready.
    pub turns: Option<http2::TurnQueue>,
    /// The time within which all connections are asked to leave when the port stops; shorter if there are few.
    pub leave_spread: Duration,
    /// The age at which a connection is asked to leave, varied by a quarter; `None` sets no limit.
    pub max_age: Option<Duration>,
}

impl PortConfig {
    /// A relay serves a rack. For more connections, check the limits on files and memory first.
    pub const MAX_CONNECTIONS: NonZeroUsize = NonZeroUsize::new(100_000).expect("not zero");
    /// A busy client may have thousands of calls at once on a connection, but not more.
    pub const MAX_STREAMS: NonZeroU32 = NonZeroU32::new(100_000).expect("not zero");
    /// 128 KiB, about a socket buffer. Anything beyond waits as a position in the history, at no cost.
    pub const STREAM_BUFFER: NonZeroUsize = NonZeroUsize::new(128 << 10).expect("not zero");
    /// See there.
    pub const KEEPALIVE: Keepalive = Keepalive::DEFAULT;
    /// How long a connection may take to send its first bytes. A client has them ready when it connects.
    pub const FIRST_BYTES: Duration = Duration::from_secs(10);
    /// Longer than any pause of a client that will continue to read. What waits for it meanwhile is bounded.
    pub const WRITE_STALL: Duration = Duration::from_secs(120);

    /// A port of kind `port` at `addr`, without TLS and with defaults for the rest.
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
            batcher: None,
            turns: None,
            leave_spread: Duration::ZERO,
            max_age: None,
        }
    }

    pub(in crate::front) fn pacing(&self) -> Arc<Pacing> {
        Pacing::new(self.port, self.leave_spread, self.max_age)
    }

    /// The limits for HTTP/2.
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

/// The address of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddr(pub SocketAddr);

impl ClientAddr {
    /// The address of the client of a request.
    #[must_use]
    pub fn of(extensions: &Extensions) -> Option<Self> {
        Connected::of(extensions).map(|connected| connected.addr)
    }

    /// The key of the client for dividing resources.
    #[must_use]
    pub fn key(self) -> ClientKey {
        ClientKey::from(self.0.ip())
    }
}

/// The connection of a request. The request's extensions have one reference to it instead of its parts, since each
/// extension is an allocation; see [`Connected::of`].
#[derive(Debug)]
pub struct Connected {
    /// Its number.
    pub id: ConnectionId,
    /// Its other end.
    pub addr: ClientAddr,
    /// The names in the client's certificate, if it had to present one.
    pub certificate: Option<Arc<tls::Names>>,
    /// The order of its watches and writes.
    pub order: Arc<Order>,
    /// The client that its requests are charged to.
    pub caller: Arc<Caller>,
}

impl Connected {
    /// The connection of a request.
    #[must_use]
    pub fn of(extensions: &Extensions) -> Option<&Self> {
        extensions.get::<Arc<Self>>().map(|connected| &**connected)
    }

    /// A connection from `addr` without a certificate, as an extension.
    #[cfg(test)]
    pub(in crate::front) fn for_tests(id: ConnectionId, addr: &str, order: Arc<Order>) -> Arc<Self> {
        let addr = ClientAddr(addr.parse().expect("an address"));
        let caller = Arc::new(Caller { client: addr.key(), leave: None });
        Arc::new(Self { id, addr, certificate: None, order, caller })
    }
}

/// Cancelled when the connection of a request is asked to leave. Without a connection, it is `otherwise`, which is
/// cancelled when the relay stops.
#[must_use]
pub fn leave(extensions: &Extensions, otherwise: &CancellationToken) -> CancellationToken {
    Caller::leave(Connected::of(extensions).map(|connected| &*connected.caller), otherwise)
}

/// A bound port that serves nothing yet. Clients can connect and wait.
#[derive(Debug)]
pub struct Bound {
    listeners: Vec<Listener>,
    config: PortConfig,
    connections: Arc<Connections>,
    pacing: Arc<Pacing>,
}

/// An address that a port listens on.
#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    address: Address,
}

impl Bound {
    /// Binds a port. Its connections are listed in `connections`.
    ///
    /// # Errors
    /// Fails if an address is in use or does not belong to this machine, or if there are no threads for TLS.
    ///
    /// # Panics
    /// Panics outside a tokio runtime.
    pub fn bind(config: PortConfig, connections: Arc<Connections>) -> Result<Self, BindError> {
        let listeners = config.addresses.iter().map(|address| {
            let failed = |cause| BindError { addr: address.addr, port: config.port, cause };
            if address.secure {
                let none = || io::Error::new(io::ErrorKind::InvalidInput, "there is no certificate for TLS");
                config.tls.as_ref().ok_or_else(none).and_then(tls::Server::start).map_err(failed)?;
            }
            let socket = listen(address.addr).map_err(failed)?;
            if let Some(keepalive) = config.keepalive {
                probe(&socket, keepalive).map_err(failed)?;
            }
            let addr = socket.local_addr().map_err(failed)?;
            Ok(Listener { socket, address: Address { addr, ..*address } })
        });
        let (listeners, pacing) = (listeners.collect::<Result<_, _>>()?, config.pacing());
        Ok(Self { listeners, config, connections, pacing })
    }

    /// The first address, with the real port.
    ///
    /// # Panics
    /// Panics if the configuration had no address.
    #[must_use]
    pub fn address(&self) -> Address {
        self.listeners[0].address
    }

    /// The first address, without the information about TLS.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.address().addr
    }

    /// All addresses.
    pub fn addresses(&self) -> impl Iterator<Item = Address> {
        self.listeners.iter().map(|listener| listener.address)
    }

    /// The part that asks connections to leave.
    #[must_use]
    pub fn pacing(&self) -> Arc<Pacing> {
        self.pacing.clone()
    }

    /// The kind of port.
    #[must_use]
    pub fn port(&self) -> names::Port {
        self.config.port
    }
}

/// Connections that may wait to be accepted, for each address. The kernel allows no more than `net.core.somaxconn`, so
/// this leaves the limit to the administrator. If it is reached, the kernel ignores a client's SYN, and the client tries
/// again after 1 s, and then after 2 s and 4 s more. Clients that all come at once, as after a network failure, would be
/// away that long.
const BACKLOG: u32 = 65_535;

/// Binds an address. A relay that was just restarted can have it at once.
fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// TCP probes that may stay unanswered.
const PROBES: u32 = 4;

/// Lets TCP do what pings do, for clients that use HTTP/1.1. Accepted connections inherit it from the listener.
fn probe(listener: &TcpListener, keepalive: Keepalive) -> io::Result<()> {
    // Linux accepts whole seconds in this range.
    let fit = |time: Duration| time.clamp(Duration::from_secs(1), Duration::from_secs(32_767));
    sockopt::set_tcp_keepidle(listener, fit(keepalive.interval))?;
    sockopt::set_tcp_keepintvl(listener, fit(keepalive.timeout / PROBES))?;
    sockopt::set_tcp_keepcnt(listener, PROBES)?;
    Ok(sockopt::set_socket_keepalive(listener, true)?)
}

#[cfg(test)]
mod tests;
