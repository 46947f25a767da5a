//! The same conversation with etcd and with each other target: every answer must be literally the same.
//!
//! Both sides start empty, so revisions agree; only the identity of the server is masked (cluster id, member id, term).
//! Topics on which etcd's own releases disagree are in `conformance` (negative start revisions, progress beside a
//! future watch). Always holds: each step is compared before the next one, so a late or extra answer shows at its step
//! or the one after.

mod script;

use std::time::{Duration, Instant};

use etcd_relay::pb::{
    etcdserverpb::{
        CompactionRequest, ResponseHeader, WatchRequest, WatchResponse, lease_client::LeaseClient,
        watch_request::RequestUnion,
    },
    mvccpb::KeyValue,
};
use script::{Say, script};
use tonic::Code;

use crate::support::{
    client::WatchStream,
    kv::{Kv, channel},
    quiet_time,
    target::{Kind, Line, Settings, Target},
};

/// How long the sides may differ after a step. etcd itself reports compactions and replays every 100 ms.
const SETTLE: Duration = Duration::from_secs(3);

/// The approximate number of etcd's responses in the whole conversation, so that silence is not compared with silence.
const LEAST_RESPONSES: usize = 100;

macro_rules! conversations {
    ($($name:ident = $kind:expr),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                converse($kind).await;
            }
        )*
    };
}

conversations! {
    with_another_etcd = Kind::Etcd,
    with_the_store = Kind::Store,
    with_relay_over_etcd = Kind::RelayOverEtcd,
    with_relay_over_etcd_3_7 = Kind::RelayOverEtcdOf(Line::V3_7),
    with_relay_on_demand = Kind::RelayOnDemand,
    with_relay_over_store = Kind::RelayOverStore,
    with_relay_over_relay = Kind::RelayOverRelay,
}

async fn converse(kind: Kind) {
    let same = match kind {
        Kind::RelayOverEtcdOf(line) => Kind::EtcdOf(line),
        _ => Kind::Etcd,
    };
    let Some(reference) = Target::start(same, Settings::default()).await else { return };
    let Some(target) = Target::start(kind, Settings::default()).await else { return };
    let (mut one, mut other) = (Side::new(&reference).await, Side::new(&target).await);
    let mut differences = Vec::new();
    for (number, say) in script().into_iter().enumerate() {
        one.say(&say).await;
        other.say(&say).await;
        let (expected, told) = heard(&mut one, &mut other).await;
        if expected != told {
            let (expected, told) = (expected.join("\n  "), told.join("\n  "));
            differences.push(format!("step {number}, {say:?}\n--- etcd:\n  {expected}\n--- {kind:?}:\n  {told}"));
        }
    }
    let count = differences.len();
    assert!(differences.is_empty(), "{count} steps were answered differently:\n{}", differences.join("\n"));
    let spoken: usize = one.compared.iter().sum();
    assert!(
        spoken >= LEAST_RESPONSES,
        "etcd gave only {spoken} responses, so the conversation did not work as intended"
    );
}

/// One of the compared servers.
struct Side {
    endpoint: String,
    kv: Kv,
    streams: Vec<WatchStream>,
    /// Answers of unary calls since the last comparison.
    answers: Vec<String>,
    /// How many responses of each stream were compared.
    compared: Vec<usize>,
}

impl Side {
    async fn new(target: &Target) -> Self {
        let endpoint = target.endpoint();
        let kv = target.kv().await;
        Self { endpoint, kv, streams: Vec::new(), answers: Vec::new(), compared: Vec::new() }
    }

