//! [`GrpcPort`]: passes each request on the gRPC port to the service that answers it.

use std::{convert::Infallible, future::Future, pin::Pin};

use axum::Router;
use futures_util::TryFutureExt as _;
use http::{Extensions, HeaderMap, Request, Response, StatusCode, Version, header};
use tonic::body::Body;
use tower::ServiceExt as _;

use crate::front::{
    body::{BoxError, PortBody, RequestBody},
    gateway::Gateway,
    listen::Connected,
    order,
};
use crate::rpc::GrpcService;

/// Calls that the relay answers itself, from memory. It is cloned for each call, so cloning must be cheap.
pub trait Local: Clone + Send + Sync + 'static {
    /// The body of the answers. Its buffers go to the connection as they are.
    type Body: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static;

    /// Whether it answers calls to this path, such as `/etcdserverpb.Watch/Watch`.
    fn answers(&self, path: &str) -> bool;

    /// Answers a call. Errors are gRPC statuses in the response.
    fn call(&self, request: Request<RequestBody>) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// All services on the gRPC port.
#[derive(Clone, Debug)]
pub struct GrpcPort<L> {
    /// Calls answered from memory.
    pub local: L,
    /// Calls answered by upstream.
    pub forward: GrpcService,
    /// `grpc.health.v1`.
    pub health: GrpcService,
    /// `grpc.reflection`.
    pub reflection: GrpcService,
    /// The same calls as JSON, at `/v3/…`.
    pub gateway: Gateway,
    /// Other requests that are not gRPC.
    pub member: Router,
}

impl<L: Local> GrpcPort<L> {
    /// Answers requests that neither `local` answers nor upstream.
    async fn pass(self, request: Request<RequestBody>) -> Response<PortBody<L::Body>> {
        if !is_grpc(request.headers()) {
            if Gateway::serves(request.uri().path()) {
                // Boxed, because otherwise forwarded calls would be as large.
                let answer = Box::pin(self.gateway.answer(request, self.local, self.forward));
                return answer.await;
            }
            let Ok(response) = self.member.oneshot(request).await;
            return response.map(|body| PortBody::Plain(Body::new(body)));
        }
        if request.version() != Version::HTTP_2 {
            return needs_http2();
        }
        let path = request.uri().path();
        let service = if path.starts_with("/grpc.health.v1.Health/") { self.health } else { self.reflection };
        let Ok(response) = service.answer(request.map(Body::new)).await;
        response.map(PortBody::Plain)
    }
}

impl<L: Local> hyper::service::Service<Request<RequestBody>> for GrpcPort<L> {
    type Response = Response<PortBody<L::Body>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<RequestBody>) -> Self::Future {
        // Most calls are local, and need nothing of the other services.
        if self.local.answers(request.uri().path()) && is_call(&request) {
            let local = self.local.clone();
            return Box::pin(async move { Ok(local.call(request).await.map(PortBody::Local)) });
        }
        // So are most others forwarded.
        if is_call(&request) && !is_special(request.uri().path()) {
            if let Some(order) = order::ahead_of(&request) {
                let forward = self.forward.clone();
                return Box::pin(async move {
                    let mut request = order::hold(order, request).await.map(Body::new);
                    mark_client(request.extensions_mut());
                    let Ok(response) = forward.answer(request).await;
                    Ok(response.map(PortBody::Plain))
                });
            }
            let mut request = request.map(Body::new);
            mark_client(request.extensions_mut());
            return Box::pin(self.forward.answer(request).map_ok(|response| response.map(PortBody::Plain)));
        }
        let port = self.clone();
        Box::pin(async move { Ok(port.pass(request).await) })
    }
}

/// Whether a request is a gRPC call over HTTP/2.
fn is_call<B>(request: &Request<B>) -> bool {
    is_grpc(request.headers()) && request.version() == Version::HTTP_2
}

/// Whether the path is one of the relay's own services.
fn is_special(path: &str) -> bool {
    path.starts_with("/grpc.health.v1.Health/") || path.starts_with("/grpc.reflection.")
}

/// Whether a request is a gRPC call: content type `application/grpc`, alone or followed by a message format or
/// parameters.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

/// Adds the [`crate::rpc::Caller`] for the code that forwards the call.
pub(in crate::front) fn mark_client(extensions: &mut Extensions) {
    if let Some(caller) = Connected::of(extensions).map(|connected| connected.caller.clone()) {
        caller.mark(extensions);
    }
}

fn needs_http2<B: http_body::Body>() -> Response<PortBody<B>> {
    let text =
        "gRPC needs HTTP/2; this request came over HTTP/1.1. Is a proxy in between that does not pass HTTP/2 on?\n";
    let mut response = Response::new(PortBody::Plain(Body::new(http_body_util::Full::from(text))));
    *response.status_mut() = StatusCode::HTTP_VERSION_NOT_SUPPORTED;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        front::{listen::ConnectionId, order::Order},
        rpc::Caller,
        types::ClientKey,
    };

    #[test]
    fn a_forwarded_call_is_charged_to_the_client_of_its_connection() {
        let mut extensions = Extensions::new();
        let connected = Connected::for_tests(ConnectionId(1), "10.0.0.1:1", Order::new());
        let client = connected.addr.key();
        extensions.insert(connected);
        assert_eq!(Caller::client_of(&extensions), ClientKey::RELAY);
        mark_client(&mut extensions);
        assert_eq!(Caller::client_of(&extensions), client);
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (value, want) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().expect("a header value"));
            assert_eq!(is_grpc(&headers), want, "{value}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
