//! Deletes keys when their time has come.
//!
//! The lease of a key lives a few seconds longer than the key, as a safety net in case no relay runs. The lease of a
//! directory lives days longer, because its end would delete only the directory's mark: the content is deleted with the
//! mark by the next relay. Every relay does this, and the second one finds the key gone. Always holds: a key is deleted
//! only in the state for which its expiry was known, by a compare of its revision. A directory is deleted with
//! everything below it in one transaction.

use std::{
    collections::BTreeSet,
    ops::Bound,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::future::join_all;
use metrics::counter;
use tokio_util::sync::CancellationToken;

use super::{
    Own,
    answer::{DENIED, Node, Refusal},
    events::{end_of, expired},
    made::{Made, Told},
    operation::{comparing, delete},
    path::kids,
    store::V3,
    time::Expiry,
    tree::of_mark,
};
use crate::{
    hub::{Feed, Snapshot},
    pb::etcdserverpb::{
        TxnRequest,
        compare::{CompareResult, CompareTarget, TargetUnion},
    },
    telemetry::names,
    types::{Event, EventKind, KeyRange, KeyValue, Revision},
};

/// Pause before the next attempt if etcd did not answer.
const RETRY: Duration = Duration::from_millis(500);
/// Keys that are read before other tasks run, while all keys are read.
const STEP: usize = 1_024;
/// Most keys that are deleted at the same time.
const TOGETHER: usize = 32;
/// Longest pause between two checks, because the clock may be changed.
const LOOK: Duration = Duration::from_secs(30);

/// Keys with a time of expiry, the next one first.
#[derive(Debug, Default)]
struct Ends(BTreeSet<(Expiry, Bytes)>);

/// Follows the feed until `stop`.
pub(super) async fn run(feed: Arc<Feed>, mut v3: V3, own: Option<Own>, made: Arc<Made>, stop: CancellationToken) {
    let mut revisions = feed.watch_revision();
    let mut known = (Revision::ZERO, 0);
    let mut ends = Ends::default();
    // Leases of directories that no key uses any more.
    let mut unused: Vec<i64> = Vec::new();
    // The last key that was tried. Keys that cannot be deleted must not delay the others.
    let mut tried = None;
    loop {
        let (snapshot, entries) = feed.since(known.0);
        match entries.filter(|_| known.0 > Revision::ZERO && snapshot.epoch == known.1) {
            Some(entries) => {
                for event in entries.iter().flat_map(|entry| entry.events()) {
                    event.prev.iter().for_each(|prev| ends.forget(prev));
                    unused.extend(unused_lease(event));
                    if event.kind == EventKind::Put {
                        ends.learn(&event.kv);
                    }
                }
            }
            None => {
                ends = Ends::default();
                for (at, kv) in snapshot.map.range(&KeyRange::prefix(Bytes::new())).enumerate() {
                    ends.learn(&kv);
                    if at % STEP == STEP - 1 {
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
        known = (snapshot.revision, snapshot.epoch);
        while !unused.is_empty() {
            let some = unused.split_off(unused.len().saturating_sub(TOGETHER));
            let revoked = join_all(some.into_iter().map(|lease| v3.revoke(lease)));
            if stop.run_until_cancelled(revoked).await.is_none() {
                return;
            }
        }
        let next = ends.0.first().map(|(end, _)| end.wait(SystemTime::now()));
        if next.is_some_and(|wait| wait.is_zero()) && feed.is_serving() {
            let due = ends.due(SystemTime::now(), tried.take());
            // Started in the order of expiry.
            let ending = due.iter().map(|(end, key)| expire(&snapshot, key, *end, &v3, &made));
            let Some(ended) = stop.run_until_cancelled(join_all(ending)).await else { return };
            let left: Vec<_> =
                due.iter().zip(ended).filter_map(|(due, ended)| ended.err().map(|why| (due, why))).collect();
            if let Some((_, why)) = left.last() {
                let denied = why.code == DENIED;
                ends.0.extend(left.into_iter().map(|(due, _)| due.clone()));
                tried = due.last().cloned();
                if let Some(own) = own.as_ref().filter(|_| denied) {
                    v3.token = v3.authenticate(&own.user, &own.password).await.ok();
                }
                if stop.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
                    return;
                }
            }
            continue;
        }
        // Each arm is cancel safe.
        tokio::select! {
            () = stop.cancelled() => return,
            changed = revisions.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(next.unwrap_or(LOOK).clamp(Duration::from_millis(5), LOOK)) => {}
        }
    }
}

impl Ends {
    /// Takes the first keys whose time has come, after the key that was `tried` last, or from the start if there are
    /// none.
    fn due(&mut self, now: SystemTime, tried: Option<(Expiry, Bytes)>) -> Vec<(Expiry, Bytes)> {
        let first = |from: Bound<(Expiry, Bytes)>| -> Vec<_> {
            let ends = self.0.range((from, Bound::Unbounded)).take_while(|(end, _)| end.wait(now).is_zero());
            ends.take(TOGETHER).cloned().collect()
        };
        let mut due = first(tried.map_or(Bound::Unbounded, Bound::Excluded));
        if due.is_empty() {
            due = first(Bound::Unbounded);
        }
        for end in &due {
            self.0.remove(end);
        }
        due
    }

    fn forget(&mut self, kv: &KeyValue) {
        if let Some(end) = end_of(kv) {
            self.0.remove(&(end, kv.key_bytes()));
        }
    }

    fn learn(&mut self, kv: &KeyValue) {
        if let Some(end) = end_of(kv) {
            // A copy, since it stays for as long as the key has this expiry.
            self.0.insert((end, Bytes::copy_from_slice(kv.key())));
        }
    }
}

/// The lease that a directory had before an event and has lost. It would live for days.
fn unused_lease(event: &Event) -> Option<i64> {
    let had = event.prev.as_ref().filter(|prev| prev.key().ends_with(b"/") && end_of(prev).is_some())?;
    (event.kind == EventKind::Delete || event.kv.lease != had.lease).then_some(had.lease)
}

/// Deletes a key if it still has this expiry.
async fn expire(snapshot: &Snapshot, key: &Bytes, end: Expiry, v3: &V3, made: &Made) -> Result<(), Refusal> {
    let Some(kv) = snapshot.map.get(key).filter(|kv| end_of(kv) == Some(end)) else { return Ok(()) };
    let directory = key.strip_suffix(b"/").filter(|path| !path.is_empty()).map(Bytes::copy_from_slice);
    let (path, range, node) = match directory {
        Some(path) => (path.clone(), kids(&path), of_mark(path, &kv)),
        None => (key.clone(), KeyRange::single(key.clone()), Node::file(&kv)),
    };
    let union = TargetUnion::ModRevision(kv.mod_revision.get());
    let compare = vec![comparing(&KeyRange::single(key.clone()), CompareTarget::Mod, CompareResult::Equal, union)];
    let transaction = TxnRequest { compare, success: vec![delete(&range, false)], failure: Vec::new() };
    let under_way = made.begin(path);
    match v3.txn(transaction).await {
        Ok(response) => {
            if response.succeeded {
                let at = Revision::new(response.header.map_or(0, |header| header.revision));
                under_way.done(at, Told::Event(Arc::new(expired(node, at))));
                counter!(names::FACADE_EXPIRED).increment(1);
            }
            Ok(())
        }
        Err(refusal) => {
            tracing::debug!(key = %key.escape_ascii(), cause = %refusal.cause, "Cannot delete an expired key, \
                retrying");
            Err(refusal)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_cannot_be_deleted_do_not_keep_others_from_their_turn() {
        let made = SystemTime::UNIX_EPOCH;
        let expiry = |ttl| Expiry::after(made, ttl).expect("an end");
        let all: Vec<_> = (0..TOGETHER + 2).map(|key| (expiry(1), Bytes::from(format!("/{key:03}")))).collect();
        let mut ends = Ends(all.iter().cloned().collect());
        ends.0.insert((expiry(100), Bytes::from("/later")));
        let now = made + Duration::from_secs(10);
        let first = ends.due(now, None);
        assert_eq!(first, all[..TOGETHER]);
        // None of them could be deleted.
        ends.0.extend(first.iter().cloned());
        let second = ends.due(now, first.last().cloned());
        assert_eq!(second, all[TOGETHER..]);
        assert_eq!(ends.due(now, second.last().cloned()), first, "it is their turn again");
        assert_eq!(ends.0.len(), 1);
        assert_eq!(ends.due(now, None), []);
    }
}
