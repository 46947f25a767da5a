//! Notices changes to users, roles and authentication that pass through this relay.
//!
//! Changes made elsewhere are found by the next check. Always holds: all earlier knowledge is dropped before the client
//! learns that its change succeeded.

use super::Access;
use crate::rpc::GrpcService;

/// Calls of etcd's `Auth` service that change nothing. Any other call may.
const READS: [&str; 6] = ["Authenticate", "AuthStatus", "UserGet", "UserList", "RoleGet", "RoleList"];

impl Access {
    /// Passes calls on to `forward`, and drops earlier knowledge after a call that may have changed permissions.
    #[must_use]
    pub fn noticing(&self, forward: GrpcService) -> GrpcService {
        let access = self.clone();
        GrpcService::passing(move |request| {
            if !changes(request.uri().path()) {
                return forward.answer(request);
            }
            let (access, answer) = (access.clone(), forward.answer(request));
            Box::pin(async move {
                let response = answer.await;
                // A failed call changes nothing, and its headers show the failure. So a client without permission
                // cannot trigger checks.
                let failed = |status: &http::HeaderValue| status.as_bytes() != b"0";
                if !response.as_ref().is_ok_and(|ok| ok.headers().get("grpc-status").is_some_and(failed)) {
                    access.doubt();
                }
                response
            })
        })
    }
}

fn changes(path: &str) -> bool {
    path.strip_prefix("/etcdserverpb.Auth/").is_some_and(|method| !READS.contains(&method))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_to_read_is_taken_for_a_change() {
        for path in ["AuthEnable", "AuthDisable", "UserRevokeRole", "RoleRevokePermission", "UserDelete", "Later"] {
            assert!(changes(&format!("/etcdserverpb.Auth/{path}")), "{path}");
        }
        for path in ["/etcdserverpb.Auth/Authenticate", "/etcdserverpb.Auth/UserGet", "/etcdserverpb.KV/Put", ""] {
            assert!(!changes(path), "{path}");
        }
    }
}
