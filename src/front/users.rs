//! [`Users`]: which etcd user a token belongs to, as far as the relay has seen etcd issue it. Only for `/debug/state`.
//!
//! Permissions are decided by etcd at each check (`access`). A name is learned when an `Authenticate` call passes
//! through the relay, so etcd has checked its password. The content of a token is not believed, since anyone can forge
//! one. Always holds: neither tokens nor passwords are kept, only hashes of tokens with a secret of this process. At
//! most twice `MOST` names are kept, and the oldest are forgotten first.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    mem,
    sync::{Arc, LazyLock},
};

use bytes::Buf as _;
use http::{HeaderMap, Request, Response, header};
use http_body_util::{BodyExt as _, Full, Limited};
use parking_lot::Mutex;
use tonic::{Code, Status, body::Body};

use crate::{
    pb::etcdserverpb::{AuthenticateRequest, AuthenticateResponse},
    rpc::GrpcService,
};

/// Tokens per generation. A client gets a new token every few minutes, but its connections keep showing the first.
const MOST: usize = 16_384;
/// Longest name that is shown, in bytes. etcd sets no limit.
const MOST_NAME: usize = 128;
/// etcd's own limit on requests. A name, a password and a token are far smaller.
const MOST_MESSAGE: usize = 2 << 20;

const AUTHENTICATE: &str = "/etcdserverpb.Auth/Authenticate";

/// The secret for hashing tokens. If clients could predict the hashes, one could take another's name.
static SECRET: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The hash of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenKey(u64);

impl TokenKey {
    /// The key of a request's token. etcd takes the header `token`, or `authorization` if that is missing.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        headers
            .get("token")
            .or_else(|| headers.get(header::AUTHORIZATION))
            .map(|token| Self::of_token(token.as_bytes()))
    }

    fn of_token(token: &[u8]) -> Self {
        Self(SECRET.hash_one(token))
    }
}

/// See the module. Cheap to clone; clones share what they know.
#[derive(Clone, Debug, Default)]
pub struct Users(Arc<Mutex<Generations>>);

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<TokenKey, Arc<str>>,
    old: HashMap<TokenKey, Arc<str>>,
}

impl Users {
    /// The user to whom etcd issued this token.
    #[must_use]
    pub fn name(&self, token: TokenKey) -> Option<Arc<str>> {
        let known = self.0.lock();
        known.young.get(&token).or_else(|| known.old.get(&token)).cloned()
    }

    /// Passes calls on to `forward`, and records to whom etcd issues tokens.
    #[must_use]
    pub fn noticing(&self, forward: GrpcService) -> GrpcService {
        let users = self.clone();
        GrpcService::passing(move |request| {
            if request.uri().path() != AUTHENTICATE {
                return forward.answer(request);
            }
            let (users, forward) = (users.clone(), forward.clone());
            Box::pin(async move {
                let (parts, body) = request.into_parts();
                let Ok(body) = Limited::new(body, MOST_MESSAGE).collect().await else {
                    let text = format!("etcd-relay: an Authenticate request has at most {MOST_MESSAGE} bytes");
                    return Ok(Status::new(Code::ResourceExhausted, text).into_http());
                };
                let body = body.to_bytes();
                let name = message::<AuthenticateRequest>(&body).map(|asked| asked.name);
                let response = forward.answer(Request::from_parts(parts, Body::new(Full::new(body)))).await?;
                Ok(users.notice(name, response).await)
            })
        })
    }

    async fn notice(&self, name: Option<String>, response: Response<Body>) -> Response<Body> {
        // A response that consists only of a status is passed on unchanged, because clients recognize it by its end.
        let (Some(name), false) = (name, response.headers().contains_key("grpc-status")) else { return response };
        let (parts, body) = response.into_parts();
        match Limited::new(body, MOST_MESSAGE).collect().await {
            Ok(answer) => {
                let trailers = answer.trailers().cloned();
                let answer = answer.to_bytes();
                if let Some(AuthenticateResponse { token, .. }) = message(&answer)
                    && !token.is_empty()
                {
                    self.gave(token.as_bytes(), name);
                }
                let body = Full::new(answer).with_trailers(async move { trailers.map(Ok) });
                Response::from_parts(parts, Body::new(body))
            }
            Err(error) => Status::unavailable(format!(
                "etcd-relay: etcd's answer ended too early: \
                {error}"
            ))
            .into_http(),
        }
    }

