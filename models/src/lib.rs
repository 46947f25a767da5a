//! Models of the relay's hand-overs between threads: the relay's own files over loom, which tries every order in which loads, stores and locks
//! of several threads can come to pass, also those that the processor at hand does not show.
//!
//! Run by `tests/models.rs` of the relay. Not here: whatever knows no atomics and no locks. Always holds: nothing here is a copy of the relay's code.

mod sync;

/// `src/latest.rs`.
#[path = "../../src/latest.rs"]
#[expect(dead_code, reason = "the relay uses what the models do not")]
mod latest;

/// `src/http2/wake.rs`.
#[path = "../../src/http2/wake.rs"]
#[expect(dead_code, reason = "the relay uses what the models do not")]
mod wake;

/// `src/hub/outbox/handover.rs`.
#[path = "../../src/hub/outbox/handover.rs"]
mod handover;

/// `src/hub/confirm/rounds.rs`.
#[path = "../../src/hub/confirm/rounds.rs"]
#[expect(dead_code, reason = "the relay uses what the models do not")]
mod rounds;

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use loom::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use self::{
    handover::{Handover, Resting, wake},
    latest::Latest,
    rounds::Rounds,
    wake::{Calls, WakeSource, WakeSources},
};

/// A task that is told whether it was woken.
#[derive(Debug)]
struct Task(AtomicUsize);

impl Task {
    fn new() -> Arc<Self> {
        Arc::new(Self(AtomicUsize::new(0)))
    }

