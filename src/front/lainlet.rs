//! What Lainlet's HTTP and gRPC APIs have in common: their version, and the state behind the views.
//!
//! The views themselves are in `crate::view`.

use std::time::UNIX_EPOCH;

use serde::Serialize;

use crate::{types::EventKind, view::Stats};

/// The version of the API.
pub const API_VERSION: &str = "2.4";
/// The version of Lainlet that this replaces, followed by the relay's own version.
pub const VERSION: &str = concat!("2.4.3+etcd-relay.", env!("CARGO_PKG_VERSION"));

/// Go's zero time, the first second of the year 1, in seconds of Unix time.
const NEVER: i64 = -62_135_596_800;

/// Lainlet's number of goroutines. Here it is the number of running tasks.
#[must_use]
pub fn goroutines() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// When a directory last changed, in seconds of Unix time; the year 1 if it never did.
#[must_use]
pub fn update_time(stats: &Stats) -> i64 {
    let at = stats.last.as_ref().and_then(|last| last.at.duration_since(UNIX_EPOCH).ok());
    at.map_or(NEVER, |at| at.as_secs().cast_signed())
}

/// The last change of a directory in Lainlet's format, but without the value, which may be secret.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct LastEvent {
    /// 0 for none, 1 for a put, 3 for a deletion, 4 for a new snapshot.
    action: u8,
    /// The key in etcd, or the directory of a snapshot.
    key: String,
    modified_index: i64,
    /// Always `null`.
    data: (),
}

impl LastEvent {
    /// The last event of a directory with this state.
    #[must_use]
    pub fn of(stats: &Stats) -> Self {
        let Some(last) = &stats.last else {
            return Self { action: 0, key: String::new(), modified_index: 0, data: () };
        };
        let action = match last.kind {
            Some(EventKind::Put) => 1,
            Some(EventKind::Delete) => 3,
            None => 4,
        };
        let key = String::from_utf8_lossy(&last.key).into_owned();
        Self { action, key, modified_index: last.revision.get(), data: () }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use bytes::Bytes;

    use super::*;
    use crate::{types::Revision, view};

    fn told(stats: &Stats) -> String {
        serde_json::to_string(&LastEvent::of(stats)).expect("JSON")
    }

    fn stats(last: Option<view::LastEvent>) -> Stats {
        Stats { subscribers: 0, keys: 0, last, refused: Vec::new(), refused_total: 0 }
    }

    #[test]
    fn nothing_has_happened_in_gos_first_year() {
        let stats = stats(None);
        assert_eq!(update_time(&stats), NEVER);
        assert_eq!(told(&stats), r#"{"Action":0,"Key":"","ModifiedIndex":0,"Data":null}"#);
    }

    #[test]
    fn the_last_event_is_told_without_its_value() {
        for (kind, action) in [(Some(EventKind::Put), 1), (Some(EventKind::Delete), 3), (None, 4)] {
            let stats = stats(Some(view::LastEvent {
                key: Bytes::from_static(b"/lain/config/vip"),
                revision: Revision::new(7),
                kind,
                at: SystemTime::UNIX_EPOCH + Duration::from_millis(12_900),
            }));
            let rest = r#""Key":"/lain/config/vip","ModifiedIndex":7,"Data":null"#;
            assert_eq!(told(&stats), format!(r#"{{"Action":{action},{rest}}}"#));
            assert_eq!(update_time(&stats), 12);
        }
    }
}
