//! [`RelayConfig`]: all that a relay is told, parsed. Made by `cli` or by a test; the defaults are constants here or at the part
//! that they belong to.

use std::{num::NonZeroUsize, time::Duration};

use bytes::Bytes;

use crate::{
    front::{
        grpc::Advertised,
        http::{audience::Audience, keys::Cors},
        listen,
    },
    source::{Audit, Dialler, Endpoint, Identity, forward},
    telemetry::names::{self, LeaveReason},
    tls, view,
};

/// A relay.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// Where the data is.
    pub upstream: Upstream,
    /// What is kept in memory.
    pub feeds: Feeds,
    /// What a client's watches may do.
    pub watches: Watches,
    /// Lainlet's views.
    pub views: Views,
    /// The port for etcd's API.
    pub grpc: listen::PortConfig,
    /// The operator's port.
    pub http: Option<listen::PortConfig>,
    /// Further ports for metrics and health alone.
    pub metrics: Vec<listen::PortConfig>,
    /// Who may read `/debug/state`.
    pub debug_from: Audience,
    /// Who may read `/metrics` on the other ports.
    pub metrics_from: Audience,
    /// Who may read keys over HTTP while etcd's authentication is off.
    pub keys_from: Audience,
    /// Which pages of other origins may.
    pub cors: Cors,
    /// How member lists name it; `None` leaves them as etcd has them.
    pub advertise: Option<Advertise>,
    /// The port for etcd's v2 API.
    pub v2: Option<V2Facade>,
    /// Longest wait for clients at the end.
    pub drain_time: Duration,
}

/// How clients find a relay, and the others beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertise {
    /// What is told.
    pub advertised: Advertised,
    /// How long its registration stays without it.
    pub ttl: Duration,
    /// Whether it tells the other relays how many connections it has, and lets some go where it has more than its share.
    pub shed: bool,
}

/// The facade of etcd's v2 API.
#[derive(Clone, Debug)]
pub struct V2Facade {
    /// The port.
    pub port: listen::PortConfig,
    /// URLs at which clients reach it; empty for the address that it listens at.
    pub advertised: Vec<String>,
}

/// Lainlet's views.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Views {
    /// When their feeds are opened.
    pub feeds: LainletFeeds,
    /// Who may see what, and what they need to know of this machine.
    pub lainlet: view::LainletConfig,
}

/// When the feeds of Lainlet's views are opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LainletFeeds {
    /// At the first request for a view. A relay that nobody asks costs etcd nothing for them.
    #[default]
    OnDemand,
    /// At the start; the process is not ready before they serve.
    AtStart,
    /// Never: views are refused.
    Off,
}

/// Where the data is.
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
    /// What of all that is counted this relay has.
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
            views: self.views.feeds != LainletFeeds::Off,
        }
    }
}

impl Upstream {
    /// The relay's own user there, where it has one.
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
    /// Whether it begins with the example data of a LAIN cluster, or empty.
    pub seeded: bool,
    /// Mean time between small changes; none without.
    pub changes_every: Option<Duration>,
}

/// An etcd cluster.
#[derive(Clone, Debug)]
pub struct Etcd {
    /// The members; not empty.
    pub endpoints: Vec<Endpoint>,
    /// How members with `https://` are reached.
    pub tls: Option<tls::Client>,
    /// The relay's own identity, for feeds. Forwarded calls carry the client's.
    pub identity: Option<Identity>,
    /// Longest wait for a connection to one member.
    pub connect_timeout: Duration,
    /// Longest wait for one answer to the relay's own requests.
    pub request_timeout: Duration,
    /// Pings on connections upstream.
    pub keepalive: Option<forward::Keepalive>,
    /// Largest number of forwarded calls that one client may have under way.
    pub max_forwarded_per_client: NonZeroUsize,
    /// Longest wait of a call that was not sent until a member can be reached.
    pub forward_wait: Duration,
    /// How often the cluster is asked for its members, which then take the place of `endpoints`; never where there is none.
    pub auto_sync: Option<Duration>,
}

/// An etcd cluster that has its keys in its v2 store.
#[derive(Clone, Debug)]
pub struct EtcdV2 {
    /// How to reach it. The identity is a user of v2's own.
    pub etcd: Etcd,
    /// How long a wait stays open before it is asked again.
    pub hold: Duration,
}

/// What is kept in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feeds {
    /// Prefixes with a feed that is always on; none covers another.
    pub prefixes: Vec<Bytes>,
    /// What happens to watches outside all prefixes.
    pub on_demand: OnDemand,
    /// Bound of one feed's history, in bytes.
    pub history_bytes: NonZeroUsize,
    /// Bound of one feed's history, in revisions.
    pub history_entries: NonZeroUsize,
    /// Between two audits of all feeds; `None` audits those alone that something speaks against.
    pub audit_interval: Option<Duration>,
}

/// Feeds outside all prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDemand {
    /// A watch opens one, which ends `idle` after its last watch; `max` at a time.
    Allow {
        /// How long a feed without watches stays.
        idle: Duration,
        /// Largest number.
        max: NonZeroUsize,
        /// What they may hold together, in bytes.
        bytes: NonZeroUsize,
    },
    /// There are none: such a watch is refused.
    Deny,
}

/// What a client's watches may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watches {
    /// Largest number on one stream.
    pub max_per_stream: NonZeroUsize,
    /// Largest number of one client over all its streams; `None` sets none.
    pub max_per_client: Option<NonZeroUsize>,
    /// Time between progress notifications to watches that asked for them.
    pub progress_notify_interval: Duration,
}

impl Etcd {
    /// etcd's own clients' default is 5 s for a request; a cluster that elects a leader takes one or two.
    pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

    /// What the forwarder takes of it.
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
    /// A key that the relay may read, which hardly ever changes: what it asks about when it wants to know no key's value.
    #[must_use]
    pub fn probe_key(&self) -> Bytes {
        const FIRST: Bytes = Bytes::from_static(&[0]);
        self.prefixes.first().filter(|prefix| !prefix.is_empty()).cloned().unwrap_or(FIRST)
    }

    /// 64 MiB.
    pub const HISTORY_BYTES: NonZeroUsize = NonZeroUsize::new(64 << 20).expect("not zero");
    /// At 500 changes a second, 100 seconds: longer than a client takes to come back.
    pub const HISTORY_ENTRIES: NonZeroUsize = NonZeroUsize::new(50_000).expect("not zero");
}

impl OnDemand {
    /// Longer than a client that restarts is away.
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
    /// A watch costs the relay some hundred bytes; a client that has more of them on one stream is out of hand.
    pub const MAX_PER_STREAM: NonZeroUsize = NonZeroUsize::new(1_000_000).expect("not zero");
    /// etcd's own.
    pub const PROGRESS_NOTIFY_INTERVAL: Duration = Duration::from_secs(600);
}
