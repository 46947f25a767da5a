//! Puts `WatchResponse`s together from what an stream gives: a small head for each, and the hub's shared bytes.
//!
//! Always holds: a response has whole revisions; the header's revision of live events is that of the last of them; of events
//! from the past it is the newest when they were read, as etcd does it (docs/promises.md, section 3).

use std::sync::Arc;

use bytes::BytesMut;

use super::pieces::{MAX_REQUEST, Pieces, SHARE_FROM, Writer, put_bytes, put_header, put_int};
use crate::{
    hub::{Cancellation, Delivery, Payload, Whole},
    types::{Cluster, Header, Revision},
};

/// From this many waiting deliveries on, live events of one watch are joined into one response, as those from the past always
/// are. Fewer go out as etcd sends them, one response a revision.
const BURST: usize = 16;
/// Most event bytes and revisions of a joined response. etcd gives at most 1000 revisions in one.
const JOINED: (usize, usize) = (1 << 20, 1000);
/// Room for heads: an estimate per delivery.
const HEAD_BYTES: usize = 64;

/// What was written, for metrics.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Responses.
    pub(super) responses: u64,
    /// Events in them.
    pub(super) events: u64,
}

/// Writes all deliveries of `batch`, in order, and empties it.
pub(super) fn write(batch: &mut Vec<Delivery>) -> (Pieces, Written) {
    let (mut small, mut waiting) = (0, 0);
    for delivery in &*batch {
        small += HEAD_BYTES;
        waiting += 1;
        if let Delivery::Events { payload, from, .. } = delivery {
            let size = payload.size(*from as usize);
            small += if size < SHARE_FROM { size } else { 0 };
            waiting += payload.revisions() - *from as usize - 1;
        }
    }
    let mut response = Response { writer: Writer::with_capacity(small), written: Written::default() };
    let burst = waiting >= BURST;
    let mut deliveries = batch.drain(..).peekable();
    let mut joined = Joined::default();
    while let Some(delivery) = deliveries.next() {
        match delivery {
            Delivery::Created { watch_id, stamp } => {
                response.plain(watch_id, &stamp.header(), |own| put_int(own, 3, 1));
            }
            Delivery::Progress { watch_id, stamp } => response.plain(watch_id, &stamp.header(), |_| {}),
            Delivery::Canceled(cancellation) => response.canceled(&cancellation),
            Delivery::Events { watch_id, payload, from, fragment, mut as_of, .. } => {
                let from = from as usize;
                if fragment
                    && payload.size(from) + HEAD_BYTES >= MAX_REQUEST
                    && payload.revisions() == 1
                    && payload.events(0) > 1
                {
                    response.fragments(watch_id, &payload, as_of);
                    continue;
                }
                if !burst && as_of.is_none() {
                    payload.each(from).for_each(|whole| response.revision(watch_id, payload.cluster(), &whole));
                    continue;
                }
                joined.add(payload, from);
                while let Some(Delivery::Events { payload, from, as_of: later, .. }) = deliveries.next_if(|next| {
                    matches!(next, Delivery::Events { watch_id: id, payload, from, as_of: later, .. }
                        if *id == watch_id
                            && (burst || as_of.is_some() && later.is_some())
                            && joined.has_room(payload, *from as usize))
                }) {
                    as_of = later;
                    joined.add(payload, from as usize);
                }
                response.events(watch_id, &mut joined, as_of);
            }
        }
    }
    drop(deliveries);
    (response.writer.finish(), response.written)
}

/// What goes into one response.
#[derive(Default)]
struct Joined {
    payloads: Vec<(Arc<Payload>, usize)>,
    bytes: usize,
    revisions: usize,
}

impl Joined {
    fn add(&mut self, payload: Arc<Payload>, from: usize) {
        self.bytes += payload.size(from);
        self.revisions += payload.revisions() - from;
        self.payloads.push((payload, from));
    }

