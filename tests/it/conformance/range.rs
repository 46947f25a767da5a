//! Reads. The most thorough case sends the same requests to etcd and to the target and compares the bytes.

use etcd_relay::pb::{
    etcdserverpb::{
        RangeRequest, RangeResponse,
        range_request::{SortOrder, SortTarget},
    },
    mvccpb::KeyValue,
};
use prost::Message;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tonic::{Code, Status};

use crate::support::{
    etcd::Etcd,
    kv::{self, Kv, op_delete, op_put},
    target::{Kind, Target},
};

/// Number of compared requests in a run.
const REQUESTS: usize = 1_500;
/// The compacted revision.
const COMPACTED: i64 = 40;

pub async fn malformed_requests_are_refused_in_the_same_words(target: &Target) {
    let (kv, ns) = (target.kv().await, target.namespace());
    kv.put(format!("{ns}a"), "1").await;
    let future = kv.revision().await + 1_000_000;
    for serializable in [false, true] {
        let valid =
            RangeRequest { key: kv::bytes(&ns), range_end: kv::prefix_end(&ns), serializable, ..Default::default() };
        for (request, code, words) in [
            (
                RangeRequest { key: "".into(), ..valid.clone() },
                Code::InvalidArgument,
                "etcdserver: key is not provided",
            ),
            (
                RangeRequest { revision: future, ..valid.clone() },
                Code::OutOfRange,
                "etcdserver: mvcc: required revision is a future revision",
            ),
        ] {
            let status = kv.raw.clone().range(request.clone()).await.expect_err(words);
            assert_eq!((status.code(), status.message()), (code, words), "{request:?}");
        }
        assert_eq!(kv.range(valid).await.count, 1);
    }
}

/// etcd has refused them since 3.6. A 3.5 member ignores an unknown order and crashes on an unknown target, so they are
/// not sent to it.
pub async fn unknown_sort_options_never_reach_etcd(target: &Target) {
    if target.kind == Kind::Etcd {
        return;
    }
    let kv = target.kv().await;
    for serializable in [false, true] {
        let valid = RangeRequest { key: "a".into(), range_end: "b".into(), serializable, ..Default::default() };
        for (sort_order, sort_target) in [(9, 0), (-1, 0), (1, 9), (1, -1)] {
            let request = RangeRequest { sort_order, sort_target, ..valid.clone() };
            let status = kv.raw.clone().range(request.clone()).await.expect_err("an unknown sort option");
            let expected = (Code::InvalidArgument, "etcdserver: invalid sort option");
            assert_eq!((status.code(), status.message()), expected, "{request:?}");
        }
        kv.range(valid).await;
    }
}

pub async fn a_read_sees_the_write_before_it(target: &Target) {
    let (kv, other, ns) = (target.kv().await, target.kv().await, target.namespace());
    let origin = match target.etcd() {
        Some(etcd) => Kv::connect(&etcd.endpoint()).await,
        None => target.kv().await,
    };
    let key = format!("{ns}a");
    for round in 0..50 {
        // Half of the writes bypass the target.
        let writer = if round % 2 == 0 { &origin } else { &other };
        let revision = writer.put(&key, format!("{round}")).await;
        let response = kv.range(RangeRequest { key: kv::bytes(&key), ..Default::default() }).await;
        assert_eq!(response.kvs[0].mod_revision, revision, "a linearizable read is never behind");
        assert!(response.header.expect("a header").revision >= revision);
    }
}

pub async fn a_read_of_the_past_shows_the_past(target: &Target) {
    let (kv, ns) = (target.kv().await, target.namespace());
    let key = format!("{ns}a");
    let mut written = Vec::new();
    for round in 0..5 {
        written.push(kv.put(&key, format!("{round}")).await);
    }
    let deleted = kv.delete(&key).await;
    for serializable in [false, true] {
        for (round, revision) in written.iter().enumerate() {
            let request =
                RangeRequest { key: kv::bytes(&key), revision: *revision, serializable, ..Default::default() };
            let response = kv.range(request).await;
            assert_eq!(response.kvs[0].value, format!("{round}"));
            assert!(response.header.expect("a header").revision >= deleted, "the header has the current revision");
        }
        let request = RangeRequest { key: kv::bytes(&key), revision: deleted, serializable, ..Default::default() };
        assert_eq!(kv.range(request).await.count, 0);
    }
}

/// The same writes to the target and to etcd, then many random reads from both.
pub async fn answers_as_etcd_does(target: &Target) {
    let seed = seed();
    let kv = target.kv().await;
    let own = match target.kind {
        Kind::Store | Kind::RelayOverStore => Some(Etcd::start().await),
        _ => None,
    };
    // Over etcd, the reference is the same etcd that is behind the target. The store gets its own etcd with the same
    // writes.
    let reference = own.as_ref().or(target.etcd()).expect("an etcd").endpoint();
    let reference = Kv::connect(&reference).await;
    let writers: &[&Kv] = if own.is_some() { &[&kv, &reference] } else { &[&reference] };
    for writer in writers {
        populate(writer, &mut StdRng::seed_from_u64(seed)).await;
    }
    // Through the target, because it cannot know of a compaction elsewhere before it asks etcd again.
    kv.compact(COMPACTED).await;
    if own.is_some() {
        reference.compact(COMPACTED).await;
    }
    let last = reference.revision().await;
    assert_eq!(kv.revision().await, last, "both are at the same revision");
    let mut random = StdRng::seed_from_u64(seed ^ 1);
    for number in 0..REQUESTS {
        let request = random_request(&mut random, last);
        let ask = async |at: &Kv| {
            let answer = at.raw.clone().range(request.clone()).await.map(tonic::Response::into_inner);
            masked(answer, &request, own.is_some())
        };
        let (expected, told) = (ask(&reference).await, ask(&kv).await);
        assert_eq!(told, expected, "request {number} of seed {seed}: {request:?}");
    }
}

