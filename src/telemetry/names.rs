//! All metrics of the relay: their names, meanings and label values.
//!
//! Not here: the recorder. All code that counts something uses these constants with the macros of `metrics`.
//! Always holds: label values come from closed enums, never from keys, clients or addresses. Every counter and gauge
//! that can change in a relay with this configuration starts at zero ([`describe`], [`begin()`]), so that a rate over
//! it is right from the first scrape. Series that can never change do not exist.

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

/// Watches that exist now, on all streams.
pub const WATCHES: &str = "etcd_relay_watches";
/// Watches behind the live feed, which read the history as their connection drains.
pub const WATCHES_PARKED: &str = "etcd_relay_watches_parked";
/// Watches that need revisions older than the history. A backfill or a temporary upstream watch brings them up to it;
/// they may have to wait for their turn.
pub const WATCHES_CATCHING_UP: &str = "etcd_relay_watches_catching_up";
/// Watches created since the start.
pub const WATCHES_CREATED: &str = "etcd_relay_watches_created_total";
/// Watches that ended, by [`CancelReason`].
pub const WATCHES_CANCELED: &str = "etcd_relay_watches_canceled_total";
/// Watch creates that were refused, by [`Refusal`].
pub const WATCHES_REFUSED: &str = "etcd_relay_watches_refused_total";
/// Time between progress notifications to watches that asked for them.
pub const PROGRESS_NOTIFY_INTERVAL: &str = "etcd_relay_progress_notify_interval_seconds";
/// Whether the relay is registered in etcd: 1 or 0.
pub const REGISTERED: &str = "etcd_relay_registered";
/// Relays of the fleet that are ready, as far as this relay knows, including itself.
pub const FLEET_RELAYS: &str = "etcd_relay_fleet_relays";
/// The relay's connections, as a fraction of the mean of these relays.
pub const FLEET_SHARE: &str = "etcd_relay_fleet_share_ratio";
/// Watch streams that are open now.
pub const WATCH_STREAMS: &str = "etcd_relay_watch_streams";
/// Connections that are open now, by [`Port`].
pub const CONNECTIONS: &str = "etcd_relay_connections";
/// Most connections that a port may have, by [`Port`].
pub const CONNECTIONS_LIMIT: &str = "etcd_relay_connections_limit";
/// Connections accepted since the start, by [`Port`].
pub const CONNECTIONS_ACCEPTED: &str = "etcd_relay_connections_accepted_total";
/// Requests over HTTP/2 that were refused because of a limit of their connection, by [`Overrun`].
pub const REQUESTS_REFUSED: &str = "etcd_relay_requests_refused_total";
/// Connections that the port closed to protect itself, by [`Port`] and [`Turned`].
pub const CONNECTIONS_TURNED_AWAY: &str = "etcd_relay_connections_turned_away_total";
/// Connections that the relay asked to reconnect elsewhere, by [`Port`] and [`LeaveReason`].
pub const CONNECTIONS_ASKED_TO_LEAVE: &str = "etcd_relay_connections_asked_to_leave_total";
/// Failures of `accept` that are not the client's fault, by [`Port`].
pub const ACCEPT_ERRORS: &str = "etcd_relay_accept_errors_total";
/// Feeds, by [`FeedState`].
pub const FEEDS: &str = "etcd_relay_feeds";
/// Events received from upstream on feeds.
pub const UPSTREAM_EVENTS: &str = "etcd_relay_upstream_events_total";
/// Revisions received from upstream on feeds.
pub const UPSTREAM_REVISIONS: &str = "etcd_relay_upstream_revisions_total";
/// Broken upstream watches of feeds, by [`ReconnectReason`].
pub const UPSTREAM_RECONNECTS: &str = "etcd_relay_upstream_reconnects_total";
/// New snapshots of running feeds, by [`ResyncReason`].
pub const UPSTREAM_RESYNCS: &str = "etcd_relay_upstream_resyncs_total";
/// Audits of a feed that ended, by [`Audited`].
pub const AUDITS: &str = "etcd_relay_audits_total";
/// Feeds whose content differed from etcd's in an audit.
pub const AUDIT_MISMATCHES: &str = "etcd_relay_audit_mismatches_total";
/// Keys that the audit compared with etcd's.
pub const AUDITED_KEYS: &str = "etcd_relay_audited_keys_total";
/// When the audit last finished with all feeds, in seconds since 1970; 0 before that.
pub const AUDIT_COMPLETED: &str = "etcd_relay_audit_completed_timestamp_seconds";
/// Attempts to connect upstream for forwarded calls, by [`Connect`].
pub const UPSTREAM_CONNECTS: &str = "etcd_relay_upstream_connects_total";
/// Listings read from etcd's v2 API, by [`V2Listing`].
pub const V2_LISTINGS: &str = "etcd_relay_v2_listings_total";
/// Waits on etcd's v2 API that ended, by [`V2WaitEnd`].
pub const V2_WAITS: &str = "etcd_relay_v2_waits_total";
/// Events that a wait had missed, and that its successor found in etcd's history.
pub const V2_REPAIRED: &str = "etcd_relay_v2_repaired_events_total";
/// Requests for keys through the facade of etcd's v2 API, by [`FacadeRequest`].
pub const FACADE_REQUESTS: &str = "etcd_relay_facade_requests_total";
/// Waits and streams of the facade that are open now.
pub const FACADE_WAITS: &str = "etcd_relay_facade_waits";
/// Expired keys that this relay deleted.
pub const FACADE_EXPIRED: &str = "etcd_relay_facade_expired_keys_total";
/// Reads of revisions older than the facade's history, by [`FacadePast`].
pub const FACADE_PASTS: &str = "etcd_relay_facade_past_reads_total";
/// Revisions that changed several v2 keys.
pub const FACADE_JOINED: &str = "etcd_relay_facade_joined_revisions_total";
/// Events written to subscribers.
pub const EVENTS_DELIVERED: &str = "etcd_relay_events_delivered_total";
/// Watch responses written to subscribers.
pub const RESPONSES_DELIVERED: &str = "etcd_relay_responses_delivered_total";
/// Bytes of watch responses written to subscribers.
pub const BYTES_DELIVERED: &str = "etcd_relay_bytes_delivered_total";
/// From the receipt of a revision until a subscriber's connection gets it.
pub const DELIVERY_LAG_SECONDS: &str = "etcd_relay_delivery_lag_seconds";
/// The help text of [`DELIVERY_LAG_SECONDS`]; `delivered` renders it.
pub(super) const DELIVERY_LAG: &str = "Seconds from the receipt of a revision until a subscriber's connection gets it";
/// How long it took to publish the revisions that arrived together, by [`Part`].
pub const PUBLISH_SECONDS: &str = "etcd_relay_publish_seconds";
/// How late a task is scheduled.
pub const TURN_SECONDS: &str = "etcd_relay_turn_seconds";
/// Revisions in the histories of all feeds.
pub const HISTORY_ENTRIES: &str = "etcd_relay_history_entries";
/// Bytes that the histories of all feeds keep.
pub const HISTORY_BYTES: &str = "etcd_relay_history_bytes";
/// The highest of the feeds' oldest revisions. From here on, every feed answers from memory.
pub const HISTORY_OLDEST_REVISION: &str = "etcd_relay_history_oldest_revision";
/// The highest revision that any feed has.
pub const HISTORY_NEWEST_REVISION: &str = "etcd_relay_history_newest_revision";
/// Keys in the snapshots of all feeds.
pub const SNAPSHOT_KEYS: &str = "etcd_relay_snapshot_keys";
/// Bytes that feeds on demand hold together. Bytes that they share are counted once.
pub const ON_DEMAND_BYTES: &str = "etcd_relay_on_demand_bytes";
/// Most bytes that feeds on demand may hold together; 0 where there are none.
pub const ON_DEMAND_LIMIT_BYTES: &str = "etcd_relay_on_demand_limit_bytes";
/// Temporary upstream watches that run now, each filling a gap behind the history.
pub const GAP_FILLS: &str = "etcd_relay_gap_fills";
/// Watches that wait for their turn to be filled.
pub const FILLS_WAITING: &str = "etcd_relay_fills_waiting";
/// Reads of a feed's past, which extend its history backwards, by [`BackfillOutcome`].
pub const BACKFILLS: &str = "etcd_relay_backfills_total";
/// Revisions by which feeds' histories were extended backwards.
pub const BACKFILLED_REVISIONS: &str = "etcd_relay_backfilled_revisions_total";
/// Requests to etcd for its current revision.
pub const CONFIRMS: &str = "etcd_relay_confirms_total";
/// Reads and batches of watch requests that were answered by these requests.
pub const CONFIRMED_CALLS: &str = "etcd_relay_confirmed_calls_total";
/// `Range` calls, by [`Read`].
pub const READS: &str = "etcd_relay_reads_total";
/// `RangeStream` calls, by [`Read`].
pub const RANGE_STREAMS: &str = "etcd_relay_range_streams_total";
/// `Range` calls that look at many keys or at a past revision: those that run, and those that wait for their turn.
pub const LONG_READS: &str = "etcd_relay_long_reads";
/// Checks with etcd whether a client may read a range, by [`Check`].
pub const ACCESS_CHECKS: &str = "etcd_relay_access_checks_total";
/// Watch streams that were ended because etcd did not confirm in time that their clients may read what they watch.
pub const STREAMS_UNCONFIRMED: &str = "etcd_relay_watch_streams_unconfirmed_total";
/// Changes of keys that views are made from, by [`Directory`] and [`Effect`].
pub const VIEW_CHANGES: &str = "etcd_relay_view_changes_total";
/// New versions of the view selections that clients asked for, by [`Directory`]. Each is rendered once for all of its
/// readers.
pub const VIEW_VERSIONS: &str = "etcd_relay_view_versions_total";
/// Distinct selections of views that are kept up to date, by [`Directory`].
pub const VIEW_TARGETS: &str = "etcd_relay_view_targets";
/// Memory that the rows of these selections take, by [`Directory`].
pub const VIEW_BYTES: &str = "etcd_relay_view_bytes";
/// Values that views cannot read now, by [`Directory`]; `/debug` names them.
pub const VIEW_UNREADABLE: &str = "etcd_relay_view_unreadable_values";
/// Requests for views, by [`Transport`] and [`Answer`]. A stream is counted when it begins.
pub const VIEW_REQUESTS: &str = "etcd_relay_view_requests_total";
/// Streams of views that are open now, by [`Transport`].
pub const VIEW_STREAMS: &str = "etcd_relay_view_streams";
/// Replies written to streams of views, by [`Transport`].
pub const VIEW_MESSAGES: &str = "etcd_relay_view_messages_total";
/// Bytes of these replies, by [`Transport`].
pub const VIEW_MESSAGE_BYTES: &str = "etcd_relay_view_message_bytes_total";
/// From the receipt of a change until a subscriber's connection gets the view that it changed.
pub const VIEW_LAG_SECONDS: &str = "etcd_relay_view_lag_seconds";
/// Requests for keys over HTTP, by [`KeysPath`] and [`KeysAnswer`].
pub const KEYS_REQUESTS: &str = "etcd_relay_keys_requests_total";
/// Streams of `/v1/watch` that are open now.
pub const KEYS_STREAMS: &str = "etcd_relay_keys_streams";
/// Writes of events to these streams. Events that arrived together are one write.
pub const KEYS_MESSAGES: &str = "etcd_relay_keys_messages_total";
/// Bytes of these writes.
pub const KEYS_MESSAGE_BYTES: &str = "etcd_relay_keys_message_bytes_total";
/// Snapshots that were sent on these streams, by [`KeysSnapshot`].
pub const KEYS_SNAPSHOTS: &str = "etcd_relay_keys_snapshots_total";
/// Requests to the JSON gateway, by [`Service`] and [`GatewayOutcome`], counted when they end.
pub const GATEWAY_REQUESTS: &str = "etcd_relay_gateway_requests_total";
/// Calls forwarded upstream, by [`Service`] and [`Outcome`], counted when they end.
pub const FORWARDED: &str = "etcd_relay_forwarded_total";
/// Forwarded calls that are running now.
pub const FORWARDS: &str = "etcd_relay_forwards";
/// Connections upstream that are open now, by [`Lane`].
pub const UPSTREAM_CONNECTIONS: &str = "etcd_relay_upstream_connections";
/// Calls that wait now until a connection upstream has room for them, by [`Lane`].
pub const UPSTREAM_WAITING: &str = "etcd_relay_upstream_waiting_calls";
/// How many revisions of the store the slowest feed is behind etcd.
pub const FEED_LAG_REVISIONS: &str = "etcd_relay_feed_lag_revisions";
/// For how long a feed has been behind etcd; the longest time of all feeds.
pub const FEED_LAG_SECONDS: &str = "etcd_relay_feed_lag_seconds";
/// 1 while the etcd member with this [`MEMBER`] number answers for its cluster.
pub const MEMBER_HEALTHY: &str = "etcd_relay_member_healthy";
/// 1 while the etcd members that answer have no leader.
pub const UPSTREAM_LEADERLESS: &str = "etcd_relay_upstream_leaderless";
/// The place of a member among the endpoints that the relay was given, counted from 1.
pub const MEMBER: &str = "member";
/// How often the relay left a member for another one, by [`Leave`].
pub const MEMBER_LEFT: &str = "etcd_relay_member_left_total";
/// Forwarded reads that were sent again to another member, since the first one did not answer.
pub const FORWARD_RETRIES: &str = "etcd_relay_forward_retries_total";
/// Forwarded calls that wait now until a member can be reached, or answers for the cluster.
pub const FORWARDS_HELD: &str = "etcd_relay_forwards_held";
/// Connections that wait for a long turn.
pub const TURNS_WAITING: &str = "etcd_relay_turns_waiting";
/// How long connections waited in the queue for such turns.
pub const TURNS_WAIT_SECONDS: &str = "etcd_relay_turns_wait_seconds";
/// Rings of io_uring that join sends to clients.
pub const SEND_RINGS: &str = "etcd_relay_send_rings";
/// System calls that sent to several clients.
pub const SEND_BATCHES: &str = "etcd_relay_send_batches_total";
/// Sends in those system calls.
pub const BATCHED_SENDS: &str = "etcd_relay_batched_sends_total";
/// TLS handshakes with clients, by [`Port`] and [`Handshake`].
pub const TLS_HANDSHAKES: &str = "etcd_relay_tls_handshakes_total";
/// TLS handshakes with members of etcd, by [`Connect`].
pub const TLS_UPSTREAM_HANDSHAKES: &str = "etcd_relay_tls_upstream_handshakes_total";
/// When a certificate in use expires, in seconds of Unix time, by [`TlsCertificate`]; 0 if there is none.
pub const TLS_CERTIFICATE_NOT_AFTER: &str = "etcd_relay_tls_certificate_not_after_seconds";
/// Changes of TLS files that were noticed, by [`TlsSide`] and [`Reload`].
pub const TLS_RELOADS: &str = "etcd_relay_tls_reloads_total";
/// 1 while `/ready` reports that the relay is ready.
pub const READY: &str = "etcd_relay_ready";
/// Always 1; the label `version` is the relay's version.
pub const BUILD_INFO: &str = "etcd_relay_build_info";

