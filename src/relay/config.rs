//! [`RelayConfig`]: the whole configuration of a relay, parsed. Made by `cli` or by a test. The defaults are constants
//! here or in the module that they belong to.

use std::{num::NonZeroUsize, time::Duration};

use bytes::Bytes;
use metrics::gauge;

use crate::{
    batch::Io,
    front::{
        grpc::Advertised,
        http::{audience::Audience, keys::Cors},
        listen,
    },
    source::{Audit, Dialler, Endpoint, Identity, forward},
    telemetry::names::{self, LeaveReason, Port},
    tls, view,
};

/// The configuration of a relay.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// Where the data comes from.
    pub upstream: Upstream,
    /// What is kept in memory.
    pub feeds: Feeds,
    /// Limits of a client's watches.
    pub watches: Watches,
    /// Lainlet's views.
    pub views: Views,
    /// The port for etcd's API.
    pub grpc: listen::PortConfig,
    /// The operator's port.
    pub http: Option<listen::PortConfig>,
    /// Further ports that serve only metrics and health.
    pub metrics: Vec<listen::PortConfig>,
    /// Who may read `/debug/state`.
    pub debug_from: Audience,
    /// Who may read `/metrics` on the other ports.
    pub metrics_from: Audience,
    /// Who may read keys over HTTP while etcd's authentication is off.
    pub keys_from: Audience,
    /// Which pages of other origins may read keys over HTTP.
    pub cors: Cors,
    /// How member lists name this relay; `None` leaves them as etcd sends them.
    pub advertise: Option<Advertise>,
    /// The port for etcd's v2 API.
    pub v2: Option<V2Facade>,
    /// How bytes are sent to clients.
    pub io: Io,
    /// Longest wait for clients at the end.
    pub drain_time: Duration,
}

/// How clients find this relay and the others of its fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertise {
    /// What member lists say.
    pub advertised: Advertised,
    /// How long the registration outlives the relay.
    pub ttl: Duration,
    /// Whether the relay reports its number of connections to the others, and sheds some when it has more than its
    /// share.
    pub shed: bool,
}

/// The facade of etcd's v2 API.
#[derive(Clone, Debug)]
pub struct V2Facade {
    /// The port.
    pub port: listen::PortConfig,
    /// URLs at which clients reach it; empty for the address that it listens on.
    pub advertised: Vec<String>,
}

/// Lainlet's views.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Views {
    /// When their feeds are opened.
    pub feeds: LainletFeeds,
    /// Who may read which view, and what the views need to know about this machine.
    pub lainlet: view::LainletConfig,
}

/// When the feeds of Lainlet's views are opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LainletFeeds {
    /// At the first request for a view. A relay that serves no views then costs etcd nothing for them.
    #[default]
    OnDemand,
    /// At the start. The process is not ready before they serve.
    AtStart,
    /// Never. Requests for views are refused.
    Off,
}

/// Where the data comes from.
#[derive(Clone, Debug)]
pub enum Upstream {
    /// In an etcd cluster, or in another relay.
    Etcd(Etcd),
    /// In the v2 store of an etcd cluster.
    EtcdV2(EtcdV2),
    /// In the embedded store.
    Embedded(Embedded),
}

impl RelayConfig {
    /// Which of the optional metrics this relay has.
    pub(super) fn present(&self) -> names::Present {
        let ports = std::iter::once(&self.grpc).chain(&self.http).chain(&self.metrics);
        let ports = ports.chain(self.v2.iter().map(|v2| &v2.port));
        let is_secure = |port: &listen::PortConfig| port.addresses.iter().any(|address| address.secure);
        let etcd = match &self.upstream {
            Upstream::Etcd(etcd) | Upstream::EtcdV2(EtcdV2 { etcd, .. }) => Some(etcd),
            Upstream::Embedded(_) => None,
        };
        let mut leaves = Vec::new();
        if self.grpc.max_age.is_some() {
            leaves.push(LeaveReason::Age);
        }
        if self.advertise.as_ref().is_some_and(|advertise| advertise.shed) {
            leaves.push(LeaveReason::Share);
        }
        names::Present {
            ports: ports.map(|port| (port.port, is_secure(port))).collect(),
            leaves,
            etcd: matches!(self.upstream, Upstream::Etcd(_)),
            etcd_tls: etcd.is_some_and(|etcd| etcd.tls.is_some()),
            etcd_v2: matches!(self.upstream, Upstream::EtcdV2(_)),
            facade: self.v2.is_some(),
            batches: self.io != Io::Epoll,
            views: self.views.feeds != LainletFeeds::Off,
        }
    }
}

impl RelayConfig {
    /// Tells the metrics the bounds that do not change while the relay runs. Several ports may be of a kind: their
    /// bounds are added, as their connections are.
    pub(super) fn show_bounds(&self) {
        let ports = std::iter::once(&self.grpc).chain(&self.http).chain(&self.metrics);
        for port in ports.chain(self.v2.iter().map(|v2| &v2.port)) {
            gauge!(names::CONNECTIONS_LIMIT, Port::LABEL => port.port.as_str())
                .increment(port.max_connections.get() as f64);
        }
        let on_demand = match self.feeds.on_demand {
            OnDemand::Allow { bytes, .. } => bytes.get(),
            OnDemand::Deny => 0,
        };
        gauge!(names::ON_DEMAND_LIMIT_BYTES).set(on_demand as f64);
    }
}

impl Upstream {
    /// The user that the relay itself authenticates as, if it has one.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Etcd(etcd) => etcd.identity.as_ref(),
            Self::EtcdV2(v2) => v2.etcd.identity.as_ref(),
            Self::Embedded(_) => None,
        }
    }
}

