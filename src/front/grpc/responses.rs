//! Puts `WatchResponse`s together from what an outbox gives: a small head for each, and the hub's shared bytes.
//!
//! Always holds: a response has whole revisions; the header's revision of live events is that of the last of them; of events
//! from the past it is the newest when they were read, as etcd does it (contract section 2.3).

use std::sync::Arc;

use bytes::BytesMut;

use super::pieces::{MAX_REQUEST, Pieces, Writer, put_bytes, put_header, put_int};
use crate::{
    hub::{Cancellation, Delivery, Payload},
    types::{Revision, UpstreamHeader},
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
pub(super) fn write(batch: &mut Vec<Delivery>, header: &UpstreamHeader) -> (Pieces, Written) {
    let small: usize = batch
        .iter()
        .map(|delivery| match delivery {
            Delivery::Events { payload, .. } => HEAD_BYTES + payload.bytes().len().min(1024),
            _ => HEAD_BYTES,
        })
        .sum();
    let mut response = Response { writer: Writer::with_capacity(small), header, written: Written::default() };
    let burst = batch.len() >= BURST;
    let mut deliveries = batch.drain(..).peekable();
    let mut joined = Vec::new();
    while let Some(delivery) = deliveries.next() {
        match delivery {
            Delivery::Created { watch_id, revision } => response.plain(watch_id, revision, |own| put_int(own, 3, 1)),
            Delivery::Progress { watch_id, revision } => response.plain(watch_id, revision, |_| {}),
            Delivery::Canceled(cancellation) => response.canceled(&cancellation),
            Delivery::Events { watch_id, payload, fragment, mut as_of, .. } => {
                if fragment && payload.bytes().len() + HEAD_BYTES >= MAX_REQUEST && payload.len() > 1 {
                    response.fragments(watch_id, &payload);
                    continue;
                }
                let mut bytes = payload.bytes().len();
                joined.push(payload);
                while bytes < JOINED.0 && joined.len() < JOINED.1 {
                    let Some(Delivery::Events { payload, as_of: later, .. }) = deliveries.next_if(|next| {
                        matches!(next, Delivery::Events { watch_id: id, payload, as_of: later, .. }
                            if *id == watch_id
                                && (burst || as_of.is_some() && later.is_some())
                                && payload.bytes().len() + bytes <= JOINED.0)
                    }) else {
                        break;
                    };
                    as_of = later;
                    bytes += payload.bytes().len();
                    joined.push(payload);
                }
                response.events(watch_id, &joined, bytes, as_of);
                joined.clear();
            }
        }
    }
    drop(deliveries);
    (response.writer.finish(), response.written)
}

struct Response<'a> {
    writer: Writer,
    header: &'a UpstreamHeader,
    written: Written,
}

impl Response<'_> {
    fn plain(&mut self, watch_id: i64, revision: Revision, more: impl FnOnce(&mut BytesMut)) {
        let header = self.header.at(revision);
        self.writer.message(0, |own| {
            put_header(own, &header);
            put_int(own, 2, watch_id as u64);
            more(own);
        });
        self.written.responses += 1;
    }

    fn canceled(&mut self, cancellation: &Cancellation) {
        self.plain(cancellation.watch_id, cancellation.revision, |own| {
            put_int(own, 3, u64::from(cancellation.refused));
            put_int(own, 4, 1);
            put_int(own, 5, cancellation.compact_revision.get() as u64);
            put_bytes(own, 6, cancellation.reason.as_bytes());
        });
    }

    fn events(&mut self, watch_id: i64, payloads: &[Arc<Payload>], bytes: usize, as_of: Option<Revision>) {
        let Some(last) = payloads.last() else { return };
        let header = self.header.at(last.revision().max(as_of.unwrap_or_default()));
        self.writer.message(bytes, |own| {
            put_header(own, &header);
            put_int(own, 2, watch_id as u64);
        });
        for payload in payloads {
            self.writer.shared(payload.bytes());
            self.written.events += payload.len() as u64;
        }
        self.written.responses += 1;
    }

    /// One revision in several responses, cut where etcd would cut: each has at least one event, and as many as fit.
    fn fragments(&mut self, watch_id: i64, payload: &Payload) {
        let header = self.header.at(payload.revision());
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
        self.written.events += payload.len() as u64;
    }
}
