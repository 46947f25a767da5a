//! Tests of the order in which the watches of a stream get their turns, and of what the stream was told.

use super::*;

fn waiting_for_a_fill(watches: &mut Watches, feed: FeedId, needs: i64) -> usize {
    let slot = live(watches, feed, needs);
    watches.shift(slot, Transition::AwaitFill, Revision::new(needs)).expect("it was live");
    slot
}

fn live(watches: &mut Watches, feed: FeedId, needs: i64) -> usize {
    let (attachment, place, slot) = watches.attach(feed, || 0);
    let id = watches.admit(0).expect("room").expect("an id");
    let new = NewWatch {
        id,
        next: Revision::new(needs),
        from_now: false,
        attachment,
        link: Link { group: slot, place },
        fragment: false,
        progress_notify: false,
        replay: true,
    };
    watches.add(new, Revision::new(needs))
}

#[test]
fn watches_that_are_filled_again_and_again_do_not_come_before_one_that_is_further_behind() {
    let (mut watches, feed) = (Watches::default(), FeedId::new());
    let (one, other) = (waiting_for_a_fill(&mut watches, feed, 50), waiting_for_a_fill(&mut watches, feed, 60));
    // Writes go on. A watch that was filled has lost the history again before its next turn, and then needs a newer
    // revision than all others.
    let mut newest = 100;
    let mut turn = |watches: &mut Watches| {
        let slot = watches.next_unfilled(feed).expect("all wait");
        let needs = watches.get(slot).expect("a watch").next();
        watches.shift(slot, Transition::BeginFill, needs).expect("possible");
        newest += 1;
        watches.shift(slot, Transition::AwaitFill, Revision::new(newest)).expect("possible");
        slot
    };
    assert_eq!([turn(&mut watches), turn(&mut watches)], [one, other]);
    let behind = waiting_for_a_fill(&mut watches, feed, 10);
    assert_eq!([(); 6].map(|()| turn(&mut watches)), [behind, one, other, behind, one, other]);
}

#[test]
fn a_parked_watch_is_read_for_before_those_that_are_filled_once_it_is_further_behind_than_they() {
    let (mut watches, feed) = (Watches::default(), FeedId::new());
    let parked = waiting_for_a_fill(&mut watches, feed, 50);
    watches.shift(parked, Transition::BeginFill, Revision::new(50)).expect("possible");
    watches.shift(parked, Transition::Park, Revision::new(50)).expect("the history reaches it");
    assert!(!watches.is_a_parked_one_behind_the_filling(), "no watch is being filled");
    let filled = waiting_for_a_fill(&mut watches, feed, 40);
    watches.shift(filled, Transition::BeginFill, Revision::new(40)).expect("possible");
    assert!(!watches.is_a_parked_one_behind_the_filling());
    watches.shift(filled, Transition::Pass, Revision::new(60)).expect("possible");
    assert!(watches.is_a_parked_one_behind_the_filling());
}

#[test]
fn what_was_told_of_a_feed_that_the_stream_left_counts_no_more() {
    let (mut watches, left, stays) = (Watches::default(), FeedId::new(), FeedId::new());
    // The feed that is left follows a cluster that was replaced since, by one whose revisions are lower.
    let (gone, slot) = (live(&mut watches, left, 5_000), live(&mut watches, stays, 10));
    watches.pushed(gone, Revision::new(5_056));
    assert_eq!(watches.newest(), Revision::new(5_056));
    let _ = watches.remove(gone);
    assert_eq!(watches.newest(), Revision::new(10), "as it was when the other watch was created");
    watches.pushed(slot, Revision::new(15));
    watches.told(Revision::new(20));
    assert_eq!(watches.newest(), Revision::new(20));
    watches.forget_newest(left);
    assert_eq!(watches.newest(), Revision::new(20));
    watches.forget_newest(stays);
    assert_eq!(watches.newest(), Revision::ZERO);
}
