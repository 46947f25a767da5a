//! [`Link`]: one HTTP/2 connection to one member, made when needed and made again when it broke.
//!
//! Not here: which member to use. Always holds: at most one connection attempt at a time; whoever waited for an attempt that
//! failed is told of that failure, so that a hundred waiting calls wait one connect timeout and not a hundred.

use std::{
    io,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use metrics::counter;
use parking_lot::Mutex;
use thiserror::Error;
use tokio::{net::TcpStream, time::timeout};

use super::{Keepalive, body::RequestBody};
use crate::{
    source::{Endpoint, causes::chain},
    telemetry::names,
};

/// The largest window that HTTP/2 knows. Each stream has its own, small one: the connection's must never be what stops it,
/// or clients that do not read their streams would stop those that do.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Largest size of all headers and trailers of an answer: as grpc-go's, so that etcd can send what its clients take.
const MAX_HEADERS: u32 = 16 << 20;

/// How to connect.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) connect_timeout: Duration,
    pub(super) keepalive: Option<Keepalive>,
    pub(super) stream_window: NonZeroU32,
}

/// A connection, or none yet.
pub(super) struct Link {
    endpoint: Endpoint,
    settings: Settings,
    /// The last connection. A plain mutex: it is held for a clone.
    live: Mutex<Option<SendRequest<RequestBody>>>,
    /// Held while connecting; has the last failure.
    connecting: tokio::sync::Mutex<Option<Failure>>,
}

/// A failed attempt.
#[derive(Debug)]
struct Failure {
    at: Instant,
    error: LinkError,
}

/// Why there is no connection to a member.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub(super) enum LinkError {
    /// Name resolution or TCP failed.
    #[error("{endpoint}: {cause}")]
    Connect { endpoint: Endpoint, cause: Arc<io::Error> },
    /// No answer in time.
    #[error("{endpoint}: no connection within {}", humantime::format_duration(*.after))]
    Timeout { endpoint: Endpoint, after: Duration },
    /// What answers does not speak HTTP/2, or went away.
    #[error("{endpoint}: {cause}")]
    Http2 { endpoint: Endpoint, cause: String },
}

impl Link {
    pub(super) fn new(endpoint: Endpoint, settings: Settings) -> Self {
        Self { endpoint, settings, live: Mutex::new(None), connecting: tokio::sync::Mutex::new(None) }
    }

    /// A connection that was open a moment ago, or a new one. `asked` is when the caller began: an attempt that failed since
    /// then is the answer. Cancel safe: an attempt that is dropped leaves nothing behind.
    pub(super) async fn sender(&self, asked: Instant) -> Result<SendRequest<RequestBody>, LinkError> {
        if let Some(sender) = self.open() {
            return Ok(sender);
        }
        let mut last_failure = self.connecting.lock().await;
        if let Some(sender) = self.open() {
            return Ok(sender);
        }
        if let Some(failure) = last_failure.as_ref().filter(|failure| failure.at >= asked) {
            return Err(failure.error.clone());
        }
        let result = match timeout(self.settings.connect_timeout, self.connect()).await {
            Ok(result) => result,
            Err(_) => Err(LinkError::Timeout { endpoint: self.endpoint.clone(), after: self.settings.connect_timeout }),
        };
        let outcome = if result.is_ok() { names::Connect::Ok } else { names::Connect::Error };
        counter!(names::UPSTREAM_CONNECTS, names::Connect::LABEL => outcome.as_str()).increment(1);
        match result {
            Ok(sender) => {
                tracing::debug!(endpoint = %self.endpoint, "Connected upstream");
                *self.live.lock() = Some(sender.clone());
                *last_failure = None;
                Ok(sender)
            }
            Err(error) => {
                tracing::debug!(%error, "Cannot connect upstream");
                *last_failure = Some(Failure { at: Instant::now(), error: error.clone() });
                Err(error)
            }
        }
    }

    /// The error of a connection that closed before a call could be sent on it.
    pub(super) fn broken(&self, error: &hyper::Error) -> LinkError {
        LinkError::Http2 { endpoint: self.endpoint.clone(), cause: chain(error) }
    }

    /// Gives up the connection, if there is one; the next call makes another. Calls that run on it go on.
    pub(super) fn forget(&self) {
        *self.live.lock() = None;
    }

    pub(super) fn open(&self) -> Option<SendRequest<RequestBody>> {
        self.live.lock().as_ref().filter(|sender| !sender.is_closed()).cloned()
    }

    async fn connect(&self) -> Result<SendRequest<RequestBody>, LinkError> {
        let failed = |cause: io::Error| LinkError::Connect { endpoint: self.endpoint.clone(), cause: Arc::new(cause) };
        let stream = TcpStream::connect(self.endpoint.host_and_port()).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(self.settings.stream_window.get())
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADERS);
        if let Some(keepalive) = self.settings.keepalive {
            builder
                .keep_alive_interval(keepalive.interval)
                .keep_alive_timeout(keepalive.timeout)
                .keep_alive_while_idle(keepalive.while_idle);
        }
        let (sender, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(&error))?;
        let endpoint = self.endpoint.clone();
        // Ends when the connection breaks, or when the last sender is dropped and the last call has ended.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%endpoint, error = chain(&error), "Lost the connection upstream");
            }
        });
        Ok(sender)
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
