//! [`V3`]: the calls to etcd that writes consist of.
//!
//! Always holds: each call has a timeout, and errors of etcd become errors of v2.

use std::time::Duration;

use http::{Extensions, HeaderMap, HeaderValue};
use tonic::{Code, Request, Status, metadata::MetadataValue};

use super::{answer::Refusal, time::Expiry};
use crate::{
    front::client::Client,
    hub::Asker,
    pb::etcdserverpb::{
        AuthenticateRequest, LeaseGrantRequest, LeaseRevokeRequest, MemberAddRequest, MemberAddResponse,
        MemberListRequest, MemberListResponse, MemberRemoveRequest, MemberUpdateRequest, StatusRequest, StatusResponse,
        TxnRequest, TxnResponse, auth_client::AuthClient, cluster_client::ClusterClient, kv_client::KvClient,
        lease_client::LeaseClient, maintenance_client::MaintenanceClient,
    },
    rpc::{Caller, GrpcService},
};

/// etcd's own timeout: its election timeout plus time for its disks.
const PATIENCE: Duration = Duration::from_secs(7);
/// How many seconds a lease lives longer than its key. The key is deleted when its time comes; the lease is the safety
/// net.
const SPARE: u64 = 10;
/// The same for a directory, a week. The end of its lease would delete only its mark, and nobody would know any more
/// that its content must be deleted. So the mark stays until there is a relay.
const DIRECTORY_SPARE: u64 = 7 * 24 * 3600;
/// The longest lease that etcd grants.
const LONGEST_LEASE: u64 = 9_000_000_000;
/// Attempts to find an unused lease id.
const ATTEMPTS: usize = 5;
/// The largest message that etcd sends.
const MAX_MESSAGE: usize = i32::MAX as usize;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct V3 {
    pub(super) calls: GrpcService,
    /// The token of an etcd user, if there are users.
    pub(super) token: Option<HeaderValue>,
    /// The client on whose behalf it is called.
    pub(super) asker: Asker,
    /// How many directories of the written path, from the top, the user may not read.
    pub(super) unseen: usize,
}

impl V3 {
    /// The same calls on behalf of the client of a request with these extensions.
    pub(super) fn of(&self, extensions: &Extensions) -> Self {
        let client = Client::of(&HeaderMap::new(), extensions);
        let asker = Asker { client: client.key(), connection: client.connection.map_or(0, |id| id.0) };
        Self { asker, ..self.clone() }
    }

    pub(super) async fn txn(&self, transaction: TxnRequest) -> Result<TxnResponse, Refusal> {
        let mut client = KvClient::new(self.calls.clone()).max_decoding_message_size(MAX_MESSAGE);
        within(client.txn(self.request(transaction))).await.map_err(refused)
    }

    /// Grants a lease that ends some time after `expiry`, which is encoded in its id.
    pub(super) async fn grant(&self, ttl: u64, expiry: Expiry, is_directory: bool) -> Result<i64, Refusal> {
        let spare = if is_directory { DIRECTORY_SPARE } else { SPARE };
        let ttl = ttl.saturating_add(spare).min(LONGEST_LEASE) as i64;
        let mut client = LeaseClient::new(self.calls.clone());
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let id = expiry.lease_id();
            match within(client.lease_grant(self.request(LeaseGrantRequest { ttl, id }))).await {
                Ok(_) => return Ok(id),
                Err(status) if status.message().contains("lease already exists") => last = Some(status),
                Err(status) => return Err(refused(status)),
            }
        }
        Err(last.map_or_else(|| Refusal::unavailable("etcd-relay: no lease"), refused))
    }

    /// Revokes a lease that no key has. If that fails, the lease ends by itself.
    pub(super) async fn revoke(&self, id: i64) {
        let mut client = LeaseClient::new(self.calls.clone());
        if let Err(error) = within(client.lease_revoke(self.request(LeaseRevokeRequest { id }))).await {
            tracing::debug!(%error, "Cannot revoke a lease without keys; it stays until it expires");
        }
    }

    pub(super) async fn members(&self) -> Result<MemberListResponse, Status> {
        let mut client = ClusterClient::new(self.calls.clone());
        within(client.member_list(self.request(MemberListRequest { linearizable: false }))).await
    }

    pub(super) async fn add_member(&self, peer_ur_ls: Vec<String>) -> Result<MemberAddResponse, Status> {
        let mut client = ClusterClient::new(self.calls.clone());
        within(client.member_add(self.request(MemberAddRequest { peer_ur_ls, is_learner: false }))).await
    }

    pub(super) async fn update_member(&self, id: u64, peer_ur_ls: Vec<String>) -> Result<(), Status> {
        let mut client = ClusterClient::new(self.calls.clone());
        within(client.member_update(self.request(MemberUpdateRequest { id, peer_ur_ls }))).await.map(drop)
    }

    pub(super) async fn remove_member(&self, id: u64) -> Result<(), Status> {
        let mut client = ClusterClient::new(self.calls.clone());
        within(client.member_remove(self.request(MemberRemoveRequest { id }))).await.map(drop)
    }

    pub(super) async fn status(&self) -> Result<StatusResponse, Status> {
        let mut client = MaintenanceClient::new(self.calls.clone());
        within(client.status(self.request(StatusRequest {}))).await
    }

    /// Requests a token for an etcd user.
    pub(super) async fn authenticate(&self, name: &str, password: &str) -> Result<HeaderValue, Refusal> {
        let mut client = AuthClient::new(self.calls.clone());
        let request = self.request(AuthenticateRequest { name: name.to_owned(), password: password.to_owned() });
        let token = within(client.authenticate(request)).await.map_err(refused)?.token;
        let token = HeaderValue::try_from(token);
        let mut token =
            token.map_err(|_| Refusal::unavailable("etcd-relay: etcd returned a token that cannot be sent back"))?;
        token.set_sensitive(true);
        Ok(token)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        Caller::of_client(self.asker.client).mark(request.extensions_mut());
        if let Some(token) = self.token.as_ref().and_then(|token| MetadataValue::try_from(token.as_bytes()).ok()) {
            request.metadata_mut().insert("authorization", token);
        }
        request
    }
}

async fn within<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::unavailable("etcdserver: request timed out")),
    }
}

/// Converts etcd's errors into those of v2. A client's error must not look like the server's, since clients would then
/// try every endpoint.
fn refused(status: Status) -> Refusal {
    let text = status.message().to_owned();
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated => Refusal::new(110, "Insufficient credentials"),
        Code::InvalidArgument if text.contains("user name is empty") || text.contains("authentication failed") => {
            Refusal::new(110, "Insufficient credentials")
        }
        Code::InvalidArgument | Code::ResourceExhausted | Code::OutOfRange => Refusal::new(210, text),
        _ => Refusal::unavailable(text),
    }
}
