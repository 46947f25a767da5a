//! Compares the store with a naive model that keeps every past state: after random writes and compactions, every
//! revision is read and watched from. A failure prints its seed; `ETCD_RELAY_TEST_SEED` repeats it.

use std::collections::BTreeMap;

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::types::{EventFields, KeyValueFields};

type State = BTreeMap<Bytes, KeyValueFields>;

/// State and events of every revision, even compacted ones; index 0 is revision 1.
struct Model {
    states: Vec<State>,
    events: Vec<Vec<EventFields>>,
    compacted: i64,
    keep: i64,
}

/// A write of a transaction.
enum Write {
    Put(Bytes, Bytes),
    Delete(Bytes, Bytes),
}

impl Model {
    fn current(&self) -> i64 {
        self.states.len() as i64
    }

    fn state(&self, revision: i64) -> &State {
        &self.states[revision as usize - 1]
    }

    fn write(&mut self, writes: &[Write]) {
        let mut state = self.state(self.current()).clone();
        let mod_revision = Revision::new(self.current() + 1);
        let mut events = Vec::new();
        for write in writes {
            match write {
                Write::Put(key, value) => {
                    let old = state.get(key);
                    let kv = KeyValueFields {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision: old.map_or(mod_revision, |kv| kv.create_revision),
                        mod_revision,
                        version: old.map_or(1, |kv| kv.version + 1),
                        lease: 0,
                    };
                    state.insert(key.clone(), kv.clone());
                    events.push(EventFields { kind: EventKind::Put, kv });
                }
                Write::Delete(key, end) => {
                    let in_range = |candidate: &Bytes| match &end[..] {
                        b"" => candidate == key,
                        b"\0" => candidate >= key,
                        _ => candidate >= key && candidate < end,
                    };
                    let keys: Vec<_> = state.keys().filter(|key| in_range(key)).cloned().collect();
                    for key in keys {
                        state.remove(&key);
                        let kv = KeyValueFields { key, mod_revision, ..KeyValueFields::default() };
                        events.push(EventFields { kind: EventKind::Delete, kv });
                    }
                }
            }
        }
        if !events.is_empty() {
            self.states.push(state);
            self.events.push(events);
            // Revision 1 has no events, so it takes no place in the history.
            if self.current() - self.keep >= 2 {
                self.compacted = self.compacted.max(self.current() - self.keep + 1);
            }
        }
    }

    fn compact(&mut self, revision: i64) -> Result<(), StoreError> {
        if revision <= self.compacted {
            Err(StoreError::Compacted)
        } else if revision > self.current() {
            Err(StoreError::FutureRevision)
        } else {
            self.compacted = revision;
            Ok(())
        }
    }
}

#[tokio::test]
async fn every_kept_revision_reads_and_watches_as_in_the_model() {
    if let Ok(seed) = std::env::var("ETCD_RELAY_TEST_SEED") {
        return run(seed.parse().expect("ETCD_RELAY_TEST_SEED is a number")).await;
    }
    for _ in 0..20 {
        run(rand::random()).await;
    }
}

async fn run(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let keep = if rng.random() { rng.random_range(1..60) } else { 100_000 };
    let history_revisions = NonZeroUsize::new(keep).expect("not zero");
    let store = Store::new(StoreConfig { history_revisions, ..StoreConfig::default() });
    let mut model = Model { states: vec![State::new()], events: vec![Vec::new()], compacted: -1, keep: keep as i64 };
    for step in 0..300 {
        if rng.random_bool(0.03) {
            let revision = rng.random_range(0..=model.current() + 1);
            let told = store.compact(&CompactionRequest { revision, physical: false }).map(|_| ());
            assert_eq!(told, model.compact(revision), "seed {seed}, step {step}");
        } else {
            let writes = random_writes(&mut rng);
            let ops = writes.iter().map(|write| RequestOp { request: Some(request(write)) }).collect();
            let told = store.txn(&TxnRequest { success: ops, ..TxnRequest::default() }).expect("a transaction");
            model.write(&writes);
            assert_eq!(told.header.expect("a header").revision, model.current(), "seed {seed}, step {step}");
        }
        if step % 50 == 49 {
            compare_reads(&store, &model, seed);
            compare_watches(&store, &model, seed).await;
        }
    }
}

