//! [`Audit`]: compares the content of each feed with etcd's at the same revision, a little at a time, for as long as
//! the relay runs.
//!
//! A feed follows its upstream event by event. An event that is lost, by a fault of etcd, of the relay or of an
//! operator, would be missing forever. Kubernetes' API server checks its watch cache in the same way. Each step reads
//! a page of keys at the revision of the feed's newest snapshot and compares every field. The next step continues after
//! that page, at the revision that is newest then. So no snapshot is held between steps, and a compaction in the middle
//! of an audit does not matter.
//! Not here: what follows from a difference, which is the driver's task, see [`Feed::differs`]. Run by `relay`, in a
//! task of its own.
//! Always holds: one page is read at a time, within [`Budget`]. A page is compared with the snapshot of its own
//! revision and cluster, so a difference is proof. Nothing is read while a feed does not follow etcd, while the cluster
//! has no leader, or if the relay has no permission.

use std::{
    pin::pin,
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use metrics::{counter, gauge};
use tokio::{sync::watch, time::Instant};

use super::driver::{is_same, sample};
use crate::{
    hub::{
        Feed, Hub, KeyMap,
        upstream::{Agreement, Page, UpstreamError},
    },
    telemetry::names::{self, Audited},
    types::KeyRange,
};

/// The most keys of a page, and about how many bytes it may have, judged by the feed's content. etcd answers such a
/// read within a millisecond or two.
const PAGE: (usize, usize) = (250, 256 << 10);
/// How long after a failure the same page is requested again.
const PAUSE: Duration = Duration::from_secs(1);
/// After this many failures in a row the audit of a feed ends for now.
const FAILURES: u32 = 3;
/// How long a feed is left alone after its audit was interrupted.
const AGAIN: Duration = Duration::from_secs(10);

/// The most that the audit may cost, whatever the interval is.
#[derive(Clone, Copy, Debug)]
struct Budget {
    keys_per_second: f64,
    bytes_per_second: f64,
    /// The cost of a request itself, in keys.
    keys_per_page: usize,
}

/// A hundredth of what an etcd member can do, or less: 100,000 keys of 200 bytes take 100 s.
const BUDGET: Budget = Budget { keys_per_second: 1_000.0, bytes_per_second: (1 << 20) as f64, keys_per_page: 100 };

impl Budget {
    /// How long it takes until this many keys and bytes may have been read.
    fn time(&self, keys: usize, bytes: usize) -> Duration {
        let by_keys = keys.max(self.keys_per_page) as f64 / self.keys_per_second;
        Duration::from_secs_f64(by_keys.max(bytes as f64 / self.bytes_per_second))
    }
}

/// Compares feeds with etcd; see the module.
#[derive(Debug)]
pub struct Audit {
    hub: Arc<Hub>,
    agreement: watch::Receiver<Agreement>,
    interval: Option<Duration>,
}

/// How the audit of a feed ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Equal,
    Different,
    /// The audit begins again once the feed follows etcd.
    Interrupted,
    /// The feed has read another snapshot, or has ended, so there is nothing left to audit.
    Moot,
}

/// The running audit of one feed.
struct Going {
    feed: Arc<Feed>,
    epoch: u64,
    rest: KeyRange,
    failures: u32,
}

impl Audit {
    /// Time between the audits of all feeds. The effect of a restore shows when a watch resumes, so differences that
    /// only the audit can find are rare. A fleet of 20 relays with 100 MB each reads about 1 MB a second from etcd for
    /// it.
    pub const INTERVAL: Duration = Duration::from_secs(1_800);

    /// Audits all feeds of `hub`, with this pause between audits; without one, only suspect feeds.
    #[must_use]
    pub fn new(hub: Arc<Hub>, interval: Option<Duration>) -> Self {
        Self { agreement: hub.agreement(), hub, interval }
    }

