//! The answers of a v2 member other than listings: [`Event`]s, [`Refusal`]s, and the numbers in an answer's head.
//!
//! Not here: what follows from them. Always holds: every index was sent by the member.

use http::{HeaderMap, HeaderName};
use serde::Deserialize;

use crate::types::Revision;

/// The requested history is gone.
pub(super) const CLEARED: u32 = 401;
/// There is no such key or directory.
pub(super) const NOT_FOUND: u32 = 100;
/// A part of the path is a file.
pub(super) const NOT_A_DIRECTORY: u32 = 104;
/// The relay's user may not read it.
pub(super) const UNAUTHORIZED: u32 = 110;

static CLUSTER: HeaderName = HeaderName::from_static("x-etcd-cluster-id");
static INDEX: HeaderName = HeaderName::from_static("x-etcd-index");
static TERM: HeaderName = HeaderName::from_static("x-raft-term");

/// What the head of an answer says about the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) cluster_id: u64,
    /// The store's index: for a listing the index that it shows, for a wait the index at which it was registered.
    pub(super) index: Revision,
    /// Absent on errors.
    pub(super) raft_term: Option<u64>,
}

impl Standing {
    /// `None` if the answer does not come from a v2 member.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let text = |name: &HeaderName| headers.get(name)?.to_str().ok();
        Some(Self {
            cluster_id: u64::from_str_radix(text(&CLUSTER)?, 16).ok()?,
            index: Revision::new(text(&INDEX)?.parse().ok()?),
            raft_term: text(&TERM).and_then(|term| term.parse().ok()),
        })
    }
}

/// A change that a wait returns.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) action: String,
    pub(super) node: EventNode,
    #[serde(rename = "prevNode")]
    prev_node: Option<PrevNode>,
}

/// The node that changed.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(super) struct EventNode {
    pub(super) key: String,
    pub(super) value: Option<String>,
    #[serde(default)]
    dir: bool,
    pub(super) modified_index: i64,
}

/// The node's state before the change.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
struct PrevNode {
    #[serde(default)]
    dir: bool,
}

/// The effect of a change on keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect<'a> {
    /// The key has this value now.
    Put(&'a str),
    /// The key, if there was one, is a directory now, or deleted.
    Gone,
    /// The directory was deleted, with every key below it.
    TreeGone,
}

impl Event {
    pub(super) fn index(&self) -> Revision {
        Revision::new(self.node.modified_index)
    }

    pub(super) fn effect(&self) -> Effect<'_> {
        let removes = matches!(&*self.action, "delete" | "compareAndDelete" | "expire");
        // In etcd 2, only `prevNode` shows that a directory has expired.
        let was_directory = self.prev_node.as_ref().is_some_and(|node| node.dir);
        match (removes, self.node.dir) {
            (true, dir) if dir || was_directory => Effect::TreeGone,
            (true, _) | (false, true) => Effect::Gone,
            (false, false) => Effect::Put(self.node.value.as_deref().unwrap_or_default()),
        }
    }
}

/// An error as v2 writes it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(super) struct Refusal {
    pub(super) error_code: u32,
    #[serde(default)]
    message: String,
    #[serde(default)]
    cause: String,
    #[serde(default)]
    pub(super) index: i64,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.error_code, self.message)?;
        if self.cause.is_empty() { Ok(()) } else { write!(f, " ({})", self.cause) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(text: &str) -> Event {
        serde_json::from_str(text).expect("an event")
    }

    #[test]
    fn each_action_has_one_effect() {
        let node = r#""node":{"key":"/a","value":"1","modifiedIndex":7,"createdIndex":7}"#;
        for action in ["set", "create", "update", "compareAndSwap"] {
            let event = event(&format!(r#"{{"action":"{action}",{node}}}"#));
            assert_eq!((event.effect(), event.index().get()), (Effect::Put("1"), 7), "{action}");
        }
        let bare = r#""node":{"key":"/a","modifiedIndex":7,"createdIndex":6}"#;
        for action in ["delete", "compareAndDelete", "expire"] {
            let of_file = event(&format!(r#"{{"action":"{action}",{bare},"prevNode":{{"key":"/a","value":"1"}}}}"#));
            assert_eq!(of_file.effect(), Effect::Gone, "{action}");
            let of_directory =
                event(&format!(r#"{{"action":"{action}",{bare},"prevNode":{{"key":"/a","dir":true}}}}"#));
            assert_eq!(of_directory.effect(), Effect::TreeGone, "{action}, told as etcd 2 tells it");
        }
        let directory = r#""node":{"key":"/a","dir":true,"modifiedIndex":7,"createdIndex":6}"#;
        assert_eq!(event(&format!(r#"{{"action":"delete",{directory}}}"#)).effect(), Effect::TreeGone);
        assert_eq!(event(&format!(r#"{{"action":"set",{directory}}}"#)).effect(), Effect::Gone);
    }

    #[test]
    fn a_head_that_is_not_of_v2_has_no_standing() {
        let mut headers = HeaderMap::new();
        assert_eq!(Standing::of(&headers), None);
        headers.insert(&CLUSTER, "cdf818194e3a8c32".parse().expect("a value"));
        headers.insert(&INDEX, "12".parse().expect("a value"));
        let standing = Standing::of(&headers).expect("a standing");
        assert_eq!((standing.cluster_id, standing.index.get(), standing.raft_term), (0xcdf8_1819_4e3a_8c32, 12, None));
        headers.insert(&INDEX, "x".parse().expect("a value"));
        assert_eq!(Standing::of(&headers), None);
    }
}
