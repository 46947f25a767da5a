//! What a view answers before its data is there, and the effect of `--lainlet`.
//!
//! An etcd that becomes unavailable later is tested in `broken`. No answer may show an empty cluster only because
//! nothing was loaded yet, and permissions must not be decided with empty tables.

use futures_util::future::join_all;

use super::{Lain, NODE, client::Client, data};
use crate::support::{
    etcd::Etcd,
    eventually, free_port,
    gate::Gate,
    http,
    kv::Kv,
    relay::{Relay, RelayCommand},
};

/// A view of each directory.
const VIEWS: [&str; 4] = ["/v2/configwatcher", "/v2/proxywatcher", "/v2/depends", "/v2/nodes"];
const HELLO: &str = "127.20.0.8";

/// The number of watches at etcd once each feed is followed, which comes a little after its snapshot.
async fn settled_watchers(etcd: &Etcd, relay: &Relay) -> u64 {
    eventually("each feed is live", async || {
        let metrics = relay.metrics().await;
        let feeds: Vec<_> = http::series(&metrics, "etcd_relay_feeds").filter(|(_, count)| *count > 0.0).collect();
        (!feeds.is_empty() && feeds.iter().all(|(labels, _)| labels.contains("live"))).then_some(())
    })
    .await;
    etcd.watchers().await
}

#[tokio::test]
async fn requests_wait_for_the_first_load_and_are_then_answered() {
    let etcd = Etcd::start().await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    data::load(&kv, &data::small()).await;
    let gate = Gate::before(&etcd.endpoint()).await;
    gate.hold();
    let command = RelayCommand::serve(&[gate.endpoint()]).arg(NODE[0]).arg(NODE[1]);
    let relay = command.unready().start().await;
    let lain = Lain { relay, kv, etcd: Some(etcd) };
    let local = lain.local();
    // One of them at the pod's own address: to identify it, the relay must wait for the tables.
    let clients = [local.clone(), lain.peer(HELLO), local.clone(), local.clone()];
    let gets: Vec<_> = VIEWS
        .into_iter()
        .zip(clients)
        .map(|(uri, client)| tokio::spawn(async move { client.get(uri).await }))
        .collect();
    let watching = local.clone();
    let watch = tokio::spawn(async move { watching.watch("/v2/nodes?watch=1").await });
    // All of them and this request.
    eventually("the requests are with the relay", async || {
        let debug = local.get("/debug").await;
        assert_eq!(debug.status, 200, "/debug does not wait");
        (debug.json()["connections"].as_u64() >= Some(6)).then_some(())
    })
    .await;
    assert!(gets.iter().all(|get| !get.is_finished()), "an answer before there was anything to answer with");
    gate.open();
    let answers = join_all(gets).await;
    for (uri, answer) in VIEWS.into_iter().zip(answers) {
        let answer = answer.expect("an answer");
        let expected = if uri == "/v2/proxywatcher" { "/v2/proxywatcher?appname=hello" } else { uri };
        answer.assert_is(200, lain.get(expected).await.text(), uri);
        assert!(answer.text().len() > 100, "{uri}: {}", answer.text());
    }
    let mut watch = watch.await.expect("a watch");
    watch.expect_event(1, "init", lain.get("/v2/nodes").await.text()).await;
}

#[tokio::test]
async fn without_etcd_a_view_is_refused_after_a_while() {
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let relay = RelayCommand::serve(&[nobody]).unready().start().await;
    let client = Client::new(relay.http_addr(), [127, 0, 0, 1].into());
    let pod = Client::new(relay.http_addr(), HELLO.parse().expect("an address"));
    let mut uris: Vec<(&Client, &str)> = VIEWS.iter().map(|uri| (&client, *uri)).collect();
    uris.extend([
        (&client, "/appname?ip=127.20.0.8"),
        (&pod, "/v2/proxywatcher"),
        (&pod, "/v2/configwatcher?target=domain"),
    ]);
    let gets = join_all(uris.iter().map(|(client, uri)| client.get(uri)));
    let watches =
        join_all([(&client, "/v2/nodes?watch=1"), (&pod, "/v2/proxywatcher?watch=1")].map(async |(client, uri)| {
            let mut stream = client.watch(uri).await;
            let event = stream.next().await;
            assert_eq!((event.id, event.kind.as_str()), (0, "error"), "{uri}: {event:?}");
            assert!(!event.data().is_empty(), "{uri}: {event:?}");
            assert_eq!(stream.ended().await, Ok(()), "{uri}");
            assert_eq!(stream.take_now(), None, "{uri}");
        }));
    let (answers, _) = tokio::join!(gets, watches);
    for ((_, uri), answer) in uris.iter().zip(answers) {
        assert_eq!(answer.status, 503, "{uri}: {}", answer.text());
        assert!(!answer.text().is_empty() && !answer.text().starts_with(['{', '[']), "{uri}: {}", answer.text());
        let after: u64 = answer.header("retry-after").expect("Retry-After").parse().expect("Retry-After in seconds");
        assert!(after >= 1, "{uri}: Retry-After {after}");
    }
    // These describe the process, and whether it is alive.
    assert_eq!(client.get("/debug").await.status, 200);
    assert!(client.get("/version").await.text().starts_with("2.4.3"));
}

