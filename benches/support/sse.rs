//! [`Events`]: server-sent events out of the bytes of a watch, with Lainlet's rules checked on the way.
//!
//! Not here: the connection, and what a payload should be; see `fleet`. Always holds: an event that breaks a rule is an error and
//! is never handed on.

use std::io::BufRead as _;

use anyhow::{Context as _, Result, bail, ensure};

/// Every so many payloads one is parsed as JSON, the first always: parsing all would cost more than sending them.
const SAMPLE: u64 = 16;

const DATA: &[u8] = b"data: ";

/// What came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A state, complete.
    State(&'a [u8]),
    /// A sign of life.
    Heartbeat,
}

/// The events of one watch, up to where it has come.
#[derive(Debug, Default)]
pub struct Events {
    line: Vec<u8>,
    id: Option<u64>,
    kind: Kind,
    /// The line, with its name.
    data: Vec<u8>,
    has_data: bool,
    /// States so far, and so the last id.
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
    /// Reads on, and hands on each event that is complete.
    pub fn read(&mut self, mut bytes: &[u8], mut event: impl FnMut(Event<'_>) -> Result<()>) -> Result<()> {
        while !bytes.is_empty() {
            bytes.read_until(b'\n', &mut self.line)?;
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

    /// How many states there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    fn field(&mut self) -> Result<()> {
        let line = &mut self.line;
        if line.starts_with(DATA) {
            ensure!(!self.has_data, "an event with two data lines");
            ensure!(self.id.is_some() && self.kind != Kind::None, "data before id and event");
            std::mem::swap(line, &mut self.data);
            self.has_data = true;
            return Ok(());
        }
        let line = std::str::from_utf8(line).context("a line that is not text")?;
        match line.split_once(": ") {
            Some(("id", id)) => self.id = Some(id.parse().with_context(|| format!("id: {id}"))?),
            Some(("event", kind)) => {
                self.kind = match kind {
                    "init" => Kind::Init,
                    "update" => Kind::Update,
                    "delete" => Kind::Delete,
                    "heartbeat" => Kind::Heartbeat,
                    "error" => Kind::Error,
                    _ => bail!("event: {kind}"),
                }
            }
            _ => bail!("an unknown line: {line:?}"),
        }
        Ok(())
    }

    fn complete(&mut self) -> Result<Event<'_>> {
        let id = self.id.context("an event without an id")?;
        let data = self.data.get(DATA.len()..).unwrap_or_default();
        match self.kind {
            Kind::None => bail!("an event without a kind"),
            Kind::Error => bail!("the server ends the watch: {}", String::from_utf8_lossy(data)),
            Kind::Heartbeat => {
                ensure!(id == 0 && !self.has_data, "a heartbeat with id {id} or data");
                Ok(Event::Heartbeat)
            }
            Kind::Init | Kind::Update | Kind::Delete => {
                ensure!(self.has_data, "a state without data");
                ensure!(id == self.count + 1, "id {id} after {}", self.count);
                ensure!((self.kind == Kind::Init) == (id == 1), "{:?} with id {id}", self.kind);
                if self.count.is_multiple_of(SAMPLE) {
                    serde_json::from_slice::<serde::de::IgnoredAny>(data).context("a payload that is not JSON")?;
                }
                self.count = id;
                Ok(Event::State(data))
            }
        }
    }
}
