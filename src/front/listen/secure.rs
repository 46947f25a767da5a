//! The beginning of a connection to a port with TLS, from its first byte to the end of the handshake.
//!
//! The handshake itself is in `crate::tls`. Called for each accepted connection before anything else is read. Always
//! holds: a client that sends nothing costs only a socket, and is closed after [`PortConfig::FIRST_BYTES`]. A client
//! that does not use TLS gets an answer that says so. Failures are counted, and logged at a limited rate.

use std::{net::SocketAddr, sync::Arc};

use metrics::counter;
use tokio::{net::TcpStream, time::timeout};

use super::{
    PortConfig,
    mistaken::{self, WANTS_TLS},
    quiet::Quiet,
    serve::{Opened, turned_away},
};
use crate::{
    batch::{self, Batcher},
    telemetry::names::{self, Handshake, Port, Turned},
    tls::{self, Accepted, HandshakeError},
};

/// The stream of bytes that a port serves.
pub(super) type PortStream = tls::Stream<batch::Stream, tls::ServerStream<batch::Stream>>;

/// Opens a connection with TLS. `None` if there is nothing to serve. Cancel safe: dropping it closes the connection.
pub(super) async fn open(
    stream: TcpStream,
    peer: SocketAddr,
    port: Port,
    tls: tls::Server,
    batcher: Option<Arc<Batcher>>,
    troubles: Arc<Quiet>,
) -> Option<Opened<PortStream>> {
    let mut first = [0];
    // The bytes stay in the socket.
    match timeout(PortConfig::FIRST_BYTES, stream.peek(&mut first)).await {
        Ok(Ok(1..)) => {}
        Ok(Ok(0)) => return None,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "Connection broke before it sent anything");
            return None;
        }
        Err(_) => {
            turned_away(port, Turned::Silent);
            tracing::debug!(%peer, "Closed a connection that sent nothing");
            return None;
        }
    }
    if first[0] != mistaken::TLS {
        count(port, Handshake::Plain);
        if troubles.may_log() {
            tracing::warn!(port = port.as_str(), %peer, "A client does not use TLS, which this port requires");
        }
        mistaken::answer(stream, WANTS_TLS).await;
        return None;
    }
    let stream = batch::Stream::new(stream, batcher.as_ref());
    let switch = stream.switch();
    match tls.handshake(stream).await {
        Ok(Accepted { stream, names, resumed }) => {
            count(port, if resumed { Handshake::Resumed } else { Handshake::Full });
            Some(Opened { stream: tls::Stream::Tls(Box::new(stream)), switch, certificate: names })
        }
        Err(error) => {
            count(
                port,
                match error {
                    HandshakeError::Refused(_) => Handshake::Refused,
                    HandshakeError::Timeout => Handshake::Timeout,
                    HandshakeError::Crowded => Handshake::Crowded,
                    _ => Handshake::Failed,
                },
            );
            if troubles.may_log() {
                tracing::warn!(port = port.as_str(), %peer, %error, "TLS handshake with a client failed");
            } else {
                tracing::debug!(port = port.as_str(), %peer, %error, "TLS handshake with a client failed");
            }
            None
        }
    }
}

fn count(port: Port, outcome: Handshake) {
    counter!(names::TLS_HANDSHAKES, Port::LABEL => port.as_str(), Handshake::LABEL => outcome.as_str()).increment(1);
}
