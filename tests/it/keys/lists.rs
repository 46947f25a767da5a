//! `/v1/keys` lists what etcd has.

use etcd_relay::pb::etcdserverpb::{LeaseGrantRequest, RangeRequest, lease_client::LeaseClient};
use serde_json::Value;

use super::reader::{bytes_of, get, request};
use crate::support::{
    etcd::Etcd,
    kv::{self, Kv, bytes, prefix_end},
    relay::{Relay, RelayCommand},
};

/// Keys and values that break careless encoders.
pub(super) const HOSTILE: [(&[u8], &[u8]); 9] = [
    (b"/a/newline\nx", b"1\n2\r\n3\r4\n\ndata: 5\n\nevent: end\n"),
    (b"/a/cr\rx", b"\r"),
    (b"/a/nul\0x", b"\0\0"),
    (b"/a/\xff\xfe", b"\x80not text"),
    (b"/a/data: x", b"data: {\"key\":1}\n\nid: 7\n\n"),
    (b"/a/quote\"\\", b"\"},{\"key\":\"\\"),
    (b"/a/separators", "\u{2028}\u{2029}\u{feff}</script>".as_bytes()),
    (b"/a/empty", b""),
    (b"/a/id: 9", b"retry: 1\nid\n:"),
];

fn over(etcd: &Etcd) -> RelayCommand {
    RelayCommand::serve(&[etcd.endpoint()])
}

/// Compares all fields of all keys of a list with etcd's own answer.
async fn assert_is_etcds(relay: &Relay, etcd: &Kv, query: &str, range: RangeRequest) {
    let answer = get(relay.http_addr(), &format!("/v1/keys?{query}"), &[]).await;
    assert_eq!(answer.status, 200, "{query}: {answer:?}");
    let (json, want) = (answer.json(), etcd.range(range).await);
    let kvs = json["kvs"].as_array().expect("keys");
    assert_eq!(kvs.len(), want.kvs.len(), "{query}");
    for (shown, kv) in kvs.iter().zip(&want.kvs) {
        assert_eq!((bytes_of(shown, "key"), bytes_of(shown, "value")), (kv.key.to_vec(), kv.value.to_vec()));
        let numbers = ["create_revision", "mod_revision", "version"].map(|name| shown[name].as_i64());
        assert_eq!(numbers, [Some(kv.create_revision), Some(kv.mod_revision), Some(kv.version)], "{shown}");
        let lease = shown.get("lease").and_then(Value::as_str).map(ToOwned::to_owned);
        assert_eq!(lease, (kv.lease != 0).then(|| kv.lease.to_string()), "{shown}");
    }
    let header = want.header.expect("a header");
    assert_eq!(json["count"], want.count, "{query}");
    assert_eq!(json["revision"], header.revision, "{query}");
    assert_eq!(json["cluster_id"], header.cluster_id.to_string());
    assert_eq!(answer.header("x-etcd-index"), header.revision.to_string());
    assert_eq!(answer.header("content-type"), "application/json");
}

#[tokio::test]
async fn a_list_is_what_etcd_has_within_a_feed_and_outside() {
    let etcd = Etcd::start().await;
    let direct = Kv::connect(&etcd.endpoint()).await;
    let grant = LeaseGrantRequest { ttl: 600, id: i64::MAX - 7 };
    let mut lease = LeaseClient::new(kv::channel(&etcd.endpoint()).await);
    let lease = lease.lease_grant(grant).await.expect("a lease").into_inner().id;
    for (key, value) in HOSTILE {
        direct.put(key, value).await;
        direct.put([b"/b", key].concat(), value).await;
    }
    let mut put = kv::put("/a/leased", "x");
    put.lease = lease;
    direct.put_request(put).await;
    direct.put("/a/quote\"\\", "again").await;
    let relay = over(&etcd).prefix("/a/").start().await;
    for prefix in ["/a/", "/b", "/nothing/", ""] {
        let first = if prefix.is_empty() { bytes("\0") } else { bytes(prefix) };
        let range = RangeRequest { key: first, range_end: prefix_end(prefix), ..Default::default() };
        for form in ["", "&encoding=base64", "&encoding=text"] {
            assert_is_etcds(&relay, &direct, &format!("prefix={prefix}{form}"), range.clone()).await;
        }
    }
    for (query, key) in
        [("key=/a/nul%00x", &b"/a/nul\0x"[..]), ("key=/b/a/%ff%fe", b"/b/a/\xff\xfe"), ("key=/a/no", b"/a/no")]
    {
        assert_is_etcds(&relay, &direct, query, RangeRequest { key: bytes(key), ..Default::default() }).await;
    }
    let keys_only = get(relay.http_addr(), "/v1/keys?prefix=/&keys_only=true", &[]).await.json();
    let kvs = keys_only["kvs"].as_array().expect("keys");
    assert_eq!(kvs.len(), 2 * HOSTILE.len() + 1);
    assert!(kvs.iter().all(|kv| kv.get("value").is_none() && kv.get("value_base64").is_none()), "{keys_only}");
    let labels = "answer=\"ok\",path=\"keys\"";
    let other = "path=\"keys\",answer=\"ok\"";
    let name = "etcd_relay_keys_requests_total";
    assert_eq!(relay.metric_of(name, labels).await + relay.metric_of(name, other).await, 16.0);
    relay.assert_no_panic();
}

