//! [`Locals`]: all calls that the relay answers itself, etcd's and Lainlet's.

use http::{Request, Response};
use http_body_util::Either;

use super::{EtcdApi, EtcdBody, LainletApi, LainletBody, Local};
use crate::front::body::RequestBody;

/// See the module. Cloned for each request.
#[derive(Clone, Debug)]
pub struct Locals {
    /// etcd's.
    pub etcd: EtcdApi,
    /// Lainlet's.
    pub lainlet: LainletApi,
}

impl Local for Locals {
    type Body = Either<EtcdBody, LainletBody>;

    fn answers(&self, path: &str) -> bool {
        self.etcd.answers(path) || self.lainlet.answers(path)
    }

    async fn call(&self, request: Request<RequestBody>) -> Response<Self::Body> {
        if self.etcd.answers(request.uri().path()) {
            self.etcd.call(request).await.map(Either::Left)
        } else {
            // Boxed, because otherwise all calls would be as large.
            Box::pin(self.lainlet.call(request)).await.map(Either::Right)
        }
    }
}
