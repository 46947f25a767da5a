//! Models of the places where threads hand something over: the relay's own files compiled over loom. Loom tries every
//! order in which loads, stores and locks of several threads can happen, including orders that this processor does not
//! show.
//!
//! Run by the relay's `tests/models.rs`. Always holds: nothing here is a copy of the relay's code.

mod sync;

/// `src/latest.rs`.
#[path = "../../src/latest.rs"]
#[expect(dead_code, reason = "the relay uses the parts that the models do not")]
mod latest;

/// `src/http2/wake.rs`.
#[path = "../../src/http2/wake.rs"]
#[expect(dead_code, reason = "the relay uses the parts that the models do not")]
mod wake;

/// `src/hub/outbox/handover.rs`.
#[path = "../../src/hub/outbox/handover.rs"]
mod handover;

/// `src/hub/feed/sequence.rs`.
#[path = "../../src/hub/feed/sequence.rs"]
mod sequence;

/// `src/hub/confirm/rounds.rs`.
#[path = "../../src/hub/confirm/rounds.rs"]
#[expect(dead_code, reason = "the relay uses the parts that the models do not")]
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
    rounds::{Callers, Duty, Rounds},
    sequence::Sequence,
    sync::Mutex,
    wake::{WakeList, WakeSource, WakeSources},
};

/// A waker that counts how often it was woken.
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

/// A connection resets a flag and looks for news, while another thread adds news and sets the flag again. Either the
/// look sees the news, or the part is in the list of woken parts.
pub fn a_wake_up_beside_a_reset_is_not_lost() {
    loom::model(|| {
        let wakes = WakeList::new(1_000);
        let flag = wakes.flag(WakeSource::READ);
        flag.set();
        let mut woken = WakeSources::new();
        let cx = Context::from_waker(Waker::noop());
        assert!(wakes.look(&mut woken, &cx), "the flag was set");
        woken.clear();
        let news = Arc::new(AtomicBool::new(false));
        let other = {
            let (flag, news) = (flag.clone(), news.clone());
            thread::spawn(move || {
                news.store(true, Ordering::Relaxed);
                flag.set();
            })
        };
        flag.reset();
        let seen = news.load(Ordering::Relaxed);
        other.join().expect("the other thread ends");
        assert!(seen || wakes.look(&mut woken, &cx), "the news was not seen, and no part was woken");
    });
}

/// Two parts are woken while the task looks and goes to sleep: it has seen both, or is woken.
pub fn a_wake_up_is_seen_or_wakes_the_task() {
    loom::model(|| {
        let wakes = WakeList::new(1_000);
        let others = [WakeSource::READ, WakeSource::stream(0)].map(|source| {
            let flag = wakes.flag(source);
            thread::spawn(move || flag.set())
        });
        let task = Task::new();
        let waker = Waker::from(task.clone());
        let cx = Context::from_waker(&waker);
        let mut seen = 0;
        let mut woken = WakeSources::new();
        while wakes.look(&mut woken, &cx) {
            seen += woken.drain(..).count();
        }
        others.into_iter().for_each(|other| other.join().expect("the other thread ends"));
        assert!(task.woken() <= 1, "once for all parts");
        assert_eq!(task.woken() == 0, seen == 2, "the task sleeps although a part was woken");
        while wakes.look(&mut woken, &cx) {
            seen += woken.drain(..).count();
        }
        assert_eq!(seen, 2);
    });
}

/// Two streams count bytes that were read: once there are enough, the connection learns of all of them.
pub fn what_was_read_is_told() {
    loom::model(|| {
        let wakes = WakeList::new(10);
        let others = [6, 7].map(|bytes| {
            let wakes = wakes.clone();
            thread::spawn(move || wakes.count_read(bytes))
        });
        others.into_iter().for_each(|other| other.join().expect("it reads"));
        let mut woken = WakeSources::new();
        assert!(wakes.look(&mut woken, &Context::from_waker(Waker::noop())), "enough was read");
        assert_eq!((woken.len(), wakes.take_read()), (1, 13));
    });
}

/// A follower looks and goes to sleep while the value is replaced: it has the newest value, or is woken.
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
                assert!(task.woken() > 0, "the follower sleeps although it lacks the newest value");
                assert_eq!(follower.poll_next(cx), Poll::Ready(Some(2)));
            }
        }
        drop(latest);
    });
}

/// The same at the end of the values, if the follower moved to another task before.
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
            assert!(task.woken() > 0, "the follower sleeps although the values have ended");
        }
        assert_eq!(follower.poll_next(cx), Poll::Ready(None));
    });
}

