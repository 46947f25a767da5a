//! [`Made`]: the writes of this process, by revision, so that waits get their exact actions.
//!
//! v3 says that a key was put; whether that was a `set` or a `compareAndSwap` only its writer knows. Others guess, and clients treat
//! both alike. Always holds: a write that is under way is known by its path before etcd can tell its event.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{answer::Event, events::path_of};
use crate::types::{Entry, Revision};

/// Writes that are remembered until their event comes: as many as can be under way.
const KEPT: usize = 10_000;
/// How long the event of a write waits for the write's answer; after that, its action is guessed.
const PATIENCE: Duration = Duration::from_secs(2);

/// What those who wait are told of a write.
#[derive(Clone, Debug)]
pub(super) enum Told {
    Event(Arc<Event>),
    /// A refresh is reported to nobody.
    Nothing,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Made {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    under_way: HashMap<u64, (Bytes, Instant)>,
    last_id: u64,
    done: BTreeMap<Revision, Told>,
}

/// A write that is under way.
#[derive(Debug)]
pub(super) struct UnderWay<'a> {
    made: &'a Made,
    id: u64,
}

impl Made {
    /// Says that `path` is going to be written.
    pub(super) fn begin(&self, path: Bytes) -> UnderWay<'_> {
        let mut state = self.state.lock();
        state.last_id += 1;
        let id = state.last_id;
        state.under_way.insert(id, (path, Instant::now()));
        UnderWay { made: self, id }
    }

    /// What this process did at the revision of `entry`; waits for answers that may say so.
    pub(super) async fn at(&self, entry: &Entry) -> Option<Told> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let deadline = {
                let mut state = self.state.lock();
                if let Some(told) = state.done.remove(&entry.revision) {
                    return Some(told);
                }
                if state.under_way.is_empty() {
                    return None;
                }
                // A write that began after the event came did not cause it, and a write that takes long is not waited for.
                let paths: Vec<Bytes> = entry.events().iter().map(|event| path_of(event.kv.key())).collect();
                let concerns = |written: &Bytes| {
                    // The end of a tree may be told by its keys alone.
                    let is_below = |path: &Bytes| path.starts_with(written) && path.get(written.len()) == Some(&b'/');
                    paths.iter().any(|path| path == written || is_below(path))
                };
                let begun = state.under_way.values().filter(|(path, begun)| *begun <= entry.received && concerns(path));
                begun.map(|(_, begun)| *begun + PATIENCE).max().filter(|deadline| *deadline > Instant::now())?
            };
            tokio::time::timeout_at(deadline.into(), changed).await.ok()?;
        }
    }
}

impl UnderWay<'_> {
    /// Says what was done, and at which revision.
    pub(super) fn done(&self, revision: Revision, told: Told) {
        let mut state = self.made.state.lock();
        state.done.insert(revision, told);
        while state.done.len() > KEPT {
            state.done.pop_first();
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.made.state.lock().under_way.remove(&self.id);
        self.made.changed.notify_waiters();
    }
}
