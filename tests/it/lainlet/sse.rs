//! [`Sse`]: a watch over HTTP, with each event as it came.
//!
//! A task reads all the time, so a busy test is not a slow reader. Always holds: an event must be exactly `id`,
//! `event`, at most one `data` line and a blank line; anything else ends the reading with an error.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use super::{Lain, client::Answer};
use crate::support::patience;

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) id: u64,
    pub(super) kind: String,
    /// `None` without a `data` line.
    pub(super) data: Option<String>,
}

/// A watch.
#[derive(Debug)]
pub(super) struct Sse {
    uri: String,
    headers: HeaderMap,
    record: Arc<Mutex<Vec<Event>>>,
    length: watch::Receiver<usize>,
    taken: usize,
    reader: Option<JoinHandle<Result<(), String>>>,
}

impl Event {
    /// An expected event with data.
    pub(super) fn of(id: u64, kind: &str, data: &str) -> Self {
        Self { id, kind: kind.to_owned(), data: Some(data.to_owned()) }
    }

    /// Its data, which must exist.
    pub(super) fn data(&self) -> &str {
        self.data.as_deref().unwrap_or_else(|| panic!("an event without data: {self:?}"))
    }
}

impl Sse {
    pub(super) fn read(uri: &str, response: Response<Incoming>) -> Self {
        let (length_sender, length) = watch::channel(0);
        let record = Arc::new(Mutex::new(Vec::new()));
        let (head, body) = response.into_parts();
        let reader = tokio::spawn(read(body, Arc::clone(&record), length_sender));
        Self { uri: uri.to_owned(), headers: head.headers, record, length, taken: 0, reader: Some(reader) }
    }

    /// The requested URI.
    pub(super) fn uri(&self) -> &str {
        &self.uri
    }

    /// The headers of the answer.
    pub(super) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The next event.
    pub(super) async fn next(&mut self) -> Event {
        match self.take().await {
            Some(event) => event,
            None if self.has_ended() => {
                let end = self.ended().await;
                panic!("{} ended: {end:?}; before that: {}", self.uri, self.shape())
            }
            None => panic!("{}: nothing within {:?}; before that: {}", self.uri, patience(), self.shape()),
        }
    }

    /// The next event, which must have this id and kind. Returns its data.
    pub(super) async fn expect(&mut self, id: u64, kind: &str) -> String {
        let event = self.next().await;
        assert_eq!((event.id, event.kind.as_str()), (id, kind), "{}: {event:?}", self.uri);
        event.data().to_owned()
    }

    /// The next event, which must equal this one.
    pub(super) async fn expect_event(&mut self, id: u64, kind: &str, data: &str) {
        assert_eq!(self.next().await, Event::of(id, kind, data), "{}", self.uri);
    }

    /// The next event; `None` if the stream ends or the time is over.
    pub(super) async fn take(&mut self) -> Option<Event> {
        let (wanted, mut length) = (self.taken + 1, self.length.clone());
        let came = timeout(patience(), length.wait_for(|length| *length >= wanted)).await;
        // An error in the inner result means that the reader is gone, but it may have left the event.
        if came.is_err() {
            return None;
        }
        self.take_now()
    }

    /// The next event, if it has already come.
    pub(super) fn take_now(&mut self) -> Option<Event> {
        let event = self.record.lock().get(self.taken).cloned()?;
        self.taken += 1;
        Some(event)
    }

    /// Fails if any event came up to `revision`: requests the view at that revision over another connection, as
    /// 127.0.0.1, and checks after the answer. A later event would still show as the next one, so tests end with a
    /// visible change.
    pub(super) async fn nothing_up_to(&mut self, lain: &Lain, revision: i64) -> Answer {
        let answer = lain.reached_by(&self.uri.replace("watch=1", "watch=0"), revision).await;
        if let Some(event) = self.take_now() {
            panic!("{}: expected nothing up to revision {revision}, not {event:?}", self.uri);
        }
        answer
    }

    /// All events so far, including those already taken.
    pub(super) fn record(&self) -> Vec<Event> {
        self.record.lock().clone()
    }

    /// Whether the server has closed the stream.
    pub(super) fn has_ended(&self) -> bool {
        self.reader.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until the server closes it. Fails if that was not between two events.
    pub(super) async fn ended(&mut self) -> Result<(), String> {
        let reader = self.reader.take().expect("the end is asked for once");
        timeout(patience(), reader)
            .await
            .unwrap_or_else(|_| panic!("{} did not end; so far: {}", self.uri, self.shape()))
            .expect("the reader does not panic")
    }

    /// Fails unless the next event is `error` with this text, and the last one.
    pub(super) async fn expect_error(&mut self, text: &str) {
        self.expect_event(0, "error", text).await;
        assert_eq!(self.ended().await, Ok(()), "{}", self.uri);
        assert_eq!(self.take_now(), None, "{}: nothing after the error", self.uri);
    }

    /// A summary of the events for messages.
    fn shape(&self) -> String {
        let record = self.record();
        let last: Vec<_> =
            record.iter().rev().take(5).rev().map(|event| format!("{} {}", event.id, event.kind)).collect();
        format!("{} events, the last: [{}]", record.len(), last.join(", "))
    }
}

impl Drop for Sse {
    fn drop(&mut self) {
        if let Some(reader) = &self.reader {
            // The body is dropped with the task, and the connection with the body.
            reader.abort();
        }
    }
}

async fn read(mut body: Incoming, record: Arc<Mutex<Vec<Event>>>, length: watch::Sender<usize>) -> Result<(), String> {
    let mut buffer = Vec::new();
    while let Some(frame) = body.frame().await {
        let data = frame.map_err(|error| error.to_string())?.into_data().unwrap_or_else(|_| Bytes::new());
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = buffer.drain(..end + 2).collect();
            let event = parse(&event)?;
            record.lock().push(event);
            length.send_modify(|length| *length += 1);
        }
    }
    if buffer.is_empty() { Ok(()) } else { Err(format!("half an event: {:?}", String::from_utf8_lossy(&buffer))) }
}

/// Parses an event with its blank line.
fn parse(bytes: &[u8]) -> Result<Event, String> {
    let malformed = || format!("not an event: {:?}", String::from_utf8_lossy(bytes));
    let text = std::str::from_utf8(bytes).map_err(|_| malformed())?;
    let mut lines = text.strip_suffix("\n\n").ok_or_else(malformed)?.split('\n');
    let id = lines.next().and_then(|line| line.strip_prefix("id: ")).and_then(|id| id.parse().ok());
    let kind = lines.next().and_then(|line| line.strip_prefix("event: ")).map(ToOwned::to_owned);
    let data = lines.next().map(|line| line.strip_prefix("data: ").map(ToOwned::to_owned).ok_or_else(malformed));
    match (id, kind, lines.next()) {
        (Some(id), Some(kind), None) => Ok(Event { id, kind, data: data.transpose()? }),
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_strictly() {
        assert_eq!(parse(b"id: 2\nevent: update\ndata: {\"a\": 1}\n\n"), Ok(Event::of(2, "update", "{\"a\": 1}")));
        let heartbeat = Event { id: 0, kind: "heartbeat".to_owned(), data: None };
        assert_eq!(parse(b"id: 0\nevent: heartbeat\n\n"), Ok(heartbeat));
        for wrong in
            ["event: update\nid: 2\ndata: x\n\n", "id: 2\nevent: update\ndata: x\ndata: y\n\n", "id:2\nevent: a\n\n"]
        {
            assert!(parse(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
    }
}
