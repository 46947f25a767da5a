//! The open connections of all ports, for `/debug/state`, and their gauges.
//!
//! Always holds: a connection is listed exactly while its [`Listed`] lives.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Instant, SystemTime},
};

use dashmap::DashMap;
use metrics::{counter, gauge};
use serde_json::{Map, Value, json};

use crate::telemetry::names::{self, Port};

/// Names a connection within this process; never used twice. In the extensions of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// All open connections.
#[derive(Debug, Default)]
pub struct Connections {
    last: AtomicU64,
    open: DashMap<ConnectionId, Connection>,
}

#[derive(Clone, Debug)]
struct Connection {
    port: Port,
    peer: SocketAddr,
    since: SystemTime,
    opened: Instant,
}

impl Connections {
    /// How many are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The connections, oldest first, `limit` at the most. `more` adds fields to a connection: what others know about it.
    pub fn describe(&self, limit: usize, more: impl Fn(ConnectionId) -> Map<String, Value>) -> Vec<Value> {
        let mut open: Vec<_> = self.open.iter().map(|entry| (*entry.key(), entry.value().clone())).collect();
        open.sort_unstable_by_key(|(id, _)| *id);
        open.truncate(limit);
        open.into_iter()
            .map(|(id, connection)| {
                let mut value = json!({
                    "id": id.0,
                    "port": connection.port.as_str(),
                    "peer": connection.peer.to_string(),
                    "since": humantime::format_rfc3339_seconds(connection.since).to_string(),
                    "open_seconds": connection.opened.elapsed().as_secs(),
                });
                if let Value::Object(value) = &mut value {
                    value.extend(more(id));
                }
                value
            })
            .collect()
    }

    pub(super) fn open(self: &Arc<Self>, port: Port, peer: SocketAddr) -> Listed {
        let id = ConnectionId(self.last.fetch_add(1, Ordering::Relaxed) + 1);
        self.open.insert(id, Connection { port, peer, since: SystemTime::now(), opened: Instant::now() });
        counter!(names::CONNECTIONS_ACCEPTED, Port::LABEL => port.as_str()).increment(1);
        gauge!(names::CONNECTIONS, Port::LABEL => port.as_str()).increment(1.0);
        Listed { id, port, connections: self.clone() }
    }
}

/// A place in the list; dropped, the connection is closed.
pub(super) struct Listed {
    pub(super) id: ConnectionId,
    port: Port,
    connections: Arc<Connections>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.connections.open.remove(&self.id);
        gauge!(names::CONNECTIONS, Port::LABEL => self.port.as_str()).decrement(1.0);
    }
}

impl fmt::Debug for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Listed").field(&self.id).finish()
    }
}
