//! Behaviour under faults: etcd unavailable, history lost, clients that do not read, invalid input.
//!
//! Random schedules over a simulated upstream are in `tests/simulation`. Each test fails if its feature is removed.
//! Sizes are moderate by default; `ETCD_RELAY_TEST_SCALE=full` uses those of a large rack.

mod bad_input;
mod begins;
mod big_values;
mod elections;
mod history;
mod members;
mod order;
mod outage;
mod quorum;
mod replaced;
mod restored;
mod resume;
mod scale;
mod shares;
mod shutdown;
mod slow_readers;

use crate::support::{
    client::{self, WatchStream},
    kv::Kv,
    replay::Replay,
    validate::{Expected, assert_valid},
};
use etcd_relay::pb::etcdserverpb::WatchCreateRequest;

/// Whether to use the sizes of a large rack.
fn full_scale() -> bool {
    std::env::var("ETCD_RELAY_TEST_SCALE").is_ok_and(|scale| scale == "full")
}

/// The keys of these tests, which are in a configured feed; [`OUTSIDE`] opens a feed on demand.
const PREFIX: &str = "/inside/";
const OUTSIDE: &str = "/outside/";

/// Watches of each kind, each on its own connection, with their requests.
struct Audience {
    members: Vec<(WatchCreateRequest, WatchStream)>,
}

impl Audience {
    /// Watches at the relay: the prefix from now on, from the past, with previous values, one key, a part of the
    /// prefix.
    async fn gather(endpoint: &str, first_revision: i64) -> Self {
        let requests = [
            client::prefix(PREFIX),
            WatchCreateRequest { start_revision: first_revision, ..client::prefix(PREFIX) },
            WatchCreateRequest { prev_kv: true, ..client::prefix(PREFIX) },
            client::key(format!("{PREFIX}07")),
            WatchCreateRequest { progress_notify: true, ..client::prefix(format!("{PREFIX}1")) },
            client::prefix(OUTSIDE),
        ];
        let mut members = Vec::new();
        for request in requests {
            let mut stream = WatchStream::open(endpoint).await;
            stream.created(request.clone()).await;
            members.push((request, stream));
        }
        Self { members }
    }

    /// Writes a last revision that each watch sees, waits for it, and checks everything that they received.
    async fn judge(&mut self, origin: &str) {
        let kv = Kv::connect(origin).await;
        // One transaction with a key for each watch, so that all of them end with one revision.
        let keys = [format!("{PREFIX}07"), format!("{PREFIX}1"), format!("{OUTSIDE}z")];
        let last = kv.txn(keys.iter().map(|key| crate::support::kv::op_put(key, "last")).collect()).await;
        let replay = Replay::read(origin, last).await;
        for (request, stream) in &mut self.members {
            stream.until_revision(last).await;
            assert!(!stream.has_ended(), "a watch that could continue was ended: {request:?}");
            let expected = Expected { complete_to: Some(last), prev_kv_known: true };
            assert_valid(std::slice::from_ref(request), &stream.record(), &replay, expected);
        }
    }
}
