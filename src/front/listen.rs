//! A port: accepts connections and serves each with one service, over HTTP/1.1 and HTTP/2 without TLS.
//!
//! HTTP/1.1 is hyper's, HTTP/2 our own (`http2`). Not here: what is answered. Bound by the composition root before anything is served,
//! so that addresses are known.
//! Always holds:
//! - errors of a peer never end the port; errors of the system (no more files) are logged, counted, and waited out;
//! - at the largest number of connections a new one is closed at once and counted, so that its client tries another relay
//!   rather than waits in a queue that nobody sees;
//! - a connection that sends nothing is closed after [`Config::FIRST_BYTES`], one whose peer vanished after a missed ping,
//!   one that takes no bytes after [`Config::write_stall`];
//! - a [`Lasting`] answer over HTTP/1.1 keeps of its connection only the socket and the body, and ends as the client closes;
//! - when told to stop: no new connections, the open ones are asked to finish (GOAWAY), and cut off when told so.

mod connections;
mod files;
mod http2;
mod lasting;
mod preface;
mod serve;
mod socket;

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    num::{NonZeroU32, NonZeroUsize},
    sync::Arc,
    time::Duration,
};

use rustix::net::sockopt;
use thiserror::Error;
use tokio::{net::TcpListener, sync::Semaphore};

pub use self::{
    connections::{ConnectionId, Connections},
    files::fit_connections,
    http2::Body as Http2Body,
    lasting::Lasting,
    serve::Stop,
};
use crate::telemetry::names;

/// How a port serves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen; port 0 takes a free one.
    pub addr: SocketAddr,
    /// Which port it is, for metrics and logs.
    pub port: names::Port,
    /// Largest number of connections.
    pub max_connections: NonZeroUsize,
    /// Largest number of HTTP/2 streams a connection may have open; more are refused to that connection.
    pub max_streams: NonZeroU32,
    /// Bytes of one stream's answer that may wait for its client to read them, behind what the handler keeps itself.
    pub stream_buffer: NonZeroUsize,
    /// Pings on HTTP/2 connections, probes of TCP on others; `None` sends none.
    pub keepalive: Option<Keepalive>,
    /// How long a connection may take no bytes while there are some for it.
    pub write_stall: Duration,
}

/// Pings that find out whether a client is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Time between pings.
    pub interval: Duration,
    /// A connection without an answer for this long is closed.
    pub timeout: Duration,
}

impl Keepalive {
    /// Probes of TCP that may stay without an answer.
    const PROBES: u32 = 4;

    /// The same by means of TCP, for clients that speak HTTP/1.1. Accepted connections take it over from the listener.
    fn of_tcp(self, listener: &StdListener) -> io::Result<()> {
        // Linux takes whole seconds in this range.
        let fit = |time: Duration| time.clamp(Duration::from_secs(1), Duration::from_secs(32_767));
        sockopt::set_tcp_keepidle(listener, fit(self.interval))?;
        sockopt::set_tcp_keepintvl(listener, fit(self.timeout / Self::PROBES))?;
        sockopt::set_tcp_keepcnt(listener, Self::PROBES)?;
        Ok(sockopt::set_socket_keepalive(listener, true)?)
    }
}

impl Config {
    /// A relay serves a rack; beyond this, files and memory want a look first.
    pub const MAX_CONNECTIONS: NonZeroUsize = NonZeroUsize::new(100_000).expect("not zero");
    /// One connection of a busy client has thousands of calls at once, but not more.
    pub const MAX_STREAMS: NonZeroU32 = NonZeroU32::new(100_000).expect("not zero");
    /// 128 KiB: as much as a socket buffer; what is more waits as a position in the history, at no cost.
    pub const STREAM_BUFFER: NonZeroUsize = NonZeroUsize::new(128 << 10).expect("not zero");
    /// Notices a vanished client in 80 s at the most.
    pub const KEEPALIVE: Keepalive = Keepalive { interval: Duration::from_secs(60), timeout: Duration::from_secs(20) };
    /// How long a connection may take for its first bytes. A client that connects has them ready.
    pub const FIRST_BYTES: Duration = Duration::from_secs(10);
    /// Longer than any pause of a client that will read on; what waits for it meanwhile is bounded.
    pub const WRITE_STALL: Duration = Duration::from_secs(120);

    /// A port of kind `port` at `addr` with defaults for the rest.
    #[must_use]
    pub fn new(port: names::Port, addr: SocketAddr) -> Self {
        Self {
            addr,
            port,
            max_connections: Self::MAX_CONNECTIONS,
            max_streams: Self::MAX_STREAMS,
            stream_buffer: Self::STREAM_BUFFER,
            keepalive: Some(Self::KEEPALIVE),
            write_stall: Self::WRITE_STALL,
        }
    }
}

/// Why a port cannot be bound.
#[derive(Debug, Error)]
#[error("cannot listen on {addr} for {}; is another process there, and is the address this machine's?", .port.as_str())]
pub struct BindError {
    addr: SocketAddr,
    port: names::Port,
    #[source]
    cause: io::Error,
}

/// The address of a client, put into the extensions of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddr(pub SocketAddr);

/// A bound port that serves nothing yet; clients can connect and wait.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    addr: SocketAddr,
    config: Config,
    permits: Arc<Semaphore>,
    connections: Arc<Connections>,
}

impl Bound {
    /// Binds a port. `connections` shows those of all ports.
    ///
    /// # Errors
    /// Where the address is taken or not this machine's.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn bind(config: Config, connections: Arc<Connections>) -> Result<Self, BindError> {
        let failed = |cause| BindError { addr: config.addr, port: config.port, cause };
        let listener = StdListener::bind(config.addr).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        if let Some(keepalive) = config.keepalive {
            keepalive.of_tcp(&listener).map_err(failed)?;
        }
        let listener = TcpListener::from_std(listener).map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let permits = Arc::new(Semaphore::new(config.max_connections.get().min(Semaphore::MAX_PERMITS)));
        Ok(Self { listener, addr, config, permits, connections })
    }

    /// Where it listens, with the real port.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Which port it is.
    #[must_use]
    pub fn port(&self) -> names::Port {
        self.config.port
    }
}

#[cfg(test)]
mod tests;