    fn woken(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

/// A connection answers a bell and looks for news, while whoever rang it has more news and rings again: the look sees them, or there is a call.
pub fn a_ring_beside_an_answer_is_not_lost() {
    loom::model(|| {
        let calls = Calls::new(1_000);
        let bell = calls.bell(WakeSource::READ);
        bell.ring();
        let mut callers = WakeSources::new();
        let cx = Context::from_waker(Waker::noop());
        assert!(calls.look(&mut callers, &cx), "it was rung");
        callers.clear();
        let news = Arc::new(AtomicBool::new(false));
        let other = {
            let (bell, news) = (bell.clone(), news.clone());
            thread::spawn(move || {
                news.store(true, Ordering::Relaxed);
                bell.ring();
            })
        };
        bell.answered();
        let seen = news.load(Ordering::Relaxed);
        other.join().expect("it rings");
        assert!(seen || calls.look(&mut callers, &cx), "news were not seen and nobody calls");
    });
}

/// Two call while the task looks and goes to rest: it has seen both, or was woken.
pub fn a_call_finds_the_task_looking_or_wakes_it() {
    loom::model(|| {
        let calls = Calls::new(1_000);
        let others = [WakeSource::READ, WakeSource::stream(0)].map(|caller| {
            let bell = calls.bell(caller);
            thread::spawn(move || bell.ring())
        });
        let task = Task::new();
        let waker = Waker::from(task.clone());
        let cx = Context::from_waker(&waker);
        let mut seen = 0;
        let mut callers = WakeSources::new();
        while calls.look(&mut callers, &cx) {
            seen += callers.drain(..).count();
        }
        others.into_iter().for_each(|other| other.join().expect("it rings"));
        assert!(task.woken() <= 1, "once for all who call");
        assert_eq!(task.woken() == 0, seen == 2, "it rests beside a call");
        while calls.look(&mut callers, &cx) {
            seen += callers.drain(..).count();
        }
        assert_eq!(seen, 2);
    });
}

/// Bytes that were read are counted by two streams: the connection is told of all, once there are enough.
pub fn what_was_read_is_told() {
    loom::model(|| {
        let calls = Calls::new(10);
        let others = [6, 7].map(|bytes| {
            let calls = calls.clone();
            thread::spawn(move || calls.count_read(bytes))
        });
        others.into_iter().for_each(|other| other.join().expect("it reads"));
        let mut callers = WakeSources::new();
        assert!(calls.look(&mut callers, &Context::from_waker(Waker::noop())), "enough was read");
        assert_eq!((callers.len(), calls.take_read()), (1, 13));
    });
}

/// A follower looks and goes to rest while the value is replaced: it has the newest, or was woken.
pub fn a_follower_has_the_newest_or_is_woken() {
    loom::model(|| {
        let latest = Latest::new(1);
        let mut follower = latest.follow();
        let task = Task::new();
        let waker = Waker::from(task.clone());
        let cx = &mut Context::from_waker(&waker);
        assert_eq!(follower.poll_next(cx), Poll::Ready(Some(1)));
        let other = thread::spawn(move || {
            latest.replace(2);
            latest
        });
        let first = follower.poll_next(cx);
        let latest = other.join().expect("it replaces");
        match first {
            Poll::Ready(value) => assert_eq!(value, Some(2)),
            Poll::Pending => {
                assert!(task.woken() > 0, "it rests beside a value that it does not have");
                assert_eq!(follower.poll_next(cx), Poll::Ready(Some(2)));
            }
        }
        drop(latest);
    });
}

/// The same where there are no more values, and where the follower has moved to another task before.
pub fn a_follower_that_moved_is_told_of_the_end() {
    loom::model(|| {
        let latest = Latest::new(1);
        let mut follower = latest.follow();
        let before = Waker::from(Task::new());
        assert!(follower.poll_next(&mut Context::from_waker(&before)).is_ready());
        assert!(follower.poll_next(&mut Context::from_waker(&before)).is_pending());
        let other = thread::spawn(move || drop(latest));
        let task = Task::new();
        let waker = Waker::from(task.clone());
        let cx = &mut Context::from_waker(&waker);
        let first = follower.poll_next(cx);
        other.join().expect("it ends");
        if first.is_pending() {
            assert!(task.woken() > 0, "it rests beside the end");
        }
        assert_eq!(follower.poll_next(cx), Poll::Ready(None));
    });
}

/// Two join at a time, and who is told to start a task asks upstream until nobody waits: whoever has an answer has one of an ask that began
/// after it came, and nobody is left without one who asks.
pub fn whoever_joins_a_round_is_told_of_an_ask_that_began_after_it() {
    loom::model(|| {
        let rounds: Arc<Rounds<(), usize>> = Arc::default();
        // What upstream would answer now.
        let current = Arc::new(AtomicUsize::new(1));
        let ask = |rounds: &Rounds<(), usize>, current: &AtomicUsize| {
            let before = current.fetch_add(1, Ordering::AcqRel);
            let (member, start) = rounds.join(None);
            if start {
                while let Some((round, _)) = rounds.next() {
                    round.close(current.load(Ordering::Acquire));
                }
            }
            let answer = pin!(member).poll(&mut Context::from_waker(Waker::noop()));
            (before, answer, start)
        };
        let other = {
            let (rounds, current) = (rounds.clone(), current.clone());
            thread::spawn(move || {
                let (before, answer, start) = ask(&rounds, &current);
                assert!(!start || answer.is_ready(), "its own task has asked");
                if let Poll::Ready(answer) = answer {
                    assert!(answer > before, "an answer from before the question");
                }
            })
        };
        let (before, answer, start) = ask(&rounds, &current);
        other.join().expect("it asks");
        assert!(!start || answer.is_ready(), "its own task has asked");
        if let Poll::Ready(answer) = answer {
            assert!(answer > before, "an answer from before the question");
        }
        assert!(rounds.next().is_none(), "somebody waits, and nobody asks");
    });
}

/// A member goes to rest while its round is closed: it has the answer, or is woken.
pub fn a_member_has_the_answer_or_is_woken() {
    loom::model(|| {
        let rounds: Rounds<(), usize> = Rounds::default();
        let (member, start) = rounds.join(None);
        assert!(start);
        let (round, _) = rounds.next().expect("somebody waits");
        let other = thread::spawn(move || round.close(7));
        let task = Task::new();
        let waker = Waker::from(task.clone());
        let mut member = pin!(member);
        let cx = &mut Context::from_waker(&waker);
        let first = member.as_mut().poll(cx);
        other.join().expect("it closes");
        if first.is_pending() {
            assert_eq!(task.woken(), 1, "it rests beside an answer");
        }
        assert_eq!(member.as_mut().poll(cx), Poll::Ready(7));
    });
}

/// What waits for a stream's task, as far as a hand-over knows it.
#[derive(Debug, Default)]
struct Outbox {
    deliveries: Vec<u32>,
    task: Resting,
}

impl AsMut<Resting> for Outbox {
    fn as_mut(&mut self) -> &mut Resting {
        &mut self.task
    }
}

impl Outbox {
    fn push(&mut self, delivery: u32) -> Option<Waker> {
        self.deliveries.push(delivery);
        self.task.take()
    }

    fn drain(&mut self) -> Option<Vec<u32>> {
        (!self.deliveries.is_empty()).then(|| std::mem::take(&mut self.deliveries))
    }
}

/// Two feeds push, each under a lock and waking later, while the stream's task takes what there is and goes to rest: it has all, or was woken.
pub fn what_is_pushed_beside_a_task_that_goes_to_rest_is_not_lost() {
    loom::model(|| {
        let outbox = Arc::new(Handover::new(Outbox::default()));
        let others = [1, 2].map(|delivery| {
            let outbox = outbox.clone();
            thread::spawn(move || match delivery {
                1 => outbox.change(|outbox| outbox.push(delivery)),
                _ => {
                    let waker = outbox.lock().push(delivery);
                    wake(waker);
                }
            })
        });
        let task = Task::new();
        let waker = Waker::from(task.clone());
        let cx = Context::from_waker(&waker);
        let mut seen = Vec::new();
        while let Some(deliveries) = outbox.look(&cx, Outbox::drain) {
            seen.extend(deliveries);
        }
        others.into_iter().for_each(|other| other.join().expect("it pushes"));
        assert!(task.woken() <= 1, "it rests once");
        assert_eq!(task.woken() == 0, seen.len() == 2, "it rests beside a delivery");
        seen.extend(outbox.look(&cx, Outbox::drain).into_iter().flatten());
        seen.sort_unstable();
        assert_eq!(seen, [1, 2]);
    });
}

/// A stream's body moves to another task between two looks: the one that looked last is woken.
pub fn a_stream_that_moved_is_woken_where_it_is() {
    loom::model(|| {
        let outbox = Arc::new(Handover::new(Outbox::default()));
        let before = Task::new();
        assert!(outbox.look(&Context::from_waker(&Waker::from(before)), Outbox::drain).is_none());
        let other = {
            let outbox = outbox.clone();
            thread::spawn(move || outbox.change(|outbox| outbox.push(1)))
        };
        let task = Task::new();
        let waker = Waker::from(task.clone());
        let found = outbox.look(&Context::from_waker(&waker), Outbox::drain);
        other.join().expect("it pushes");
        assert_eq!(found.is_none(), task.woken() == 1, "it rests beside a delivery");
    });
}
