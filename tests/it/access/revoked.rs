//! Nothing is delivered later than ten seconds after a permission was revoked, whatever the client did to hinder the
//! check.
//!
//! The relay is not notified: users and roles change in etcd itself. Always holds: there is a write every few
//! milliseconds, so that a live watch shows itself.

use std::time::{Duration, Instant};

use etcd_relay::pb::{
    etcdserverpb::{LeaseGrantRequest, WatchCreateRequest, lease_client::LeaseClient},
    v3lockpb::{LockRequest, lock_client::LockClient},
};
use tokio::task::JoinSet;
use tonic::{Code, transport::Channel};

use super::users::{Users, range, with_token};
use crate::support::{
    client::{WatchStream, key, prefix},
    etcd::Etcd,
    eventually,
    kv::{self, Kv, bytes},
    relay::RelayCommand,
};

/// How late the last event may come.
const BOUND: Duration = Duration::from_secs(10);

/// Writes below `folder` until the time is over or the stream has ended. Returns how long after `revoked` the last
/// event came.
async fn last_event(stream: &mut WatchStream, folder: &str, users: &Users, root: &str, revoked: Instant) -> Duration {
    let until = revoked + BOUND + Duration::from_secs(3);
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    let mut number = 0;
    while Instant::now() < until && !stream.has_ended() {
        number += 1;
        users.put(&format!("{folder}{number}"), root).await;
        pace.tick().await;
    }
    let recorded = stream.record();
    let last = recorded.iter().rfind(|recorded| !recorded.response.events.is_empty()).expect("events came before");
    last.at.saturating_duration_since(revoked)
}

