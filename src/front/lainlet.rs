//! What both of Lainlet's APIs, HTTP and gRPC, tell in the same words: their version, and the state behind the views.
//!
//! Not here: the views themselves, see `crate::view`.

use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

use crate::{
    types::{EventKind, Revision},
    view::{LastEvent, Stats},
};

/// The API that is spoken.
pub const API_VERSION: &str = "2.4";
/// Lainlet's version that is stood in for, and behind it what stands in.
pub const VERSION: &str = concat!("2.4.3+etcd-relay.", env!("CARGO_PKG_VERSION"));

/// Go's time zero, the first second of the year 1, in seconds of Unix time.
const NEVER: i64 = -62_135_596_800;

/// Lainlet's number of goroutines: here, the tasks that are alive.
#[must_use]
pub fn goroutines() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// When a directory changed last, in seconds of Unix time; the year 1 if it never did.
#[must_use]
pub fn update_time(stats: &Stats) -> i64 {
    let at = stats.last.as_ref().and_then(|last| last.at.duration_since(UNIX_EPOCH).ok());
    at.map_or(NEVER, |at| at.as_secs().cast_signed())
}

/// The last change of a directory, as Lainlet's `LastEvent`, but without the value: that may be a secret.
#[must_use]
pub fn last_event(stats: &Stats) -> Value {
    let (action, key, revision) = match &stats.last {
        None => (0, String::new(), Revision::ZERO),
        Some(LastEvent { key, revision, kind, .. }) => {
            let action = match kind {
                Some(EventKind::Put) => 1,
                Some(EventKind::Delete) => 3,
                None => 4,
            };
            (action, String::from_utf8_lossy(key).into_owned(), *revision)
        }
    };
    json!({ "Action": action, "Key": key, "ModifiedIndex": revision.get(), "Data": null })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use bytes::Bytes;

    use super::*;

    fn stats(last: Option<LastEvent>) -> Stats {
        Stats { subscribers: 0, targets: 0, keys: 0, last, refused: Vec::new(), refused_total: 0 }
    }

    #[test]
    fn nothing_has_happened_in_gos_first_year() {
        let stats = stats(None);
        assert_eq!(update_time(&stats), NEVER);
        assert_eq!(last_event(&stats), json!({ "Action": 0, "Key": "", "ModifiedIndex": 0, "Data": null }));
    }

    #[test]
    fn the_last_event_is_told_without_its_value() {
        for (kind, action) in [(Some(EventKind::Put), 1), (Some(EventKind::Delete), 3), (None, 4)] {
            let stats = stats(Some(LastEvent {
                key: Bytes::from_static(b"/lain/config/vip"),
                revision: Revision::new(7),
                kind,
                at: SystemTime::UNIX_EPOCH + Duration::from_millis(12_900),
            }));
            let want = json!({ "Action": action, "Key": "/lain/config/vip", "ModifiedIndex": 7, "Data": null });
            assert_eq!(last_event(&stats), want);
            assert_eq!(update_time(&stats), 12);
        }
    }
}
