//! The accept loop of a port: where connections come from. TCP is known here and nowhere below, so a port that speaks TLS is this file
//! with a handshake before [`Server::serve`].
//!
//! Not here: what happens on a connection, see `serve`. Always holds: an error of one connection does not end the loop.

use std::{
    io,
    time::{Duration, Instant},
};

use http::{Request, Response};
use hyper::service::Service;
use metrics::counter;

use super::{Bound, Server, Stop};
use crate::{
    front::body::{BoxError, RequestBody},
    telemetry::names::{self, Port},
};

/// Pause after the system refused a connection, such as for too many open files: others must close first.
const SYSTEM_PAUSE: Duration = Duration::from_millis(500);
/// Between two log lines about the same trouble.
const LOG_PAUSE: Duration = Duration::from_secs(5);

impl Bound {
    /// Serves until `stop.accept`, and then until all connections have finished or `stop.abort`. See [`Server::new`] for `service`.
    pub async fn serve<S, B>(self, service: S, stop: Stop)
    where
        S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: http_body::Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let Self { listener, config, connections, .. } = self;
        let (port, limit) = (config.port, config.max_connections);
        let server = Server::new(service, config, connections, stop.clone());
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
                    counter!(names::ACCEPT_ERRORS, Port::LABEL => port.as_str()).increment(1);
                    if troubles.may_log() {
                        tracing::error!(port = port.as_str(), %error, "Cannot accept connections; raise the limit of open files or lower --max-connections");
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
            if let Err(refused) = server.serve(stream, peer)
                && troubles.may_log()
            {
                tracing::warn!(port = port.as_str(), limit, "Closing new connections: {refused}");
            }
        }
        drop(listener);
        server.finish().await;
    }
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
