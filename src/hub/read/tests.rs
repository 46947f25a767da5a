//! Compares reads with a naive answer to the same query, and checks how their work is divided into steps.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    hub::{FeedState, Hub, KeyMap, OutboxLimits, testing, upstream::Changes},
    types::{EventFields, EventKind, KeyValueFields},
};

fn hub() -> Arc<Hub> {
    testing::hub(OutboxLimits { bytes: 1, deliveries: 1, watches: 1 })
}

fn everything() -> RangeQuery {
    RangeQuery::all(KeyRange::prefix("".into()))
}

/// The state after each revision.
type States = BTreeMap<i64, BTreeMap<Vec<u8>, Arc<KeyValue>>>;

/// A feed that went through these changes, and its states. `(key, value)` is a put; without a value it is a delete.
fn feed(hub: &Arc<Hub>, first: KeyMap, changes: &[(u8, Option<u8>)]) -> (Arc<Feed>, States) {
    let feed = hub.open(KeyRange::prefix("".into()));
    let mut state: BTreeMap<Vec<u8>, Arc<KeyValue>> =
        first.range(feed.range()).map(|kv| (kv.key().to_vec(), kv.kept())).collect();
    let mut states = States::from([(10, state.clone())]);
    feed.install(Arc::default(), first, Revision::new(10));
    feed.set_state(FeedState::Live);
    for (number, (key, value)) in changes.iter().enumerate() {
        let revision = Revision::new(11 + number as i64);
        let key = vec![*key];
        let before = state.get(&key);
        let (kind, kv) = match value {
            None => {
                if before.is_none() {
                    continue;
                }
                state.remove(&key);
                let kv = KeyValueFields { key: key.into(), mod_revision: revision, ..KeyValueFields::default() };
                (EventKind::Delete, kv)
            }
            Some(value) => {
                let kv = KeyValueFields {
                    key: key.clone().into(),
                    // Some differ only after their first bytes.
                    value: [&b"a long beginning"[..], &[*value]].concat().into(),
                    create_revision: before.map_or(revision, |kv| kv.create_revision),
                    mod_revision: revision,
                    version: before.map_or(1, |kv| kv.version + 1),
                    lease: 0,
                };
                state.insert(key, Arc::new(KeyValue::new(&kv)));
                (EventKind::Put, kv)
            }
        };
        publish(&feed, revision, vec![EventFields { kind, kv }]);
        states.insert(revision.get(), state.clone());
    }
    (feed, states)
}

fn publish(feed: &Feed, revision: Revision, events: Vec<EventFields>) {
    let changes = Changes { revision, events, prev: Vec::new(), received: std::time::Instant::now() };
    feed.publish(&[changes]).expect("published");
}

/// Key-values in order, without values if the query wants none; whether there are more; the count.
type Answer = (Vec<KeyValueFields>, bool, usize);

/// What etcd does, step by step: reads, filters, sorts, limits.
fn naive(query: &RangeQuery, state: &BTreeMap<Vec<u8>, Arc<KeyValue>>) -> Answer {
    let mut kvs: Vec<&Arc<KeyValue>> = state.values().filter(|kv| query.range.contains(kv.key())).collect();
    let count = kvs.len();
    if query.count_only {
        return (Vec::new(), false, count);
    }
    let limit = if query.limit == 0 { usize::MAX } else { query.limit };
    if query.sort_order == SortOrder::None && !query.is_filtered() {
        kvs.truncate(limit.saturating_add(1));
    }
    kvs.retain(|kv| query.keeps(kv));
    let compare = |a: &&Arc<KeyValue>, b: &&Arc<KeyValue>| match query.sort_target {
        SortTarget::Key => a.key().cmp(b.key()),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value().cmp(b.value()),
    };
    match query.sort_order {
        SortOrder::Descend => kvs.sort_by(|a, b| compare(b, a)),
        SortOrder::None | SortOrder::Ascend => kvs.sort_by(compare),
    }
    let more = kvs.len() > limit;
    kvs.truncate(limit);
    let fields = |kv: &Arc<KeyValue>| {
        let fields = kv.fields();
        if query.keys_only { KeyValueFields { value: bytes::Bytes::new(), ..fields } } else { fields }
    };
    (kvs.into_iter().map(fields).collect(), more, count)
}

/// What a reply sends, in parts of this many bytes.
fn sent(reply: &mut RangeReply, bytes: usize) -> Vec<u8> {
    let (mut sent, len) = (Vec::new(), reply.kvs.encoded_len());
    while !reply.kvs.is_empty() {
        reply.kvs.take(bytes, |part| sent.extend_from_slice(&part));
    }
    assert_eq!(sent.len(), len, "as long as it reported");
    sent
}

