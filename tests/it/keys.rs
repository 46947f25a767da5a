//! Keys over plain HTTP: `/v1/keys` and `/v1/watch` as docs/http-api.md describes them, compared with etcd's own
//! answers.
//!
//! Permissions are in `access::keys`. Always holds: the reader uses only server-sent events and JSON, and no code of
//! the relay.

mod bad_input;
mod lists;
pub(crate) mod reader;
mod slow_readers;
mod watches;
