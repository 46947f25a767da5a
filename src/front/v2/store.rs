//! [`V3`]: the calls to etcd that writes are made of.
//!
//! Not here: what they mean. Always holds: a call has an end, and an error of etcd's is one of v2's.

use std::time::Duration;

use http::{Extensions, HeaderMap, HeaderValue};
use tonic::{Code, Request, Status, metadata::MetadataValue};

use super::{answer::Refusal, time::Expiry};
use crate::{
    front::{client::Client, grpc::GrpcService},
    hub::Asker,
    pb::etcdserverpb::{
        AuthenticateRequest, LeaseGrantRequest, LeaseRevokeRequest, MemberAddRequest, MemberAddResponse,
        MemberListRequest, MemberListResponse, MemberRemoveRequest, MemberUpdateRequest, StatusRequest, StatusResponse,
        TxnRequest, TxnResponse, auth_client::AuthClient, cluster_client::ClusterClient, kv_client::KvClient,
        lease_client::LeaseClient, maintenance_client::MaintenanceClient,
    },
};

/// How long etcd may take, as in etcd itself: its own election timeout and what its disks may take.
const PATIENCE: Duration = Duration::from_secs(7);
/// By how many seconds a lease outlives its key: the key is deleted when its time comes, and the lease is the safety net.
const SPARE: u64 = 10;
/// The same for a directory. Its lease would end its mark alone, and nobody would know any more that what is in it is to go: so the mark stays
/// until there is a relay, for a week.
const DIRECTORY_SPARE: u64 = 7 * 24 * 3600;
/// The longest lease that etcd grants.
const LONGEST_LEASE: u64 = 9_000_000_000;
/// Attempts to find a lease id that nobody has.
const ATTEMPTS: usize = 5;
/// The largest message that etcd sends.
const MAX_MESSAGE: usize = i32::MAX as usize;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct V3 {
    pub(super) calls: GrpcService,
    /// That of a user of etcd's, where there are users.
    pub(super) token: Option<HeaderValue>,
    /// On whose behalf it is called.
    pub(super) asker: Asker,
    /// How many directories on the way to what is written, from the top, the user may not look at.
    pub(super) unseen: usize,
}

impl V3 {
    /// The same on behalf of the client that sent a request with these extensions.
    pub(super) fn of(&self, extensions: &Extensions) -> Self {
        let client = Client::of(&HeaderMap::new(), extensions);
        let asker = Asker { client: client.key(), connection: client.connection.map_or(0, |id| id.0) };
        Self { asker, ..self.clone() }
    }

    pub(super) async fn txn(&self, transaction: TxnRequest) -> Result<TxnResponse, Refusal> {
        let mut client = KvClient::new(self.calls.clone()).max_decoding_message_size(MAX_MESSAGE);
        within(client.txn(self.request(transaction))).await.map_err(refused)
    }

    /// A lease for a key or a directory that ends some time after `expiry`, and says it by its id.
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

    /// Revokes a lease that no key has. If that fails, it ends by itself.
    pub(super) async fn revoke(&self, id: i64) {
        let mut client = LeaseClient::new(self.calls.clone());
        if let Err(error) = within(client.lease_revoke(self.request(LeaseRevokeRequest { id }))).await {
            tracing::debug!(%error, "A lease without keys stays until its end");
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

    /// A token for a user of etcd's.
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
        request.extensions_mut().insert(self.asker.client);
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

/// etcd's errors as v2 reports them. A client's own fault must not look like the server's: clients would try every endpoint.
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
