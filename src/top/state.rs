//! The parts of `/debug/state` and its pages that `top` shows.
//!
//! docs/debug-state.schema.json describes the answers. Always holds: a missing field is not an error, since older
//! relays do not send all of them. Text is kept as the relay sent it, and reaches the screen only through
//! [`super::text`].

use std::collections::HashSet;

use serde::Deserialize;

/// The process and its cluster.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct State {
    pub(super) relay: Relay,
    pub(super) cluster: Option<Cluster>,
    pub(super) auth: Option<String>,
    pub(super) members: Vec<Member>,
    pub(super) feeds_open: u64,
    pub(super) connections_open: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Relay {
    pub(super) version: String,
    pub(super) uptime_seconds: u64,
    pub(super) not_ready: Vec<String>,
    pub(super) upstream: Option<Upstream>,
    /// Seconds since the process started; rates are computed from it.
    pub(super) at: Option<f64>,
    pub(super) cores: Option<u64>,
    pub(super) cpu_seconds: Option<f64>,
    pub(super) memory_bytes: Option<u64>,
    pub(super) delivered: Option<Delivered>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Upstream {
    pub(super) etcdserver: String,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Delivered {
    pub(super) responses: u64,
    pub(super) events: u64,
    pub(super) bytes: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Cluster {
    pub(super) id: Option<String>,
    pub(super) member: Option<String>,
    pub(super) revision: u64,
    pub(super) lag_revisions: i64,
    pub(super) lag_seconds: f64,
    pub(super) agreement: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Member {
    pub(super) endpoint: String,
    pub(super) health: String,
    pub(super) preferred: bool,
    pub(super) why: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Feed {
    pub(super) number: u64,
    pub(super) range: String,
    pub(super) kind: String,
    pub(super) member: Option<String>,
    pub(super) cluster_id: u64,
    pub(super) state: String,
    pub(super) permission: String,
    pub(super) revision: u64,
    pub(super) keys: u64,
    pub(super) bytes: u64,
    pub(super) history_start: u64,
    pub(super) history_entries: u64,
    pub(super) watches: u64,
    pub(super) lag_revisions: i64,
    pub(super) lag_seconds: f64,
    pub(super) last_error: Option<Trouble>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Trouble {
    pub(super) error: String,
    pub(super) at: String,
    pub(super) over: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) port: String,
    pub(super) peer: String,
    pub(super) open_seconds: u64,
    pub(super) user: Option<String>,
    pub(super) agent: Option<String>,
    pub(super) request: Option<String>,
    pub(super) watch_streams_open: u64,
    /// Not set by older relays, unless they show all streams.
    pub(super) watches: Option<u64>,
    pub(super) lag_revisions: Option<i64>,
    pub(super) watch_streams: Vec<Stream>,
    pub(super) watch_streams_next: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Stream {
    pub(super) number: u64,
    pub(super) watches: u64,
    pub(super) parked: u64,
    pub(super) filling: u64,
    pub(super) queued: u64,
    pub(super) queued_bytes: u64,
    pub(super) lag_revisions: i64,
    pub(super) watching: Vec<Watch>,
    pub(super) watching_next: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Watch {
    pub(super) watch_id: i64,
    pub(super) range: Option<String>,
    pub(super) phase: String,
    pub(super) next: u64,
    pub(super) lag_revisions: i64,
}

/// One page of the feeds.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct FeedsPage {
    pub(super) feeds: Vec<Feed>,
    pub(super) next: Option<String>,
}

/// One page of the connections.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ConnectionsPage {
    pub(super) connections: Vec<Connection>,
    pub(super) next: Option<String>,
}

/// A row of a list.
pub(super) trait Row {
    /// The number that identifies the row. Lists are ordered by it.
    fn number(&self) -> u64;
}

impl Row for Feed {
    fn number(&self) -> u64 {
        self.number
    }
}

impl Row for Connection {
    fn number(&self) -> u64 {
        self.id
    }
}

impl Connection {
    /// The watches of the streams that are shown, and whether there are more.
    pub(super) fn watches(&self) -> (u64, bool) {
        let shown = self.watch_streams.iter().map(|stream| stream.watches).sum();
        (self.watches.unwrap_or(shown), self.watch_streams_next.is_some())
    }

    /// How many revisions its slowest watch is behind.
    pub(super) fn behind(&self) -> i64 {
        let shown = || self.watch_streams.iter().map(|stream| stream.lag_revisions).max();
        self.lag_revisions.or_else(shown).unwrap_or_default()
    }

    /// Bytes that wait until the client reads.
    pub(super) fn queued_bytes(&self) -> u64 {
        self.watch_streams.iter().map(|stream| stream.queued_bytes).sum()
    }

    /// The ranges that it watches, as far as they are shown, or the request that it made.
    pub(super) fn ranges(&self) -> impl Iterator<Item = &str> {
        let watches = self.watch_streams.iter().flat_map(|stream| &stream.watching);
        watches.filter_map(|watch| watch.range.as_deref()).chain(self.request.as_deref())
    }

    /// The same ranges as one text, each range once.
    pub(super) fn watching(&self) -> String {
        let mut text = String::new();
        let mut seen = HashSet::new();
        for range in self.ranges().filter(|range| seen.insert(*range)) {
            text.push_str(if text.is_empty() { "" } else { "  " });
            text.push_str(range);
        }
        if self.watch_streams_next.is_some() || self.watch_streams.iter().any(|stream| stream.watching_next.is_some()) {
            text.push_str("  …");
        }
        text
    }

    /// Whether the shown fields contain a text.
    pub(super) fn has(&self, text: &str) -> bool {
        let named = [Some(&self.peer), Some(&self.port), self.user.as_ref(), self.agent.as_ref()];
        named.into_iter().flatten().any(|field| field.contains(text)) || self.ranges().any(|range| range.contains(text))
    }
}

impl Cluster {
    /// Computes what an older relay does not send for the whole cluster, from its members and feeds.
    pub(super) fn from_parts<'a>(members: &[Member], feeds: impl IntoIterator<Item = &'a Feed>) -> Self {
        let preferred = members.iter().find(|member| member.preferred);
        let mut cluster = Self { member: preferred.map(|member| member.endpoint.clone()), ..Self::default() };
        for feed in feeds {
            if feed.cluster_id != 0 {
                cluster.id = Some(format!("{:x}", feed.cluster_id));
            }
            cluster.revision = cluster.revision.max(feed.revision);
            cluster.lag_revisions = cluster.lag_revisions.max(feed.lag_revisions);
            cluster.lag_seconds = cluster.lag_seconds.max(feed.lag_seconds);
        }
        cluster
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_answer_and_one_of_an_older_relay_are_read() {
        let state: State = serde_json::from_str("{}").expect("tolerated");
        assert_eq!((state.feeds_open, state.relay.cpu_seconds, state.cluster.is_some()), (0, None, false));
        let text = r#"{"relay":{"version":"0.1.0","uptime_seconds":9,"not_ready":[],"upstream":null},"auth":"off",
            "members":[{"endpoint":"http://a:1","health":"healthy","preferred":true}],
            "feeds_open":1,"feeds_next":null,"connections_open":2,"unheard_of":{}}"#;
        let state: State = serde_json::from_str(text).expect("tolerated");
        let feed: Feed =
            serde_json::from_str(r#"{"number":1,"range":"[\"/a/\", \"/a0\")","cluster_id":255,"revision":7,"lag_revisions":2,"last_error":null}"#)
                .expect("tolerated");
        let cluster = Cluster::from_parts(&state.members, [&feed]);
        assert_eq!((cluster.id.as_deref(), cluster.member.as_deref()), (Some("ff"), Some("http://a:1")));
        assert_eq!((cluster.revision, cluster.lag_revisions), (7, 2));
        let page: ConnectionsPage = serde_json::from_str(
            r#"{"connections":[{"id":3,"watch_streams":[{"watches":2,"lag_revisions":5},{"watches":1}]}]}"#,
        )
        .expect("tolerated");
        let connection = &page.connections[0];
        assert_eq!((connection.watches(), connection.behind(), connection.watching()), ((3, false), 5, String::new()));
    }

    #[test]
    fn what_a_connection_watches_is_named_once() {
        let watch = |range: &str| Watch { range: Some(range.to_owned()), ..Watch::default() };
        let stream = |next: Option<&str>| Stream {
            watching: vec![watch("\"/a\""), watch("\"/b\""), watch("\"/a\"")],
            watching_next: next.map(str::to_owned),
            ..Stream::default()
        };
        let mut connection = Connection { watch_streams: vec![stream(None), stream(None)], ..Connection::default() };
        assert_eq!(connection.watching(), "\"/a\"  \"/b\"");
        connection.watch_streams.push(stream(Some("/more")));
        assert_eq!(connection.watching(), "\"/a\"  \"/b\"  …");
        let request = Connection { request: Some("/v2/nodes?watch=1".to_owned()), ..Connection::default() };
        assert_eq!(request.watching(), "/v2/nodes?watch=1");
    }
}
