//! [`Header`]: who answered and where it stood, as etcd puts it into every response; [`Cluster`], who speaks for a cluster; and
//! [`UpstreamHeader`], the cluster that answered last.
//!
//! What a feed has is shown under the name of the cluster that it came from, so feeds, their snapshots and their entries hold a
//! [`Cluster`]. Always holds: cluster id, member id and term are ones that an etcd member sent; they are never invented.

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

/// One cluster as it shows in headers: its id, which never changes, and the member and the term that were seen last.
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

    /// Its id; zero for that of a feed which has read nothing yet.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The newest revision that it is known to have. A member puts only revisions into headers that the cluster has agreed on.
    fn newest(&self) -> Revision {
        Revision::new(self.newest.load(Ordering::Relaxed))
    }

    /// Remembers which member answered last. False, and nothing, where the header is another cluster's.
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

    /// The header of a response made now of what this cluster had at `revision`.
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

/// What a header is made from when its response is written: a third of its size where many wait.
#[derive(Clone, Debug, Default)]
pub struct Stamp {
    /// The cluster that speaks.
    pub cluster: Arc<Cluster>,
    /// Where it stood.
    pub revision: Revision,
}

impl Stamp {
    /// The header.
    #[must_use]
    pub fn header(&self) -> Header {
        self.cluster.at(self.revision)
    }
}

/// The cluster that answered last: what feeds that follow the same one share, and who speaks where no feed is concerned.
#[derive(Debug, Default)]
pub struct UpstreamHeader {
    newest: ArcSwap<Cluster>,
}

impl UpstreamHeader {
    /// Remembers who answered last, and gives the cluster back.
    pub fn observe(&self, header: &Header) -> Arc<Cluster> {
        let newest = self.newest.load();
        if newest.observe(header) {
            return newest.clone();
        }
        self.replace(header)
    }

    /// The cluster went back to what `header` says, or is another one: nothing newer that was known of it counts.
    pub fn begin_again(&self, header: &Header) -> Arc<Cluster> {
        let newest = self.newest.load();
        if newest.newest() <= header.revision && newest.observe(header) {
            // Somebody else found out before.
            return newest.clone();
        }
        self.replace(header)
    }

    fn replace(&self, header: &Header) -> Arc<Cluster> {
        let another = Arc::new(Cluster::of(header));
        self.newest.store(another.clone());
        another
    }

    /// The newest revision that this cluster is known to have; zero where another one answered last.
    #[must_use]
    pub fn newest_of(&self, cluster_id: u64) -> Revision {
        let newest = self.newest.load();
        if newest.id == cluster_id { newest.newest() } else { Revision::ZERO }
    }

    /// The header of a response that is about no feed.
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
        assert!(Arc::ptr_eq(&first, &upstream.observe(&header(1, 3))), "those of one cluster share it");
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
        // Of a member that is behind.
        upstream.observe(&at(4));
        assert_eq!(upstream.newest_of(1), Revision::new(9));
        let back = upstream.begin_again(&at(4));
        assert_eq!(upstream.newest_of(1), Revision::new(4));
        assert!(Arc::ptr_eq(&back, &upstream.begin_again(&at(5))), "feeds that follow the same one share it");
        assert!(!cluster.observe(&Header { revision: Revision::new(50), ..header(2, 2) }));
        assert_eq!(upstream.newest_of(2), Revision::ZERO, "nothing is known of another one");
    }
}
