//! The relay over a cluster whose keys are in etcd's v2 store.
//!
//! `copy` writes in every way and compares a watch with etcd's own listings. `faults` cuts off the relay, and kills and
//! stops members. `calls` makes calls that are supported and calls that are not. `facade` reads v3's data through v2's
//! API. Lainlet's answers are compared in `lainlet::answers`. The parts of the source have tests beside them.

mod calls;
mod copy;
mod facade;
mod faults;
mod race;
mod recorded;
pub mod store;

use std::collections::BTreeMap;

use etcd_relay::pb::mvccpb::{Event, event::EventType};

use self::store::Store;
use crate::support::{
    client::{self, WatchStream},
    etcd::Etcd,
    relay::{Relay, RelayCommand},
};

/// etcd's flag for its v2 API.
pub const ENABLE: &str = "--enable-v2=true";
/// How long a wait of the relay under test stays open: short, so that a test sees its effect.
const HOLD: &str = "--etcd-v2-hold=1s";

/// The relay over these members, with one directory as its feed.
fn relay_over(endpoints: &[String], prefix: &str) -> RelayCommand {
    RelayCommand::over_v2(endpoints).prefix(prefix).arg(HOLD)
}

/// An etcd with v2, a client that writes to it, and a relay over the directory `/d/`.
async fn over_one() -> (Relay, Store, Etcd) {
    let etcd = Etcd::start_with(&[ENABLE]).await;
    let store = Store::at(&etcd.addr());
    let relay = relay_over(&[etcd.endpoint()], "/d/").start().await;
    (relay, store, etcd)
}

/// A directory as a v3 client sees it: keys with their values and revisions, kept up to date by a watch.
#[derive(Debug)]
struct Follower {
    watch: WatchStream,
    keys: BTreeMap<String, (String, i64)>,
    /// Everything up to this revision is included.
    revision: i64,
}

impl Follower {
    /// Follows the keys below `prefix` from the relay's first revision on, which has no keys.
    async fn from_nothing(relay: &Relay, prefix: &str) -> Self {
        let mut watch = WatchStream::open(&relay.endpoint()).await;
        let created = watch.created(client::prefix(prefix)).await;
        Self { watch, keys: BTreeMap::new(), revision: client::header_revision(&created) }
    }

    /// Takes events until it has everything up to `revision`, and none after it.
    async fn reach(&mut self, revision: i64) {
        while self.revision < revision {
            self.watch.progress();
            let response = self.watch.next().await;
            assert!(!response.canceled, "the watch was canceled: {response:?}");
            for event in &response.events {
                self.apply(event);
            }
            if client::is_progress(&response) {
                self.revision = self.revision.max(client::header_revision(&response));
            }
        }
    }

    fn apply(&mut self, event: &Event) {
        let kv = event.kv.as_ref().expect("a key");
        let key = String::from_utf8(kv.key.to_vec()).expect("a v2 key is text");
        assert!(kv.mod_revision >= self.revision, "{key} of {} after {}", kv.mod_revision, self.revision);
        self.revision = kv.mod_revision;
        if event.r#type() == EventType::Delete {
            assert!(self.keys.remove(&key).is_some(), "{key} was deleted although it did not exist");
        } else {
            let value = String::from_utf8(kv.value.to_vec()).expect("a v2 value is text");
            let had = self.keys.insert(key.clone(), (value, kv.mod_revision));
            assert_eq!(had.is_none(), kv.create_revision == kv.mod_revision, "{key}: {kv:?}");
        }
    }
}
