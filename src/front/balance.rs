//! [`Balance`]: keeps the number of a relay's connections near its share of the fleet's connections.
//!
//! Each relay writes its number of connections to a key in etcd, under the lease of its registration, and reads the
//! numbers of the others from a feed. The key is outside the prefix of registrations: etcd clients that resolve names
//! there would reconnect at each change. Not here: how many clients are asked to leave and when a number is written
//! (`crate::fleet`), which clients are asked (`listen::pacing`), and writing the key (`source::etcd::register`). Always
//! holds: no client is asked to leave while this relay is not ready, or sees no other relay that is ready.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use metrics::gauge;
use tokio::{sync::watch, time::Instant};

use super::{grpc::Advertised, listen::Pacing};
use crate::{
    fleet::{Load, Publishing, STEP, Shedding},
    hub::{Feed, FeedState, Hub},
    telemetry::{ReadyBoard, names},
    types::KeyRange,
};

/// Most relays that are read, and the longest value that is read as a load; the same as for registrations.
const MOST: usize = 1_000;
const LONGEST: usize = 4 << 10;
/// A feed that is behind etcd for this long tells nothing about the other relays.
const STALE: Duration = Duration::from_secs(3);

/// See the module.
#[derive(Debug)]
pub struct Balance {
    /// This relay's own key.
    key: Bytes,
    range: KeyRange,
    feed: Arc<Feed>,
    /// The connections to balance.
    pacing: Arc<Pacing>,
    ready: ReadyBoard,
    /// The value to write for this relay.
    told: watch::Sender<Bytes>,
}

/// The key for the load of the relay that is advertised so; `None` if it does not register itself.
#[must_use]
pub fn load_key(advertised: &Advertised) -> Option<Bytes> {
    Some(format!("{}{}", prefix(advertised)?, advertised.url).into())
}

fn prefix(advertised: &Advertised) -> Option<String> {
    Some(format!("{}.connections/", advertised.prefix.as_ref()?))
}

impl Balance {
    /// Creates a balancer for the connections of `pacing`. A feed of all relays' keys is always open. `None` if the
    /// relay does not register itself.
    #[must_use]
    pub fn new(
        advertised: &Advertised,
        hub: &Hub,
        pacing: Arc<Pacing>,
        ready: ReadyBoard,
        told: watch::Sender<Bytes>,
    ) -> Option<Self> {
        let (key, range) = (load_key(advertised)?, KeyRange::prefix(prefix(advertised)?.into()));
        Some(Self { key, feed: hub.always(range.clone()), range, pacing, ready, told })
    }

    /// Runs forever, as a task.
    pub async fn run(self) {
        let origin = Instant::now();
        let (mut publishing, mut shedding) = (Publishing::default(), Shedding::default());
        loop {
            let now = origin.elapsed();
            let own = Load { connections: self.pacing.staying(), ready: self.ready.is_ready() };
            let others = own.ready.then(|| self.others()).flatten();
            let relays = others.as_ref().map_or(0, |others| others.len() + 1);
            if publishing.is_due(now, own, relays)
                && let Ok(value) = serde_json::to_string(&own)
            {
                self.told.send_replace(value.into());
            }
            let all = others.iter().flatten().fold(own.connections, |all, other| all.saturating_add(*other));
            gauge!(names::FLEET_RELAYS).set(relays as f64);
            gauge!(names::FLEET_SHARE).set(if relays == 0 || all == 0 {
                0.0
            } else {
                own.connections as f64 * relays as f64 / all as f64
            });
            let count = shedding.look(now, own.connections, others.as_deref());
            let next = origin + now + STEP;
            for asked in 0..u32::try_from(count).unwrap_or(u32::MAX) {
                tokio::time::sleep_until(origin + now + STEP.mul_f64(f64::from(asked) / count as f64)).await;
                self.pacing.ask_one();
            }
            tokio::time::sleep_until(next.max(Instant::now())).await;
        }
    }

