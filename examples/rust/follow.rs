//! Keeps a copy of a few keys of etcd: lists them once, and then watches what changes.
//!
//! The copy is always a state that etcd had at its revision. It only moves forward, by every change, in order. If the
//! changes are no longer available (because etcd has compacted them, or was restored from a backup), the keys are
//! listed again and compared with the copy, so no change is missed.

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use anyhow::{Context as _, bail, ensure};
use etcd_client::{EventType, GetOptions, ResponseHeader, WatchOptions, WatchResponse};
use tokio::time::{sleep, timeout};

use crate::etcd::{Backoff, Etcd, in_words};

/// A list, or the answer to the creation of a watch, that takes longer has failed.
const DEADLINE: Duration = Duration::from_secs(5);

/// What happened to one key.
pub(crate) struct Change {
    pub(crate) key: Vec<u8>,
    /// `None` if the key is new.
    pub(crate) old: Option<Vec<u8>>,
    /// `None` if the key is gone.
    pub(crate) new: Option<Vec<u8>>,
    /// If a list showed that the key is gone, this is the revision of the list.
    pub(crate) revision: i64,
}

/// Receives what happens, one call after the other.
pub(crate) trait Handler {
    /// After each list: at the start, and when changes were lost. It gets the changes since the previous copy.
    fn listed(&mut self, revision: i64, count: usize, changes: Vec<Change>);
    /// With each response of the watch.
    fn changed(&mut self, changes: Vec<Change>);
    /// Changes may be late from now on. The copy stays as it is.
    fn cut_off(&mut self, reason: &str);
    /// The interruption is over, and nothing was missed.
    fn resumed(&mut self, revision: i64);
}

/// Which keys to follow: one, or all that begin with it.
pub(crate) struct Keys {
    pub(crate) key: String,
    pub(crate) is_prefix: bool,
}

/// Follows these keys, forever. Fails only if the endpoints cannot be used at all.
pub(crate) async fn follow(etcd: Etcd, handler: impl Handler, keys: Keys) -> anyhow::Result<Infallible> {
    let mut follower = Follower {
        etcd,
        handler,
        keys,
        copy: BTreeMap::new(),
        revision: 0,
        cluster_id: 0,
        is_listed: false,
        is_cut_off: false,
    };
    let mut backoff = Backoff::new(Duration::from_secs(3));
    loop {
        let Err(reason) = follower.list_and_watch(&mut backoff).await;
        if !follower.is_cut_off {
            follower.is_cut_off = true;
            follower.handler.cut_off(&in_words(&reason));
        }
        follower.etcd.move_on().await?;
        sleep(backoff.pause()).await;
    }
}

struct Follower<H> {
    etcd: Etcd,
    handler: H,
    keys: Keys,
    copy: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The copy has every change up to this revision, of this cluster.
    revision: i64,
    cluster_id: u64,
    /// Whether a watch can go on from there. If not, the keys are listed again.
    is_listed: bool,
    is_cut_off: bool,
}

impl<H: Handler> Follower<H> {
    /// Fails when the connection does, or the watch ends.
    async fn list_and_watch(&mut self, backoff: &mut Backoff) -> anyhow::Result<Infallible> {
        if !self.is_listed {
            timeout(DEADLINE, self.list()).await.context("no list in time")??;
        }
        let options = WatchOptions::new().with_start_revision(self.revision + 1).with_progress_notify();
        let options = if self.keys.is_prefix { options.with_prefix() } else { options };
        let mut watches = self.etcd.client.watch_client().max_decoding_message_size(usize::MAX);
        let opening = async {
            let mut watch = watches.watch(self.keys.key.clone(), Some(options)).await?;
            let created = watch.message().await?.context("the watch ended")?;
            anyhow::Ok((watch, created))
        };
        let (mut watch, created) = timeout(DEADLINE, opening).await.context("no watch in time")??;
        let header = self.check(&created)?;
        // A cluster that was restored from a backup is another one, or has gone back to a lower revision: a watch from
        // a revision that does not exist yet would wait silently.
        if header.revision() < self.revision {
            self.is_listed = false;
            bail!("etcd is at revision {}, and was at {}: it was restored", header.revision(), self.revision);
        }
        if self.is_cut_off {
            self.is_cut_off = false;
            self.handler.resumed(self.revision);
        }
        backoff.reset();
        loop {
            let response = watch.message().await?.context("the watch ended")?;
            let reached = self.check(&response)?.revision();
            self.apply(&response, reached);
        }
    }

    /// Reads the keys, and compares them with the copy.
    async fn list(&mut self) -> anyhow::Result<()> {
        let options = self.keys.is_prefix.then(|| GetOptions::new().with_prefix());
        let mut reads = self.etcd.client.kv_client().max_decoding_message_size(usize::MAX);
        let mut response = reads.get(self.keys.key.clone(), options).await?;
        let header = response.take_header().context("an answer without a header")?;
        let mut before = std::mem::take(&mut self.copy);
        let mut changes = Vec::new();
        for kv in response.kvs() {
            let (key, value, revision) = (kv.key().to_vec(), kv.value().to_vec(), kv.mod_revision());
            self.copy.insert(key.clone(), value.clone());
            changes.push(Change { old: before.remove(&key), key, new: Some(value), revision });
        }
        let revision = header.revision();
        changes.extend(before.into_iter().map(|(key, old)| Change { key, old: Some(old), new: None, revision }));
        changes.retain(|change| change.old != change.new);
        changes.sort_by(|one, other| one.key.cmp(&other.key));
        (self.revision, self.cluster_id) = (revision, header.cluster_id());
        (self.is_listed, self.is_cut_off) = (true, false);
        self.handler.listed(revision, self.copy.len(), changes);
        Ok(())
    }

    /// Fails if the watch has ended, or belongs to another cluster than the copy.
    fn check<'a>(&mut self, response: &'a WatchResponse) -> anyhow::Result<&'a ResponseHeader> {
        if response.canceled() {
            // A list is correct, whatever the reason was.
            self.is_listed = false;
            let compacted = response.compact_revision();
            ensure!(compacted == 0, "etcd has compacted everything before revision {compacted}");
            bail!("the watch was cancelled: {}", response.cancel_reason());
        }
        let header = response.header().context("a response without a header")?;
        if header.cluster_id() != self.cluster_id {
            self.is_listed = false;
            bail!("another cluster answers: etcd was restored");
        }
        Ok(header)
    }

    /// Applies a response of the watch. A response without events is progress: nothing else happened up to its
    /// revision.
    fn apply(&mut self, response: &WatchResponse, reached: i64) {
        let mut changes = Vec::new();
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let key = kv.key().to_vec();
            let new = (event.event_type() == EventType::Put).then(|| kv.value().to_vec());
            let old = match &new {
                Some(value) => self.copy.insert(key.clone(), value.clone()),
                None => self.copy.remove(&key),
            };
            self.revision = kv.mod_revision();
            changes.push(Change { key, old, new, revision: self.revision });
        }
        if changes.is_empty() {
            self.revision = self.revision.max(reached);
        } else {
            self.handler.changed(changes);
        }
    }
}