    fn has_room(&self, payload: &Payload, from: usize) -> bool {
        self.bytes + payload.size(from) <= JOINED.0 && self.revisions + payload.revisions() - from <= JOINED.1
    }
}

struct Response {
    writer: Writer,
    written: Written,
}

impl Response {
    fn plain(&mut self, watch_id: i64, header: &Header, more: impl FnOnce(&mut BytesMut)) {
        self.writer.message(0, |own| {
            put_header(own, header);
            put_int(own, 2, watch_id as u64);
            more(own);
        });
        self.written.responses += 1;
    }

    fn canceled(&mut self, cancellation: &Cancellation) {
        self.plain(cancellation.watch_id, &cancellation.header, |own| {
            put_int(own, 3, u64::from(cancellation.refused));
            put_int(own, 4, 1);
            put_int(own, 5, cancellation.compact_revision.get() as u64);
            put_bytes(own, 6, cancellation.reason.as_bytes());
        });
    }

    /// All that was joined, in one response.
    fn events(&mut self, watch_id: i64, joined: &mut Joined, as_of: Option<Revision>) {
        let Some((last, _)) = joined.payloads.last() else { return };
        let header = last.cluster().at(last.revision().max(as_of.unwrap_or_default()));
        self.head(watch_id, &header, joined.bytes);
        for (payload, from) in joined.payloads.drain(..) {
            self.writer.shared(&payload.bytes(from));
            self.written.events += payload.events(from) as u64;
        }
        (joined.bytes, joined.revisions) = (0, 0);
    }

    /// One revision in one response, as etcd sends it.
    fn revision(&mut self, watch_id: i64, cluster: &Cluster, whole: &Whole) {
        self.head(watch_id, &cluster.at(whole.revision), whole.bytes.len());
        self.writer.shared(&whole.bytes);
        self.written.events += whole.events as u64;
    }

    fn head(&mut self, watch_id: i64, header: &Header, bytes: usize) {
        self.writer.message(bytes, |own| {
            put_header(own, header);
            put_int(own, 2, watch_id as u64);
        });
        self.written.responses += 1;
    }

    /// One revision in several responses, cut where etcd would cut: each has at least one event, and as many as fit.
    fn fragments(&mut self, watch_id: i64, payload: &Payload, as_of: Option<Revision>) {
        let header = payload.cluster().at(payload.revision().max(as_of.unwrap_or_default()));
        let mut pieces = payload.pieces().peekable();
        while pieces.peek().is_some() {
            let mut bytes = 0;
            let mut fragment = Vec::new();
            while let Some(piece) =
                pieces.next_if(|piece| fragment.is_empty() || bytes + piece.len() + HEAD_BYTES < MAX_REQUEST)
            {
                bytes += piece.len();
                fragment.push(piece);
            }
            let more = pieces.peek().is_some();
            self.writer.message(bytes, |own| {
                put_header(own, &header);
                put_int(own, 2, watch_id as u64);
                put_int(own, 7, u64::from(more));
            });
            fragment.iter().for_each(|piece| self.writer.shared(piece));
            self.written.responses += 1;
        }
        self.written.events += payload.events(0) as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        task::{Context, Waker},
        time::Instant,
    };

    use bytes::{Buf as _, Bytes};
    use prost::Message as _;

    use super::{super::pieces::PREFIX, *};
    use crate::{
        hub::{
            Feed, FeedState, KeyMap, OutboxLimits, Subscribe, WatchOptions, WatchStream, testing, upstream::Changes,
        },
        pb::etcdserverpb::WatchResponse,
        types::{ClientKey, EventFields, EventKind, KeyRange, KeyValueFields},
    };

