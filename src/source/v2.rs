//! [`V2Upstream`]: a cluster that keeps its keys in etcd's v2 store, etcd 2.3 to 3.5, as the hub's upstream.
//!
//! v2 offers a listing of a directory at an index, and waits, each of which returns the first change at or after an
//! index, among the newest 1,000 of the whole store. The relay uses indexes as revisions. A watch (`watch`) owns a copy
//! of its directory's keys (`copy`) and gets its changes from a task (`walk`), which makes one wait after the other.
//! Not here: when to retry, see `driver`.
//!
//! Always holds:
//! - a position is the index of an event that was reported, or that of a listing; it is never the index in the header
//!   of a wait, which may lie beyond events that are still to come;
//! - what v2 can no longer report step by step is reported as compacted, and never skipped;
//! - nothing is ever read from the cluster's v3 store, which is a different one.

mod answer;
mod calls;
mod copy;
mod link;
mod listing;
mod place;
mod presence;
mod walk;
mod watch;

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use metrics::counter;
use parking_lot::Mutex;
use tokio::time::Instant;

use self::{
    answer::{CLEARED, NOT_A_DIRECTORY, NOT_FOUND, Standing},
    copy::Copy,
    link::{Declined, MAX_ANSWER, Members, Reply},
    listing::Listed,
    place::Place,
    watch::V2Watch,
};
use super::{Dialler, Endpoint, Identity};
use crate::{
    hub::upstream::{Confirmed, Page, Upstream, UpstreamError, UpstreamWatch, WatchRequest},
    rpc::GrpcService,
    telemetry::names::{self, V2Listing},
    types::{Header, KeyRange, Revision},
};

/// How long the copy of a broken watch is kept for the watch that continues it. Drivers try every two seconds.
const KEPT: Duration = Duration::from_secs(60);
/// A listing of more bytes than this is parsed on its own thread.
const LARGE: usize = 256 << 10;
/// The most bytes of a listing that a client reads outside every feed.
const MAX_READ: usize = 64 << 20;
/// A copy of more keys than this is made on its own thread.
const MANY: usize = 4096;

/// How to reach the cluster.
#[derive(Clone, Debug)]
pub struct V2Config {
    /// Client URLs of its members.
    pub endpoints: Vec<Endpoint>,
    /// The timeout of a connection attempt.
    pub dialler: Dialler,
    /// The timeout of connecting.
    pub connect_timeout: Duration,
    /// How long an answer may take to begin, and to continue.
    pub request_timeout: Duration,
    /// A user of the v2 API, if its authentication is on.
    pub identity: Option<Identity>,
    /// How long a wait stays open before it is repeated; the repetition finds what it missed.
    pub hold: Duration,
    /// A prefix that the relay may read, for requests for the current index.
    pub probe_prefix: Bytes,
}

impl V2Config {
    /// Long compared with a round trip to a member, and short compared with the patience of somebody who looks at a
    /// view.
    pub const HOLD: Duration = Duration::from_secs(20);
}

/// A v2 cluster as upstream; see the module.
#[derive(Debug)]
pub struct V2Upstream {
    members: Arc<Members>,
    probe: String,
    copies: Arc<Copies>,
}

/// Copies of directories that no watch owns at the moment.
#[derive(Debug, Default)]
struct Copies(Mutex<Vec<(Instant, Copy)>>);

/// A listing that was read.
#[derive(Debug)]
struct Listing {
    member: usize,
    standing: Standing,
    listed: Vec<Listed>,
}

/// The result of opening a wait.
#[derive(Debug)]
enum Opened {
    Wait(Standing, Box<Reply>),
    /// The history does not reach back to the index.
    Cleared(Standing),
}

impl V2Upstream {
    /// An upstream that connects when it is first used.
    #[must_use]
    pub fn new(config: V2Config) -> Arc<Self> {
        let place = Place::of(&KeyRange::prefix(config.probe_prefix.clone()));
        let place = place.or_else(|| Place::of(&KeyRange::prefix(Bytes::new())));
        let probe = place.map(|place| place.probe_target()).unwrap_or_default();
        Arc::new(Self { members: Members::new(config), probe, copies: Arc::default() })
    }

    /// Whether a feed can have this range: v2 has only directories and single keys.
    #[must_use]
    pub fn is_place(range: &KeyRange) -> bool {
        Place::of(range).is_some()
    }

    /// Answers the calls that feeds do not answer: reads, and for everything else the reason why there is nothing.
    #[must_use]
    pub fn forward_service(self: &Arc<Self>) -> GrpcService {
        calls::service(self.clone(), calls::ROOM)
    }

