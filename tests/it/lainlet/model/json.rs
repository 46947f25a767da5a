//! Reads and writes JSON for the model, text by text, in the given order, with Go's escapes.
//!
//! Control characters that serde_json writes differently from Go are not supported; the model never gets any.

use std::collections::BTreeMap;

use serde_json::Value;

pub(super) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn number(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_i64).unwrap_or_default().to_string()
}

pub(super) fn members(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
}

/// A list that may be `null`.
pub(super) fn strings(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        None | Some(Value::Null) => "null".to_owned(),
        Some(_) => array(list(value, pointer).iter().map(|one| string(one.as_str().unwrap_or_default()))),
    }
}

pub(super) fn string(text: &str) -> String {
    escape(&Value::from(text).to_string())
}

/// Adds the escapes that only Go uses.
pub(super) fn escape(json: &str) -> String {
    let mut escaped = json.to_owned();
    for (character, written) in
        [("<", "003c"), (">", "003e"), ("&", "0026"), ("\u{2028}", "2028"), ("\u{2029}", "2029")]
    {
        escaped = escaped.replace(character, &format!("\\u{written}"));
    }
    escaped
}

pub(super) fn array(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(","))
}

/// An object with its members in this order.
pub(super) fn object(members: &[(&str, String)]) -> String {
    let members: Vec<_> = members.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", members.join(","))
}

/// An object with its members sorted by name; of two with one name the last counts.
pub(super) fn map<'a>(members: impl Iterator<Item = (&'a str, String)>) -> String {
    let members: BTreeMap<_, _> = members.collect();
    let members: Vec<_> = members.into_iter().map(|(name, value)| format!("{}:{value}", string(name))).collect();
    format!("{{{}}}", members.join(","))
}
