//! Real clients over TLS: `etcdctl`, `curl`, and clients of HTTP/1.1 and HTTP/2 with and without ALPN.

use std::sync::Arc;

use etcd_relay::pb::etcdserverpb::WatchCreateRequest;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::Command,
};

use super::{SecureEtcd, ctl, mutual, upstream};
use crate::support::{
    client::{WatchStream, prefix},
    etcd::{Etcd, etcdctl},
    eventually, http,
    kv::Kv,
    relay::RelayCommand,
    tls::{Authority, Pair, channel, connect, flag},
};
use crate::v2::{self, store::Store};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_prints_the_same_through_a_relay_and_a_relay_behind_it_as_at_etcd() {
    let ca = Authority::new("the authority");
    let pair = ca.pair("client");
    let etcd = SecureEtcd::start(&ca).await;
    let near = etcd.relay(&ca, &pair).secure(&ca.pair("near")).arg(&flag("--trusted-ca-file", &ca.file()));
    let near = near.start().await;
    let far = upstream(RelayCommand::serve(&[format!("https://{}", near.grpc_addr())]).prefix(""), &ca, &pair);
    let far = far.secure(&ca.pair("far")).arg(&flag("--trusted-ca-file", &ca.file())).start().await;
    for relay in [&near, &far] {
        relay.follows().await;
        for args in [
            &["put", "a", "1"][..],
            &["put", "b", "2"],
            &["get", "a", "--prefix"],
            &["get", "", "--prefix", "--keys-only"],
            &["endpoint", "health"],
            &["member", "list"],
            &["del", "nothing"],
            &["get", "a", "--consistency=s"],
        ] {
            let told = ctl(relay.grpc_addr(), &ca, Some(&pair), args).await;
            let expected = ctl(&etcd.addr, &ca, Some(&pair), args).await;
            let plain = |printed: Result<String, String>| {
                printed.map(|text| {
                    text.split("is healthy").next().unwrap_or("").replace(&etcd.addr, "").replace(relay.grpc_addr(), "")
                })
            };
            assert_eq!(plain(told).expect("printed"), plain(expected).expect("printed"), "{args:?}");
        }
        watches(relay.grpc_addr(), &ca, &pair).await;
        relay.assert_no_panic();
    }
    let handshakes = near.metric("etcd_relay_tls_handshakes_total").await;
    assert!(handshakes >= 10.0, "{handshakes} handshakes");
    assert!(near.metric("etcd_relay_tls_upstream_handshakes_total").await >= 1.0);
    // Both sides have certificates and authorities in files.
    for which in ["port", "port_ca", "upstream", "upstream_ca"] {
        let ends =
            near.metric_of("etcd_relay_tls_certificate_not_after_seconds", &format!("certificate=\"{which}\"")).await;
        assert!(ends > 1e9, "{which} ends at {ends}");
    }
}

