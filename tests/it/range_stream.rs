//! `RangeStream`, with which Kubernetes lists from 1.37 on: answers from the relay's memory, and answers from etcd.
//!
//! The size of messages is tested beside the code. `as_etcd_3_7_streams` compares with an etcd that has the call. The
//! etcd of the other tests may be older: then forwarded calls get etcd's error for an unknown call, and calls for keys
//! in memory are still answered.

mod as_etcd_3_7_streams;

use etcd_relay::pb::etcdserverpb::{RangeRequest, RangeResponse, range_request::SortOrder};
use tonic::{Code, Status};

use crate::support::{
    etcd::Etcd,
    kv::{self, Kv},
    relay::{Relay, RelayCommand},
};

/// A whole stream as one answer, and its number of messages.
async fn stream(kv: &Kv, request: RangeRequest) -> Result<(RangeResponse, usize), Status> {
    let mut messages = kv.raw.clone().range_stream(request).await?.into_inner();
    let (mut whole, mut count) = (RangeResponse::default(), 0);
    while let Some(message) = messages.message().await? {
        let part = message.range_response.expect("a response");
        assert!(whole.header.is_none(), "the one with the header is the last");
        let mut kvs = std::mem::take(&mut whole.kvs);
        kvs.extend(part.kvs);
        whole = RangeResponse { kvs, ..part };
        count += 1;
    }
    Ok((whole, count))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_says_what_a_range_says_and_costs_etcd_nothing() {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&etcd.endpoints()).prefix("/a/").start().await;
    streams_what_etcd_ranges(&etcd, &relay).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_through_a_tier_says_the_same() {
    let etcd = Etcd::start().await;
    let near = RelayCommand::serve(&etcd.endpoints()).prefix("/a/").start().await;
    let far = RelayCommand::serve(&[near.endpoint()]).prefix("/a/").start().await;
    streams_what_etcd_ranges(&etcd, &far).await;
    let asked = near.metric("etcd_relay_range_streams_total").await;
    assert!(asked <= 5.0, "what the far relay has in memory it asks of nobody: {asked}");
}

/// There is nothing below `/a/` at first.
async fn streams_what_etcd_ranges(etcd: &Etcd, relay: &Relay) {
    relay.follows().await;
    let (direct, through) = (Kv::connect(&etcd.endpoint()).await, Kv::connect(&relay.endpoint()).await);
    for key in 0..40 {
        direct.put(format!("/a/{key:02}"), vec![b'x'; 64 << 10]).await;
    }
    let past = direct.revision().await;
    direct.put("/a/00", "new").await;
    direct.delete("/a/01").await;
    let all = RangeRequest { key: kv::bytes("/a/"), range_end: kv::prefix_end("/a/"), ..Default::default() };
    for request in [
        all.clone(),
        RangeRequest { limit: 30, ..all.clone() },
        RangeRequest { revision: past, ..all.clone() },
        RangeRequest { serializable: true, ..all.clone() },
        RangeRequest { keys_only: true, ..all.clone() },
        RangeRequest { count_only: true, ..all.clone() },
        RangeRequest { key: kv::bytes("/a/00"), ..Default::default() },
        RangeRequest { key: kv::bytes("/a/none"), ..Default::default() },
    ] {
        let expected = direct.range(request.clone()).await;
        let (answer, messages) = stream(&through, request.clone()).await.expect("a stream");
        assert_eq!(answer, expected, "{request:?}");
        assert!(messages > 1 || answer.kvs.iter().map(|kv| kv.value.len()).sum::<usize>() < 1 << 20, "{messages}");
    }
    assert_eq!(etcd.calls("RangeStream").await, 0);
    let served = relay.metrics().await;
    let outcome = |how: &str| {
        let labels = format!("outcome=\"{how}\"");
        crate::support::http::series(&served, "etcd_relay_range_streams_total")
            .find(|(found, _)| *found == labels)
            .map_or(0.0, |(_, count)| count)
    };
    let answered = outcome("confirmed") + outcome("snapshot") + outcome("history");
    assert!((answered - 8.0).abs() < f64::EPSILON, "{answered} of 8 are counted as answered");
    // What etcd must answer, including errors, it answers.
    direct.compact(past).await;
    for request in [
        RangeRequest { revision: past - 1, ..all.clone() },
        RangeRequest { revision: past + 1_000, ..all.clone() },
        RangeRequest { key: kv::bytes("/elsewhere"), ..Default::default() },
        RangeRequest { sort_order: SortOrder::Descend as i32, ..all.clone() },
        RangeRequest::default(),
    ] {
        let outcome = |result: Result<(RangeResponse, usize), Status>| {
            result.map(|(answer, _)| answer).map_err(|status| (status.code(), status.message().to_owned()))
        };
        let expected = outcome(stream(&direct, request.clone()).await);
        assert!(expected.is_ok() || expected.as_ref().is_err_and(|(code, _)| *code != Code::Internal), "{expected:?}");
        assert_eq!(outcome(stream(&through, request.clone()).await), expected, "{request:?}");
    }
    relay.assert_log_has_only(&[]);
}