/// Buckets of [`DELIVERY_LAG_SECONDS`], [`VIEW_LAG_SECONDS`] and [`TURNS_WAIT_SECONDS`]: from 50 µs (a push on an idle
/// machine) to 30 s (a client that is as good as gone).
pub const LAG_BUCKETS: [f64; 15] = [
    0.000_05, // 50 µs
    0.000_1, 0.000_25, 0.000_5, 0.001, // 1 ms
    0.002_5, 0.005, 0.01, // 10 ms: etcd's documentation mentions this delay
    0.025, 0.05, 0.1, // 100 ms
    0.5, 1.0, 5.0, 30.0, // 30 s
];

/// Buckets of [`PUBLISH_SECONDS`] and [`TURN_SECONDS`]: from 10 µs (one revision to a few watches) to 1 s. They are
/// close together around 5 ms, the longest time for which a new watch may hold up a feed.
pub const PUBLISH_BUCKETS: [f64; 18] = [
    0.000_01, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, // 1 ms
    0.002, 0.003, 0.004, 0.005, 0.007_5, 0.01, // 10 ms
    0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
];

/// A closed set of label values.
macro_rules! labels {
    ($(#[$doc:meta])* $name:ident as $label:literal { $($(#[$variant_doc:meta])* $variant:ident = $value:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// The label's name.
            pub const LABEL: &'static str = $label;
            /// All values.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The label's value.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $value,)+
                }
            }
        }
    };
}

