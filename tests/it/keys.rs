//! Keys over plain HTTP: `/v1/keys` and `/v1/watch`, as docs/http-api.md describes them, compared with etcd's own answers.
//!
//! Not here: permissions, see `access::keys`. Always holds: the reader knows server-sent events and JSON, and nothing of the relay.

mod bad_input;
mod lists;
pub(crate) mod reader;
mod slow_readers;
mod watches;
