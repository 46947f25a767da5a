//! [`Inspect`]: what the ports tell about the process as a whole, implemented by the composition root.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::listen::ConnectionId;
use crate::types::MemberVersion;

/// What operators and clients may ask about the process.
pub trait Inspect: Send + Sync + 'static {
    /// What is not ready, in words; empty when all is.
    fn not_ready(&self) -> Vec<String>;

    /// The upstream's version; `None` until it is known.
    fn version(&self) -> Option<Arc<MemberVersion>>;

    /// The state of feeds and watches for `/debug/state`: a JSON object, whose fields are put beside those of the ports.
    fn state(&self) -> Map<String, Value>;

    /// What is known of one connection beyond its peer: its watches and their lag.
    fn connection(&self, id: ConnectionId) -> Map<String, Value>;

    /// All metrics as Prometheus text.
    fn metrics(&self) -> String;
}
