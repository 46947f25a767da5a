//! Calls about a member rather than its data: Status, Alarm, MemberList, AuthStatus, Authenticate.
//!
//! The store is a cluster of one member, without alarms and without authentication. Not here: calls that would change
//! that; they are refused by name.

use tonic::{Request, Response, Status, async_trait};

use super::ETCD_API_VERSION;
use crate::{
    pb::etcdserverpb::{
        AlarmRequest, AlarmResponse, AuthStatusRequest, AuthStatusResponse, AuthenticateRequest, AuthenticateResponse,
        Member, MemberListRequest, MemberListResponse, StatusRequest, StatusResponse, alarm_request::AlarmAction,
        auth_server::Auth, cluster_server::Cluster, maintenance_server::Maintenance,
    },
    store::{Store, convert},
};

/// The name of the only member.
const MEMBER_NAME: &str = "embedded";
/// etcd's auth revision as long as nothing was changed.
const FIRST_AUTH_REVISION: u64 = 1;

#[async_trait]
impl Maintenance for Store {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let header = self.header();
        let (live, log) = self.sizes();
        // There is no raft log: each revision counts as one entry that was committed and applied.
        let index = header.revision.get().unsigned_abs();
        Ok(Response::new(StatusResponse {
            header: Some(convert::header(header)),
            version: ETCD_API_VERSION.to_owned(),
            db_size: (live + log) as i64,
            db_size_in_use: live as i64,
            leader: header.member_id,
            raft_index: index,
            raft_applied_index: index,
            raft_term: header.raft_term,
            ..StatusResponse::default()
        }))
    }

    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        if request.get_ref().action == AlarmAction::Activate as i32 {
            return Err(Status::unimplemented(
                "etcd-relay: the embedded store does not serve Maintenance.Alarm to raise an alarm",
            ));
        }
        Ok(Response::new(AlarmResponse { header: Some(convert::header(self.header())), alarms: Vec::new() }))
    }
}

#[async_trait]
impl Cluster for Store {
    async fn member_list(&self, _: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        let header = self.header();
        let member = Member {
            id: header.member_id,
            name: MEMBER_NAME.to_owned(),
            client_ur_ls: self.client_urls().to_vec(),
            ..Member::default()
        };
        Ok(Response::new(MemberListResponse { header: Some(convert::header(header)), members: vec![member] }))
    }
}

#[async_trait]
impl Auth for Store {
    async fn auth_status(&self, _: Request<AuthStatusRequest>) -> Result<Response<AuthStatusResponse>, Status> {
        let header = Some(convert::header(self.header()));
        Ok(Response::new(AuthStatusResponse { header, enabled: false, auth_revision: FIRST_AUTH_REVISION }))
    }

    /// Clients with a user name and a password make this call first; the answer makes them continue without.
    async fn authenticate(&self, _: Request<AuthenticateRequest>) -> Result<Response<AuthenticateResponse>, Status> {
        Err(Status::failed_precondition("etcdserver: authentication is not enabled"))
    }
}
