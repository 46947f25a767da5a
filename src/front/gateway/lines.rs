//! [`Lines`]: the responses of a watch as the lines of JSON that etcd's gateway sends.
//!
//! Given with a call's request to who answers watches from memory (`front::grpc`), so that events need not be read again from gRPC messages.
//! Not here: which responses there are. Always holds: the events of a revision are written once for all streams that get the same of them; a
//! line is what `encode` would make of the whole message.

use std::{fmt, sync::Arc};

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
/// What events are written within, which is the end of each line.
const EVENTS: (&[u8], &[u8]) = (b"{\"events\":[", b"]}");
/// Room for a line without its events.
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
    writer: Writer,
    /// A head as protobuf, and as JSON.
    scratch: (BytesMut, Vec<u8>),
}

impl Lines {
    pub(super) fn new(schema: &Arc<Schema>) -> Result<Self, SchemaError> {
        let response = schema.call(WATCH).ok_or(SchemaError::NoCall(WATCH))?.response;
        Ok(Self { schema: schema.clone(), response })
    }

    /// A writer for about so many lines.
    pub(in crate::front) fn writer(&self, lines: usize) -> LineWriter<'_> {
        let writer = Writer::with_capacity(lines * LINE);
        LineWriter { lines: self, writer, scratch: (BytesMut::new(), Vec::new()) }
    }

    /// Events, encoded as fields of a response, as the elements of a list. What the relay has encoded itself it can read.
    fn events(&self, encoded: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(encoded.len() * 2);
        let mut encoder = Encoder::new(self.schema.clone(), self.response, encoded.len() as u64, &mut out);
        let fed = encoder.feed(encoded, &mut out);
        debug_assert_eq!(fed, Ok(encoded.len()));
        let inner = out.len().saturating_sub(EVENTS.1.len());
        debug_assert_eq!((out.get(..EVENTS.0.len()), out.get(inner..)), (Some(EVENTS.0), Some(EVENTS.1)));
        Bytes::from(out).slice(EVENTS.0.len().min(inner)..inner)
    }

    /// The events of each revision of a payload but the first `from`, made by whoever needs them first.
    fn shared<'a>(&self, payload: &'a Payload, from: usize) -> impl Iterator<Item = Bytes> + use<'a> {
        let text = payload.text(texts::GATEWAY, |whole, to| to.extend_from_slice(&self.events(&whole.bytes)));
        text.revisions(from)
    }
}

impl LineWriter<'_> {
    /// A response without events.
    pub(in crate::front) fn plain(&mut self, head: impl FnOnce(&mut BytesMut)) {
        self.begin(head);
        self.writer.own().put_slice(b"}}\n");
    }

    /// A response with one revision of a payload, by its index.
    pub(in crate::front) fn revision(&mut self, payload: &Payload, index: usize, head: impl FnOnce(&mut BytesMut)) {
        self.begin(head);
        self.writer.own().put_slice(b",\"events\":[");
        if let Some(events) = self.lines.shared(payload, index).next() {
            self.writer.shared(&events);
        }
        self.writer.own().put_slice(b"]}}\n");
    }

    /// A response with all of these payloads, each from a revision on.
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
        self.writer.own().put_slice(b"]}}\n");
    }

    /// A response with these events, which nobody shares.
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
        self.writer.own().put_slice(b"]}}\n");
    }

    pub(in crate::front) fn finish(self) -> Pieces {
        self.writer.finish()
    }

    /// The line up to the end of the head's fields, of which there is one at least.
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
}

#[cfg(test)]
impl Lines {
    /// Those of a gateway, for tests of who writes them.
    pub(in crate::front) fn for_test() -> Self {
        super::Gateway::new(crate::pb::FILE_DESCRIPTOR_SET).expect("descriptors").lines
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").finish_non_exhaustive()
    }
}
