//! [`Inspect`]: what the ports tell about the process as a whole, implemented by the composition root.
//!
//! Not here: who may read it, see `http::audience`, and how lists are cut into pages, see `http::pages`.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::listen::ConnectionId;
use crate::{
    hub::{FeedStats, WatchStats, WatchStreamStats},
    types::MemberVersion,
};

/// What operators and clients may ask about the process.
pub trait Inspect: Send + Sync + 'static {
    /// What is not ready, in words; empty when all is.
    fn not_ready(&self) -> Vec<String>;

    /// The upstream's version; `None` until it is known.
    fn version(&self) -> Option<Arc<MemberVersion>>;

    /// What `/debug/state` tells of the process beyond its lists: a JSON object, whose fields are put beside those of the ports.
    fn state(&self) -> Map<String, Value>;

    /// How many feeds there are.
    fn feeds(&self) -> usize;

    /// The first `most` feeds with a number above `after`, in the order of their numbers.
    fn feeds_after(&self, after: u64, most: usize) -> Vec<FeedStats>;

    /// How many watch streams a connection has.
    fn streams(&self, connection: ConnectionId) -> usize;

    /// The first `most` watch streams of a connection with a number above `after`, in the order of their numbers.
    fn streams_after(&self, connection: ConnectionId, after: u64, most: usize) -> Vec<(u64, WatchStreamStats)>;

    /// The first `most` watches of one of a connection's streams with a number above `after`, in the order of their numbers; `None` where the
    /// connection has no such stream.
    fn watches_after(&self, connection: ConnectionId, stream: u64, after: u64, most: usize) -> Option<Vec<WatchStats>>;

    /// All metrics as Prometheus text.
    fn metrics(&self) -> String;
}
