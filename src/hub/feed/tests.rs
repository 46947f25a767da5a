//! Tests of a feed with its streams, without a driver: what threads do to them at the same time, progress, and how they
//! end.

use super::*;
use crate::{
    hub::{
        Delivery, Drained, Hub, OutboxLimits, ProgressAnswer, RangeQuery, ReadError, StreamEnd, Subscribe,
        WatchOptions, WatchStream, testing, upstream::Changes,
    },
    types::{ClientKey, EventFields, EventKind, KeyValue, KeyValueFields},
};

const WATCHES: i64 = 20_000;

fn hub() -> Arc<Hub> {
    testing::hub(OutboxLimits { bytes: 1 << 20, deliveries: 100, watches: WATCHES as usize })
}

fn feed(hub: &Hub, prefix: &'static str, revision: i64) -> Arc<Feed> {
    let feed = hub.open(KeyRange::prefix(prefix.into()));
    feed.install(Arc::default(), KeyMap::default(), Revision::new(revision));
    feed.set_state(FeedState::Live);
    feed
}

fn subscribe(feed: &Arc<Feed>, stream: &Arc<WatchStream>, watch_id: i64, key: &'static str) {
    subscribe_from(feed, stream, watch_id, key, 0);
}

fn subscribe_from(feed: &Arc<Feed>, stream: &Arc<WatchStream>, watch_id: i64, key: &'static str, start_revision: i64) {
    let subscribe = Subscribe {
        watch_id,
        range: KeyRange::single(key.into()),
        options: WatchOptions::default(),
        start_revision: Revision::new(start_revision),
        progress_notify: true,
        fragment: false,
        known: Revision::ZERO,
        compacted: false,
    };
    stream.subscribe(feed, &subscribe).expect("subscribed");
}

/// Puts the key `k` at `revision`.
fn publish(feed: &Feed, revision: i64) {
    let kv = KeyValueFields { key: "k".into(), ..KeyValueFields::default() };
    let changes = Changes {
        revision: Revision::new(revision),
        events: vec![EventFields { kind: EventKind::Put, kv }],
        prev: Vec::new(),
        received: std::time::Instant::now(),
    };
    feed.publish(&[changes]).expect("the next revision");
}

#[test]
fn cancels_may_race_with_the_end_of_their_stream() {
    let feed = feed(&hub(), "", 10);
    for _ in 0..10 {
        let stream = WatchStream::new(feed.shared.limits.outbox, ClientKey::RELAY);
        (1..=WATCHES).for_each(|id| subscribe(&feed, &stream, id, "k"));
        std::thread::scope(|scope| {
            let cancels = scope.spawn(|| (1..=WATCHES).rev().for_each(|id| stream.cancel(id)));
            stream.leave();
            cancels.join().expect("cancels");
        });
        assert_eq!((stream.watches(), feed.stats().streams), (0, 0));
        assert!(feed.lock().index.is_empty());
    }
}

/// The content of the queue, as text.
fn drain(stream: &Arc<WatchStream>) -> Vec<String> {
    let mut batch = Vec::new();
    let mut all = Vec::new();
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    while stream.poll_drain(&mut cx, &mut batch, usize::MAX) == std::task::Poll::Ready(Drained::Some) {
        all.extend(batch.drain(..).map(|delivery| match delivery {
            Delivery::Progress { watch_id, stamp } => format!("{watch_id}: progress {}", stamp.revision),
            other => format!("{other:?}"),
        }));
    }
    all
}

#[test]
fn progress_of_a_stream_waits_for_the_feed_that_is_behind() {
    let hub = hub();
    let (behind, ahead) = (feed(&hub, "a", 10), feed(&hub, "b", 12));
    let stream = WatchStream::new(hub.limits().outbox, ClientKey::RELAY);
    subscribe(&behind, &stream, 1, "a1");
    subscribe(&ahead, &stream, 2, "b1");
    drain(&stream);
    assert_eq!(
        stream.answer_progress(),
        ProgressAnswer::Later,
        "the watch on the feed ahead begins after the other feed's revision"
    );
    assert_eq!(drain(&stream), [""; 0]);
    behind.advance(Revision::new(12));
    assert_eq!(stream.answer_progress(), ProgressAnswer::Sent);
    assert_eq!(drain(&stream), ["-1: progress 12"]);
}