    /// Audits forever; spawn it as a task.
    pub async fn run(self) {
        loop {
            // Relays that were started together do not read at the same time.
            let wait = self.interval.map(|interval| interval.mul_f64(0.8 + 0.2 * fastrand::f64()));
            let mut due = pin!(async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            });
            loop {
                let left = self.hub.feeds().iter().any(|feed| feed.is_suspect());
                // All branches are cancel safe.
                tokio::select! {
                    biased;
                    () = &mut due => break,
                    () = self.hub.suspected() => {}
                    () = tokio::time::sleep(AGAIN), if left => {}
                }
                self.suspects().await;
            }
            self.all().await;
        }
    }

    /// Audits all feeds. Those that do not follow etcd now are audited when they do.
    async fn all(&self) {
        let feeds: Vec<Weak<Feed>> = self.hub.feeds().iter().map(Arc::downgrade).collect();
        for feed in feeds {
            let Some(feed) = feed.upgrade() else { continue };
            let mut going = Going::new(feed);
            let end = loop {
                if self.hub.suspected().now_or_never().is_some() {
                    self.suspects().await;
                }
                if let Some(end) = self.step(&mut going).await {
                    break end;
                }
            };
            going.over(end);
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        gauge!(names::AUDIT_COMPLETED).set(now.as_secs_f64());
    }

    /// Audits the suspect feeds.
    async fn suspects(&self) {
        for feed in self.hub.feeds() {
            if feed.is_suspect() && self.may_ask(&feed) {
                let mut going = Going::new(feed);
                let end = loop {
                    if let Some(end) = self.step(&mut going).await {
                        break end;
                    }
                };
                going.over(end);
            }
        }
    }

    fn may_ask(&self, feed: &Feed) -> bool {
        feed.is_steady() && *self.agreement.borrow() <= Agreement::Late
    }

    /// Compares the next page. Returns how the audit ended, if it did.
    async fn step(&self, going: &mut Going) -> Option<End> {
        let feed = &going.feed;
        let mark = feed.mark();
        let snapshot = feed.snapshot();
        if feed.is_closed() || snapshot.epoch != going.epoch {
            return Some(End::Moot);
        }
        if !self.may_ask(feed) {
            return Some(End::Interrupted);
        }
        let began = Instant::now();
        let Part { range, keys, rest } = part(&snapshot.map, &going.rest);
        // One key too many shows a difference.
        let page = match self.hub.upstream().page(&range, Some(snapshot.revision), keys + 1).await {
            Ok(Page { kvs, more: true, .. }) if kvs.is_empty() => {
                Err(UpstreamError::Protocol("an empty page that is not the last".into()))
            }
            result => result,
        };
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                tracing::debug!(range = %feed.range(), revision = snapshot.revision.get(), %error, "The audit cannot read a page");
                drop(snapshot);
                tokio::time::sleep(PAUSE).await;
                going.failures += 1;
                return (going.failures == FAILURES).then_some(End::Interrupted);
            }
        };
        going.failures = 0;
        if feed.check(mark, &page.header).is_err() || feed.snapshot().epoch != snapshot.epoch {
            return Some(End::Moot);
        }
        counter!(names::AUDITED_KEYS).increment(page.kvs.len() as u64);
        if let Err(key) = compare(&snapshot.map, &range, &page) {
            tracing::error!(range = %feed.range(), revision = snapshot.revision.get(), key = sample(&key),
                "The audit found that etcd's content differs from the feed's; the feed starts again from a new snapshot");
            feed.differs(&snapshot);
            return Some(End::Different);
        }
        drop(snapshot);
        let bytes = page.kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
        let next = match page.kvs.last().filter(|_| page.more) {
            Some(last) => going.rest.after(&last.key),
            None => rest,
        };
        let keys = page.kvs.len();
        drop(page);
        tokio::time::sleep_until(began + BUDGET.time(keys, bytes)).await;
        match next {
            Some(rest) => {
                going.rest = rest;
                None
            }
            None => Some(End::Equal),
        }
    }
}

impl Going {
    fn new(feed: Arc<Feed>) -> Self {
        feed.trust();
        Self { epoch: feed.snapshot().epoch, rest: feed.range().clone(), feed, failures: 0 }
    }

    fn over(self, end: End) {
        let outcome = match end {
            End::Equal => Audited::Equal,
            End::Different => {
                counter!(names::AUDIT_MISMATCHES).increment(1);
                Audited::Different
            }
            End::Interrupted => {
                self.feed.still_suspect();
                Audited::Interrupted
            }
            End::Moot => Audited::Interrupted,
        };
        counter!(names::AUDITS, Audited::LABEL => outcome.as_str()).increment(1);
    }
}

/// What one step reads, judged by the feed's content.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    /// It ends where the feed has its next key, since etcd counts all keys of a range however few of them it returns.
    range: KeyRange,
    /// How many keys of the feed lie in it.
    keys: usize,
    rest: Option<KeyRange>,
}

fn part(map: &KeyMap, rest: &KeyRange) -> Part {
    let (mut keys, mut bytes) = (0, 0);
    let next = map.range(rest).find(|kv| {
        let full = keys == PAGE.0 || bytes >= PAGE.1;
        if !full {
            keys += 1;
            bytes += kv.encoded().len();
        }
        full
    });
    let (start, end) = rest.to_wire();
    let cut = next.and_then(|kv| {
        let next = Bytes::copy_from_slice(kv.key());
        Some((KeyRange::from_wire(start, next.clone()).ok()?, KeyRange::from_wire(next, end).ok()?))
    });
    match cut {
        Some((range, rest)) => Part { range, keys, rest: Some(rest) },
        None => Part { range: rest.clone(), keys, rest: None },
    }
}

