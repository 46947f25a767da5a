//! A [`Pool`] as the channel on which etcd's client library sends its calls.
//!
//! Not here: calls that are passed through, see `forward`, which chooses among members. Always holds: a call that may
//! have been sent is not sent again.

use etcd_client::Channel;
use http::{
    Request, Response,
    uri::{PathAndQuery, Uri},
};
use tonic::{Status, body::Body};
use tower::{BoxError, service_fn, util::BoxCloneSyncService};

use super::{Answer, Head, Pool, SendError};
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
        let (head, body) = request.into_parts();
        let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let head = Head { method: &head.method, path: &path, headers: &head.headers };
        self.send(head, body).await.map(|answer| answer.map(Body::new))
    }

    /// Sends a call of the relay's own, and waits for the head of the answer. Cancel safe.
    pub(super) async fn send(&self, head: Head<'_>, mut body: Body) -> Result<Response<Answer>, Status> {
        let unavailable = |text: String| Status::unavailable(text);
        // A connection that turns out to be closed says nothing about the member.
        let mut again = true;
        loop {
            let place = self.place(ClientKey::RELAY).await.map_err(|error| unavailable(error.to_string()))?;
            match place.send(head, body).await {
                Ok(response) => return Ok(response),
                Err(SendError::Unsent(unsent, _)) if std::mem::take(&mut again) => body = unsent,
                Err(SendError::Unsent(_, error)) => return Err(unavailable(error.to_string())),
                Err(SendError::Broken(error)) => return Err(unavailable(chain(&error))),
            }
        }
    }
}

/// The URI of a call to `path` at a member.
pub(super) fn uri(endpoint: &Endpoint, path: PathAndQuery) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(endpoint.scheme());
    parts.authority = Some(endpoint.authority().clone());
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).expect("scheme, authority and path make a URI")
}
