//! [`Terms`]: the raft term in which each member was last seen.
//!
//! A member never falls below a term that it was in, unless its data was replaced by older data. Over another relay,
//! whose headers may be older than those of a relay asked before, a lower term proves nothing. So it only leads to an
//! audit. Each feed's driver has its own record. Always holds: a header belongs to an answer that was requested after
//! the answers before it had come.

use crate::types::Header;

/// How many members are remembered. A cluster has seven or fewer; members of replaced clusters are forgotten in turn.
const MEMBERS: usize = 64;

/// The last term of each member; see the module.
#[derive(Debug, Default)]
pub(super) struct Terms(Vec<Seen>);

#[derive(Debug)]
struct Seen {
    cluster_id: u64,
    member_id: u64,
    raft_term: u64,
}

impl Terms {
    /// Notes a member's term. Returns true if the member was in a later one before.
    pub(super) fn fell(&mut self, header: &Header) -> bool {
        let Header { cluster_id, member_id, raft_term, .. } = *header;
        match self.0.iter_mut().find(|seen| seen.cluster_id == cluster_id && seen.member_id == member_id) {
            Some(seen) => std::mem::replace(&mut seen.raft_term, raft_term) > raft_term,
            None => {
                if self.0.len() == MEMBERS {
                    self.0.remove(0);
                }
                self.0.push(Seen { cluster_id, member_id, raft_term });
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(member_id: u64, raft_term: u64) -> Header {
        Header { cluster_id: 1, member_id, raft_term, ..Header::default() }
    }

    #[test]
    fn a_term_falls_where_its_member_was_in_a_later_one() {
        let mut terms = Terms::default();
        assert!(!terms.fell(&header(1, 5)) && !terms.fell(&header(2, 9)) && !terms.fell(&header(1, 5)));
        assert!(!terms.fell(&Header { cluster_id: 2, ..header(1, 4) }), "another cluster has terms of its own");
        assert!(!terms.fell(&header(1, 6)) && terms.fell(&header(1, 4)));
        assert!(!terms.fell(&header(1, 4)), "once is enough");
    }

    #[test]
    fn members_that_are_remembered_are_bounded() {
        let mut terms = Terms::default();
        assert!((0..1_000).all(|member| !terms.fell(&header(member, 3))));
        assert_eq!(terms.0.len(), MEMBERS);
        assert!(terms.fell(&header(999, 2)));
    }
}
