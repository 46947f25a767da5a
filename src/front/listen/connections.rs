//! The open connections of all ports, for `/debug/state` and for gauges, and [`Known`], the information about the
//! client of each.
//!
//! Always holds: a connection is listed exactly while its [`Listed`] exists. The lock is held for at most one page of
//! connections. What a client says about itself is cut to a few bytes, escaped, and taken only from its first request,
//! so later requests cost no more than a check.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    ops::Bound::{Excluded, Unbounded},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Instant, SystemTime},
};

use http::{HeaderMap, Uri, header};
use metrics::{counter, gauge};
use parking_lot::Mutex;
use serde::Serialize;

use crate::{
    front::users::TokenKey,
    telemetry::names::{self, Port},
    tls,
};

/// Longest agent name that is kept, in bytes. Those of libraries are shorter.
const MOST_AGENT: usize = 128;
/// Longest path of a lasting answer that is kept, in bytes.
const MOST_REQUEST: usize = 256;

/// The number of a connection in this process, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// All open connections.
#[derive(Debug, Default)]
pub struct Connections {
    last: AtomicU64,
    open: Mutex<BTreeMap<ConnectionId, Connection>>,
}

#[derive(Clone, Debug)]
struct Connection {
    port: Port,
    peer: SocketAddr,
    since: SystemTime,
    opened: Instant,
    known: Arc<Known>,
}

/// What is known about a connection's client.
#[derive(Debug, Default)]
pub(super) struct Known {
    protocol: OnceLock<Spoken>,
    agent: OnceLock<Option<Box<str>>>,
    token: OnceLock<TokenKey>,
    certificate: OnceLock<Arc<tls::Names>>,
    lasting: OnceLock<Box<str>>,
}

/// The protocol of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Spoken {
    Http1,
    Http2,
}

/// A listed connection. Its details are made on request, since a search skips most connections.
#[derive(Debug)]
pub struct Seen {
    /// The number of the connection.
    pub id: ConnectionId,
    connection: Connection,
}

/// What `/debug/state` shows of a connection itself.
#[derive(Clone, Debug, Serialize)]
pub struct ConnectionStats {
    /// The number of the connection.
    #[serde(serialize_with = "number")]
    pub id: ConnectionId,
    /// The kind of port it is connected to.
    pub port: &'static str,
    /// The client's address.
    pub peer: String,
    /// When it was opened.
    pub since: String,
    /// How long it has been open.
    pub open_seconds: u64,
    protocol: Option<Spoken>,
    /// The client's name for itself, escaped.
    pub agent: Option<Box<str>>,
    /// The path of the answer that has the connection for itself.
    pub request: Option<Box<str>>,
    /// The key by which the client's user can be found.
    #[serde(skip)]
    pub token: Option<TokenKey>,
    /// The names in its certificate.
    #[serde(skip)]
    pub certificate: Option<Arc<tls::Names>>,
}

impl Connections {
    /// The number of open connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.lock().len()
    }

    /// Whether no connection is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.lock().is_empty()
    }

    /// Whether this connection is open.
    #[must_use]
    pub fn contains(&self, id: ConnectionId) -> bool {
        self.open.lock().contains_key(&id)
    }

    /// The first `most` connections that were opened after `after`, in the order of opening.
    #[must_use]
    pub fn after(&self, after: ConnectionId, most: usize) -> Vec<Seen> {
        let open = self.open.lock();
        let rest = open.range((Excluded(after), Unbounded));
        rest.take(most).map(|(id, connection)| Seen { id: *id, connection: connection.clone() }).collect()
    }

    pub(super) fn open(self: &Arc<Self>, port: Port, peer: SocketAddr) -> Listed {
        let id = ConnectionId(self.last.fetch_add(1, Ordering::Relaxed) + 1);
        let known = Arc::<Known>::default();
        let connection =
            Connection { port, peer, since: SystemTime::now(), opened: Instant::now(), known: known.clone() };
        self.open.lock().insert(id, connection);
        counter!(names::CONNECTIONS_ACCEPTED, Port::LABEL => port.as_str()).increment(1);
        gauge!(names::CONNECTIONS, Port::LABEL => port.as_str()).increment(1.0);
        Listed { id, port, known, connections: self.clone() }
    }
}

