//! [`Blocks`]: reads the text of `GET /v1/watch`, one block at a time: an event, a heartbeat, or an id alone.
//!
//! The connection is in `sse`, and whether the events are those of the run is checked in `check`. Always holds: each
//! block is read in full. All streams of a range get the same text, so a thread keeps what it has read, and a text that
//! is equal to a kept one is only compared with it, which takes less time than reading it as JSON.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use hashbrown::HashMap;
use serde::Deserialize;

use crate::bench::{
    check::{Told, Wrong},
    plan::Plan,
};

/// Bytes of text that a thread keeps. When there are more, it forgets all of them, and reads those that still come once
/// more: connections that are far apart need many, and old ones are never needed again.
const KEPT_BYTES: usize = 32 << 20;
/// Bytes of a text that are shown in an error.
const SHOWN: usize = 200;

/// How keys and values are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// As text.
    #[default]
    Text,
    /// As base64.
    Base64,
}

/// The content of a block. Without an event it is a heartbeat, or shows where the stream is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Block {
    /// The event.
    pub(super) put: Option<Told>,
    /// The revision up to which everything has come.
    pub(super) id: Option<i64>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Blocks {
    encoding: Encoding,
    kept: HashMap<Box<[u8]>, Block>,
    kept_bytes: usize,
}

/// The data of an event.
#[derive(Debug, Deserialize)]
struct Change {
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    mod_revision: i64,
}

#[derive(Debug, Deserialize)]
struct Compacted {
    compact_revision: i64,
    message: String,
}

impl Encoding {
    /// Its name in a request.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Base64 => "base64",
        }
    }

    /// The bytes of a key or a value, from the field for text and the one for base64.
    fn bytes(self, text: Option<String>, base64: Option<String>) -> Option<Vec<u8>> {
        match (self, text, base64) {
            (Self::Text, Some(text), None) => Some(text.into_bytes()),
            (Self::Base64, None, Some(base64)) => BASE64_STANDARD.decode(base64).ok(),
            _ => None,
        }
    }
}

impl Change {
    fn key(&mut self, encoding: Encoding) -> Option<Vec<u8>> {
        encoding.bytes(self.key.take(), self.key_base64.take())
    }

    fn value(&mut self, encoding: Encoding) -> Option<Vec<u8>> {
        encoding.bytes(self.value.take(), self.value_base64.take())
    }
}

impl Blocks {
    pub(super) fn new(encoding: Encoding) -> Self {
        Self { encoding, kept: HashMap::new(), kept_bytes: 0 }
    }

    /// Reads a block. The text ends before the empty line.
    pub(super) fn read(&mut self, plan: &Plan, text: &[u8]) -> Result<Block, Wrong> {
        if let Some(block) = self.kept.get(text) {
            return Ok(*block);
        }
        let block = block(plan, self.encoding, text)?;
        self.kept_bytes += text.len();
        if self.kept_bytes > KEPT_BYTES {
            self.kept.clear();
            self.kept_bytes = text.len();
        }
        self.kept.insert(text.into(), block);
        Ok(block)
    }
}

