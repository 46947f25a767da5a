//! Where a watch "from now" begins if its feed takes long: at the moment at which the create arrived, as at a member.

use super::{OUTSIDE, PREFIX};
use crate::support::{
    client::{self, WatchStream, revisions},
    etcd::Etcd,
    eventually,
    gate::Gate,
    kv::Kv,
    relay::RelayCommand,
};

/// The beginning of a value that comes in several pieces.
const MARK: &str = "what the first piece of the snapshot has";

/// jetcd's clients write before `created` has come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_after_the_create_is_shown_although_the_feed_was_not_open_yet() {
    let etcd = Etcd::start().await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    kv.put(format!("{OUTSIDE}large"), format!("{MARK}{}", "x".repeat(1 << 20))).await;
    let gate = Gate::before(&etcd.endpoint()).await;
    let relay = RelayCommand::serve(&[gate.endpoint()]).prefix(PREFIX).start().await;
    relay.follows().await;
    gate.hold_carriers_of(MARK.as_bytes());
    let before = kv.put(format!("{OUTSIDE}k"), "before the create").await;
    let mut stream = WatchStream::open(&relay.endpoint()).await;
    stream.create(client::prefix(OUTSIDE));
    eventually("a feed opens", async || {
        let state = relay.state().await.to_string();
        state.contains("starting").then_some(())
    })
    .await;
    // The relay has asked for the current revision, and for others' sake again and again since.
    let asked = etcd.calls("Range").await;
    eventually("the relay asks on", async || (etcd.calls("Range").await >= asked + 3).then_some(())).await;
    let after = kv.put(format!("{OUTSIDE}k"), "after the create").await;
    gate.release_carriers();
    let created = stream.next().await;
    assert!(created.created && !created.canceled, "{created:?}");
    assert_eq!(created.header.map(|header| header.revision), Some(before));
    assert_eq!(revisions(&stream.next().await), [after]);
    stream.expect_silence().await;
    relay.assert_log_has_only(&[]);
}
