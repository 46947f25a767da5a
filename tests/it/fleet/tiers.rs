//! A relay over a relay: the far one reports about itself and to its clients what etcd reports, as far as the near one
//! knows it.
//!
//! etcd's API through a tier is tested in `conformance` (`relay_over_relay`). `RangeStream` and permissions through a
//! tier have their own tests, and relays in a circle are in `fleet`.

use etcd_relay::pb::etcdserverpb::WatchCreateRequest;

use crate::support::{
    client::{self, WatchStream, header_revision, is_progress},
    etcd::Etcd,
    eventually,
    gate::Gate,
    http,
    kv::Kv,
    relay::{Relay, RelayCommand},
};

const LAST: &[u8] = b"the last that comes";

/// A relay over a relay over this endpoint, the far one first.
async fn tiers(endpoint: &str) -> [Relay; 2] {
    let near = RelayCommand::serve(&[endpoint.to_owned()]).prefix("/a/").start().await;
    near.follows().await;
    let far = RelayCommand::serve(&[near.endpoint()]).prefix("/a/").start().await;
    far.follows().await;
    [far, near]
}

/// The near relay's watch delivers nothing, but all its requests are answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tier_over_one_that_is_late_says_that_it_is_late() {
    let etcd = Etcd::start().await;
    let gate = Gate::before(&etcd.endpoint()).await;
    let [far, near] = tiers(&gate.endpoint()).await;
    let direct = Kv::connect(&etcd.endpoint()).await;
    gate.hold_carriers_of(LAST);
    direct.put("/a/mark", LAST).await;
    let newest = direct.put("/a/k", "newest").await;
    for relay in [&near, &far] {
        eventually("it says that it is behind, and is not ready", async || {
            let told = relay.metric("etcd_relay_feed_lag_seconds").await >= 3.0
                && relay.metric("etcd_relay_feed_lag_revisions").await >= 1.0;
            let ready = http::get(relay.http_addr(), "/ready").await.ok()?;
            (told && ready.status == 503 && ready.body.contains("behind etcd")).then_some(())
        })
        .await;
    }
    // Reads through both are correct meanwhile.
    let read = Kv::connect(&far.endpoint()).await.get("/a/k").await;
    assert_eq!(read.map(|kv| kv.mod_revision), Some(newest));
    // Everything recovers.
    gate.hold_carriers_of(b"nothing that comes");
    gate.cut();
    far.ready().await;
    near.ready().await;
    let mut stream = WatchStream::open(&far.endpoint()).await;
    stream.created(WatchCreateRequest { start_revision: newest, ..client::prefix("/a/") }).await;
    stream.until_revision(newest).await;
    assert!(far.metric("etcd_relay_feed_lag_seconds").await < 3.0);
}

/// Neither relay has a configured interval, and both default to ten minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_comes_through_a_tier_as_often_as_etcd_tells_it() {
    let etcd = Etcd::start_with(&["--experimental-watch-progress-notify-interval=500ms"]).await;
    let [far, _near] = tiers(&etcd.endpoint()).await;
    let mut stream = WatchStream::open(&far.endpoint()).await;
    stream.created(WatchCreateRequest { progress_notify: true, ..client::prefix("/a/") }).await;
    let direct = Kv::connect(&etcd.endpoint()).await;
    for _ in 0..3 {
        // A change in no feed, so only the bookmark shows it.
        let outside = direct.put("/elsewhere", "1").await;
        stream.until(|response| is_progress(response) && header_revision(response) >= outside).await;
    }
    assert!(stream.record().iter().all(|at| at.response.events.is_empty()), "no watched key changed");
}
