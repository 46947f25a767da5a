//! [`open`]: one HTTP/2 connection to one member, ready for calls. Short calls have our own client, which is made for
//! many of them; all others have hyper's (`Kind`).
//!
//! Not here: when one is needed and who may use it, see `pool`. Always holds: a connection is returned only after the
//! member has reported how many calls it accepts at once, so no caller counts on more.

use std::{
    error::Error,
    future::poll_fn,
    io,
    num::NonZeroU32,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use metrics::gauge;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};

use super::{Keepalive, request::RequestBody};
use crate::{
    http2::client::{Client, ClientLimits, Pings},
    source::{
        Endpoint,
        causes::chain,
        dial::{ByteStream, Dialler},
    },
    telemetry::names,
    tls::Speaks,
};

/// The largest size of all headers and trailers of an answer: as in grpc-go, so that etcd can send whatever its clients
/// accept.
const MAX_HEADERS: u32 = 16 << 20;

/// The calls of a connection, which decide whose client makes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::source) enum Kind {
    /// Nearly all of them end soon. A stream works too, but its request moves only while somebody waits for its answer.
    Short,
    /// Streams, or large answers.
    Streams,
}

/// How to connect.
#[derive(Clone, Debug)]
pub(in crate::source) struct Settings {
    pub(in crate::source) dialler: Dialler,
    pub(in crate::source) connect_timeout: Duration,
    pub(in crate::source) keepalive: Option<Keepalive>,
    /// The most bytes of one call's answer that may be under way.
    pub(in crate::source) stream_window: NonZeroU32,
    /// The same for all answers of a connection together. On a connection for short calls it is always [`WIDE`].
    pub(in crate::source) connection_window: NonZeroU32,
}

/// The largest window in HTTP/2. If each stream has a small window of its own, the connection's window must never be
/// what stops it. Otherwise clients that do not read their streams would stop those that do.
pub(in crate::source) const WIDE: NonZeroU32 = NonZeroU32::new((1 << 31) - 1).expect("not zero");

/// Why there is no connection to a member.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub(in crate::source) enum LinkError {
    /// Name resolution, TCP or TLS failed.
    #[error("{endpoint}: {cause}")]
    Connect { endpoint: Endpoint, cause: Arc<io::Error> },
    /// There was no answer in time.
    #[error("{endpoint}: no connection within {}", humantime::format_duration(*.after))]
    Timeout { endpoint: Endpoint, after: Duration },
    /// The other side does not speak HTTP/2, or closed the connection.
    #[error("{endpoint}: {cause}")]
    Http2 { endpoint: Endpoint, cause: String },
}

/// Sends calls on an open connection.
#[derive(Clone)]
pub(super) enum Sender {
    /// hyper's client, which pumps both directions of a stream by itself.
    Streams(SendRequest<RequestBody>, Arc<StreamLimit>),
    /// Our own client, for calls that end soon: it needs no task for a call.
    Calls(Client),
}

impl Sender {
    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::Streams(sender, _) => sender.is_closed(),
            Self::Calls(client) => client.is_closed(),
        }
    }

    /// How many calls the member accepts at once.
    pub(super) fn most(&self) -> usize {
        match self {
            Self::Streams(_, limit) => limit.get(),
            Self::Calls(client) => client.most(),
        }
    }
}

/// An open connection.
pub(super) struct Opened {
    pub(super) sender: Sender,
    /// Ready when the connection has ended.
    pub(super) end: oneshot::Receiver<()>,
}

/// How many calls a member accepts at once on a connection: zero until it has reported it.
#[derive(Debug, Default)]
pub(super) struct StreamLimit {
    most: AtomicUsize,
    /// Woken when the limit may have changed.
    waker: AtomicWaker,
}

impl StreamLimit {
    pub(super) fn get(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }
}

/// Connects and waits for the member's settings. Cancel safe: a dropped attempt leaves nothing behind.
pub(super) async fn open(
    endpoint: &Endpoint,
    settings: &Settings,
    lane: names::Lane,
    kind: Kind,
) -> Result<Opened, LinkError> {
    let attempt = async {
        let failed = |cause: io::Error| LinkError::Connect { endpoint: endpoint.clone(), cause: Arc::new(cause) };
        let stream = settings.dialler.dial(endpoint, Speaks::Http2).await.map_err(failed)?;
        match kind {
            Kind::Short => greet_calls(stream, endpoint, settings, lane).await,
            Kind::Streams => greet(stream, endpoint, settings, lane).await,
        }
    };
    match tokio::time::timeout(settings.connect_timeout, attempt).await {
        Ok(result) => result,
        Err(_) => Err(LinkError::Timeout { endpoint: endpoint.clone(), after: settings.connect_timeout }),
    }
}

