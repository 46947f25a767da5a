//! The hub: one log per watched range, many positions in it.
//!
//! Not here: networks, protocols' requests, etcd's client. A source writes into feeds, fronts and views read from them.

pub mod upstream;
