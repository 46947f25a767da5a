//! [`Payload`]: the events for a group of subscriptions, as shared bytes, from one revision or from a run of them.
//!
//! Made by `feed` once per group, for one revision or for several that arrived together; by `catch_up` once per group
//! and chunk of history; and by `catch_up` and `fill` for one subscription. Sent by a front. Always holds: a payload is
//! never empty. It has all wanted events of each of its revisions and of every revision between two of them, so no
//! revision is split or left out.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use super::index::WatchOptions;
use crate::types::{Cluster, Entry, KeyRange, Revision};

/// Indexes of some events of an entry, rising.
pub(super) type Picks = SmallVec<[u32; 4]>;

/// Events encoded as protobuf fields 11 of a `WatchResponse`.
#[derive(Debug)]
pub struct Payload {
    of: Of,
    bytes: Bytes,
    texts: OnceLock<Box<[OnceLock<Text>; TEXTS]>>,
}

/// In how many forms a front may write a payload's events.
pub const TEXTS: usize = 5;

/// A payload's events as a front writes them, made once for all who need them in this form.
#[derive(Debug)]
pub struct Text {
    bytes: Bytes,
    /// Where each revision's bytes end.
    ends: SmallVec<[usize; 2]>,
}

#[derive(Debug)]
enum Of {
    /// One revision, with all of its events or some.
    One { entry: Arc<Entry>, prev_kv: bool, picks: Option<Picks> },
    /// Several rising revisions, whose bytes lie one after the other.
    Run { cluster: Arc<Cluster>, steps: Box<[Step]> },
}

/// One revision of a run.
#[derive(Debug)]
struct Step {
    revision: Revision,
    received: Instant,
    /// Where its bytes end.
    end: u32,
    /// The number of events up to here, counted from the start of the run.
    events: u32,
}

/// One revision of a payload.
#[derive(Clone, Copy, Debug)]
pub struct Whole<'a> {
    /// The revision.
    pub revision: Revision,
    /// Number of its events.
    pub events: usize,
    /// All its events, encoded.
    pub bytes: &'a [u8],
}

impl Payload {
    /// All events of `entry`.
    #[must_use]
    pub(super) fn whole(entry: &Arc<Entry>, prev_kv: bool) -> Arc<Self> {
        let bytes = entry.encoded(prev_kv).clone();
        Arc::new(Self::new(Of::One { entry: entry.clone(), prev_kv, picks: None }, bytes))
    }