#[test]
fn progress_of_a_stream_does_not_fall_when_a_feed_behind_joins() {
    let hub = hub();
    let (behind, ahead) = (feed(&hub, "a", 10), feed(&hub, "b", 12));
    let stream = WatchStream::new(hub.limits().outbox, ClientKey::RELAY);
    subscribe(&ahead, &stream, 2, "b1");
    assert_eq!(stream.answer_progress(), ProgressAnswer::Sent);
    subscribe(&behind, &stream, 1, "a1");
    assert_eq!(stream.answer_progress(), ProgressAnswer::Later, "12 was told");
    behind.advance(Revision::new(13));
    assert_eq!(stream.answer_progress(), ProgressAnswer::Sent);
}

#[test]
fn a_client_that_does_not_read_does_not_gather_progress() {
    let hub = hub();
    let feed = feed(&hub, "", 10);
    let stream = WatchStream::new(hub.limits().outbox, ClientKey::RELAY);
    (1..=60).for_each(|id| subscribe(&feed, &stream, id, "k"));
    (0..10).for_each(|_| assert!(!stream.notify_progress(false), "there is no room for all of them"));
    assert_eq!(stream.stats().queued, 100, "as many as the queue may hold");
}

#[test]
fn slots_of_watches_that_are_parked_no_more_are_let_go() {
    let hub = hub();
    let feed = feed(&hub, "", 10);
    publish(&feed, 11);
    let stream = WatchStream::new(hub.limits().outbox, ClientKey::RELAY);
    for id in 1..100 {
        subscribe_from(&feed, &stream, id, "k", 11);
        assert_eq!(stream.stats().parked, 1);
        stream.cancel(id);
    }
    assert_eq!(stream.stats().parked, 0);
}

