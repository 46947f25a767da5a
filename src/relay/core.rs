//! Wires the hub between its upstream and the calls that are answered from it.
//!
//! Not here: ports, and what is forwarded; see `relay`. Called by `relay`, and by simulations, which bring a simulated
//! cluster and connections. Always holds: the process is not ready while a configured feed does not serve.

use std::{sync::Arc, time::Duration};

use super::{LainletFeeds, OnDemand, RelayConfig};
use crate::{
    front::{
        access::{Access, Auth, INTERVAL},
        grpc::{EtcdApi, Members, Streams},
        session::Sessions,
        users::Users,
    },
    hub::{Feed, HistoryLimits, Hub, Limits, OutboxLimits, Pace, Shares, Standing, pulse, upstream::Upstream},
    rpc::GrpcService,
    shutdown::Phases,
    source::{Audit, Driver, DriverConfig},
    telemetry::{Hold, ReadyBoard},
    types::{KeyRange, UpstreamHeader},
    view::Lainlet,
};

/// The most deliveries that wait on one stream. What comes beyond it is read from the history later.
const OUTBOX_DELIVERIES: usize = 4096;
/// The most fills that run at once. Each is a watch for which etcd reads its past from disk.
const FILLS: usize = 16;

/// The core of a relay: all of it except its ports.
#[derive(Debug)]
pub struct Core {
    /// The feeds.
    pub hub: Arc<Hub>,
    /// Decides who may read what.
    pub access: Access,
    /// The calls that are answered from memory.
    pub api: EtcdApi,
    /// All calls that `api` does not answer.
    pub forward: GrpcService,
    /// The open watch streams.
    pub streams: Streams,
    /// The users of the tokens that clients send.
    pub users: Users,
    /// Through which the other fronts open watches.
    pub sessions: Sessions,
    /// Lainlet's views; `None` if they are off.
    pub lainlet: Option<Lainlet>,
    /// Names relays to clients; `None` if clients are told of etcd's members.
    pub relays: Option<Members>,
}

/// Makes the hub over `upstream`, opens the configured feeds, and makes the calls that are answered from them.
#[must_use]
pub fn wire(
    config: &RelayConfig,
    upstream: Arc<dyn Upstream>,
    confirm_patience: Duration,
    forward: GrpcService,
    own: GrpcService,
    phases: &Phases,
    ready: &ReadyBoard,
) -> Core {
    let header = Arc::new(UpstreamHeader::default());
    let (on_demand, on_demand_bytes, idle) = match config.feeds.on_demand {
        OnDemand::Allow { idle, max, bytes } => (Some(max.get()), bytes.get(), idle),
        OnDemand::Deny => (None, 0, OnDemand::IDLE),
    };
    let limits = Limits {
        history: HistoryLimits { bytes: config.feeds.history_bytes.get(), entries: config.feeds.history_entries.get() },
        outbox: OutboxLimits {
            bytes: config.grpc.stream_buffer.get(),
            deliveries: OUTBOX_DELIVERIES,
            watches: config.watches.max_per_stream.get(),
        },
        on_demand,
        on_demand_bytes,
        fills: FILLS,
        confirm_patience,
    };
    let driver = Driver::new(
        DriverConfig { idle, ..DriverConfig::default() },
        upstream.clone(),
        header.clone(),
        phases.upkeep.clone(),
        phases.upstream.clone(),
    );
    let hub_upstream = upstream.clone();
    let hub = Hub::new(limits, upstream, header, &phases.upkeep, Box::new(driver));
    for prefix in &config.feeds.prefixes {
        let feed = hub.open(KeyRange::prefix(prefix.clone()));
        phases.spawn_upkeep("readiness of a feed", hold_ready(feed, ready.clone()));
    }
    let access = Access::new(own, confirm_patience);
    phases.spawn_upkeep("access", access.clone().run(ready.clone()));
    phases.spawn_upkeep("age of the answer about access", access.clone().expire(hub.clone()));
    if hub_upstream.has_past() {
        phases.spawn_upkeep("audit of the feeds", Audit::new(hub.clone(), config.feeds.audit_interval).run());
    }
    phases.spawn_upkeep("pulse of the feeds", pulse::beat(hub.clone(), ready.clone()));
    phases.spawn_upkeep("permission of the relay", doubt_permission(access.clone(), hub.clone()));
    // Forwarded calls may change permissions, and their answers show whose a token is.
    let users = Users::default();
    let forward = access.noticing(users.noticing(forward));
    let streams = Streams::default();
    let pace = Pace::new(config.watches.progress_notify_interval);
    let learn = pace.clone().learn(hub_upstream, KeyRange::single(config.feeds.probe_key()));
    phases.spawn_upkeep("interval of progress", learn);
    let sessions = Sessions {
        hub: hub.clone(),
        access: access.clone(),
        shares: Shares::new(config.watches.max_per_client),
        pace,
        stop: phases.streams.clone(),
    };
    let members = config.advertise.as_ref().map(|advertise| Members::new(&advertise.advertised, hub.clone()));
    let api = EtcdApi::new(sessions.clone(), forward.clone(), streams.clone(), phases.clients.clone(), members.clone());
    let lainlet = (config.views.feeds != LainletFeeds::Off).then(|| {
        let (tasks, stop) = (phases.upkeep.clone(), phases.upstream.clone());
        Lainlet::new(config.views.lainlet.clone(), hub.clone(), tasks, stop)
    });
    if let Some(lainlet) = lainlet.as_ref().filter(|_| config.views.feeds == LainletFeeds::AtStart) {
        for feed in lainlet.open() {
            phases.spawn_upkeep("readiness of a feed", hold_ready(feed.clone(), ready.clone()));
        }
    }
    Core { hub, access, api, forward, streams, users, sessions, lainlet, relays: members }
}

/// Keeps the process not ready while `feed` does not serve, or could not go on if it lost its watch. This begins with
/// the call and not when the task first runs; otherwise a relay could be ready too early.
pub(super) fn hold_ready(feed: Arc<Feed>, ready: ReadyBoard) -> impl Future<Output = ()> + Send {
    let mut standing = feed.watch_standing();
    let reason = move |standing: &Standing| standing.unready().map(|why| format!("feed {}: {why}", feed.range()));
    let mut held: Option<Hold> = reason(&standing.borrow_and_update()).map(|why| ready.hold(why));
    async move {
        while standing.changed().await.is_ok() {
            match (reason(&standing.borrow_and_update()), &held) {
                (Some(why), Some(hold)) => hold.explain(why),
                (Some(why), None) => held = Some(ready.hold(why)),
                (None, _) => held = None,
            }
        }
    }
}

/// Makes the feeds check whether the relay itself may still read them, when authentication is turned on or off, and
/// repeatedly while it is on. etcd keeps a watch open that it would not accept any more.
async fn doubt_permission(access: Access, hub: Arc<Hub>) {
    let mut known = access.watch();
    let mut before = Auth::Unknown;
    loop {
        let auth = known.borrow_and_update().auth;
        if auth != Auth::Unknown && (auth == Auth::On || before == Auth::On) {
            hub.doubt_permission();
        }
        if auth != Auth::Unknown {
            before = auth;
        }
        // The pause between two checks while nothing changes.
        match tokio::time::timeout(INTERVAL, known.changed()).await {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(_)) => return,
        }
    }
}
