//! Tests of which member is preferred, suspected, left and shunned. Each test provides the judge's findings.

use std::{future::pending, pin::pin};

use futures_util::FutureExt as _;

use super::{race::race, view::MOST, *};

fn members(count: usize) -> Members {
    let endpoints: Vec<Endpoint> =
        (1..=count).map(|port| format!("http://127.0.0.1:{port}").parse().expect("an endpoint")).collect();
    Members::new(&endpoints)
}

fn failed(why: &str) -> Finding {
    Finding::Failed { why: why.to_owned(), reached: false, leave: Leave::Failed }
}

impl Members {
    fn health(&self, member: usize) -> Health {
        self.shared.view.borrow().members[member].health
    }

    fn is_left(&self, member: usize) -> (bool, bool) {
        let watches = pin!(self.left_by_watches(member)).now_or_never().is_some();
        (watches, pin!(self.left(member)).now_or_never().is_some())
    }
}

#[test]
fn the_first_to_answer_is_preferred_and_stays_so() {
    let members = members(3);
    assert_eq!(members.ranked(), [0, 1, 2]);
    members.found([(2, Finding::Answered)], Some(2));
    assert_eq!((members.preferred(), members.ranked()), (2, vec![2, 0, 1]));
    members.found([(0, Finding::Answered)], Some(0));
    assert_eq!((members.preferred(), members.ranked()), (2, vec![2, 0, 1]), "nobody moves without a reason");
}

#[test]
fn a_member_that_is_late_gets_no_new_call_and_one_that_is_away_keeps_none() {
    let members = members(3);
    members.found((0..3).map(|member| (member, Finding::Answered)), Some(0));
    assert_eq!(members.is_left(0), (false, false));
    members.found([(0, Finding::Late)], Some(1));
    assert_eq!((members.preferred(), members.ranked()), (1, vec![1, 2, 0]));
    assert_eq!(members.is_left(0), (true, false), "feeds move, and calls get some time");
    members.found([(0, failed("no answer"))], Some(1));
    assert_eq!(members.is_left(0), (true, true));
    members.found([(0, Finding::Answered)], Some(1));
    assert_eq!((members.health(0), members.preferred()), (Health::Healthy, 1));
    assert_eq!(members.is_left(0), (false, false));
}

#[tokio::test(start_paused = true)]
async fn writes_wait_while_it_is_in_question_whether_the_cluster_can_agree_but_no_longer_than_an_election() {
    let members = members(3);
    members.broken(0);
    assert!(!members.is_in_question(), "nobody has answered yet, so nothing has changed");
    members.found((0..3).map(|member| (member, Finding::Answered)), Some(0));
    members.broken(0);
    assert!(members.is_in_question());
    assert!(pin!(members.out_of_question()).now_or_never().is_none());
    members.found([(0, failed("refused"))], None);
    assert!(members.is_in_question(), "a failure answers nothing");
    members.found([(1, Finding::Answered)], Some(1));
    assert!(!members.is_in_question());
    members.broken(0);
    assert!(!members.is_in_question(), "a member that is away is not the leader");
    members.late();
    assert!(members.is_in_question());
    members.in_term(1, 7);
    assert!(!members.is_in_question(), "any answer that needs a leader will do");
    members.late();
    let began = Instant::now();
    members.out_of_question().await;
    assert_eq!(began.elapsed(), ELECTION);
    assert!(!members.is_in_question(), "a long outage delays no write");
}

#[tokio::test(start_paused = true)]
async fn feeds_move_as_soon_as_there_is_a_better_member() {
    let members = members(2);
    members.found((0..2).map(|member| (member, Finding::Answered)), Some(0));
    let at = |member| members.endpoint(member).to_string();
    members.others_for_watch(&at(1)).await;
    let used = at(0);
    let mut others = pin!(members.others_for_watch(&used));
    assert!(others.as_mut().now_or_never().is_none(), "it is the one");
    members.found([(0, failed("refused"))], Some(1));
    assert!(others.now_or_never().is_some());
}

#[test]
fn where_no_member_answers_nobody_is_told_to_leave() {
    let members = members(2);
    members.found([(0, Finding::Answered), (1, Finding::Answered)], Some(0));
    members.found([(0, failed("refused")), (1, failed("refused"))], None);
    members.without_quorum(Agreement::Silent);
    assert_eq!(members.is_left(0), (false, false));
    assert!(pin!(members.reached()).now_or_never().is_none());
    members.found([(1, Finding::Failed { why: "no leader".into(), reached: true, leave: Leave::NoLeader })], None);
    members.without_quorum(Agreement::Leaderless);
    assert_eq!(members.preferred(), 1, "one that answers at all is better than none");
    assert!(pin!(members.reached()).now_or_never().is_some());
    assert_eq!(
        (members.is_left(0), members.is_left(1)),
        ((true, true), (false, false)),
        "and calls wait for it instead"
    );
}