/// Up to four writes. No key is put that is also deleted or put again, since such a transaction is refused.
fn random_writes(rng: &mut StdRng) -> Vec<Write> {
    let mut keys: Vec<u8> = (b'a'..=b'h').collect();
    let mut key = |rng: &mut StdRng| keys.remove(rng.random_range(0..keys.len()));
    let mut writes: Vec<_> = (0..rng.random_range(0..4))
        .map(|_| Write::Put(vec![key(rng)].into(), vec![b'v'; rng.random_range(0..9)].into()))
        .collect();
    if writes.is_empty() && rng.random() {
        let ends: [&'static [u8]; 3] = [b"", b"\0", b"g"];
        writes.push(Write::Delete(vec![key(rng)].into(), Bytes::from_static(ends[rng.random_range(0..3)])));
    } else if rng.random_bool(0.3) {
        writes.push(Write::Delete(vec![key(rng)].into(), Bytes::new()));
    }
    writes
}

fn request(write: &Write) -> Request {
    match write.clone_parts() {
        (true, key, value) => Request::RequestPut(PutRequest { key, value, ..PutRequest::default() }),
        (false, key, range_end) => {
            Request::RequestDeleteRange(DeleteRangeRequest { key, range_end, ..DeleteRangeRequest::default() })
        }
    }
}

impl Write {
    /// Whether it is a put, and its two fields.
    fn clone_parts(&self) -> (bool, Bytes, Bytes) {
        match self {
            Self::Put(key, value) => (true, key.clone(), value.clone()),
            Self::Delete(key, end) => (false, key.clone(), end.clone()),
        }
    }
}

fn compare_reads(store: &Store, model: &Model, seed: u64) {
    for revision in 1..=model.current() {
        let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), revision, ..RangeRequest::default() };
        let told = store.range(&all).map(|response| response.kvs);
        let state = model.state(revision).values().map(|kv| convert::key_value(kv, true)).collect();
        let expected = if revision < model.compacted { Err(StoreError::Compacted) } else { Ok(state) };
        assert_eq!(told, expected, "seed {seed}, revision {revision} of {}", model.current());
    }
    let live: usize = model.state(model.current()).values().map(|kv| kv.key.len() + kv.value.len() + 128).sum();
    assert_eq!(store.sizes().0, live, "seed {seed}: bytes of the newest versions");
}

async fn compare_watches(store: &Store, model: &Model, seed: u64) {
    for start in 1..=model.current() {
        let mut watch = watch_all(store, start).await;
        if start < model.compacted {
            let told = now(&mut watch);
            let expected = Revision::new(model.compacted);
            assert!(
                matches!(told, Some(WatchMessage::Compacted { compact_revision }) if compact_revision == expected),
                "seed {seed}, from {start}: {told:?}"
            );
            continue;
        }
        let (mut told, mut prev) = (Vec::new(), Vec::new());
        while let Some(WatchMessage::Events { revisions, .. }) = now(&mut watch) {
            for changes in revisions {
                told.extend(changes.events);
                prev.extend(changes.prev);
            }
        }
        let expected: Vec<_> = model.events[start as usize - 1..].iter().flatten().cloned().collect();
        assert_eq!(told, expected, "seed {seed}, from {start}");
        let before = |event: &EventFields| {
            let revision = event.kv.mod_revision.get() - 1;
            if revision < model.compacted { None } else { model.state(revision).get(&event.kv.key).cloned() }
        };
        assert_eq!(prev, expected.iter().map(before).collect::<Vec<_>>(), "seed {seed}, from {start}: prev_kv");
    }
}