    /// The events of `entry` with these indexes.
    #[must_use]
    pub(super) fn some(entry: &Arc<Entry>, prev_kv: bool, picks: Picks) -> Arc<Self> {
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
                let mut joined = BytesMut::with_capacity(encoded_len(entry, prev_kv, &picks));
                append(&mut joined, entry, prev_kv, &picks);
                joined.freeze()
            }
        };
        Arc::new(Self::new(Of::One { entry: entry.clone(), prev_kv, picks: Some(picks) }, bytes))
    }

    /// The events of these entries with these indexes; the entries rise. `None` if there is no entry. The entries are
    /// small, and their bytes are copied once for all who get the run.
    #[must_use]
    pub(super) fn run(found: Vec<(&Arc<Entry>, Picks)>, prev_kv: bool) -> Option<Arc<Self>> {
        if found.len() < 2 {
            return found.into_iter().next().map(|(entry, picks)| Self::some(entry, prev_kv, picks));
        }
        let cluster = found.last().map(|(entry, _)| entry.cluster.clone()).unwrap_or_default();
        let total = found.iter().map(|(entry, picks)| encoded_len(entry, prev_kv, picks)).sum();
        let mut bytes = BytesMut::with_capacity(total);
        let mut events = 0;
        let step = |(entry, picks): (&Arc<Entry>, Picks)| {
            append(&mut bytes, entry, prev_kv, &picks);
            events += picks.len() as u32;
            Step { revision: entry.revision, received: entry.received, end: bytes.len() as u32, events }
        };
        let steps: Box<[Step]> = found.into_iter().map(step).collect();
        Some(Arc::new(Self::new(Of::Run { cluster, steps }, bytes.freeze())))
    }

    fn new(of: Of, bytes: Bytes) -> Self {
        Self { of, bytes, texts: OnceLock::new() }
    }

    /// The events of these entries that lie in `range` and that `options` want; the entries rise. `None` if there is
    /// none.
    #[must_use]
    pub(super) fn matching(entries: &[Arc<Entry>], range: &KeyRange, options: WatchOptions) -> Option<Arc<Self>> {
        let picks = |entry: &Entry| -> Picks {
            let events = entry.events().iter().enumerate();
            let wanted = events.filter(|(_, event)| options.wants(event.kind) && range.contains(event.kv.key()));
            wanted.map(|(index, _)| index as u32).collect()
        };
        let found = entries.iter().map(|entry| (entry, picks(entry))).filter(|(_, picks)| !picks.is_empty());
        Self::run(found.collect(), options.prev_kv)
    }

    /// The cluster that made the events. Within a feed's epoch, and so within a payload, there is only one.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        match &self.of {
            Of::One { entry, .. } => &entry.cluster,
            Of::Run { cluster, .. } => cluster,
        }
    }

    /// The last revision of the events.
    #[must_use]
    pub fn revision(&self) -> Revision {
        match &self.of {
            Of::One { entry, .. } => entry.revision,
            Of::Run { steps, .. } => steps.last().map_or(Revision::ZERO, |step| step.revision),
        }
    }

    /// Number of revisions.
    #[must_use]
    pub fn revisions(&self) -> usize {
        match &self.of {
            Of::One { .. } => 1,
            Of::Run { steps, .. } => steps.len(),
        }
    }

    /// How many revisions of the payload are below `next`.
    #[must_use]
    pub fn before(&self, next: Revision) -> usize {
        match &self.of {
            Of::One { entry, .. } => usize::from(entry.revision < next),
            Of::Run { steps, .. } => match steps.first() {
                Some(first) if first.revision >= next => 0,
                _ => steps.partition_point(|step| step.revision < next),
            },
        }
    }

    /// The revision with this index; the last one for a larger index.
    #[must_use]
    pub(super) fn revision_at(&self, from: usize) -> Revision {
        match &self.of {
            Of::Run { steps, .. } => steps.get(from).map_or_else(|| self.revision(), |step| step.revision),
            Of::One { .. } => self.revision(),
        }
    }

    /// When the relay received the revision with this index.
    #[must_use]
    pub fn received(&self, from: usize) -> Option<Instant> {
        match &self.of {
            Of::One { entry, .. } => Some(entry.received),
            Of::Run { steps, .. } => steps.get(from).map(|step| step.received),
        }
    }

    /// All encoded events, except those of the first `from` revisions.
    #[must_use]
    pub fn bytes(&self, from: usize) -> &[u8] {
        &self.bytes[self.place(from).0..]
    }

    /// The same bytes as `part`, which another method returned, to be kept without a copy.
    #[must_use]
    pub fn share(&self, part: &[u8]) -> Bytes {
        self.bytes.slice_ref(part)
    }

    /// Number of these bytes.
    #[must_use]
    pub fn size(&self, from: usize) -> usize {
        self.bytes.len() - self.place(from).0
    }

    /// Number of events, except those of the first `from` revisions.
    #[must_use]
    pub fn events(&self, from: usize) -> usize {
        let all = match &self.of {
            Of::One { entry, picks, .. } => picks.as_ref().map_or(entry.events().len(), |picks| picks.len()),
            Of::Run { steps, .. } => steps.last().map_or(0, |step| step.events as usize),
        };
        all - self.place(from).1
    }

    /// The revisions one by one, except the first `from`.
    pub fn each(&self, from: usize) -> impl Iterator<Item = Whole<'_>> {
        (from..self.revisions()).map(move |index| {
            let ((start, first), (end, last)) = match &self.of {
                Of::One { .. } => ((0, 0), (self.bytes.len(), self.events(0))),
                Of::Run { .. } => (self.place(index), self.place(index + 1)),
            };
            Whole { revision: self.revision_at(index), events: last - first, bytes: &self.bytes[start..end] }
        })
    }

    /// The events as text of this form, of which there are [`TEXTS`]. The first caller makes it: `write` appends a
    /// revision. It lives as long as the payload.
    pub fn text(&self, form: usize, write: impl Fn(&Whole<'_>, &mut Vec<u8>)) -> &Text {
        let texts = self.texts.get_or_init(Box::default);
        texts[form].get_or_init(|| {
            let mut bytes = Vec::with_capacity(2 * self.bytes.len());
            let mut ends = SmallVec::with_capacity(self.revisions());
            for whole in self.each(0) {
                write(&whole, &mut bytes);
                ends.push(bytes.len());
            }
            Text { bytes: bytes.into(), ends }
        })
    }

    /// The encoded events of a single revision, one by one. Nothing for a run, which is far too small to be sent in
    /// fragments.
    pub fn pieces(&self) -> impl Iterator<Item = Bytes> {
        let one = match &self.of {
            Of::One { entry, prev_kv, picks } => Some((entry, *prev_kv, picks)),
            Of::Run { .. } => None,
        };
        one.into_iter().flat_map(move |(entry, prev_kv, picks)| {
            let encoded = entry.encoded(prev_kv);
            (0..self.events(0)).map(move |index| {
                let index = picks.as_ref().map_or(index, |picks| picks[index] as usize);
                encoded.slice(entry.place(index, prev_kv))
            })
        })
    }

    /// Bytes that the payload keeps in memory. For a single revision these are all bytes of its entry, however few of
    /// its events are wanted.
    #[must_use]
    pub(super) fn cost(&self) -> usize {
        match &self.of {
            Of::One { entry, .. } => entry.cost(),
            Of::Run { steps, .. } => self.bytes.len() + size_of_val(&**steps),
        }
    }

    /// Bytes and events of the first `from` revisions of a run.
    fn place(&self, from: usize) -> (usize, usize) {
        match (&self.of, from.checked_sub(1)) {
            (Of::Run { steps, .. }, Some(before)) => {
                steps.get(before).or(steps.last()).map_or((0, 0), |step| (step.end as usize, step.events as usize))
            }
            _ => (0, 0),
        }
    }
}

