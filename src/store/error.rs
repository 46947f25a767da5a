//! [`StoreError`]: why the store refuses a request, in etcd's own words.
//!
//! Not here: status codes, which belong to the service. Always holds: the text is the one that an etcd member sends.

use thiserror::Error;

/// A request that the store refuses.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreError {
    /// The key is empty.
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// A put keeps the value or lease of a key that does not exist, or a transaction has an operation without content.
    #[error("etcdserver: key not found")]
    KeyNotFound,
    /// A put both keeps the value and sends one.
    #[error("etcdserver: value is provided")]
    ValueProvided,
    /// A put both keeps the lease and names one.
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    /// A sort order or target that the protocol does not know.
    #[error("etcdserver: invalid sort option")]
    InvalidSortOption,
    /// A transaction is larger than etcd's default `--max-txn-ops`.
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    /// A transaction changes a key twice.
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    /// The request is larger than etcd's default `--max-request-bytes`.
    #[error("etcdserver: request is too large")]
    RequestTooLarge,
    /// The revision is compacted.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    /// The revision is in the future.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    /// The store is full: delete keys, or give it a larger
    /// [`StoreConfig::quota_bytes`](super::StoreConfig::quota_bytes).
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    /// There is no such lease.
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    /// The chosen lease id is in use.
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    /// More seconds than a lease may last.
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
}
