//! The integration tests: one binary with real servers and real connections.
//!
//! `conformance` checks the behaviour of etcd in real etcd, in the embedded store and in the relay over each.
//! `conversation` compares the relay's responses with etcd's, one by one. `faults` makes etcd fail in many ways; `v2`
//! uses a cluster with etcd's v2 API; `access` has users with etcd's authentication on; `lainlet` tests the views over
//! LAIN's keys. `commands`, `grpc_proxy` and `state` test the program from outside; `page` uses a browser; `h2spec`
//! checks a port against the RFCs of HTTP/2; `etcdctl` runs the real command. `bench` runs the loads of `etcd-relay
//! bench` on correct servers and on one that falsifies answers. `tls` uses TLS on both sides, with good and bad
//! certificates. `store` compares the embedded store with etcd, and `gateway` compares the JSON gateway with etcd's.
//! `top` runs the commands that show a relay. `manifests` checks deploy/kubernetes; `alerts` checks the rules for
//! Prometheus, the board and the runbooks against relays that are healthy and in trouble; `samples` runs the programs
//! of `examples/` while their servers fail; `service` acts as the service manager that starts the relay, and `deploy`
//! compares the files of `deploy` with the program. Unit tests are beside the code.

#![expect(unreachable_pub, reason = "in a test binary, `pub` marks what other files use; nothing is visible outside")]
#![expect(clippy::panic, reason = "a test that cannot continue prints why")]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "measurements and logs of servers, shown when a test fails"
)]

mod access;
mod alerts;
mod bench;
mod commands;
mod conformance;
mod conversation;
mod deploy;
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
mod samples;
mod service;
mod state;
mod store;
#[expect(dead_code, reason = "shared with `tests/chaos`, which uses the rest")]
mod support;
mod tls;
mod top;
mod v2;