/// Starts series at zero, one for each value of a label.
macro_rules! zero {
    ($($name:ident by $label:ident),+ $(,)?) => {
        $(for value in $label::ALL {
            counter!($name, $label::LABEL => value.as_str()).absolute(0);
        })+
    };
}

mod begin;
mod clients;
mod sources;
mod tls;

pub use self::{
    begin::{Present, begin, begin_forwarding},
    clients::{
        Answer, CancelReason, Check, Directory, Effect, KeysAnswer, KeysPath, KeysSnapshot, Read, Refusal, Transport,
    },
    sources::{Audited, BackfillOutcome, FacadePast, FacadeRequest, Leave, ResyncReason, V2Listing, V2WaitEnd},
    tls::{Handshake, Reload, TlsCertificate, TlsSide},
};

labels! {
    /// Which of the relay's ports.
    Port as "port" {
        /// etcd's v3 API, as on a member's client port.
        Grpc = "grpc",
        /// Metrics, health, views.
        Http = "http",
        /// The additional port for metrics alone.
        Metrics = "metrics",
        /// etcd's v2 API.
        V2 = "v2",
    }
}

impl Port {
    /// The protocol on it, for the log.
    #[must_use]
    pub const fn protocol(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http | Self::Metrics => "http",
            Self::V2 => "v2",
        }
    }
}

