//! The life of one connection over any stream of bytes.
//!
//! Connections come from `accept`. A simulation uses the same [`Server`] for streams in memory. Always holds: each
//! connection that is served is listed and holds one of the permits until its last task has ended.

use std::{
    fmt,
    future::{poll_fn, ready},
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
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
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::{AbortOnDropHandle, TaskTracker},
};

use super::{
    ClientAddr, Connected, PortConfig,
    clients::Clients,
    connections::{Connections, Known, Listed, Spoken},
    lasting::{self, Takeover},
    mistaken::{self, WANTS_NO_TLS},
    pacing::Pacing,
    preface::{self, Protocol},
    socket::{Socket, Terms},
    turns::Turns,
};
use crate::{
    batch,
    front::{
        body::{BoxError, RequestBody},
        order::Order,
        signal::{Listener, Signal},
    },
    http2,
    rpc::Caller,
    telemetry::names::{self, Overrun, Port, Turned},
    tls,
    types::ClientKey,
};

/// How long an HTTP/1.1 connection may take for the head of a request. This is longer than most pauses between two
/// scrapes.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// A connection that is ready for HTTP.
#[derive(Debug)]
pub struct Opened<T> {
    /// Its stream of bytes.
    pub stream: T,
    /// What lets it join its writes with those of other connections, if it can.
    pub switch: Option<batch::Switch>,
    /// The names in the client's certificate, if it was verified.
    pub certificate: Option<Arc<tls::Names>>,
}

impl<T> Opened<T> {
    /// A connection of a client without a certificate.
    pub fn anonymous(stream: T) -> Self {
        Self { stream, switch: None, certificate: None }
    }
}

/// How a port stops.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Open connections are asked to finish, one after the other. New ones are accepted until all were asked.
    pub leave: CancellationToken,
    /// No new connections are accepted, and open ones are asked to finish, one after the other.
    pub accept: CancellationToken,
    /// Open connections are cut off.
    pub abort: CancellationToken,
}

/// Why a connection is not served. It must be closed, and is already counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// The port has reached its limit of connections.
    #[error("the limit of connections is reached (--max-connections)")]
    Limit,
    /// The client has reached its limit of connections to the port.
    #[error("{0} has reached the limit of connections per client (--max-connections-per-client)")]
    Client(IpAddr),
}

/// Serves the connections of one port with one service.
pub struct Server<S> {
    service: S,
    config: Arc<PortConfig>,
    permits: Arc<Semaphore>,
    clients: Arc<Clients>,
    connections: Arc<Connections>,
    tasks: TaskTracker,
    stop: Stop,
    abort: Signal,
    pacing: Arc<Pacing>,
    _ages: AbortOnDropHandle<()>,
}

impl<S> Server<S> {
    /// A server without connections. `service` is cloned for each connection. Its requests carry their connection; see [`Connected::of`].
    /// `connections` lists those of all ports.
    ///
    /// # Panics
    /// Panics outside a tokio runtime.
    pub fn new(service: S, config: PortConfig, connections: Arc<Connections>, stop: Stop) -> Self {
        let pacing = config.pacing();
        Self::paced(service, config, connections, stop, pacing)
    }