fn block(plan: &Plan, encoding: Encoding, text: &[u8]) -> Result<Block, Wrong> {
    let (mut kind, mut data, mut id) = (None, None, None);
    for line in text.split(|byte| *byte == b'\n') {
        let (name, value) = match line.iter().position(|byte| *byte == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        let earlier = match name {
            b"event" => kind.replace(value),
            b"data" => data.replace(value),
            b"id" => id.replace(value),
            // A comment, or the time after which to reconnect.
            _ => None,
        };
        if earlier.is_some() {
            return Err(unclear("a field comes twice", text));
        }
    }
    let number = |id: &[u8]| std::str::from_utf8(id).ok()?.parse().ok();
    let id = id.map(|id| number(id).ok_or_else(|| unclear("an id is not a revision", text))).transpose()?;
    let put = match (kind, data) {
        (Some(b"put"), Some(data)) => {
            let mut change: Change = json(data)?;
            let (key, value) = (change.key(encoding), change.value(encoding));
            let key = key.ok_or_else(|| unclear("a put has no key in the requested encoding", data))?;
            let value = value.ok_or_else(|| unclear("a put has no value in the requested encoding", data))?;
            Some(Told::read(plan, &key, &value, change.mod_revision)?)
        }
        (Some(b"delete"), Some(data)) => {
            let mut change: Change = json(data)?;
            let key = change.key(encoding);
            let key = key.ok_or_else(|| unclear("a deletion has no key in the requested encoding", data))?;
            return Err(Wrong::deletion(&key, change.mod_revision));
        }
        (Some(b"compacted"), Some(data)) => {
            let Compacted { compact_revision, message } = json(data)?;
            return Err(Wrong::Canceled { compact_revision, reason: message });
        }
        (Some(b"end"), Some(data)) => return Err(Wrong::Ended(shown(data))),
        (Some(b"snapshot"), _) => return Err(unclear("a snapshot that was not requested", text)),
        // An event that is not known, or none.
        _ => None,
    };
    Ok(Block { put, id })
}

fn json<'a, T: Deserialize<'a>>(data: &'a [u8]) -> Result<T, Wrong> {
    serde_json::from_slice(data).map_err(|error| unclear(error, data))
}

fn unclear(why: impl std::fmt::Display, text: &[u8]) -> Wrong {
    Wrong::Text(format!("{why}: {:?}", shown(text)))
}

/// The beginning of a text.
fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(SHOWN)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: i64 = 1000;

    fn plan(encoding: Encoding) -> Plan {
        let plan = Plan::new(b"/test/\"".to_vec(), 4, 64, 1, BASE);
        if encoding == Encoding::Text { plan.with_text() } else { plan }
    }

    /// The event of a put, as the relay writes it.
    fn put(plan: &Plan, encoding: Encoding, number: u64, revision: i64) -> String {
        let (key, value) = (plan.key(number % plan.keys), plan.value(number, 5));
        let field = |name: &str, bytes: Vec<u8>| match encoding {
            Encoding::Text => format!("\"{name}\":{}", serde_json::json!(String::from_utf8(bytes).expect("text"))),
            Encoding::Base64 => format!("\"{name}_base64\":\"{}\"", BASE64_STANDARD.encode(bytes)),
        };
        let (key, value) = (field("key", key), field("value", value));
        format!("event: put\ndata: {{{key},{value},\"create_revision\":3,\"mod_revision\":{revision},\"version\":1}}")
    }

    #[test]
    fn events_heartbeats_and_ids_are_read_in_both_encodings() {
        for encoding in [Encoding::Text, Encoding::Base64] {
            let plan = plan(encoding);
            let mut blocks = Blocks::new(encoding);
            let mut read = |text: &str| blocks.read(&plan, text.as_bytes());
            let told = |number, revision| {
                Some(Told::read(&plan, &plan.key(number % 4), &plan.value(number, 5), revision).expect("of the run"))
            };
            for _ in 0..2 {
                let event = put(&plan, encoding, 6, 1003);
                assert_eq!(read(&event), Ok(Block { put: told(6, 1003), id: None }));
                assert_eq!(read(&format!("{event}\nid: 1003")), Ok(Block { put: told(6, 1003), id: Some(1003) }));
                assert_eq!(read("retry: 2417"), Ok(Block::default()));
                assert_eq!(read(": heartbeat"), Ok(Block::default()));
                assert_eq!(read(": heartbeat\nid: 20"), Ok(Block { put: None, id: Some(20) }));
                assert_eq!(read("event: of-the-future\ndata: x\nid: 20"), Ok(Block { put: None, id: Some(20) }));
            }
        }
    }

    #[test]
    fn a_text_that_differs_is_not_taken_for_a_kept_one() {
        let plan = plan(Encoding::Text);
        let mut blocks = Blocks::new(Encoding::Text);
        let texts: Vec<String> = (0..100).map(|n| put(&plan, Encoding::Text, n, 1001 + n as i64)).collect();
        for _ in 0..2 {
            for (number, text) in texts.iter().enumerate() {
                let read = blocks.read(&plan, text.as_bytes()).expect("it is right").put.expect("a put");
                assert_eq!((read.put.number, read.revision), (number as u64, number as u32 + 1));
                let altered = text.replacen("\"value\":\"", "\"value\":\"+", 1);
                let altered = blocks.read(&plan, altered.as_bytes());
                assert!(matches!(altered, Err(Wrong::Value { .. })), "{altered:?}");
            }
        }
        assert_eq!(blocks.kept.len(), texts.len(), "each text is kept once");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let plan = plan(Encoding::Text);
        let mut blocks = Blocks::new(Encoding::Text);
        let comment = "x".repeat(1 << 20);
        for number in 0..100 {
            blocks.read(&plan, format!(": {comment}\nid: {number}").as_bytes()).expect("a comment with an id");
            let kept: usize = blocks.kept.keys().map(|text| text.len()).sum();
            assert!(kept == blocks.kept_bytes && kept <= KEPT_BYTES, "{number}: {kept}");
        }
        assert!(blocks.kept.len() > 1);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let plan = plan(Encoding::Text);
        let right = put(&plan, Encoding::Text, 1, 1001);
        let read = |text: &str| Blocks::new(Encoding::Text).read(&plan, text.as_bytes()).expect_err(text);
        for (text, told) in [
            (right.replacen("00000001", "00000002", 1), "a wrong value of"),
            (right.replacen("00000001", "x0000001", 1), "unrequested key"),
            (right.replace("\"value\"", "\"value_base64\""), "no value in the requested encoding"),
            (right.replace("\"key\"", "\"key_base64\""), "no key in the requested encoding"),
            (right.replace("\"value\"", "\"of-the-future\""), "no value in the requested encoding"),
            (right.replace("event: put", "event: delete"), "although it was not deleted"),
            (right.replace("event: put", "event: snapshot"), "a snapshot that was not requested"),
            (right.replace("\"version\":1}", "\"version\":1"), "EOF while parsing"),
            (format!("{right}\nid: 12x"), "an id is not a revision"),
            (format!("{right}\nid: 1\nid: 2"), "a field comes twice"),
            ("event: compacted\ndata: {\"compact_revision\":7,\"message\":\"gone\"}".to_owned(), "canceled"),
            ("event: end\ndata: {\"status\":403,\"error\":\"no\"}".to_owned(), "the stream ended: {\"status\":403"),
        ] {
            let wrong = read(&text).to_string();
            assert!(wrong.contains(told), "{text:?}: {wrong}");
        }
    }
}
