//! The writes of a connection that wait for its creates: which calls these are, and the wait itself.
//!
//! Used by those who pass a call on to upstream. Always holds: a call waits only after it has arrived whole, or more of
//! it than etcd accepts by default, so creates that arrived between its pieces count too. What it holds meanwhile is
//! part of its connection's unanswered requests, which are bounded.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Extensions, Request};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;

use super::Order;
use crate::{
    front::{
        body::{BoxError, RequestBody},
        listen::Connected,
    },
    telemetry::HeldForward,
};

/// The most bytes of a call that are gathered. It is what etcd accepts by default.
const MOST: usize = 2 << 20;

/// Whether a call to this path can cause events. A compaction causes none.
pub(in crate::front) fn writes(path: &str) -> bool {
    matches!(
        path,
        "/etcdserverpb.KV/Put"
            | "/etcdserverpb.KV/DeleteRange"
            | "/etcdserverpb.KV/Txn"
            | "/etcdserverpb.Lease/LeaseRevoke"
            | "/v3lockpb.Lock/Lock"
            | "/v3lockpb.Lock/Unlock"
            | "/v3electionpb.Election/Campaign"
            | "/v3electionpb.Election/Proclaim"
            | "/v3electionpb.Election/Resign"
    )
}

/// The order that a call must keep, if it is a write and may have to wait. For all other calls this costs a load or
/// two.
pub(in crate::front) fn ahead_of(request: &Request<RequestBody>) -> Option<Arc<Order>> {
    let order = &Connected::of(request.extensions())?.order;
    let may_wait = order.is_used() && (order.is_pending() || !is_whole(request.body())) && writes(request.uri().path());
    may_wait.then(|| order.clone())
}

/// Waits until a write may be forwarded.
pub(in crate::front) async fn hold(order: Arc<Order>, request: Request<RequestBody>) -> Request<RequestBody> {
    let request = if is_whole(request.body()) { request } else { gather(request).await };
    wait(&order).await;
    request
}

/// Waits until a write may be forwarded that has been read already. `extensions` are those of its request.
pub(in crate::front) async fn hold_whole(extensions: &Extensions) {
    if let Some(Connected { order, .. }) = Connected::of(extensions)
        && order.is_pending()
    {
        let order = order.clone();
        // Boxed, because otherwise all calls would be as large.
        Box::pin(async move { wait(&order).await }).await;
    }
}

async fn wait(order: &Order) {
    if order.is_pending() {
        let _held = HeldForward::count();
        order.wait().await;
    }
}

fn is_whole(body: &RequestBody) -> bool {
    match body {
        RequestBody::Http2(body) => body.is_whole(),
        RequestBody::Http1(_) => false,
        RequestBody::Made(_) => true,
    }
}

/// Reads the request as far as it may be kept.
async fn gather(request: Request<RequestBody>) -> Request<RequestBody> {
    let (head, mut rest) = request.into_parts();
    let mut first = VecDeque::new();
    let mut bytes = 0;
    while bytes <= MOST && !rest.is_end_stream() {
        // Whoever reads the rest finds the end or the error again.
        let Some(Ok(frame)) = rest.frame().await else { break };
        bytes += frame.data_ref().map_or(0, Bytes::len);
        first.push_back(frame);
    }
    let body = tonic::body::Body::new(Gathered { first, rest });
    Request::from_parts(head, RequestBody::Made(body))
}

/// A body of which the first part was read before.
#[derive(Debug)]
struct Gathered {
    first: VecDeque<Frame<Bytes>>,
    rest: RequestBody,
}

impl Body for Gathered {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        match this.first.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => Pin::new(&mut this.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, StreamExt as _, stream};
    use http_body_util::StreamBody;

    use super::*;
    use crate::{
        front::{listen::ConnectionId, order::Arrivals},
        telemetry::names,
    };

