//! [`Replay`]: what really happened in etcd, as the judge of what watchers were told.
//!
//! Not here: the judging; see `validate`. It is read from etcd itself by one direct watch, or made by hand in tests of the
//! judge. Always holds: events rise by revision, and those of one revision are in etcd's order.

use std::collections::HashMap;

use bytes::Bytes;
use etcd_relay::pb::{
    etcdserverpb::WatchCreateRequest,
    mvccpb::{Event, KeyValue, event::EventType},
};

use super::client::{self, WatchStream, event_revision};

/// Every event of a span of revisions, and the state of each key between them.
#[derive(Debug, Default)]
pub struct Replay {
    events: Vec<Event>,
    /// For each key its values by the revision they came with; `None` where it was deleted.
    states: HashMap<Bytes, Vec<(i64, Option<KeyValue>)>>,
}

impl Replay {
    /// Reads everything from the first revision to `last` from an etcd that was not compacted.
    pub async fn read(endpoint: &str, last: i64) -> Self {
        Self::read_prefix(endpoint, "", 1, last).await
    }

    /// Reads the keys with this prefix from revision `first`, which must not be compacted, to `last`, which must have an event.
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

    /// From events in their order.
    pub fn from_events(events: Vec<Event>) -> Self {
        let mut replay = Self::default();
        replay.extend(events);
        replay
    }

    /// Goes on with later events.
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

    /// Every event of `revision` and later ones.
    pub fn events_from(&self, revision: i64) -> &[Event] {
        &self.events[self.events.partition_point(|event| event_revision(event) < revision)..]
    }

    /// What a read of these keys at `revision` has to give, in key order; what was last changed before the replay begins is not known.
    pub fn at(&self, keys: impl Fn(&[u8]) -> bool, revision: i64) -> Vec<&KeyValue> {
        let wanted = self.states.keys().filter(|key| keys(key));
        let mut values: Vec<_> = wanted.filter_map(|key| self.before(key, revision + 1)).collect();
        values.sort_by(|one, other| one.key.cmp(&other.key));
        values
    }

    /// The value of a key just before `revision`; `None` also where it was last changed before the replay begins.
    pub fn before(&self, key: &[u8], revision: i64) -> Option<&KeyValue> {
        let states = self.states.get(key)?;
        let later = states.partition_point(|(changed, _)| *changed < revision);
        states[..later].last()?.1.as_ref()
    }

    /// Whether the replay knows a change of the key before `revision`.
    pub fn knows_before(&self, key: &[u8], revision: i64) -> bool {
        self.states.get(key).is_some_and(|states| states.first().is_some_and(|(changed, _)| *changed < revision))
    }
}
