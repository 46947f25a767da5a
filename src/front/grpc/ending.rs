//! [`ending`]: wraps a service so that its open answers end when the relay stops or their connection is asked to leave.
//!
//! For services in this process whose streams never end by themselves (health's `Watch`, reflection, the embedded
//! store's keep-alives). Forwarded calls are ended by `source::forward`, watches by `watch`. Always holds: messages
//! that are ready are sent first; the end is etcd's own `server stopped`.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Status, body::Body};

use crate::{front::listen, rpc::GrpcService};

/// Ends open answers of `service` when their connection is asked to leave, or without a connection when `stop` is
/// cancelled.
#[must_use]
pub fn ending(service: GrpcService, stop: CancellationToken) -> GrpcService {
    GrpcService::passing(move |request| {
        let stop = listen::leave(request.extensions(), &stop);
        let answer = service.answer(request);
        Box::pin(async move {
            let Ok(response) = answer.await;
            let stop = Box::pin(stop.cancelled_owned());
            Ok(response.map(|body| Body::new(Ending { inner: Some(body), stop })))
        })
    })
}

struct Ending {
    /// `None` once the answer has ended.
    inner: Option<Body>,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl http_body::Body for Ending {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(inner).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        ready!(self.stop.as_mut().poll(cx));
        self.inner = None;
        let status = Status::unavailable("etcdserver: server stopped");
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), |_| SizeHint::default())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response};
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio_stream::{StreamExt as _, once, pending};

    use super::*;

    #[tokio::test]
    async fn an_open_answer_ends_in_etcds_words_after_what_was_ready() {
        let service = GrpcService::new(tower::service_fn(|_: Request<Body>| async {
            let first = once(Ok::<_, Status>(Frame::data(Bytes::from_static(b"ready"))));
            Ok::<_, Infallible>(Response::new(Body::new(StreamBody::new(first.chain(pending())))))
        }));
        let stop = CancellationToken::new();
        let response = ending(service, stop.clone()).answer(Request::new(Body::empty())).await;
        let Ok(response) = response;
        stop.cancel();
        let answer = response.into_body().collect().await.expect("an orderly end");
        let status = Status::from_header_map(answer.trailers().expect("trailers")).expect("a status");
        assert_eq!(status.message(), "etcdserver: server stopped");
        assert_eq!(&answer.to_bytes()[..], b"ready");
    }
}
