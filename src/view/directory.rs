//! [`Directory`]: the places in etcd that views are made of.
//!
//! Always holds: prefixes end with a slash, so that `/lain/config_backup/…` is not in `/lain/config/`.

use bytes::Bytes;

use crate::types::KeyRange;

/// A directory of LAIN's in etcd. v3 has no directories: it is a prefix, with its last slash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Directory {
    /// Settings of the cluster.
    Config,
    /// What runs: a value for each process of each app.
    PodGroups,
    /// What runs on behalf of other apps: a value for each portal.
    Depends,
    /// The machines.
    Nodes,
}

impl Directory {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Config, Self::PodGroups, Self::Depends, Self::Nodes];

    /// Lainlet's name for it, for metrics, logs and `/debug`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::PodGroups => "podgroup",
            Self::Depends => "depends",
            Self::Nodes => "nodes",
        }
    }

    /// The keys' prefix.
    #[must_use]
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Config => "/lain/config/",
            Self::PodGroups => "/lain/deployd/pod_groups/",
            Self::Depends => "/lain/deployd/depends/pods/",
            Self::Nodes => "/lain/nodes/nodes/",
        }
    }

    /// The keys.
    #[must_use]
    pub fn range(self) -> KeyRange {
        KeyRange::prefix(Bytes::from_static(self.prefix().as_bytes()))
    }

    /// What is left of a key behind the prefix: the cache key. `None` for a key that is not in here, or has nothing there.
    #[must_use]
    pub fn cache_key(self, key: &Bytes) -> Option<Bytes> {
        let prefix = self.prefix().len();
        (key.len() > prefix && key.starts_with(self.prefix().as_bytes())).then(|| key.slice(prefix..))
    }
}