    /// The same, with a pacing that is shared.
    pub(super) fn paced(
        service: S,
        config: PortConfig,
        connections: Arc<Connections>,
        stop: Stop,
        pacing: Arc<Pacing>,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(config.max_connections.get().min(Semaphore::MAX_PERMITS)));
        // A signal is cheaper than a token for thousands of connections.
        let abort = Signal::of(stop.abort.clone());
        let old = pacing.clone();
        let _ages = AbortOnDropHandle::new(tokio::spawn(async move { old.ask_the_old().await }));
        let clients = Clients::new(config.max_connections_per_client);
        let tasks = TaskTracker::new();
        Self { service, config: Arc::new(config), permits, clients, connections, tasks, stop, abort, pacing, _ages }
    }

    /// Serves the client at `stream` in a task, until one side ends or the port stops.
    ///
    /// # Errors
    /// Fails if the port or the client has too many connections; the stream is dropped.
    pub fn serve<T, B>(&self, stream: T, peer: SocketAddr) -> Result<(), Refused>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: http_body::Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        self.serve_when(ready(Some(Opened::anonymous(stream))), peer)
    }

    /// The same for a connection that must be opened first, as with TLS. It counts as a connection meanwhile. `opening`
    /// is dropped when the port stops, and must limit its own time.
    ///
    /// # Errors
    /// Fails if the port or the client has too many connections; `opening` is dropped.
    pub fn serve_when<T, B>(
        &self,
        opening: impl Future<Output = Option<Opened<T>>> + Send + 'static,
        peer: SocketAddr,
    ) -> Result<(), Refused>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: http_body::Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            turned_away(self.config.port, Turned::Limit);
            return Err(Refused::Limit);
        };
        let client = ClientKey::from(peer.ip());
        let Ok(counted) = self.clients.count(client) else {
            turned_away(self.config.port, Turned::Client);
            return Err(Refused::Client(peer.ip()));
        };
        let listed = self.connections.open(self.config.port, peer);
        let (service, config, stop) = (self.service.clone(), self.config.clone(), self.stop.clone());
        let (spawner, aborted, place) = (self.tasks.clone(), self.abort.clone(), self.pacing.join());
        self.tasks.spawn(async move {
            let held = (permit, counted);
            let Stop { accept, abort, .. } = stop;
            // Dropping the future cuts the connection off, which is what abort is for.
            let leave = place.token().clone();
            let connection = async {
                let opened = accept.run_until_cancelled(opening).await.flatten()?;
                let known = listed.known.clone();
                if let Some(certificate) = &opened.certificate {
                    known.showed(certificate);
                }
                let addr = ClientAddr(peer);
                let connected = Arc::new(Connected {
                    id: listed.id,
                    addr,
                    certificate: opened.certificate,
                    order: Order::new(),
                    caller: Arc::new(Caller { client: addr.key(), leave: Some(leave.clone()) }),
                });
                let origin = Origin { connected, known, leave };
                let (next, listed) = connection(opened.stream, origin, listed, &service, &config, &accept).await?;
                Some((next, listed, opened.switch))
            };
            let Some(Some((next, listed, switch))) = abort.run_until_cancelled(connection).await else { return };
            if let Some(switch) = switch {
                // Both kinds of connections flush in each turn.
                switch.join();
            }
            let log = move |result: Result<(), BoxError>| {
                if let Err(error) = result {
                    tracing::debug!(%peer, error = &*error, "Connection ended with an error");
                }
                drop((listed, held, place));
            };
            // In a separate task, because this one is large enough to read requests.
            match next {
                Next::Lasting(socket, turns, response) => {
                    spawner.spawn(lasting::ResponseWriter::new(socket, turns, *response, aborted.listener()).map(log));
                }
                Next::Http2(socket, origin) => {
                    let stop = Word::Leave(Box::pin(origin.leave.clone().cancelled_owned()));
                    let abort = Word::Abort(aborted.listener());
                    let service = move |request: Request<http2::Body>| {
                        service.call(origin.mark(request.map(RequestBody::Http2))).map_err(Into::into)
                    };
                    let connection = http2::Connection::new(socket, service, config.http2(), stop, abort);
                    let connection = connection.on_refusal(refused);
                    let connection = match &config.turns {
                        Some(turns) => connection.sharing(turns.clone(), client),
                        None => connection,
                    };
                    spawner.spawn(connection.map_err(Into::into).map(log));
                }
            }
        });
        Ok(())
    }

    /// Asks the connections that are there now to leave, within the port's spread.
    pub(super) async fn ask_present(&self) {
        self.pacing.ask_present().await;
    }

    /// Asks all connections to leave, within the port's spread, and waits until they have ended. No connection may be
    /// served after that.
    pub async fn finish(self) {
        self.tasks.close();
        let asked = async {
            self.pacing.ask_all().await;
            std::future::pending::<()>().await;
        };
        // Both branches are cancel safe.
        tokio::select! {
            () = self.tasks.wait() => {}
            () = asked => {}
        }
    }
}

impl<S> fmt::Debug for Server<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What follows after a connection's HTTP phase.
enum Next<T, B> {
    /// An answer has taken over the connection.
    Lasting(Socket<T>, Turns, Box<Response<B>>),
    Http2(Socket<T>, Origin),
}

/// An event that a connection waits for.
enum Word {
    Leave(Pin<Box<WaitForCancellationFutureOwned>>),
    Abort(Listener),
}

impl Future for Word {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.get_mut() {
            Self::Leave(token) => token.as_mut().poll(cx),
            Self::Abort(listener) => listener.poll(cx),
        }
    }
}

/// What handlers need to know about the connection of a request.
#[derive(Clone)]
struct Origin {
    connected: Arc<Connected>,
    known: Arc<Known>,
    /// Cancelled when the connection is asked to leave.
    leave: CancellationToken,
}

impl Origin {
    fn mark(&self, mut request: Request<RequestBody>) -> Request<RequestBody> {
        self.known.asked(request.headers());
        request.extensions_mut().insert(self.connected.clone());
        request
    }
}

