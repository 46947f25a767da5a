//! The accept loops of a port, one per address. Only this file and `secure`, which starts TLS, deal with TCP.
//!
//! Serving a connection is in `serve`. Always holds: an error of one connection does not end the loop.

use std::{future::ready, io, num::NonZeroUsize, sync::Arc, time::Duration};

use futures_util::future::join_all;
use http::{Request, Response};
use hyper::service::Service;
use metrics::counter;
use tokio::net::TcpListener;

use super::{
    Bound, Listener, Opened, Server, Stop,
    quiet::Quiet,
    secure::{self, PortStream},
};
use crate::{
    batch::{self, Batcher},
    front::body::{BoxError, RequestBody},
    telemetry::names::{self, Port},
    tls,
};

/// Pause after a system error such as too many open files: other connections must close first.
const SYSTEM_PAUSE: Duration = Duration::from_millis(500);

impl Bound {
    /// Serves until `stop.accept`, or until all connections were asked to leave after `stop.leave`; and then until all
    /// connections have finished or `stop.abort`. See [`Server::new`] for `service`.
    pub async fn serve<S, B>(self, service: S, stop: Stop)
    where
        S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: http_body::Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let Self { listeners, config, connections, pacing } = self;
        let (tls, terms) = (config.tls.clone(), Terms { port: config.port, limit: config.max_connections });
        let batcher = config.batcher.clone();
        let closed = stop.accept.child_token();
        let stop = Stop { accept: closed.clone(), ..stop };
        let server = Server::paced(service, config, connections, stop.clone(), pacing);
        let accepting = join_all(listeners.into_iter().map(|Listener { socket, address }| {
            let tls = tls.clone().filter(|_| address.secure);
            accept(socket, tls, batcher.as_ref(), terms, &server, &stop)
        }));
        // A client that knows no other relay comes back here. If it were refused, it would wait longer and longer
        // between its attempts, and its leases would end before it comes to the next process.
        let leaving = async {
            // Both branches are cancel safe. If both are ready, clients know another relay: all of them leave within
            // the port's spread, and not in the short time of those who came back.
            tokio::select! {
                biased;
                () = closed.cancelled() => return,
                () = stop.leave.cancelled() => {}
            }
            if closed.run_until_cancelled(server.ask_present()).await.is_some() {
                closed.cancel();
            }
        };
        tokio::join!(accepting, leaving);
        server.finish().await;
    }
}

/// The description of a port in the log.
#[derive(Clone, Copy)]
struct Terms {
    port: Port,
    limit: NonZeroUsize,
}

/// Accepts connections at one address until the port stops.
async fn accept<S, B>(
    listener: TcpListener,
    tls: Option<tls::Server>,
    batcher: Option<&Arc<Batcher>>,
    Terms { port, limit }: Terms,
    server: &Server<S>,
    stop: &Stop,
) where
    S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let (troubles, handshakes) = (Quiet::default(), Arc::new(Quiet::default()));
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
                counter!(names::ACCEPT_ERRORS, Port::LABEL => port.as_str()).increment(1);
                if troubles.may_log() {
                    tracing::error!(port = port.as_str(), %error, "Cannot accept connections; raise the limit on open files or lower --max-connections");
                }
                tokio::select! {
                    () = stop.accept.cancelled() => break,
                    () = tokio::time::sleep(SYSTEM_PAUSE) => continue,
                }
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "Cannot set TCP_NODELAY");
        }
        let served = match &tls {
            None => {
                let stream = batch::Stream::new(stream, batcher);
                let (switch, stream) = (stream.switch(), PortStream::Plain(stream));
                server.serve_when(ready(Some(Opened { switch, ..Opened::anonymous(stream) })), peer)
            }
            Some(tls) => {
                let opening = secure::open(stream, peer, port, tls.clone(), batcher.cloned(), handshakes.clone());
                server.serve_when(opening, peer)
            }
        };
        if let Err(refused) = served
            && troubles.may_log()
        {
            tracing::warn!(port = port.as_str(), limit, "Closing new connections: {refused}");
        }
    }
}

/// Whether an error of `accept` concerns only the connection that was being accepted.
fn is_the_peers(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}
