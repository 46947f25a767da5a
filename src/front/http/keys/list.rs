//! `GET /v1/keys`: keys as JSON, read like a `Range` over gRPC.
//!
//! The read is in `front::grpc`'s `range`, which also decides whether etcd answers it. Always holds: an answer from
//! memory is written as its client takes it, and the unwritten part uses no memory. Answers from etcd are bounded in
//! size and in number.

use std::{sync::Arc, time::Duration, vec};

use bytes::Bytes;
use hashbrown::HashMap;
use http::{HeaderValue, Response, StatusCode, header, request::Parts};
use parking_lot::Mutex;
use tokio::time::timeout;
use tonic::{Request, Status, metadata::MetadataValue};

use super::{
    JSON_TYPE, Shared, X_ETCD_INDEX,
    json::{Form, Shown, put_number, put_text},
    query::List,
    reply::{Failure, KeysBody},
};
use crate::{
    front::{
        client::Client,
        grpc::{Found, find},
        pieces::Pieces,
    },
    hub::Listing,
    pb::{
        etcdserverpb::{RangeRequest, RangeResponse, kv_client::KvClient},
        mvccpb,
    },
    rpc::Caller,
    types::{ClientKey, Header, Revision},
};

/// Approximate number of bytes of keys and values per part.
const PART: usize = 64 << 10;
/// Longest answer of etcd, which is completely in memory.
const ANSWER: usize = 16 << 20;
/// Most of etcd's answers that clients have not finished reading. Together they take at most half a GiB.
const ANSWERS: usize = 32;
/// Most of them for one client.
const EACH: usize = 8;
/// Timeout for etcd's answer.
const PATIENCE: Duration = Duration::from_secs(7);

/// Counts etcd's answers that clients have not finished reading.
#[derive(Debug, Default)]
pub(super) struct Answers(Mutex<HashMap<ClientKey, usize>>);

/// Counts as one of them until it is dropped.
#[derive(Debug)]
struct Place {
    answers: Arc<Answers>,
    client: ClientKey,
}

/// What to show.
struct Answer {
    header: Header,
    count: i64,
    more: bool,
    kvs: Kvs,
}

/// Keys that are still to be written.
#[derive(Debug)]
enum Kvs {
    /// From memory.
    Kept(Listing),
    /// From etcd's answer.
    Answered { kvs: vec::IntoIter<mvccpb::KeyValue>, _place: Place },
}

/// An answer that is written as its client takes it.
#[derive(Debug)]
pub struct ListBody {
    kvs: Kvs,
    form: Form,
    /// The text before the first key.
    head: Vec<u8>,
    written: bool,
    /// The last key that was written.
    last: Bytes,
    /// The request, if more pages follow.
    more: Option<(List, Revision)>,
    over: bool,
}

/// Answers a list.
pub(super) async fn answer(shared: &Shared, parts: &Parts, list: List) -> Result<Response<KeysBody>, Failure> {
    let Answer { header, count, more, kvs } = read(shared, parts, &list).await?;
    let revision = if list.revision > Revision::ZERO { list.revision } else { header.revision };
    let tag = HeaderValue::try_from(format!("\"{}-{revision}\"", header.cluster_id)).expect("digits");
    let is_known = parts.headers.get_all(header::IF_NONE_MATCH).iter().any(|tags| names(tags, &tag));
    let mut response = if is_known {
        let mut response = Response::new(KeysBody::whole(Pieces::default()));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        let mut head = Vec::with_capacity(128);
        put_number("{\"revision\":", revision.get(), &mut head);
        head.extend_from_slice(format!(",\"cluster_id\":\"{}\"", header.cluster_id).as_bytes());
        put_number(",\"count\":", count, &mut head);
        head.extend_from_slice(b",\"kvs\":[");
        let form = list.form;
        let more = more.then_some((list, revision));
        let body = ListBody { kvs, form, head, written: false, last: Bytes::new(), more, over: false };
        let mut response = Response::new(KeysBody::List(Box::new(body)));
        response.headers_mut().insert(header::CONTENT_TYPE, JSON_TYPE);
        response
    };
    response.headers_mut().insert(header::ETAG, tag);
    response.headers_mut().insert(X_ETCD_INDEX.clone(), HeaderValue::from(revision.get()));
    Ok(response)
}

