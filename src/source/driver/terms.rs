//! [`Terms`]: the raft term that each member was last seen in.
//!
//! A member never falls behind a term that it was in, but for one whose data were replaced by older ones. Over another relay, whose headers may be
//! older than those of a relay asked before, a fall is no proof; so it is a reason to look, and no more.
//! Each feed's driver has its own. Always holds: a header is of an answer that was asked for after the ones before it had come.

use crate::types::Header;

/// Members that are remembered. A cluster has seven or fewer; those of clusters that were replaced are forgotten in turn.
const MEMBERS: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Terms(Vec<Seen>);

#[derive(Debug)]
struct Seen {
    cluster_id: u64,
    member_id: u64,
    raft_term: u64,
}

impl Terms {
    /// Takes note of a member's term. True where the member was in a later one before.
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
        assert!(!terms.fell(&Header { cluster_id: 2, ..header(1, 4) }), "another cluster's terms are its own");
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