    fn put(order: &Arc<Order>, path: &str) -> Request<RequestBody> {
        let connected = Connected::for_tests(ConnectionId(1), "127.0.0.1:1", order.clone());
        let body = tonic::body::Body::new(http_body_util::Full::new(Bytes::from_static(b"put")));
        let request = Request::post(path).extension(connected);
        request.body(RequestBody::Made(body)).expect("a request")
    }

    #[test]
    fn only_writes_wait_and_only_while_a_create_is_pending() {
        let order = Order::new();
        let write = || ahead_of(&put(&order, "/etcdserverpb.KV/Put")).is_some();
        assert!(!write());
        let arrivals = Arrivals::of_something(&order);
        assert!(write());
        for path in [
            "/etcdserverpb.KV/DeleteRange",
            "/etcdserverpb.KV/Txn",
            "/etcdserverpb.Lease/LeaseRevoke",
            "/v3lockpb.Lock/Lock",
            "/v3lockpb.Lock/Unlock",
            "/v3electionpb.Election/Campaign",
            "/v3electionpb.Election/Proclaim",
            "/v3electionpb.Election/Resign",
        ] {
            assert!(ahead_of(&put(&order, path)).is_some(), "{path}");
        }
        for path in ["KV/Range", "KV/Compact", "Lease/LeaseGrant", "Lease/LeaseKeepAlive", "Maintenance/Status"] {
            assert!(ahead_of(&put(&order, &format!("/etcdserverpb.{path}"))).is_none(), "{path}");
        }
        arrivals.clear(0);
        assert!(!write());
    }

    #[tokio::test]
    async fn a_write_that_arrives_in_pieces_is_held_from_the_last_one_on_and_is_passed_on_whole() {
        let order = Order::new();
        let arrivals = Arrivals::of_something(&order);
        let pieces =
            ["in ", "pieces"].map(|piece| Ok::<_, BoxError>(Frame::data(Bytes::from_static(piece.as_bytes()))));
        let body = RequestBody::Made(tonic::body::Body::new(StreamBody::new(stream::iter(pieces))));
        let request = put(&order, "/etcdserverpb.KV/Put").map(|_| body);
        let mut held = Box::pin(async {
            let request = gather(request).await;
            wait(&order).await;
            request
        });
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let is_counted = |count: usize| {
            let metrics = recorder.handle().render();
            assert!(metrics.contains(&format!("{} {count}\n", names::FORWARDS_HELD)), "{metrics}");
        };
        metrics::with_local_recorder(&recorder, || assert!(held.as_mut().now_or_never().is_none()));
        is_counted(1);
        arrivals.clear(0);
        let request = metrics::with_local_recorder(&recorder, || held.as_mut().now_or_never()).expect("it goes on");
        is_counted(0);
        let body = request.into_body().collect().await.expect("no error");
        assert_eq!(body.to_bytes(), "in pieces");
        let mut body = gather(put(&order, "/etcdserverpb.KV/Put")).await.into_body();
        assert!(!body.is_end_stream(), "nobody has read it");
        assert!(body.frame().await.is_some() && body.is_end_stream());
    }

    #[tokio::test]
    async fn no_more_is_gathered_of_a_write_than_etcd_accepts() {
        let order = Order::new();
        let piece = || Ok::<_, BoxError>(Frame::data(Bytes::from(vec![7; MOST / 2])));
        let pieces = stream::iter((0..5).map(move |_| piece())).chain(stream::pending());
        let body = RequestBody::Made(tonic::body::Body::new(StreamBody::new(pieces)));
        let request = gather(put(&order, "/etcdserverpb.KV/Put").map(|_| body)).now_or_never();
        let mut body = request.expect("it does not wait for the rest").into_body();
        for _ in 0..5 {
            let frame = body.frame().now_or_never().flatten().expect("a piece").expect("no error");
            assert_eq!(frame.data_ref().map(Bytes::len), Some(MOST / 2));
        }
        assert!(body.frame().now_or_never().is_none());
    }
}
