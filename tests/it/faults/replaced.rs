//! Another cluster answers at the same address: one restored from a backup, or a new one. Its revisions mean other things, so
//! every watch has to be told to start again, and none may be given the new cluster's events as if they followed.

use std::path::Path;

use super::PREFIX;
use crate::support::{
    client::{self, WatchStream},
    etcd::Etcd,
    eventually,
    gate::Gate,
    kv::Kv,
    relay::{Relay, RelayCommand},
    replay::Replay,
    validate::{Expected, Operation, validate},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_are_told_of_a_cluster_restored_from_backup() {
    let old = Etcd::start().await;
    write(&old, 20).await;
    let snapshot = old.save_snapshot();
    replace(old, async || Etcd::restored_from(Path::new(&snapshot)).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_are_told_of_a_new_cluster() {
    let old = Etcd::start().await;
    write(&old, 20).await;
    replace(old, async || Etcd::start().await).await;
}

/// The revisions of the new cluster are ahead of those of the old, so that only its id tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_are_told_of_a_new_cluster_that_is_ahead() {
    let old = Etcd::start().await;
    write(&old, 20).await;
    let ahead = async || {
        let new = Etcd::start().await;
        write(&new, 300).await;
        new
    };
    replace(old, ahead).await;
}

async fn replace(old: Etcd, make: impl AsyncFnOnce() -> Etcd) {
    let gate = Gate::before(&old.endpoint()).await;
    let relay = RelayCommand::serve(&[gate.endpoint()]).prefix(PREFIX).start().await;
    let mut streams = Vec::new();
    for request in [client::prefix(PREFIX), client::key(format!("{PREFIX}3"))] {
        let mut stream = WatchStream::open(&relay.endpoint()).await;
        stream.created(request.clone()).await;
        streams.push((request, stream));
    }
    let last = write(&old, 50).await;
    let replay = Replay::read(&old.endpoint(), last).await;
    for (_, stream) in &mut streams {
        stream.until(|response| !response.events.is_empty()).await;
    }
    eventually("the relay has everything of the old cluster", async || {
        let record = streams[0].1.record();
        record.iter().any(|recorded| client::revisions(&recorded.response).contains(&last)).then_some(())
    })
    .await;
    let new = make().await;
    gate.point_at(&new.endpoint());
    gate.cut();
    drop(old);
    for (request, stream) in &mut streams {
        eventually("the watch is told", async || {
            let canceled = stream.record().iter().any(|recorded| recorded.response.canceled);
            (canceled || stream.has_ended()).then_some(())
        })
        .await;
        // Up to then, nothing but the old cluster's truth. The cancel itself may speak for the new one.
        let before: Vec<_> = stream.record().into_iter().take_while(|recorded| !recorded.response.canceled).collect();
        let operation = Operation::of_stream(std::slice::from_ref(request), &before).remove(0);
        let told = validate(&operation, &replay, Expected::default());
        assert!(told.is_empty(), "{told:?}");
        let after = stream.record().len() - before.len();
        assert!(after <= 1, "nothing follows the cancel");
    }
    fresh_watch_works(&new, &relay).await;
    relay.assert_no_panic();
}

async fn fresh_watch_works(new: &Etcd, relay: &Relay) {
    relay.ready().await;
    let kv = Kv::connect(&new.endpoint()).await;
    let mut stream = WatchStream::open(&relay.endpoint()).await;
    let created = stream.created(client::prefix(PREFIX)).await.header.expect("a header");
    let put = kv.put_request(crate::support::kv::put(format!("{PREFIX}3"), "new")).await.header.expect("a header");
    assert_eq!(created.cluster_id, put.cluster_id, "the relay speaks for the new cluster");
    let response = stream.next().await;
    assert_eq!(client::revisions(&response), [put.revision]);
    let read = Kv::connect(&relay.endpoint()).await.get(format!("{PREFIX}3")).await.expect("just put");
    assert_eq!(read.mod_revision, put.revision, "reads are the new cluster's, too");
    assert!(
        Kv::connect(&relay.endpoint()).await.get(format!("{PREFIX}old")).await.is_none()
            || kv.get(format!("{PREFIX}old")).await.is_some()
    );
}

async fn write(etcd: &Etcd, count: usize) -> i64 {
    let kv = Kv::connect(&etcd.endpoint()).await;
    let mut last = 0;
    for round in 0..count {
        last = kv.put(format!("{PREFIX}{}", round % 7), format!("{round}")).await;
    }
    last
}
