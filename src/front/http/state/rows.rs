//! The rows of connections and of their watch streams, and [`Sought`], the criteria of a search.
//!
//! Always holds: a row contains the first few streams and watches, however many there are, and the path of the page
//! with the rest.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

use super::{streams_of, watches_of};
use crate::{
    front::{
        Inspect,
        http::admin::Admin,
        listen::{ConnectionId, ConnectionStats, Seen},
    },
    hub::{WatchStats, WatchStreamStats},
};

/// Most watch streams that are shown within their connection's row. Most clients have one to three.
const SHOWN_STREAMS: usize = 8;
/// Most watches that are shown within their stream's row.
const SHOWN_WATCHES: usize = 4;
/// Longest name of a certificate that is shown, in characters.
const SHOWN_NAME: usize = 128;
/// Longest text to search for, in bytes. Addresses and most keys are shorter.
const MOST_SOUGHT: usize = 256;

/// Which connections are requested.
#[derive(Clone, Debug, Default)]
pub(super) struct Sought {
    find: Option<String>,
    behind: bool,
}

/// A connection.
#[derive(Debug, Serialize)]
pub(super) struct ConnectionRow {
    #[serde(flatten)]
    connection: ConnectionStats,
    user: Option<String>,
    watch_streams_open: usize,
    /// Unknown if not all streams are shown, since there may be a hundred thousand.
    watches: Option<usize>,
    lag_revisions: i64,
    watch_streams: Vec<StreamRow>,
    watch_streams_next: Option<String>,
}

/// A watch stream.
#[derive(Debug, Serialize)]
pub(super) struct StreamRow {
    pub(super) number: u64,
    #[serde(flatten)]
    stats: WatchStreamStats,
    watching: Vec<WatchStats>,
    watching_next: Option<String>,
}

impl Sought {
    /// Connections that contain this text in what is shown of them, and that have a watch behind its feed if `behind`
    /// is set.
    pub(super) fn new(find: Option<String>, behind: bool) -> Result<Self, String> {
        let find = find.filter(|text| !text.is_empty());
        match find.as_ref().map(String::len) {
            Some(length) if length > MOST_SOUGHT => {
                Err(format!("find= has {length} bytes; the limit is {MOST_SOUGHT}\n"))
            }
            _ => Ok(Self { find, behind }),
        }
    }

    /// The criteria as the end of a query.
    pub(super) fn query(&self) -> String {
        let mut query = String::new();
        if let Some(find) = &self.find {
            query.push_str("&find=");
            query.extend(utf8_percent_encode(find, NON_ALPHANUMERIC));
        }
        if self.behind {
            query.push_str("&behind=true");
        }
        query
    }

    fn finds(&self, row: &ConnectionRow) -> bool {
        let Some(find) = &self.find else { return true };
        let ConnectionStats { peer, port, agent, request, .. } = &row.connection;
        let own = [Some(&**peer), Some(*port), agent.as_deref(), request.as_deref(), row.user.as_deref()];
        let watches = row.watch_streams.iter().flat_map(|stream| &stream.watching);
        let ranges = watches.filter_map(|watch| watch.range.as_deref());
        own.into_iter().flatten().chain(ranges).any(|text| text.contains(&**find))
    }
}

/// The row of a connection, if it matches.
pub(super) fn connection(admin: &Admin, seen: &Seen, sought: &Sought) -> Option<ConnectionRow> {
    let id = seen.id;
    let stats = admin.inspect.streams_after(id, 0, SHOWN_STREAMS);
    let is_behind = |stats: &WatchStreamStats| stats.parked + stats.filling > 0 || stats.lag_revisions > 0;
    if sought.behind && !stats.iter().any(|(_, stats)| is_behind(stats)) {
        return None;
    }
    let (open, connection) = (admin.inspect.streams(id), seen.stats());
    let is_all = open <= SHOWN_STREAMS;
    let of_token = connection.token.and_then(|token| admin.users.name(token)).map(|name| name.to_string());
    let of_certificate = || Some(connection.certificate.as_ref()?.common()?.chars().take(SHOWN_NAME).collect());
    let row = ConnectionRow {
        user: of_token.or_else(of_certificate),
        watch_streams_open: open,
        watches: is_all.then(|| stats.iter().map(|(_, stats)| stats.watches).sum()),
        lag_revisions: stats.iter().map(|(_, stats)| stats.lag_revisions).max().unwrap_or(0),
        watch_streams: stats.into_iter().map(|(number, stats)| stream(&*admin.inspect, id, number, stats)).collect(),
        watch_streams_next: (!is_all).then(|| streams_of(id)),
        connection,
    };
    sought.finds(&row).then_some(row)
}

/// The rows of a connection's streams.
pub(super) fn streams(inspect: &dyn Inspect, id: ConnectionId, after: u64, most: usize) -> Vec<StreamRow> {
    let streams = inspect.streams_after(id, after, most).into_iter();
    streams.map(|(number, stats)| stream(inspect, id, number, stats)).collect()
}

fn stream(inspect: &dyn Inspect, id: ConnectionId, number: u64, stats: WatchStreamStats) -> StreamRow {
    // A stream that has ended meanwhile has none.
    let watching = inspect.watches_after(id, number, 0, SHOWN_WATCHES).unwrap_or_default();
    let watching_next = (stats.watches > watching.len()).then(|| watches_of(id, number));
    StreamRow { number, stats, watching, watching_next }
}