    /// The current keys of a range, for a reader that no feed serves.
    async fn read(&self, range: &KeyRange) -> Result<Page, UpstreamError> {
        let place = Place::of(range).ok_or_else(no_place)?;
        let asked = self.members.preferred();
        let Listing { member, standing, listed } = list(&self.members, asked, &place, range, V2Listing::Read).await?;
        let header = header(&self.members, member, &standing).await;
        Ok(Page { header, kvs: listed.into_iter().map(Listed::fields).collect(), more: false, count: None })
    }

    /// Whether authentication is on in the v2 API.
    async fn is_auth_on(&self) -> Result<bool, UpstreamError> {
        self.members.is_auth_on().await
    }
}

#[async_trait]
impl Upstream for V2Upstream {
    /// A listing shows one index and has all keys, so there is a single page, whatever the limit.
    async fn page(&self, range: &KeyRange, _revision: Option<Revision>, _limit: usize) -> Result<Page, UpstreamError> {
        let place = Place::of(range).ok_or_else(no_place)?;
        let asked = self.members.preferred();
        let Listing { member, standing, listed } = list(&self.members, asked, &place, range, V2Listing::Start).await?;
        let header = header(&self.members, member, &standing).await;
        let before = self.copies.take(|copy| copy.range == *range);
        let (count, range) = (listed.len(), range.clone());
        let (copy, kvs) = aside(count >= MANY, move || {
            let copy = Copy::new(range, place, standing.cluster_id, standing.index, &listed, before);
            let kvs = listed.into_iter().map(|listed| copy.fields(listed)).collect();
            (copy, kvs)
        })
        .await?;
        self.copies.put(copy);
        Ok(Page { header, kvs, more: false, count: None })
    }

    async fn watch(&self, request: WatchRequest) -> Result<Box<dyn UpstreamWatch>, UpstreamError> {
        let start = request.start_revision;
        // A request with `prev_kv` does not come from a feed, and reads the past.
        let fits = |copy: &Copy| !request.prev_kv && copy.range == request.range && copy.can_begin_at(start);
        let Some(copy) = self.copies.take(fits) else {
            // The keys that existed in the past are not known, so its events cannot be reported.
            let created = self.confirm(None).await?.header;
            return Ok(Box::new(V2Watch::gone(created)));
        };
        let copy = Owned { copy: Some(copy), copies: self.copies.clone() };
        let mut opened = open(&self.members, &copy.place, copy.walked).await?;
        if matches!(opened, Opened::Cleared(_))
            && let Some(settled) = copy.agreed.settled(copy.walked)
        {
            opened = open(&self.members, &copy.place, settled).await?;
        }
        match opened {
            Opened::Wait(standing, reply) => {
                let created = header(&self.members, reply.member, &standing).await;
                Ok(Box::new(V2Watch::new(self.members.clone(), copy, standing, *reply, created)))
            }
            Opened::Cleared(standing) => {
                let created = header(&self.members, self.members.preferred(), &standing).await;
                Ok(Box::new(V2Watch::gone(created)))
            }
        }
    }

    fn has_past(&self) -> bool {
        false
    }

    fn can_follow(&self, range: &KeyRange) -> bool {
        Self::is_place(range)
    }

    async fn confirm(&self, _oldest: Option<Revision>) -> Result<Confirmed, UpstreamError> {
        let members = &self.members;
        // A share of the time for each, so that a frozen member leaves some for another.
        let patience = members.config().request_timeout / members.len() as u32;
        let mut last = None;
        for _ in 0..members.len() {
            let member = members.preferred();
            let asked = tokio::time::timeout(patience, standing(members, member, &self.probe)).await;
            match asked.unwrap_or_else(|_| Err(members.failed(member, UpstreamError::Timeout(patience)))) {
                Ok(standing) => {
                    let header = header(members, member, &standing).await;
                    // A fill finds out by itself what the history no longer has.
                    return Ok(Confirmed { header, compacted: false });
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| UpstreamError::Unavailable("no endpoint is configured".into())))
    }
}

impl Copies {
    fn put(&self, copy: Copy) {
        self.0.lock().push((Instant::now(), copy));
    }

    /// Drops copies that no watch has continued in time.
    fn forget_old(&self) {
        let old: Vec<_> = self.0.lock().extract_if(.., |(put, _)| put.elapsed() >= KEPT).collect();
        // Not under the lock, since a copy may have a million keys.
        drop(old);
    }

