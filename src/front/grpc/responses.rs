//! Builds `WatchResponse`s from the deliveries of a stream, as gRPC messages or as lines of JSON. Each has a small head
//! of its own and the hub's shared bytes.
//!
//! Always holds: a response has whole revisions. The header of live events has the revision of the last of them. The
//! header of past events has the newest revision at the time when they were read, as in etcd (docs/promises.md, section
//! 3).

use std::{collections::VecDeque, sync::Arc};

use bytes::{Bytes, BytesMut};

use super::pieces::{MAX_REQUEST, Pieces, SHARE_FROM, Writer, put_bytes, put_header, put_int};
use crate::{
    front::gateway::{LineWriter, Lines},
    hub::{Cancellation, Delivery, Payload, Whole},
    types::{Header, Revision},
};

/// From this many waiting deliveries on, live events of a watch are joined into one response, as past events always
/// are. Fewer are sent like etcd does, one response per revision.
const BURST: usize = 16;
/// Most event bytes and revisions of a joined response. etcd puts at most 1000 revisions into one.
const JOINED: (usize, usize) = (1 << 20, 1000);
/// Space for heads: an estimate per delivery.
const HEAD_BYTES: usize = 64;

/// The number of items written, for metrics.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Responses.
    pub(super) responses: u64,
    /// Events in these responses.
    pub(super) events: u64,
}

/// A wire form of responses. `head` writes a response's own fields as protobuf.
trait Form {
    /// A response without events.
    fn plain(&mut self, head: impl FnOnce(&mut BytesMut));

    /// One revision of a payload, by its index.
    fn revision(&mut self, payload: &Payload, index: usize, whole: Whole<'_>, head: impl FnOnce(&mut BytesMut));

    /// All payloads of `joined`.
    fn joined(&mut self, joined: &Joined, head: impl FnOnce(&mut BytesMut));

    /// A response with some events of one revision, `bytes` long.
    fn fragment(&mut self, pieces: &[Bytes], bytes: usize, head: impl FnOnce(&mut BytesMut));
}

impl Form for Writer {
    fn plain(&mut self, head: impl FnOnce(&mut BytesMut)) {
        self.message(0, head);
    }

    fn revision(&mut self, payload: &Payload, _: usize, whole: Whole<'_>, head: impl FnOnce(&mut BytesMut)) {
        self.message(whole.bytes.len(), head);
        self.part(whole.bytes, || payload.share(whole.bytes));
    }

    fn joined(&mut self, joined: &Joined, head: impl FnOnce(&mut BytesMut)) {
        self.message(joined.bytes, head);
        for (payload, from) in &joined.payloads {
            let bytes = payload.bytes(*from);
            self.part(bytes, || payload.share(bytes));
        }
    }

    fn fragment(&mut self, pieces: &[Bytes], bytes: usize, head: impl FnOnce(&mut BytesMut)) {
        self.message(bytes, head);
        pieces.iter().for_each(|piece| self.shared(piece));
    }
}

impl Form for LineWriter<'_> {
    fn plain(&mut self, head: impl FnOnce(&mut BytesMut)) {
        Self::plain(self, head);
    }

    fn revision(&mut self, payload: &Payload, index: usize, _: Whole<'_>, head: impl FnOnce(&mut BytesMut)) {
        Self::revision(self, payload, index, head);
    }

    fn joined(&mut self, joined: &Joined, head: impl FnOnce(&mut BytesMut)) {
        Self::joined(self, joined.payloads.iter().map(|(payload, from)| (&**payload, *from)), head);
    }

    fn fragment(&mut self, pieces: &[Bytes], _: usize, head: impl FnOnce(&mut BytesMut)) {
        Self::fragment(self, pieces, head);
    }
}

/// Writes all deliveries of `batch` as gRPC messages, in order, and empties it.
pub(super) fn write(batch: &mut Vec<Delivery>) -> (Pieces, Written) {
    let small = |delivery: &Delivery| match delivery {
        Delivery::Events { payload, from, .. } => match payload.size(*from as usize) {
            size if size < SHARE_FROM => HEAD_BYTES + size,
            _ => HEAD_BYTES,
        },
        _ => HEAD_BYTES,
    };
    let (writer, written) = write_as(batch, Writer::with_capacity(batch.iter().map(small).sum()));
    (writer.finish(), written)
}

/// Writes all deliveries of `batch` as lines of JSON, in order, and empties it. Each line is a buffer of its own.
pub(super) fn write_lines(batch: &mut Vec<Delivery>, lines: &Lines) -> (VecDeque<Pieces>, Written) {
    let (writer, written) = write_as(batch, lines.writer(batch.len()));
    (writer.finish(), written)
}

fn write_as<F: Form>(batch: &mut Vec<Delivery>, form: F) -> (F, Written) {
    let revisions = |delivery: &Delivery| match delivery {
        Delivery::Events { payload, from, .. } => payload.revisions() - *from as usize,
        _ => 1,
    };
    let waiting: usize = batch.iter().map(revisions).sum();
    let mut response = Response { form, written: Written::default() };
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
                    response.revisions(watch_id, &payload, from);
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
    (response.form, response.written)
}

/// The content of one response.
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

struct Response<F> {
    form: F,
    written: Written,
}