    /// What a watch that is created before `publish` is called, or after it where that is the `past`, is sent once it was `created`:
    /// of each response the header's revision and those of its events.
    fn sent(subscribe: &Subscribe, past: bool, publish: impl Fn(&Feed)) -> (Vec<(i64, Vec<i64>)>, Written) {
        let hub = testing::hub(OutboxLimits { bytes: 1 << 20, deliveries: 100, watches: 1 });
        let feed = hub.open(KeyRange::prefix("".into()));
        feed.install(Arc::default(), KeyMap::default(), Revision::ZERO);
        feed.set_state(FeedState::Live);
        let stream = WatchStream::new(hub.limits().outbox, ClientKey::RELAY);
        if past {
            publish(&feed);
        }
        stream.subscribe(&feed, subscribe).expect("subscribed");
        if !past {
            publish(&feed);
        }
        let mut batch = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        while batch.is_empty() {
            assert!(stream.poll_drain(&mut cx, &mut batch, usize::MAX).is_ready());
            batch.retain(|delivery| matches!(delivery, Delivery::Events { .. }));
        }
        let (mut pieces, written) = write(&mut batch);
        let mut bytes = pieces.copy_to_bytes(pieces.remaining());
        let responses: Vec<_> = std::iter::from_fn(|| response(&mut bytes)).collect();
        assert_eq!(written.responses, responses.len() as u64);
        (responses, written)
    }

    fn everything() -> Subscribe {
        Subscribe {
            watch_id: 7,
            range: KeyRange::prefix("".into()),
            options: WatchOptions::default(),
            start_revision: Revision::ZERO,
            progress_notify: false,
            fragment: false,
            known: Revision::ZERO,
            compacted: false,
        }
    }

    fn changes(revision: i64, events: usize, value: usize) -> Changes {
        let mod_revision = Revision::new(revision);
        let kv = KeyValueFields { key: "k".into(), mod_revision, value: vec![0; value].into(), ..Default::default() };
        let events = vec![EventFields { kind: EventKind::Put, kv }; events];
        Changes { revision: mod_revision, events, prev: Vec::new(), received: Instant::now() }
    }

    /// What a watch is sent of so many revisions that came together.
    fn sent_together(revisions: i64) -> Vec<(i64, Vec<i64>)> {
        let batch: Vec<_> = (1..=revisions).map(|revision| changes(revision, 1, 0)).collect();
        let (responses, written) = sent(&everything(), false, |feed| feed.publish(&batch).expect("in order"));
        assert_eq!(written.events, revisions as u64);
        responses
    }

    fn response(bytes: &mut Bytes) -> Option<(i64, Vec<i64>)> {
        let head = (!bytes.is_empty()).then(|| bytes.split_to(PREFIX))?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let response = WatchResponse::decode(bytes.split_to(length as usize)).expect("a response");
        assert_eq!(response.watch_id, 7);
        let revisions = response.events.iter().filter_map(|event| Some(event.kv.as_ref()?.mod_revision)).collect();
        Some((response.header.map_or(0, |header| header.revision), revisions))
    }

    #[test]
    fn a_few_revisions_that_came_together_go_out_as_etcd_sends_them() {
        assert_eq!(sent_together(3), [(1, vec![1]), (2, vec![2]), (3, vec![3])]);
    }

    #[test]
    fn a_burst_goes_out_in_one_response() {
        let burst = BURST as i64;
        assert_eq!(sent_together(burst), [(burst, (1..=burst).collect())]);
    }

    #[test]
    fn fragments_of_the_past_name_the_newest_revision_as_whole_responses_do() {
        let publish = |feed: &Feed| {
            feed.publish(&[changes(3, 3, MAX_REQUEST / 2)]).expect("in order");
            feed.advance(Revision::new(9));
        };
        let fragments = Subscribe { fragment: true, ..everything() };
        assert_eq!(sent(&fragments, false, publish).0, [(3, vec![3]), (3, vec![3]), (3, vec![3])], "live");
        let past = Subscribe { start_revision: Revision::new(3), ..fragments };
        assert_eq!(sent(&past, true, publish).0, [(9, vec![3]), (9, vec![3]), (9, vec![3])]);
    }
}
