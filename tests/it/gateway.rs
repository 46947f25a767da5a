//! Compares the JSON gateway with that of an etcd 3.5: status, heads and bodies, byte for byte.
//!
//! Both sides start empty, so revisions agree; only what identifies a cluster is masked. Single values and errors have
//! unit tests beside the code. Always holds: a request is sent to both before the next one, because each may change the
//! results of later ones.

mod client;
mod script;

use bytes::Bytes;
use http::{Method, Request, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use self::{
    client::{Ask, Chunks, Told, masked},
    script::script,
};
use crate::{
    access::users::Users,
    support::{
        etcd::{Etcd, Http},
        eventually,
        kv::Kv,
        relay::{Relay, RelayCommand},
    },
};

/// Changes that a client misses because it does not read.
const PUTS: i64 = 30;

/// Sends each request to both and collects the differences.
async fn compare(asks: &[Ask], etcd: &str, relay: &str, version: Version, same: impl Fn(&Told, &Told) -> bool) {
    let mut differences = Vec::new();
    for ask in asks {
        // etcd serves HTTP/2 without gRPC only over TLS.
        let want = ask.put(etcd, Version::HTTP_11).await;
        let got = ask.put(relay, version).await;
        if !same(&got, &want) {
            let ask = format!("{} {} {:?} {:.300}", ask.method, ask.path, ask.headers, ask.body);
            let (want, got) = (format!("{want:?}"), format!("{got:?}"));
            differences.push(format!("{ask}\n  etcd:  {want:.1200}\n  relay: {got:.1200}"));
        }
    }
    let (count, of) = (differences.len(), asks.len());
    assert!(differences.is_empty(), "{count} of {of} requests were answered differently:\n{}", differences.join("\n"));
}

fn equal(got: &Told, want: &Told) -> bool {
    let mask = |told: &Told| Told { body: masked(&told.body), ..told.clone() };
    mask(got) == mask(want)
}

/// An etcd 3.5 with the gateway of etcd's own release. Debian builds its packages with the gateway of etcd 3.6.
async fn as_released(flags: &[&str]) -> Option<Etcd> {
    Etcd::of_version("3.5.35", flags, Http::Shared).await
}

async fn relay_over(etcd: &Etcd) -> Relay {
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("").start().await;
    relay.follows().await;
    relay
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_answer_is_that_of_etcd() {
    let (Some(reference), Some(etcd)) = (as_released(&[]).await, as_released(&[]).await) else { return };
    let relay = relay_over(&etcd).await;
    compare(&script(), &reference.addr(), relay.grpc_addr(), Version::HTTP_11, equal).await;
    let local = relay.metric_of("etcd_relay_reads_total", r#"outcome="confirmed""#).await;
    assert!(local >= 20.0, "reads are answered from memory, not {local} of them");
    let refused = relay.metric_of("etcd_relay_gateway_requests_total", r#"service="kv",outcome="refused""#).await;
    assert!(refused >= 50.0, "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_answer_is_the_same_over_http2() {
    let (Some(reference), Some(etcd)) = (as_released(&[]).await, as_released(&[]).await) else { return };
    let relay = relay_over(&etcd).await;
    compare(&script(), &reference.addr(), relay.grpc_addr(), Version::HTTP_2, equal).await;
}

/// etcd 3.6 has another gateway with other texts for invalid requests. Valid requests get the same answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_well_answered_is_the_same_json_as_that_of_etcd_36() {
    let Some(reference) = Etcd::of_version("3.6.16", &[], Http::Shared).await else { return };
    let Some(etcd) = Etcd::of_version("3.6.16", &[], Http::Shared).await else { return };
    let relay = relay_over(&etcd).await;
    let value = |told: &Told| -> Vec<serde_json::Value> {
        let text = masked(&told.body.replace(": ", ":").replace(", ", ","));
        let values = text.lines().map(|line| serde_json::from_str(&line.replace('…', "0")).unwrap_or_default());
        values.map(without_revisions).collect()
    };
    let alike = |got: &Told, want: &Told| {
        // Requests that only one of them accepts.
        want.status != 200 || got.status != 200 || value(got) == value(want)
    };
    let asks: Vec<Ask> = script()
        .into_iter()
        // etcd 3.6 never answers an invalid watch.
        .filter(|ask| ask.lines.is_none() && ask.body.len() < 1000 && ask.path != "/v3/watch")
        .collect();
    compare(&asks, &reference.addr(), relay.grpc_addr(), Version::HTTP_11, alike).await;
}

/// A write that only one of them refuses shifts all later revisions.
fn without_revisions(mut value: serde_json::Value) -> serde_json::Value {
    match &mut value {
        serde_json::Value::Object(fields) => {
            fields.retain(|name, _| {
                !["revision", "create_revision", "mod_revision", "rev", "hash", "hash_revision"].contains(&&**name)
            });
            fields.values_mut().for_each(|field| *field = without_revisions(field.take()));
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(|item| *item = without_revisions(item.take())),
        _ => {}
    }
    value
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_may_do_what_etcd_lets_them_do() {
    let flags = ["--bcrypt-cost=4"];
    let (Some(reference), Some(etcd)) = (as_released(&flags).await, as_released(&flags).await) else { return };
    let (_there, here) = (Users::on(&reference).await, Users::on(&etcd).await);
    let relay = here.relay(&etcd).await;
    let login = Ask::post("/v3/auth/authenticate", r#"{"name":"alice","password":"alice"}"#);
    let mut tokens = Vec::new();
    let there = reference.addr();
    for addr in [&there[..], relay.grpc_addr()] {
        let told = login.put(addr, Version::HTTP_11).await;
        let value: serde_json::Value = serde_json::from_str(&told.body).expect("JSON");
        tokens.push(value["token"].as_str().expect("a token").to_owned());
    }
    let wrong = Ask::post("/v3/auth/authenticate", r#"{"name":"alice","password":"no"}"#);
    compare(&[login, wrong], &reference.addr(), relay.grpc_addr(), Version::HTTP_11, equal).await;
    // /a/one and /b/one.
    let asks = [
        Ask::post("/v3/kv/range", r#"{"key":"L2Evb25l"}"#),
        Ask::post("/v3/kv/range", r#"{"key":"L2Ivb25l"}"#),
        Ask::post("/v3/kv/put", r#"{"key":"L2Evb25l"}"#),
        Ask::post("/v3/auth/user/list", "{}"),
        Ask::post("/v3/auth/user/get", r#"{"name":"alice"}"#),
        Ask::post("/v3/watch", r#"{"create_request":{"key":"L2Evb25l"}}"#).lines(1),
        Ask::post("/v3/watch", r#"{"create_request":{"key":"L2Ivb25l"}}"#).lines(1),
        Ask::post("/v3/lease/grant", r#"{"TTL":"60","ID":"5"}"#),
    ];
    type Credential = fn(&str) -> Option<(&'static str, String)>;
    let credentials: [Credential; 5] = [
        |token| Some(("authorization", token.to_owned())),
        |token| Some(("authorization", format!("Bearer {token}"))),
        |token| Some(("grpc-metadata-token", token.to_owned())),
        |_| Some(("authorization", "made up".to_owned())),
        |_| None,
    ];
    let mut differences = Vec::new();
    for (number, credential) in credentials.iter().enumerate() {
        for ask in &asks {
            let mut told = Vec::new();
            for (addr, token) in [&there[..], relay.grpc_addr()].into_iter().zip(&tokens) {
                let mut ask = ask.clone();
                ask.headers.extend(credential(token));
                told.push(ask.put(addr, Version::HTTP_11).await);
            }
            if !equal(&told[1], &told[0]) {
                differences.push(format!("credential {number}, {ask:?}: {told:?}"));
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// etcd sends each message of a stream as one chunk, or as two of which the second is only a line feed. etcd3gw parses
/// each chunk by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_line_of_a_stream_is_a_chunk_of_its_own() {
    let etcd = Etcd::start().await;
    let relay = relay_over(&etcd).await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    let line = async |chunks: &mut Chunks| -> serde_json::Value {
        let chunk = chunks.next().await;
        let text = chunk.strip_suffix('\n').unwrap_or_else(|| panic!("a whole line: {chunk:.200}"));
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text:.200}"))
    };
    // Three watches on one stream, so that responses are ready together.
    let watch = r#"{"create_request":{"key":"a2V5","watch_id":"1"}}{"create_request":{"key":"a2V5","watch_id":"2"}}
        {"create_request":{"key":"a2V5","watch_id":"3"}}"#;
    let mut watching = Chunks::of(relay.grpc_addr(), "/v3/watch", watch).await;
    for _ in 0..3 {
        assert_eq!(line(&mut watching).await["result"]["created"], true);
    }
    // Values that are copied into a line, and values that all watches share.
    for len in [1, 500, 2000, 10_000, 300_000] {
        let value = "v".repeat(len);
        let revision = kv.put("key", &value).await.to_string();
        let mut watches = Vec::new();
        for _ in 0..3 {
            let line = line(&mut watching).await;
            let kv = &line["result"]["events"][0]["kv"];
            assert_eq!(kv["mod_revision"], *revision);
            assert_eq!(kv["value"].as_str().map(str::len), Some(len.div_ceil(3) * 4));
            watches.push(line["result"]["watch_id"].as_str().expect("a watch id").to_owned());
        }
        watches.sort();
        assert_eq!(watches, ["1", "2", "3"]);
    }
    // Streams that etcd answers.
    let leases = r#"{"ID":"5"}{"ID":"6"}{"ID":"7"}"#;
    let mut kept = Chunks::of(relay.grpc_addr(), "/v3/lease/keepalive", leases).await;
    for lease in ["5", "6", "7"] {
        assert_eq!(line(&mut kept).await["result"]["ID"], lease);
    }
    assert_eq!(kept.next().await, "", "the end");
    let lease = Ask::post("/v3/lease/grant", r#"{"TTL":"600","ID":"8"}"#);
    assert_eq!(lease.put(relay.grpc_addr(), Version::HTTP_11).await.status, 200);
    let value = "dmFs".repeat(300 << 10);
    let campaign =
        Ask::post("/v3/election/campaign", &format!(r#"{{"name":"bmFtZQ==","lease":"8","value":"{value}"}}"#));
    assert_eq!(campaign.put(relay.grpc_addr(), Version::HTTP_11).await.status, 200);
    let mut leader = Chunks::of(relay.grpc_addr(), "/v3/election/observe", r#"{"name":"bmFtZQ=="}"#).await;
    assert_eq!(line(&mut leader).await["result"]["kv"]["value"], value);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_over_http_goes_on_and_a_client_that_does_not_read_holds_up_nobody() {
    let etcd = Etcd::start().await;
    let relay = relay_over(&etcd).await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    // It never reads more than the head of its answer.
    let stream = TcpStream::connect(relay.grpc_addr()).await.expect("connected");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
    tokio::spawn(connection);
    let body = r#"{"create_request":{"key":"AA==","range_end":"AA=="}}"#;
    let request = Request::builder().method(Method::POST).uri("/v3/watch").header("host", "relay");
    let request = request.body(Full::new(Bytes::from(body))).expect("a request");
    let stalled = sender.send_request(request).await.expect("an answer");
    let reading = Ask::post("/v3/watch", body).through(r#""mod_revision":"31""#);
    let addr = relay.grpc_addr().to_owned();
    let reading = tokio::spawn(async move { reading.put(&addr, Version::HTTP_11).await });
    eventually("both watch", async || (relay.metric_of("etcd_relay_watches", "").await >= 2.0).then_some(())).await;
    // More than all buffers between the relay and the client that does not read.
    for number in 0..PUTS {
        kv.put(format!("key {number}"), vec![b'x'; 400 << 10]).await;
    }
    let told = reading.await.expect("no panic");
    let lines: Vec<serde_json::Value> =
        told.body.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let events = lines.iter().flat_map(|line| line["result"]["events"].as_array().into_iter().flatten());
    let revisions: Vec<_> = events.map(|event| event["kv"]["mod_revision"].clone()).collect();
    let wanted: Vec<_> = (2..2 + PUTS).map(|revision: i64| serde_json::json!(revision.to_string())).collect();
    assert_eq!(revisions, wanted, "each event once, in order");
    // It gets everything when it reads.
    let mut body = stalled.into_body();
    let mut read = Vec::new();
    while read.iter().filter(|byte| **byte == b'\n').count() < 2 {
        let frame = body.frame().await.expect("more to come").expect("not broken off");
        read.extend(frame.into_data().unwrap_or_default());
    }
    drop((body, sender));
    eventually("its watch is gone", async || (relay.metric_of("etcd_relay_watches", "").await == 0.0).then_some(()))
        .await;
}