fn query() -> impl Strategy<Value = RangeQuery> {
    let range = (prop::option::of(0..12_u8), prop::option::of(1..13_u8));
    let target = prop::sample::select(vec![
        SortTarget::Key,
        SortTarget::Version,
        SortTarget::Create,
        SortTarget::Mod,
        SortTarget::Value,
    ]);
    let order = prop::sample::select(vec![SortOrder::None, SortOrder::Ascend, SortOrder::Descend]);
    let bound = || prop::sample::select(vec![0_i64, 0, 0, 12, 20, 30]);
    (range, 0..8_usize, target, order, any::<(bool, bool)>(), (bound(), bound(), bound(), bound()), -1..40_i64)
        .prop_filter_map(
            "an empty range",
            |((from, to), limit, sort_target, sort_order, (keys_only, count_only), bounds, revision)| {
                let key = |key: Option<u8>| vec![key.unwrap_or(0)].into();
                let range = KeyRange::from_wire(key(from), key(to)).ok()?;
                Some(RangeQuery {
                    range,
                    limit,
                    revision: Revision::new(if revision < 0 { 0 } else { 10 + revision }),
                    sort_order,
                    sort_target,
                    keys_only,
                    count_only: count_only && limit == 0,
                    min_mod_revision: Revision::new(bounds.0),
                    max_mod_revision: Revision::new(bounds.1),
                    min_create_revision: Revision::new(bounds.2),
                    max_create_revision: Revision::new(bounds.3),
                })
            },
        )
}

proptest! {
    #[test]
    fn each_read_answers_as_etcd_does(
        changes in prop::collection::vec((0..12_u8, prop::option::weighted(0.7, 0..4_u8)), 0..40),
        queries in prop::collection::vec(query(), 20),
    ) {
        let (feed, states) = feed(&hub(), KeyMap::default(), &changes);
        let newest = feed.revision();
        for query in queries {
            let reply = query.read(&feed);
            if query.revision > newest {
                prop_assert!(matches!(reply, Err(ReadError::Future)));
                continue;
            }
            let at = if query.revision == Revision::ZERO { newest } else { query.revision };
            let state = states.range(..=at.get()).next_back().expect("a state").1;
            let expected = naive(&query, state);
            let mut reply = reply.expect("a reply");
            prop_assert_eq!((reply.more, reply.count, reply.kvs.len()), (expected.1, expected.2, expected.0.len()), "{:?}", query);
            let bytes: Vec<u8> = expected.0.iter().flat_map(|fields| KeyValue::new(fields).encoded().to_vec()).collect();
            prop_assert_eq!(sent(&mut reply, 40), bytes, "{:?}", query);
            prop_assert_eq!(reply.header.revision, newest);
        }
    }
}

#[test]
fn a_past_read_looks_at_no_key_beyond_those_that_etcd_sorts() {
    // Key 3 is deleted, and comes after all that are left. It is older than these, but etcd sorts only the first two
    // keys.
    let (feed, states) = feed(&hub(), KeyMap::default(), &[(3, Some(0)), (1, Some(0)), (2, Some(0)), (3, None)]);
    let query = RangeQuery { limit: 1, sort_target: SortTarget::Create, revision: Revision::new(13), ..everything() };
    let reply = query.read(&feed).expect("a reply");
    assert_eq!((reply.kvs.kvs()[0].key(), reply.more, reply.count), (&[1][..], true, 3));
    assert_eq!(naive(&query, &states[&13]).0[0].key, &[1][..]);
}

/// More keys than one step looks at, with different values in no order.
const KEYS: usize = 20_000;

fn many() -> KeyMap {
    let mut map = KeyMap::default();
    for key in 0..KEYS {
        let value = (key * 7919 % KEYS).to_string().into();
        let mod_revision = Revision::new((key * 31 % 10) as i64);
        let fields =
            KeyValueFields { key: format!("{key:06}").into(), value, mod_revision, ..KeyValueFields::default() };
        map.insert(KeyValue::new(&fields));
    }
    map
}

/// The reply to a query, and the steps that its walk took.
fn walked(query: &RangeQuery, feed: &Feed) -> (RangeReply, usize) {
    let mut walk = Walk::new(query.clone());
    for steps in 1.. {
        if let Some(reply) = walk.step(feed) {
            return (reply.expect("a reply"), steps);
        }
    }
    unreachable!("a walk ends")
}