    fn gave(&self, token: &[u8], name: String) {
        let mut known = self.0.lock();
        if known.young.len() >= MOST {
            known.old = mem::take(&mut known.young);
        }
        known.young.insert(TokenKey::of_token(token), cut(&name, MOST_NAME).into());
    }
}

/// The message of a unary call, if it is complete and not compressed.
fn message<M: prost::Message + Default>(mut framed: &[u8]) -> Option<M> {
    let head = framed.get(..5)?;
    framed.advance(head.len());
    let length = usize::try_from(u32::from_be_bytes([head[1], head[2], head[3], head[4]])).ok()?;
    (head[0] == 0).then(|| framed.get(..length)).flatten().and_then(|bytes| M::decode(bytes).ok())
}

/// A text, cut to `most` bytes.
fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::{BufMut as _, Bytes, BytesMut};
    use http::HeaderValue;
    use tower::service_fn;

    use super::*;

    fn framed(message: &impl prost::Message) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_u8(0);
        bytes.put_u32(message.encoded_len() as u32);
        message.encode(&mut bytes).expect("room");
        bytes.freeze()
    }

    fn etcd() -> GrpcService {
        GrpcService::new(service_fn(|request: Request<Body>| async move {
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            let asked: AuthenticateRequest = message(&body).expect("a request");
            let mut trailers = HeaderMap::new();
            let mut answer = Bytes::new();
            if asked.password == "right" {
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                answer = framed(&AuthenticateResponse { token: format!("{}.1", asked.name), ..Default::default() });
            } else {
                trailers.insert("grpc-status", HeaderValue::from_static("3"));
            }
            let body = Full::new(answer).with_trailers(async move { Some(Ok(trailers)) });
            Ok::<_, Infallible>(Response::new(Body::new(body)))
        }))
    }

    async fn authenticate(users: &Users, name: &str, password: &str) -> (Bytes, HeaderMap) {
        let body = framed(&AuthenticateRequest { name: name.to_owned(), password: password.to_owned() });
        let request = Request::post(AUTHENTICATE).body(Body::new(Full::new(body))).expect("a request");
        let response = users.noticing(etcd()).answer(request).await.expect("an answer");
        let answer = response.into_body().collect().await.expect("a body");
        let trailers = answer.trailers().cloned().expect("trailers");
        (answer.to_bytes(), trailers)
    }

    fn name(users: &Users, header: &'static str, token: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(header, token.parse().expect("a value"));
        users.name(TokenKey::of(&headers)?).map(|name| name.to_string())
    }

    #[tokio::test]
    async fn a_name_is_known_by_the_token_that_etcd_gave_and_the_answer_passes_unchanged() {
        let users = Users::default();
        let (answer, trailers) = authenticate(&users, "alice", "right").await;
        assert_eq!(message::<AuthenticateResponse>(&answer).expect("an answer").token, "alice.1");
        assert_eq!(trailers["grpc-status"], "0");
        for header in ["token", "authorization"] {
            assert_eq!(name(&users, header, "alice.1").as_deref(), Some("alice"));
        }
        let (_, trailers) = authenticate(&users, "bob", "wrong").await;
        assert_eq!(trailers["grpc-status"], "3");
        for token in ["bob.1", "bob", "wrong", "right"] {
            assert_eq!(name(&users, "token", token), None, "{token}");
        }
        assert!(!format!("{users:?}").contains("alice.1"), "no token is kept");
    }

    #[test]
    fn names_are_bounded_and_the_newest_stay() {
        let users = Users::default();
        for number in 0..MOST * 3 {
            users.gave(format!("token {number}").as_bytes(), "é".repeat(MOST_NAME));
        }
        let known = users.0.lock();
        assert!(known.young.len() + known.old.len() <= 2 * MOST);
        drop(known);
        let newest = name(&users, "token", &format!("token {}", MOST * 3 - 1)).expect("known");
        assert!(newest.len() <= MOST_NAME + "…".len() && newest.ends_with("é…"), "{} bytes", newest.len());
        assert_eq!(name(&users, "token", "token 0"), None);
    }

    #[test]
    fn what_is_no_message_is_not_read() {
        for bytes in [&b""[..], b"\0\0\0\0", b"\x01\0\0\0\0", b"\0\0\0\0\x05ab", b"\0\xff\xff\xff\xffab"] {
            assert!(message::<AuthenticateRequest>(bytes).is_none(), "{bytes:?}");
        }
    }
}
