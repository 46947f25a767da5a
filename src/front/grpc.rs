//! The gRPC port, which behaves like an etcd member's client port: gRPC calls by path, and plain HTTP.
//!
//! | request | answered by |
//! |---|---|
//! | a path that [`Local`] answers (`/etcdserverpb.Watch/Watch`, `/etcdserverpb.KV/Range`, `/message.…`) | the relay, from memory |
//! | `/grpc.health.v1.Health/…`, `/grpc.reflection.…` | the relay |
//! | `/etcdserverpb.KV/Txn` and other calls that could crash a member | forwarded to etcd if they are harmless
//! (`guard`) |
//! | `/etcdserverpb.Cluster/MemberList`, if the relay advertises itself | the relay (`members`) |
//! | any other with content type `application/grpc…` | forwarded to etcd |
//! | any other to `/v3/…` | the JSON gateway (`front::gateway`), which makes the same calls |
//! | everything else | `front::http::member` |

mod ending;
mod etcd;
mod guard;
mod lainlet;
mod locals;
mod members;
mod pieces;
mod range;
mod reply;
mod responses;
mod service;
mod services;
mod watch_body;

pub use self::{
    ending::ending,
    etcd::{EtcdApi, EtcdBody, Streams},
    lainlet::{LainletApi, LainletBody},
    locals::Locals,
    members::{Advertised, Members},
    pieces::Pieces,
    reply::Reply,
    service::{GrpcPort, Local, is_grpc},
    services::{health, reflection},
    watch_body::WatchBody,
};
pub(super) use self::{
    etcd::{Listed, WATCH},
    range::{Found, find},
};
pub(super) use self::{reply::spell, service::mark_client};