#[test]
fn however_many_keys_are_sorted_a_step_looks_at_a_bounded_number_of_them() {
    let (feed, states) = feed(&hub(), many(), &[]);
    for (sort_target, limit) in [(SortTarget::Value, 0), (SortTarget::Value, 1), (SortTarget::Mod, 10_000)] {
        for sort_order in [SortOrder::Ascend, SortOrder::Descend] {
            let query = RangeQuery { sort_target, sort_order, limit, ..everything() };
            let (reply, steps) = walked(&query, &feed);
            assert!(steps > KEYS / 2048, "{steps} steps");
            let expected: Vec<_> = naive(&query, &states[&10]).0;
            let kvs: Vec<_> = reply.kvs.kvs().into_iter().map(|kv| kv.fields()).collect();
            assert_eq!((kvs, reply.more), (expected, limit > 0));
        }
    }
    let query = RangeQuery { max_mod_revision: Revision::new(3), ..everything() };
    let (reply, steps) = walked(&query, &feed);
    assert!(
        steps > KEYS / 2048 && reply.count == KEYS && reply.kvs.len() == KEYS * 3 / 10 + KEYS / 10,
        "{steps} steps"
    );
}

#[test]
fn however_much_one_revision_changed_a_step_undoes_a_bounded_part_of_it() {
    let (feed, states) = feed(&hub(), many(), &[]);
    let gone = |key: usize| KeyValueFields {
        key: format!("{key:06}").into(),
        mod_revision: Revision::new(11),
        ..KeyValueFields::default()
    };
    let events = (0..KEYS).map(|key| EventFields { kind: EventKind::Delete, kv: gone(key) }).collect();
    publish(&feed, Revision::new(11), events);
    let query = RangeQuery { revision: Revision::new(10), ..everything() };
    let (reply, steps) = walked(&query, &feed);
    assert!(steps > 2 * KEYS / 2048, "{steps} steps");
    assert_eq!((reply.count, reply.kvs.len(), reply.header.revision), (KEYS, KEYS, Revision::new(11)));
    assert_eq!(reply.kvs.kvs()[0].fields(), states[&10][&b"000000"[..]].fields());
    let counted = RangeQuery { count_only: true, ..query };
    assert_eq!(walked(&counted, &feed).0.count, KEYS);
}

#[test]
fn lists_by_key_in_either_direction_need_no_walk() {
    let (feed, _) = feed(&hub(), many(), &[]);
    for (sort_order, keys_only, limit) in [
        (SortOrder::None, true, 0),
        (SortOrder::Descend, false, 0),
        (SortOrder::Descend, true, 3),
        (SortOrder::Ascend, false, 5),
    ] {
        let query = RangeQuery { sort_order, keys_only, limit, ..everything() };
        assert!(matches!(query.begin(&feed), Ok(Begun::Reply(_))), "{query:?}");
    }
}

#[tokio::test]
async fn a_long_read_is_answered_by_the_threads_for_it() {
    let (feed, _) = feed(&hub(), many(), &[]);
    let query = RangeQuery { sort_target: SortTarget::Value, limit: 1, ..everything() };
    let query = RangeQuery { sort_order: SortOrder::Ascend, ..query };
    let asker = || Asker { client: crate::types::ClientKey::new(1), connection: 1 };
    assert!(matches!(query.begin(&feed), Ok(Begun::Walk(_))), "not here");
    let reply = query.answer(&feed, asker).await.expect("a reply");
    assert_eq!((reply.kvs.kvs()[0].value(), reply.more, reply.count), (&b"0"[..], true, KEYS));
}

#[tokio::test]
async fn a_read_during_which_the_feed_begins_again_says_so() {
    let (feed, _) = feed(&hub(), many(), &[]);
    let query = RangeQuery { sort_target: SortTarget::Value, sort_order: SortOrder::Ascend, ..everything() };
    let mut walk = Walk::new(query);
    assert!(walk.step(&feed).is_none() && walk.step(&feed).is_none());
    feed.reset(&Arc::default(), KeyMap::default(), Revision::new(10), &crate::hub::Reset::Replaced);
    let ended = std::iter::repeat_with(|| walk.step(&feed)).flatten().next();
    assert!(matches!(ended, Some(Err(ReadError::Overtaken))), "{ended:?}");
}

#[tokio::test]
async fn a_past_read_before_which_the_feed_begins_again_takes_nothing_of_the_new_history() {
    let (feed, _) = feed(&hub(), many(), &[]);
    let past = feed.revision().previous();
    let mut walk = Walk::new(RangeQuery { revision: past, ..everything() });
    assert!(walk.step(&feed).is_none(), "it has seen that the revision is in the past");
    // Now the revision is in the future.
    feed.reset(&Arc::default(), KeyMap::default(), past.previous(), &crate::hub::Reset::Replaced);
    let ended = std::iter::repeat_with(|| walk.step(&feed)).flatten().next();
    assert!(matches!(ended, Some(Err(ReadError::BeforeHistory))), "{ended:?}");
}
