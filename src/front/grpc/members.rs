//! [`Members`]: etcd's `Cluster.MemberList`, for a relay that names itself in place of etcd's members.
//!
//! Clients that ask a cluster for its members connect to those in the answer: Go's client with auto-sync or `Sync()`,
//! and `etcdctl --cluster`. If they were given etcd's members, they would silently leave the relay. The rules are those
//! of etcd's grpc-proxy. The answer names the relays that are registered below a prefix of etcd, in the format of
//! clientv3's `naming/endpoints`, or this relay alone while none is known.
//!
//! The registration is written in `source::etcd::register`. Always holds: an answer names at least one relay, and at
//! most [`MOST`], however many keys there are below the prefix.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use super::pieces::{Pieces, Writer};
use crate::{
    hub::{Feed, Hub},
    pb::etcdserverpb::{Member, MemberListResponse, ResponseHeader},
    types::{Header, KeyRange, Revision},
};

/// Most relays in an answer. A client that may write below the prefix could redirect other clients in any case.
const MOST: usize = 1_000;
/// Longest key-value that is read as a registration. Names and URLs are short.
const LONGEST: usize = 4 << 10;

/// How clients reach this relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertised {
    /// Its client URL.
    pub url: String,
    /// Its name in member lists.
    pub name: String,
    /// The prefix under which all relays are registered: their keys begin with it and a slash.
    pub prefix: Option<String>,
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Members {
    own: Arc<Member>,
    registered: Option<(Arc<Feed>, KeyRange)>,
    hub: Arc<Hub>,
}

/// The value that clientv3's `naming/endpoints` writes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Update {
    op: u8,
    addr: String,
    #[serde(default)]
    metadata: serde_json::Value,
}

/// The content of [`Update::metadata`] as etcd's proxy writes it.
#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    name: String,
}

impl Advertised {
    /// The key and value of the registration; `None` without a prefix.
    #[must_use]
    pub fn registration(&self) -> Option<(Bytes, Bytes)> {
        let key = format!("{}/{}", self.prefix.as_ref()?, self.url);
        let meta = serde_json::to_string(&Meta { name: self.name.clone() }).ok()?;
        let update = Update { op: 0, addr: self.url.clone(), metadata: meta.into() };
        Some((key.into(), serde_json::to_string(&update).ok()?.into()))
    }
}

impl Members {
    /// Lists relays. If they register themselves, a feed of their keys is always open.
    #[must_use]
    pub fn new(advertised: &Advertised, hub: Arc<Hub>) -> Self {
        let registered = advertised.prefix.as_ref().map(|prefix| {
            let range = KeyRange::prefix(format!("{prefix}/").into());
            (hub.always(range.clone()), range)
        });
        Self { own: Arc::new(member(advertised.name.clone(), advertised.url.clone())), registered, hub }
    }

    /// The answer as a gRPC message.
    pub(super) fn list(&self) -> Pieces {
        let mut members = self.registered();
        if members.is_empty() {
            members.push(Member::clone(&self.own));
        }
        let Header { cluster_id, member_id, raft_term, .. } = self.hub.header().at(Revision::ZERO);
        let header = ResponseHeader { cluster_id, member_id, raft_term, revision: 0 };
        let message = MemberListResponse { header: Some(header), members }.encode_to_vec();
        let mut writer = Writer::with_capacity(message.len() + 8);
        writer.message(0, |own| own.extend_from_slice(&message));
        writer.finish()
    }

    /// Whether other relays are registered.
    #[must_use]
    pub fn knows_others(&self) -> bool {
        self.registered().iter().any(|member| member.client_ur_ls != self.own.client_ur_ls)
    }

    /// The registered relays whose values can be read.
    fn registered(&self) -> Vec<Member> {
        let Some((feed, range)) = &self.registered else { return Vec::new() };
        if !feed.is_serving() {
            return Vec::new();
        }
        let snapshot = feed.snapshot();
        let kvs = snapshot.map.range(range).take(MOST);
        kvs.filter(|kv| kv.encoded().len() <= LONGEST).filter_map(|kv| parse(kv.value())).collect()
    }
}

