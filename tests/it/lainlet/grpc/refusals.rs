//! Requests that fail over gRPC: unknown methods, invalid requests, views that are off, callers without permission.

use std::{convert::Infallible, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use etcd_relay::pb::lainlet::{
    CoreinfoRequest, EmptyRequest, coreinfo_client::CoreinfoClient, lainlet_client::LainletClient,
};
use http_body_util::{BodyExt as _, Full};
use tonic::{Code, Status, body::Body, client::GrpcService as _, transport::Channel};

use super::services::revision;
use crate::{
    lainlet::{Lain, data},
    support::{
        etcd::Etcd,
        http, kv,
        relay::{Relay, RelayCommand},
    },
};

const HELLO: &str = "127.20.0.8";
const UNKNOWN: &str = "127.9.9.9";

/// Sends these bytes as the body of a call and returns the status of the answer.
async fn call(channel: &mut Channel, path: &'static str, headers: &[(&'static str, &str)], body: Bytes) -> Status {
    let mut request = ::http::Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = Body::new(Full::new(body).map_err(|never: Infallible| match never {}));
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.expect("a connection");
    let response = channel.call(request.body(body).expect("a request")).await.expect("an answer");
    let (head, body) = response.into_parts();
    let answer = body.collect().await.expect("a whole answer");
    let trailers = answer.trailers().cloned().unwrap_or(head.headers);
    Status::from_header_map(&trailers).expect("a status")
}

/// A gRPC message with its prefix.
fn framed(flag: u8, message: &[u8]) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(flag);
    framed.put_u32(u32::try_from(message.len()).expect("a small message"));
    framed.put_slice(message);
    framed.freeze()
}

/// The number of calls forwarded to etcd for services that etcd does not have.
async fn forwarded(relay: &Relay) -> f64 {
    let metrics = relay.metrics().await;
    let calls = http::series(&metrics, "etcd_relay_forwarded_total");
    calls.filter(|(labels, _)| labels.contains(r#"service="other""#)).map(|(_, count)| count).sum()
}

#[tokio::test]
async fn unknown_methods_are_named_and_never_reach_etcd() {
    let lain = Lain::over_etcd(&data::small()).await;
    let mut channel = lain.channel_from("127.0.0.1").await;
    for (path, text) in [
        ("/message.Localspec/Watch", "unknown method Watch for service message.Localspec"),
        ("/message.Appname/Watch", "unknown method Watch for service message.Appname"),
        ("/message.Coreinfo/Put", "unknown method Put for service message.Coreinfo"),
        ("/message.Coreinfo/get", "unknown method get for service message.Coreinfo"),
        ("/message.Lainlet/Get", "unknown method Get for service message.Lainlet"),
        ("/message.Nosuch/Get", "unknown service message.Nosuch"),
        ("/message.Coreinfo", "unknown method  for service message.Coreinfo"),
    ] {
        let status = call(&mut channel, path, &[], framed(0, b"")).await;
        assert_eq!((status.code(), status.message()), (Code::Unimplemented, text), "{path}");
    }
    assert_eq!(forwarded(&lain.relay).await, 0.0);
}

#[tokio::test]
async fn requests_that_cannot_be_read_are_refused_with_the_reason() {
    let lain = Lain::over_etcd(&data::small()).await;
    let mut channel = lain.channel_from("127.0.0.1").await;
    let too_large = framed(0, &[0; 3 << 20]);
    let gzip: &[_] = &[("grpc-encoding", "gzip")];
    for (headers, body, code, text) in [
        (&[][..], Bytes::new(), Code::Internal, "there is no message"),
        (&[], framed(0, b"\x0a\x05x"), Code::Internal, "cannot be read"),
        (&[], framed(1, b""), Code::Internal, "compressed"),
        (gzip, framed(1, b"\x1f\x8b"), Code::Unimplemented, "gzip"),
        (&[], too_large, Code::ResourceExhausted, "larger than"),
        (&[("min-revision", "soon")], framed(0, b""), Code::InvalidArgument, "min-revision must be a revision"),
    ] {
        for path in ["/message.Coreinfo/Get", "/message.Coreinfo/Watch"] {
            let status = call(&mut channel, path, headers, body.clone()).await;
            assert_eq!(status.code(), code, "{path} {headers:?}: {status:?}");
            assert!(status.message().contains(text), "{path} {headers:?}: {}", status.message());
        }
    }
    // Said to be plain, which it is.
    let status = call(&mut channel, "/message.Config/Get", &[("grpc-encoding", "identity")], framed(0, b"")).await;
    assert_eq!(status.code(), Code::Ok);
    lain.relay.assert_no_panic();
}

#[tokio::test]
async fn watches_are_refused_as_gets_are() {
    let lain = Lain::over_etcd(&data::small()).await;
    let trusted = lain.grpc().await;
    for (peer, service, text, code, words) in [
        (UNKNOWN, "Config", "", Code::PermissionDenied, "authorize failed, super required"),
        (UNKNOWN, "Config", "vips", Code::PermissionDenied, "authorize failed, super required"),
        (HELLO, "Nodes", "", Code::PermissionDenied, "authorize failed, super required"),
        (HELLO, "Coreinfo", "chat", Code::PermissionDenied, "authorize failed, no permission"),
        (HELLO, "Podgroup", "", Code::InvalidArgument, "appname reequired"),
        (UNKNOWN, "Proxy", "", Code::PermissionDenied, "authorize failed, can not confirm the app by request ip"),
        (
            "127.0.0.1",
            "WebrouterWebprocs",
            "con",
            Code::FailedPrecondition,
            "over half of the containers lost their IPs",
        ),
    ] {
        let client = lain.grpc_at(peer).await;
        let (get, watch) = (client.get(service, text).await, client.watch(service, text).await);
        let watch = watch.map(|watch| watch.revision);
        for refused in [get.map(|reply| reply.revision), watch] {
            let status = refused.expect_err(service);
            assert_eq!((status.code(), status.message()), (code, words), "{peer} asks {service}({text})");
            // What is true of a state of the cluster says of which.
            let of_a_state = code == Code::FailedPrecondition;
            assert_eq!(revision(status.metadata()).is_some(), of_a_state, "{peer} asks {service}({text})");
        }
    }
    // An app's own view, without naming it, and the same by name.
    let own = lain.grpc_at(HELLO).await;
    let mut watch = own.watch("Coreinfo", "").await.expect("a stream");
    assert_eq!(watch.reply().await, trusted.get("Coreinfo", "hello").await.expect("a reply").data);
}

#[tokio::test]
async fn a_node_that_nobody_knows_is_an_empty_key() {
    let lain = Lain::over_etcd_with(&data::small(), |command| command).await;
    let status = lain.grpc().await.get("Localspec", "").await.expect_err("a refusal");
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "empty key"));
}

