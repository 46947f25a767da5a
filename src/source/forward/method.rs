//! [`Method`]: what the path of a call says about it, and [`timeout_in`], the deadline that its client set.
//!
//! Not here: what follows from it. Always holds: a method that is not known here is never sent twice.

use std::time::Duration;

use http::HeaderMap;

use crate::telemetry::names;

/// What the path of a call says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Method {
    pub(super) service: names::Service,
    /// The connections that it uses: those for calls that wait for something or have a long answer, or those for other
    /// calls.
    pub(super) lane: names::Lane,
    /// Whether it ends only when one side closes it.
    pub(super) endless: bool,
    /// Whether it may be sent twice without harm, because it only reads.
    pub(super) repeatable: bool,
    /// Whether it is a single proposal to the leader, which is answered as soon as it is applied.
    pub(super) proposes: bool,
    /// Whether it ends when its member is left. A request to one particular member, such as for its snapshot, does not.
    pub(super) leaves: bool,
}

impl Method {
    pub(super) fn of(path: &str) -> Self {
        let service = match path.strip_prefix('/').and_then(|path| path.split('/').next()) {
            Some("etcdserverpb.KV") => names::Service::Kv,
            Some("etcdserverpb.Watch") => names::Service::Watch,
            Some("etcdserverpb.Lease") => names::Service::Lease,
            Some("etcdserverpb.Cluster") => names::Service::Cluster,
            Some("etcdserverpb.Maintenance") => names::Service::Maintenance,
            Some("etcdserverpb.Auth") => names::Service::Auth,
            Some("v3lockpb.Lock") => names::Service::Lock,
            Some("v3electionpb.Election") => names::Service::Election,
            _ => names::Service::Other,
        };
        let endless = matches!(
            path,
            "/etcdserverpb.Watch/Watch" | "/etcdserverpb.Lease/LeaseKeepAlive" | "/v3electionpb.Election/Observe"
        );
        let waits = endless
            || service == names::Service::Other
            || matches!(
                path,
                "/etcdserverpb.Maintenance/Snapshot"
                    | "/etcdserverpb.Maintenance/Defragment"
                    | "/etcdserverpb.KV/RangeStream"
                    | "/v3lockpb.Lock/Lock"
                    | "/v3electionpb.Election/Campaign"
            );
        let repeatable = matches!(
            path,
            "/etcdserverpb.KV/Range"
                | "/etcdserverpb.Lease/LeaseTimeToLive"
                | "/etcdserverpb.Lease/LeaseLeases"
                | "/etcdserverpb.Cluster/MemberList"
                | "/etcdserverpb.Auth/AuthStatus"
                | "/etcdserverpb.Auth/UserGet"
                | "/etcdserverpb.Auth/UserList"
                | "/etcdserverpb.Auth/RoleGet"
                | "/etcdserverpb.Auth/RoleList"
        );
        let proposes = matches!(
            path,
            "/etcdserverpb.KV/Put"
                | "/etcdserverpb.KV/DeleteRange"
                | "/etcdserverpb.KV/Txn"
                | "/etcdserverpb.Lease/LeaseGrant"
                | "/etcdserverpb.Lease/LeaseRevoke"
        );
        let leaves = service != names::Service::Maintenance;
        Self {
            service,
            lane: if waits { names::Lane::Waiting } else { names::Lane::Calls },
            endless,
            repeatable,
            proposes,
            leaves,
        }
    }
}

/// The deadline that these headers set, counted from when the call began.
pub(super) fn timeout_in(headers: &HeaderMap) -> Option<Duration> {
    timeout(headers.get("grpc-timeout")?.to_str().ok()?)
}

/// Parses a `grpc-timeout`: up to eight digits and a unit.
fn timeout(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        for nonsense in ["", "S", "5", "5s", "-5S", "123456789S", "5é"] {
            assert_eq!(timeout(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn nothing_that_writes_is_sent_twice() {
        for path in ["KV/Put", "KV/Txn", "KV/DeleteRange", "Lease/LeaseGrant", "Auth/UserAdd", "Cluster/MemberAdd"] {
            assert!(!Method::of(&format!("/etcdserverpb.{path}")).repeatable, "{path}");
        }
        assert!(!Method::of("/v3lockpb.Lock/Lock").repeatable);
        assert!(Method::of("/etcdserverpb.KV/Range").repeatable);
    }
}