    fn take(&self, wanted: impl Fn(&Copy) -> bool) -> Option<Copy> {
        self.forget_old();
        let mut copies = self.0.lock();
        let at = copies.iter().rposition(|(_, copy)| wanted(copy))?;
        Some(copies.swap_remove(at).1)
    }
}

/// A copy that goes back to the others when its watch ends, for the watch that continues it.
#[derive(Debug)]
struct Owned {
    /// Present until this is dropped.
    copy: Option<Copy>,
    copies: Arc<Copies>,
}

impl Deref for Owned {
    type Target = Copy;

    fn deref(&self) -> &Copy {
        self.copy.as_ref().expect("it is taken only by drop")
    }
}

impl DerefMut for Owned {
    fn deref_mut(&mut self) -> &mut Copy {
        self.copy.as_mut().expect("it is taken only by drop")
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(copy) = self.copy.take() {
            self.copies.put(copy);
        }
    }
}

/// Reads the current content of a directory or a key from a member, with the cluster's agreement. If it does not exist,
/// the listing is empty.
async fn list(
    members: &Members,
    member: usize,
    place: &Place,
    range: &KeyRange,
    why: V2Listing,
) -> Result<Listing, UpstreamError> {
    let most = if why == V2Listing::Read { MAX_READ } else { MAX_ANSWER };
    counter!(names::V2_LISTINGS, V2Listing::LABEL => why.as_str()).increment(1);
    let (standing, reply) = match members.get(member, &place.target("quorum=true")).await {
        Ok(found) => found,
        Err(Declined::Refused(refusal, standing)) if matches!(refusal.error_code, NOT_FOUND | NOT_A_DIRECTORY) => {
            return Ok(Listing { member, standing, listed: Vec::new() });
        }
        Err(declined) => return Err(failure(members, member, declined)),
    };
    let text = reply.listing(members, most).await?;
    let read = aside(text.len() >= LARGE, move || listing::read(&text)).await?;
    let mut listed = read.map_err(|error| members.failed(member, UpstreamError::Protocol(error.to_string())))?;
    listed.retain(|listed| range.contains(&listed.key));
    Ok(Listing { member, standing, listed })
}

/// Computes something, on its own thread if it is `large`, since it would hold up everything else on this thread.
async fn aside<T: Send + 'static>(
    large: bool,
    compute: impl FnOnce() -> T + Send + 'static,
) -> Result<T, UpstreamError> {
    if !large {
        return Ok(compute());
    }
    let computed = tokio::task::spawn_blocking(compute).await;
    computed.map_err(|error| UpstreamError::Unavailable(format!("cannot parse a listing: {error}")))
}

/// Opens a wait for the first change after a position.
async fn open(members: &Members, place: &Place, after: Revision) -> Result<Opened, UpstreamError> {
    let member = members.preferred();
    match members.get(member, &place.target(&format!("wait=true&waitIndex={}", after.next()))).await {
        Ok((standing, reply)) => Ok(Opened::Wait(standing, Box::new(reply))),
        Err(Declined::Refused(refusal, standing)) if refusal.error_code == CLEARED => Ok(Opened::Cleared(standing)),
        Err(declined) => Err(failure(members, member, declined)),
    }
}

/// The cluster's current index, by a read that the cluster agreed on.
async fn standing(members: &Members, member: usize, target: &str) -> Result<Standing, UpstreamError> {
    match members.get(member, target).await {
        Ok((standing, reply)) => {
            reply.listing(members, MAX_ANSWER).await?;
            Ok(standing)
        }
        Err(Declined::Refused(refusal, standing)) if matches!(refusal.error_code, NOT_FOUND | NOT_A_DIRECTORY) => {
            Ok(standing)
        }
        Err(declined) => Err(failure(members, member, declined)),
    }
}

fn failure(members: &Members, member: usize, declined: Declined) -> UpstreamError {
    match declined {
        Declined::Failed(error) => error,
        Declined::Refused(refusal, _) => {
            members.failed(member, UpstreamError::Unavailable(format!("etcd v2 answers {refusal}")))
        }
    }
}

async fn header(members: &Members, member: usize, standing: &Standing) -> Header {
    Header {
        cluster_id: standing.cluster_id,
        member_id: members.id(member).await,
        revision: standing.index,
        raft_term: members.term(standing.raft_term),
    }
}

fn no_place() -> UpstreamError {
    UpstreamError::Protocol(NO_PLACE.to_owned())
}

/// The error for a range that cannot be read or watched.
const NO_PLACE: &str = "etcd's v2 store has only directories and keys; the keys of one directory (/a/ to /a0) or one key can be read and watched";

#[cfg(test)]
mod tests;