/// Checks that `etcdctl watch` sees a put.
async fn watches(addr: &str, ca: &Authority, pair: &Pair) {
    let mut command = Command::new(etcdctl());
    command.env("ETCDCTL_API", "3").arg(format!("--endpoints=https://{addr}")).arg(flag("--cacert", &ca.file()));
    command.arg(flag("--cert", &pair.cert)).arg(flag("--key", &pair.key)).args(["watch", "watched", "--rev=1"]);
    let mut child = command.stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn().expect("etcdctl starts");
    ctl(addr, ca, Some(pair), &["put", "watched", "seen"]).await.expect("put");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.push(lines.next_line().await.expect("read").expect("a line"));
    }
    assert_eq!(seen, ["PUT", "watched", "seen"]);
    child.kill().await.expect("killed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_reach_watches_over_tls_whole_whatever_their_size() {
    let (ca, etcd) = (Authority::new("the authority"), Etcd::start().await);
    let pair = ca.pair("client");
    let relay = mutual(&etcd, &ca).await;
    relay.follows().await;
    let config = ca.client(Some(&pair));
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = WatchStream::over(channel(relay.grpc_addr(), config.clone()).await, &[]);
        stream.created(prefix("k")).await;
        streams.push(stream);
    }
    let kv = Kv::connect(&etcd.endpoint()).await;
    // Below and above the size of a TLS record, and of a connection's own buffers.
    let sizes = [1, 100, 16 << 10, (16 << 10) + 1, 100_000, 1_000_000, 3];
    for (number, size) in sizes.iter().enumerate() {
        kv.put(format!("k{number}"), vec![b'v'; *size]).await;
    }
    for stream in &mut streams {
        let mut got = Vec::new();
        while got.len() < sizes.len() {
            let response = stream.next().await;
            got.extend(response.events.into_iter().map(|event| event.kv.expect("a key").value.len()));
        }
        assert_eq!(got, sizes);
    }
    relay.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_stops_says_its_last_over_tls() {
    let (ca, etcd) = (Authority::new("the authority"), Etcd::start().await);
    let mut relay = mutual(&etcd, &ca).await;
    relay.follows().await;
    let pair = ca.pair("client");
    let mut stream = WatchStream::over(channel(relay.grpc_addr(), ca.client(Some(&pair))).await, &[]);
    stream.created(WatchCreateRequest { progress_notify: true, ..prefix("k") }).await;
    let revision = Kv::connect(&etcd.endpoint()).await.put("k", "last").await;
    let event = stream.next().await;
    assert_eq!(event.header.expect("a header").revision, revision);
    relay.terminate();
    let ended = stream.ended().await.expect_err("told to go elsewhere");
    assert_eq!(ended.code(), tonic::Code::Unavailable, "{ended:?}");
    assert_eq!(relay.exit_code(crate::support::patience()).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_has_several_addresses_with_tls_and_without_and_both_protocols() {
    let (ca, etcd) = (Authority::new("the authority"), Etcd::start().await);
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("").secure(&ca.pair("relay"));
    let relay = relay.arg("--listen-grpc=localhost:0,http://127.0.0.1:0").arg("--listen-http=https://127.0.0.1:0");
    let relay = relay.start().await;
    let addresses = listening(&relay.log());
    assert_eq!(addresses.iter().filter(|(protocol, ..)| protocol == "grpc").count(), 3, "{addresses:?}");
    let mut config = ca.client(None);
    for (protocol, addr, tls) in &addresses {
        if !tls {
            assert_eq!(http::get(addr, "/version").await.expect("answered").status, 200);
            continue;
        }
        let path = if protocol == "grpc" { "/health" } else { "/ready" };
        // Without ALPN, and with each of the two. TLS reports an unknown protocol to the client.
        for alpn in [&[][..], &[b"http/1.1".to_vec()], &[b"h2".to_vec(), b"http/1.1".to_vec()]] {
            config.alpn_protocols = alpn.to_vec();
            let mut stream = connect(addr, &Arc::new(config.clone())).await.expect("a handshake");
            let negotiated = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
            assert_eq!(negotiated.as_ref(), alpn.first(), "{protocol}");
            if alpn.first().is_none_or(|first| first != b"h2") {
                let request = format!("GET {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n");
                stream.write_all(request.as_bytes()).await.expect("asked");
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.expect("an answer, and the end said by TLS");
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            }
        }
        config.alpn_protocols = vec![b"imap".to_vec()];
        let error = connect(addr, &Arc::new(config.clone())).await.expect_err("nothing in common");
        assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
    }
}

/// Protocol, address and use of TLS in each log line about listening.
fn listening(log: &str) -> Vec<(String, String, bool)> {
    log.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|line| {
            let fields = line.get("fields").unwrap_or(&line);
            let told = fields["message"] == "Listening";
            told.then(|| {
                let text = |name: &str| fields[name].as_str().expect("a text").to_owned();
                (text("protocol"), text("addr"), fields["tls"].as_bool().expect("true or false"))
            })
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_bytes_on_a_port_with_tls_and_the_reverse_get_a_clear_error() {
    let (ca, etcd) = (Authority::new("the authority"), Etcd::start().await);
    let relay = mutual(&etcd, &ca).await;
    let answer = http::get(relay.grpc_addr(), "/health").await.expect("an answer");
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("https://"), "{answer:?}");
    let mut stream = TcpStream::connect(relay.grpc_addr()).await.expect("connected");
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("sent");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.expect("an answer and an end");
    assert!(String::from_utf8_lossy(&bytes).contains("https://"), "{bytes:?}");
    let outcome = r#"port="grpc",outcome="plain""#;
    eventually("both were counted", async || {
        (relay.metric_of("etcd_relay_tls_handshakes_total", outcome).await == 2.0).then_some(())
    })
    .await;
    let error = connect(relay.http_addr(), &Arc::new(ca.client(None))).await.expect_err("no TLS there");
    assert!(error.to_string().contains("corrupt message"), "{error}");
    let reason = r#"port="http",reason="tls""#;
    assert_eq!(relay.metric_of("etcd_relay_connections_turned_away_total", reason).await, 1.0);
}

#[tokio::test]
async fn a_v2_store_is_followed_over_tls_and_no_member_of_another_authority_is() {
    let (ca, stranger) = (Authority::new("the authority"), Authority::new("a stranger"));
    let own = ca.pair("own");
    let etcd = SecureEtcd::start_with(&ca, &[v2::ENABLE]).await;
    let store = Store::at(&etcd.etcd.addr());
    let over = || RelayCommand::over_v2(&[format!("https://{}", etcd.addr)]).prefix("/d/");
    let relay = upstream(over(), &ca, &own).start().await;
    let at = store.set("/d/a", "1").await;
    let kv = Kv::connect(&relay.endpoint()).await;
    assert_eq!(kv.get("/d/a").await.expect("a key").mod_revision, at);
    assert_eq!(relay.metric_of("etcd_relay_member_healthy", "member=\"1\"").await, 1.0);
    let doubting = upstream(over(), &stranger, &own).unready().start().await;
    eventually("it says why it does not follow", async || {
        let state = doubting.state().await.to_string();
        state.contains("certificate").then_some(())
    })
    .await;
    assert_eq!(doubting.metric_of("etcd_relay_member_healthy", "member=\"1\"").await, 0.0);
    relay.assert_no_panic();
}
