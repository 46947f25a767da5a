//! A [`Pool`] as the channel on which etcd's client library sends its calls, and [`Answer`], the body of any call's
//! answer.
//!
//! Not here: calls that are passed through, see `forward`, which chooses among members. Always holds: an answer keeps
//! its place on the connection, and the guard of its request, until it has ended or is dropped.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use etcd_client::Channel;
use http::{
    Request, Response,
    uri::{PathAndQuery, Uri},
};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tonic::{Status, body::Body};
use tower::{BoxError, service_fn, util::BoxCloneSyncService};

use super::{Guard, Place, Pool, RequestBody, SendError};
use crate::{
    source::{Endpoint, causes::chain},
    types::ClientKey,
};

impl Pool {
    /// The pool as a channel for the relay's own calls through the client library.
    pub(in crate::source) fn channel(&self) -> Channel {
        let pool = self.clone();
        Channel::Custom(BoxCloneSyncService::new(service_fn(move |request: Request<Body>| {
            let pool = pool.clone();
            async move { pool.call(request).await.map_err(BoxError::from) }
        })))
    }

    async fn call(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let unavailable = |text: String| Status::unavailable(text);
        let (mut head, body) = request.into_parts();
        let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        head.uri = Self::uri(self.endpoint(), path);
        let (body, guard) = RequestBody::new(body);
        let mut request = Request::from_parts(head, body);
        // A connection that turns out to be closed says nothing about the member.
        let mut again = true;
        loop {
            let place = self.place(ClientKey::RELAY).await.map_err(|error| unavailable(error.to_string()))?;
            match place.send(request).await {
                Ok((response, place)) => {
                    return Ok(response.map(|body| Body::new(Answer::new(body, place, guard))));
                }
                Err(SendError::Unsent(unsent, _)) if std::mem::take(&mut again) => request = *unsent,
                Err(SendError::Unsent(_, error)) => return Err(unavailable(error.to_string())),
                Err(SendError::Broken(error)) => return Err(unavailable(chain(&error))),
            }
        }
    }

    /// The URI of a call to `path` at a member.
    pub(in crate::source) fn uri(endpoint: &Endpoint, path: PathAndQuery) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(endpoint.scheme());
        parts.authority = Some(endpoint.authority().clone());
        parts.path_and_query = Some(path);
        Uri::from_parts(parts).expect("scheme, authority and path make a URI")
    }
}

/// A member's answer.
pub(in crate::source) struct Answer {
    inner: Incoming,
    _place: Place,
    _guard: Guard,
}

impl Answer {
    pub(in crate::source) fn new(inner: Incoming, place: Place, guard: Guard) -> Self {
        Self { inner, _place: place, _guard: guard }
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