#[test]
fn members_come_and_go_with_the_clusters_list_and_keep_their_numbers() {
    let at = |port: u16| -> Endpoint { format!("http://127.0.0.1:{port}").parse().expect("an endpoint") };
    let members = members(2);
    members.found((0..2).map(|member| (member, Finding::Answered)), Some(0));
    members.list(&[at(2), at(3)]);
    assert_eq!((members.listed(), members.ranked(), members.preferred()), (vec![1, 2], vec![1, 2], 1));
    assert_eq!((members.is_left(0), members.endpoint(2)), ((true, true), at(3)));
    members.found([(0, Finding::Answered)], Some(0));
    assert_eq!((members.preferred(), members.is_left(0)), (1, (true, true)), "its last answer no longer counts");
    members.list(&[]);
    assert_eq!(members.listed(), [1, 2], "no list");
    members.list(&[at(1), at(2)]);
    assert_eq!(
        (members.listed(), members.health(0), members.is_left(0)),
        (vec![0, 1], Health::Unknown, (false, false))
    );
    let many: Vec<Endpoint> = (10..1000).map(at).collect();
    members.list(&many);
    assert_eq!(members.listed().len(), MOST - 3);
}

#[test]
fn what_the_cluster_agrees_on_is_told_apart_from_the_members() {
    let members = members(2);
    let mut agreement = members.agreement();
    assert_eq!(*agreement.borrow_and_update(), Agreement::Reached);
    members.without_quorum(Agreement::Leaderless);
    assert!(members.has_lost_quorum() && pin!(members.quorum_lost()).now_or_never().is_some());
    assert_eq!(*agreement.borrow_and_update(), Agreement::Leaderless);
    members.found([(0, Finding::Answered)], Some(0));
    assert_eq!(*agreement.borrow_and_update(), Agreement::Reached);
    members.found([(1, failed("gone"))], Some(0));
    assert!(!agreement.has_changed().expect("open"), "a change of one member is not reported");
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_before_another_leader_came_is_lost_with_the_first() {
    let members = members(2);
    let began = Instant::now();
    members.in_term(0, 1);
    let sent = Instant::now();
    tokio::time::advance(Duration::from_secs(60)).await;
    assert!(
        pin!(members.lost_with_leader(0, sent)).now_or_never().is_none(),
        "the first term that is seen is not a change"
    );
    assert!(pin!(members.led_anew(sent)).now_or_never().is_none());
    members.in_term(1, 1);
    members.in_term(1, 2);
    assert!(pin!(members.led_anew(sent)).now_or_never().is_some(), "any member's answer shows it");
    assert!(pin!(members.lost_with_leader(0, sent)).now_or_never().is_none(), "that was another member's term");
    members.in_term(0, 2);
    members.lost_with_leader(0, sent).await;
    assert_eq!(began.elapsed(), Duration::from_secs(60) + LOST);
    assert!(
        pin!(members.lost_with_leader(0, Instant::now())).now_or_never().is_none(),
        "it was sent under the new leader"
    );
}

/// A member whose watches bring nothing still serves calls, but no feed for a while; longer each time that it happens
/// again.
#[tokio::test(start_paused = true)]
async fn feeds_shun_a_member_whose_watches_bring_nothing() {
    let members = members(3);
    members.found((0..3).map(|member| (member, Finding::Answered)), Some(0));
    assert_eq!(members.for_watch(), 0);
    assert!(members.shun(0));
    assert_eq!((members.for_watch(), members.preferred()), (1, 0));
    assert!(members.shun(1));
    assert_eq!(members.for_watch(), 2);
    assert!(members.shun(2));
    assert_eq!(members.for_watch(), 0, "of the shunned members, the first");
    tokio::time::advance(SHUNNED.0).await;
    assert_eq!(members.for_watch(), 0);
    members.shun(0);
    tokio::time::advance(SHUNNED.0).await;
    assert_eq!(members.for_watch(), 1, "longer the second time");
    members.found([(1, failed("gone")), (2, failed("gone"))], Some(0));
    assert!(!members.shun(0), "there is no other");
}

#[tokio::test(start_paused = true)]
async fn a_race_asks_the_next_when_one_fails_at_once_or_is_late() {
    let asked = parking_lot::Mutex::new(Vec::new());
    let ask = |member: usize| {
        asked.lock().push(member);
        async move {
            match member {
                0 => Err("refused"),
                1 => pending().await,
                _ => Ok(member),
            }
        }
    };
    let began = Instant::now();
    assert_eq!(race([0, 1, 2, 3], ask, |_| true).await, Ok((2, 2)));
    assert_eq!((asked.lock().as_slice(), began.elapsed()), (&[0, 1, 2][..], race::HEDGE));
    let all = race([0, 0], |member: usize| async move { Err::<(), _>(member) }, |_| true).await;
    assert_eq!(all, Err(vec![(0, 0), (0, 0)]));
}

/// A member whose connections are full is no worse than another.
#[tokio::test(start_paused = true)]
async fn a_race_waits_for_a_member_that_is_late_through_no_fault_of_its_own() {
    let ask = |member: usize| async move {
        assert_eq!(member, 0, "no other member is asked");
        tokio::time::sleep(race::HEDGE * 10).await;
        Ok::<_, ()>(())
    };
    assert_eq!(race([0, 1], ask, |_| false).await, Ok((0, ())));
}
