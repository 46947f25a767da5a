//! [`Pool::ask`]: a call of the relay's own with one message in each direction.
//!
//! Not here: what the messages are, see `etcd::asker`. Calls with more messages, and rare ones, go through etcd's
//! client library (`channel`). Always holds: a call that may have been sent is not sent again; an answer counts only if
//! it is whole: one message, no longer than [`MOST`], and then the status; a call that is dropped is reset.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Method, Response, StatusCode, uri::PathAndQuery};
use http_body_util::{BodyExt as _, Full, Limited};
use prost::Message;
use tonic::{Code, Status, body::Body};

use super::{Answer, Head, Pool};
use crate::source::causes::chain;

/// A gRPC message begins with a flag (not compressed) and its length.
const PREFIX: usize = 5;
/// The longest answer. The messages that are exchanged in this way have some hundred bytes.
const MOST: usize = 1 << 20;

/// A message in the form in which it is sent.
pub(in crate::source) fn framed(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX + len);
    framed.put_u8(0);
    framed.put_u32(len as u32);
    message.encode_raw(&mut framed);
    framed.freeze()
}

impl Pool {
    /// Sends `request`, which is [`framed`], and returns the message of the answer. Cancel safe.
    ///
    /// # Errors
    /// The status that the member sent, or one that says why there is no answer.
    pub(in crate::source) async fn ask<T: Message + Default>(
        &self,
        path: &'static str,
        headers: &HeaderMap,
        request: Bytes,
    ) -> Result<T, Status> {
        let path = PathAndQuery::from_static(path);
        let head = Head { method: &Method::POST, path: &path, headers };
        let message = whole(self.send(head, Body::new(Full::new(request))).await?).await?;
        T::decode(message).map_err(|error| Status::internal(format!("the answer cannot be read: {error}")))
    }
}

/// The only message of an answer.
async fn whole(answer: Response<Answer>) -> Result<Bytes, Status> {
    let (head, body) = answer.into_parts();
    match Status::from_header_map(&head.headers) {
        // A refusal has its status in the head.
        Some(status) if status.code() != Code::Ok => return Err(status),
        None if head.status != StatusCode::OK => return Err(of_http(head.status)),
        _ => {}
    }
    let answer = Limited::new(body, PREFIX + MOST).collect().await;
    let answer = answer.map_err(|error| Status::unavailable(chain(&*error)))?;
    match answer.trailers().and_then(Status::from_header_map) {
        Some(status) if status.code() == Code::Ok => {}
        Some(status) => return Err(status),
        None => return Err(Status::unavailable("the answer ended without a status")),
    }
    let mut message = answer.to_bytes();
    if message.len() < PREFIX || message.get_u8() != 0 || message.get_u32() as usize != message.len() {
        return Err(Status::internal("the answer is not one uncompressed message"));
    }
    Ok(message)
}

/// The status of an answer that is not gRPC's, such as a proxy's, as gRPC defines it.
fn of_http(status: StatusCode) -> Status {
    let code = match status {
        StatusCode::BAD_REQUEST => Code::Internal,
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::NOT_FOUND => Code::Unimplemented,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Code::Unavailable,
        _ => Code::Unknown,
    };
    Status::new(code, format!("the answer has no gRPC status, and the HTTP status {status}"))
}
