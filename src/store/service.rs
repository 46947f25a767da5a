//! The store's gRPC services: the calls that a relay on the embedded store forwards for its clients.
//!
//! Served: `KV` except RangeStream; `Lease`; Status and Alarm of `Maintenance`; MemberList of `Cluster`; AuthStatus and
//! Authenticate of `Auth`. Not here: `Watch`, which the relay serves itself. Every other method is refused by name.
//! Always holds: codes and texts of errors are etcd's.

mod kv;
mod lease;
mod member;

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use futures_util::future::{Either, Ready, ready};
use http::{Request, Response};
use tonic::{Code, Status, body::Body, service::Routes};
use tower::Service;

use super::{Store, StoreError};
use crate::{
    pb::etcdserverpb::{
        auth_server::AuthServer, cluster_server::ClusterServer, kv_server::KvServer, lease_server::LeaseServer,
        maintenance_server::MaintenanceServer,
    },
    rpc::GrpcService,
};

/// The etcd release whose API the store implements, and the version in its status.
pub const ETCD_API_VERSION: &str = "3.5.16";

/// The methods that are served.
pub(super) const SERVED: [&str; 15] = [
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.KV/Put",
    "/etcdserverpb.KV/DeleteRange",
    "/etcdserverpb.KV/Txn",
    "/etcdserverpb.KV/Compact",
    "/etcdserverpb.Lease/LeaseGrant",
    "/etcdserverpb.Lease/LeaseRevoke",
    "/etcdserverpb.Lease/LeaseKeepAlive",
    "/etcdserverpb.Lease/LeaseTimeToLive",
    "/etcdserverpb.Lease/LeaseLeases",
    "/etcdserverpb.Maintenance/Status",
    "/etcdserverpb.Maintenance/Alarm",
    "/etcdserverpb.Cluster/MemberList",
    "/etcdserverpb.Auth/AuthStatus",
    "/etcdserverpb.Auth/Authenticate",
];
/// The largest message that is accepted, as by an etcd member: `--max-request-bytes` and 512 KiB.
const MAX_MESSAGE_BYTES: usize = 2 << 20;

impl Store {
    /// The services of this store. Other methods answer Unimplemented, with the method's name in the message.
    #[must_use]
    pub fn forward_service(&self) -> GrpcService {
        let routes = Routes::new(KvServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES))
            .add_service(LeaseServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES))
            .add_service(MaintenanceServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES))
            .add_service(ClusterServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES))
            .add_service(AuthServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES))
            .prepare();
        GrpcService::new(ServedOnly { routes })
    }
}

/// Lets only the served methods through.
#[derive(Clone)]
struct ServedOnly {
    routes: Routes,
}

impl Service<Request<Body>> for ServedOnly {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response<Body>, Infallible>>, <Routes as Service<Request<Body>>>::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        <Routes as Service<Request<Body>>>::poll_ready(&mut self.routes, cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        if SERVED.contains(&path) {
            Either::Right(self.routes.call(request))
        } else {
            Either::Left(ready(Ok(refusal(path).into_http())))
        }
    }
}

/// `/etcdserverpb.KV/Range` is called `KV.Range`.
fn refusal(path: &str) -> Status {
    let method = path.trim_start_matches('/').replace('/', ".");
    let method = method.strip_prefix("etcdserverpb.").unwrap_or(&method);
    // The path comes from the client. If it is longer than any method's, it is not repeated in full.
    let method: String = method.chars().take(100).collect();
    Status::unimplemented(format!("etcd-relay: the embedded store does not serve {method}"))
}

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Self {
        let code = match error {
            StoreError::EmptyKey
            | StoreError::KeyNotFound
            | StoreError::ValueProvided
            | StoreError::LeaseProvided
            | StoreError::InvalidSortOption
            | StoreError::TooManyOps
            | StoreError::DuplicateKey
            | StoreError::RequestTooLarge => Code::InvalidArgument,
            StoreError::Compacted | StoreError::FutureRevision | StoreError::LeaseTtlTooLarge => Code::OutOfRange,
            StoreError::NoSpace => Code::ResourceExhausted,
            StoreError::LeaseNotFound => Code::NotFound,
            StoreError::LeaseExists => Code::FailedPrecondition,
        };
        Self::new(code, error.to_string())
    }
}
