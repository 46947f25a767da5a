//! [`Events`]: parses the server-sent events of a watch and checks Lainlet's rules.
//!
//! Connections and expected payloads are handled by the callers. Always holds: an event that breaks a rule is an error
//! and is never passed on.

use std::io::BufRead as _;

use super::http::{HttpError, Result};

/// One of this many payloads is parsed as JSON, starting with the first. Parsing all of them would cost more than
/// sending them.
const SAMPLE: u64 = 16;

const DATA: &[u8] = b"data: ";

/// An event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A complete state.
    State(&'a [u8]),
    /// A heartbeat.
    Heartbeat,
}

/// The parser for the events of one watch.
#[derive(Debug, Default)]
pub struct Events {
    line: Vec<u8>,
    id: Option<u64>,
    kind: Kind,
    /// The `data` line, including its name.
    data: Vec<u8>,
    has_data: bool,
    /// Number of states so far, which is also the last id.
    count: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    None,
    Init,
    Update,
    Delete,
    Heartbeat,
    Error,
}

impl Events {
    /// Reads more bytes, and passes on each complete event.
    ///
    /// # Errors
    /// Fails if an event breaks a rule, or if `event` fails.
    pub fn read<E: From<HttpError>>(
        &mut self,
        mut bytes: &[u8],
        mut event: impl FnMut(Event<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        while !bytes.is_empty() {
            bytes.read_until(b'\n', &mut self.line).map_err(HttpError::Io)?;
            if self.line.last() != Some(&b'\n') {
                break;
            }
            self.line.pop();
            if self.line.is_empty() {
                event(self.complete()?)?;
                (self.id, self.kind, self.has_data) = (None, Kind::None, false);
            } else {
                self.field()?;
            }
            self.line.clear();
        }
        Ok(())
    }

    /// The number of states.
    pub fn count(&self) -> u64 {
        self.count
    }

    fn field(&mut self) -> Result<()> {
        let line = &mut self.line;
        if line.starts_with(DATA) {
            ensure(!self.has_data, || "an event with two data lines".to_owned())?;
            ensure(self.id.is_some() && self.kind != Kind::None, || "data before id and event".to_owned())?;
            std::mem::swap(line, &mut self.data);
            self.has_data = true;
            return Ok(());
        }
        let line = std::str::from_utf8(line).map_err(|_| HttpError::breach("a line that is not text"))?;
        match line.split_once(": ") {
            Some(("id", id)) => self.id = Some(id.parse().map_err(|_| HttpError::breach(format!("id: {id}")))?),
            Some(("event", kind)) => {
                self.kind = match kind {
                    "init" => Kind::Init,
                    "update" => Kind::Update,
                    "delete" => Kind::Delete,
                    "heartbeat" => Kind::Heartbeat,
                    "error" => Kind::Error,
                    _ => return Err(HttpError::breach(format!("event: {kind}"))),
                }
            }
            _ => return Err(HttpError::breach(format!("an unknown line: {line:?}"))),
        }
        Ok(())
    }

    fn complete(&mut self) -> Result<Event<'_>> {
        let id = self.id.ok_or_else(|| HttpError::breach("an event without an id"))?;
        let data = self.data.get(DATA.len()..).unwrap_or_default();
        match self.kind {
            Kind::None => Err(HttpError::breach("an event without a kind")),
            Kind::Error => {
                Err(HttpError::breach(format!("the server ends the watch: {}", String::from_utf8_lossy(data))))
            }
            Kind::Heartbeat => {
                ensure(id == 0 && !self.has_data, || format!("a heartbeat with id {id} or data"))?;
                Ok(Event::Heartbeat)
            }
            Kind::Init | Kind::Update | Kind::Delete => {
                ensure(self.has_data, || "a state without data".to_owned())?;
                ensure(id == self.count + 1, || format!("id {id} after {}", self.count))?;
                ensure((self.kind == Kind::Init) == (id == 1), || format!("{:?} with id {id}", self.kind))?;
                if self.count.is_multiple_of(SAMPLE) {
                    serde_json::from_slice::<serde::de::IgnoredAny>(data)
                        .map_err(|_| HttpError::breach("a payload that is not JSON"))?;
                }
                self.count = id;
                Ok(Event::State(data))
            }
        }
    }
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(HttpError::Breach(otherwise())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The states of a stream, or its error.
    fn states(text: &str) -> std::result::Result<Vec<String>, String> {
        let mut states = Vec::new();
        let read = Events::default().read(text.as_bytes(), |event| {
            if let Event::State(data) = event {
                states.push(String::from_utf8_lossy(data).into_owned());
            }
            Ok::<(), HttpError>(())
        });
        read.map(|()| states).map_err(|error| error.to_string())
    }

    #[test]
    fn states_come_in_order_and_heartbeats_between() {
        let text = "id: 1\nevent: init\ndata: {}\n\nid: 0\nevent: heartbeat\n\nid: 2\nevent: update\ndata: [1]\n\n";
        assert_eq!(states(text), Ok(vec!["{}".to_owned(), "[1]".to_owned()]));
    }

    #[test]
    fn what_breaks_a_rule_is_named() {
        for (text, wrong) in [
            ("id: 2\nevent: init\ndata: {}\n\n", "id 2 after 0"),
            ("id: 1\nevent: update\ndata: {}\n\n", "Update with id 1"),
            ("id: 1\nevent: init\n\n", "a state without data"),
            ("id: 1\nevent: init\ndata: {\n\n", "not JSON"),
            ("id: 1\nevent: error\ndata: gone\n\n", "gone"),
            ("event: init\ndata: {}\n\n", "data before id"),
            ("id: 1\nevent: init\ndata: {}\n\nid: 3\nevent: update\ndata: {}\n\n", "id 3 after 1"),
        ] {
            let error = states(text).expect_err(text);
            assert!(error.contains(wrong), "{text:?}: {error}");
        }
    }
}