labels! {
    /// Why a connection was asked to reconnect elsewhere.
    LeaveReason as "reason" {
        /// The relay is stopping.
        Stopping = "stopping",
        /// It is older than `--max-connection-age`, within a quarter of that age.
        Age = "age",
        /// The relay has more than its share of the fleet's connections.
        Share = "share",
    }
}
labels! {
    /// Which limit of a connection a request exceeded.
    Overrun as "reason" {
        /// The connection has its largest number of streams.
        Streams = "streams",
        /// The request has too many fields.
        Fields = "fields",
        /// Unanswered requests take as much memory as they may.
        Unanswered = "unanswered",
    }
}
labels! {
    /// Why a port closed a connection that its client kept open.
    Turned as "reason" {
        /// The port has its largest number of connections.
        Limit = "limit",
        /// The client has its largest number of connections.
        Client = "client",
        /// It sent nothing in time.
        Silent = "silent",
        /// It accepted no bytes for too long.
        Stalled = "stalled",
        /// It speaks TLS, which the port does not.
        Tls = "tls",
    }
}
labels! {
    /// What a feed does.
    FeedState as "state" {
        /// It reads its first snapshot.
        Starting = "starting",
        /// It follows upstream.
        Live = "live",
        /// It lost upstream, and continues with the next revision.
        Resuming = "resuming",
        /// It reads a new snapshot, because upstream no longer has the next revision.
        Resyncing = "resyncing",
    }
}
labels! {
    /// Why a feed's upstream watch broke.
    ReconnectReason as "reason" {
        /// The connection failed or none could be made.
        Unavailable = "unavailable",
        /// The member has no leader.
        NoLeader = "no_leader",
        /// The server canceled the watch.
        Canceled = "canceled",
        /// The server broke the protocol.
        Protocol = "protocol",
        /// The server stopped answering.
        Timeout = "timeout",
        /// The relay's own identity was refused.
        Denied = "denied",
        /// The watch did not bring what the cluster has.
        Behind = "behind",
    }
}
labels! {
    /// The parts of publishing.
    Part as "part" {
        /// From the receipt of the revisions until the feed's lock is requested: reading them, and cutting them into
        /// revisions.
        Reading = "reading",
        /// The wait for the feed's lock. Joins, cancels and streams that catch up hold it for a moment.
        Waiting = "waiting",
        /// The work under the feed's lock, which others wait for: the revisions are put into the snapshot and the
        /// history, and the watches that want them are looked up. It does not grow with the number of streams.
        Taking = "taking",
        /// Everything is pushed to all live watches. Only progress reports wait for this.
        Pushing = "pushing",
    }
}
labels! {
    /// Whether a connection was made.
    Connect as "outcome" {
        /// Yes.
        Ok = "ok",
        /// No.
        Error = "error",
    }
}
labels! {
    /// Which of etcd's services a call is for.
    Service as "service" {
        /// `etcdserverpb.KV`
        Kv = "kv",
        /// `etcdserverpb.Watch`
        Watch = "watch",
        /// `etcdserverpb.Lease`
        Lease = "lease",
        /// `etcdserverpb.Cluster`
        Cluster = "cluster",
        /// `etcdserverpb.Maintenance`
        Maintenance = "maintenance",
        /// `etcdserverpb.Auth`
        Auth = "auth",
        /// `v3lockpb.Lock`
        Lock = "lock",
        /// `v3electionpb.Election`
        Election = "election",
        /// Any other.
        Other = "other",
    }
}
labels! {
    /// How a forwarded call ended.
    Outcome as "outcome" {
        /// Upstream answered with success.
        Ok = "ok",
        /// Upstream answered with an error.
        Error = "error",
        /// Upstream could not be reached, or the connection broke.
        Unavailable = "unavailable",
        /// The client went away.
        Canceled = "canceled",
        /// The relay ended it because it is stopping.
        Shutdown = "shutdown",
        /// The relay refused it, because its client has as many under way as it may.
        Refused = "refused",
    }
}
labels! {
    /// How a request to the JSON gateway ended.
    GatewayOutcome as "outcome" {
        /// Its call succeeded.
        Ok = "ok",
        /// Its call failed.
        Error = "error",
        /// It maps to no call: its path, its method or its body is wrong.
        Refused = "refused",
        /// The client went away.
        Canceled = "canceled",
    }
}
labels! {
    /// What a connection upstream is for. Calls of one kind never wait for those of another.
    Lane as "lane" {
        /// Forwarded calls that end soon.
        Calls = "calls",
        /// Forwarded calls that wait for something, such as a lock, or that have a long answer.
        Waiting = "waiting",
        /// The relay's own requests.
        Own = "own",
        /// Watches of feeds.
        Feeds = "feeds",
        /// Snapshots of feeds.
        Snapshots = "snapshots",
    }
}

