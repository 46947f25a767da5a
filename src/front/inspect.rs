//! [`Inspect`]: what the ports show about the process as a whole, implemented by the composition root.
//!
//! Who may read it is decided in `http::audience`; lists are cut into pages in `http::pages`.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::listen::ConnectionId;
use crate::{
    hub::{FeedStats, WatchStats, WatchStreamStats},
    types::MemberVersion,
};

/// What operators and clients can learn about the process.
pub trait Inspect: Send + Sync + 'static {
    /// The reasons why the process is not ready; empty if it is.
    fn not_ready(&self) -> Vec<String>;

    /// The upstream's version; `None` until it is known.
    fn version(&self) -> Option<Arc<MemberVersion>>;

    /// The fields of `/debug/state` about the process, besides its lists: a JSON object that is merged with the fields
    /// of the ports.
    fn state(&self) -> Map<String, Value>;

    /// The number of feeds.
    fn feeds(&self) -> usize;

    /// The first `most` feeds with a number above `after`, in the order of their numbers.
    fn feeds_after(&self, after: u64, most: usize) -> Vec<FeedStats>;

    /// The number of watch streams of a connection.
    fn streams(&self, connection: ConnectionId) -> usize;

    /// The first `most` watch streams of a connection with a number above `after`, in the order of their numbers.
    fn streams_after(&self, connection: ConnectionId, after: u64, most: usize) -> Vec<(u64, WatchStreamStats)>;

    /// The first `most` watches of a connection's stream with a number above `after`, in the order of their numbers;
    /// `None` if the connection has no such stream.
    fn watches_after(&self, connection: ConnectionId, stream: u64, after: u64, most: usize) -> Option<Vec<WatchStats>>;

    /// All metrics as Prometheus text.
    fn metrics(&self) -> String;
}
