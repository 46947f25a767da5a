//! Invalid requests: each gets an error with advice, and affects nobody else.

use std::net::Ipv4Addr;

use super::reader::{Reader, get, request};
use crate::support::{etcd::Etcd, kv::Kv, relay::RelayCommand};

#[tokio::test]
async fn each_bad_parameter_is_named_and_open_streams_go_on() {
    let etcd = Etcd::start().await;
    let direct = Kv::connect(&etcd.endpoint()).await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("/a/").start().await;
    let mut reader = Reader::open(relay.http_addr(), "/v1/watch?prefix=/a/", &[]).await;
    for (path, headers, status, named) in [
        ("/v1/keys", &[][..], 400, "prefix="),
        ("/v1/watch", &[], 400, "prefix="),
        ("/v1/keys?key=", &[], 400, "key="),
        ("/v1/keys?prefix=%zz", &[], 400, "percent-encoded"),
        ("/v1/keys?prefix=a&prefix=b", &[], 400, "twice"),
        ("/v1/keys?prefix=a&offset=1", &[], 400, "offset"),
        ("/v1/keys?prefix=a&limit=0", &[], 400, "limit"),
        ("/v1/keys?prefix=a&limit=1e3", &[], 400, "limit"),
        ("/v1/keys?prefix=a&revision=-1", &[], 400, "revision"),
        ("/v1/keys?prefix=a&revision=9223372036854775807", &[], 400, "future revision"),
        ("/v1/keys?prefix=a&serializable=yes", &[], 400, "serializable"),
        ("/v1/keys?prefix=a&keys_only=yes", &[], 400, "keys_only"),
        ("/v1/keys?prefix=a&encoding=hex", &[], 400, "encoding"),
        ("/v1/keys?from=b&to=a", &[], 400, "no key"),
        ("/v1/keys?key=a&from=a", &[], 400, "key="),
        ("/v1/watch?prefix=a&since=x", &[], 400, "since"),
        ("/v1/watch?prefix=a&since=-1", &[], 400, "since"),
        ("/v1/watch?prefix=a&since=9223372036854775807", &[], 400, "since"),
        ("/v1/watch?prefix=a", &["Last-Event-ID: abc"], 400, "Last-Event-ID"),
        ("/v1/watch?prefix=a&mode=all", &[], 400, "mode"),
        ("/v1/watch?prefix=a&snapshot=no", &[], 400, "snapshot"),
        ("/v1/watch?prefix=a&mode=state&snapshot=false", &[], 400, "snapshot=false"),
        ("/v1/watch?prefix=a&limit=1", &[], 400, "limit"),
    ] {
        let answer = get(relay.http_addr(), path, headers).await;
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert!(answer.error().contains(named), "{path}: {}", answer.error());
        assert_eq!(answer.header("content-type"), "application/json");
    }
    for (method, path) in
        [("POST", "/v1/keys?prefix=a"), ("DELETE", "/v1/watch?prefix=a"), ("HEAD", "/v1/watch?prefix=a")]
    {
        let answer = request(method, Ipv4Addr::LOCALHOST, relay.http_addr(), path, &[]).await;
        assert_eq!((answer.status, answer.header("allow")), (405, "GET, HEAD, OPTIONS"), "{method} {path}");
    }
    // A key that is too long to check with etcd, but not for a request's head.
    let long = format!("/v1/keys?prefix={}", "x".repeat(60_000));
    let answer = get(relay.http_addr(), &long, &[]).await;
    assert!(matches!(answer.status, 200 | 414 | 431), "{}", answer.status);
    let revision = direct.put("/a/after", "1").await;
    assert_eq!(reader.until(revision).await.len(), 1);
    relay.assert_no_panic();
}

#[tokio::test]
async fn what_a_relay_may_not_follow_is_refused_with_its_reason() {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("/a/").arg("--on-demand=deny").start().await;
    let refused = get(relay.http_addr(), "/v1/watch?prefix=/b/", &[]).await;
    assert_eq!(refused.status, 403);
    assert!(refused.error().contains("--on-demand"), "{}", refused.error());
    // Lists are still forwarded, as over gRPC.
    assert_eq!(get(relay.http_addr(), "/v1/keys?prefix=/b/", &[]).await.status, 200);
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("/a/").arg("--max-watches-per-client=2").start().await;
    let path = "/v1/watch?prefix=/a/";
    let (_one, two) =
        (Reader::open(relay.http_addr(), path, &[]).await, Reader::open(relay.http_addr(), path, &[]).await);
    let refused = get(relay.http_addr(), path, &[]).await;
    assert_eq!(refused.status, 429);
    assert!(refused.error().contains("--max-watches-per-client"), "{}", refused.error());
    drop(two);
    crate::support::eventually("the place is free again", async || {
        let open = relay.metric("etcd_relay_keys_streams").await;
        (open == 1.0).then_some(())
    })
    .await;
    drop(Reader::open(relay.http_addr(), path, &[]).await);
}

#[tokio::test]
async fn pages_of_other_origins_may_read_what_cors_allows() {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()])
        .prefix("/a/")
        .arg("--cors=https://a.example,http://localhost:3000")
        .start()
        .await;
    let ask = async |method: &str, path: &str, origin: &str| {
        let origin = format!("Origin: {origin}");
        request(method, Ipv4Addr::LOCALHOST, relay.http_addr(), path, &[&origin]).await
    };
    for path in ["/v1/keys?prefix=/a/", "/v1/watch?prefix=/a/"] {
        let allowed = ask("OPTIONS", path, "https://a.example").await;
        assert_eq!(allowed.status, 204);
        assert_eq!(allowed.header("access-control-allow-origin"), "https://a.example");
        for name in ["Last-Event-ID", "Authorization"] {
            assert!(allowed.header("access-control-allow-headers").contains(name), "{allowed:?}");
        }
        assert!(allowed.header("access-control-allow-methods").contains("GET"));
        assert_eq!(allowed.header("vary"), "Origin");
        let other = ask("OPTIONS", path, "https://b.example").await;
        assert_eq!((other.status, other.header("access-control-allow-origin")), (204, ""));
    }
    let answer = ask("GET", "/v1/keys?prefix=/a/", "http://localhost:3000").await;
    assert_eq!(answer.header("access-control-allow-origin"), "http://localhost:3000");
    assert!(answer.header("access-control-expose-headers").contains("X-Etcd-Index"));
    // A page can read the error, too.
    let wrong = ask("GET", "/v1/keys", "http://localhost:3000").await;
    assert_eq!((wrong.status, wrong.header("access-control-allow-origin")), (400, "http://localhost:3000"));
    let plain = RelayCommand::serve(&[etcd.endpoint()]).prefix("/a/").start().await;
    let answer = get(plain.http_addr(), "/v1/keys?prefix=/a/", &["Origin: https://a.example"]).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, ""));
}
