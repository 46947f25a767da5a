//! [`Begin`]: what a stream sends first, or when its reader has missed too much: nothing, a snapshot, or the keys that
//! changed since then.
//!
//! Later changes are in `stream`. Always holds: the content is of one revision, and a reader that has read all of it
//! has that revision. It is written in bounded parts, and only the last part has an id. Finding the changes takes at
//! most a millisecond at a time.

use std::{mem, sync::Arc, vec};

use bytes::Bytes;
use hashbrown::HashSet;

use super::{
    json::{Form, Shown, put_number},
    text::{end_event, put_id, put_kept},
};
use crate::{
    hub::{Feed, Listing, RangeQuery, ReadError},
    types::{Entry, KeyRange, Revision},
};

/// Approximate number of bytes of keys and values per part.
const PART: usize = 64 << 10;
/// If the changes are larger than this, a snapshot is sent instead, because they are held in memory until the reader
/// has them.
const CHANGES: usize = 1 << 20;
/// Revisions that are processed in one step.
const STEP: usize = 1_024;

/// See the module.
#[derive(Debug)]
pub(super) enum Begin {
    /// Nothing: the reader continues after this revision.
    After(Revision),
    /// All keys of the range.
    All { revision: Revision, kvs: Listing, first: bool },
    /// The last change of each key that changed.
    Changes { revision: Revision, changes: vec::IntoIter<(Arc<Entry>, usize)> },
}

impl Begin {
    /// All keys of a range in a feed.
    ///
    /// # Errors
    /// Fails if the feed cannot be read now.
    pub(super) fn all(feed: &Feed, range: &KeyRange) -> Result<Self, ReadError> {
        let reply = RangeQuery::all(range.clone()).read(feed)?;
        Ok(Self::All { revision: reply.header.revision, kvs: reply.kvs, first: true })
    }

    /// The changes in a range since a revision; all keys if that is less data, or if the changes are unknown.
    ///
    /// # Errors
    /// Fails if the feed cannot be read now.
    pub(super) async fn newest(feed: &Feed, range: &KeyRange, since: Revision) -> Result<Self, ReadError> {
        let (snapshot, Some(entries)) = feed.since(since) else { return Self::all(feed, range) };
        let most = snapshot.map.count(range);
        let (mut seen, mut changes, mut bytes) = (HashSet::<Bytes>::new(), Vec::new(), 0);
        for (looked_at, entry) in entries.iter().rev().enumerate() {
            if looked_at % STEP == STEP - 1 {
                tokio::task::yield_now().await;
            }
            let before = changes.len();
            for (index, event) in entry.events().iter().enumerate().rev() {
                if range.contains(event.kv.key()) && !seen.contains(event.kv.key()) {
                    seen.insert(event.kv.key_bytes());
                    changes.push((entry.clone(), index));
                }
            }
            if changes.len() > before {
                // The whole entry is kept in memory for this event.
                bytes += entry.cost();
            }
            if bytes > CHANGES || changes.len() > most.max(STEP) {
                return Self::all(feed, range);
            }
        }
        changes.reverse();
        Ok(Self::Changes { revision: snapshot.revision, changes: changes.into_iter() })
    }

    /// The revision that the reader has after reading this.
    pub(super) fn revision(&self) -> Revision {
        match self {
            Self::After(revision) | Self::All { revision, .. } | Self::Changes { revision, .. } => *revision,
        }
    }

    /// Whether it is a snapshot.
    pub(super) fn is_snapshot(&self) -> bool {
        matches!(self, Self::All { .. })
    }

    /// Writes the next part. Returns false if it is the last.
    pub(super) fn write(&mut self, form: Form, to: &mut Vec<u8>) -> bool {
        match self {
            Self::After(revision) => {
                put_id(*revision, to);
                false
            }
            Self::All { revision, kvs, first } => {
                put_number("event: snapshot\ndata: {\"revision\":", revision.get(), to);
                to.extend_from_slice(if mem::take(first) { b",\"first\":true" } else { b",\"first\":false" });
                to.extend_from_slice(b",\"kvs\":[");
                let mut any = false;
                kvs.take_each(PART, |kv| {
                    if mem::replace(&mut any, true) {
                        to.push(b',');
                    }
                    Shown::from(kv).put(form, to);
                });
                let last = kvs.is_empty();
                to.extend_from_slice(if last { b"],\"last\":true}\n" } else { b"],\"last\":false}\n" });
                end_event(last.then_some(*revision), to);
                !last
            }
            Self::Changes { revision, changes } => {
                let start = to.len();
                while to.len() - start < PART {
                    let Some((entry, index)) = changes.next() else { break };
                    put_kept(&entry, index, form, to);
                    if changes.len() > 0 {
                        end_event(None, to);
                    }
                }
                let last = changes.len() == 0;
                if last {
                    end_event(Some(*revision), to);
                }
                !last
            }
        }
    }
}