/// Serves a connection to its end, or until a lasting answer takes it over.
async fn connection<T, S, B>(
    stream: T,
    origin: Origin,
    listed: Listed,
    service: &S,
    config: &PortConfig,
    stop: &CancellationToken,
) -> Option<(Next<T, B>, Listed)>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service<Request<RequestBody>, Response = Response<B>> + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let (ClientAddr(peer), leave) = (origin.connected.addr, origin.leave.clone());
    let terms = Terms { port: config.port, peer, write_stall: config.write_stall };
    let opened = tokio::select! {
        opened = timeout(PortConfig::FIRST_BYTES, preface::open(stream, terms)) => opened,
        () = stop.cancelled() => return None,
    };
    let (protocol, mut socket) = match opened {
        Ok(Ok(Some(opened))) => opened,
        Ok(Ok(None)) => return None,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "Connection broke before it sent anything");
            return None;
        }
        Err(_) => {
            turned_away(config.port, Turned::Silent);
            tracing::debug!(%peer, "Closed a connection that sent nothing");
            return None;
        }
    };
    let result = match protocol {
        Protocol::Tls => {
            turned_away(config.port, Turned::Tls);
            tracing::debug!(%peer, port = config.port.as_str(), "A client uses TLS on a port without TLS");
            mistaken::answer(socket, WANTS_NO_TLS).await;
            return None;
        }
        Protocol::Http1 => {
            origin.known.speaks(Spoken::Http1);
            let call = |request: Request<Incoming>| service.call(origin.mark(request.map(RequestBody::Http1)));
            let written = socket.told();
            let takeover = Arc::new(Takeover::new(written.clone()));
            let queue = config.turns.clone().map(|queue| (queue, origin.connected.addr.key()));
            let mut turns = Turns::new(queue, written);
            let offered = takeover.clone();
            let known = origin.known.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let (known, uri) = (known.clone(), request.uri().clone());
                offered.clone().offer(call(request), move || known.lasts(&uri))
            });
            let mut connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(config.http2().max_header_list as usize)
                // As Go's server writes them: clients of v2 may be scripts that read heads.
                .title_case_headers(config.port == Port::V2)
                .serve_connection(TokioIo::new(socket), service);
            let poll = |connection: Pin<&mut _>, cx: &mut Context<'_>| takeover.poll(connection, cx);
            let ask = http1::Connection::graceful_shutdown;
            match finish(Pin::new(&mut connection), &mut turns, poll, &leave, ask).await {
                Ok(response) => {
                    let socket = connection.into_parts().io.into_inner();
                    return Some((Next::Lasting(socket, turns, Box::new(response)), listed));
                }
                Err(result) => result,
            }
        }
        Protocol::Http2 => {
            origin.known.speaks(Spoken::Http2);
            return Some((Next::Http2(socket, origin), listed));
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, error = %error, "Connection ended with an error");
    }
    None
}

/// Drives a connection to its end; after `stop`, until its open requests are answered. The connection reads once more
/// before it is asked, since a request may have waited there for its turn.
async fn finish<C, T>(
    mut connection: Pin<&mut C>,
    turns: &mut Turns,
    mut poll: impl FnMut(Pin<&mut C>, &mut Context<'_>) -> Poll<T>,
    stop: &CancellationToken,
    ask: impl FnOnce(Pin<&mut C>),
) -> T {
    let mut ask = Some(ask);
    let mut stopped = pin!(stop.cancelled());
    poll_fn(|cx| {
        // While nobody has asked, this wakes the connection.
        let is_stopped = ask.is_some() && stopped.as_mut().poll(cx).is_ready();
        turns.poll(cx, |cx| {
            let outcome = poll(connection.as_mut(), cx);
            if outcome.is_pending()
                && is_stopped
                && let Some(ask) = ask.take()
            {
                ask(connection.as_mut());
                return poll(connection.as_mut(), cx);
            }
            outcome
        })
    })
    .await
}

/// Counts a request that a connection refused.
fn refused(bound: http2::Refused) {
    let reason = match bound {
        http2::Refused::Streams => Overrun::Streams,
        http2::Refused::Fields => Overrun::Fields,
        http2::Refused::Unanswered => Overrun::Unanswered,
    };
    counter!(names::REQUESTS_REFUSED, Overrun::LABEL => reason.as_str()).increment(1);
}

pub(super) fn turned_away(port: Port, reason: Turned) {
    counter!(
        names::CONNECTIONS_TURNED_AWAY,
        Port::LABEL => port.as_str(),
        Turned::LABEL => reason.as_str()
    )
    .increment(1);
}
