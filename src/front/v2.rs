//! etcd's v2 API over v3 data, for clients that were written for etcd 2.
//!
//! A v2 key is the v3 key of the same name, and an index is a revision. A directory exists if a key is below it, or if
//! its mark exists, the key `DIR/`. Reads come from one feed of all keys that begin with `/`. Each write is a single
//! transaction (`operation`). One task follows the feed and answers waits (`waits`). Keys expire by a transaction with
//! a compare (`expire`). Always holds: no write takes effect only in part, whoever else writes at the same time.

mod answer;
mod events;
mod expire;
mod fields;
mod forms;
mod keys;
mod listing;
mod listings;
mod log;
mod made;
mod making;
mod media;
mod members;
mod operation;
mod ordered;
mod outcome;
mod past;
mod path;
mod port;
mod reply;
mod server;
mod store;
mod text;
mod time;
mod tree;
mod users;
mod waits;

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use tokio_util::sync::CancellationToken;

use self::{
    forms::Forms, keys::Keys, listings::Listings, made::Made, past::Past, port::Shared, store::V3, users::Users,
    waits::Waits,
};
pub use self::{port::V2Port, reply::V2Body};
use super::{Inspect, access::Access, signal::Signal};
use crate::{
    hub::{Asker, Feed, Hub},
    rpc::GrpcService,
    types::{ClientKey, KeyRange},
};

/// The parts that the v2 API needs.
#[derive(Debug)]
pub struct Parts {
    /// The source of reads.
    pub hub: Arc<Hub>,
    /// Decides what a user may read.
    pub access: Access,
    /// The destination of writes.
    pub calls: GrpcService,
    /// The user that deletes expired keys, if etcd has users.
    pub own: Option<Own>,
    /// The URLs at which clients reach the v2 API.
    pub advertised: Vec<String>,
    /// Ends the tasks.
    pub stop: CancellationToken,
    /// Ends waits and streams before their connections end.
    pub streams: CancellationToken,
}

/// The relay's own etcd user.
#[derive(Clone)]
pub struct Own {
    /// Name.
    pub user: String,
    /// Password.
    pub password: String,
}

impl std::fmt::Debug for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Own").field("user", &self.user).finish_non_exhaustive()
    }
}

/// A task of the v2 API, with its name.
pub type Task = (&'static str, BoxFuture<'static, ()>);

/// Opens the feed of all keys with a v2 name, and creates the tasks that follow it. Called at most once per relay.
pub fn open(parts: &Parts) -> (Arc<Feed>, [Task; 2], Running) {
    let feed = parts.hub.always(KeyRange::prefix(Bytes::from_static(b"/")));
    let (waits, made) = (Waits::new(), Arc::new(Made::default()));
    let asker = Asker { client: ClientKey::RELAY, connection: 0 };
    let v3 = V3 { calls: parts.calls.clone(), token: None, asker, unseen: 0 };
    let follow = waits.clone().follow(feed.clone(), made.clone(), parts.stop.clone());
    let end = expire::run(feed.clone(), v3.clone(), parts.own.clone(), made.clone(), parts.stop.clone());
    let tasks = [("waits of v2", follow.boxed()), ("expiry of v2 keys", end.boxed())];
    let past = Past::new(parts.hub.upstream().clone(), feed.clone(), waits.clone());
    let listings = Listings::new(parts.hub.clone(), feed.clone());
    let keys = Arc::new(Keys { hub: parts.hub.clone(), feed: feed.clone(), waits, made, past, listings });
    (feed, tasks, Running { keys, v3 })
}

/// The v2 API while it follows its feed, before it is on a port.
#[derive(Debug)]
pub struct Running {
    keys: Arc<Keys>,
    v3: V3,
}

impl Running {
    /// The service for its port.
    ///
    /// # Panics
    /// Panics outside a tokio runtime.
    #[must_use]
    pub fn port(self, parts: Parts, inspect: Arc<dyn Inspect>) -> V2Port {
        let shared = Shared {
            keys: self.keys,
            v3: self.v3,
            users: Users::new(parts.access),
            forms: Forms::new(),
            inspect,
            advertised: parts.advertised,
            started: (SystemTime::now(), Instant::now()),
            stop: Signal::of(parts.streams),
        };
        V2Port { shared: Arc::new(shared) }
    }
}