/// `ETCD_RELAY_TEST_SEED`, or a random seed that is printed if the test fails.
fn seed() -> u64 {
    match std::env::var("ETCD_RELAY_TEST_SEED") {
        Ok(seed) => seed.parse().expect("ETCD_RELAY_TEST_SEED is a number"),
        Err(_) => rand::rng().random(),
    }
}

/// 200 revisions over 40 keys: puts, deletes, transactions.
async fn populate(kv: &Kv, random: &mut StdRng) {
    for round in 0..200 {
        let key = random_key(random);
        match random.random_range(0..10) {
            0 => drop(kv.delete(&key).await),
            1 => drop(
                kv.txn(vec![
                    op_put(&key, format!("txn {round}")),
                    op_put("extra", format!("extra {round}")),
                    op_delete("other"),
                ])
                .await,
            ),
            // Unique values, not in the order of writing.
            _ => drop(kv.put(&key, format!("{:02}-{round}", round * 37 % 100)).await),
        }
    }
}

fn random_key(random: &mut StdRng) -> Vec<u8> {
    let mut key = vec![b"ab\xff"[random.random_range(0..3)], b'/'];
    key.extend((0..random.random_range(0..3)).map(|_| b"0\x019"[random.random_range(0..3)]));
    key
}

fn random_request(random: &mut StdRng, last: i64) -> RangeRequest {
    let key = random_key(random);
    let (key, range_end) = match random.random_range(0..8) {
        0 => (key, vec![]),
        1 => (key, vec![0]),
        2 => (vec![0], vec![0]),
        3 => (b"a".to_vec(), b"b".to_vec()),
        4 => (vec![], vec![0]),
        5 => (key, random_key(random)),
        _ => {
            let end = kv::prefix_end(&key).to_vec();
            (key, end)
        }
    };
    let sometimes = |random: &mut StdRng| random.random_bool(0.2);
    let revision = |random: &mut StdRng| if random.random_bool(0.3) { random.random_range(-1..last + 3) } else { 0 };
    let bound = |random: &mut StdRng| if random.random_bool(0.1) { random.random_range(0..=last) } else { 0 };
    RangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        limit: if random.random_bool(0.4) { random.random_range(-1..12) } else { 0 },
        revision: revision(random),
        sort_order: random.random_range(SortOrder::None as i32..=SortOrder::Descend as i32),
        sort_target: random.random_range(SortTarget::Key as i32..=SortTarget::Value as i32),
        serializable: random.random_bool(0.5),
        keys_only: sometimes(random),
        count_only: sometimes(random),
        min_mod_revision: bound(random),
        max_mod_revision: bound(random),
        min_create_revision: bound(random),
        max_create_revision: bound(random),
    }
}

/// The answer as bytes without the parts that may differ, in readable form.
fn masked(
    answer: Result<RangeResponse, Status>,
    request: &RangeRequest,
    other_cluster: bool,
) -> Result<(Vec<u8>, RangeResponse), (Code, String)> {
    let mut response = answer.map_err(|status| (status.code(), status.message().to_owned()))?;
    let header = response.header.as_mut().expect("a header");
    header.member_id = 0;
    if other_cluster {
        (header.cluster_id, header.raft_term) = (0, 0);
    }
    order_ties(&mut response, request);
    Ok((response.encode_to_vec(), response))
}

/// Go's sort is stable for up to 12 elements. Beyond that, the order of equal elements depends on the algorithm, and
/// with a limit so does the choice among them. Then only the sort keys are compared.
fn order_ties(response: &mut RangeResponse, request: &RangeRequest) {
    let sorted_by = |kv: &KeyValue| match request.sort_target() {
        SortTarget::Version => kv.version,
        SortTarget::Create => kv.create_revision,
        SortTarget::Mod => kv.mod_revision,
        // In these tests, keys and values are unique.
        SortTarget::Key | SortTarget::Value => 0,
    };
    if response.count <= 12 || matches!(request.sort_target(), SortTarget::Key | SortTarget::Value) {
        return;
    }
    if request.limit > 0 {
        response.kvs =
            response.kvs.iter().map(|kv| KeyValue { version: sorted_by(kv), ..Default::default() }).collect();
    } else {
        let groups = response.kvs.chunk_by_mut(|one, next| sorted_by(one) == sorted_by(next));
        groups.for_each(|group| group.sort_by(|one, other| one.key.cmp(&other.key)));
    }
}
