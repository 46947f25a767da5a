//! The accept loop and the life of one connection.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, TryFutureExt as _};
use http::{Request, Response};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::counter;
use tokio::{net::TcpStream, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Bound, ClientAddr, Config,
    connections::{ConnectionId, Listed},
    http2::{self, Body as Http2Body},
    lasting::{self, Takeover},
    preface::{self, Protocol},
    socket::{Socket, Terms},
};
use crate::{
    front::{
        body::{BoxError, RequestBody},
        signal::Signal,
    },
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
        S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: http_body::Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let Self { listener, config, permits, connections, .. } = self;
        let config = Arc::new(config);
        let tasks = TaskTracker::new();
        let signals = Signals { accept: Signal::of(stop.accept.clone()), abort: Signal::of(stop.abort.clone()) };
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
            let (spawner, signals) = (tasks.clone(), signals.clone());
            tasks.spawn(async move {
                let Stop { accept, abort } = stop;
                // Dropping a connection in the middle cuts it off, which is what abort is for.
                let connection = connection(stream, peer, listed, &service, &config, &accept);
                let Some(Some((next, listed))) = abort.run_until_cancelled(connection).await else { return };
                let log = move |result: Result<(), BoxError>| {
                    if let Err(error) = result {
                        tracing::debug!(%peer, error = &*error, "Connection ended with an error");
                    }
                    drop((listed, permit));
                };
                // In a task of its own, since this one is as large as what reads requests.
                match next {
                    Next::Lasting(socket, response) => {
                        spawner.spawn(lasting::Stream::new(socket, *response, signals.abort.listener()).map(log));
                    }
                    Next::Http2(socket, id) => {
                        let service = move |request: Request<Http2Body>| {
                            service.call(request_of(request.map(RequestBody::Http2), peer, id)).map_err(Into::into)
                        };
                        let (stop, abort) = (signals.accept.listener(), signals.abort.listener());
                        let connection = http2::Connection::new(socket, service, limits(&config), stop, abort);
                        spawner.spawn(connection.map_err(Into::into).map(log));
                    }
                }
            });
        }
        drop(listener);
        tasks.close();
        tasks.wait().await;
    }
}

/// The same for streams and connections, of which there are thousands.
#[derive(Clone, Debug)]
struct Signals {
    accept: Signal,
    abort: Signal,
}

/// Who goes on with a connection.
enum Next<B> {
    /// An answer that took it over.
    Lasting(Socket, Box<Response<B>>),
    Http2(Socket, ConnectionId),
}

fn limits(config: &Config) -> http2::Limits {
    http2::Limits {
        max_streams: config.max_streams.get(),
        max_header_list: MAX_HEADERS,
        stream_window: STREAM_WINDOW,
        connection_window: CONNECTION_WINDOW,
        keepalive: config.keepalive,
    }
}

/// A request with what handlers want to know of its connection.
fn request_of(mut request: Request<RequestBody>, peer: SocketAddr, id: ConnectionId) -> Request<RequestBody> {
    request.extensions_mut().insert(ClientAddr(peer));
    request.extensions_mut().insert(id);
    request
}

/// Serves a connection to its end, or until it is known who goes on with it.
async fn connection<S, B>(
    stream: TcpStream,
    peer: SocketAddr,
    listed: Listed,
    service: &S,
    config: &Config,
    stop: &CancellationToken,
) -> Option<(Next<B>, Listed)>
where
    S: Service<Request<RequestBody>, Response = Response<B>> + Send + Sync + 'static,
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
    let result = match protocol {
        Protocol::Http1 => {
            let call = |request: Request<Incoming>| service.call(request_of(request.map(RequestBody::Http1), peer, id));
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
                    return Some((Next::Lasting(socket, Box::new(response)), listed));
                }
                Err(result) => result,
            }
        }
        Protocol::Http2 => return Some((Next::Http2(socket, id), listed)),
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
