//! [`MemberVersion`]: what an etcd member answers at `/version`. Clients choose features by it.

use serde::{Deserialize, Serialize};

/// The version of an etcd member, and the version that its whole cluster runs at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberVersion {
    /// The member's own version, such as `3.5.16`.
    pub etcdserver: String,
    /// The cluster's version, such as `3.5.0`.
    pub etcdcluster: String,
}
