//! Permissions to read keys over plain HTTP: etcd's users as over gRPC, and without users the audience that the
//! operator allows.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use base64::prelude::{BASE64_STANDARD, Engine as _};

use super::users::Users;
use crate::{
    keys::reader::{Answer, Reader, get, request},
    support::{etcd::Etcd, kv::Kv, relay::RelayCommand},
};

/// How late the last event may come after a permission was revoked.
const BOUND: Duration = Duration::from_secs(10);

fn basic(user: &str, password: &str) -> String {
    format!("Authorization: Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

fn assert_challenges(answer: &Answer) {
    assert_eq!(answer.status, 401, "{answer:?}");
    assert!(answer.header("www-authenticate").starts_with("Basic realm="), "{answer:?}");
}

#[tokio::test]
async fn a_user_reads_what_etcd_lets_it_read_by_password_or_token() {
    let etcd = Etcd::start_with(&["--bcrypt-cost=4"]).await;
    let users = Users::on(&etcd).await;
    let relay = users.relay(&etcd).await;
    let alice = users.token("alice").await;
    let (password, bearer, raw) =
        (basic("alice", "alice"), format!("Authorization: Bearer {alice}"), format!("Authorization: {alice}"));
    for credentials in [&password, &bearer, &raw] {
        let answer = get(relay.http_addr(), "/v1/keys?prefix=/a/", &[credentials]).await;
        assert_eq!((answer.status, &answer.json()["kvs"][0]["key"]), (200, &"/a/one".into()), "{credentials}");
        let denied = get(relay.http_addr(), "/v1/keys?prefix=/b/", &[credentials]).await;
        assert_eq!((denied.status, &*denied.error()), (403, "etcdserver: permission denied"), "{credentials}");
        let denied = get(relay.http_addr(), "/v1/watch?prefix=/&mode=state", &[credentials]).await;
        assert_eq!((denied.status, &*denied.error()), (403, "etcdserver: permission denied"), "{credentials}");
        let mut reader = Reader::open(relay.http_addr(), "/v1/watch?prefix=/a/&mode=state", &[credentials]).await;
        assert_eq!(reader.snapshot().await.0.len(), 1);
    }
    for path in ["/v1/keys?prefix=/a/", "/v1/watch?prefix=/a/"] {
        assert_challenges(&get(relay.http_addr(), path, &[]).await);
        for wrong in [
            basic("alice", "wrong"),
            basic("nobody", "alice"),
            "Authorization: Basic !".to_owned(),
            "Authorization: Bearer made.up".to_owned(),
            "Authorization: x".to_owned(),
        ] {
            assert_challenges(&get(relay.http_addr(), path, &[&wrong]).await);
        }
        // gRPC's way to send a token is not valid in HTTP.
        assert_challenges(&get(relay.http_addr(), path, &[&format!("token: {alice}")]).await);
    }
    let answers = relay.metrics().await;
    assert!(!answers.contains(&alice) && !relay.log().contains(&alice), "a token is printed");
}

#[tokio::test]
async fn a_password_is_good_after_etcd_has_forgotten_its_tokens() {
    let mut etcd = Etcd::start_with(&["--bcrypt-cost=4"]).await;
    let users = Users::on(&etcd).await;
    let relay = users.relay(&etcd).await;
    let password = basic("alice", "alice");
    assert_eq!(get(relay.http_addr(), "/v1/keys?prefix=/a/", &[&password]).await.status, 200);
    etcd.kill();
    etcd.restart().await;
    crate::support::eventually("the relay is served again", async || {
        let answer = get(relay.http_addr(), "/v1/keys?prefix=/a/", &[&password]).await;
        assert_ne!(answer.status, 401, "the relay has an old token, but the password is right");
        (answer.status == 200).then_some(())
    })
    .await;
    drop(Reader::open(relay.http_addr(), "/v1/watch?prefix=/a/", &[&password]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_stream_ends_soon_after_its_user_may_read_it_no_more() {
    let etcd = Etcd::start_with(&["--bcrypt-cost=4"]).await;
    let users = Users::on(&etcd).await;
    let relay = users.relay(&etcd).await;
    let root = users.token("root").await;
    let mut alice = Reader::open(relay.http_addr(), "/v1/watch?prefix=/a/", &[&basic("alice", "alice")]).await;
    let mut bob = Reader::open(relay.http_addr(), "/v1/watch?prefix=/b/&mode=state", &[&basic("bob", "bob")]).await;
    bob.snapshot().await;
    // At etcd itself, so the relay is not notified.
    users.revoke("alice", "a", &root).await;
    let revoked = Instant::now();
    let (mut last_event, mut end) = (revoked, None);
    let writing = async {
        let mut pace = tokio::time::interval(Duration::from_millis(20));
        loop {
            users.put("/a/one", &root).await;
            pace.tick().await;
        }
    };
    let reading = async {
        while let Some(block) = alice.block().await {
            match &*block.event {
                "put" => last_event = Instant::now(),
                "end" => end = Some(block.json()),
                _ => {}
            }
        }
    };
    tokio::select! {
        () = writing => {}
        () = reading => {}
    }
    let late = last_event.saturating_duration_since(revoked);
    assert!(late < BOUND, "the last event came {late:?} after the role was revoked");
    let end = end.expect("the stream reports the reason");
    assert_eq!((&end["status"], &end["error"]), (&403.into(), &"etcdserver: permission denied".into()));
    let denied = get(relay.http_addr(), "/v1/keys?prefix=/a/", &[&basic("alice", "alice")]).await;
    assert_eq!(denied.status, 403);
    // Another user's stream continues.
    let revision = users.put("/b/one", &root).await;
    assert_eq!(bob.until(revision).await.last().expect("an event").event, "put");
}

#[tokio::test]
async fn without_users_the_operator_says_who_is_answered() {
    let etcd = Etcd::start().await;
    Kv::connect(&etcd.endpoint()).await.put("/a/one", "1").await;
    let other = Ipv4Addr::new(127, 0, 0, 2);
    let statuses = async |relay: &crate::support::relay::Relay| {
        let mut statuses = Vec::new();
        for from in [Ipv4Addr::LOCALHOST, other] {
            for path in ["/v1/keys?prefix=/a/", "/v1/watch"] {
                let answer = request("GET", from, relay.http_addr(), path, &[]).await;
                statuses.push(answer.status);
            }
        }
        statuses
    };
    let over = || RelayCommand::serve(&[etcd.endpoint()]).prefix("/a/").listen_http("0.0.0.0:0");
    let local = |relay: &crate::support::relay::Relay| relay.http_addr().replace("0.0.0.0", "127.0.0.1");
    let trusted = RelayCommand::serve(&[etcd.endpoint()]).prefix("/a/").start().await;
    // An allowed request gets as far as the error that it names no keys.
    assert_eq!(statuses(&trusted).await, [200, 400, 403, 403]);
    let refused = request("GET", other, trusted.http_addr(), "/v1/keys?prefix=/a/", &[]).await;
    assert!(
        refused.error().contains("--keys-from any") && refused.error().contains("127.0.0.2"),
        "{}",
        refused.error()
    );
    let proxied = get(trusted.http_addr(), "/v1/keys?prefix=/a/", &["X-Forwarded-For: 127.0.0.1"]).await;
    assert_eq!(proxied.status, 403);
    // A page from another site whose name resolves to this machine.
    let rebound = get(trusted.http_addr(), "/v1/keys?prefix=/a/", &["Host: evil.example"]).await;
    assert_eq!(rebound.status, 403);
    assert!(rebound.error().contains("evil.example"), "{}", rebound.error());
    assert_eq!(get(trusted.http_addr(), "/v1/keys?prefix=/a/", &["Host: localhost:9001"]).await.status, 200);
    let any = RelayCommand::serve(&[etcd.endpoint()]).prefix("/a/").arg("--keys-from=any").start().await;
    assert_eq!(statuses(&any).await, [200, 400, 200, 400]);
    assert_eq!(get(any.http_addr(), "/v1/keys?prefix=/a/", &["Host: any.example"]).await.status, 200);
    let nobody = RelayCommand::serve(&[etcd.endpoint()]).prefix("/a/").arg("--keys-from=nobody").start().await;
    assert_eq!(statuses(&nobody).await, [403, 403, 403, 403]);
    let net = over().arg("--trusted-net=127.0.0.2/32").start().await;
    let answer = request("GET", other, &local(&net), "/v1/keys?prefix=/a/", &[]).await;
    assert_eq!(answer.status, 200);
}
