//! [`Keys`]: `/v2/keys`: reads, writes and waits.
//!
//! Paths and heads of HTTP are in `port`. Always holds: the feed has the index of each answer, so a read from this
//! relay after an answer shows at least that state.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::Method;

use super::{
    answer::{Action, Event, Refusal},
    fields::Fields,
    listings::Listings,
    made::{Made, Told},
    operation::{self, Mark, Operation, Plan, names_from},
    outcome::{self, Outcome},
    past::Past,
    path::{ancestors, mark},
    store::V3,
    time::Expiry,
    tree::{self, Found, find, is_marked},
    waits::{Entered, Waiter, Waits, Wanted, cleared},
};
use crate::{
    hub::{Feed, Hub, Snapshot},
    pb::etcdserverpb::{TxnResponse, response_op::Response as Op},
    types::Revision,
};

/// How long a read waits for its feed.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most attempts of a write whose surroundings keep changing.
const ATTEMPTS: usize = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) hub: Arc<Hub>,
    pub(super) feed: Arc<Feed>,
    pub(super) waits: Arc<Waits>,
    pub(super) made: Arc<Made>,
    pub(super) past: Past,
    pub(super) listings: Listings,
}

/// A successful answer.
#[derive(Debug)]
pub(super) enum Said {
    Body { status: u16, index: Revision, body: Bytes },
    Waits(Waiter),
}

impl Keys {
    /// Answers a request for a clean path.
    pub(super) async fn answer(
        &self,
        v3: &V3,
        method: &Method,
        path: &Bytes,
        fields: &Fields,
    ) -> Result<Said, Refusal> {
        if self.feed.wait_serving(PATIENCE).await.is_err() {
            let why = self.feed.last_error().unwrap_or_default();
            return Err(Refusal::unavailable(format!("etcd-relay: the keys have not been read yet: {why}")));
        }
        match *method {
            Method::GET if fields.wait && !fields.quorum => self.wait(path, fields).await,
            Method::GET if fields.quorum => {
                self.confirm().await?;
                self.read(v3, path, fields).await
            }
            Method::GET | Method::HEAD => self.read(v3, path, fields).await,
            // Boxed, because otherwise the future of each wait would be as large.
            Method::POST => Box::pin(self.post(v3, path, fields)).await,
            Method::PUT => Box::pin(self.write(v3, path, Operation::of_put(fields), fields)).await,
            _ => Box::pin(self.write(v3, path, Operation::of_delete(fields), fields)).await,
        }
    }

    async fn read(&self, v3: &V3, path: &Bytes, fields: &Fields) -> Result<Said, Refusal> {
        let (index, body) = self.listings.read(v3.asker, path, fields.recursive).await?;
        Ok(Said::Body { status: 200, index, body })
    }

    async fn wait(&self, path: &Bytes, fields: &Fields) -> Result<Said, Refusal> {
        // A wait after an answer of this relay must not report the same change again.
        self.waits.reach(self.feed.revision()).await;
        let wanted =
            Wanted { path: path.clone(), recursive: fields.recursive, stream: fields.stream, index: fields.wait_index };
        let mut last = None;
        // A second time, in case the log has dropped what was read for it.
        for _ in 0..2 {
            match self.waits.enter(&wanted).await {
                Entered::Waiter(waiter) => return Ok(Said::Waits(waiter)),
                Entered::TooOld(start, at) => {
                    Box::pin(self.past.reach(fields.wait_index, at)).await?;
                    last = Some(cleared(start, fields.wait_index, at));
                }
            }
        }
        Err(last.unwrap_or_else(|| Refusal::unavailable("etcd-relay: the history keeps changing; retry")))
    }

    /// Waits until the feed has the cluster's current revision.
    async fn confirm(&self) -> Result<Revision, Refusal> {
        let mark = self.feed.mark();
        let confirmed =
            self.hub.confirmer().confirm(None).await.map_err(|error| Refusal::unavailable(error.to_string()))?;
        let reached = self.feed.reach(mark, &confirmed.header, PATIENCE).await;
        reached.map_err(|error| Refusal::unavailable(format!("etcd-relay: {error}")))?;
        Ok(confirmed.header.revision)
    }

