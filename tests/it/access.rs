//! Permissions of clients of the relay while etcd's authentication is on.
//!
//! How the relay asks etcd is in `front::access`. One feed covers all keys, so everything that a client may not see is
//! in the relay's memory. Always holds: the relay's answers are compared with etcd's own answers to the same client.

mod keys;
mod revoked;
mod tiers;
pub mod users;
mod versions;

use etcd_relay::pb::etcdserverpb::{RangeRequest, RangeResponse, WatchCreateRequest, WatchResponse};
use serde_json::Value;
use tonic::Code;

use self::users::{Users, range};
use crate::support::{
    client::{WatchStream, is_progress, key, prefix},
    etcd::Etcd,
    eventually,
    gate::Gate,
    http,
    kv::{Kv, bytes, prefix_end},
    relay::RelayCommand,
    schema::Schema,
};
use crate::v2::store::{Answer, Store};

/// All answers of a stream to a series of creates, each answered before the next.
async fn answers(endpoint: &str, token: Option<&str>, creates: &[WatchCreateRequest]) -> Vec<WatchResponse> {
    let metadata: Vec<(&str, &str)> = token.iter().map(|token| ("token", *token)).collect();
    let mut stream = WatchStream::open_with(endpoint, &metadata).await;
    let mut answers = Vec::new();
    for create in creates {
        stream.create(create.clone());
        answers.push(stream.next().await);
    }
    answers
}

fn create(key: &str, range_end: &[u8]) -> WatchCreateRequest {
    WatchCreateRequest { key: bytes(key), range_end: bytes(range_end), ..Default::default() }
}

