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
    operation::{self, Operation, OwnMark, Plan, names_from},
    outcome::{self, Outcome},
    past::Past,
    path::{ancestors, kids, mark},
    store::V3,
    time::Expiry,
    tree::{self, Found, find, is_marked},
    waits::{Entered, Waiter, Waits, Wanted, cleared},
};
use crate::{
    front::gojson::string_len,
    hub::{Feed, Hub, KeyMap, Mark, Snapshot, WaitError},
    pb::{
        etcdserverpb::{TxnResponse, response_op::Response as Op},
        mvccpb,
    },
    types::{Header, KeyValue, KeyValueFields, Revision},
};

/// How long a read waits for its feed.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a read with `quorum` waits for its feed before it goes to etcd.
const CURRENT_PATIENCE: Duration = Duration::from_millis(500);
/// Most keys and bytes that such a read takes from etcd.
const FROM_ETCD: (usize, usize) = (10_000, 16 << 20);
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
            Method::GET if fields.quorum => Box::pin(self.read_current(v3, path, fields)).await,
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

    /// Reads the cluster's current state: from the feed once it has that, or from etcd.
    async fn read_current(&self, v3: &V3, path: &Bytes, fields: &Fields) -> Result<Said, Refusal> {
        let (mark, header) = self.confirm().await?;
        match self.feed.reach(mark, &header, CURRENT_PATIENCE).await {
            Ok(()) => self.read(v3, path, fields).await,
            Err(WaitError::Timeout | WaitError::Unknown) => self.read_from_etcd(v3, path, fields).await,
            Err(error) => Err(Refusal::unavailable(format!("etcd-relay: {error}"))),
        }
    }

    /// Reads a path from etcd, because the feed cannot tell in time whether it is up to date.
    async fn read_from_etcd(&self, v3: &V3, path: &Bytes, fields: &Fields) -> Result<Said, Refusal> {
        let known = self.feed.snapshot();
        let (keys, bytes) = known.map.weigh(&kids(path));
        let too_large = || {
            Refusal::unavailable(
                "etcd-relay: the feed cannot tell whether it is up to date, and the directory is too large to be read from \
                 etcd; read a part of it, or read it without quorum",
            )
        };
        if keys > FROM_ETCD.0 || bytes > FROM_ETCD.1 {
            return Err(too_large());
        }
        // The keys, and the message that has them.
        let _room = self.listings.reserve(v3.asker.client, 2 * bytes).await?;
        let response = v3.txn(operation::reading(path, 2 * FROM_ETCD.0)).await?;
        let revision = revision_of(&response);
        let mut map = KeyMap::default();
        for read in response.responses {
            let Some(Op::ResponseRange(range)) = read.response else { continue };
            if range.more {
                return Err(too_large());
            }
            range.kvs.into_iter().for_each(|kv| map.insert(KeyValue::new(&stored(kv))));
        }
        let snapshot = Arc::new(Snapshot { revision, map, epoch: known.epoch, cluster: known.cluster.clone() });
        if find(&snapshot, path).is_err() {
            // Only the feed shows which component is missing, or is a file.
            let cause = find(&known, path).err();
            return Err(cause.map_or_else(|| Refusal::about(100, path, revision), |cause| cause.at(revision)));
        }
        drop(known);
        let (index, body) = self.listings.of(snapshot, v3.asker.client, path, fields.recursive).await?;
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

    /// The cluster's current revision. Contains the feed's mark from before.
    async fn confirm(&self) -> Result<(Mark, Header), Refusal> {
        let mark = self.feed.mark();
        let confirmed =
            self.hub.confirmer().confirm(None).await.map_err(|error| Refusal::unavailable(error.to_string()))?;
        let checked = self.feed.check(mark, &confirmed.header);
        checked.map_err(|error| Refusal::unavailable(format!("etcd-relay: {error}")))?;
        Ok((mark, confirmed.header))
    }

    /// Waits for the feed, so that the next read from this relay shows what an error is about.
    async fn reach(&self, revision: Revision) {
        if let Err(error) = self.feed.wait_for(revision, PATIENCE).await {
            tracing::debug!(revision = revision.get(), %error, "An error of v2 was answered before the feed had its index");
        }
    }

    /// Waits until the feed has a write, so that the next read from this relay shows it. It is an event of the feed,
    /// which comes even if progress cannot be trusted. The write is done even if its event does not come in time.
    async fn reach_write(&self, revision: Revision) {
        let mut reached = self.feed.watch_revision();
        let reached = tokio::time::timeout(PATIENCE, reached.wait_for(|now| *now >= revision)).await;
        if !matches!(reached, Ok(Ok(_))) {
            tracing::debug!(revision = revision.get(), "A write of v2 was answered before the feed had it");
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
        let _room = self.listings.reserve(v3.asker.client, self.answer_len(path, fields)).await?;
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

    /// About as long as the answer to a write can be. It shows the new and the earlier value, or the earlier value
    /// beside the one that was expected.
    fn answer_len(&self, path: &[u8], fields: &Fields) -> usize {
        let earlier = self.feed.snapshot().map.get(path).map_or(0, |kv| string_len(kv.value()));
        let expected = fields.prev_value.as_ref().map_or(0, |value| string_len(value));
        string_len(&fields.value) + expected + 2 * earlier
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
                    self.reach_write(at).await;
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
        let _room = self.listings.reserve(v3.asker.client, self.answer_len(directory, fields)).await?;
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
        let mut number = self.confirm().await?.1.revision.next().get();
        let mut marks = None;
        let mut own_mark = None;
        for _ in 0..ATTEMPTS {
            let path = names_from(directory, number).start().clone();
            let snapshot = self.feed.snapshot();
            let unmarked = marks.take().unwrap_or_else(|| unmarked(&snapshot, &path, v3.unseen));
            let was = own_mark.take().or_else(|| {
                let kv = snapshot.map.get(&mark(directory))?;
                Some(OwnMark { at: kv.mod_revision.get(), tells_index: !kv.value().is_empty() })
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
                    self.reach_write(at).await;
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

fn stored(kv: mvccpb::KeyValue) -> KeyValueFields {
    KeyValueFields {
        key: kv.key,
        value: kv.value,
        create_revision: Revision::new(kv.create_revision),
        mod_revision: Revision::new(kv.mod_revision),
        version: kv.version,
        lease: kv.lease,
    }
}

fn revision_of(response: &TxnResponse) -> Revision {
    Revision::new(response.header.as_ref().map_or(0, |header| header.revision))
}

/// The directory's mark after a failed POST.
fn mark_of(response: &TxnResponse) -> Option<OwnMark> {
    let [.., mark, _] = &response.responses[..] else { return None };
    let Some(Op::ResponseRange(range)) = mark.response.as_ref().filter(|_| !response.succeeded) else { return None };
    range.kvs.first().map(|kv| OwnMark { at: kv.mod_revision, tells_index: !kv.value.is_empty() })
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