    /// Waits for the feed, so that the next read from this relay shows the write. The write is done even if the feed
    /// does not get there in time.
    async fn reach(&self, revision: Revision) {
        if let Err(error) = self.feed.wait_for(revision, PATIENCE).await {
            tracing::debug!(revision = revision.get(), %error, "A write of v2 was answered before the feed had it");
        }
    }

    async fn write(&self, v3: &V3, path: &Bytes, operation: Operation, fields: &Fields) -> Result<Said, Refusal> {
        if &path[..] == b"/" {
            let at = self.feed.revision();
            return Err(match operation {
                Operation::CompareAndDelete(_) => Refusal::about(102, "", at),
                _ => Refusal::about(107, "/", at),
            });
        }
        operation::check_depth(path)?;
        self.find_unseen(v3, path)?;
        let mut lease = Lease::grant(v3, &operation, fields).await?;
        let result = self.attempt(v3, path, operation, fields, &mut lease).await;
        if result.is_err() {
            lease.revoke(v3).await;
        }
        let event = result?;
        let index = event.node.modified;
        let is_new = event.prev.is_none() && matches!(event.action, Action::Set | Action::Create);
        let body = if fields.no_value_on_success && !event.action.removes() { event.bare() } else { event.body() };
        let body = self.listings.count(v3.asker.client, body);
        Ok(Said::Body { status: if is_new { 201 } else { 200 }, index, body })
    }

    /// Checks for a file in the path, where the transaction may not look with the writer's permissions.
    fn find_unseen(&self, v3: &V3, path: &[u8]) -> Result<(), Refusal> {
        match ancestors(path).take(v3.unseen).last() {
            Some(above) => match find(&self.feed.snapshot(), above) {
                Ok(Found::File(_)) => Err(Refusal::about(104, above, self.feed.revision())),
                Err(refusal) if refusal.code == 104 => Err(refusal),
                _ => Ok(()),
            },
            None => Ok(()),
        }
    }

    async fn attempt(
        &self,
        v3: &V3,
        path: &Bytes,
        mut operation: Operation,
        fields: &Fields,
        lease: &mut Lease,
    ) -> Result<Event, Refusal> {
        let mut unmarked = unmarked(&self.feed.snapshot(), path, v3.unseen);
        for _ in 0..ATTEMPTS {
            let snapshot = self.feed.snapshot();
            let refresh = fields.refresh && operation.puts();
            let plan = Plan {
                path,
                unseen: v3.unseen,
                operation: &operation,
                value: fields.value.clone(),
                refresh: refresh && !matches!(operation, Operation::Create { .. }),
                lease: lease.id(),
                unmarked,
            };
            let under_way = self.made.begin(path.clone());
            let response = v3.txn(plan.transaction()?).await?;
            let at = revision_of(&response);
            let before = match find(&snapshot, path) {
                Ok(Found::Directory) => Some(tree::directory(&snapshot, path)),
                _ => None,
            };
            match outcome::read(&plan, response, before) {
                Outcome::Done(event) => {
                    let told = if plan.refresh { Told::Nothing } else { Told::Event(Arc::new((*event).clone())) };
                    under_way.done(at, told);
                    drop(under_way);
                    self.reach(at).await;
                    return Ok(*event);
                }
                Outcome::Refused(refusal) => {
                    drop(under_way);
                    self.reach(at).await;
                    return Err(refusal);
                }
                Outcome::Instead(other) => {
                    if other.is_of_directory() != operation.is_of_directory() {
                        let fits = Lease::grant(v3, &other, fields).await?;
                        std::mem::replace(lease, fits).revoke(v3).await;
                    }
                    operation = other;
                    unmarked = Vec::new();
                }
                Outcome::Again(now) => unmarked = now,
            }
        }
        Err(Refusal::unavailable("etcd-relay: the directory keeps changing; retry"))
    }

    /// Creates a key in a directory, named by the next index.
    async fn post(&self, v3: &V3, directory: &Bytes, fields: &Fields) -> Result<Said, Refusal> {
        let operation = Operation::Create { dir: fields.dir };
        operation::check_depth(directory)?;
        self.find_unseen(v3, directory)?;
        let lease = Lease::grant(v3, &operation, fields).await?;
        let result = self.attempt_in_order(v3, directory, &operation, fields, lease.id()).await;
        if result.is_err() {
            lease.revoke(v3).await;
        }
        let event = result?;
        let body = if fields.no_value_on_success { event.bare() } else { event.body() };
        let body = self.listings.count(v3.asker.client, body);
        Ok(Said::Body { status: 201, index: event.node.modified, body })
    }