/// Whether a list of tags contains this one.
fn names(tags: &HeaderValue, tag: &HeaderValue) -> bool {
    let mut tags = tags.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    tags.any(|known| known == b"*" || known.strip_prefix(b"W/").unwrap_or(known) == tag.as_bytes())
}

async fn read(shared: &Shared, parts: &Parts, list: &List) -> Result<Answer, Failure> {
    let (key, range_end) = list.range.to_wire();
    let request = RangeRequest {
        key,
        range_end,
        limit: list.limit,
        revision: list.revision.get(),
        serializable: list.serializable,
        keys_only: list.form.keys_only,
        ..RangeRequest::default()
    };
    let sessions = &shared.sessions;
    match find(&sessions.hub, &sessions.access, parts, request.clone()).await {
        Found::Local(reply, _) => {
            let count = i64::try_from(reply.count).unwrap_or(i64::MAX);
            Ok(Answer { header: reply.header, count, more: reply.more, kvs: Kvs::Kept(reply.kvs) })
        }
        Found::Refuse(status, _) => Err(Failure::from(&status)),
        Found::Forward(_) => ask(shared, parts, request).await,
    }
}

/// Forwards the read to etcd on behalf of the client.
async fn ask(shared: &Shared, parts: &Parts, range: RangeRequest) -> Result<Answer, Failure> {
    let client = Client::of(&parts.headers, &parts.extensions);
    let place = shared.answers.enter(client.key())?;
    let mut request = Request::new(range);
    Caller::of_client(client.key()).mark(request.extensions_mut());
    let token =
        parts.headers.get(header::AUTHORIZATION).and_then(|token| MetadataValue::try_from(token.as_bytes()).ok());
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", token);
    }
    let mut etcd = KvClient::new(shared.forward.clone()).max_decoding_message_size(ANSWER);
    let answer = timeout(PATIENCE, etcd.range(request)).await;
    let answer = answer.unwrap_or_else(|_| Err(Status::unavailable("etcdserver: request timed out")));
    let RangeResponse { header, kvs, more, count } = answer.map_err(|status| Failure::from(&status))?.into_inner();
    let header = header.unwrap_or_default();
    let header = Header {
        cluster_id: header.cluster_id,
        member_id: header.member_id,
        revision: Revision::new(header.revision),
        raft_term: header.raft_term,
    };
    Ok(Answer { header, count, more, kvs: Kvs::Answered { kvs: kvs.into_iter(), _place: place } })
}

impl ListBody {
    /// The next part; `None` at the end.
    pub(super) fn next(&mut self) -> Option<Pieces> {
        if self.over {
            return None;
        }
        let mut part = std::mem::take(&mut self.head);
        let Self { kvs, form, written, last, .. } = self;
        let keeps_last = self.more.is_some();
        kvs.take(PART, |kv| {
            part.extend_from_slice(if std::mem::replace(written, true) { b",\n" } else { b"\n" });
            kv.put(*form, &mut part);
            if keeps_last {
                *last = Bytes::copy_from_slice(kv.key);
            }
        });
        if kvs.is_empty() {
            part.push(b']');
            if let Some((list, revision)) = &self.more {
                part.extend_from_slice(b",\n\"next\":");
                put_text(&list.next(super::KEYS, last, *revision), &mut part);
            }
            part.extend_from_slice(b"}\n");
            self.over = true;
        }
        Some(part.into())
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }
}

