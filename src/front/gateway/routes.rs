//! The paths of etcd's JSON gateway with their gRPC calls. etcd 3.5 and 3.6 have the same ones.
//!
//! Always holds: a path is served only for POST.

/// A path, and the name of its call in gRPC.
const ROUTES: &[(&str, &str)] = &[
    ("/v3/kv/range", "/etcdserverpb.KV/Range"),
    ("/v3/kv/put", "/etcdserverpb.KV/Put"),
    ("/v3/kv/deleterange", "/etcdserverpb.KV/DeleteRange"),
    ("/v3/kv/txn", "/etcdserverpb.KV/Txn"),
    ("/v3/kv/compaction", "/etcdserverpb.KV/Compact"),
    ("/v3/watch", "/etcdserverpb.Watch/Watch"),
    ("/v3/lease/grant", "/etcdserverpb.Lease/LeaseGrant"),
    ("/v3/lease/revoke", "/etcdserverpb.Lease/LeaseRevoke"),
    ("/v3/lease/keepalive", "/etcdserverpb.Lease/LeaseKeepAlive"),
    ("/v3/lease/timetolive", "/etcdserverpb.Lease/LeaseTimeToLive"),
    ("/v3/lease/leases", "/etcdserverpb.Lease/LeaseLeases"),
    ("/v3/kv/lease/revoke", "/etcdserverpb.Lease/LeaseRevoke"),
    ("/v3/kv/lease/timetolive", "/etcdserverpb.Lease/LeaseTimeToLive"),
    ("/v3/kv/lease/leases", "/etcdserverpb.Lease/LeaseLeases"),
    ("/v3/lock/lock", "/v3lockpb.Lock/Lock"),
    ("/v3/lock/unlock", "/v3lockpb.Lock/Unlock"),
    ("/v3/election/campaign", "/v3electionpb.Election/Campaign"),
    ("/v3/election/proclaim", "/v3electionpb.Election/Proclaim"),
    ("/v3/election/leader", "/v3electionpb.Election/Leader"),
    ("/v3/election/observe", "/v3electionpb.Election/Observe"),
    ("/v3/election/resign", "/v3electionpb.Election/Resign"),
    ("/v3/cluster/member/add", "/etcdserverpb.Cluster/MemberAdd"),
    ("/v3/cluster/member/remove", "/etcdserverpb.Cluster/MemberRemove"),
    ("/v3/cluster/member/update", "/etcdserverpb.Cluster/MemberUpdate"),
    ("/v3/cluster/member/list", "/etcdserverpb.Cluster/MemberList"),
    ("/v3/cluster/member/promote", "/etcdserverpb.Cluster/MemberPromote"),
    ("/v3/maintenance/alarm", "/etcdserverpb.Maintenance/Alarm"),
    ("/v3/maintenance/status", "/etcdserverpb.Maintenance/Status"),
    ("/v3/maintenance/defragment", "/etcdserverpb.Maintenance/Defragment"),
    ("/v3/maintenance/hash", "/etcdserverpb.Maintenance/Hash"),
    ("/v3/maintenance/hashkv", "/etcdserverpb.Maintenance/HashKV"),
    ("/v3/maintenance/snapshot", "/etcdserverpb.Maintenance/Snapshot"),
    ("/v3/maintenance/transfer-leadership", "/etcdserverpb.Maintenance/MoveLeader"),
    ("/v3/maintenance/downgrade", "/etcdserverpb.Maintenance/Downgrade"),
    ("/v3/auth/enable", "/etcdserverpb.Auth/AuthEnable"),
    ("/v3/auth/disable", "/etcdserverpb.Auth/AuthDisable"),
    ("/v3/auth/status", "/etcdserverpb.Auth/AuthStatus"),
    ("/v3/auth/authenticate", "/etcdserverpb.Auth/Authenticate"),
    ("/v3/auth/user/add", "/etcdserverpb.Auth/UserAdd"),
    ("/v3/auth/user/get", "/etcdserverpb.Auth/UserGet"),
    ("/v3/auth/user/list", "/etcdserverpb.Auth/UserList"),
    ("/v3/auth/user/delete", "/etcdserverpb.Auth/UserDelete"),
    ("/v3/auth/user/changepw", "/etcdserverpb.Auth/UserChangePassword"),
    ("/v3/auth/user/grant", "/etcdserverpb.Auth/UserGrantRole"),
    ("/v3/auth/user/revoke", "/etcdserverpb.Auth/UserRevokeRole"),
    ("/v3/auth/role/add", "/etcdserverpb.Auth/RoleAdd"),
    ("/v3/auth/role/get", "/etcdserverpb.Auth/RoleGet"),
    ("/v3/auth/role/list", "/etcdserverpb.Auth/RoleList"),
    ("/v3/auth/role/delete", "/etcdserverpb.Auth/RoleDelete"),
    ("/v3/auth/role/grant", "/etcdserverpb.Auth/RoleGrantPermission"),
    ("/v3/auth/role/revoke", "/etcdserverpb.Auth/RoleRevokePermission"),
];

/// Whether the gateway answers requests to a path, if only with a redirect to the clean path. A client whose base
/// address ends in a slash posts to `//v3/…`.
pub(super) fn of_gateway(path: &str) -> bool {
    let below = |path: &str| path == "/v3" || path.starts_with("/v3/") || path.starts_with("/v3beta/");
    let unclean = path.contains("//") || path.contains("/.");
    below(path) || unclean && cleaned(path).is_some_and(|clean| below(&clean))
}

/// All calls by their gRPC names.
pub(super) fn calls() -> impl Iterator<Item = &'static str> {
    ROUTES.iter().map(|(_, call)| *call)
}

/// The path as Go's server cleans it, if that changes it: without empty parts, `.` and `..`, and `/v3/` for `/v3`.
pub(super) fn cleaned(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    let mut clean = format!("/{}", parts.join("/"));
    let names_folder = path.ends_with('/') || clean == "/v3";
    if names_folder && !clean.ends_with('/') {
        clean.push('/');
    }
    (clean != path).then_some(clean)
}

/// The call of a path.
pub(super) fn call(path: &str) -> Option<&'static str> {
    ROUTES.iter().find(|(known, _)| *known == path).map(|(_, call)| *call)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unclean_paths_of_the_gateway_belong_to_it() {
        for path in
            ["/v3", "/v3/kv/range", "/v3/nope", "/v3beta/kv/range", "//v3/kv/range", "/./v3/", "/x/../v3/kv/put"]
        {
            assert!(of_gateway(path), "{path}");
        }
        for path in ["/", "//", "/health", "//health", "/v3x", "/v2/keys", "/.v3/kv", "/v2/keys//v3/a", "/x/v3/../kv"] {
            assert!(!of_gateway(path), "{path}");
        }
    }

    #[test]
    fn a_path_is_cleaned_as_go_cleans_it() {
        for (path, clean) in [
            ("/v3", "/v3/"),
            ("/v3//kv/range", "/v3/kv/range"),
            ("/v3/./kv/../kv/range", "/v3/kv/range"),
            ("/v3/kv/range//", "/v3/kv/range/"),
            ("/v3/../../health", "/health"),
        ] {
            assert_eq!(cleaned(path).as_deref(), Some(clean), "{path}");
        }
        for path in ["/v3/kv/range", "/v3/kv/range/", "/v3/"] {
            assert_eq!(cleaned(path), None, "{path}");
        }
    }
}