#[tokio::test]
async fn pages_are_of_one_revision_whatever_is_written_meanwhile() {
    let etcd = Etcd::start().await;
    let direct = Kv::connect(&etcd.endpoint()).await;
    let mut last = 0;
    for number in 0..25 {
        last = direct.put(format!("/a/{number:02}\0&"), "before").await;
    }
    let relay = over(&etcd).prefix("/a/").start().await;
    for prefix in ["/a/", "/"] {
        let mut path = format!("/v1/keys?prefix={prefix}&limit=10");
        let mut seen = Vec::new();
        for page in 0.. {
            let answer = get(relay.http_addr(), &path, &[]).await;
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
            let json = answer.json();
            let kvs = json["kvs"].as_array().expect("keys");
            seen.extend(kvs.iter().map(|kv| (bytes_of(kv, "key"), kv["value"].clone())));
            assert_eq!(json["count"], 25 - 10 * page, "{path}");
            if page == 0 {
                direct.put("/a/05\0&", "after").await;
                direct.delete("/a/24\0&").await;
                direct.put("/a/11", "new").await;
            }
            match json.get("next") {
                Some(next) => next.as_str().expect("a path").clone_into(&mut path),
                None => break,
            }
        }
        let want: Vec<_> = (0..25).map(|number| (format!("/a/{number:02}\0&").into_bytes(), "before".into())).collect();
        assert_eq!(seen, want, "{prefix}");
        direct.put("/a/05\0&", "before").await;
        direct.put("/a/24\0&", "before").await;
        last = direct.delete("/a/11").await;
    }
    // Compacted revisions are reported as such.
    direct.compact(last).await;
    let gone = get(relay.http_addr(), "/v1/keys?prefix=/a/&revision=2", &[]).await;
    assert_eq!((gone.status, &*gone.error()), (410, "etcdserver: mvcc: required revision has been compacted"));
    let future = get(relay.http_addr(), &format!("/v1/keys?prefix=/a/&revision={}", last + 1000), &[]).await;
    assert_eq!(future.status, 400, "{future:?}");
}

#[tokio::test]
async fn an_answer_is_as_new_as_etcd_and_has_a_tag_that_saves_the_next_one() {
    let etcd = Etcd::start().await;
    let direct = Kv::connect(&etcd.endpoint()).await;
    let relay = over(&etcd).prefix("/a/").start().await;
    for number in 0..50 {
        let revision = direct.put("/a/x", number.to_string()).await;
        let answer = get(relay.http_addr(), "/v1/keys?key=/a/x", &[]).await;
        assert_eq!(answer.json()["kvs"][0]["value"], number.to_string(), "it was written before");
        assert_eq!(answer.header("x-etcd-index"), revision.to_string());
        let tag = answer.header("etag").to_owned();
        let asked = format!("If-None-Match: \"other\", W/{tag}");
        let same = get(relay.http_addr(), "/v1/keys?key=/a/x", &[&asked]).await;
        assert_eq!((same.status, &*same.body, same.header("etag")), (304, "", &*tag));
    }
    let head = request("HEAD", std::net::Ipv4Addr::LOCALHOST, relay.http_addr(), "/v1/keys?key=/a/x", &[]).await;
    assert_eq!((head.status, &*head.body, head.header("content-type")), (200, "", "application/json"));
    assert_ne!(head.header("etag"), "");
}