#[test]
fn a_stream_that_has_ended_is_given_nothing_more() {
    let hub = hub();
    let feed = feed(&hub, "", 10);
    publish(&feed, 11);
    let stream = WatchStream::new(hub.limits().outbox, ClientKey::RELAY);
    subscribe(&feed, &stream, 1, "k");
    subscribe_from(&feed, &stream, 2, "k", 11);
    stream.end(StreamEnd::Stopping, true);
    publish(&feed, 12);
    assert_eq!(stream.stats().parked, 1);

    let mut batch = Vec::new();
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert_eq!(stream.poll_drain(&mut cx, &mut batch, usize::MAX), std::task::Poll::Ready(Drained::Some));
    let said: Vec<_> = batch.drain(..).map(|delivery| format!("{delivery:?}")).collect();
    assert!(said.iter().all(|said| said.starts_with("Created") || said.starts_with("Progress")), "{said:?}");
    assert_eq!(said.len(), 3, "two were created, and one is told its progress: {said:?}");
    let end = std::task::Poll::Ready(Drained::End(StreamEnd::Stopping));
    assert_eq!(stream.poll_drain(&mut cx, &mut batch, usize::MAX), end, "whatever is published meanwhile");

    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || stream.leave());
    let metrics = recorder.handle().render();
    assert!(metrics.contains(r#"etcd_relay_watches_canceled_total{reason="shutdown"} 2"#), "{metrics}");
}

#[test]
fn a_key_deleted_and_made_again_in_one_revision_replaces_nothing() {
    let feed = feed(&hub(), "", 10);
    let put = |revision: i64| KeyValueFields {
        key: "k".into(),
        create_revision: Revision::new(revision),
        mod_revision: Revision::new(revision),
        version: 1,
        ..KeyValueFields::default()
    };
    let gone = KeyValueFields { key: "k".into(), mod_revision: Revision::new(12), ..KeyValueFields::default() };
    let change = |kind, kv| EventFields { kind, kv };
    let revisions =
        [vec![change(EventKind::Put, put(11))], vec![change(EventKind::Delete, gone), change(EventKind::Put, put(12))]];
    for (revision, events) in (11..).zip(revisions) {
        let revision = Revision::new(revision);
        let changes = Changes { revision, events, prev: Vec::new(), received: std::time::Instant::now() };
        feed.publish(&[changes]).expect("the next revision");
    }
    let entries = feed.since(Revision::new(11)).1.expect("in the history");
    let replaced: Vec<_> =
        entries[0].events().iter().map(|event| event.prev.as_ref().map(|kv| kv.mod_revision.get())).collect();
    assert_eq!(replaced, [Some(11), None]);
}

#[test]
fn what_happened_since_is_whole_and_ends_with_the_snapshot_while_more_happens() {
    let feed = feed(&hub(), "", 10);
    let last = 20_000;
    std::thread::scope(|scope| {
        let writes = scope.spawn(|| (11..=last).for_each(|revision| publish(&feed, revision)));
        let mut read = 0;
        loop {
            let is_over = writes.is_finished();
            // More than one step, and nearly the whole history.
            let from = feed.revision().get() - 90;
            let (snapshot, entries) = feed.since(Revision::new(from));
            if let Some(entries) = entries.filter(|_| from > 10) {
                let revisions: Vec<_> = entries.iter().map(|entry| entry.revision.get()).collect();
                assert_eq!(revisions, (from + 1..=snapshot.revision.get()).collect::<Vec<_>>());
                read += 1;
            }
            if is_over {
                break;
            }
        }
        writes.join().expect("the writes");
        assert!(read > 0, "nothing was read");
    });
    assert!(feed.since(Revision::new(last - 200)).1.is_none(), "it is no longer in the history");
}

#[test]
fn a_feed_that_is_to_be_always_on_is_shared_with_a_configured_one_alone() {
    let hub = hub();
    let configured = feed(&hub, "/a/", 1);
    assert!(Arc::ptr_eq(&hub.always(KeyRange::prefix("/a/b/".into())), &configured));
    let other = hub.always(KeyRange::prefix("/b/".into()));
    assert!(!Arc::ptr_eq(&other, &configured));
    assert_eq!(other.kind(), FeedKind::Prefix);
    assert!(Arc::ptr_eq(&hub.always(KeyRange::prefix("/b/".into())), &other));
}

#[test]
fn a_list_in_pages_is_of_one_moment_also_where_the_history_is_gone() {
    let hub = hub();
    let feed = hub.open(KeyRange::prefix("".into()));
    let mut map = KeyMap::default();
    for key in 0..250 {
        let fields = KeyValueFields { key: format!("{key:03}").into(), ..KeyValueFields::default() };
        map.insert(KeyValue::new(&fields));
    }
    feed.install(Arc::default(), map.clone(), Revision::new(10));
    let page = |from: &str, revision: i64| {
        let query = RangeQuery {
            limit: 100,
            revision: Revision::new(revision),
            ..RangeQuery::all(KeyRange::from_wire(from.to_owned().into(), "\0".into()).expect("a range"))
        };
        query.read(&feed).map(|reply| {
            let keys: Vec<_> = reply.kvs.kvs().into_iter().map(|kv| kv.key().to_vec()).collect();
            (reply.header.revision.get(), reply.count, reply.more, keys)
        })
    };
    let keys = |from: usize, to: usize| (from..to).map(|key| format!("{key:03}").into_bytes()).collect::<Vec<_>>();
    assert_eq!(page("\0", 0), Ok((10, 250, true, keys(0, 100))));
    // A new key, and more revisions than the history keeps.
    (11..200).for_each(|revision| publish(&feed, revision));
    assert_eq!(page("099\0", 10), Ok((199, 150, true, keys(100, 200))));
    assert_eq!(page("199\0", 10), Ok((199, 50, false, keys(200, 250))));
    assert_eq!(page("099\0", 11), Err(ReadError::BeforeHistory), "no list continues at this revision");
    // The same revision of another cluster.
    feed.reset(&Arc::default(), map, Revision::new(10), &Reset::Replaced);
    publish(&feed, 11);
    assert_eq!(page("099\0", 10), Ok((11, 150, true, keys(100, 200))));
}

#[test]
fn an_event_has_a_copy_of_what_was_packed_and_shares_what_was_not() {
    let feed = hub().open(KeyRange::prefix("".into()));
    let mut map = KeyMap::default();
    map.extend(&["k", "k1", "k2"].map(|key| KeyValueFields {
        key: key.into(),
        value: vec![b'v'; 300].into(),
        ..KeyValueFields::default()
    }));
    let leaf = map.get(b"k").expect("packed").encoded().as_ptr_range();
    feed.install(Arc::default(), map, Revision::new(10));
    for revision in [11, 12] {
        let (revision, key) = (Revision::new(revision), "k".into());
        let kv =
            KeyValueFields { key, create_revision: Revision::new(1), mod_revision: revision, ..Default::default() };
        let events = vec![EventFields { kind: EventKind::Put, kv }];
        let changes = Changes { revision, events, prev: Vec::new(), received: std::time::Instant::now() };
        feed.publish(&[changes]).expect("the next revision");
    }
    let inner = feed.lock();
    let entries = inner.history.read(Revision::new(11), usize::MAX).expect("both");
    let [first, second] = &entries[..] else { panic!("two entries") };
    let prev = |entry: &Entry| entry.events()[0].prev.clone().expect("the value before");
    assert_eq!(prev(first).value(), [b'v'; 300]);
    assert!(!leaf.contains(&prev(first).encoded().as_ptr()), "the history does not keep the leaf");
    assert!(Arc::ptr_eq(&prev(second), &first.events()[0].kv), "it has the key-value already");
    assert!(Arc::ptr_eq(&inner.map.get(b"k").expect("loose").kept(), &second.events()[0].kv), "and so does the map");
}

#[tokio::test(start_paused = true)]
async fn a_list_that_nobody_goes_on_with_is_let_go_also_where_only_other_keys_change() {
    let hub = hub();
    let feed = feed(&hub, "", 10);
    feed.pins.keep(&feed.snapshot());
    publish(&feed, 11);
    feed.advance(Revision::new(12));
    assert!(feed.pins.at(Revision::new(10)).is_some());
    tokio::time::advance(Duration::from_secs(60)).await;
    feed.advance(Revision::new(13));
    assert!(feed.pins.at(Revision::new(10)).is_none());
}

/// Fails if it is woken while the feed's lock is held.
struct Unlocked {
    feed: Arc<Feed>,
    woken: AtomicUsize,
}

impl std::task::Wake for Unlocked {
    fn wake(self: Arc<Self>) {
        assert!(self.feed.inner.is_free(), "woken under the feed's lock");
        self.woken.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn nobody_is_woken_under_the_feeds_lock() {
    let feed = feed(&hub(), "", 10);
    let stream = WatchStream::new(feed.shared.limits.outbox, ClientKey::RELAY);
    subscribe(&feed, &stream, 1, "k");
    drain(&stream);
    type Act = fn(&Arc<Feed>, &Arc<WatchStream>);
    let acts: [(&str, Act); 5] = [
        ("publish", |feed, _| publish(feed, 11)),
        ("advance", |feed, _| feed.advance(Revision::new(12))),
        ("reset", |feed, _| feed.reset(&feed.cluster(), KeyMap::default(), Revision::new(5), &Reset::Replaced)),
        ("stand", |feed, _| feed.set_state(FeedState::Resyncing)),
        ("cancel", |_, stream| stream.cancel(1)),
    ];
    for (name, act) in acts {
        let woken = Arc::new(Unlocked { feed: feed.clone(), woken: AtomicUsize::new(0) });
        let waker = std::task::Waker::from(woken.clone());
        let mut cx = std::task::Context::from_waker(&waker);
        let (mut revisions, mut standings) = (feed.watch_revision(), feed.watch_standing());
        let (mut revision, mut standing) = (Box::pin(revisions.changed()), Box::pin(standings.changed()));
        assert!(revision.as_mut().poll(&mut cx).is_pending() && standing.as_mut().poll(&mut cx).is_pending());
        assert!(stream.poll_drain(&mut cx, &mut Vec::new(), usize::MAX).is_pending());
        act(&feed, &stream);
        assert!(woken.woken.load(Ordering::SeqCst) > 0, "{name} wakes somebody");
        drain(&stream);
    }
}

/// Publishes revision 11 while `gate`, the feed's first stream, cannot be pushed to, and calls `meanwhile` then.
fn beside_a_push(feed: &Arc<Feed>, gate: &WatchStream, meanwhile: impl FnOnce()) {
    std::thread::scope(|scope| {
        let closed = gate.outbox.lock();
        let publishing = scope.spawn(|| publish(feed, 11));
        let patience = std::time::Instant::now() + Duration::from_secs(10);
        while feed.revision() < Revision::new(11) || !feed.inner.is_content_free() {
            assert!(
                std::time::Instant::now() < patience,
                "the feed is held until a revision was pushed to all streams"
            );
            std::thread::yield_now();
        }
        meanwhile();
        assert!(!publishing.is_finished());
        drop(closed);
        publishing.join().expect("published");
    });
}

#[test]
fn creates_reads_and_cancels_do_not_wait_until_what_was_published_is_pushed() {
    let hub = hub();
    let feed = feed(&hub, "", 10);
    let [gate, old, new, left] = [(); 4].map(|()| WatchStream::new(hub.limits().outbox, ClientKey::RELAY));
    [&gate, &old, &left].into_iter().for_each(|stream| subscribe(&feed, stream, 1, "k"));
    beside_a_push(&feed, &gate, || {
        assert!(feed.snapshot().map.get(b"k").is_some());
        assert_eq!(feed.stats().history_entries, 1);
        subscribe(&feed, &new, 1, "k");
        subscribe_from(&feed, &new, 2, "k", 11);
        subscribe_from(&feed, &new, 3, "k", 12);
        old.cancel(1);
        left.leave();
        assert!(drain(&old).iter().all(|told| !told.starts_with("Events")), "it was not pushed to before");
        let told = drain(&new);
        assert_eq!(told.len(), 4, "three were created, and one began in the past: {told:?}");
        assert!(told[3].starts_with("Events { watch_id: 2"), "{told:?}");
    });
    assert_eq!(drain(&gate).len(), 2);
    assert_eq!(
        (drain(&old), drain(&new), drain(&left)),
        (vec![], vec![], vec![]),
        "what was pushed later was not theirs"
    );
    publish(&feed, 12);
    assert_eq!(drain(&new).len(), 3);
}

#[test]
fn a_push_to_a_watch_that_has_left_is_not_given_to_one_of_another_feed_in_its_place() {
    let hub = hub();
    let (ahead, behind) = (feed(&hub, "", 10), feed(&hub, "k", 5));
    let [gate, stream] = [(); 2].map(|()| WatchStream::new(hub.limits().outbox, ClientKey::RELAY));
    [&gate, &stream].into_iter().for_each(|stream| subscribe(&ahead, stream, 1, "k"));
    beside_a_push(&ahead, &gate, || {
        stream.cancel(1);
        subscribe(&behind, &stream, 2, "k");
        drain(&stream);
    });
    assert_eq!(drain(&stream), [""; 0]);
    publish(&behind, 6);
    assert_eq!(drain(&stream).len(), 1, "it needed revision 6 all the same");
}

#[test]
fn a_stream_is_told_no_revision_that_is_still_to_be_pushed_to_it() {
    let hub = hub();
    let (feed, other) = (feed(&hub, "", 10), feed(&hub, "x", 20));
    let tells: [fn(&WatchStream); 3] = [
        |stream| assert_ne!(stream.answer_progress(), ProgressAnswer::Silence),
        |stream| assert!(stream.notify_progress(true)),
        |stream| stream.end(StreamEnd::Stopping, true),
    ];
    for (number, tell) in (11..).zip(tells.into_iter().chain(tells)) {
        let [gate, stream] = [(); 2].map(|()| WatchStream::new(hub.limits().outbox, ClientKey::RELAY));
        [&gate, &stream].into_iter().for_each(|stream| subscribe(&feed, stream, 1, "k"));
        if number >= 14 {
            subscribe(&other, &stream, 2, "x");
        }
        drain(&stream);
        std::thread::scope(|scope| {
            let closed = gate.outbox.lock();
            scope.spawn(|| publish(&feed, number));
            while feed.revision() < Revision::new(number) {
                std::thread::yield_now();
            }
            let telling = scope.spawn(|| tell(&stream));
            // Long enough for one that does not wait.
            let patience = std::time::Instant::now() + Duration::from_millis(100);
            while !telling.is_finished() && std::time::Instant::now() < patience {
                std::thread::yield_now();
            }
            drop(closed);
        });
        let told = drain(&stream);
        let event = told.iter().position(|told| told.starts_with("Events"));
        let progress = told.iter().position(|told| told.ends_with(&format!("progress {number}")));
        assert!(progress.is_none() || event < progress, "{told:?}");
        assert!(event.is_some(), "{told:?}");
        gate.leave();
        stream.leave();
    }
}

/// An answer from upstream.
fn answer(cluster_id: u64, revision: i64) -> Header {
    Header { cluster_id, revision: Revision::new(revision), ..Header::default() }
}

/// A feed of cluster 7 at revision 10.
fn feed_of_cluster() -> Arc<Feed> {
    let feed = hub().open(KeyRange::prefix("".into()));
    feed.install(Arc::new(Cluster::of(&answer(7, 1))), KeyMap::default(), Revision::new(10));
    feed.loaded();
    feed.follows(true, None);
    feed
}

#[test]
fn an_answer_of_another_cluster_or_from_before_the_question_puts_the_feed_in_doubt() {
    for (cluster_id, revision, doubt) in [
        (7, 10, None),
        (7, 11, None),
        (7, 9, Some(Doubt::WentBack)),
        (8, 9, Some(Doubt::Cluster)),
        (8, 10, Some(Doubt::Cluster)),
        (8, 11, Some(Doubt::Cluster)),
    ] {
        let feed = feed_of_cluster();
        let mark = feed.mark();
        // Events that arrive while upstream is asked prove nothing: the answer may be older.
        publish(&feed, 12);
        let expected = if doubt.is_none() { Ok(()) } else { Err(WaitError::Replaced) };
        assert_eq!(feed.check(mark, &answer(cluster_id, revision)), expected, "{cluster_id} at {revision}");
        assert_eq!((feed.doubted(), feed.is_serving()), (doubt, doubt.is_none()), "{cluster_id} at {revision}");
        if let Some(doubt) = doubt {
            feed.settled(Doubt::Permission);
            assert!(!feed.is_serving(), "another doubt was settled");
            feed.settled(doubt);
            assert!(feed.is_serving());
        }
    }
}

#[test]
fn a_doubt_ends_with_the_snapshot_that_it_was_about() {
    let feed = feed_of_cluster();
    let mark = feed.mark();
    assert!(feed.check(mark, &answer(8, 3)).is_err());
    let new = Arc::new(Cluster::of(&answer(8, 3)));
    feed.reset(&new, KeyMap::default(), Revision::new(3), &Reset::Replaced);
    feed.loaded();
    assert!(feed.is_serving() && feed.doubted().is_none());
    // The old cluster was asked. Its answer about the new one does not prove that the new one went back.
    assert_eq!(feed.check(mark, &answer(8, 2)), Ok(()));
    assert_eq!(feed.check(mark, &answer(7, 30)), Err(WaitError::Replaced));
    feed.raise(Doubt::WentBack, mark.epoch);
    assert!(feed.is_serving() && feed.doubted().is_none(), "of a snapshot that is gone");
}

#[tokio::test(start_paused = true)]
async fn a_feed_is_behind_until_it_has_what_the_cluster_had_and_no_longer_than_its_snapshot() {
    let feed = feed_of_cluster();
    let mark = feed.mark();
    assert_eq!((feed.lag(), feed.is_awaited()), (None, false));
    feed.expect(mark, &answer(7, 12));
    tokio::time::advance(Duration::from_secs(2)).await;
    feed.expect(mark, &answer(7, 13));
    assert_eq!(feed.lag(), Some(Lag { revisions: 3, time: Duration::from_secs(2) }));
    assert!(feed.is_awaited(), "its driver asks for progress");
    feed.advance(Revision::new(13));
    assert_eq!((feed.lag(), feed.is_awaited()), (None, false));
    feed.expect(mark, &answer(7, 20));
    assert_eq!(feed.lag(), Some(Lag { revisions: 7, time: Duration::ZERO }), "counted again");
    let new = Arc::new(Cluster::of(&answer(8, 3)));
    feed.reset(&new, KeyMap::default(), Revision::new(3), &Reset::Replaced);
    assert_eq!(feed.lag(), None, "the lag was that of the old snapshot");
}

#[tokio::test]
async fn a_wait_does_not_end_with_another_clusters_revision() {
    let feed = feed_of_cluster();
    let mark = feed.mark();
    let wait = tokio::spawn({
        let feed = feed.clone();
        async move { feed.reach(mark, &answer(7, 20), Duration::from_secs(60)).await }
    });
    while feed.waiting.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let new = Arc::new(Cluster::of(&answer(8, 30)));
    feed.reset(&new, KeyMap::default(), Revision::new(30), &Reset::Replaced);
    assert_eq!(wait.await.expect("the wait"), Err(WaitError::Replaced));
}

#[test]
fn what_is_queued_keeps_the_name_of_the_cluster_that_it_came_from() {
    let feed = feed_of_cluster();
    let stream = WatchStream::new(feed.shared.limits.outbox, ClientKey::RELAY);
    subscribe(&feed, &stream, 1, "k");
    publish(&feed, 11);
    publish(&feed, 12);
    stream.notify_progress(true);
    let new = Arc::new(Cluster::of(&answer(8, 30)));
    feed.reset(&new, KeyMap::default(), Revision::new(30), &Reset::Replaced);
    feed.loaded();
    subscribe(&feed, &stream, 2, "k");
    publish(&feed, 31);
    let mut batch = Vec::new();
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(stream.poll_drain(&mut cx, &mut batch, usize::MAX).is_ready());
    let told: Vec<_> = batch
        .iter()
        .map(|delivery| match delivery {
            Delivery::Created { stamp, .. } => ("created", stamp.cluster.id()),
            Delivery::Events { payload, .. } => ("events", payload.cluster().id()),
            Delivery::Progress { stamp, .. } => ("progress", stamp.cluster.id()),
            Delivery::Canceled(cancellation) => ("canceled", cancellation.header.cluster_id),
        })
        .collect();
    let old = [("created", 7), ("events", 7), ("events", 7), ("progress", 7)];
    assert_eq!(told, [&old[..], &[("canceled", 8), ("created", 8), ("events", 8)]].concat());
}

#[test]
fn a_change_that_was_missed_ends_watches_that_need_only_what_is_to_come() {
    for (reset, ends) in [(Reset::Compacted { compact_revision: Revision::new(21) }, false), (Reset::Missed, true)] {
        let feed = feed_of_cluster();
        let stream = WatchStream::new(feed.shared.limits.outbox, ClientKey::RELAY);
        subscribe(&feed, &stream, 1, "k");
        feed.advance(Revision::new(20));
        feed.reset(&feed.cluster(), KeyMap::default(), Revision::new(20), &reset);
        let mut batch = Vec::new();
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(stream.poll_drain(&mut cx, &mut batch, usize::MAX).is_ready());
        let ended = batch.iter().find_map(|delivery| match delivery {
            Delivery::Canceled(cancellation) => Some(cancellation.compact_revision.get()),
            _ => None,
        });
        assert_eq!(ended, ends.then_some(21), "{reset:?}");
    }
}

#[tokio::test]
async fn a_panic_under_the_feeds_lock_is_a_failure_of_the_process() {
    let feed = feed_of_cluster();
    let panicked = std::thread::scope(|scope| {
        let change = || {
            let _half_done = feed.lock();
            panic!("a bug");
        };
        scope.spawn(change).join().is_err()
    });
    assert!(panicked);
    assert_eq!(feed.shared.tasks.failed().await.task, "change of a feed");
}