impl Seen {
    /// The details of the connection.
    #[must_use]
    pub fn stats(&self) -> ConnectionStats {
        let Connection { port, peer, since, opened, known } = &self.connection;
        ConnectionStats {
            id: self.id,
            port: port.as_str(),
            peer: peer.to_string(),
            since: humantime::format_rfc3339_seconds(*since).to_string(),
            open_seconds: opened.elapsed().as_secs(),
            protocol: known.protocol.get().copied(),
            agent: known.agent.get().cloned().flatten(),
            request: known.lasting.get().cloned(),
            token: known.token.get().copied(),
            certificate: known.certificate.get().cloned(),
        }
    }
}

impl Known {
    pub(super) fn speaks(&self, protocol: Spoken) {
        // The protocol never changes, so an earlier value is the same.
        let _ = self.protocol.set(protocol);
    }

    pub(super) fn showed(&self, certificate: &Arc<tls::Names>) {
        let _ = self.certificate.set(certificate.clone());
    }

    /// Records a request: what the first one says about its client, and the first token that is sent.
    pub(super) fn asked(&self, headers: &HeaderMap) {
        self.agent.get_or_init(|| headers.get(header::USER_AGENT).map(|agent| shown(agent.as_bytes(), MOST_AGENT)));
        if self.token.get().is_none()
            && let Some(token) = TokenKey::of(headers)
        {
            // Another request may have been first.
            let _ = self.token.set(token);
        }
    }

    /// Records that a lasting answer has taken over the connection.
    pub(super) fn lasts(&self, uri: &Uri) {
        let path = uri.path_and_query().map_or(uri.path(), |path| path.as_str());
        let _ = self.lasting.set(shown(path.as_bytes(), MOST_REQUEST));
    }
}

/// The beginning of a client's text, with unprintable characters escaped.
fn shown(bytes: &[u8], most: usize) -> Box<str> {
    let escaped = bytes[..bytes.len().min(most)].escape_ascii();
    if bytes.len() > most { format!("{escaped}…").into() } else { escaped.to_string().into() }
}

fn number<S: serde::Serializer>(id: &ConnectionId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(id.0)
}

/// A connection's entry in the list. Dropping it removes the entry.
pub(super) struct Listed {
    pub(super) id: ConnectionId,
    pub(super) known: Arc<Known>,
    port: Port,
    connections: Arc<Connections>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.connections.open.lock().remove(&self.id);
        gauge!(names::CONNECTIONS, Port::LABEL => self.port.as_str()).decrement(1.0);
    }
}

impl fmt::Debug for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Listed").field(&self.id).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(value: &[u8]) -> Option<Box<str>> {
        let known = Known::default();
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, http::HeaderValue::from_bytes(value).expect("a value"));
        known.asked(&headers);
        // Later requests make no difference.
        headers.insert(header::USER_AGENT, http::HeaderValue::from_static("another"));
        known.asked(&headers);
        known.agent.get().cloned().flatten()
    }

    #[test]
    fn an_agent_is_that_of_the_first_request_cut_and_escaped() {
        assert_eq!(agent(b"grpc-go/1.71.1").as_deref(), Some("grpc-go/1.71.1"));
        assert_eq!(agent(b"<b>\xff\"").as_deref(), Some(r#"<b>\xff\""#));
        let long = agent(&vec![0xff; 1 << 16]).expect("an agent");
        assert_eq!(long.len(), 4 * MOST_AGENT + "…".len());
        let known = Known::default();
        known.asked(&HeaderMap::new());
        assert_eq!(known.agent.get(), Some(&None));
    }
}
