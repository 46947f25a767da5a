//! The text of server-sent events.
//!
//! When events are sent is decided in `stream`. Always holds: only the last event of a revision has an id, so a reader
//! that got an id has the whole revision. The data of an event is a single line. All streams with the same form share a
//! payload's text.

use hashbrown::HashSet;
use prost::Message as _;

use super::json::{Form, Shown, put_number, put_text};
use crate::{
    hub::{Payload, Whole},
    pb::{
        etcdserverpb::WatchResponse,
        mvccpb::{Event, event::EventType},
    },
    types::{Entry, EventKind, Revision},
};

/// Appends all events of a revision.
pub(super) fn put_revision(whole: &Whole<'_>, form: Form, to: &mut Vec<u8>) {
    let events = events(whole);
    for (index, event) in events.iter().enumerate() {
        put_event(event, form, to);
        end_event((index + 1 == events.len()).then_some(whole.revision), to);
    }
}

/// Appends the last event of each key in these payloads, in the order of these events, without the first revisions of a
/// payload that the reader already has. Earlier events do not matter to a reader that wants only the newest values.
pub(super) fn put_newest<'a>(
    payloads: impl DoubleEndedIterator<Item = (&'a Payload, usize)>,
    form: Form,
    to: &mut Vec<u8>,
) {
    let (mut seen, mut newest, mut through) = (HashSet::new(), Vec::new(), None);
    for (payload, from) in payloads.rev() {
        let revisions: Vec<Whole<'_>> = payload.each(from).collect();
        for whole in revisions.iter().rev() {
            through.get_or_insert(whole.revision);
            for event in events(whole).into_iter().rev() {
                if event.kv.as_ref().is_some_and(|kv| seen.insert(kv.key.clone())) {
                    newest.push(event);
                }
            }
        }
    }
    let count = newest.len();
    for (index, event) in newest.iter().rev().enumerate() {
        put_event(event, form, to);
        end_event(through.filter(|_| index + 1 == count), to);
    }
}

/// Appends an event of the history without its end.
pub(super) fn put_kept(entry: &Entry, index: usize, form: Form, to: &mut Vec<u8>) {
    let event = &entry.events()[index];
    put_change(event.kind == EventKind::Delete, &Shown::from(&*event.kv), form, to);
}

/// Ends an event, with an id if the reader then has everything up to that revision.
pub(super) fn end_event(id: Option<Revision>, to: &mut Vec<u8>) {
    match id {
        Some(id) => put_id(id, to),
        None => to.push(b'\n'),
    }
}

/// Appends an empty event, or ends one, with an id: the reader then has everything up to that revision.
pub(super) fn put_id(id: Revision, to: &mut Vec<u8>) {
    put_number("id: ", id.get(), to);
    to.extend_from_slice(b"\n\n");
}

/// Appends the event which tells a reader that its past is gone.
pub(super) fn put_compacted(compact_revision: Revision, message: &str, to: &mut Vec<u8>) {
    put_number("event: compacted\ndata: {\"compact_revision\":", compact_revision.get(), to);
    to.extend_from_slice(b",\"message\":");
    put_text(message, to);
    to.extend_from_slice(b"}\n\n");
}

/// Appends the event that ends the stream with a reason.
pub(super) fn put_end(status: u16, error: &str, to: &mut Vec<u8>) {
    put_number("event: end\ndata: {\"status\":", status.into(), to);
    to.extend_from_slice(b",\"error\":");
    put_text(error, to);
    to.extend_from_slice(b"}\n\n");
}

fn events(whole: &Whole<'_>) -> Vec<Event> {
    WatchResponse::decode(whole.bytes).expect("the relay encoded it").events
}

fn put_event(event: &Event, form: Form, to: &mut Vec<u8>) {
    let kv = event.kv.as_ref().expect("the relay encodes each event with its key");
    put_change(event.r#type == EventType::Delete as i32, &kv.into(), form, to);
}

fn put_change(is_delete: bool, kv: &Shown<'_>, form: Form, to: &mut Vec<u8>) {
    if is_delete {
        to.extend_from_slice(b"event: delete\ndata: ");
        kv.put_deleted(form, to);
    } else {
        to.extend_from_slice(b"event: put\ndata: ");
        kv.put(form, to);
    }
    to.push(b'\n');
}
