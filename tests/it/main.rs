//! The integration tests: one binary, real servers, the wire.
//!
//! `conformance` says what an etcd does and asks it of real etcd, of the embedded store and of the relay over each;
//! `conversation` holds one conversation with etcd and with the relay and compares each word; `faults` takes etcd away in every
//! way; `v2` puts a relay over a cluster with etcd's v2 API; `access` asks as different users, with etcd's authentication on; `lainlet` asks the views over LAIN's keys; `commands`,
//! `grpc_proxy` and `state` look at the program from outside; `page` looks at the page in a browser; `h2spec` holds a port to the RFCs of HTTP/2; `etcdctl` runs the real command; `bench` puts the
//! loads of `etcd-relay bench` on servers that are right and on one that lies; `tls` puts TLS on both sides, with good and bad certificates; `store` compares the embedded
//! store with etcd, request by request; `gateway` compares the JSON gateway with etcd's, byte for byte; `top` runs the commands that look at a relay; `manifests` checks
//! deploy/kubernetes; `alerts` holds the rules for Prometheus, the board and the runbooks against relays that are well and in trouble. Not here: tests of single modules, which
//! stand beside the code.

#![expect(
    unreachable_pub,
    reason = "in a test binary `pub` says what other files use; nothing is reachable from outside"
)]
#![expect(clippy::panic, reason = "a test that cannot go on says why")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "figures and logs of servers, shown when a test fails")]

mod access;
mod alerts;
mod bench;
mod commands;
mod conformance;
mod conversation;
mod etcdctl;
mod faults;
mod fleet;
mod gateway;
mod grpc_proxy;
mod h2spec;
mod keys;
mod kubernetes;
mod lainlet;
mod manifests;
mod page;
mod progress;
mod range_stream;
mod state;
mod store;
#[expect(dead_code, reason = "shared with `tests/chaos`, which uses the rest")]
mod support;
mod tls;
mod top;
mod v2;
