//! The integration tests: one binary, real servers, the wire.
//!
//! `access` is about who may see what, with etcd's authentication on; `conformance` says what an etcd does and asks it of real
//! etcd, of the embedded store and of the relay over each;
//! `conversation` holds one conversation with etcd and with the relay and compares each word; `faults` takes etcd away in every
//! way; `commands` looks at the program from outside; `etcdctl` runs the real command; `store` compares the embedded store with etcd, request by request. Not here: tests of
//! single modules, which stand beside the code.

mod access;
mod commands;
mod conformance;
mod conversation;
mod etcdctl;
mod faults;
mod store;
mod support;