/// The error for a connection that closed before a call could be sent on it.
pub(super) fn broken(endpoint: &Endpoint, error: &(dyn Error + 'static)) -> LinkError {
    LinkError::Http2 { endpoint: endpoint.clone(), cause: chain(error) }
}

async fn greet(
    stream: impl ByteStream,
    endpoint: &Endpoint,
    settings: &Settings,
    lane: names::Lane,
) -> Result<Opened, LinkError> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(settings.stream_window.get())
        .initial_connection_window_size(settings.connection_window.get())
        // The member's first settings replace this, so any other value came from the member.
        .initial_max_send_streams(0)
        .max_header_list_size(MAX_HEADERS);
    if let Some(keepalive) = settings.keepalive {
        builder
            .keep_alive_interval(keepalive.interval)
            .keep_alive_timeout(keepalive.timeout)
            .keep_alive_while_idle(keepalive.while_idle);
    }
    let limit = Arc::new(StreamLimit::default());
    let stream = Heard { inner: stream, limit: limit.clone(), heard: false };
    let (sender, connection) =
        builder.handshake(TokioIo::new(stream)).await.map_err(|error| broken(endpoint, &error))?;
    let (settled, greeting) = oneshot::channel();
    let (ended, end) = oneshot::channel();
    let (known, at) = (limit.clone(), endpoint.clone());
    // Ends when the connection breaks, or when the last sender is dropped and the last call has ended.
    tokio::spawn(async move {
        let _open = Open::count(lane);
        let mut settled = Some(settled);
        let mut connection = pin!(connection);
        let result = poll_fn(|cx| {
            known.waker.register(cx.waker());
            let polled = connection.as_mut().poll(cx);
            let most = connection.current_max_send_streams();
            known.most.store(most, Ordering::Relaxed);
            if most > 0
                && let Some(settled) = settled.take()
            {
                // Nobody waits if the attempt was given up.
                let _ = settled.send(());
            }
            polled
        })
        .await;
        if let Err(error) = result {
            tracing::debug!(endpoint = %at, error = chain(&error), "Lost the connection upstream");
        }
        drop(ended);
    });
    match greeting.await {
        Ok(()) => Ok(Opened { sender: Sender::Streams(sender, limit), end }),
        Err(_) => Err(ended_early(endpoint)),
    }
}

/// The same with our own client.
async fn greet_calls(
    stream: impl ByteStream,
    endpoint: &Endpoint,
    settings: &Settings,
    lane: names::Lane,
) -> Result<Opened, LinkError> {
    let pings = |Keepalive { interval, timeout, while_idle }| Pings { interval, timeout, while_idle };
    let limits = ClientLimits {
        stream_window: settings.stream_window.get(),
        max_header_list: MAX_HEADERS,
        keepalive: settings.keepalive.map(pings),
    };
    let (client, driver, greeting) = Client::start(stream, limits);
    let (ended, end) = oneshot::channel();
    let at = endpoint.clone();
    // Ends when the connection breaks, or when the last client is dropped and the last call has ended.
    tokio::spawn(async move {
        let _open = Open::count(lane);
        if let Err(error) = driver.await {
            tracing::debug!(endpoint = %at, %error, "Lost the connection upstream");
        }
        drop(ended);
    });
    match greeting.await {
        Ok(()) => Ok(Opened { sender: Sender::Calls(client), end }),
        Err(_) => Err(ended_early(endpoint)),
    }
}

fn ended_early(endpoint: &Endpoint) -> LinkError {
    LinkError::Http2 {
        endpoint: endpoint.clone(),
        cause: "the connection ended before the member sent its HTTP/2 settings; is this etcd's client port, and does it need https:// or another certificate?"
            .into(),
    }
}

/// Counts an open connection.
struct Open(names::Lane);

impl Open {
    fn count(lane: names::Lane) -> Self {
        gauge!(names::UPSTREAM_CONNECTIONS, names::Lane::LABEL => lane.as_str()).increment(1.0);
        Self(lane)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        gauge!(names::UPSTREAM_CONNECTIONS, names::Lane::LABEL => self.0.as_str()).decrement(1.0);
    }
}

/// Wakes the connection's owner when the member's first frames were read, since HTTP/2's client does not report
/// settings by itself.
struct Heard<S> {
    inner: S,
    limit: Arc<StreamLimit>,
    heard: bool,
}

impl<S: ByteStream> AsyncRead for Heard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buffer);
        if self.limit.get() == 0 {
            self.heard |= buffer.filled().len() > before;
            // A reader that reads again has processed what it read before.
            if polled.is_pending() && std::mem::take(&mut self.heard) {
                self.limit.waker.wake();
            }
        }
        polled
    }
}

impl<S: ByteStream> AsyncWrite for Heard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