    async fn attempt_in_order(
        &self,
        v3: &V3,
        directory: &Bytes,
        operation: &Operation,
        fields: &Fields,
        lease: i64,
    ) -> Result<Event, Refusal> {
        // Starts from a linearizable revision, so that no name is used twice, even if its key was deleted.
        let mut number = self.confirm().await?.next().get();
        let mut marks = None;
        let mut own_mark = None;
        for _ in 0..ATTEMPTS {
            let path = names_from(directory, number).start().clone();
            let snapshot = self.feed.snapshot();
            let unmarked = marks.take().unwrap_or_else(|| unmarked(&snapshot, &path, v3.unseen));
            let was = own_mark.take().or_else(|| {
                let kv = snapshot.map.get(&mark(directory))?;
                Some(Mark { at: kv.mod_revision.get(), tells_index: !kv.value().is_empty() })
            });
            drop(snapshot);
            let unseen = v3.unseen;
            let plan =
                Plan { path: &path, unseen, operation, value: fields.value.clone(), refresh: false, lease, unmarked };
            let under_way = self.made.begin(path.clone());
            let response = v3.txn(operation::in_order(&plan, directory, number, was.as_ref())?).await?;
            let at = revision_of(&response);
            let newest = newest_name(&response, directory);
            own_mark = mark_of(&response);
            match outcome::read(&plan, response, None) {
                Outcome::Done(event) => {
                    under_way.done(at, Told::Event(Arc::new((*event).clone())));
                    drop(under_way);
                    self.reach(at).await;
                    return Ok(*event);
                }
                Outcome::Refused(refusal) if refusal.code != 105 => {
                    drop(under_way);
                    self.reach(at).await;
                    return Err(refusal);
                }
                Outcome::Again(now) => marks = Some(now),
                _ => {}
            }
            number = newest.map_or(number, |newest| newest + 1).max(at.next().get());
        }
        Err(Refusal::unavailable("etcd-relay: the directory keeps changing; retry"))
    }
}

/// The lease of a write with a TTL.
struct Lease(Option<i64>);

impl Lease {
    async fn grant(v3: &V3, operation: &Operation, fields: &Fields) -> Result<Self, Refusal> {
        let Some(ttl) = fields.ttl.filter(|_| operation.puts()) else { return Ok(Self(None)) };
        let now = SystemTime::now();
        let expiry = match Expiry::after(now, ttl) {
            Some(expiry) => Some(expiry),
            // An overlong TTL means forever for a new key, and immediate expiry otherwise.
            None if operation.makes() => None,
            None => Expiry::after(now, 0),
        };
        match expiry {
            Some(expiry) => Ok(Self(Some(v3.grant(ttl, expiry, operation.is_of_directory()).await?))),
            None => Ok(Self(None)),
        }
    }

    fn id(&self) -> i64 {
        self.0.unwrap_or_default()
    }

    async fn revoke(self, v3: &V3) {
        if let Some(id) = self.0 {
            v3.revoke(id).await;
        }
    }
}

/// The directories in the path that have no mark.
fn unmarked(snapshot: &Snapshot, path: &[u8], unseen: usize) -> Vec<Bytes> {
    ancestors(path).skip(unseen).filter(|above| !is_marked(snapshot, above)).map(Bytes::copy_from_slice).collect()
}

fn revision_of(response: &TxnResponse) -> Revision {
    Revision::new(response.header.as_ref().map_or(0, |header| header.revision))
}

/// The directory's mark after a failed POST.
fn mark_of(response: &TxnResponse) -> Option<Mark> {
    let [.., mark, _] = &response.responses[..] else { return None };
    let Some(Op::ResponseRange(range)) = mark.response.as_ref().filter(|_| !response.succeeded) else { return None };
    range.kvs.first().map(|kv| Mark { at: kv.mod_revision, tells_index: !kv.value.is_empty() })
}

/// The highest in-order name that made a POST fail.
fn newest_name(response: &TxnResponse, directory: &[u8]) -> Option<i64> {
    let Some(Op::ResponseRange(range)) = response.responses.last()?.response.as_ref().filter(|_| !response.succeeded)
    else {
        return None;
    };
    let name = range.kvs.first()?.key.strip_prefix(&mark(directory)[..])?;
    let digits = name.get(..20)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
