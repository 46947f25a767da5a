//! The gRPC port, which behaves as an etcd member's client port: calls by path, plain HTTP beside them.
//!
//! | request | answered by |
//! |---|---|
//! | a path that [`Local`] answers (`/etcdserverpb.Watch/Watch`, `/etcdserverpb.KV/Range`) | the relay, from memory |
//! | `/grpc.health.v1.Health/…`, `/grpc.reflection.…` | the relay |
//! | any other with content type `application/grpc…` | forwarded to etcd |
//! | all else | `front::http::member` |

mod service;
mod services;

pub use self::{
    service::{GrpcPort, GrpcService, Local, NoLocal, is_grpc},
    services::{health, reflection},
};
