//! Reads, and checks of their answers for linearizability in etcd's sense.
//!
//! Always holds for each answer: its header names a revision that a cluster made, and the id of that cluster. Its data
//! is that of this revision, or of the requested past one. A linearizable answer is not older than the newest revision
//! at the time of the request. Past data was compacted neither at that time nor before the header's revision.

use std::time::Duration;

use bytes::Bytes;
use etcd_relay::{
    pb::etcdserverpb::{RangeRequest, RangeResponse},
    types::KeyRange,
};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::{
    client::Client,
    cluster::{Cluster, Place},
    ensure,
    trace::Trace,
};

/// How long data may be shown after a permission was revoked (docs/trust.md).
pub(crate) const REVOKED: Duration = Duration::from_secs(10);

/// A client without permission since this time must get no data in the answer to a request from `asked_at`. While the
/// relay cannot reach the cluster it knows no better than before, like a member that is cut off. A client that asks for
/// the relay's own data without the cluster's confirmation gets it until the relay learns that the cluster is back.
pub(crate) fn revoked_before(cluster: &Cluster, asked_at: Instant, serializable: bool) -> Instant {
    let strict = asked_at.checked_sub(REVOKED).unwrap_or(asked_at);
    if serializable || cluster.was_away(asked_at) { strict.min(cluster.reachable_ago(REVOKED)) } else { strict }
}

/// A random read of a range.
pub(crate) fn random(rng: &mut StdRng, cluster: &Cluster, (key, range_end): (Bytes, Bytes)) -> RangeRequest {
    let now = cluster.now();
    let oldest = cluster.oldest();
    let revision = match rng.random_range(0..4) {
        0 => rng.random_range(oldest..=now.revision),
        _ => 0,
    };
    RangeRequest {
        key,
        range_end,
        revision,
        limit: if rng.random_bool(0.3) { rng.random_range(1..4) } else { 0 },
        serializable: rng.random_bool(0.2),
        keys_only: rng.random_bool(0.1),
        count_only: rng.random_bool(0.1),
        sort_order: *[0, 0, 0, 1, 2].choose(rng).expect("some"),
        sort_target: 0,
        ..RangeRequest::default()
    }
}

/// The size of a page from which on the relay keeps the snapshot of a list in pages.
pub(crate) const PAGE: usize = 100;

/// Makes a read and checks the answer. Returns the answer if there is one.
pub(crate) async fn read(
    cluster: &Cluster,
    client: &Client,
    trace: &Trace,
    request: RangeRequest,
) -> Result<Option<RangeResponse>, String> {
    let (asked, asked_at, health) = (cluster.now(), Instant::now(), cluster.health());
    let (compacted, rights) = (cluster.compact_revision(), cluster.rights_now());
    let answer = client.call::<RangeResponse>("KV/Range", &request).await;
    let range =
        KeyRange::from_wire(request.key.clone(), request.range_end.clone()).map_err(|error| error.to_string())?;
    trace.note(match &answer {
        Ok(answer) => format!("{:?} reads {range}: {:?}", client.token(), answer.header),
        Err(status) => format!("{:?} reads {range}: {:?} {}", client.token(), status.code(), status.message()),
    });
    let what = || format!("{request:?} asked at {asked:?} by {:?}", client.token());
    let answer = match answer {
        Ok(answer) => answer,
        Err(status) => {
            let of_rights =
                matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument);
            let permitted = cluster.permitted_always(rights, client.token(), &range);
            ensure(!of_rights || !permitted, || format!("denied what was granted: {status:?} to {}", what()))?;
            let well = health.is_some() && cluster.health() == health;
            let may_fail = of_rights || status.code() == Code::OutOfRange;
            ensure(!well || may_fail, || format!("failed while all was well: {status:?} to {}", what()))?;
            if status.code() == Code::OutOfRange && well {
                let of_another = cluster.place_of(request.revision).is_none_or(|place| place.epoch != asked.epoch);
                let gone = request.revision > 0 && (of_another || request.revision < cluster.compact_revision());
                ensure(gone, || format!("said to be compacted, which it is not: {status:?} to {}", what()))?;
            }
            return Ok(None);
        }
    };
    check(cluster, &request, &range, asked, compacted, &answer)
        .map_err(|error| format!("{error}: {answer:?} to {}", what()))?;
    if Instant::now().duration_since(asked_at) < Duration::from_secs(1) {
        let permitted =
            cluster.permitted_since(revoked_before(cluster, asked_at, request.serializable), client.token(), &range);
        ensure(permitted, || format!("shown to who may not see it: {answer:?} to {}", what()))?;
    }
    Ok(Some(answer))
}

/// Reads a list in two pages, both at the revision of the first, which the relay keeps for a while.
pub(crate) async fn list_in_pages(
    cluster: &Cluster,
    client: &Client,
    trace: &Trace,
    pause: Duration,
) -> Result<(), String> {
    let page = |key: Bytes, revision| RangeRequest {
        key,
        range_end: Bytes::from_static(b"c0"),
        limit: PAGE as i64,
        revision,
        ..RangeRequest::default()
    };
    let Some(first) = read(cluster, client, trace, page(Bytes::from_static(b"c/"), 0)).await? else { return Ok(()) };
    let (Some(last), Some(header)) = (first.kvs.last(), first.header) else { return Ok(()) };
    sleep(pause).await;
    let next = [&last.key[..], b"\0"].concat();
    read(cluster, client, trace, page(next.into(), header.revision)).await.map(|_| ())
}

fn check(
    cluster: &Cluster,
    request: &RangeRequest,
    range: &KeyRange,
    asked: Place,
    compacted: i64,
    answer: &RangeResponse,
) -> Result<(), String> {
    let header = answer.header.as_ref().ok_or("no header")?;
    let place = cluster.place_of(header.revision).ok_or("a revision that no cluster made")?;
    ensure(header.cluster_id == cluster.id_of(place.epoch), || {
        format!("the header's cluster is not the one of its revision, {place:?}")
    })?;
    ensure(request.serializable || place >= asked, || format!("linearizable: {place:?} is older"))?;
    let at = match request.revision {
        0 => place,
        past => {
            ensure(past <= header.revision, || "a revision to come".into())?;
            let at = cluster.past_of(place.epoch, past).ok_or("the past of another cluster")?;
            let gone = cluster.compacted_before(place.epoch, header.revision);
            ensure(past >= gone, || format!("linearizable: compacted to {gone} before the header's revision"))?;
            ensure(request.serializable || place.epoch != asked.epoch || past >= compacted, || {
                format!("linearizable: compacted to {compacted} before it was asked")
            })?;
            at
        }
    };
    let mut kvs = cluster.state(at, range);
    let count = kvs.len();
    if request.sort_order == 2 {
        kvs.reverse();
    }
    let limit = usize::try_from(request.limit).unwrap_or(0);
    let more = limit > 0 && count > limit;
    if more {
        kvs.truncate(limit);
    }
    if request.count_only {
        kvs.clear();
    }
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    ensure(answer.kvs == kvs && answer.count == count as i64, || format!("not what is at {at:?}: {kvs:?}"))?;
    ensure(request.count_only || answer.more == more, || "more".into())
}
