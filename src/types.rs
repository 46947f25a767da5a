//! The vocabulary of the relay as types: revisions, key ranges, key-values, events, whole revisions ([`Entry`]) and
//! headers.
//!
//! Not here: anything that waits, locks or does I/O. Every layer uses these types, and they use no other layer.
//! Always holds: the bytes that go to subscribers are encoded once, here, and shared from then on.

mod client_key;
mod entry;
mod header;
mod key_range;
mod key_value;
mod revision;
mod version;

pub use client_key::ClientKey;
pub use entry::{Entry, Event, EventFields, EventKind};
pub use header::{Cluster, Header, Stamp, UpstreamHeader};
pub use key_range::{EmptyRange, KeyRange, RangeEnd};
pub(crate) use key_value::LARGE;
pub use key_value::{KeyValue, KeyValueFields};
pub use revision::Revision;
pub use version::MemberVersion;
