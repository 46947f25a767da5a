//! [`MemberVersion`]: what an etcd member answers at `/version`, by which clients choose features.

use serde::{Deserialize, Serialize};

/// The version of an etcd member and the one that its whole cluster keeps to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberVersion {
    /// The member's own, such as `3.5.16`.
    pub etcdserver: String,
    /// The cluster's, such as `3.5.0`.
    pub etcdcluster: String,
}
