//! [`Payload`]: the events of one revision that a group of subscriptions gets, as shared bytes.
//!
//! Made by `feed` once per revision and group, by `catch_up` and `fill` for one subscription; sent by a front.
//! Always holds: a payload is never empty, and has all wanted events of its revision, so a revision is never split.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use super::index::WatchOptions;
use crate::types::{Entry, KeyRange, Revision};

/// Events of one revision, encoded as protobuf fields 11 of a `WatchResponse`.
#[derive(Debug)]
pub struct Payload {
    entry: Arc<Entry>,
    prev_kv: bool,
    picks: Picks,
    bytes: Bytes,
}

/// Which events of the entry.
#[derive(Debug)]
enum Picks {
    All,
    Some(SmallVec<[u32; 4]>),
}

impl Payload {
    /// All events of `entry`.
    #[must_use]
    pub(super) fn whole(entry: &Arc<Entry>, prev_kv: bool) -> Arc<Self> {
        let bytes = entry.encoded(prev_kv).clone();
        Arc::new(Self { entry: entry.clone(), prev_kv, picks: Picks::All, bytes })
    }

    /// The events of `entry` with these indexes, which rise.
    #[must_use]
    pub(super) fn some(entry: &Arc<Entry>, prev_kv: bool, picks: SmallVec<[u32; 4]>) -> Arc<Self> {
        if picks.len() == entry.events().len() {
            return Self::whole(entry, prev_kv);
        }
        let place = |index: u32| entry.place(index as usize, prev_kv);
        let contiguous = picks.windows(2).all(|pair| pair[0] + 1 == pair[1]);
        let bytes = match (picks.first(), picks.last()) {
            (Some(first), Some(last)) if contiguous => {
                entry.encoded(prev_kv).slice(place(*first).start..place(*last).end)
            }
            _ => {
                let mut joined = BytesMut::with_capacity(picks.iter().map(|index| place(*index).len()).sum());
                picks.iter().for_each(|index| joined.extend_from_slice(&entry.encoded(prev_kv)[place(*index)]));
                joined.freeze()
            }
        };
        Arc::new(Self { entry: entry.clone(), prev_kv, picks: Picks::Some(picks), bytes })
    }

    /// The events of `entry` that lie in `range` and that `options` want; `None` where there is none.
    #[must_use]
    pub(super) fn matching(entry: &Arc<Entry>, range: &KeyRange, options: WatchOptions) -> Option<Arc<Self>> {
        let picks: SmallVec<[u32; 4]> = entry
            .events()
            .iter()
            .enumerate()
            .filter(|(_, event)| options.wants(event.kind) && range.contains(event.kv.key()))
            .map(|(index, _)| index as u32)
            .collect();
        (!picks.is_empty()).then(|| Self::some(entry, options.prev_kv, picks))
    }

    /// The revision of the events.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.entry.revision
    }

    /// The revision that the events are from, with the time of its arrival.
    #[must_use]
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// All events of the payload, encoded.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Number of events.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.picks {
            Picks::All => self.entry.events().len(),
            Picks::Some(picks) => picks.len(),
        }
    }

    /// Never true; here because `len` is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The events one by one, encoded. Used where a response must be sent in fragments.
    pub fn pieces(&self) -> impl Iterator<Item = Bytes> + '_ {
        let encoded = self.entry.encoded(self.prev_kv);
        (0..self.len()).map(move |index| {
            let index = match &self.picks {
                Picks::All => index,
                Picks::Some(picks) => picks[index] as usize,
            };
            encoded.slice(self.entry.place(index, self.prev_kv))
        })
    }
}
