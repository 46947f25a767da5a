//! The columns of the two lists, feeds and connections, and which rows are highlighted.

use std::cmp::Ordering;

use super::{
    numbers::{bytes, count, lag, short, time},
    state::{Connection, Feed, Row},
    table::Column,
    text::safe,
};

/// Columns of the list of feeds. The list is sorted by the first one at the start.
pub(super) const FEEDS: &[Column<Feed>] = &[
    Column {
        title: "RANGE",
        least: 12,
        rank: 0,
        right: false,
        cell: |feed| safe(&feed.range),
        order: |a, b| a.range.cmp(&b.range),
    },
    Column {
        title: "STATE",
        least: 9,
        rank: 1,
        right: false,
        cell: feed_state,
        order: |a, b| trouble(b).cmp(&trouble(a)),
    },
    Column {
        title: "BEHIND",
        least: 7,
        rank: 3,
        right: true,
        cell: |feed| lag(feed.lag_revisions, feed.lag_seconds),
        order: |a, b| b.lag_revisions.cmp(&a.lag_revisions),
    },
    Column {
        title: "REVISION",
        least: 9,
        rank: 2,
        right: true,
        cell: |feed| count(feed.revision),
        order: |a, b| b.revision.cmp(&a.revision),
    },
    Column {
        title: "KEYS",
        least: 5,
        rank: 4,
        right: true,
        cell: |feed| count(feed.keys),
        order: |a, b| b.keys.cmp(&a.keys),
    },
    Column {
        title: "SIZE",
        least: 8,
        rank: 7,
        right: true,
        cell: |feed| bytes(feed.bytes as f64),
        order: |a, b| b.bytes.cmp(&a.bytes),
    },
    Column {
        title: "HISTORY FROM",
        least: 9,
        rank: 6,
        right: true,
        cell: history,
        order: |a, b| b.history_entries.cmp(&a.history_entries),
    },
    Column {
        title: "WATCHES",
        least: 7,
        rank: 3,
        right: true,
        cell: |feed| count(feed.watches),
        order: |a, b| b.watches.cmp(&a.watches),
    },
    Column {
        title: "MEMBER",
        least: 10,
        rank: 8,
        right: false,
        cell: |feed| safe(feed.member.as_deref().unwrap_or("–")),
        order: |a, b| a.member.cmp(&b.member),
    },
    Column {
        title: "LAST ERROR",
        least: 12,
        rank: 5,
        right: false,
        cell: last_error,
        order: |a, b| last_error_at(b).cmp(last_error_at(a)),
    },
];

/// Columns of the list of connections.
pub(super) const CONNECTIONS: &[Column<Connection>] = &[
    Column {
        title: "BEHIND",
        least: 7,
        rank: 2,
        right: true,
        cell: |row| count(row.behind().unsigned_abs()),
        order: |a, b| b.behind().cmp(&a.behind()),
    },
    Column {
        title: "PEER",
        least: 15,
        rank: 0,
        right: false,
        cell: |row| safe(&row.peer),
        order: |a, b| a.peer.cmp(&b.peer),
    },
    Column {
        title: "PORT",
        least: 4,
        rank: 6,
        right: false,
        cell: |row| safe(&row.port),
        order: |a, b| a.port.cmp(&b.port),
    },
    Column {
        title: "OPEN",
        least: 6,
        rank: 5,
        right: true,
        cell: |row| time(row.open_seconds),
        order: |a, b| b.open_seconds.cmp(&a.open_seconds),
    },
    Column {
        title: "USER",
        least: 6,
        rank: 4,
        right: false,
        cell: |row| safe(row.user.as_deref().unwrap_or("–")),
        order: |a, b| named(&a.user).cmp(&named(&b.user)),
    },
    Column {
        title: "AGENT",
        least: 10,
        rank: 7,
        right: false,
        cell: |row| safe(row.agent.as_deref().unwrap_or("–")),
        order: |a, b| named(&a.agent).cmp(&named(&b.agent)),
    },
    Column {
        title: "WATCHES",
        least: 7,
        rank: 3,
        right: true,
        cell: watches,
        order: |a, b| b.watches().cmp(&a.watches()),
    },
    Column {
        title: "QUEUED",
        least: 7,
        rank: 8,
        right: true,
        cell: |row| bytes(row.queued_bytes() as f64),
        order: |a, b| b.queued_bytes().cmp(&a.queued_bytes()),
    },
    Column {
        title: "WATCHING",
        least: 12,
        rank: 1,
        right: false,
        cell: |row| safe(&row.watching()),
        order: |a, b| a.ranges().cmp(b.ranges()),
    },
];

/// How strongly a feed is highlighted; 0 means it is healthy.
pub(super) fn trouble(feed: &Feed) -> u8 {
    match (&*feed.state, &*feed.permission) {
        (_, "denied") => 4,
        (_, "lost") => 3,
        ("live", _) if feed.lag_seconds < 1.0 => 0,
        ("live", _) => 1,
        _ => 2,
    }
}

fn feed_state(feed: &Feed) -> String {
    match &*feed.permission {
        "" | "granted" => safe(&feed.state),
        permission => safe(&format!("{} ({permission})", feed.state)),
    }
}

fn history(feed: &Feed) -> String {
    format!("{} ({})", count(feed.history_start), short(feed.history_entries as f64))
}

fn last_error(feed: &Feed) -> String {
    match &feed.last_error {
        None => "–".to_owned(),
        Some(trouble) if trouble.over => safe(&format!("{} (over) {}", trouble.at, trouble.error)),
        Some(trouble) => safe(&format!("{} {}", trouble.at, trouble.error)),
    }
}

fn last_error_at(feed: &Feed) -> &str {
    feed.last_error.as_ref().map_or("", |trouble| &trouble.at)
}

fn watches(connection: &Connection) -> String {
    let (watches, more) = connection.watches();
    if more { format!("{}+", count(watches)) } else { count(watches) }
}

/// Rows without a name come last.
fn named(name: &Option<String>) -> (bool, &str) {
    (name.is_none(), name.as_deref().unwrap_or_default())
}

/// Sorts rows by a column. Rows that are equal there are sorted by their numbers, so that they keep their places.
pub(super) fn sort<R: Row>(rows: &mut [&R], column: &Column<R>, reversed: bool) {
    let order = |a: &&R, b: &&R| -> Ordering {
        let order = (column.order)(a, b);
        if reversed { order.reverse() } else { order }.then_with(|| a.number().cmp(&b.number()))
    };
    rows.sort_by(order);
}
