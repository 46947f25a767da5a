//! etcd is restored from a backup under its old id and name, and has passed the relay's revision before the relay sees
//! it again: neither the id nor a revision shows the change. The relay's data from before the restore is not the past
//! of the new events and must be dropped.

use std::path::{Path, PathBuf};

use etcd_relay::pb::etcdserverpb::RangeRequest;

use super::PREFIX;
use crate::support::{
    client::{self, WatchStream},
    etcd::Etcd,
    eventually,
    gate::Gate,
    kv::{self, Kv},
    relay::{Relay, RelayCommand},
    replay::Replay,
    validate::{Expected, Operation, validate},
};

/// An etcd with a backup from before its last writes, a relay that has followed it, and watches at the relay.
struct Followed {
    etcd: Etcd,
    gate: Gate,
    relay: Relay,
    watches: Vec<WatchStream>,
    /// The relay's newest revision, and all events up to it.
    last: i64,
    replay: Replay,
    cluster_id: u64,
}

/// Writes the relay's keys, most of them after the backup.
async fn followed(etcd: Etcd) -> (Followed, PathBuf) {
    let kv = Kv::connect(&etcd.endpoint()).await;
    write(&kv, 20, "kept").await;
    let backup = etcd.save_snapshot();
    let gate = Gate::before(&etcd.endpoint()).await;
    let relay = RelayCommand::serve(&[gate.endpoint()]).prefix(PREFIX).start().await;
    relay.follows().await;
    let mut watches = Vec::new();
    for request in [client::prefix(PREFIX), client::key(format!("{PREFIX}3"))] {
        let mut stream = WatchStream::open(&relay.endpoint()).await;
        stream.created(request).await;
        watches.push(stream);
    }
    let last = write(&kv, 50, "lost").await;
    watches[0].until_revision(last).await;
    let replay = Replay::read(&etcd.endpoint(), last).await;
    let answer = kv.range(RangeRequest { key: "k".into(), ..RangeRequest::default() }).await;
    let cluster_id = answer.header.expect("a header").cluster_id;
    (Followed { etcd, gate, relay, watches, last, replay, cluster_id }, backup)
}

impl Followed {
    /// While the relay is cut off, etcd is restored and written to until it is `beyond` the relay's revision.
    async fn restore(&mut self, backup: &Path, beyond: i64) {
        self.rewrite(backup, beyond).await;
        self.gate.open();
    }

    /// The same, and etcd compacts all revisions up to the relay's.
    async fn restore_compacted(&mut self, backup: &Path) {
        self.rewrite(backup, 40).await;
        Kv::connect(&self.etcd.endpoint()).await.compact(self.last + 1).await;
        self.gate.open();
    }

    async fn rewrite(&mut self, backup: &Path, beyond: i64) {
        self.gate.shut();
        self.etcd.kill();
        self.etcd.restore_in_place(backup);
        self.etcd.restart().await;
        let kv = Kv::connect(&self.etcd.endpoint()).await;
        let revision = kv.revision().await;
        assert!(revision < self.last, "it went back");
        for number in 0..self.last + beyond - revision {
            // Some lost keys are written again in another order, one is not, and other keys are new.
            match number % 3 {
                0 => kv.put(format!("{PREFIX}{}", number % 5), "new").await,
                1 => kv.put(format!("{PREFIX}new/{}", number % 11), "new").await,
                _ => kv.put(format!("elsewhere/{number}"), "new").await,
            };
        }
    }

    /// Checks that every watch was ended, got only events from before the restore until then, and nothing afterwards;
    /// reads and new watches must show etcd's data.
    async fn assert_begun_anew(&mut self) {
        self.assert_told(true).await;
        self.assert_true().await;
    }

    async fn assert_told(&mut self, at_once: bool) {
        for (request, stream) in
            [client::prefix(PREFIX), client::key(format!("{PREFIX}3"))].iter().zip(&mut self.watches)
        {
            eventually("the watch is told", async || {
                let canceled = stream.record().iter().any(|recorded| recorded.response.canceled);
                (canceled || stream.has_ended()).then_some(())
            })
            .await;
            let before: Vec<_> =
                stream.record().into_iter().take_while(|recorded| !recorded.response.canceled).collect();
            if at_once {
                let operation = Operation::of_stream(std::slice::from_ref(request), &before).remove(0);
                let told = validate(&operation, &self.replay, Expected::default());
                assert!(told.is_empty(), "nothing but what was before the restore: {told:?}");
            }
            assert!(stream.record().len() - before.len() <= 1, "nothing follows the cancel");
        }
    }

