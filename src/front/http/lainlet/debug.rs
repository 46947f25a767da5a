//! `/debug` in Lainlet's format, without the values: these may be secret, and the path is open to everyone.

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    front::lainlet::{self as told, LastEvent},
    view::{Lainlet, Refused, Stats},
};

/// Go's time zero.
const NEVER: &str = "0001-01-01T00:00:00Z";

#[derive(Debug, Serialize)]
struct Debug {
    connections: usize,
    goroutines: usize,
    watchers: Watchers,
    /// An addition to Lainlet.
    unreadable: Unreadable,
}

/// Sorted by name.
#[derive(Debug, Serialize)]
struct Watchers {
    config: Watcher,
    container: Watcher,
    depends: Watcher,
    nodes: Watcher,
    podgroup: Watcher,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Watcher {
    num_receivers: usize,
    update_time: String,
    last_event: LastEvent,
    total_keys: usize,
}

#[derive(Debug, Default, Serialize)]
struct Unreadable {
    total: usize,
    /// The first values of each directory.
    values: Vec<Value>,
}

/// The state behind the views, while `connections` requests are in progress.
pub(super) fn describe(views: &Lainlet, connections: usize) -> Vec<u8> {
    let stats = views.stats();
    let mut unreadable = Unreadable::default();
    // The containers come from the pod groups.
    for (_, stats) in stats.iter().filter(|(name, _)| *name != "container") {
        unreadable.total += stats.refused_total;
        unreadable.values.extend(stats.refused.iter().map(refused));
    }
    let [config, container, depends, nodes, podgroup] = stats.map(|(_, stats)| watcher(&stats));
    let debug = Debug {
        connections,
        goroutines: told::goroutines(),
        watchers: Watchers { config, container, depends, nodes, podgroup },
        unreadable,
    };
    // This cannot fail: it contains no maps and no foreign values.
    serde_json::to_vec(&debug).unwrap_or_default()
}

fn watcher(stats: &Stats) -> Watcher {
    let update_time =
        stats.last.as_ref().map_or_else(|| NEVER.to_owned(), |last| humantime::format_rfc3339(last.at).to_string());
    Watcher { num_receivers: stats.subscribers, update_time, last_event: LastEvent::of(stats), total_keys: stats.keys }
}

fn refused(refused: &Refused) -> Value {
    json!({ "key": refused.key, "revision": refused.revision, "error": refused.error })
}