    async fn say(&mut self, say: &Say) {
        match say.clone() {
            Say::Open => {
                self.streams.push(WatchStream::open(&self.endpoint).await);
                self.compared.push(0);
            }
            Say::Create(stream, request) => self.streams[stream].create(request),
            Say::Cancel(stream, id) => self.streams[stream].cancel(id),
            Say::Progress(stream) => self.streams[stream].progress(),
            Say::Nothing(stream) => self.streams[stream].send(WatchRequest { request_union: None }),
            Say::Batch(stream, requests) => {
                for request in requests {
                    self.streams[stream]
                        .send(WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) });
                }
            }
            Say::HalfClose(stream) => self.streams[stream].half_close(),
            Say::Put(request) => {
                let answer = self.kv.raw.clone().put(request).await;
                self.answer(answer, |response| &mut response.header);
            }
            Say::Delete(request) => {
                let answer = self.kv.raw.clone().delete_range(request).await;
                self.answer(answer, |response| &mut response.header);
            }
            Say::Txn(request) => {
                let answer = self.kv.raw.clone().txn(request).await;
                self.answer(answer, |response| &mut response.header);
            }
            Say::Range(request) => {
                let answer = self.kv.raw.clone().range(request).await;
                self.answer(answer, |response| &mut response.header);
            }
            Say::Compact(revision) => {
                let answer = self.kv.raw.clone().compact(CompactionRequest { revision, physical: true }).await;
                self.answer(answer, |response| &mut response.header);
            }
            Say::Grant(request) => {
                let answer = LeaseClient::new(channel(&self.endpoint).await).lease_grant(request).await;
                self.answer(answer, |response| &mut response.header);
            }
            Say::Revoke(request) => {
                let answer = LeaseClient::new(channel(&self.endpoint).await).lease_revoke(request).await;
                self.answer(answer, |response| &mut response.header);
            }
        }
    }

    fn answer<T: std::fmt::Debug>(
        &mut self,
        answer: Result<tonic::Response<T>, tonic::Status>,
        header: impl Fn(&mut T) -> &mut Option<ResponseHeader>,
    ) {
        let text = match answer {
            Ok(response) => {
                let mut response = response.into_inner();
                mask(header(&mut response));
                format!("{response:?}")
            }
            Err(status) => format!("{}: {}", name(status.code()), status.message()),
        };
        self.answers.push(text);
    }

    /// Responses since the last comparison. The order between watches of a stream is etcd's choice and not compared.
    fn news(&self) -> Vec<String> {
        let mut news = self.answers.clone();
        for (index, stream) in self.streams.iter().enumerate() {
            let mut responses: Vec<_> =
                stream.record().into_iter().skip(self.compared[index]).map(|recorded| recorded.response).collect();
            responses.sort_by_key(|response| response.watch_id);
            news.extend(responses.into_iter().map(|response| format!("stream {index}: {}", words(response))));
            if stream.has_ended() {
                news.push(format!("stream {index} has ended"));
            }
        }
        news
    }

    /// Marks the responses as compared.
    fn settle(&mut self) {
        self.answers.clear();
        for (compared, stream) in self.compared.iter_mut().zip(&self.streams) {
            *compared = stream.record().len();
        }
    }
}

/// The responses of both sides, once neither has sent anything new for a moment, or once they still differ after
/// [`SETTLE`].
async fn heard(one: &mut Side, other: &mut Side) -> (Vec<String>, Vec<String>) {
    let start = Instant::now();
    loop {
        let before = (one.news(), other.news());
        tokio::time::sleep(quiet_time() / 4).await;
        let after = (one.news(), other.news());
        if after == before && (after.0 == after.1 || start.elapsed() > SETTLE) {
            one.settle();
            other.settle();
            return after;
        }
    }
}

/// The whole content of a response in one line.
fn words(mut response: WatchResponse) -> String {
    mask(&mut response.header);
    let WatchResponse { header, watch_id, created, canceled, compact_revision, cancel_reason, fragment, events } =
        response;
    let header = header.map_or_else(
        || "no header".to_owned(),
        |header| format!("{} by {}/{}/{}", header.revision, header.cluster_id, header.member_id, header.raft_term),
    );
    let mut words = format!("watch {watch_id} at {header}");
    for (said, word) in [(created, " created"), (canceled, " canceled"), (fragment, " fragment")] {
        words.push_str(if said { word } else { "" });
    }
    if compact_revision != 0 || !cancel_reason.is_empty() {
        words.push_str(&format!(" compacted {compact_revision} because {cancel_reason:?}"));
    }
    for event in events {
        let kv = event.kv.as_ref().map_or_else(String::new, key_value);
        let prev = event.prev_kv.as_ref().map_or_else(String::new, |prev| format!(" before {}", key_value(prev)));
        words.push_str(&format!("; {} {kv}{prev}", event.r#type().as_str_name()));
    }
    words
}

fn key_value(kv: &KeyValue) -> String {
    let KeyValue { key, value, create_revision, mod_revision, version, lease } = kv;
    format!("{key:?}={value:?} (created {create_revision}, changed {mod_revision}, version {version}, lease {lease})")
}

/// Keeps only whether each field was set.
fn mask(header: &mut Option<ResponseHeader>) {
    if let Some(header) = header {
        header.cluster_id = header.cluster_id.min(1);
        header.member_id = header.member_id.min(1);
        header.raft_term = header.raft_term.min(1);
    }
}

fn name(code: Code) -> String {
    format!("{code:?}")
}
