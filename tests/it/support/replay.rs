//! [`Replay`]: what really happened in etcd, to check what watchers received.
//!
//! The checks are in `validate`. The data comes from etcd itself through one direct watch, or is made by hand in tests
//! of the checker. Always holds: events are in the order of revisions, and those of one revision in etcd's order.

use std::collections::HashMap;

use bytes::Bytes;
use etcd_relay::pb::{
    etcdserverpb::WatchCreateRequest,
    mvccpb::{Event, KeyValue, event::EventType},
};

use super::client::{self, WatchStream, event_revision};

/// Every event in a range of revisions, and the state of each key between them.
#[derive(Debug, Default)]
pub struct Replay {
    events: Vec<Event>,
    /// For each key its values, by the revision of each; `None` for a delete.
    states: HashMap<Bytes, Vec<(i64, Option<KeyValue>)>>,
}

impl Replay {
    /// Reads everything from the first revision to `last` from an etcd without compaction.
    pub async fn read(endpoint: &str, last: i64) -> Self {
        Self::read_prefix(endpoint, "", 1, last).await
    }

    /// Reads the keys with this prefix from revision `first`, which must not be compacted, to `last`, which must have
    /// an event.
    pub async fn read_prefix(endpoint: &str, prefix: &str, first: i64, last: i64) -> Self {
        let mut stream = WatchStream::open(endpoint).await;
        let request = WatchCreateRequest { start_revision: first, ..client::prefix(prefix) };
        stream.created(request).await;
        let mut events = Vec::new();
        while events.last().is_none_or(|event| event_revision(event) < last) {
            let response = stream.next().await;
            assert!(!response.canceled, "revision {first} is gone: {response:?}");
            events.extend(response.events);
        }
        events.retain(|event| event_revision(event) <= last);
        Self::from_events(events)
    }

    /// Made from events in order.
    pub fn from_events(events: Vec<Event>) -> Self {
        let mut replay = Self::default();
        replay.extend(events);
        replay
    }

    /// Adds later events.
    pub fn extend(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            let kv = event.kv.clone().expect("an event has a key");
            let (key, revision) = (kv.key.clone(), kv.mod_revision);
            let state = (event.r#type() == EventType::Put).then_some(kv);
            self.states.entry(key).or_default().push((revision, state));
            self.events.push(event);
        }
    }

    /// Every event.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Every event from `revision` on.
    pub fn events_from(&self, revision: i64) -> &[Event] {
        &self.events[self.events.partition_point(|event| event_revision(event) < revision)..]
    }

    /// The expected result of a read of these keys at `revision`, in key order. Changes from before the replay are
    /// unknown.
    pub fn at(&self, keys: impl Fn(&[u8]) -> bool, revision: i64) -> Vec<&KeyValue> {
        let wanted = self.states.keys().filter(|key| keys(key));
        let mut values: Vec<_> = wanted.filter_map(|key| self.before(key, revision + 1)).collect();
        values.sort_by(|one, other| one.key.cmp(&other.key));
        values
    }

    /// The value of a key just before `revision`; `None` also if it was last changed before the replay.
    pub fn before(&self, key: &[u8], revision: i64) -> Option<&KeyValue> {
        let states = self.states.get(key)?;
        let later = states.partition_point(|(changed, _)| *changed < revision);
        states[..later].last()?.1.as_ref()
    }

    /// Whether the replay has a change of the key before `revision`.
    pub fn knows_before(&self, key: &[u8], revision: i64) -> bool {
        self.states.get(key).is_some_and(|states| states.first().is_some_and(|(changed, _)| *changed < revision))
    }
}
