//! A relay whose user may read only its prefixes, over versions of etcd that tell such a user different things.
//!
//! etcd 3.5.28 to 3.5.31 and 3.6.0 to 3.6.11 allow `Maintenance.Status` only to root while authentication is on; any
//! member may have `/version` on another port. The conformance suite uses the etcd of `scripts/etcd` and the newest of
//! later lines. Always holds: a version that is not on this machine is skipped, and the test says so.

use etcd_relay::pb::etcdserverpb::{RangeRequest, WatchCreateRequest};

use super::users::{Users, range};
use crate::support::{
    client::{WatchStream, prefix},
    etcd::{Etcd, Http},
    eventually,
    kv::{bytes, prefix_end},
    relay::Relay,
};

const CHEAP_PASSWORDS: &str = "--bcrypt-cost=4";

/// Checks whether the feed comes to trust progress. It does not while it has no watch.
async fn believes(relay: &Relay, believed: bool) {
    if believed {
        eventually("the feed believes progress", async || trusts_progress(relay).await.then_some(())).await;
    } else {
        assert!(!trusts_progress(relay).await, "no version with trustworthy progress was reported");
    }
}

/// Whether the feed believes progress.
async fn trusts_progress(relay: &Relay) -> bool {
    relay.state().await["feeds"][0]["trusts_progress"].as_bool().expect("a flag")
}

/// Watches and reads as alice, with one event.
async fn serves(relay: &Relay, users: &Users) {
    let (root, alice) = (users.token("root").await, users.token("alice").await);
    let mut stream = WatchStream::open_with(&relay.endpoint(), &[("token", &alice)]).await;
    stream.created(prefix("/a/")).await;
    let last = users.put("/a/two", &root).await;
    stream.until_revision(last).await;
    for serializable in [false, true] {
        let request =
            RangeRequest { key: bytes("/a/"), range_end: prefix_end("/a/"), serializable, ..Default::default() };
        let read = range(&relay.endpoint(), Some(&alice), request).await.expect("alice may read");
        assert_eq!(read.count, 2);
    }
    let mut past = WatchStream::open_with(&relay.endpoint(), &[("token", &alice)]).await;
    past.created(WatchCreateRequest { start_revision: 1, ..prefix("/a/") }).await;
    past.until_revision(last).await;
    let request = RangeRequest { key: bytes("/b/one"), ..Default::default() };
    let denied = range(&relay.endpoint(), Some(&alice), request).await.expect_err("alice may not read");
    assert_eq!(denied.message(), "etcdserver: permission denied");
}

/// Waits until the relay has noticed that authentication was enabled elsewhere.
async fn knows_of_authentication(relay: &Relay) {
    eventually("the relay learns that authentication is on", async || {
        (relay.state().await["auth"] == "on").then_some(())
    })
    .await;
}

/// The relay serves while authentication is on, and continues after a restart of etcd.
async fn a_user_with_its_prefixes_alone_is_enough(version: &str, believed: bool) {
    let Some(mut etcd) = Etcd::of_version(version, &[CHEAP_PASSWORDS], Http::Shared).await else { return };
    let users = Users::on(&etcd).await;
    let asked_before = etcd.calls("Status").await;
    let relay = users.relay(&etcd).await;
    serves(&relay, &users).await;
    believes(&relay, believed).await;
    assert_eq!(etcd.calls("Status").await, asked_before, "the version is told over HTTP");

    let alice = users.token("alice").await;
    let mut stream = WatchStream::open_with(&relay.endpoint(), &[("token", &alice)]).await;
    stream.created(prefix("/a/")).await;
    etcd.kill();
    etcd.restart().await;
    // etcd has forgotten all tokens, so clients come back with new ones.
    let users = Users::at(&etcd.endpoint()).await;
    relay.ready().await;
    let alice = users.token("alice").await;
    let mut stream = WatchStream::open_with(&relay.endpoint(), &[("token", &alice)]).await;
    stream.created(prefix("/a/")).await;
    let last = users.put("/a/three", &users.token("root").await).await;
    stream.until_revision(last).await;
    believes(&relay, believed).await;
}

/// The relay runs while authentication is enabled, and continues after a restart of etcd.
async fn enabling_authentication_silences_nobody(version: &str, believed: bool) {
    let Some(mut etcd) = Etcd::of_version(version, &[CHEAP_PASSWORDS], Http::Shared).await else { return };
    let users = Users::ready(&etcd).await;
    let relay = users.relay(&etcd).await;
    users.enable().await;
    etcd.kill();
    etcd.restart().await;
    let users = Users::at(&etcd.endpoint()).await;
    relay.ready().await;
    knows_of_authentication(&relay).await;
    let (root, alice) = (users.token("root").await, users.token("alice").await);
    let mut stream = WatchStream::open_with(&relay.endpoint(), &[("token", &alice)]).await;
    stream.created(prefix("/a/")).await;
    let last = users.put("/a/two", &root).await;
    stream.until_revision(last).await;
    believes(&relay, believed).await;
}

macro_rules! versions {
    ($($name:ident = $version:literal, $believed:literal;)*) => {
        $(
            mod $name {
                #[tokio::test]
                async fn a_user_with_its_prefixes_alone_is_enough() {
                    super::a_user_with_its_prefixes_alone_is_enough($version, $believed).await;
                }

                #[tokio::test]
                async fn enabling_authentication_silences_nobody() {
                    super::enabling_authentication_silences_nobody($version, $believed).await;
                }
            }
        )*
    };
}

versions! {
    etcd_3_4_23 = "3.4.23", false;
    etcd_3_5_16 = "3.5.16", true;
    etcd_3_5_31 = "3.5.31", true;
    etcd_3_5_35 = "3.5.35", true;
    etcd_3_6_11 = "3.6.11", true;
    etcd_3_6_16 = "3.6.16", true;
    etcd_3_7_3 = "3.7.3", true;
}

/// HTTP is on another port and Status is only for root, so the version is unknown.
#[tokio::test]
async fn where_nobody_tells_the_version_the_relay_serves_and_believes_no_progress() {
    let Some(etcd) = Etcd::of_version("3.5.31", &[CHEAP_PASSWORDS], Http::Apart).await else { return };
    let users = Users::on(&etcd).await;
    let relay = users.relay(&etcd).await;
    serves(&relay, &users).await;
    assert!(!trusts_progress(&relay).await);
    let asked = etcd.calls("Status").await;
    for _ in 0..10 {
        serves(&relay, &users).await;
    }
    assert_eq!(etcd.calls("Status").await, asked, "watches do not ask again");
}

/// Status reported the version while authentication was off, and the relay remembers it.
#[tokio::test]
async fn a_version_that_status_told_is_kept_when_authentication_takes_it_away() {
    let Some(mut etcd) = Etcd::of_version("3.5.31", &[CHEAP_PASSWORDS], Http::Apart).await else { return };
    let users = Users::ready(&etcd).await;
    let relay = users.relay(&etcd).await;
    eventually("the feed believes progress", async || trusts_progress(&relay).await.then_some(())).await;
    assert_eq!(etcd.calls("Status").await, 1);
    users.enable().await;
    etcd.kill();
    etcd.restart().await;
    let users = Users::at(&etcd.endpoint()).await;
    relay.ready().await;
    knows_of_authentication(&relay).await;
    serves(&relay, &users).await;
    eventually("the feed follows etcd again", async || trusts_progress(&relay).await.then_some(())).await;
}