/// Two callers join at the same time, and the one that must start a task asks upstream until nobody waits. Each answer
/// must come from a question that began after its caller joined, and no caller may wait without a task that asks.
pub fn whoever_joins_a_round_is_told_of_an_ask_that_began_after_it() {
    loom::model(|| {
        let rounds: Arc<Rounds<(), usize>> = Arc::default();
        // What upstream would currently answer.
        let current = Arc::new(AtomicUsize::new(1));
        let ask = |rounds: &Rounds<(), usize>, current: &AtomicUsize| {
            let before = current.fetch_add(1, Ordering::AcqRel);
            let (member, duty) = rounds.join(None, Callers::Urgent);
            let start = duty == Duty::Start;
            if start {
                while let Some((round, _)) = rounds.next(false) {
                    let answer = current.load(Ordering::Acquire);
                    // Its request takes long, and the next one begins beside it.
                    let beside = rounds.next(true).map(|(beside, _)| (beside, current.load(Ordering::Acquire)));
                    for (round, answer) in beside.into_iter().chain([(round, answer)]) {
                        round.close(answer);
                    }
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
        assert!(rounds.next(false).is_none(), "a caller waits, and no task asks");
    });
}

/// A member goes to sleep while its round is closed: it has the answer, or is woken.
pub fn a_member_has_the_answer_or_is_woken() {
    loom::model(|| {
        let rounds: Rounds<(), usize> = Rounds::default();
        let (member, duty) = rounds.join(None, Callers::Urgent);
        assert_eq!(duty, Duty::Start);
        let (round, _) = rounds.next(false).expect("somebody waits");
        let other = thread::spawn(move || round.close(7));
        let task = Task::new();
        let waker = Waker::from(task.clone());
        let mut member = pin!(member);
        let cx = &mut Context::from_waker(&waker);
        let first = member.as_mut().poll(cx);
        other.join().expect("it closes");
        if first.is_pending() {
            assert_eq!(task.woken(), 1, "the member sleeps although there is an answer");
        }
        assert_eq!(member.as_mut().poll(cx), Poll::Ready(7));
    });
}

/// The deliveries that wait for a stream's task, as far as a hand-over is concerned.
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

/// Two feeds push, each under a lock and waking afterwards, while the stream's task takes deliveries and goes to sleep:
/// it has all of them, or is woken.
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
        assert!(task.woken() <= 1, "it sleeps once");
        assert_eq!(task.woken() == 0, seen.len() == 2, "the task sleeps although there is a delivery");
        seen.extend(outbox.look(&cx, Outbox::drain).into_iter().flatten());
        seen.sort_unstable();
        assert_eq!(seen, [1, 2]);
    });
}

/// A stream's body moves to another task between two looks: the task that looked last is woken.
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
        assert_eq!(found.is_none(), task.woken() == 1, "the task sleeps although there is a delivery");
    });
}

/// A feed's content, as far as publishing is concerned.
#[derive(Debug, Default)]
struct Content {
    revision: u32,
    streams: Vec<Arc<Mutex<Stream>>>,
}

/// A stream with one watch.
#[derive(Debug, Default)]
struct Stream {
    /// The revision that the watch needs next.
    next: u32,
    /// Everything up to this revision was given to it, as it was told.
    told: u32,
}

impl Stream {
    fn push(&mut self, revision: u32) {
        assert!(revision > self.told, "revision {revision} comes after the stream was told that it has everything");
        if revision >= self.next {
            assert_eq!(revision, self.next, "a revision was left out");
            self.next += 1;
        }
    }
}

/// Publishes the next revision, as a feed does: under its lock only the list of streams is copied.
fn publish(feed: &Sequence<Content>) {
    let turn = feed.turn();
    let (revision, streams) = {
        let mut content = feed.lock();
        content.revision += 1;
        (content.revision, content.streams.clone())
    };
    streams.iter().for_each(|stream| stream.lock().push(revision));
    drop(turn);
}

/// A stream joins.
fn join(feed: &Sequence<Content>) -> Arc<Mutex<Stream>> {
    let mut content = feed.lock();
    let stream = Arc::new(Mutex::new(Stream { next: content.revision + 1, told: 0 }));
    content.streams.push(stream.clone());
    stream
}

/// A stream is told its progress.
fn tell(feed: &Sequence<Content>, stream: &Mutex<Stream>) {
    let turn = feed.turn();
    let content = feed.lock();
    stream.lock().told = content.revision;
    drop(content);
    drop(turn);
}

/// A stream joins and is told its progress, and another one is told its progress, while revisions are published: each
/// gets all of them after it joined, and none after it was told that it has it.
pub fn whoever_joins_beside_a_publication_gets_each_revision_once() {
    loom::model(|| {
        let feed = Arc::new(Sequence::new(Content::default()));
        let first = join(&feed);
        let publisher = {
            let feed = feed.clone();
            thread::spawn(move || publish(&feed))
        };
        let joiner = {
            let feed = feed.clone();
            thread::spawn(move || {
                let stream = join(&feed);
                tell(&feed, &stream);
                stream
            })
        };
        tell(&feed, &first);
        publisher.join().expect("it publishes");
        let second = joiner.join().expect("it joins");
        publish(&feed);
        assert_eq!((first.lock().next, second.lock().next), (3, 3));
    });
}