/// The embedded store, as `demo` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Embedded {
    /// Whether it begins with the example data of a LAIN cluster. Otherwise it begins empty.
    pub seeded: bool,
    /// Mean time between small changes; `None` for no changes.
    pub changes_every: Option<Duration>,
}

/// An etcd cluster.
#[derive(Clone, Debug)]
pub struct Etcd {
    /// The members. There is at least one.
    pub endpoints: Vec<Endpoint>,
    /// How to reach members whose URL begins with `https://`.
    pub tls: Option<tls::Client>,
    /// The relay's own user, for feeds. Forwarded calls carry the client's.
    pub identity: Option<Identity>,
    /// Longest wait for a connection to one member.
    pub connect_timeout: Duration,
    /// Longest wait for one answer to the relay's own requests.
    pub request_timeout: Duration,
    /// Pings on connections upstream.
    pub keepalive: Option<forward::Keepalive>,
    /// The most forwarded calls that one client may have under way.
    pub max_forwarded_per_client: NonZeroUsize,
    /// How long a call that was not sent yet waits until a member can be reached.
    pub forward_wait: Duration,
    /// How often the cluster is asked for its members, which then replace `endpoints`; `None` for never.
    pub auto_sync: Option<Duration>,
}

/// An etcd cluster that keeps its keys in its v2 store.
#[derive(Clone, Debug)]
pub struct EtcdV2 {
    /// How to reach it. The identity is a user of the v2 API.
    pub etcd: Etcd,
    /// How long a wait stays open before another one replaces it.
    pub hold: Duration,
}

/// What is kept in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feeds {
    /// Prefixes that always have a feed. None of them covers another.
    pub prefixes: Vec<Bytes>,
    /// What happens to watches outside all prefixes.
    pub on_demand: OnDemand,
    /// Bound of one feed's history, in bytes.
    pub history_bytes: NonZeroUsize,
    /// Bound of one feed's history, in revisions.
    pub history_entries: NonZeroUsize,
    /// Time between two audits of all feeds; with `None` only suspect feeds are audited.
    pub audit_interval: Option<Duration>,
}

/// What happens to watches outside all prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDemand {
    /// A watch opens a feed, which ends `idle` after its last watch. There are at most `max` of them.
    Allow {
        /// How long a feed without watches stays.
        idle: Duration,
        /// Largest number of such feeds.
        max: NonZeroUsize,
        /// What they may hold together, in bytes.
        bytes: NonZeroUsize,
    },
    /// No feed is opened: such a watch is refused.
    Deny,
}

/// Limits of a client's watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watches {
    /// The most watches on one stream.
    pub max_per_stream: NonZeroUsize,
    /// The most watches of one client over all its streams; `None` sets no limit.
    pub max_per_client: Option<NonZeroUsize>,
    /// Time between progress notifications to watches that asked for them.
    pub progress_notify_interval: Duration,
}

impl Etcd {
    /// The default of etcd's own clients for a request is 5 s; a cluster that elects a leader takes one or two.
    pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

    /// The part of the configuration that the forwarder needs.
    pub(super) fn forward(&self) -> forward::ForwardConfig {
        forward::ForwardConfig {
            dialler: Dialler::new(self.tls.clone()),
            connect_timeout: self.connect_timeout,
            keepalive: self.keepalive,
            stream_window: forward::ForwardConfig::STREAM_WINDOW,
            max_per_client: self.max_forwarded_per_client,
            wait: self.forward_wait,
        }
    }
}

impl Default for Feeds {
    fn default() -> Self {
        Self {
            prefixes: Vec::new(),
            on_demand: OnDemand::default(),
            history_bytes: Self::HISTORY_BYTES,
            history_entries: Self::HISTORY_ENTRIES,
            audit_interval: Some(Audit::INTERVAL),
        }
    }
}

impl Feeds {
    /// A key that the relay may read and that hardly ever changes. The relay reads it when it needs an answer from etcd
    /// but no key's value.
    #[must_use]
    pub fn probe_key(&self) -> Bytes {
        const FIRST: Bytes = Bytes::from_static(&[0]);
        self.prefixes.first().filter(|prefix| !prefix.is_empty()).cloned().unwrap_or(FIRST)
    }

    /// 64 MiB.
    pub const HISTORY_BYTES: NonZeroUsize = NonZeroUsize::new(64 << 20).expect("not zero");
    /// At 500 changes a second this lasts 100 seconds, longer than a client takes to come back.
    pub const HISTORY_ENTRIES: NonZeroUsize = NonZeroUsize::new(50_000).expect("not zero");
}

impl OnDemand {
    /// Longer than a client takes to restart.
    pub const IDLE: Duration = Duration::from_secs(300);
    /// Each costs etcd one watch and the relay a copy of the range.
    pub const MAX: NonZeroUsize = NonZeroUsize::new(1_024).expect("not zero");
    /// 1 GiB: about two million keys with values of 200 bytes.
    pub const BYTES: NonZeroUsize = NonZeroUsize::new(1 << 30).expect("not zero");
}

impl Default for OnDemand {
    fn default() -> Self {
        Self::Allow { idle: Self::IDLE, max: Self::MAX, bytes: Self::BYTES }
    }
}

impl Default for Watches {
    fn default() -> Self {
        Self {
            max_per_stream: Self::MAX_PER_STREAM,
            max_per_client: None,
            progress_notify_interval: Self::PROGRESS_NOTIFY_INTERVAL,
        }
    }
}

impl Watches {
    /// A watch costs the relay a few hundred bytes. A client that has more watches than this on one stream is out of
    /// control.
    pub const MAX_PER_STREAM: NonZeroUsize = NonZeroUsize::new(1_000_000).expect("not zero");
    /// The same as etcd's own.
    pub const PROGRESS_NOTIFY_INTERVAL: Duration = Duration::from_secs(600);
}