impl Text {
    /// The text of each revision, except the first `from`.
    pub fn revisions(&self, from: usize) -> impl Iterator<Item = Bytes> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).skip(from).map(|(start, end)| self.bytes.slice(start..*end))
    }

    /// The text, except that of the first `from` revisions.
    #[must_use]
    pub fn from(&self, from: usize) -> Bytes {
        let start = from.checked_sub(1).map_or(0, |before| self.ends.get(before).copied().unwrap_or(self.bytes.len()));
        if start == 0 { self.bytes.clone() } else { self.bytes.slice(start..) }
    }
}

fn encoded_len(entry: &Entry, prev_kv: bool, picks: &[u32]) -> usize {
    if picks.len() == entry.events().len() {
        return entry.encoded(prev_kv).len();
    }
    picks.iter().map(|index| entry.place(*index as usize, prev_kv).len()).sum()
}

fn append(bytes: &mut BytesMut, entry: &Entry, prev_kv: bool, picks: &[u32]) {
    let encoded = entry.encoded(prev_kv);
    if picks.len() == entry.events().len() {
        bytes.extend_from_slice(encoded);
    } else {
        picks.iter().for_each(|index| bytes.extend_from_slice(&encoded[entry.place(*index as usize, prev_kv)]));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::types::{EventFields, EventKind, KeyValueFields};

    fn entry(revision: i64) -> Arc<Entry> {
        let kv = KeyValueFields { key: "k".into(), ..KeyValueFields::default() };
        let changes = [EventFields { kind: EventKind::Put, kv }];
        Arc::new(Entry::encode(&Arc::default(), Revision::new(revision), Instant::now(), &changes, |_| None))
    }

    #[test]
    fn text_is_made_once_for_all_who_get_it_in_a_form_and_cut_between_revisions() {
        let entries = [entry(3), entry(5), entry(8)];
        let all = |entry| (entry, Picks::from_slice(&[0]));
        let run = Payload::run(entries.iter().map(all).collect(), false).expect("some");
        let written = Cell::new(0);
        let text = |form: usize| {
            run.text(form, |whole, to| {
                written.set(written.get() + 1);
                to.extend_from_slice(format!("<{form}:{}>", whole.revision).as_bytes());
            })
        };
        assert_eq!(text(0).from(0), "<0:3><0:5><0:8>");
        assert_eq!(
            (text(0).from(1), text(0).from(2), text(0).from(3)),
            ("<0:5><0:8>".into(), "<0:8>".into(), "".into())
        );
        assert_eq!(text(0).revisions(1).collect::<Vec<_>>(), ["<0:5>", "<0:8>"]);
        assert_eq!(written.get(), 3, "each revision once, however many callers there are");
        assert!(std::ptr::eq(text(0).from(0).as_ptr(), text(0).from(0).as_ptr()), "all get the same bytes");
        assert_eq!(text(TEXTS - 1).from(2), format!("<{}:8>", TEXTS - 1));
        let one = Payload::whole(&entries[0], false);
        assert_eq!(one.text(1, |whole, to| to.extend_from_slice(whole.bytes)).from(0), entries[0].encoded(false));
    }
}
