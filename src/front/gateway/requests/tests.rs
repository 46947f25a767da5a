//! Tests with bodies that arrive in pieces, end too early, stall, or are too large.

use futures_util::{StreamExt as _, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use prost::Message as _;
use tonic::{Code, body::Body};

use super::{super::routes, *};
use crate::{
    hub::room::Room,
    pb::etcdserverpb::{PutRequest, RangeRequest},
    types::ClientKey,
};

fn requests(path: &str, pieces: Vec<Result<Bytes, Status>>, stalls: bool) -> Requests {
    let schema = Arc::new(Schema::new(crate::pb::FILE_DESCRIPTOR_SET, routes::calls()).expect("a schema"));
    let message = schema.call(path).expect("a call").request;
    let frames = stream::iter(pieces).map(|piece| piece.map(Frame::data));
    let body = if stalls {
        Body::new(StreamBody::new(frames.chain(stream::pending())))
    } else {
        Body::new(StreamBody::new(frames))
    };
    Requests::new(schema, message, RequestBody::Made(body), Room::new(256 << 20, "full").place(ClientKey::new(1)))
}

fn ranges(pieces: &[&'static str]) -> Requests {
    let pieces = pieces.iter().map(|piece| Ok(Bytes::from_static(piece.as_bytes()))).collect();
    requests("/etcdserverpb.KV/Range", pieces, false)
}

fn key(message: &Bytes) -> Bytes {
    RangeRequest::decode(message.slice(5..)).expect("a message").key
}

#[tokio::test]
async fn each_value_is_a_request_however_the_body_is_cut() {
    let mut requests = ranges(&["  {\"key\":\"YQ", "==\"}{\"key", "\":\"Yg==\"} \n", " {} x"]);
    assert_eq!(key(&requests.next().await.expect("JSON").expect("one")), "a");
    assert_eq!(key(&requests.next().await.expect("JSON").expect("one")), "b");
    assert_eq!(key(&requests.next().await.expect("JSON").expect("one")), "");
    let error = requests.next().await.expect_err("no JSON");
    assert_eq!(error.to_string(), "invalid character 'x' looking for beginning of value");
    assert_eq!(ranges(&[" ", "\n"]).next().await.expect("nothing is wrong"), None);
}

#[tokio::test]
async fn a_call_with_one_request_takes_the_first_value() {
    assert_eq!(key(&ranges(&["{\"key\":\"YQ==\"}", " rest"]).only().await.expect("a request")), "a");
    assert_eq!(key(&ranges(&[]).only().await.expect("an empty message")), "");
    let status = ranges(&["{\"key\":"]).only().await.expect_err("cut").status(Code::InvalidArgument);
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "unexpected EOF"));
    let broken = requests("/etcdserverpb.KV/Range", vec![Ok("{}".into()), Err(Status::cancelled("gone"))], false);
    assert_eq!(broken.only().await.expect_err("the number may continue").to_string(), "unexpected EOF");
}

#[tokio::test]
async fn a_large_request_is_read_and_one_that_is_too_large_is_refused() {
    let value = "AAAA".repeat(LARGE);
    let text: Bytes = format!(r#"{{"key":"YQ==","value":"{value}"}}"#).into();
    let pieces = text.chunks(10_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let message = requests("/etcdserverpb.KV/Put", pieces, false).only().await.expect("a request");
    assert_eq!(PutRequest::decode(message.slice(5..)).expect("a message").value.len(), 3 * LARGE);
    let piece = Bytes::from(vec![b' '; 1 << 20]);
    let pieces = (0..=MAX_BODY >> 20).map(|_| Ok(piece.clone())).collect();
    let status = requests("/etcdserverpb.KV/Put", pieces, false).only().await.expect_err("too large");
    assert_eq!(status.status(Code::InvalidArgument).code(), Code::ResourceExhausted);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_given_up_but_a_stream_between_two_requests_is_not() {
    let stalled = || requests("/etcdserverpb.KV/Range", vec![Ok("{\"key\"".into())], true);
    assert!(matches!(stalled().only().await, Err(RequestError::Stalled)));
    assert!(matches!(stalled().next().await, Err(RequestError::Stalled)));
    let mut open = requests("/etcdserverpb.KV/Range", vec![Ok("{}".into())], true);
    open.next().await.expect("JSON").expect("a request");
    assert!(timeout(SILENCE * 10, open.next()).await.is_err(), "the client may send more at any time");
}