/// Describes all metrics, and starts the series that every relay has at zero. Called once, when the recorder is
/// installed.
pub fn describe() {
    for (name, meaning) in GAUGES {
        describe_gauge!(*name, *meaning);
    }
    for (name, meaning) in COUNTERS {
        describe_counter!(*name, *meaning);
    }
    describe_histogram!(
        VIEW_LAG_SECONDS,
        metrics::Unit::Seconds,
        "Seconds from the receipt of a change until a subscriber's connection gets the view that it changed"
    );
    describe_histogram!(
        PUBLISH_SECONDS,
        metrics::Unit::Seconds,
        "Seconds that it took to push revisions that arrived together to all live watches, by part: reading them, waiting for the feed, pushing"
    );
    describe_histogram!(
        TURN_SECONDS,
        metrics::Unit::Seconds,
        "Seconds by which a task was scheduled late, measured 50 times a second: feeds and deliveries wait as long for their turn"
    );
    describe_histogram!(
        TURNS_WAIT_SECONDS,
        metrics::Unit::Seconds,
        "Seconds for which connections waited in the queue for turns, for each time that one had to wait, whether it got a place or left"
    );
    drop(histogram!(TURN_SECONDS));
    drop(histogram!(TURNS_WAIT_SECONDS));
    for part in Part::ALL {
        drop(histogram!(PUBLISH_SECONDS, Part::LABEL => part.as_str()));
    }
    for name in [
        WATCHES,
        WATCHES_PARKED,
        PROGRESS_NOTIFY_INTERVAL,
        REGISTERED,
        FLEET_RELAYS,
        FLEET_SHARE,
        WATCHES_CATCHING_UP,
        WATCH_STREAMS,
        HISTORY_ENTRIES,
        HISTORY_BYTES,
        HISTORY_OLDEST_REVISION,
        HISTORY_NEWEST_REVISION,
        SNAPSHOT_KEYS,
        ON_DEMAND_BYTES,
        ON_DEMAND_LIMIT_BYTES,
        GAP_FILLS,
        FILLS_WAITING,
        LONG_READS,
        FORWARDS,
        FEED_LAG_REVISIONS,
        FEED_LAG_SECONDS,
        READY,
    ] {
        gauge!(name).set(0.0);
    }
    for name in [
        WATCHES_CREATED,
        UPSTREAM_EVENTS,
        UPSTREAM_REVISIONS,
        EVENTS_DELIVERED,
        RESPONSES_DELIVERED,
        BYTES_DELIVERED,
        BACKFILLED_REVISIONS,
        CONFIRMS,
        CONFIRMED_CALLS,
        STREAMS_UNCONFIRMED,
    ] {
        counter!(name).absolute(0);
    }
    zero!(
        WATCHES_CANCELED by CancelReason,
        WATCHES_REFUSED by Refusal,
        REQUESTS_REFUSED by Overrun,
        UPSTREAM_RECONNECTS by ReconnectReason,
        UPSTREAM_RESYNCS by ResyncReason,
        BACKFILLS by BackfillOutcome,
        READS by Read,
        RANGE_STREAMS by Read,
        ACCESS_CHECKS by Check,
    );
    for state in FeedState::ALL {
        gauge!(FEEDS, FeedState::LABEL => state.as_str()).set(0.0);
    }
}

