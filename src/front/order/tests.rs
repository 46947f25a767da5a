//! Tests of the marks and of the writes that wait for them.

use std::{pin::pin, task::Waker};

use futures_util::FutureExt as _;

use super::*;

fn is_held(write: &mut (impl Future<Output = ()> + Unpin)) -> bool {
    write.poll_unpin(&mut Context::from_waker(Waker::noop())).is_pending()
}

#[tokio::test(start_paused = true)]
async fn a_write_waits_for_what_arrived_before_it_and_for_nothing_later() {
    let order = Order::new();
    assert!(!is_held(&mut pin!(order.wait())), "nothing has arrived");
    let (one, two) = (order.mark(), order.mark());
    let mut write = pin!(order.wait());
    assert!(is_held(&mut write));
    let later = order.mark();
    order.clear([two].into_iter());
    assert!(is_held(&mut write), "the first is still there");
    order.clear([one].into_iter());
    assert!(!is_held(&mut write), "the one that came later does not count");
    assert!(is_held(&mut pin!(order.wait())), "but for the next write it does");
    order.clear([later, later].into_iter());
    assert!(!order.is_pending());
}

#[tokio::test(start_paused = true)]
async fn writes_are_woken_when_it_is_their_turn_and_leave_nothing_behind() {
    let order = Order::new();
    let first = order.mark();
    let write = |order: &Arc<Order>| {
        let order = order.clone();
        tokio::spawn(async move { order.wait().await })
    };
    let one = write(&order);
    tokio::task::yield_now().await;
    let second = order.mark();
    let (two, given_up) = (write(&order), write(&order));
    tokio::task::yield_now().await;
    assert_eq!(order.state.lock().held.len(), 3);
    given_up.abort();
    assert!(given_up.await.is_err());
    assert_eq!(order.state.lock().held.len(), 2);
    order.clear([first].into_iter());
    one.await.expect("no panic");
    assert!(!two.is_finished());
    order.clear([second].into_iter());
    two.await.expect("no panic");
    assert!(order.state.lock().held.is_empty() && !order.is_pending());
}

#[tokio::test(start_paused = true)]
async fn a_create_that_is_late_holds_writes_up_once_and_for_a_limited_time() {
    let order = Order::new();
    let began = Instant::now();
    let late = order.mark();
    tokio::time::advance(PATIENCE / 2).await;
    let other = order.mark();
    let mut both = pin!(order.wait());
    assert!(is_held(&mut both));
    order.clear([other].into_iter());
    both.await;
    assert_eq!(
        began.elapsed().as_millis(),
        PATIENCE.as_millis(),
        "the time counts from the create, not from the write"
    );
    assert!(!order.has(late));
    order.wait().await;
    assert_eq!(began.elapsed().as_millis(), PATIENCE.as_millis(), "no other write waits for it");
    order.clear([late].into_iter());
}

/// The same from many writes, and without a timer for each of them.
#[tokio::test(start_paused = true)]
async fn marks_that_grow_old_one_after_the_other_wake_no_write_before_its_turn() {
    const MARKS: u32 = 100;
    const WRITES: usize = 50;
    let order = Order::new();
    for _ in 0..MARKS {
        order.mark();
        tokio::time::advance(PATIENCE / MARKS / 2).await;
    }
    let last = Instant::now() - PATIENCE / MARKS / 2;
    let polls = Arc::new(AtomicUsize::new(0));
    let write = || {
        let (order, polls) = (order.clone(), polls.clone());
        tokio::spawn(async move {
            let mut waits = Box::pin(order.wait());
            poll_fn(|cx| {
                polls.fetch_add(1, Ordering::Relaxed);
                waits.poll_unpin(cx)
            })
            .await;
            Instant::now()
        })
    };
    let timed = write();
    tokio::task::yield_now().await;
    let writes: Vec<_> = (0..WRITES).map(|_| write()).collect();
    tokio::task::yield_now().await;
    // The client of the one that waits for the time gives up, and another one takes its place.
    timed.abort();
    assert!(timed.await.is_err());
    for write in writes {
        let over = write.await.expect("no panic");
        assert!(over >= last + PATIENCE && over < last + PATIENCE + Duration::from_millis(5), "{:?}", over - last);
    }
    let polls = polls.load(Ordering::Relaxed);
    assert!(polls <= 3 * WRITES + 2 * MARKS as usize, "{polls} polls");
    let state = order.state.lock();
    assert!(state.held.is_empty() && state.marks.is_empty() && !state.is_timed);
}
