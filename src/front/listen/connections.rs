//! The open connections of all ports, for `/debug/state`, and their gauges.
//!
//! Always holds: a connection is listed exactly while its [`Listed`] lives; the lock is held for the connections of one page at the most,
//! however many are open.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    ops::Bound::{Excluded, Unbounded},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Instant, SystemTime},
};

use metrics::{counter, gauge};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use crate::telemetry::names::{self, Port};

/// Names a connection within this process; never used twice. In the extensions of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// All open connections.
#[derive(Debug, Default)]
pub struct Connections {
    last: AtomicU64,
    open: Mutex<BTreeMap<ConnectionId, Connection>>,
}

#[derive(Clone, Copy, Debug)]
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
        self.open.lock().len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.lock().is_empty()
    }

    /// Whether this one is open.
    #[must_use]
    pub fn contains(&self, id: ConnectionId) -> bool {
        self.open.lock().contains_key(&id)
    }

    /// The first `most` connections that were opened after `after`, in this order, as JSON.
    #[must_use]
    pub fn after(&self, after: ConnectionId, most: usize) -> Vec<(ConnectionId, Map<String, Value>)> {
        let page: Vec<(ConnectionId, Connection)> = {
            let open = self.open.lock();
            open.range((Excluded(after), Unbounded)).take(most).map(|(id, connection)| (*id, *connection)).collect()
        };
        page.into_iter().map(|(id, connection)| (id, connection.describe(id))).collect()
    }

    pub(super) fn open(self: &Arc<Self>, port: Port, peer: SocketAddr) -> Listed {
        let id = ConnectionId(self.last.fetch_add(1, Ordering::Relaxed) + 1);
        self.open.lock().insert(id, Connection { port, peer, since: SystemTime::now(), opened: Instant::now() });
        counter!(names::CONNECTIONS_ACCEPTED, Port::LABEL => port.as_str()).increment(1);
        gauge!(names::CONNECTIONS, Port::LABEL => port.as_str()).increment(1.0);
        Listed { id, port, connections: self.clone() }
    }
}

impl Connection {
    fn describe(&self, id: ConnectionId) -> Map<String, Value> {
        Map::from_iter([
            ("id".to_owned(), json!(id.0)),
            ("port".to_owned(), json!(self.port.as_str())),
            ("peer".to_owned(), json!(self.peer.to_string())),
            ("since".to_owned(), json!(humantime::format_rfc3339_seconds(self.since).to_string())),
            ("open_seconds".to_owned(), json!(self.opened.elapsed().as_secs())),
        ])
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
        self.connections.open.lock().remove(&self.id);
        gauge!(names::CONNECTIONS, Port::LABEL => self.port.as_str()).decrement(1.0);
    }
}

impl fmt::Debug for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Listed").field(&self.id).finish()
    }
}
