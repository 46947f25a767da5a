//! The store as an [`Upstream`]: pages, watches and confirmations, as they come from an etcd cluster.
//!
//! Not here: requests of clients. Called by the feed driver and by everything else that reads from upstream.
//! Always holds: a watch is a position in the store's log; nothing is queued for it, and it looks at a bounded number
//! of revisions each time it holds the lock. Progress is the revision up to which the log was read.

use std::time::Instant;

use async_trait::async_trait;
use tokio::sync::watch;

use super::{Store, mvcc::Mvcc};
use crate::{
    hub::upstream::{Changes, Confirmed, Page, Upstream, UpstreamError, UpstreamWatch, WatchMessage, WatchRequest},
    types::{EventFields, EventKind, Header, KeyRange, KeyValueFields, Revision},
};

/// The most revisions that a watch looks at while it holds the lock, and the most in one message: as many as in etcd's
/// own batches.
const BATCH_REVISIONS: usize = 1000;
/// A message ends with the revision that brings it to this many bytes of keys and values.
const BATCH_BYTES: usize = 4 << 20;

#[async_trait]
impl Upstream for Store {
    async fn page(&self, range: &KeyRange, revision: Option<Revision>, limit: usize) -> Result<Page, UpstreamError> {
        let state = self.shared.state.lock();
        let header = self.header_at(state.mvcc.current());
        let at = revision.unwrap_or(header.revision);
        if at < state.mvcc.compacted() {
            return Err(UpstreamError::Compacted);
        }
        if at > header.revision {
            return Err(UpstreamError::Future);
        }
        let mut found = state.mvcc.scan(range, at);
        let kvs = found.by_ref().take(limit).cloned().collect();
        Ok(Page { header, kvs, more: found.next().is_some(), count: None })
    }

    async fn watch(&self, request: WatchRequest) -> Result<Box<dyn UpstreamWatch>, UpstreamError> {
        // Subscribed before the header is read, so that a revision between the two wakes the watch and is not missed.
        let told = self.shared.revision.subscribe();
        let created = self.header();
        let position = match request.start_revision {
            Revision::ZERO => created.revision.next(),
            start => start,
        };
        let watch = StoreWatch {
            store: self.clone(),
            told,
            created,
            range: request.range,
            prev_kv: request.prev_kv,
            position,
            progress_asked: false,
            ended: false,
        };
        Ok(Box::new(watch))
    }

    async fn confirm(&self, oldest: Option<Revision>) -> Result<Confirmed, UpstreamError> {
        let state = self.shared.state.lock();
        let header = self.header_at(state.mvcc.current());
        Ok(Confirmed { header, compacted: oldest.is_some_and(|oldest| oldest < state.mvcc.compacted()) })
    }
}

/// A watch on the store.
struct StoreWatch {
    store: Store,
    told: watch::Receiver<Revision>,
    created: Header,
    range: KeyRange,
    prev_kv: bool,
    /// The next revision to look at.
    position: Revision,
    progress_asked: bool,
    ended: bool,
}

/// What the log has at a watch's position.
enum Look {
    Found(WatchMessage),
    /// Nothing in this batch, but there is more in the log.
    Nothing,
    /// The end of the log.
    End(Header),
}

#[async_trait]
impl UpstreamWatch for StoreWatch {
    async fn next(&mut self) -> Result<WatchMessage, UpstreamError> {
        if self.ended {
            return Err(ended());
        }
        loop {
            self.told.mark_unchanged();
            match self.look() {
                Look::Found(message) => return Ok(message),
                Look::Nothing => tokio::task::yield_now().await,
                // As in etcd, a watch that begins in the future has no progress before that.
                Look::End(header) if self.progress_asked && self.position <= header.revision.next() => {
                    self.progress_asked = false;
                    return Ok(WatchMessage::Progress(header));
                }
                // Cancel safe: a change since then is found at the next call.
                Look::End(_) => self.told.changed().await.map_err(|_| ended())?,
            }
        }
    }

    async fn request_progress(&mut self) -> Result<(), UpstreamError> {
        if self.ended {
            return Err(ended());
        }
        self.progress_asked = true;
        Ok(())
    }

    fn trusts_progress(&self) -> bool {
        true
    }

    fn created(&self) -> Header {
        self.created
    }
}

impl StoreWatch {
    fn look(&mut self) -> Look {
        let state = self.store.shared.state.lock();
        let mvcc = &state.mvcc;
        if self.position < mvcc.compacted() {
            self.ended = true;
            return Look::Found(WatchMessage::Compacted { compact_revision: mvcc.compacted() });
        }
        let header = self.store.header_at(mvcc.current());
        let received = Instant::now();
        let (mut revisions, mut bytes) = (Vec::new(), 0);
        let mut log = mvcc.log_from(self.position).peekable();
        for record in log.by_ref().take(BATCH_REVISIONS) {
            self.position = record.revision.next();
            let events: Vec<EventFields> =
                record.events.iter().filter(|event| self.range.contains(&event.kv.key)).cloned().collect();
            if events.is_empty() {
                continue;
            }
            bytes += events.iter().map(|event| event.kv.key.len() + event.kv.value.len()).sum::<usize>();
            let prev = if self.prev_kv {
                events.iter().map(|event| replaced(mvcc, event).cloned()).collect()
            } else {
                Vec::new()
            };
            revisions.push(Changes { revision: record.revision, events, prev, received });
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        let at_end = log.peek().is_none();
        if at_end {
            // A position in the future stays where it is.
            self.position = self.position.max(header.revision.next());
        }
        if !revisions.is_empty() {
            Look::Found(WatchMessage::Events { header, revisions })
        } else if at_end {
            Look::End(header)
        } else {
            Look::Nothing
        }
    }
}

/// What an event replaced, as etcd finds it: the key at the revision before, unless the event created it or that
/// revision is compacted.
fn replaced<'a>(mvcc: &'a Mvcc, event: &EventFields) -> Option<&'a KeyValueFields> {
    let creates = event.kind == EventKind::Put && event.kv.create_revision == event.kv.mod_revision;
    let before = event.kv.mod_revision.previous();
    if creates || before < mvcc.compacted() { None } else { mvcc.get_at(&event.kv.key, before) }
}

fn ended() -> UpstreamError {
    UpstreamError::Unavailable("this watch on the embedded store has ended".to_owned())
}
