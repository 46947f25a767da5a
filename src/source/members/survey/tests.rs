//! Tests of what surveys find, with simulated members and a simulated clock.

use super::*;
use crate::{hub::upstream::Agreement, source::Endpoint};

/// How a member responds to linearizable requests, from some time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leader {
    /// It has a leader that answers.
    Has,
    /// It believes in a leader that does not answer.
    Silent,
    /// It has no leader.
    None,
}

/// Members that are up or not, and the cluster's leadership over time.
struct Cluster {
    began: Instant,
    there: Vec<bool>,
    led: Vec<(Duration, Leader)>,
}

/// A round trip.
const TRIP: Duration = Duration::from_millis(2);

impl Cluster {
    fn of(there: &[bool], led: &[(u64, Leader)]) -> (Members, Self) {
        let endpoint = |port: usize| -> Endpoint { format!("http://127.0.0.1:{port}").parse().expect("an endpoint") };
        let endpoints: Vec<Endpoint> = (1..=there.len()).map(endpoint).collect();
        let members = Members::new(&endpoints);
        members.found((0..there.len()).map(|member| (member, Finding::Answered)), Some(0));
        let led = led.iter().map(|(at, leader)| (Duration::from_millis(*at), *leader)).collect();
        (members, Self { began: Instant::now(), there: there.to_vec(), led })
    }

    fn leader(&self) -> Leader {
        let past = self.led.iter().rev().find(|(at, _)| *at <= self.began.elapsed());
        past.expect("from the beginning").1
    }

    /// Waits until there is a leader that answers.
    async fn elected(&self) {
        while self.leader() != Leader::Has {
            sleep(Duration::from_millis(1)).await;
        }
    }

    async fn is_there(&self, member: usize) {
        sleep(TRIP).await;
        if !self.there[member] {
            std::future::pending::<()>().await;
        }
    }
}

impl Requests for Cluster {
    async fn question(&self, member: usize, patience: Duration) -> Result<(), UpstreamError> {
        let answer = async {
            self.is_there(member).await;
            match self.leader() {
                Leader::Has => Ok(()),
                Leader::None => Err(UpstreamError::NoLeader),
                Leader::Silent => {
                    self.elected().await;
                    Err(UpstreamError::LeaderChanged)
                }
            }
        };
        tokio::time::timeout(patience, answer).await.unwrap_or(Err(UpstreamError::Timeout(patience)))
    }

    async fn reach(&self, member: usize, patience: Duration) -> Result<(), UpstreamError> {
        let answer = tokio::time::timeout(patience, self.is_there(member)).await;
        answer.map_err(|_| UpstreamError::Timeout(patience))
    }
}

fn ms(duration: Duration) -> u128 {
    duration.as_millis()
}

/// The member that calls should leave, and when.
async fn left(members: &Members, cluster: &Cluster) -> u128 {
    members.left_by_watches(0).await;
    ms(cluster.began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_frozen_leader_is_left_as_soon_as_there_is_another() {
    let (members, cluster) = Cluster::of(&[false, true, true], &[(0, Leader::Silent), (700, Leader::Has)]);
    let survey = Survey::of(&members, &cluster).run();
    let (agreed, left) = tokio::join!(survey, left(&members, &cluster));
    assert_eq!(agreed, None, "the others agree");
    assert!((700..=700 + 2 * ms(AGAIN)).contains(&left), "left after {left} ms");
    assert_ne!(members.preferred(), 0);
}

#[tokio::test(start_paused = true)]
async fn others_are_told_soon_that_no_member_answers_and_when_one_does() {
    let (members, cluster) = Cluster::of(&[false, true, true], &[(0, Leader::Silent), (700, Leader::Has)]);
    let mut agreement = members.agreement();
    let told = async {
        let mut told = Vec::new();
        while agreement.changed().await.is_ok() {
            let now = *agreement.borrow();
            told.push((now, ms(cluster.began.elapsed()), members.is_in_question()));
            if now == Agreement::Reached {
                break;
            }
        }
        told
    };
    let survey = Survey::of(&members, &cluster).run();
    let both = tokio::time::timeout(Duration::from_secs(10), async { tokio::join!(survey, told) });
    let (_, told) = both.await.expect("all is told");
    let [(Agreement::Late, late, true), (Agreement::Reached, reached, false)] = told[..] else { panic!("{told:?}") };
    assert_eq!(late, ms(QUIET));
    assert!((700..=700 + 2 * ms(AGAIN)).contains(&reached), "answered after {reached} ms");
}

#[tokio::test(start_paused = true)]
async fn an_election_longer_than_a_survey_is_waited_for_without_the_member_that_says_nothing() {
    let led = [(0, Leader::Silent), (1200, Leader::None), (1500, Leader::Has)];
    let (members, cluster) = Cluster::of(&[false, true, true], &led);
    assert_eq!(Survey::of(&members, &cluster).run().await, Some(false), "they are silent about a leader");
    assert_eq!(ms(cluster.began.elapsed()), ms(PATIENCE), "nothing more is waited for");
    members.without_quorum(Agreement::Silent);
    assert_eq!(left(&members, &cluster).await, ms(PATIENCE));
    assert_ne!(members.preferred(), 0, "requests go to members that respond");
    let mut surveys = 1;
    while Survey::of(&members, &cluster).run().await.is_some() {
        surveys += 1;
        assert!(surveys < 5, "they take some time each");
    }
    let after = ms(cluster.began.elapsed());
    assert!(after <= 1500 + ms(PATIENCE), "the last survey waits for the silent one: {after} ms");
    members.left(0).await;
}

#[tokio::test(start_paused = true)]
async fn the_first_that_has_a_leader_is_found_within_a_survey_that_found_none() {
    let (members, cluster) = Cluster::of(&[false, true, true], &[(0, Leader::None), (300, Leader::Has)]);
    let (agreed, left) = tokio::join!(Survey::of(&members, &cluster).run(), left(&members, &cluster));
    assert_eq!(agreed, None);
    // Not earlier: until then, the member might only be late and not silent.
    let at_last = ms(LATE.0.max(Duration::from_millis(300) + AGAIN + TRIP * 2 + LATE.1));
    assert!((ms(LATE.0)..=at_last + 5).contains(&left), "left after {left} ms");
}

#[tokio::test(start_paused = true)]
async fn where_all_say_that_they_have_no_leader_that_is_known_at_once() {
    let (members, cluster) = Cluster::of(&[true, true], &[(0, Leader::None)]);
    assert_eq!(Survey::of(&members, &cluster).run().await, Some(true));
    assert!(cluster.began.elapsed() <= TRIP * 4, "{:?}", cluster.began.elapsed());
    assert!(members.is_reached());
}

#[tokio::test(start_paused = true)]
async fn where_none_says_anything_they_are_given_time_to() {
    let (members, cluster) = Cluster::of(&[false, false], &[(0, Leader::Has)]);
    assert_eq!(Survey::of(&members, &cluster).run().await, Some(false));
    assert_eq!(ms(cluster.began.elapsed()), ms(LATE.0 + SILENCE));
    assert!(!members.is_reached());
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_is_slow_as_a_whole_moves_nobody() {
    let (members, cluster) = Cluster::of(&[true, true], &[(0, Leader::Silent), (650, Leader::Has)]);
    assert_eq!(Survey::of(&members, &cluster).run().await, None);
    assert_eq!((members.ranked(), members.preferred()), (vec![0, 1], 0));
}
