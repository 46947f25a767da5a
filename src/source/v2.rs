//! [`V2Upstream`]: a cluster that keeps its keys in etcd's v2 store, etcd 2.3 to 3.5, as the hub's upstream.
//!
//! What v2 has is one listing of a directory as of an index, and waits that tell the first change at or after an index, out of
//! the newest 1,000 of the whole store. Indexes are the revisions. A watch (`watch`) owns a copy of its directory's keys (`copy`)
//! and is told by a task (`walk`), which asks one wait after the other. Not here: when to try again, see `driver`.
//!
//! Always holds:
//! - a position is the index of an event that was told, or that of a listing; never the header of a wait, which may lie beyond
//!   events that are still to be told;
//! - what v2 can no longer tell step by step is told as compacted, and never passed over;
//! - nothing is ever asked of the cluster's v3 store, which is another one.

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
    calls::ForwardService,
    copy::Copy,
    link::{Declined, MAX_ANSWER, Members, Reply},
    listing::Listed,
    place::Place,
    watch::V2Watch,
};
use super::{Dialler, Endpoint, Identity};
use crate::{
    hub::upstream::{Confirmed, Page, Upstream, UpstreamError, UpstreamWatch, WatchRequest},
    telemetry::names::{self, V2Listing},
    types::{Header, KeyRange, Revision},
};

/// How long the copy of a watch that broke is kept for the one that goes on with it. Drivers try every two seconds.
const KEPT: Duration = Duration::from_secs(60);
/// From how many bytes on a listing is read on a thread of its own.
const LARGE: usize = 256 << 10;
/// Most bytes of a listing that a client asks for outside every feed.
const MAX_READ: usize = 64 << 20;
/// From how many keys on a copy is made on a thread of its own.
const MANY: usize = 4096;

/// How to reach the cluster.
#[derive(Clone, Debug)]
pub struct V2Config {
    /// Client URLs of its members, tried in order.
    pub endpoints: Vec<Endpoint>,
    /// How they are reached.
    pub dialler: Dialler,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long an answer may take to begin, and to go on.
    pub request_timeout: Duration,
    /// A user of v2's own, where its authentication is on.
    pub identity: Option<Identity>,
    /// How long a wait stays open before it is asked again: what it missed is found then.
    pub hold: Duration,
    /// A prefix that the relay may read, for asking the current index.
    pub probe_prefix: Bytes,
}

impl V2Config {
    /// Long beside the way to a member, short beside the patience of who looks at a view.
    pub const HOLD: Duration = Duration::from_secs(20);
}

/// See the module.
#[derive(Debug)]
pub struct V2Upstream {
    members: Arc<Members>,
    probe: String,
    copies: Arc<Copies>,
}

/// Copies of directories that no watch owns now.
#[derive(Debug, Default)]
struct Copies(Mutex<Vec<(Instant, Copy)>>);

/// A listing that was read.
#[derive(Debug)]
struct Listing {
    member: usize,
    standing: Standing,
    listed: Vec<Listed>,
}

/// A wait that was asked for.
#[derive(Debug)]
enum Opened {
    Wait(Standing, Box<Reply>),
    /// The history does not reach back to the index.
    Cleared(Standing),
}

impl V2Upstream {
    /// An upstream that connects when it is first asked.
    #[must_use]
    pub fn new(config: V2Config) -> Arc<Self> {
        let place = Place::of(&KeyRange::prefix(config.probe_prefix.clone()));
        let place = place.or_else(|| Place::of(&KeyRange::prefix(Bytes::new())));
        let probe = place.map(|place| place.probe_target()).unwrap_or_default();
        Arc::new(Self { members: Members::new(config), probe, copies: Arc::default() })
    }

    /// Whether a feed can have this range: v2 knows directories and single keys.
    #[must_use]
    pub fn is_place(range: &KeyRange) -> bool {
        Place::of(range).is_some()
    }

    /// The answers to calls that feeds do not answer: reads, and the reason why there is nothing else.
    #[must_use]
    pub fn forward_service(self: &Arc<Self>) -> ForwardService {
        calls::service(self.clone())
    }

    /// The keys of a range as they are now, for a reader that no feed serves.
    async fn read(&self, range: &KeyRange) -> Result<Page, UpstreamError> {
        let place = Place::of(range).ok_or_else(no_place)?;
        let Listing { member, standing, listed } = list(&self.members, &place, range, V2Listing::Read).await?;
        let header = header(&self.members, member, &standing).await;
        Ok(Page { header, kvs: listed.into_iter().map(Listed::fields).collect(), more: false })
    }

