//! How a feed gets its snapshot: in pages, all at one revision.
//!
//! Not here: when a snapshot is read, and what follows from it, see `driver`. Always holds: a snapshot that the cluster
//! has not agreed on begins a feed and never replaces one.

mod cuts;
mod scale;

use std::sync::Arc;

use metrics::counter;

use self::cuts::Cuts;
use super::Driving;
use crate::{
    hub::{
        FeedKind, FeedState, KeyMap, Reset, Snapshot,
        upstream::{Agreement, UpstreamError},
    },
    telemetry::names::{self, ResyncReason},
    types::{Cluster, Header, KeyValue, Revision},
};

impl Driving {
    /// Reads a snapshot, in as many attempts as it takes. Returns false if the feed ended meanwhile because nobody used
    /// it.
    pub(super) async fn load(&mut self, reset: Option<(Reset, ResyncReason)>) -> bool {
        let state = if reset.is_some() { FeedState::Resyncing } else { FeedState::Starting };
        let mut asked;
        let (map, header, newest) = loop {
            asked = self.driver.header.newest();
            match self.read_snapshot(reset.is_none()).await {
                Ok(loaded) => break loaded,
                // Nobody used it any more, or there was no room for it.
                Err(_) if self.feed.is_closed() => return false,
                // The pages' revision was compacted while they were read.
                Err(UpstreamError::Compacted) => {
                    tokio::time::sleep(self.delays.next().unwrap_or(self.driver.config.max_delay)).await;
                }
                Err(error) => self.pause(state, &error).await,
            }
            if self.feed.close_if_idle(self.driver.config.idle) {
                return false;
            }
        };
        tracing::info!(range = %self.feed.range(), revision = header.revision.get(), keys = map.len(), "Feed has its snapshot");
        let another = self.cluster.id() != header.cluster_id;
        let fell = header.revision < self.feed.revision();
        self.cluster = match reset {
            Some((Reset::Replaced, _)) => self.driver.header.begin_again(&header),
            _ if fell => self.driver.header.begin_again(&header),
            _ => self.driver.header.observe_since(&asked, &header),
        };
        match reset {
            None => self.feed.install(self.cluster.clone(), map, header.revision),
            Some(reset) => {
                let (reset, reason) = match reset {
                    _ if another => (Reset::Replaced, ResyncReason::ClusterReplaced),
                    _ if fell => (Reset::Replaced, ResyncReason::RevisionFell),
                    // If it looked like another cluster, and went on meanwhile, what was delivered may not be its past.
                    reset => reset,
                };
                counter!(names::UPSTREAM_RESYNCS, ResyncReason::LABEL => reason.as_str()).increment(1);
                self.feed.reset(&self.cluster, map, header.revision, &reset);
            }
        }
        (self.fresh, self.newest, self.oldest) = (true, newest, Revision::ZERO);
        self.feed.loaded();
        !self.feed.is_closed()
    }

    /// All pages of the range, at one revision, and the key-value with the latest change. If no member knows what the
    /// cluster agrees on, a feed's first snapshot may be read from one member alone. The feed is then behind, as on a
    /// member that is behind, and goes on from there. For a feed that continues an earlier snapshot, it would look as
    /// if the cluster had gone back.
    async fn read_snapshot(&self, is_first: bool) -> Result<(KeyMap, Header, Option<Arc<KeyValue>>), UpstreamError> {
        let upstream = &self.driver.upstream;
        let agreement = upstream.agreement();
        let mut map = match self.feed.kind() {
            FeedKind::Prefix => KeyMap::default(),
            FeedKind::OnDemand => KeyMap::sharing(),
        };
        let mut newest: Option<Arc<KeyValue>> = None;
        let mut first: Option<Header> = None;
        let mut cuts = Cuts::new(self.feed.range().clone());
        while let Some(request) = cuts.next() {
            let room = self.feed.room_for_page().await;
            let revision = first.map(|first| first.revision);
            let alone = *agreement.borrow() > Agreement::Late;
            // At a given revision, all members have the same content.
            let page = if alone && (is_first || revision.is_some()) {
                upstream.page_of_member(&request.range, revision, request.limit).await
            } else {
                upstream.page(&request.range, revision, request.limit).await
            };
            let page = match page {
                Err(UpstreamError::TooLarge(_)) if cuts.ask_less(&request) => continue,
                page => page?,
            };
            let header = *first.get_or_insert(page.header);
            if page.header.cluster_id != header.cluster_id {
                return Err(UpstreamError::Protocol("the pages of a snapshot came from two clusters".into()));
            }
            let before = map.bytes();
            let turn = self.feed.turn_to_load().await;
            let latest = page.kvs.iter().max_by_key(|fields| fields.mod_revision);
            if let Some(latest) =
                latest.filter(|latest| newest.as_ref().is_none_or(|kv| kv.mod_revision < latest.mod_revision))
            {
                newest = Some(Arc::new(KeyValue::new(latest)));
            }
            match self.feed.kind() {
                FeedKind::Prefix => map.extend(&page.kvs),
                FeedKind::OnDemand => {
                    let twins = self.feed.twins();
                    for fields in &page.kvs {
                        let kv = KeyValue::new(fields);
                        map.insert(twins.share(header.cluster_id, &kv).unwrap_or_else(|| Arc::new(kv)));
                    }
                }
            }
            let cluster = Arc::new(Cluster::of(&header));
            let part = Snapshot { revision: header.revision, map: map.clone(), epoch: 0, cluster };
            if !self.feed.loads(part) {
                return Err(UpstreamError::Unavailable("the feed has ended".into()));
            }
            drop((turn, room));
            if !cuts.took(&request, &page, map.bytes().saturating_sub(before)) {
                return Err(UpstreamError::Protocol("an empty page that is not the last".into()));
            }
        }
        let header = first.ok_or_else(|| UpstreamError::Protocol("a range without a page".into()))?;
        Ok((map, header, newest))
    }
}
