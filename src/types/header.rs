//! [`Header`]: who answered and at which revision, as etcd puts it into every response; [`Cluster`], one cluster as it
//! appears in headers; and [`UpstreamHeader`], the cluster that answered last.
//!
//! The content of a feed is served under the name of the cluster that it came from, so feeds, their snapshots and their
//! entries hold a [`Cluster`]. Always holds: cluster id, member id and term were sent by an etcd member; the relay
//! never invents them.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering},
};

use arc_swap::ArcSwap;

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

impl Header {
    /// Nobody's.
    pub const NONE: Self = Self { cluster_id: 0, member_id: 0, revision: Revision::ZERO, raft_term: 0 };
}

/// One cluster as it appears in headers: its id, which never changes, and the member and term that were seen last.
#[derive(Debug, Default)]
pub struct Cluster {
    id: u64,
    member_id: AtomicU64,
    raft_term: AtomicU64,
    /// The highest revision that any header named.
    newest: AtomicI64,
}

impl Cluster {
    /// The cluster that sent `header`.
    #[must_use]
    pub fn of(header: &Header) -> Self {
        Self {
            id: header.cluster_id,
            member_id: AtomicU64::new(header.member_id),
            raft_term: AtomicU64::new(header.raft_term),
            newest: AtomicI64::new(header.revision.get()),
        }
    }

    /// Its id; zero for a feed that has not read anything yet.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The newest revision that the cluster is known to have. Members put only revisions that the cluster has agreed on
    /// into headers.
    fn newest(&self) -> Revision {
        Revision::new(self.newest.load(Ordering::Relaxed))
    }

    /// Remembers which member answered last. Returns false, and remembers nothing, if the header is from another
    /// cluster.
    #[must_use]
    pub fn observe(&self, header: &Header) -> bool {
        let same = header.cluster_id == self.id;
        if same {
            self.member_id.store(header.member_id, Ordering::Relaxed);
            self.raft_term.store(header.raft_term, Ordering::Relaxed);
            self.newest.fetch_max(header.revision.get(), Ordering::Relaxed);
        }
        same
    }

    /// The header of a response that is made now from what this cluster had at `revision`.
    #[must_use]
    pub fn at(&self, revision: Revision) -> Header {
        Header {
            cluster_id: self.id,
            member_id: self.member_id.load(Ordering::Relaxed),
            revision,
            raft_term: self.raft_term.load(Ordering::Relaxed),
        }
    }
}

/// What a header is made from when its response is written. It is a third of a header's size, which matters when many
/// responses wait.
#[derive(Clone, Debug, Default)]
pub struct Stamp {
    /// The cluster that the response comes from.
    pub cluster: Arc<Cluster>,
    /// The revision of its store.
    pub revision: Revision,
}

impl Stamp {
    /// The header.
    #[must_use]
    pub fn header(&self) -> Header {
        self.cluster.at(self.revision)
    }
}

/// The cluster that answered last. Feeds that follow the same cluster share it, and responses that concern no feed
/// carry its header.
#[derive(Debug, Default)]
pub struct UpstreamHeader {
    newest: ArcSwap<Cluster>,
}

impl UpstreamHeader {
    /// Remembers who answered last, and returns that cluster.
    pub fn observe(&self, header: &Header) -> Arc<Cluster> {
        let newest = self.newest.load();
        if newest.observe(header) {
            return newest.clone();
        }
        self.replace(header)
    }

    /// The same for the answer to a request that was made while `asked` was the newest. If the cluster has begun again
    /// since then, the answer may be from before that, and its revision does not count.
    pub fn observe_since(&self, asked: &Arc<Cluster>, header: &Header) -> Arc<Cluster> {
        let newest = self.newest.load();
        let began_again = asked.id == header.cluster_id && newest.id == asked.id && !Arc::ptr_eq(asked, &newest);
        if began_again { newest.clone() } else { self.observe(header) }
    }

    /// Who answered last.
    #[must_use]
    pub fn newest(&self) -> Arc<Cluster> {
        self.newest.load_full()
    }

    /// The cluster went back to what `header` says, or is another cluster. Newer revisions that were known before no
    /// longer count.
    pub fn begin_again(&self, header: &Header) -> Arc<Cluster> {
        let newest = self.newest.load();
        if newest.newest() <= header.revision && newest.observe(header) {
            // Another caller found out first.
            return newest.clone();
        }
        self.replace(header)
    }

    fn replace(&self, header: &Header) -> Arc<Cluster> {
        let another = Arc::new(Cluster::of(header));
        self.newest.store(another.clone());
        another
    }

    /// The newest revision that this cluster is known to have; zero if another cluster answered last.
    #[must_use]
    pub fn newest_of(&self, cluster_id: u64) -> Revision {
        let newest = self.newest.load();
        if newest.id == cluster_id { newest.newest() } else { Revision::ZERO }
    }

    /// The header of a response that concerns no feed.
    #[must_use]
    pub fn at(&self, revision: Revision) -> Header {
        self.newest.load().at(revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(cluster_id: u64, raft_term: u64) -> Header {
        Header { cluster_id, raft_term, member_id: 7, revision: Revision::new(3) }
    }

    #[test]
    fn what_came_from_a_cluster_keeps_its_name_when_another_one_answers() {
        let upstream = UpstreamHeader::default();
        let first = upstream.observe(&header(1, 2));
        assert!(Arc::ptr_eq(&first, &upstream.observe(&header(1, 3))), "headers of one cluster share it");
        let second = upstream.observe(&header(2, 9));
        let at = Revision::new(5);
        assert_eq!(first.at(at), Header { revision: at, ..header(1, 3) });
        assert_eq!(second.at(at), Header { revision: at, ..header(2, 9) });
        assert_eq!(upstream.at(at), second.at(at));
        assert!(!first.observe(&header(2, 11)));
        assert_eq!(first.at(at).raft_term, 3);
    }

    #[test]
    fn the_newest_revision_of_a_cluster_falls_only_when_it_begins_again() {
        let at = |revision| Header { revision: Revision::new(revision), ..header(1, 2) };
        let upstream = UpstreamHeader::default();
        let cluster = upstream.observe(&at(7));
        upstream.observe(&at(9));
        // From a member that is behind.
        upstream.observe(&at(4));
        assert_eq!(upstream.newest_of(1), Revision::new(9));
        let back = upstream.begin_again(&at(4));
        assert_eq!(upstream.newest_of(1), Revision::new(4));
        assert!(Arc::ptr_eq(&back, &upstream.begin_again(&at(5))), "feeds that follow the same cluster share it");
        // Asked before, and answered before, but heard only now.
        upstream.observe_since(&cluster, &at(9));
        assert_eq!(upstream.newest_of(1), Revision::new(5));
        upstream.observe_since(&back, &at(6));
        assert_eq!(upstream.newest_of(1), Revision::new(6));
        assert!(!cluster.observe(&Header { revision: Revision::new(50), ..header(2, 2) }));
        assert_eq!(upstream.newest_of(2), Revision::ZERO, "nothing is known of another cluster");
    }
}