/// Compares a page of `range` with the map. Returns the first key that differs as an error.
fn compare(map: &KeyMap, range: &KeyRange, page: &Page) -> Result<(), Bytes> {
    let mut ours = map.range(range);
    for theirs in &page.kvs {
        match ours.next() {
            Some(kv) if is_same(&kv, theirs) => {}
            Some(kv) => return Err(kv.key_bytes().min(theirs.key.clone())),
            None => return Err(theirs.key.clone()),
        }
    }
    match ours.next().filter(|_| !page.more) {
        Some(kv) => Err(kv.key_bytes()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Header, KeyValue, KeyValueFields, Revision};

    fn kv(key: &str, revision: i64) -> KeyValueFields {
        KeyValueFields {
            key: key.to_owned().into(),
            value: "v".into(),
            create_revision: Revision::new(1),
            mod_revision: Revision::new(revision),
            version: 1,
            lease: 0,
        }
    }

    fn map(kvs: &[KeyValueFields]) -> KeyMap {
        let mut map = KeyMap::default();
        kvs.iter().for_each(|kv| map.insert(KeyValue::new(kv)));
        map
    }

    fn page(kvs: &[KeyValueFields], more: bool) -> Page {
        Page { header: Header::default(), kvs: kvs.to_vec(), more, count: None }
    }

    #[test]
    fn each_field_of_each_key_is_compared() {
        let (range, had) = (KeyRange::prefix("k".into()), [kv("k1", 3), kv("k2", 4), kv("k3", 5)]);
        let found =
            |kvs: &[KeyValueFields], more| compare(&map(&had), &range, &page(kvs, more)).map_err(|key| key.to_vec());
        let at = |key: &str| Err(key.as_bytes().to_vec());
        assert_eq!(found(&had, false), Ok(()));
        assert_eq!(found(&had[..2], true), Ok(()), "the rest is on the next page");
        assert_eq!(found(&had[..2], false), at("k3"), "a key that etcd does not have");
        assert_eq!(found(&had[1..], false), at("k1"));
        assert_eq!(found(&[&had[..], &[kv("k4", 6)]].concat(), false), at("k4"), "a key that the feed does not have");
        assert_eq!(found(&[kv("k0", 2), kv("k1", 3)], true), at("k0"));
        for other in [
            kv("k2", 5),
            KeyValueFields { value: "w".into(), ..kv("k2", 4) },
            KeyValueFields { version: 2, ..kv("k2", 4) },
            KeyValueFields { lease: 7, ..kv("k2", 4) },
            KeyValueFields { create_revision: Revision::new(2), ..kv("k2", 4) },
        ] {
            assert_eq!(found(&[had[0].clone(), other, had[2].clone()], false), at("k2"));
        }
    }

    #[test]
    fn a_page_has_a_bounded_number_of_keys_and_bytes() {
        let range = KeyRange::prefix("k".into());
        let many: Vec<_> = (0..2 * PAGE.0).map(|number| kv(&format!("k{number:04}"), 3)).collect();
        let all = map(&many);
        let first = part(&all, &range);
        let second = part(&all, &first.rest.clone().expect("there is more"));
        assert_eq!((first.keys, second.keys, second.rest), (PAGE.0, PAGE.0, None));
        let ends: Vec<_> = [first.range, second.range].iter().map(KeyRange::to_wire).collect();
        let next = many[PAGE.0].key.clone();
        assert_eq!(ends, [("k".into(), next.clone()), (next, "l".into())], "no key is read twice, or left out");
        let everything = part(&all, &KeyRange::prefix(Bytes::new()));
        assert_eq!(part(&all, &everything.rest.expect("more")).range.to_wire().1, Bytes::from_static(&[0]));
        let large = |kv: KeyValueFields| KeyValueFields { value: vec![0; PAGE.1 / 4].into(), ..kv };
        let large: Vec<_> = many.into_iter().map(large).take(20).collect();
        assert_eq!(part(&map(&large), &range).keys, 4);
        assert_eq!(part(&KeyMap::default(), &range), Part { range: range.clone(), keys: 0, rest: None });
    }

    #[test]
    fn the_budget_bounds_keys_bytes_and_questions() {
        assert_eq!(BUDGET.time(1_000, 1_000), Duration::from_secs(1));
        assert_eq!(BUDGET.time(1, 2 << 20), Duration::from_secs(2));
        assert_eq!(BUDGET.time(0, 0), Duration::from_millis(100));
    }
}