/// Parses a registration. Other keys are ignored.
fn parse(value: &[u8]) -> Option<Member> {
    let update: Update = serde_json::from_slice(value).ok()?;
    let meta: Meta = serde_json::from_str(update.metadata.as_str()?).ok()?;
    (update.op == 0 && !update.addr.is_empty()).then(|| member(meta.name, update.addr))
}

fn member(name: String, url: String) -> Member {
    Member { name, client_ur_ls: vec![url], ..Member::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::{FeedState, KeyMap, OutboxLimits, testing};

    fn advertised(prefix: Option<&str>) -> Advertised {
        Advertised {
            url: "http://10.0.0.1:23790".to_owned(),
            name: "rack1".to_owned(),
            prefix: prefix.map(ToOwned::to_owned),
        }
    }

    fn urls(members: &Members) -> Vec<(String, String)> {
        let mut bytes = members.list();
        let length = bytes::Buf::remaining(&bytes);
        let bytes = bytes::Buf::copy_to_bytes(&mut bytes, length);
        let list = MemberListResponse::decode(bytes.slice(5..)).expect("a message");
        list.members.into_iter().map(|member| (member.name, member.client_ur_ls.join(","))).collect()
    }

    #[test]
    fn a_registration_has_the_form_of_etcds_proxy() {
        let (key, value) = advertised(Some("/relays")).registration().expect("one");
        assert_eq!(key, "/relays/http://10.0.0.1:23790");
        // As `etcd grpc-proxy start` 3.5.30 writes it.
        assert_eq!(value, r#"{"Op":0,"Addr":"http://10.0.0.1:23790","Metadata":"{\"name\":\"rack1\"}"}"#);
        let read = parse(&value).expect("read");
        assert_eq!((&*read.name, &*read.client_ur_ls[0]), ("rack1", "http://10.0.0.1:23790"));
        assert!(advertised(None).registration().is_none());
    }

    #[tokio::test]
    async fn all_relays_are_named_or_this_one_while_none_is_known() {
        let hub = testing::hub(OutboxLimits { bytes: 1 << 20, deliveries: 100, watches: 100 });
        let alone = vec![("rack1".to_owned(), "http://10.0.0.1:23790".to_owned())];
        assert_eq!(urls(&Members::new(&advertised(None), hub.clone())), alone);
        let members = Members::new(&advertised(Some("/relays")), hub.clone());
        assert_eq!(urls(&members), alone, "before the feed has read them");
        assert!(!members.knows_others());
        let mut map = KeyMap::default();
        let mut put = |key: &str, value: &str| {
            let fields = crate::types::KeyValueFields {
                key: Bytes::copy_from_slice(key.as_bytes()),
                value: Bytes::copy_from_slice(value.as_bytes()),
                ..Default::default()
            };
            map.insert(crate::types::KeyValue::new(&fields));
        };
        put("/relays/a", r#"{"Op":0,"Addr":"http://a:1","Metadata":"{\"name\":\"a\"}"}"#);
        put("/relays/b", r#"{"Op":0,"Addr":"http://b:1","Metadata":"{\"name\":\"b\"}"}"#);
        put("/relays/c", "something else");
        put("/relays/d", r#"{"Op":1,"Addr":"http://d:1","Metadata":"{\"name\":\"d\"}"}"#);
        let feed = hub.always(KeyRange::prefix("/relays/".into()));
        feed.install(Arc::default(), map, Revision::new(5));
        feed.set_state(FeedState::Live);
        let named = |name: &str| (name.to_owned(), format!("http://{name}:1"));
        assert_eq!(urls(&members), [named("a"), named("b")]);
        assert!(members.knows_others());
        let mut map = KeyMap::default();
        let (key, value) = advertised(Some("/relays")).registration().expect("one");
        let fields = crate::types::KeyValueFields { key, value, ..Default::default() };
        map.insert(crate::types::KeyValue::new(&fields));
        feed.install(Arc::default(), map, Revision::new(6));
        assert!(!members.knows_others(), "it has only its own registration");
    }
}
