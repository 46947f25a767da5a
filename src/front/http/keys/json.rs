//! Keys and values as JSON, as docs/http-api.md describes.
//!
//! The text around them is in `list`, `text` and `snapshot`. Always holds: the name of a field shows whether it is text
//! or base64. The output has no line breaks, so it is a single line of an event for any keys and values.

use base64::prelude::{BASE64_STANDARD, Engine as _};

use crate::{front::texts, pb::mvccpb, types::KeyValue};

/// The form in which keys and values are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Form {
    /// Use base64 for all of them, not only for those that are not text.
    pub(super) base64: bool,
    /// Leave out the values.
    pub(super) keys_only: bool,
}

impl Form {
    /// The index of this form among a payload's texts.
    pub(super) fn index(self) -> usize {
        texts::KEYS.start + usize::from(self.base64) + 2 * usize::from(self.keys_only)
    }
}

/// A key-value to write, from any source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown<'a> {
    pub(super) key: &'a [u8],
    pub(super) value: &'a [u8],
    pub(super) create_revision: i64,
    pub(super) mod_revision: i64,
    pub(super) version: i64,
    pub(super) lease: i64,
}

impl<'a> From<&'a KeyValue> for Shown<'a> {
    fn from(kv: &'a KeyValue) -> Self {
        Self {
            key: kv.key(),
            value: kv.value(),
            create_revision: kv.create_revision.get(),
            mod_revision: kv.mod_revision.get(),
            version: kv.version,
            lease: kv.lease,
        }
    }
}

impl<'a> From<&'a mvccpb::KeyValue> for Shown<'a> {
    fn from(kv: &'a mvccpb::KeyValue) -> Self {
        Self {
            key: &kv.key,
            value: &kv.value,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            lease: kv.lease,
        }
    }
}

impl Shown<'_> {
    /// Writes all of its fields.
    pub(super) fn put(&self, form: Form, to: &mut Vec<u8>) {
        self.put_key(form, to);
        if !form.keys_only {
            to.push(b',');
            put_bytes("value", self.value, form, to);
        }
        put_number(",\"create_revision\":", self.create_revision, to);
        put_number(",\"mod_revision\":", self.mod_revision, to);
        put_number(",\"version\":", self.version, to);
        if self.lease != 0 {
            // A string, because it has more bits than JavaScript's numbers.
            put_number(",\"lease\":\"", self.lease, to);
            to.push(b'"');
        }
        to.push(b'}');
    }

    /// Writes the fields of a deleted key.
    pub(super) fn put_deleted(&self, form: Form, to: &mut Vec<u8>) {
        self.put_key(form, to);
        put_number(",\"mod_revision\":", self.mod_revision, to);
        to.push(b'}');
    }

    fn put_key(&self, form: Form, to: &mut Vec<u8>) {
        to.push(b'{');
        put_bytes("key", self.key, form, to);
    }
}

/// Writes text as a JSON string.
pub(super) fn put_text(text: &str, to: &mut Vec<u8>) {
    serde_json::to_writer(to, text).expect("writing to memory cannot fail");
}

/// Writes `before` and the number.
pub(super) fn put_number(before: &str, number: i64, to: &mut Vec<u8>) {
    to.extend_from_slice(before.as_bytes());
    serde_json::to_writer(to, &number).expect("writing to memory cannot fail");
}

fn put_bytes(name: &str, bytes: &[u8], form: Form, to: &mut Vec<u8>) {
    to.push(b'"');
    to.extend_from_slice(name.as_bytes());
    match std::str::from_utf8(bytes) {
        Ok(text) if !form.base64 => {
            to.extend_from_slice(b"\":");
            put_text(text, to);
        }
        _ => {
            to.extend_from_slice(b"_base64\":\"");
            let start = to.len();
            to.resize(start + 4 * bytes.len().div_ceil(3), 0);
            BASE64_STANDARD.encode_slice(bytes, &mut to[start..]).expect("the buffer is large enough");
            to.push(b'"');
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn shown(key: &[u8], value: &[u8], form: Form) -> Value {
        let kv = Shown { key, value, create_revision: 3, mod_revision: 5, version: 2, lease: i64::MAX };
        let mut json = Vec::new();
        kv.put(form, &mut json);
        assert!(!json.contains(&b'\n') && !json.contains(&b'\r') && !json.contains(&0), "{}", json.escape_ascii());
        serde_json::from_slice(&json).expect("JSON")
    }

    #[test]
    fn the_name_of_a_field_tells_text_from_base64() {
        let text = Form::default();
        let all_base64 = Form { base64: true, ..text };
        let json = shown(b"/a", "ü\n\r\0\u{2028}\"".as_bytes(), text);
        assert_eq!((&json["key"], &json["value"]), (&json!("/a"), &json!("ü\n\r\0\u{2028}\"")));
        assert_eq!(json["lease"], "9223372036854775807");
        assert_eq!(
            (&json["create_revision"], &json["mod_revision"], &json["version"]),
            (&json!(3), &json!(5), &json!(2))
        );
        assert!(json.get("key_base64").is_none() && json.get("value_base64").is_none());
        let json = shown(b"/a", b"\xff\n\x00", text);
        assert_eq!((&json["key"], &json["value_base64"]), (&json!("/a"), &json!("/woA")));
        assert!(json.get("value").is_none());
        let json = shown(b"\x80", b"", text);
        assert_eq!((&json["key_base64"], &json["value"]), (&json!("gA=="), &json!("")));
        let json = shown(b"/a", b"text", all_base64);
        assert_eq!((&json["key_base64"], &json["value_base64"]), (&json!("L2E="), &json!("dGV4dA==")));
        let json = shown(b"/a", b"text", Form { keys_only: true, ..text });
        assert!(json.get("value").is_none() && json.get("value_base64").is_none());
    }

    #[test]
    fn each_form_has_a_place_of_its_own() {
        let mut places: Vec<usize> = [(false, false), (true, false), (false, true), (true, true)]
            .map(|(base64, keys_only)| Form { base64, keys_only }.index())
            .into();
        places.sort_unstable();
        assert_eq!(places, texts::KEYS.collect::<Vec<_>>());
    }
}