impl Kvs {
    /// Takes key-values until they have about `bytes`, or all are taken.
    fn take(&mut self, bytes: usize, mut with: impl FnMut(Shown<'_>)) {
        match self {
            Self::Kept(listing) => listing.take_each(bytes, |kv| with(kv.into())),
            Self::Answered { kvs, .. } => {
                let mut taken = 0;
                while taken < bytes
                    && let Some(kv) = kvs.next()
                {
                    taken += kv.key.len() + kv.value.len() + 64;
                    with((&kv).into());
                }
            }
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Kept(listing) => listing.is_empty(),
            Self::Answered { kvs, .. } => kvs.len() == 0,
        }
    }
}

impl Answers {
    fn enter(self: &Arc<Self>, client: ClientKey) -> Result<Place, Failure> {
        let mut open = self.0.lock();
        if open.get(&client).is_some_and(|own| *own >= EACH) {
            let text = format!("etcd-relay: this client has {EACH} unread answers from etcd; read them first");
            return Err(Failure::new(StatusCode::TOO_MANY_REQUESTS, text));
        }
        if open.values().sum::<usize>() >= ANSWERS {
            let text = format!("etcd-relay: there are {ANSWERS} unread answers from etcd; retry");
            return Err(Failure::unavailable(text));
        }
        *open.entry(client).or_default() += 1;
        Ok(Place { answers: self.clone(), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.answers.0.lock();
        let left = open.get_mut(&self.client).map_or(0, |own| {
            *own -= 1;
            *own
        });
        if left == 0 {
            open.remove(&self.client);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Buf as _;

    use super::*;

    fn kv(key: usize, value: usize) -> mvccpb::KeyValue {
        mvccpb::KeyValue { key: format!("/a/{key:03}").into(), value: vec![b'x'; value].into(), ..Default::default() }
    }

    #[test]
    fn an_answer_is_written_in_bounded_parts_and_names_the_next_page() {
        let answers: Arc<Answers> = Arc::default();
        for (keys, more) in [(0, false), (1, false), (100, true)] {
            let place = answers.enter(ClientKey::RELAY).expect("room");
            let list = List::read("prefix=/a/&limit=100").expect("the query is valid");
            let kvs: Vec<_> = (0..keys).map(|key| kv(key, 3_000)).collect();
            let mut body = ListBody {
                kvs: Kvs::Answered { kvs: kvs.into_iter(), _place: place },
                form: list.form,
                head: b"{\"kvs\":[".to_vec(),
                written: false,
                last: Bytes::new(),
                more: more.then_some((list, Revision::new(7))),
                over: false,
            };
            let mut all = Vec::new();
            while let Some(mut part) = body.next() {
                assert!(part.remaining() < PART + 4_000);
                all.extend_from_slice(&part.copy_to_bytes(part.remaining()));
            }
            assert!(body.is_over());
            let json: serde_json::Value = serde_json::from_slice(&all).expect("JSON");
            assert_eq!(json["kvs"].as_array().map(Vec::len), Some(keys));
            let next = more.then_some("/v1/keys?prefix=%2Fa%2F&limit=100&from=%2Fa%2F099%00&revision=7");
            assert_eq!(json["next"].as_str(), next);
        }
        assert!(answers.0.lock().is_empty());
    }

    #[test]
    fn answers_that_are_not_read_are_bounded_for_each_client_and_in_all() {
        let answers: Arc<Answers> = Arc::default();
        let mut places = Vec::new();
        for client in 1..=(ANSWERS / EACH) as u64 {
            places.extend((0..EACH).map(|_| answers.enter(ClientKey::new(client)).expect("room")));
            let refused = answers.enter(ClientKey::new(client)).expect_err("the client has its share");
            assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        }
        assert_eq!(answers.enter(ClientKey::new(99)).expect_err("full").status, StatusCode::SERVICE_UNAVAILABLE);
        places.pop();
        answers.enter(ClientKey::new(99)).expect("room again");
    }
}