/// Every gauge with its meaning.
pub const GAUGES: &[(&str, &str)] = &[
    (WATCHES, "Watches that exist now"),
    (PROGRESS_NOTIFY_INTERVAL, "Seconds between progress notifications to watches that asked for them"),
    (REGISTERED, "1 while the relay is registered in etcd under --resolver-prefix"),
    (FLEET_RELAYS, "Relays of the fleet that are ready; 0 if they are not known"),
    (
        FLEET_SHARE,
        "Connections of the relay, as a fraction of the mean of the relays that are ready; 0 if it is not known",
    ),
    (WATCHES_PARKED, "Watches behind the live feed, which read the history as their connection drains"),
    (
        WATCHES_CATCHING_UP,
        "Watches that need revisions older than the history; a backfill or a fill brings them up to it",
    ),
    (WATCH_STREAMS, "Watch streams that are open now"),
    (CONNECTIONS, "Connections that are open now"),
    (CONNECTIONS_LIMIT, "Most connections that a port may have: --max-connections, or less where open files are few"),
    (FEEDS, "Feeds by state"),
    (HISTORY_ENTRIES, "Revisions in the histories of all feeds"),
    (HISTORY_BYTES, "Bytes that the histories of all feeds keep"),
    (HISTORY_OLDEST_REVISION, "Highest of the feeds' oldest revisions in memory"),
    (HISTORY_NEWEST_REVISION, "Highest revision that any feed has"),
    (SNAPSHOT_KEYS, "Keys in the snapshots of all feeds"),
    (ON_DEMAND_BYTES, "Bytes that feeds on demand hold together; bytes that they share are counted once"),
    (
        ON_DEMAND_LIMIT_BYTES,
        "Most bytes that feeds on demand may hold together: --on-demand-bytes, or 0 where they are denied",
    ),
    (GAP_FILLS, "Temporary upstream watches that fill a gap behind the history"),
    (FILLS_WAITING, "Watches that wait for their turn to be filled"),
    (LONG_READS, "Range calls that look at many keys or at a past revision, running or waiting for their turn"),
    (VIEW_STREAMS, "Streams of views that are open now"),
    (KEYS_STREAMS, "Streams of /v1/watch that are open now"),
    (VIEW_TARGETS, "Distinct selections of views that are kept up to date"),
    (VIEW_BYTES, "Memory that the rows of view selections take"),
    (VIEW_UNREADABLE, "Values that views cannot read now"),
    (FORWARDS, "Forwarded calls that are running now"),
    (UPSTREAM_CONNECTIONS, "Connections to etcd that are open now, by what they are used for"),
    (UPSTREAM_WAITING, "Calls that wait until a connection to etcd has room for them, by what it is used for"),
    (
        FORWARDS_HELD,
        "Forwarded calls that wait until an etcd member can be reached, and writes that wait for an election, or until it is known where a watch begins that was created before them on their connection",
    ),
    (AUDIT_COMPLETED, "When the audit last finished with all feeds, in seconds since 1970; 0 before that"),
    (FEED_LAG_REVISIONS, "Revisions of the store by which the slowest feed is behind etcd"),
    (FEED_LAG_SECONDS, "Seconds for which a feed has been behind etcd; the longest time of all feeds"),
    (MEMBER_HEALTHY, "1 while the etcd member, numbered by its place among the endpoints, answers for its cluster"),
    (UPSTREAM_LEADERLESS, "1 while the etcd members that answer have no leader"),
    (
        TURNS_WAITING,
        "Connections that wait for their turn: new ones with their first request, and those with much to do, such as to send a long list",
    ),
    (
        SEND_RINGS,
        "Rings of io_uring that join sends to clients, one for each thread; 0 where each send is a system call (--io)",
    ),
    (TLS_CERTIFICATE_NOT_AFTER, "When a certificate in use expires, in seconds of Unix time; 0 if there is none"),
    (FACADE_WAITS, "Waits and streams over etcd's v2 API that are open now"),
    (READY, "1 while the relay is ready"),
    (BUILD_INFO, "Always 1; the label is the relay's version"),
];

