//! [`Header`]: who answered and where it stood, as etcd puts it into every response, and [`UpstreamHeader`], the newest one
//! seen, which the relay repeats to its own subscribers.
//!
//! Always holds: cluster id, member id and term are ones that an etcd member sent; they are never invented.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Revision;

/// etcd's `ResponseHeader`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The cluster that answered.
    pub cluster_id: u64,
    /// The member that answered.
    pub member_id: u64,
    /// The store revision when the answer was made.
    pub revision: Revision,
    /// The raft term of the member.
    pub raft_term: u64,
}

/// The identity part of the newest upstream header. Shared by all feeds and fronts; read on each delivery without a lock.
#[derive(Debug, Default)]
pub struct UpstreamHeader {
    cluster_id: AtomicU64,
    member_id: AtomicU64,
    raft_term: AtomicU64,
}

impl UpstreamHeader {
    /// Remembers who answered last.
    pub fn observe(&self, header: &Header) {
        self.cluster_id.store(header.cluster_id, Ordering::Relaxed);
        self.member_id.store(header.member_id, Ordering::Relaxed);
        self.raft_term.store(header.raft_term, Ordering::Relaxed);
    }

    /// The header of a response made now at `revision`.
    #[must_use]
    pub fn at(&self, revision: Revision) -> Header {
        Header {
            cluster_id: self.cluster_id.load(Ordering::Relaxed),
            member_id: self.member_id.load(Ordering::Relaxed),
            revision,
            raft_term: self.raft_term.load(Ordering::Relaxed),
        }
    }
}