    async fn assert_true(&self) {
        self.relay.ready().await;
        let (here, there) = (Kv::connect(&self.relay.endpoint()).await, Kv::connect(&self.etcd.endpoint()).await);
        let all = RangeRequest { key: PREFIX.into(), range_end: kv::prefix_end(PREFIX), ..RangeRequest::default() };
        let truth = there.range(all.clone()).await;
        assert_eq!(truth.header.as_ref().expect("a header").cluster_id, self.cluster_id, "its id is the same");
        assert_eq!(here.range(all).await.kvs, truth.kvs);
        let mut fresh = WatchStream::open(&self.relay.endpoint()).await;
        fresh.created(client::prefix(PREFIX)).await;
        let put = there.put(format!("{PREFIX}fresh"), "").await;
        assert_eq!(client::revisions(&fresh.next().await), [put]);
        self.relay.assert_no_panic();
    }

    async fn resyncs(&self, reason: &str) -> f64 {
        self.relay.metric_of("etcd_relay_upstream_resyncs_total", &format!("reason=\"{reason}\"")).await
    }
}

async fn write(kv: &Kv, count: usize, value: &str) -> i64 {
    let mut last = 0;
    for round in 0..count {
        last = kv.put(format!("{PREFIX}{}", round % 7), format!("{value} {round}")).await;
    }
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_restored_under_its_id_that_is_ahead_of_the_relay_is_told_from_the_one_before() {
    let (mut followed, backup) = followed(Etcd::start().await).await;
    followed.restore(&backup, 40).await;
    followed.assert_begun_anew().await;
    assert!(followed.resyncs("history_changed").await >= 1.0);
}

/// A relay over the relay: it is told to start again and gets no event that it could compare.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tier_begins_anew_with_the_relay_above_it() {
    let (mut followed, backup) = followed(Etcd::start().await).await;
    let tier = RelayCommand::serve(&[followed.relay.endpoint()]).prefix(PREFIX).start().await;
    tier.follows().await;
    let mut stream = WatchStream::open(&tier.endpoint()).await;
    stream.created(client::prefix(PREFIX)).await;
    // The revision at which the relay starts again is the tier's next one.
    followed.restore(&backup, 1).await;
    eventually("the tier's watch is told", async || {
        stream.record().iter().any(|recorded| recorded.response.canceled).then_some(())
    })
    .await;
    followed.assert_begun_anew().await;
    let there = Kv::connect(&followed.etcd.endpoint()).await;
    let all = RangeRequest { key: PREFIX.into(), range_end: kv::prefix_end(PREFIX), ..RangeRequest::default() };
    let here = Kv::connect(&tier.endpoint()).await.range(all.clone()).await;
    assert_eq!(here.kvs, there.range(all).await.kvs);
    tier.assert_no_panic();
}

/// There was no change since the relay's start, and only older data differs: its snapshot is compared.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_has_seen_no_change_compares_its_snapshot() {
    let (mut followed, backup) = followed(Etcd::start().await).await;
    followed.relay = RelayCommand::serve(&[followed.gate.endpoint()]).prefix(PREFIX).start().await;
    followed.relay.follows().await;
    for (request, stream) in
        [client::prefix(PREFIX), client::key(format!("{PREFIX}3"))].iter().zip(&mut followed.watches)
    {
        *stream = WatchStream::open(&followed.relay.endpoint()).await;
        stream.created(request.clone()).await;
    }
    followed.restore(&backup, 40).await;
    followed.assert_begun_anew().await;
    assert!(followed.resyncs("history_changed").await >= 1.0);
}

/// All data of a feed is compared with etcd repeatedly, at the interval of the flag.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_compares_all_keys_again_and_again() {
    let etcd = Etcd::start().await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    for number in 0..600 {
        kv.put(format!("{PREFIX}{number}"), "value").await;
    }
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).arg("--audit-interval=100ms").start().await;
    let of = async |name: &str| relay.metric(name).await;
    eventually("two audits are through", async || {
        // Changes between its steps are not differences.
        kv.put(format!("{PREFIX}{}", 599), "changed").await;
        let equal = relay.metric_of("etcd_relay_audits_total", "outcome=\"equal\"").await;
        (equal >= 2.0 && of("etcd_relay_audit_completed_timestamp_seconds").await > 0.0).then_some(())
    })
    .await;
    assert!(of("etcd_relay_audited_keys_total").await >= 1_200.0);
    assert_eq!(of("etcd_relay_audit_mismatches_total").await, 0.0);
    assert_eq!(of("etcd_relay_upstream_resyncs_total").await, 0.0);
    relay.assert_no_panic();
}

/// By a compaction, etcd loses what the relay compares with, and the audit finds the difference.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_cluster_that_was_compacted_is_told_by_the_audit() {
    let (mut followed, backup) = followed(Etcd::start().await).await;
    followed.restore_compacted(&backup).await;
    // Until then the watches got what seemed to be a continuation.
    followed.assert_told(false).await;
    followed.assert_true().await;
    assert!(followed.resyncs("audit").await >= 1.0, "{}", followed.relay.metrics().await);
    assert!(followed.relay.metric("etcd_relay_audit_mismatches_total").await >= 1.0);
}
