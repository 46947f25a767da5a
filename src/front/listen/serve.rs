//! The accept loop and the life of one connection.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::{Service, service_fn},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use metrics::counter;
use tokio::{net::TcpStream, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Bound, ClientAddr, Config,
    connections::Listed,
    lasting::{self, Takeover},
    preface::{self, Protocol},
    socket::{Socket, Terms},
};
use crate::{
    front::{body::BoxError, signal::Signal},
    telemetry::names::{self, Port, Turned},
};

/// Pause after the system refused a connection, such as for too many open files: others must close first.
const SYSTEM_PAUSE: Duration = Duration::from_millis(500);
/// Between two log lines about the same trouble.
const LOG_PAUSE: Duration = Duration::from_secs(5);
/// How long an HTTP/1.1 connection may be without a whole head of a request: longer than most pauses between two scrapes.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// Largest size of a request's headers: etcd's tokens have some KiB.
const MAX_HEADERS: u32 = 64 << 10;
/// Windows for requests. A client's largest request is some MiB; many small ones share a connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// When a port stops.
#[derive(Clone, Debug)]
pub struct Stop {
    /// No new connections; open ones are asked to finish.
    pub accept: CancellationToken,
    /// Open connections are cut off.
    pub abort: CancellationToken,
}

impl Bound {
    /// Serves until `stop.accept`, and then until all connections have finished or `stop.abort`. `service` is cloned for each
    /// connection; its requests carry [`ClientAddr`] and [`super::ConnectionId`] as extensions.
    pub async fn serve<S, B>(self, service: S, stop: Stop)
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: http_body::Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let Self { listener, config, permits, connections, .. } = self;
        let config = Arc::new(config);
        let tasks = TaskTracker::new();
        let cut_off = Signal::of(stop.abort.clone());
        let mut troubles = Quiet::default();
        loop {
            // Both arms are cancel safe.
            let accepted = tokio::select! {
                biased;
                () = stop.accept.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_the_peers(&error) => continue,
                Err(error) => {
                    counter!(names::ACCEPT_ERRORS, Port::LABEL => config.port.as_str()).increment(1);
                    if troubles.may_log() {
                        tracing::error!(port = config.port.as_str(), %error, "Cannot accept connections; raise the limit of open files or lower --max-connections");
                    }
                    tokio::select! {
                        () = stop.accept.cancelled() => break,
                        () = tokio::time::sleep(SYSTEM_PAUSE) => continue,
                    }
                }
            };
            let Ok(permit) = permits.clone().try_acquire_owned() else {
                turned_away(config.port, Turned::Limit);
                if troubles.may_log() {
                    tracing::warn!(
                        port = config.port.as_str(),
                        limit = config.max_connections,
                        "Closing new connections: their largest number is reached (--max-connections)"
                    );
                }
                continue;
            };
            let listed = connections.open(config.port, peer);
            let (service, config, stop) = (service.clone(), config.clone(), stop.clone());
            let (spawner, cut_off) = (tasks.clone(), cut_off.clone());
            tasks.spawn(async move {
                let Stop { accept, abort } = stop;
                // Dropping a connection in the middle cuts it off, which is what abort is for.
                let connection = connection(stream, peer, listed, service, &config, &accept);
                let Some(Some((socket, response, listed))) = abort.run_until_cancelled(connection).await else {
                    return;
                };
                // In a task of its own, since this one is as large as what reads requests.
                let stream = lasting::Stream::new(socket, response, cut_off.listener());
                spawner.spawn(stream.map(move |result| {
                    if let Err(error) = result {
                        tracing::debug!(%peer, error = &*error, "Connection ended with an error");
                    }
                    drop((listed, permit));
                }));
            });
        }
        drop(listener);
        tasks.close();
        tasks.wait().await;
    }
}

/// Serves a connection to its end, or until an answer takes it over.
async fn connection<S, B>(
    stream: TcpStream,
    peer: SocketAddr,
    listed: Listed,
    service: S,
    config: &Config,
    stop: &CancellationToken,
) -> Option<(Socket, Response<B>, Listed)>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "Cannot set TCP_NODELAY");
    }
    let terms = Terms { port: config.port, peer, write_stall: config.write_stall };
    let opened = tokio::select! {
        opened = timeout(Config::FIRST_BYTES, preface::open(stream, terms)) => opened,
        () = stop.cancelled() => return None,
    };
    let (protocol, mut socket) = match opened {
        Ok(Ok(Some(opened))) => opened,
        Ok(Ok(None)) => return None,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "Connection broke before it said anything");
            return None;
        }
        Err(_) => {
            turned_away(config.port, Turned::Silent);
            tracing::debug!(%peer, "Closed a connection that said nothing");
            return None;
        }
    };
    let id = listed.id;
    let call = move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ClientAddr(peer));
        request.extensions_mut().insert(id);
        service.call(request)
    };
    let result = match protocol {
        Protocol::Http1 => {
            let takeover = Arc::new(Takeover::new(socket.written()));
            let offered = takeover.clone();
            let service = service_fn(move |request| offered.clone().offer(call(request)));
            let mut connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(MAX_HEADERS as usize)
                .serve_connection(TokioIo::new(socket), service);
            let poll = |connection: Pin<&mut _>, cx: &mut Context<'_>| takeover.poll(connection, cx);
            match finish(Pin::new(&mut connection), poll, stop, http1::Connection::graceful_shutdown).await {
                Ok(response) => {
                    let socket = connection.into_parts().io.into_inner().untold();
                    return Some((socket, response, listed));
                }
                Err(result) => result,
            }
        }
        Protocol::Http2 => {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_concurrent_streams(config.max_streams.get())
                .max_header_list_size(MAX_HEADERS)
                .max_send_buf_size(config.stream_buffer.get().min(u32::MAX as usize))
                // etcd sends none, and clients show it as metadata.
                .auto_date_header(false);
            if let Some(keepalive) = config.keepalive {
                builder.keep_alive_interval(keepalive.interval).keep_alive_timeout(keepalive.timeout);
            }
            let connection = pin!(builder.serve_connection(TokioIo::new(socket), service_fn(call)));
            finish(connection, Future::poll, stop, http2::Connection::graceful_shutdown).await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, error = %error, "Connection ended with an error");
    }
    None
}

/// Drives a connection to its end; after `stop`, to the end of what it has begun.
async fn finish<C, T>(
    mut connection: Pin<&mut C>,
    mut poll: impl FnMut(Pin<&mut C>, &mut Context<'_>) -> Poll<T>,
    stop: &CancellationToken,
    ask: impl FnOnce(Pin<&mut C>),
) -> T {
    let driven = stop.run_until_cancelled(poll_fn(|cx| poll(connection.as_mut(), cx))).await;
    match driven {
        Some(result) => result,
        None => {
            ask(connection.as_mut());
            poll_fn(|cx| poll(connection.as_mut(), cx)).await
        }
    }
}

pub(super) fn turned_away(port: Port, reason: Turned) {
    counter!(
        names::CONNECTIONS_TURNED_AWAY,
        Port::LABEL => port.as_str(),
        Turned::LABEL => reason.as_str()
    )
    .increment(1);
}

/// Whether an error of `accept` concerns only the connection that was about to be accepted.
fn is_the_peers(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

/// Lets a log line through now and then.
#[derive(Debug, Default)]
struct Quiet {
    last: Option<Instant>,
}

impl Quiet {
    fn may_log(&mut self) -> bool {
        let now = Instant::now();
        let may = self.last.is_none_or(|last| now.duration_since(last) >= LOG_PAUSE);
        if may {
            self.last = Some(now);
        }
        may
    }
}