#[tokio::test]
async fn on_demand_the_first_request_opens_the_feeds_and_others_share_them() {
    let lain = Lain::over_etcd_with(&data::small(), |command| command).await;
    let etcd = lain.etcd.as_ref().expect("an etcd");
    assert_eq!(etcd.watchers().await, 0, "before anyone has asked");
    for _ in 0..3 {
        for uri in VIEWS {
            assert_eq!(lain.get(uri).await.status, 200, "{uri}");
        }
    }
    let mut streams = Vec::new();
    for uri in VIEWS.into_iter().chain(["/v2/containers", "/v2/coreinfowatcher", "/v2/streamrouter/ports"]) {
        let mut stream = lain.watch(&format!("{uri}?watch=1")).await;
        stream.expect(1, "init").await;
        streams.push(stream);
    }
    assert_eq!(settled_watchers(etcd, &lain.relay).await, 4, "one for each source");
}

#[tokio::test]
async fn a_prefix_that_has_it_all_costs_etcd_one_watch() {
    let lain = Lain::over_etcd_with(&data::small(), |command| command.prefix("/lain/")).await;
    for uri in VIEWS {
        let answer = lain.get(uri).await;
        assert!(answer.status == 200 && answer.text().len() > 100, "{uri}: {}", answer.text());
    }
    assert_eq!(settled_watchers(lain.etcd.as_ref().expect("an etcd"), &lain.relay).await, 1);
}

#[tokio::test]
async fn at_start_the_feeds_are_part_of_being_ready() {
    let etcd = Etcd::start().await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    data::load(&kv, &data::small()).await;
    let gate = Gate::before(&etcd.endpoint()).await;
    gate.hold();
    let relay = RelayCommand::serve(&[gate.endpoint()]).arg("--lainlet=at-start").unready().start().await;
    let reasons = http::get(relay.http_addr(), "/ready").await.expect("/ready answers");
    assert_eq!(reasons.status, 503, "{}", reasons.body);
    for source in ["/lain/config/", "/lain/deployd/pod_groups/", "/lain/deployd/depends/pods/", "/lain/nodes/nodes/"] {
        assert!(reasons.body.contains(source), "/ready does not say that {source} is missing: {}", reasons.body);
    }
    gate.open();
    relay.ready().await;
    assert_eq!(settled_watchers(&etcd, &relay).await, 4, "before anyone has asked");
}

#[tokio::test]
async fn where_it_is_off_it_says_so() {
    let lain = Lain::over_etcd_with(&data::small(), |command| command.arg("--lainlet=off")).await;
    for uri in VIEWS.into_iter().chain(["/v2/nodes?watch=1", "/appname"]) {
        let answer = lain.get(uri).await;
        assert!(answer.status >= 400, "{uri}: {} {}", answer.status, answer.text());
        assert!(answer.text().contains("--lainlet"), "{uri}: {}", answer.text());
    }
    lain.relay.ready().await;
    assert_eq!(lain.etcd.as_ref().expect("an etcd").watchers().await, 0);
}

#[tokio::test]
async fn the_demo_shows_the_example_cluster() {
    let relay: Relay = RelayCommand::demo_with_example().arg(NODE[0]).arg(NODE[1]).start().await;
    let client = Client::new(relay.http_addr(), [127, 0, 0, 1].into());
    let mut asked = 0;
    for expected in data::expected_as_recorded() {
        if expected.state == "small" && expected.peer == "127.0.0.1" {
            asked += 1;
            client.get(&expected.uri).await.assert_is(expected.status, &expected.body, &expected.uri);
        }
    }
    assert!(asked > 40, "only {asked} answers");
}
