//! [`Directory`]: the directories in etcd that views are made from.
//!
//! Always holds: prefixes end with a slash, so that `/lain/config_backup/…` is not in `/lain/config/`.

use bytes::Bytes;

use crate::types::KeyRange;

/// A directory of LAIN in etcd. v3 has no directories, so this is a prefix that ends with a slash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Directory {
    /// The settings of the cluster.
    Config,
    /// The running processes: one value per process of each app.
    PodGroups,
    /// The processes that run for other apps: one value per portal.
    Depends,
    /// The machines.
    Nodes,
}

impl Directory {
    /// All directories.
    pub const ALL: [Self; 4] = [Self::Config, Self::PodGroups, Self::Depends, Self::Nodes];

    /// Lainlet's name for the directory, used in metrics, logs and `/debug`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::PodGroups => "podgroup",
            Self::Depends => "depends",
            Self::Nodes => "nodes",
        }
    }

    /// The prefix of its keys.
    #[must_use]
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Config => "/lain/config/",
            Self::PodGroups => "/lain/deployd/pod_groups/",
            Self::Depends => "/lain/deployd/depends/pods/",
            Self::Nodes => "/lain/nodes/nodes/",
        }
    }

    /// The range of its keys.
    #[must_use]
    pub fn range(self) -> KeyRange {
        KeyRange::prefix(Bytes::from_static(self.prefix().as_bytes()))
    }

    /// The part of a key after the prefix, called the cache key. `None` for a key outside the directory, or without
    /// such a part.
    #[must_use]
    pub fn cache_key(self, key: &Bytes) -> Option<Bytes> {
        let prefix = self.prefix().len();
        (key.len() > prefix && key.starts_with(self.prefix().as_bytes())).then(|| key.slice(prefix..))
    }
}