#[tokio::test]
async fn a_revision_that_does_not_come_is_told_in_time() {
    let lain = Lain::over_etcd(&data::small()).await;
    let revision = lain.kv.revision().await;
    let far = lain.grpc().await.with("min-revision", revision + 1_000);
    let (get, watch) = tokio::join!(far.get("Config", "domain"), far.watch("Config", "domain"));
    for refused in [get.map(|_| ()), watch.map(|_| ())] {
        let status = refused.expect_err("a refusal");
        assert_eq!(status.code(), Code::Unavailable);
        let text = status.message();
        let numbers = [revision, revision + 1_000].map(|number| number.to_string());
        assert!(numbers.iter().all(|number| text.contains(number)), "{text}");
    }
}

#[tokio::test]
async fn before_the_feeds_are_complete_nothing_is_served_as_empty() {
    let mut etcd = Etcd::start().await;
    let endpoint = etcd.endpoint();
    etcd.kill();
    let relay = RelayCommand::serve(&[endpoint]).unready().start().await;
    let kv_port = kv::channel(&relay.endpoint()).await;
    let mut coreinfo = CoreinfoClient::new(kv_port.clone());
    let mut request = tonic::Request::new(CoreinfoRequest::default());
    request.set_timeout(Duration::from_secs(25));
    let status = coreinfo.get(request).await.expect_err("a refusal");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("/lain/deployd/pod_groups/"), "{}", status.message());
    // What needs no data is answered.
    LainletClient::new(kv_port).version(EmptyRequest {}).await.expect("a version");
}

#[tokio::test]
async fn views_that_are_off_are_refused_by_name() {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).arg("--lainlet=off").start().await;
    let mut channel = kv::channel(&relay.endpoint()).await;
    for path in ["/message.Coreinfo/Get", "/message.Coreinfo/Watch", "/message.Lainlet/Version", "/message.Nosuch/Get"]
    {
        let status = call(&mut channel, path, &[], framed(0, b"")).await;
        let text = "etcd-relay: Lainlet's views are off (--lainlet off)";
        assert_eq!((status.code(), status.message()), (Code::Unimplemented, text), "{path}");
    }
    assert_eq!(forwarded(&relay).await, 0.0);
    // etcd's own calls are served as ever.
    kv::Kv::over(channel).put("key", "value").await;
}