/// A key below `/a/` with this many more bytes.
fn long(bytes: usize, of: char) -> String {
    format!("/a/{}", of.to_string().repeat(bytes))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_client_whose_ranges_are_too_long_to_be_asked_about_together() {
    let etcd = Etcd::start_with(&["--bcrypt-cost=4"]).await;
    let users = Users::on(&etcd).await;
    let relay = users.relay(&etcd).await;
    let (root, alice) = (users.token("root").await, users.token("alice").await);
    let mut stream = WatchStream::open_with(&relay.endpoint(), &[("token", &alice)]).await;
    // The common range has two keys of 1.15 MB, and etcd accepts no request above 2 MiB.
    for (from, to) in [(long(1_150_000, 'x'), "/a/z".to_owned()), ("/a/y".to_owned(), long(1_150_000, 'z'))] {
        stream.created(WatchCreateRequest { range_end: bytes(to), ..key(from) }).await;
    }
    let first = users.put("/a/yes", &root).await;
    stream.until_revision(first).await;
    users.delete("alice", &root).await;
    let late = last_event(&mut stream, "/a/yes", &users, &root, Instant::now()).await;
    assert!(late < BOUND, "the last event came {late:?} after the user was deleted");
    let status = stream.ended().await.expect_err("an error");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_client_with_a_range_that_etcd_cannot_be_asked_about() {
    // The largest accepted question has 576 KiB.
    let etcd = Etcd::start_with(&["--bcrypt-cost=4", "--max-request-bytes=65536"]).await;
    let users = Users::ready(&etcd).await;
    let relay = users.relay(&etcd).await;
    let mut stream = WatchStream::open(&relay.endpoint()).await;
    // While everyone may do everything.
    stream.created(key(long(1_000_000, 'x'))).await;
    for range in [prefix("/b/"), prefix("/shared/")] {
        stream.created(range).await;
    }
    Kv::connect(&etcd.endpoint()).await.put("/b/before", "1").await;
    stream.until(|response| !response.events.is_empty()).await;
    users.enable().await;
    let enabled = Instant::now();
    let root = users.token("root").await;
    let late = last_event(&mut stream, "/b/", &users, &root, enabled).await;
    assert!(late < BOUND, "the last event came {late:?} after authentication was enabled");
    // Watches that could be checked were ended with etcd's error, and the stream because of the others.
    let canceled = stream.record().iter().filter(|recorded| recorded.response.canceled).count();
    assert_eq!(canceled, 2);
    let status = stream.ended().await.expect_err("an error");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("has not confirmed"), "{status:?}");
    assert_eq!(relay.metric("etcd_relay_watch_streams_unconfirmed_total").await, 1.0);
}

#[tokio::test]
async fn a_watch_that_could_not_be_checked_again_is_refused_whether_authentication_is_on_or_not() {
    let etcd = Etcd::start_with(&["--bcrypt-cost=4"]).await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("/").start().await;
    let mut stream = WatchStream::open(&relay.endpoint()).await;
    // Slightly less than the 2 MiB that a request may have.
    stream.create(key(long((2 << 20) - 17, 'x')));
    let refused = stream.next().await;
    assert!(refused.created && refused.canceled && refused.watch_id == -1, "{refused:?}");
    assert!(refused.cancel_reason.contains("too large to check with etcd"), "{refused:?}");
    stream.created(prefix("/a/")).await;
}

async fn lock(channel: &Channel, root: &str) -> Result<(), tonic::Status> {
    let grant = with_token(Some(root), LeaseGrantRequest { ttl: 600, id: 0 });
    let lease = LeaseClient::new(channel.clone()).lease_grant(grant).await?.into_inner().id;
    let request = with_token(Some(root), LockRequest { name: bytes("held"), lease });
    LockClient::new(channel.clone()).lock(request).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_client_while_another_has_all_the_streams_that_etcd_takes() {
    let etcd = Etcd::start_with(&["--bcrypt-cost=4", "--max-concurrent-streams=20"]).await;
    let users = Users::on(&etcd).await;
    let relay = users.relay(&etcd).await;
    let (root, alice) = (users.token("root").await, users.token("alice").await);
    let holder = kv::channel(&etcd.endpoint()).await;
    lock(&holder, &root).await.expect("the lock is free");
    let greedy = kv::channel(&relay.endpoint()).await;
    let mut locks = JoinSet::new();
    for _ in 0..60 {
        let (greedy, root) = (greedy.clone(), root.clone());
        locks.spawn(async move { lock(&greedy, &root).await });
    }
    eventually("locks wait at etcd", async || (etcd.calls("Lock").await > 15).then_some(())).await;
    let mut stream = WatchStream::open_with(&relay.endpoint(), &[("token", &alice)]).await;
    stream.created(prefix("/a/")).await;
    let first = users.put("/a/before", &root).await;
    stream.until_revision(first).await;
    users.revoke("alice", "a", &root).await;
    let late = last_event(&mut stream, "/a/", &users, &root, Instant::now()).await;
    assert!(late < BOUND, "the last event came {late:?} after the role was revoked");
    assert!(stream.record().iter().any(|recorded| recorded.response.canceled));
}

/// Streams of one user with the same watches share their questions for as long as they live.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_of_one_user_cost_etcd_few_questions() {
    let etcd = Etcd::start_with(&["--bcrypt-cost=4"]).await;
    let users = Users::ready(&etcd).await;
    let names: Vec<String> = (0..60).map(|number| format!("/k/{number:02}")).collect();
    users.grant_keys("alice", &names).await;
    users.enable().await;
    let relay = users.relay(&etcd).await;
    let alice = users.token("alice").await;
    let channel = kv::channel(&relay.endpoint()).await;
    let mut streams = Vec::new();
    for _ in 0..40 {
        let stream = WatchStream::over(channel.clone(), &[("token", &alice)]);
        names.iter().for_each(|name| stream.create(key(name)));
        streams.push(stream);
    }
    for stream in &mut streams {
        for _ in &names {
            let created = stream.next().await;
            assert!(created.created && !created.canceled, "{created:?}");
        }
    }
    let asked = async || relay.metric("etcd_relay_access_checks_total").await;
    let (begun, before) = (Instant::now(), asked().await);
    let questions = eventually("three rounds of questions were asked", async || {
        let questions = asked().await - before;
        (questions >= 3.0 * 60.0).then_some(questions)
    })
    .await;
    // Ranges that were denied as a whole are sometimes tried again, which needs as many questions again.
    let rounds = begun.elapsed().as_secs_f64() / 4.0 + 2.0;
    assert!(questions <= rounds * 2.0 * 60.0, "{questions} questions in {:?}", begun.elapsed());
    let request = etcd_relay::pb::etcdserverpb::RangeRequest { key: bytes("/k/00"), ..Default::default() };
    range(&relay.endpoint(), Some(&alice), request).await.expect("alice may read");
    assert!(streams.iter().all(|stream| !stream.has_ended()));
}
