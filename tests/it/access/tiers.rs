//! Permissions through a relay over a relay: each asks its upstream with the client's own token, and etcd decides.
//!
//! Always holds: the expected answer is etcd's answer to the same client at the same time.

use etcd_relay::pb::etcdserverpb::RangeRequest;

use super::{
    answers,
    users::{Users, range},
};
use crate::support::{
    client::{WatchStream, prefix},
    etcd::Etcd,
    kv::{bytes, prefix_end},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tier_shows_nobody_more_than_etcd_does_and_ends_what_was_revoked() {
    let etcd = Etcd::start_with(&["--bcrypt-cost=4"]).await;
    let users = Users::on(&etcd).await;
    let near = users.relay(&etcd).await;
    let far = users.relay_over(&near.endpoint()).start().await;
    far.follows().await;
    let (root, alice) = (users.token("root").await, users.token("alice").await);
    let creates = [prefix("/a/"), prefix("/b/"), prefix("/shared/")];
    // Users with permission come first, so that their answers are in memory on the way.
    for token in [Some(&root[..]), Some(&alice[..]), None, Some("no.1")] {
        assert_eq!(answers(&far.endpoint(), token, &creates).await, answers(&etcd.endpoint(), token, &creates).await);
        for (folder, serializable) in [("/a/", false), ("/b/", false), ("/a/", true), ("/b/", true)] {
            let request =
                RangeRequest { key: bytes(folder), range_end: prefix_end(folder), serializable, ..Default::default() };
            let asked = [far.endpoint(), etcd.endpoint()].map(|endpoint| {
                let request = request.clone();
                async move {
                    let answer = range(&endpoint, token, request).await;
                    answer.map(|answer| answer.kvs).map_err(|status| (status.code(), status.message().to_owned()))
                }
            });
            let [through, direct] = asked;
            assert_eq!(through.await, direct.await, "{request:?}");
        }
    }
    let mut watching = WatchStream::open_with(&far.endpoint(), &[("token", &alice)]).await;
    watching.created(prefix("/a/")).await;
    watching.created(prefix("/shared/")).await;
    users.revoke("alice", "shared", &root).await;
    let ended = watching.until(|response| response.canceled).await;
    assert_eq!(ended.watch_id, 1);
    assert_eq!(ended.cancel_reason, "rpc error: code = PermissionDenied desc = etcdserver: permission denied");
    let last = users.put("/a/two", &root).await;
    watching.until_revision(last).await;
}