/// Every counter with its meaning.
pub const COUNTERS: &[(&str, &str)] = &[
    (WATCHES_CREATED, "Watches created"),
    (WATCHES_CANCELED, "Watches that ended, by reason"),
    (WATCHES_REFUSED, "Watch creates that were refused, by reason"),
    (CONNECTIONS_ACCEPTED, "Connections accepted"),
    (CONNECTIONS_ASKED_TO_LEAVE, "Connections that the relay asked to reconnect elsewhere"),
    (REQUESTS_REFUSED, "Requests over HTTP/2 that exceeded a limit of their connection, by reason"),
    (CONNECTIONS_TURNED_AWAY, "Connections that were closed unserved, or because the client read nothing, by reason"),
    (ACCEPT_ERRORS, "Failures of accept that are not the client's fault, such as too many open files"),
    (UPSTREAM_EVENTS, "Events received from upstream on feeds"),
    (UPSTREAM_REVISIONS, "Revisions received from upstream on feeds"),
    (UPSTREAM_RECONNECTS, "Broken upstream watches of feeds, by reason"),
    (UPSTREAM_RESYNCS, "New snapshots of running feeds, by reason"),
    (AUDITS, "Audits of a feed that ended, by outcome"),
    (AUDIT_MISMATCHES, "Feeds whose content differed from etcd's in an audit"),
    (AUDITED_KEYS, "Keys that the audit compared with etcd's"),
    (BACKFILLS, "Reads of a feed's past, which extend its history backwards, by outcome"),
    (BACKFILLED_REVISIONS, "Revisions by which feeds' histories were extended backwards"),
    (UPSTREAM_CONNECTS, "Attempts to connect upstream"),
    (V2_LISTINGS, "Listings read from etcd's v2 API, by reason"),
    (V2_WAITS, "Waits on etcd's v2 API that ended, by how they ended"),
    (V2_REPAIRED, "Events that a wait on etcd's v2 API had missed, and that its successor found"),
    (FACADE_REQUESTS, "Requests for keys over etcd's v2 API, by kind"),
    (FACADE_EXPIRED, "Expired keys of etcd's v2 API that this relay deleted"),
    (FACADE_PASTS, "Reads of revisions older than the history of etcd's v2 API, by outcome"),
    (FACADE_JOINED, "Revisions that changed several keys of etcd's v2 API, of which a wait reports one"),
    (EVENTS_DELIVERED, "Events written to subscribers"),
    (RESPONSES_DELIVERED, "Watch responses written to subscribers"),
    (BYTES_DELIVERED, "Bytes of watch responses written to subscribers"),
    (CONFIRMS, "Requests to etcd for its current revision, each for all reads and watch requests that waited for it"),
    (
        CONFIRMED_CALLS,
        "Reads and batches of watch requests that were answered by requests to etcd for its current revision",
    ),
    (READS, "Range calls by how they were answered"),
    (RANGE_STREAMS, "RangeStream calls by how they were answered"),
    (ACCESS_CHECKS, "Checks with etcd whether a client may read a range, by outcome"),
    (
        STREAMS_UNCONFIRMED,
        "Watch streams ended because etcd did not confirm in time that their clients may read what they watch",
    ),
    (VIEW_REQUESTS, "Requests for views, by outcome"),
    (VIEW_MESSAGES, "Replies written to streams of views"),
    (VIEW_MESSAGE_BYTES, "Bytes of replies written to streams of views"),
    (KEYS_REQUESTS, "Requests for /v1/keys and /v1/watch, by how they were answered"),
    (KEYS_MESSAGES, "Writes of events to streams of /v1/watch"),
    (KEYS_MESSAGE_BYTES, "Bytes of events written to streams of /v1/watch"),
    (KEYS_SNAPSHOTS, "Snapshots sent to streams of /v1/watch, by reason"),
    (VIEW_CHANGES, "Changes of keys that views are made from, by their effect"),
    (VIEW_VERSIONS, "New versions of the view selections that clients asked for"),
    (MEMBER_LEFT, "How often the relay left an etcd member for another one, by reason"),
    (FORWARD_RETRIES, "Forwarded reads that were sent again to another member, since the first one did not answer"),
    (SEND_BATCHES, "System calls that sent to several clients at once, by io_uring"),
    (BATCHED_SENDS, "Sends to clients that were made together with others, by io_uring"),
    (TLS_HANDSHAKES, "TLS handshakes with clients, by port and outcome"),
    (TLS_UPSTREAM_HANDSHAKES, "TLS handshakes with etcd"),
    (
        TLS_RELOADS,
        "Changes of TLS files that were noticed, by side and outcome; a change that cannot be used is counted at each check",
    ),
    (GATEWAY_REQUESTS, "Requests to the JSON gateway, by service and outcome, counted when they end"),
    (FORWARDED, "Calls forwarded upstream, by service and outcome, counted when they end"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn told(present: &Present) -> String {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            describe();
            begin(present);
        });
        handle.render()
    }

    #[test]
    fn every_series_of_what_a_relay_has_is_there_at_zero_with_a_help_text() {
        let text = told(&Present {
            ports: Port::ALL.iter().map(|port| (*port, true)).collect(),
            leaves: vec![LeaveReason::Age, LeaveReason::Share],
            etcd: true,
            etcd_tls: true,
            etcd_v2: true,
            facade: true,
            batches: true,
            views: true,
        });
        // The recorder reports the build, and calls are reported by service from the first one on.
        for (name, meaning) in
            GAUGES.iter().chain(COUNTERS).filter(|(name, _)| ![BUILD_INFO, FORWARDED, GATEWAY_REQUESTS].contains(name))
        {
            assert!(text.contains(&format!("# HELP {name} {meaning}")), "{name} has no help text");
            assert!(text.lines().any(|line| line.starts_with(name)), "{name} has no series");
        }
        assert!(text.contains(r#"etcd_relay_connections_asked_to_leave_total{port="v2",reason="share"} 0"#), "{text}");
    }

    #[test]
    fn what_a_relay_does_not_have_has_no_series() {
        let plain = Present { ports: vec![(Port::Grpc, false), (Port::Http, false)], etcd: true, ..Present::default() };
        let text = told(&plain);
        for absent in
            ["etcd_relay_tls_", "etcd_relay_v2_", "etcd_relay_facade_", "etcd_relay_view_", "port=\"v2\"", "\"share\""]
        {
            let series = text.lines().find(|line| !line.starts_with('#') && line.contains(absent));
            // Histograms have their help text.
            assert_eq!(series, None, "{absent}");
        }
        assert!(text.contains(r#"etcd_relay_connections{port="http"} 0"#), "{text}");
        assert!(text.contains(r#"etcd_relay_connections_limit{port="http"} 0"#), "{text}");
        assert!(text.contains("etcd_relay_audit_mismatches_total 0"), "an alert needs it: {text}");
    }

    #[test]
    fn the_series_of_a_service_begin_once_with_its_first_call() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            begin_forwarding(Service::Election);
            let canceled = Outcome::Canceled;
            metrics::counter!(
                FORWARDED,
                Service::LABEL => Service::Election.as_str(),
                Outcome::LABEL => canceled.as_str()
            )
            .increment(1);
            begin_forwarding(Service::Election);
        });
        let text = handle.render();
        assert!(text.contains(r#"etcd_relay_forwarded_total{service="election",outcome="canceled"} 1"#), "{text}");
        assert!(text.contains(r#"etcd_relay_forwarded_total{service="election",outcome="ok"} 0"#), "{text}");
        assert!(!text.contains(r#"service="kv""#), "{text}");
    }
}