#[tokio::test]
async fn creates_are_answered_as_etcd_answers_that_client() {
    let etcd = Etcd::start_with(&["--bcrypt-cost=4"]).await;
    let users = Users::on(&etcd).await;
    let relay = users.relay(&etcd).await;
    let alice = users.token("alice").await;
    let creates = [
        prefix("/a/"),
        key("/a/one"),
        create("/a/b", b"/a/c"),
        prefix("/b/"),
        key("/b/one"),
        create("/a/", b"/b"),
        create("", b""),
        create("", b"\0"),
        // Empty ranges are refused for lack of permission first.
        create("/b/2", b"/b/1"),
        create("/a/2", b"/a/1"),
        // The stream continues.
        prefix("/a/"),
        // All keys from one that it may read. etcd before 3.7.1 checks permission only for that key
        // (GHSA-xg4h-6gfc-h4m8); the relay behaves like later releases.
        create("/a/one", b"\0"),
    ];
    for (who, token) in
        [("alice", Some(&alice[..])), ("nobody", None), ("a stranger", Some("no.1")), ("an empty token", Some(""))]
    {
        let want = answers(&etcd.endpoint(), token, &creates).await;
        let got = answers(&relay.endpoint(), token, &creates).await;
        for (create, (got, want)) in creates.iter().zip(got.into_iter().zip(want)) {
            if create.range_end == bytes("\0") && !create.key.is_empty() {
                assert!(got.created && got.canceled && got.watch_id == -1, "{who}: {create:?}: {got:?}");
            } else {
                assert_eq!(got, want, "{who}: {create:?}");
            }
        }
    }
    let refused = relay.metric_of("etcd_relay_watches_refused_total", r#"reason="denied""#).await;
    assert!(refused >= 7.0, "{refused} creates were refused");
}

#[tokio::test]
async fn nobody_reads_from_memory_what_etcd_would_not_give_them() {
    let etcd = Etcd::start_with(&["--bcrypt-cost=4"]).await;
    let users = Users::on(&etcd).await;
    let relay = users.relay(&etcd).await;
    let (root, alice, bob) = (users.token("root").await, users.token("alice").await, users.token("bob").await);
    // Users with permission come first, so that their answers are in memory.
    for token in [Some(&root[..]), Some(&bob), Some(&alice), None, Some("no.1"), Some(&bob)] {
        for serializable in [false, true] {
            for (key, range_end) in [("/b/one", bytes("")), ("/b/", prefix_end("/b/")), ("/b/one", bytes("\0"))] {
                let request = RangeRequest { key: bytes(key), range_end, serializable, ..Default::default() };
                let want = range(&etcd.endpoint(), token, request.clone()).await;
                let got = range(&relay.endpoint(), token, request.clone()).await;
                match (got, want) {
                    (Ok(got), Ok(want)) => assert_eq!(got.kvs, want.kvs),
                    (Err(got), Err(want)) => {
                        assert_eq!((got.code(), got.message()), (want.code(), want.message()), "{request:?}");
                    }
                    (got, want) => panic!("{request:?}: the relay says {got:?}, etcd {want:?}"),
                }
            }
        }
    }
    let local = relay.metric_of("etcd_relay_reads_total", r#"outcome="snapshot""#).await;
    assert!(local >= 5.0, "those who may read are answered from memory, not {local} times");
    let granted = relay.metric_of("etcd_relay_access_checks_total", r#"outcome="granted""#).await;
    assert!(granted < local, "grants are remembered: {granted} questions for {local} reads");
}

#[tokio::test]
async fn over_v2_a_user_may_do_what_etcd_grants_it_and_keys_end_by_the_relays_own_rights() {
    let etcd = Etcd::start_with(&["--bcrypt-cost=4"]).await;
    let users = Users::ready(&etcd).await;
    users.writer("carol", "/lain/app").await;
    users.writer("relay", "/lain").await;
    users.enable().await;
    let mut relay = users.relay_command(&etcd).arg("--listen-v2=127.0.0.1:0").start().await;
    let nobody = Store::at(&relay.addr_of("v2").await);
    // carol:carol, alice:alice, carol:wrong
    let (carol, alice) = (nobody.as_user("Y2Fyb2w6Y2Fyb2w="), nobody.as_user("YWxpY2U6YWxpY2U="));
    let wrong = nobody.as_user("Y2Fyb2w6d3Jvbmc=");
    let denied = |answer: Answer| {
        assert_eq!((answer.status, answer.index, &answer.body["errorCode"]), (401, 0, &110.into()), "{answer:?}");
    };
    let value = [("value", "1")];
    // She may not read `/lain`, nor its mark.
    assert_eq!(carol.put("/lain/app/x/y", &value).await.status, 201);
    assert_eq!(carol.ask("GET", "/lain/app?recursive=true&quorum=true", &[]).await.status, 200);
    assert_eq!(alice.ask("GET", "/a/one", &[]).await.body["node"]["value"], "1");
    for store in [&nobody, &alice, &wrong] {
        denied(store.ask("PUT", "/lain/app/x/y", &value).await);
        denied(store.ask("GET", "/lain/app/x/y", &[]).await);
        denied(store.ask("GET", "/lain/app?wait=true&recursive=true", &[]).await);
    }
    denied(carol.ask("PUT", "/lain/other", &value).await);
    denied(carol.ask("GET", "/lain?recursive=true", &[]).await);
    carol.put("/lain/app/ttl", &[("value", "1"), ("ttl", "1")]).await;
    eventually("the key ends", async || (carol.ask("GET", "/lain/app/ttl", &[]).await.status == 404).then_some(()))
        .await;
    assert_eq!(relay.metric("etcd_relay_facade_expired_keys_total").await, 1.0, "its lease ends ten seconds later");
    let log = relay.log();
    assert!(!log.contains("Y2Fyb2w6") && !log.contains("carol:carol"), "{log}");
}

#[tokio::test]
async fn over_v2_a_stream_ends_when_its_user_may_not_read_any_more() {
    let etcd = Etcd::start_with(&["--bcrypt-cost=4"]).await;
    let users = Users::ready(&etcd).await;
    users.writer("dora", "/lain/app").await;
    users.writer("erin", "/lain").await;
    users.enable().await;
    let mut relay = users.relay_command(&etcd).arg("--listen-v2=127.0.0.1:0").start().await;
    let nobody = Store::at(&relay.addr_of("v2").await);
    // dora:dora, erin:erin
    let (dora, erin) = (nobody.as_user("ZG9yYTpkb3Jh"), nobody.as_user("ZXJpbjplcmlu"));
    let root = users.token("root").await;
    let target = "/lain/app?wait=true&recursive=true&stream=true";
    let doras = tokio::spawn(async move { dora.try_ask("GET", target, &[]).await });
    let erins = tokio::spawn(async move { erin.try_ask("GET", target, &[]).await });
    eventually("both wait", async || (relay.metric("etcd_relay_facade_waits").await == 2.0).then_some(())).await;
    // Through the relay, which checks again at once.
    Users::at(&relay.endpoint()).await.revoke("dora", "writer of /lain/app", &root).await;
    let ended = doras.await.expect("no panic").expect("an end");
    assert_eq!(ended.status, 200, "the wait had begun");
    eventually("one wait is left", async || (relay.metric("etcd_relay_facade_waits").await == 1.0).then_some(())).await;
    assert!(!erins.is_finished(), "a client that may still read continues");
}

#[tokio::test]
async fn a_revoked_role_ends_its_watches_and_no_others() {
    let etcd = Etcd::start_with(&["--bcrypt-cost=4"]).await;
    let users = Users::on(&etcd).await;
    let relay = users.relay(&etcd).await;
    let (root, alice, bob) = (users.token("root").await, users.token("alice").await, users.token("bob").await);
    let mut alices = WatchStream::open_with(&relay.endpoint(), &[("token", &alice)]).await;
    let mut bobs = WatchStream::open_with(&relay.endpoint(), &[("token", &bob)]).await;
    alices.created(prefix("/a/")).await;
    alices.created(prefix("/shared/")).await;
    bobs.created(prefix("/shared/")).await;
    // Not through the relay, which has to find out.
    users.revoke("alice", "shared", &root).await;
    let ended = alices.until(|response| response.canceled).await;
    assert_eq!((ended.watch_id, ended.created, ended.compact_revision), (1, false, 0));
    assert_eq!(ended.cancel_reason, "rpc error: code = PermissionDenied desc = etcdserver: permission denied");
    users.put("/shared/two", &root).await;
    let last = users.put("/a/two", &root).await;
    let events = bobs.until(|response| !response.events.is_empty()).await;
    assert_eq!(events.events[0].kv.as_ref().expect("a key").key, bytes("/shared/two"));
    alices.until_revision(last).await;
    let seen: Vec<_> = alices.record().into_iter().flat_map(|recorded| recorded.response.events).collect();
    assert_eq!(seen.len(), 1, "the other watch of the stream goes on, and it alone: {seen:?}");
    assert_eq!(relay.metric_of("etcd_relay_watches_canceled_total", r#"reason="denied""#).await, 1.0);
    let again = answers(&relay.endpoint(), Some(&alice), &[prefix("/shared/")]).await;
    assert!(again[0].created && again[0].canceled);
}

#[tokio::test]
async fn a_token_that_etcd_no_longer_accepts_ends_its_stream_so_that_the_client_comes_again() {
    let etcd = Etcd::start_with(&["--bcrypt-cost=4"]).await;
    let users = Users::on(&etcd).await;
    let relay = users.relay(&etcd).await;
    let (root, alice) = (users.token("root").await, users.token("alice").await);
    let mut stream = WatchStream::open_with(&relay.endpoint(), &[("token", &alice)]).await;
    stream.created(prefix("/a/")).await;
    // etcd forgets the tokens of a user whose password changes.
    users.change_password("alice", &root).await;
    let status = stream.ended().await.expect_err("an error");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("etcdserver: invalid auth token"), "{status:?}");
    let mut stream = WatchStream::open_with(&relay.endpoint(), &[("token", &users.token("alice").await)]).await;
    stream.created(prefix("/a/")).await;
}

#[tokio::test]
async fn a_relay_whose_own_token_is_void_logs_in_again_and_goes_on() {
    let mut etcd = Etcd::start_with(&["--bcrypt-cost=4"]).await;
    let users = Users::on(&etcd).await;
    let relay = users.relay(&etcd).await;
    let (root, alice) = (users.token("root").await, users.token("alice").await);
    let mut stream = WatchStream::open_with(&relay.endpoint(), &[("token", &alice)]).await;
    stream.created(prefix("/a/")).await;
    users.change_password("relay", &root).await;
    // The feed's watch would survive, because etcd checks only when one begins.
    etcd.kill();
    etcd.restart().await;
    let users = Users::at(&etcd.endpoint()).await;
    let last = users.put("/a/two", &users.token("root").await).await;
    stream.until_revision(last).await;
    let alice = users.token("alice").await;
    let mut stream = WatchStream::open_with(&relay.endpoint(), &[("token", &alice)]).await;
    // Older than the feed's history: filled from etcd with the relay's new token.
    stream.created(WatchCreateRequest { start_revision: 1, ..prefix("/a/") }).await;
    stream.until_revision(last).await;
}

/// A token of etcd names the position in the log at which it was issued. A restored cluster has not reached that
/// position, and delays calls with older tokens until it does, which never happens here.
#[tokio::test]
async fn a_relay_does_not_stay_with_its_token_of_the_cluster_before_the_restore() {
    serves_a_restored_cluster(false).await;
}

#[tokio::test]
async fn nor_does_it_where_authentication_is_on_again_before_it_gets_there() {
    serves_a_restored_cluster(true).await;
}

async fn serves_a_restored_cluster(enabled_before: bool) {
    let mut etcd = Etcd::start_with(&["--bcrypt-cost=4"]).await;
    let users = Users::ready(&etcd).await;
    let backup = etcd.save_snapshot();
    let kv = Kv::connect(&etcd.endpoint()).await;
    for round in 0..100 {
        kv.put("/log", format!("{round}")).await;
    }
    users.enable().await;
    let gate = Gate::before(&etcd.endpoint()).await;
    let relay = users.relay_over(&gate.endpoint()).arg("--request-timeout=1s").start().await;
    relay.follows().await;
    etcd.kill();
    if enabled_before {
        gate.shut();
    }
    etcd.restart_from(&backup).await;
    let users = Users::at(&etcd.endpoint()).await;
    let read = RangeRequest { key: bytes("/a/one"), ..RangeRequest::default() };
    let cluster_id = |answer: RangeResponse| answer.header.expect("a header").cluster_id;
    let restored = cluster_id(range(&etcd.endpoint(), None, read.clone()).await.expect("authentication is off"));
    if !enabled_before {
        eventually("the relay has the restored cluster's keys", async || {
            let from_memory = RangeRequest { serializable: true, ..read.clone() };
            let answer = range(&relay.endpoint(), None, from_memory).await.ok()?;
            (cluster_id(answer) == restored).then_some(())
        })
        .await;
    }
    users.enable().await;
    gate.open();
    let alice = users.token("alice").await;
    let confirmed = async || relay.metric_of("etcd_relay_reads_total", "outcome=\"confirmed\"").await;
    let before = confirmed().await;
    eventually("a linearizable read is answered from memory", async || {
        let answer = range(&relay.endpoint(), Some(&alice), read.clone()).await.ok()?;
        assert_eq!(cluster_id(answer), restored);
        (confirmed().await > before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn enabling_authentication_through_the_relay_shuts_out_the_nameless_at_once() {
    let etcd = Etcd::start_with(&["--bcrypt-cost=4"]).await;
    let users = Users::ready(&etcd).await;
    let relay = users.relay(&etcd).await;
    let mut stream = WatchStream::open(&relay.endpoint()).await;
    stream.created(prefix("/a/")).await;
    let read = |serializable| RangeRequest { key: bytes("/a/one"), serializable, ..Default::default() };
    for serializable in [false, true] {
        range(&relay.endpoint(), None, read(serializable)).await.expect("everyone may read");
    }
    Users::at(&relay.endpoint()).await.enable().await;
    for serializable in [true, false] {
        let refused = range(&relay.endpoint(), None, read(serializable)).await.expect_err("a user name is required");
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "etcdserver: user name is empty"));
    }
    let created = answers(&relay.endpoint(), None, &[prefix("/a/")]).await;
    assert_eq!(created[0].cancel_reason, "rpc error: code = InvalidArgument desc = etcdserver: user name is empty");
    let ended = stream.until(|response| response.canceled).await;
    assert_eq!(ended.cancel_reason, "rpc error: code = InvalidArgument desc = etcdserver: user name is empty");
    // Users with a name are served from the same feed, which the relay keeps open with its own user.
    let alice = users.token("alice").await;
    let mut stream = WatchStream::open_with(&relay.endpoint(), &[("token", &alice)]).await;
    stream.created(prefix("/a/")).await;
    let last = users.put("/a/two", &users.token("root").await).await;
    stream.until_revision(last).await;
}

#[tokio::test]
async fn enabling_authentication_elsewhere_ends_nameless_watches_and_disabling_it_lets_them_in_again() {
    let etcd = Etcd::start_with(&["--bcrypt-cost=4"]).await;
    let users = Users::ready(&etcd).await;
    let relay = users.relay(&etcd).await;
    let mut stream = WatchStream::open(&relay.endpoint()).await;
    stream.created(prefix("/a/")).await;
    users.enable().await;
    let ended = stream.until(|response| response.canceled).await;
    assert_eq!(ended.cancel_reason, "rpc error: code = InvalidArgument desc = etcdserver: user name is empty");
    let serializable = RangeRequest { key: bytes("/a/one"), serializable: true, ..Default::default() };
    let refused = range(&relay.endpoint(), None, serializable).await.expect_err("a user name is required");
    assert_eq!(refused.message(), "etcdserver: user name is empty");
    users.disable(&users.token("root").await).await;
    eventually("the relay learns that authentication is off", async || {
        (relay.state().await["auth"] == "off").then_some(())
    })
    .await;
    stream.create(prefix("/a/"));
    let created = stream.until(|response| !is_progress(response)).await;
    assert!(created.created && !created.canceled, "{created:?}");
}

#[tokio::test]
async fn a_relay_that_could_not_watch_again_is_not_ready_though_its_watch_goes_on() {
    let etcd = Etcd::start_with(&["--bcrypt-cost=4"]).await;
    let users = Users::ready(&etcd).await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("/").start().await;
    relay.follows().await;
    users.enable().await;
    let why = eventually("/ready says no", async || {
        let answer = crate::support::http::get(relay.http_addr(), "/ready").await.ok()?;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert!(why.body.contains("user name is empty") && why.body.contains("--upstream-user"), "{}", why.body);
    let feed = relay.state().await["feeds"][0].clone();
    assert_eq!((&feed["state"], &feed["permission"]), (&"live".into(), &"lost".into()), "{feed}");
    assert_eq!(relay.metric("etcd_relay_upstream_reconnects_total").await, 0.0, "by itself");
    // A client that may read continues to be served from the existing watch.
    let root = users.token("root").await;
    let mut stream = WatchStream::open_with(&relay.endpoint(), &[("token", &root)]).await;
    stream.created(prefix("/a/")).await;
    let last = users.put("/a/two", &root).await;
    stream.until_revision(last).await;
    users.disable(&users.token("root").await).await;
    relay.ready().await;
    let feed = relay.state().await["feeds"][0].clone();
    assert_eq!((&feed["permission"], &feed["last_error"]["over"]), (&"granted".into(), &true.into()), "{feed}");
}

#[tokio::test]
async fn a_relay_without_a_user_says_what_it_lacks_and_forwards() {
    let etcd = Etcd::start_with(&["--bcrypt-cost=4"]).await;
    let users = Users::on(&etcd).await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("/").unready().start().await;
    let why = eventually("/ready names the reason", async || {
        let answer = crate::support::http::get(relay.http_addr(), "/ready").await.ok()?;
        answer.body.contains("user name is empty").then_some(answer)
    })
    .await;
    assert_eq!(why.status, 503);
    assert!(why.body.contains("--upstream-user"), "{}", why.body);
    let root = users.token("root").await;
    let request = RangeRequest { key: bytes("/a/one"), ..Default::default() };
    assert_eq!(range(&relay.endpoint(), Some(&root), request).await.expect("forwarded").count, 1);
    let mut stream = WatchStream::open_with(&relay.endpoint(), &[("token", &root)]).await;
    stream.create(prefix("/a/"));
    let status = stream.ended().await.expect_err("an error");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("user name is empty"), "{status:?}");
}

#[tokio::test]
async fn a_watch_that_the_relay_itself_may_not_fill_ends_with_the_reason() {
    let etcd = Etcd::start_with(&["--bcrypt-cost=4"]).await;
    let users = Users::ready(&etcd).await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("/").start().await;
    relay.follows().await;
    // The feed's watch began earlier and survives; only what is older than its history must come from etcd.
    users.enable().await;
    let root = users.token("root").await;
    let mut stream = WatchStream::open_with(&relay.endpoint(), &[("token", &root)]).await;
    stream.create(WatchCreateRequest { start_revision: 1, ..prefix("/a/") });
    let ended = stream.until(|response| response.canceled).await;
    assert!(ended.cancel_reason.contains("--upstream-user"), "{ended:?}");
}

/// Its user needs permission for the prefixes only.
#[tokio::test]
async fn a_watch_on_what_the_relay_itself_may_not_read_is_refused_and_its_stream_goes_on() {
    let etcd = Etcd::start_with(&["--bcrypt-cost=4"]).await;
    let users = Users::on(&etcd).await;
    let relay = users.relay(&etcd).await;
    let root = users.token("root").await;
    let mut stream = WatchStream::open_with(&relay.endpoint(), &[("token", &root)]).await;
    stream.created(prefix("/a/")).await;
    stream.create(prefix("outside/"));
    let refused = stream.until(|response| response.canceled).await;
    assert!(refused.created && refused.watch_id == -1, "{refused:?}");
    assert!(refused.cancel_reason.contains("denies the relay"), "{refused:?}");
    let last = users.put("/a/two", &root).await;
    stream.until_revision(last).await;
}

#[tokio::test]
async fn watches_through_grpc_proxy_start_work_with_authentication_on() {
    let etcd = Etcd::start_with(&["--bcrypt-cost=4"]).await;
    let users = Users::on(&etcd).await;
    let relay = users.proxy_command(&etcd).start().await;
    let alice = users.token("alice").await;
    let mut stream = WatchStream::open_with(&relay.endpoint(), &[("token", &alice)]).await;
    stream.created(prefix("/a/")).await;
    let last = users.put("/a/two", &users.token("root").await).await;
    stream.until_revision(last).await;
}

/// A connection shows the name for which etcd issued its token, and nothing that a client claims.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_shows_its_user_and_no_secret() {
    let etcd = Etcd::start_with(&["--bcrypt-cost=4"]).await;
    let users = Users::on(&etcd).await;
    let relay = users.relay(&etcd).await;
    let far = Users::at(&relay.endpoint()).await;
    let (through, elsewhere) = (far.token("alice").await, users.token("alice").await);
    let mut streams = Vec::new();
    for token in [&through, &elsewhere] {
        let mut stream = WatchStream::open_with(&relay.endpoint(), &[("token", token.as_str())]).await;
        stream.created(prefix("/a/")).await;
        streams.push(stream);
    }
    let answer = http::get(relay.http_addr(), "/debug/state").await.expect("an answer").body;
    let state = serde_json::from_str::<Value>(&answer).expect("JSON");
    Schema::of_file("docs/debug-state.schema.json").assert_describes(&state);
    let watchers = state["connections"].as_array().expect("a list").iter().filter(|row| row["watch_streams_open"] == 1);
    let mut shown: Vec<&Value> = watchers.map(|row| &row["user"]).collect();
    shown.sort_by_key(|user| user.is_null());
    assert_eq!(
        shown,
        [&Value::from("alice"), &Value::Null],
        "the relay cannot know a token that was issued elsewhere: {state:#}"
    );
    for secret in [&through, &elsewhere] {
        assert!(!answer.contains(secret.as_str()), "a token shows");
    }
}