    /// Whether v2's own authentication is on.
    async fn is_auth_on(&self) -> Result<bool, UpstreamError> {
        self.members.is_auth_on().await
    }
}

#[async_trait]
impl Upstream for V2Upstream {
    /// A listing is of one index and has all keys, so there is one page, whatever the limit.
    async fn page(&self, range: &KeyRange, _revision: Option<Revision>, _limit: usize) -> Result<Page, UpstreamError> {
        let place = Place::of(range).ok_or_else(no_place)?;
        let Listing { member, standing, listed } = list(&self.members, &place, range, V2Listing::Start).await?;
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
        Ok(Page { header, kvs, more: false })
    }

    async fn watch(&self, request: WatchRequest) -> Result<Box<dyn UpstreamWatch>, UpstreamError> {
        let start = request.start_revision;
        // Whoever wants to know what was replaced is no feed, and reads the past.
        let fits = |copy: &Copy| !request.prev_kv && copy.range == request.range && copy.can_begin_at(start);
        let Some(copy) = self.copies.take(fits) else {
            // Nobody knows the keys that the past had, so its events cannot be told.
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
        // A share of the time each, so that a member that is frozen leaves some for another.
        let patience = members.config().request_timeout / members.len() as u32;
        let mut last = None;
        for _ in 0..members.len() {
            let member = members.preferred();
            let asked = tokio::time::timeout(patience, standing(members, member, &self.probe)).await;
            match asked.unwrap_or_else(|_| Err(members.failed(member, UpstreamError::Timeout(patience)))) {
                Ok(standing) => {
                    let header = header(members, member, &standing).await;
                    // What the history does not have, a fill is told.
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

    /// Drops those that nobody has gone on with in time.
    fn forget_old(&self) {
        let old: Vec<_> = self.0.lock().extract_if(.., |(put, _)| put.elapsed() >= KEPT).collect();
        // Not under the lock: a copy may have a million keys.
        drop(old);
    }

    fn take(&self, wanted: impl Fn(&Copy) -> bool) -> Option<Copy> {
        self.forget_old();
        let mut copies = self.0.lock();
        let at = copies.iter().rposition(|(_, copy)| wanted(copy))?;
        Some(copies.swap_remove(at).1)
    }
}

/// A copy that goes back to the others when its watch ends, for the one that goes on.
#[derive(Debug)]
struct Owned {
    /// There until it is dropped.
    copy: Option<Copy>,
    copies: Arc<Copies>,
}

impl Deref for Owned {
    type Target = Copy;

    fn deref(&self) -> &Copy {
        self.copy.as_ref().expect("it is taken out where it is dropped alone")
    }
}

impl DerefMut for Owned {
    fn deref_mut(&mut self) -> &mut Copy {
        self.copy.as_mut().expect("it is taken out where it is dropped alone")
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(copy) = self.copy.take() {
            self.copies.put(copy);
        }
    }
}

/// Reads a directory or a key as it is now, agreed by the cluster. That there is none is a state like any other.
async fn list(members: &Members, place: &Place, range: &KeyRange, why: V2Listing) -> Result<Listing, UpstreamError> {
    let most = if why == V2Listing::Read { MAX_READ } else { MAX_ANSWER };
    let member = members.preferred();
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

/// Computes something, on a thread of its own where it is `large`: it would hold up all else that this thread has to do.
async fn aside<T: Send + 'static>(
    large: bool,
    compute: impl FnOnce() -> T + Send + 'static,
) -> Result<T, UpstreamError> {
    if !large {
        return Ok(compute());
    }
    let computed = tokio::task::spawn_blocking(compute).await;
    computed.map_err(|error| UpstreamError::Unavailable(format!("the reading of a listing failed: {error}")))
}

/// Asks for the first change after a position.
async fn open(members: &Members, place: &Place, after: Revision) -> Result<Opened, UpstreamError> {
    let member = members.preferred();
    match members.get(member, &place.target(&format!("wait=true&waitIndex={}", after.next()))).await {
        Ok((standing, reply)) => Ok(Opened::Wait(standing, Box::new(reply))),
        Err(Declined::Refused(refusal, standing)) if refusal.error_code == CLEARED => Ok(Opened::Cleared(standing)),
        Err(declined) => Err(failure(members, member, declined)),
    }
}

/// Where the cluster stands, by a read that is agreed by it.
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

/// Why a range cannot be read or watched.
const NO_PLACE: &str = "etcd's v2 store has directories and keys; only the keys of one directory (/a/ to /a0) or one key can be \
                        read and watched";

#[cfg(test)]
mod tests;
