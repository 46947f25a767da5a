//! Checks single answers: what a write, a read and a list may contain, given the truth.
//!
//! Watches are checked by `support::validate`. Always holds: an answer is checked when the truth has reached its
//! revision, so nothing is believed unchecked. An answer with a revision that etcd never had is wrong as well.

use bytes::Bytes;
use etcd_relay::pb::{
    etcdserverpb::{RangeRequest, RangeResponse, ResponseHeader, range_request::SortOrder},
    mvccpb::KeyValue,
};
use tonic::{Code, Status};

use crate::{
    findings::Findings,
    support::replay::Replay,
    truth::{Epoch, Floor, Truth},
};

/// What answers are compared with.
#[derive(Clone, Copy, Debug)]
pub struct Judge<'a> {
    /// What really happened.
    pub truth: &'a Truth,
    /// Where errors are recorded.
    pub findings: &'a Findings,
}

impl Judge<'_> {
    /// Checks the answer to a write of these values: they must be in the store at that revision. `None` is a key that
    /// was deleted or never existed.
    pub async fn wrote(&self, by: &str, header: Option<ResponseHeader>, values: &[(Bytes, Option<Bytes>)]) {
        let Some(header) = header else {
            return self.findings.add(&format!("{by}: a write is answered without a header"));
        };
        let Some(epoch) = self.truth.acknowledge(&header).await else {
            return self
                .findings
                .add(&format!("{by}: a write is answered for a cluster that is not there: {header:?}"));
        };
        if !self.known(by, &epoch, header.revision).await {
            return;
        }
        let replay = epoch.replay.read();
        for (key, value) in values {
            let is = replay.before(key, header.revision + 1);
            if is.map(|kv| &kv.value) != value.as_ref() {
                self.findings.add(&format!("{by}: at {} {key:?} must be {value:?}, but is {is:?}", header.revision));
            }
        }
        self.findings.judged("writes", 1);
    }

    /// Checks the answer to a read. `floor` is what was acknowledged before it began.
    pub async fn read(&self, by: &str, request: &RangeRequest, answer: &RangeResponse, floor: Floor) {
        let Some(header) = &answer.header else { return self.findings.add(&format!("{by}: a read without a header")) };
        let Some(epoch) = self.truth.of(header.cluster_id).await else {
            return self.findings.add(&format!("{by}: a read of a cluster that is not there: {header:?}"));
        };
        if !request.serializable && (epoch.number, header.revision) < floor {
            let place = (epoch.number, header.revision);
            self.findings.add(&format!("{by}: a stale read: {place:?} where {floor:?} was acknowledged: {request:?}"));
        }
        if !self.known(by, &epoch, header.revision).await {
            return;
        }
        let revision = if request.revision > 0 { request.revision } else { header.revision };
        let wrong = {
            let replay = epoch.replay.read();
            wrong(request, answer, &replay, revision)
        };
        if let Some(wrong) = wrong {
            self.findings.add(&format!("{by}: at {header:?} {wrong} for {request:?}"));
        }
        self.findings.judged("reads", 1);
    }

    /// Checks the refusal of a read of the past.
    pub fn refused(&self, by: &str, request: &RangeRequest, status: &Status, epoch: &Epoch) {
        let compacted = status.code() == Code::OutOfRange && status.message().contains("compacted");
        if compacted && request.revision > epoch.compacted() {
            self.findings.add(&format!(
                "{by}: told that {} is compacted, where {} is",
                request.revision,
                epoch.compacted()
            ));
        }
    }

    async fn known(&self, by: &str, epoch: &Epoch, revision: i64) -> bool {
        let known = epoch.reach(revision).await;
        if !known {
            self.findings.add(&format!("{by}: told of revision {revision}, and etcd is at {}", epoch.reached()));
        }
        known
    }
}

/// Whether a key is in the range.
pub fn within(key: &[u8], range_end: &[u8], asked: &[u8]) -> bool {
    match range_end {
        [] => asked == key,
        [0] => asked >= key,
        end => asked >= key && asked < end,
    }
}

/// How the answer differs from the keys at this revision.
fn wrong(request: &RangeRequest, answer: &RangeResponse, replay: &Replay, revision: i64) -> Option<String> {
    let owed = replay.at(|key| within(&request.key, &request.range_end, key), revision);
    let count = i64::try_from(owed.len()).unwrap_or(i64::MAX);
    let mut kvs: Vec<KeyValue> = owed.into_iter().cloned().collect();
    if request.sort_order() == SortOrder::Descend {
        kvs.reverse();
    }
    let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let more = kvs.len() > limit && !request.count_only;
    kvs.truncate(if request.count_only { 0 } else { limit });
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    if answer.kvs != kvs {
        let place = answer.kvs.iter().zip(&kvs).position(|(told, owed)| told != owed);
        let place = place.unwrap_or_else(|| answer.kvs.len().min(kvs.len()));
        let (told, owed) = (answer.kvs.get(place), kvs.get(place));
        return Some(format!(
            "{} keys of {}; the {place}th is {told:?} instead of {owed:?}",
            answer.kvs.len(),
            kvs.len()
        ));
    }
    ((answer.count, answer.more) != (count, more))
        .then(|| format!("count {} and more {} instead of {count} and {more}", answer.count, answer.more))
}
