//! [`Lines`]: writes the responses of a watch as lines of JSON, as etcd's gateway sends them.
//!
//! It is passed with the call's request to the code that answers watches from memory (`front::grpc`), so events need
//! not be decoded from gRPC messages. Always holds: the events of a revision are translated once for all streams that
//! get the same ones. A line is exactly what `encode` would make of the message. Each line is a buffer of its own, so
//! that it becomes a chunk of its own over HTTP/1.1 (`answer`).

use std::{collections::VecDeque, fmt, sync::Arc};

use bytes::{BufMut as _, Bytes, BytesMut};

use super::{
    encode::Encoder,
    schema::{MessageId, Schema, SchemaError},
};
use crate::{
    front::{
        pieces::{Pieces, Writer},
        texts,
    },
    hub::Payload,
};

const WATCH: &str = "/etcdserverpb.Watch/Watch";
/// The text around the events, at the end of each line.
const EVENTS: (&[u8], &[u8]) = (b"{\"events\":[", b"]}");
/// Space for a line without its events.
const LINE: usize = 192;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(in crate::front) struct Lines {
    schema: Arc<Schema>,
    response: MessageId,
}

/// Writes lines.
pub(in crate::front) struct LineWriter<'a> {
    lines: &'a Lines,
    /// The line that is being written.
    writer: Writer,
    written: VecDeque<Pieces>,
    /// Buffers for a head, as protobuf and as JSON.
    scratch: (BytesMut, Vec<u8>),
}

impl Lines {
    pub(super) fn new(schema: &Arc<Schema>) -> Result<Self, SchemaError> {
        let response = schema.call(WATCH).ok_or(SchemaError::NoCall(WATCH))?.response;
        Ok(Self { schema: schema.clone(), response })
    }

    /// A writer with space for about `lines` lines.
    pub(in crate::front) fn writer(&self, lines: usize) -> LineWriter<'_> {
        let writer = Writer::with_capacity(lines * LINE);
        LineWriter { lines: self, writer, written: VecDeque::new(), scratch: (BytesMut::new(), Vec::new()) }
    }

    /// Translates encoded events into the elements of a JSON list. The relay encoded them itself, so they are valid.
    fn events(&self, encoded: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(encoded.len() * 2);
        let mut encoder = Encoder::new(self.schema.clone(), self.response, encoded.len() as u64, &mut out);
        let fed = encoder.feed(encoded, &mut out);
        debug_assert_eq!(fed, Ok(encoded.len()));
        let inner = out.len().saturating_sub(EVENTS.1.len());
        debug_assert_eq!((out.get(..EVENTS.0.len()), out.get(inner..)), (Some(EVENTS.0), Some(EVENTS.1)));
        Bytes::from(out).slice(EVENTS.0.len().min(inner)..inner)
    }

    /// The events of each revision of a payload from index `from` on. The first caller that needs them translates them.
    fn shared<'a>(&self, payload: &'a Payload, from: usize) -> impl Iterator<Item = Bytes> + use<'a> {
        let text = payload.text(texts::GATEWAY, |whole, to| to.extend_from_slice(&self.events(whole.bytes)));
        text.revisions(from)
    }
}

impl LineWriter<'_> {
    /// Writes a response without events.
    pub(in crate::front) fn plain(&mut self, head: impl FnOnce(&mut BytesMut)) {
        self.begin(head);
        self.end(b"}}\n");
    }

    /// Writes a response with one revision of a payload, by its index.
    pub(in crate::front) fn revision(&mut self, payload: &Payload, index: usize, head: impl FnOnce(&mut BytesMut)) {
        self.begin(head);
        self.writer.own().put_slice(b",\"events\":[");
        if let Some(events) = self.lines.shared(payload, index).next() {
            self.writer.shared(&events);
        }
        self.end(b"]}}\n");
    }

    /// Writes a response with several payloads, each from a given revision on.
    pub(in crate::front) fn joined<'p>(
        &mut self,
        payloads: impl Iterator<Item = (&'p Payload, usize)>,
        head: impl FnOnce(&mut BytesMut),
    ) {
        self.begin(head);
        self.writer.own().put_slice(b",\"events\":");
        let mut before = b'[';
        for (payload, from) in payloads {
            for events in self.lines.shared(payload, from) {
                self.writer.own().put_u8(before);
                self.writer.shared(&events);
                before = b',';
            }
        }
        self.end(b"]}}\n");
    }

    /// Writes a response with events that no other stream shares.
    pub(in crate::front) fn fragment(&mut self, pieces: &[Bytes], head: impl FnOnce(&mut BytesMut)) {
        self.begin(head);
        self.writer.own().put_slice(b",\"events\":");
        let mut before = b'[';
        for piece in pieces {
            self.writer.own().put_u8(before);
            let events = self.lines.events(piece);
            self.writer.shared(&events);
            before = b',';
        }
        self.end(b"]}}\n");
    }

    /// The lines, in order.
    pub(in crate::front) fn finish(self) -> VecDeque<Pieces> {
        self.written
    }

    /// Writes the line up to the end of the head's fields. The head has at least one field.
    fn begin(&mut self, head: impl FnOnce(&mut BytesMut)) {
        let (encoded, json) = &mut self.scratch;
        encoded.clear();
        json.clear();
        head(encoded);
        let mut encoder = Encoder::new(self.lines.schema.clone(), self.lines.response, encoded.len() as u64, json);
        let fed = encoder.feed(encoded, json);
        debug_assert_eq!(fed, Ok(encoded.len()));
        json.truncate(json.len().saturating_sub(1));
        self.writer.own().put_slice(b"{\"result\":");
        self.writer.own().put_slice(json);
    }

    fn end(&mut self, with: &[u8]) {
        self.writer.own().put_slice(with);
        self.written.push_back(self.writer.take());
    }
}

#[cfg(test)]
impl Lines {
    /// The lines of a gateway, for tests.
    pub(in crate::front) fn for_test() -> Self {
        super::Gateway::new(crate::pb::FILE_DESCRIPTOR_SET).expect("descriptors").lines
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").finish_non_exhaustive()
    }
}