    /// The number of connections of each other relay that is ready; `None` if it is currently unknown.
    fn others(&self) -> Option<Vec<usize>> {
        let late = self.feed.lag().is_some_and(|lag| lag.time >= STALE);
        if late || !self.feed.is_serving() || self.feed.state() != FeedState::Live {
            return None;
        }
        let snapshot = self.feed.snapshot();
        let kvs = snapshot.map.range(&self.range).take(MOST);
        let others = kvs.filter(|kv| kv.key() != self.key.as_ref() && kv.encoded().len() <= LONGEST);
        let loads = others.filter_map(|kv| serde_json::from_slice::<Load>(kv.value()).ok());
        Some(loads.filter(|load| load.ready).map(|load| load.connections).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hub::{KeyMap, OutboxLimits, testing},
        telemetry::names::Port,
        types::{KeyValue, KeyValueFields, Revision},
    };

    const URL: &str = "http://10.0.0.1:23790";

    fn map(loads: &[(&str, &str)]) -> KeyMap {
        let mut map = KeyMap::default();
        for (url, value) in loads {
            let fields = KeyValueFields {
                key: format!("/relays.connections/{url}").into(),
                value: Bytes::copy_from_slice(value.as_bytes()),
                ..Default::default()
            };
            map.insert(KeyValue::new(&fields));
        }
        map
    }

    #[tokio::test(start_paused = true)]
    async fn connections_are_shed_to_others_that_are_ready_while_they_are_seen() {
        let hub = testing::hub(OutboxLimits { bytes: 1 << 20, deliveries: 100, watches: 100 });
        let advertised = Advertised { url: URL.to_owned(), name: "a".to_owned(), prefix: Some("/relays".to_owned()) };
        let pacing = crate::front::listen::PortConfig::new(Port::Grpc, ([127, 0, 0, 1], 0).into()).pacing();
        let places: Vec<_> = (0..100).map(|_| pacing.join()).collect();
        let (ready, told) = (ReadyBoard::new(), watch::Sender::new(Bytes::new()));
        let mut own = told.subscribe();
        let balance = Balance::new(&advertised, &hub, pacing.clone(), ready.clone(), told).expect("it registers");
        let feed = balance.feed.clone();
        let running = tokio::spawn(balance.run());
        let seconds = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
        seconds(20).await;
        assert_eq!(pacing.staying(), 100, "nothing is known");
        assert_eq!(*own.borrow_and_update(), r#"{"connections":100,"ready":true}"#);
        let low = r#"{"connections":0,"ready":true}"#;
        // Entries that must be ignored: this relay's own old value, a relay that is not ready, a value that is not a
        // load.
        let nobody = [(URL, low), ("http://b:1", r#"{"connections":0,"ready":false}"#), ("http://c:1", "0")];
        feed.install(Arc::default(), map(&nobody), Revision::new(5));
        feed.set_state(FeedState::Live);
        seconds(20).await;
        assert_eq!(pacing.staying(), 100, "there is no other relay");
        feed.install(Arc::default(), map(&[("http://b:1", low)]), Revision::new(6));
        feed.set_state(FeedState::Live);
        let hold = ready.hold("not yet");
        seconds(20).await;
        assert_eq!(pacing.staying(), 100, "this relay is not ready itself");
        assert_eq!(*own.borrow_and_update(), r#"{"connections":100,"ready":false}"#);
        drop(hold);
        seconds(10).await;
        let left = pacing.staying();
        assert!((85..98).contains(&left), "{left} of 100");
        feed.set_state(FeedState::Resuming);
        seconds(2).await;
        let left = pacing.staying();
        seconds(20).await;
        assert_eq!(pacing.staying(), left, "the other relays' numbers may be old");
        assert_eq!(places.iter().filter(|place| !place.token().is_cancelled()).count(), left);
        running.abort();
    }

    #[test]
    fn loads_are_outside_the_prefix_of_registrations() {
        let advertised = Advertised { url: URL.to_owned(), name: "a".to_owned(), prefix: Some("/relays".to_owned()) };
        assert_eq!(load_key(&advertised).expect("one"), "/relays.connections/http://10.0.0.1:23790");
        assert!(load_key(&Advertised { prefix: None, ..advertised }).is_none());
    }
}
