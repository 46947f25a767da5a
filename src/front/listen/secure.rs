//! The beginning of a connection to a port with TLS: from its first byte to the end of the handshake.
//!
//! Not here: the handshake itself, see `crate::tls`. Called by the accept loop's connections before anything else is read.
//! Always holds: a client that sends nothing costs only a socket, and is closed after [`PortConfig::FIRST_BYTES`]; a client that does not
//! speak TLS is told so; failures are counted, and logged now and then.

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
    telemetry::names::{self, Handshake, Port, Turned},
    tls::{self, Accepted, HandshakeError},
};

/// What a port serves.
pub(super) type PortStream = tls::Stream<TcpStream, tls::ServerStream<TcpStream>>;

/// Opens a connection over TLS. `None` where there is none to serve. Cancel safe: dropped, the connection is closed.
pub(super) async fn open(
    stream: TcpStream,
    peer: SocketAddr,
    port: Port,
    tls: tls::Server,
    troubles: Arc<Quiet>,
) -> Option<Opened<PortStream>> {
    let mut first = [0];
    // Left in the socket.
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
            tracing::warn!(port = port.as_str(), %peer, "A client does not speak TLS, which this port requires");
        }
        mistaken::answer(stream, WANTS_TLS).await;
        return None;
    }
    match tls.handshake(stream).await {
        Ok(Accepted { stream, names, resumed }) => {
            count(port, if resumed { Handshake::Resumed } else { Handshake::Full });
            Some(Opened { stream: tls::Stream::Tls(Box::new(stream)), certificate: names })
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
                tracing::warn!(port = port.as_str(), %peer, %error, "No TLS connection to a client");
            } else {
                tracing::debug!(port = port.as_str(), %peer, %error, "No TLS connection to a client");
            }
            None
        }
    }
}

fn count(port: Port, outcome: Handshake) {
    counter!(names::TLS_HANDSHAKES, Port::LABEL => port.as_str(), Handshake::LABEL => outcome.as_str()).increment(1);
}