impl<F: Form> Response<F> {
    fn plain(&mut self, watch_id: i64, header: &Header, more: impl FnOnce(&mut BytesMut)) {
        self.form.plain(|own| {
            head(watch_id, header)(own);
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

    /// Writes everything that was joined as one response.
    fn events(&mut self, watch_id: i64, joined: &mut Joined, as_of: Option<Revision>) {
        let Some((last, _)) = joined.payloads.last() else { return };
        let header = last.cluster().at(last.revision().max(as_of.unwrap_or_default()));
        self.form.joined(joined, head(watch_id, &header));
        self.written.responses += 1;
        for (payload, from) in joined.payloads.drain(..) {
            self.written.events += payload.events(from) as u64;
        }
        (joined.bytes, joined.revisions) = (0, 0);
    }

    /// Writes each revision as a separate response, like etcd.
    fn revisions(&mut self, watch_id: i64, payload: &Payload, from: usize) {
        for (index, whole) in (from..).zip(payload.each(from)) {
            let header = payload.cluster().at(whole.revision);
            self.form.revision(payload, index, whole, head(watch_id, &header));
            self.written.responses += 1;
            self.written.events += whole.events as u64;
        }
    }

    /// Writes one revision as several responses, split like in etcd: each has at least one event, and as many as fit.
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
            self.form.fragment(&fragment, bytes, |own| {
                head(watch_id, &header)(own);
                put_int(own, 7, u64::from(more));
            });
            self.written.responses += 1;
        }
        self.written.events += payload.events(0) as u64;
    }
}

/// The fields of every response.
fn head(watch_id: i64, header: &Header) -> impl FnOnce(&mut BytesMut) {
    move |own| {
        put_header(own, header);
        put_int(own, 2, watch_id as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        task::{Context, Waker},
        time::Instant,
    };

    use bytes::Buf as _;
    use prost::Message as _;

    use super::{super::pieces::PREFIX, *};
    use crate::{
        front::texts,
        hub::{
            Feed, FeedState, KeyMap, OutboxLimits, Subscribe, WatchOptions, WatchStream, testing, upstream::Changes,
        },
        pb::etcdserverpb::WatchResponse,
        types::{ClientKey, EventFields, EventKind, KeyRange, KeyValueFields},
    };

    /// What a watch receives after `created`: the revision in each response's header, and those of its events. The
    /// watch is created before `publish` is called, or after it if `past` is set.
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

    /// What a watch receives of `revisions` revisions that arrived together.
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

    /// Two streams that watch everything, and what each receives of these changes after `created`.
    fn two_streams(fragment: bool, batch: &[Changes]) -> [Vec<Delivery>; 2] {
        let hub = testing::hub(OutboxLimits { bytes: 64 << 20, deliveries: 100, watches: 1 });
        let feed = hub.open(KeyRange::prefix("".into()));
        feed.install(Arc::default(), KeyMap::default(), Revision::ZERO);
        feed.set_state(FeedState::Live);
        let streams = [(), ()].map(|()| WatchStream::new(hub.limits().outbox, ClientKey::RELAY));
        let subscribe = Subscribe { fragment, ..everything() };
        streams.iter().for_each(|stream| stream.subscribe(&feed, &subscribe).expect("subscribed"));
        feed.publish(batch).expect("in order");
        streams.map(|stream| {
            let mut sent = Vec::new();
            let mut cx = Context::from_waker(Waker::noop());
            while sent.is_empty() {
                assert!(stream.poll_drain(&mut cx, &mut sent, usize::MAX).is_ready());
                sent.retain(|delivery| matches!(delivery, Delivery::Events { .. }));
            }
            sent
        })
    }

    fn lines(batch: &mut Vec<Delivery>) -> Vec<serde_json::Value> {
        let (lines, written) = write_lines(batch, &Lines::for_test());
        assert_eq!(written.responses, lines.len() as u64);
        let value = |mut line: Pieces| {
            let line = line.copy_to_bytes(line.remaining());
            assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1), "a whole line, and only one");
            serde_json::from_slice(&line).expect("JSON")
        };
        lines.into_iter().map(value).collect()
    }

    #[test]
    fn lines_have_the_same_responses_as_messages_and_their_events_are_made_once() {
        let [mut one, mut another] = two_streams(false, &[changes(1, 2, 3), changes(2, 1, 0)]);
        let written = lines(&mut one);
        let event = |revision: &str| serde_json::json!({ "kv": { "key": "aw==", "mod_revision": revision } });
        let with_value = serde_json::json!({ "kv": { "key": "aw==", "mod_revision": "1", "value": "AAAA" } });
        assert_eq!(written[0]["result"]["events"], serde_json::json!([with_value, with_value]));
        assert_eq!(written[1]["result"]["events"], serde_json::json!([event("2")]));
        assert_eq!(written[1]["result"]["watch_id"], "7");
        assert_eq!(written[1]["result"]["header"]["revision"], "2");
        for delivery in &another {
            let Delivery::Events { payload, .. } = delivery else { continue };
            payload.text(texts::GATEWAY, |_, _| panic!("the first stream has made the text"));
        }
        assert_eq!(lines(&mut another), written);
    }

    #[test]
    fn lines_are_joined_in_a_burst_and_cut_as_messages_are() {
        let batch: Vec<_> = (1..=BURST as i64).map(|revision| changes(revision, 1, 0)).collect();
        let [mut joined, _] = two_streams(false, &batch);
        let joined = lines(&mut joined);
        assert_eq!((joined.len(), joined[0]["result"]["events"].as_array().map(Vec::len)), (1, Some(BURST)));
        let [mut cut, _] = two_streams(true, &[changes(1, 3, MAX_REQUEST / 2)]);
        let cut: Vec<_> = lines(&mut cut).into_iter().map(|line| line["result"]["fragment"].clone()).collect();
        assert_eq!(cut, [serde_json::json!(true), serde_json::json!(true), serde_json::Value::Null]);
    }
}
