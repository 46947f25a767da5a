//! All details of one row, as lines of safe text.

use super::{
    numbers::{bytes, count, lag, time},
    state::{Connection, Feed},
    text::safe,
};

pub(super) fn of_feed(feed: &Feed) -> Vec<String> {
    let mut lines = vec![
        format!("Feed {}  {}", feed.number, safe(&feed.range)),
        format!("state {}  permission {}  kind {}", safe(&feed.state), safe(&feed.permission), safe(&feed.kind)),
        format!("member {}  cluster {:x}", safe(feed.member.as_deref().unwrap_or("–")), feed.cluster_id),
        format!("revision {}  behind {}", count(feed.revision), lag(feed.lag_revisions, feed.lag_seconds)),
        format!("{} keys in {}", count(feed.keys), bytes(feed.bytes as f64)),
        format!(
            "history: {} revisions, complete from revision {}",
            count(feed.history_entries),
            count(feed.history_start)
        ),
        format!("{} watches", count(feed.watches)),
    ];
    match &feed.last_error {
        None => lines.push("no error so far".to_owned()),
        Some(trouble) => {
            let over = if trouble.over { ", over" } else { "" };
            lines.push(format!("last error ({}{over}): {}", safe(&trouble.at), safe(&trouble.error)));
        }
    }
    lines
}

pub(super) fn of_connection(connection: &Connection) -> Vec<String> {
    let (watches, more) = connection.watches();
    let text = |text: &Option<String>| text.as_deref().map_or_else(|| "–".to_owned(), safe);
    let mut lines = vec![
        format!("Connection {} from {}", connection.id, safe(&connection.peer)),
        format!("port {}  open for {}", safe(&connection.port), time(connection.open_seconds)),
        format!("user {}", text(&connection.user)),
        format!("agent {}", text(&connection.agent)),
        format!(
            "{} watch streams with {}{} watches  behind {} revisions",
            count(connection.watch_streams_open),
            count(watches),
            if more { " or more" } else { "" },
            count(connection.behind().unsigned_abs())
        ),
    ];
    lines.extend(connection.request.as_deref().map(|request| format!("request {}", safe(request))));
    for stream in &connection.watch_streams {
        lines.push(format!(
            "Stream {}: {} watches, {} parked, {} filling, {} queued ({}), behind {} revisions",
            stream.number,
            count(stream.watches),
            count(stream.parked),
            count(stream.filling),
            count(stream.queued),
            bytes(stream.queued_bytes as f64),
            count(stream.lag_revisions.unsigned_abs())
        ));
        for watch in &stream.watching {
            lines.push(format!(
                "  watch {} of {}: {}, next revision {}, behind {}",
                watch.watch_id,
                text(&watch.range),
                safe(&watch.phase),
                count(watch.next),
                count(watch.lag_revisions.unsigned_abs())
            ));
        }
        lines.extend(stream.watching_next.as_deref().map(|path| format!("  more at {}", safe(path))));
    }
    lines.extend(connection.watch_streams_next.as_deref().map(|path| format!("for more streams see {}", safe(path))));
    lines
}
