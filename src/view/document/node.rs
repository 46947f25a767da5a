//! [`Node`]: a machine of the cluster, which is any JSON object below `/lain/nodes/nodes/`.
//!
//! Clients get the whole object in the form of Go's generic values: numbers are 64-bit floats, and members are sorted.
//! Writing it is in `json`.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserializer, Serialize, Serializer,
    de::{MapAccess, SeqAccess, Visitor},
};

use super::read::{As, Read, Trail};

/// What is stored for a node; `None` for `null`.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub(crate) struct Node(pub(crate) Option<BTreeMap<Box<str>, Json>>);

impl Read for Node {
    fn read<'de, D: Deserializer<'de>>(from: D, trail: &Trail) -> Result<Self, D::Error> {
        Option::read(from, trail).map(Self)
    }
}

/// Any JSON value.
#[derive(Debug, Default, PartialEq)]
pub(crate) enum Json {
    #[default]
    Null,
    Bool(bool),
    Number(Number),
    String(Box<str>),
    Array(Box<[Json]>),
    Object(BTreeMap<Box<str>, Json>),
}

/// A finite number. Unlike floats, 0 and -0 are not equal, because they are written differently.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Number(pub(crate) f64);

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => to.serialize_unit(),
            Self::Bool(value) => to.serialize_bool(*value),
            Self::Number(Number(value)) => to.serialize_f64(*value),
            Self::String(value) => to.serialize_str(value),
            Self::Array(items) => items.serialize(to),
            Self::Object(members) => members.serialize(to),
        }
    }
}

impl Read for Json {
    fn read<'de, D: Deserializer<'de>>(from: D, trail: &Trail) -> Result<Self, D::Error> {
        struct Any<'a>(&'a Trail);

        impl<'de> Visitor<'de> for Any<'_> {
            type Value = Json;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
                Ok(Json::Bool(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
                Ok(Json::Number(Number(value as f64)))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
                Ok(Json::Number(Number(value as f64)))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
                Ok(Json::Number(Number(value)))
            }

            fn visit_str<E>(self, value: &str) -> Result<Json, E> {
                Ok(Json::String(value.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element_seed(As::new(self.0))? {
                    items.push(item);
                }
                Ok(Json::Array(items.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
                let mut members = BTreeMap::new();
                while let Some(name) = map.next_key()? {
                    members.insert(name, map.next_value_seed(As::new(self.0))?);
                }
                Ok(Json::Object(members))
            }
        }

        from.deserialize_any(Any(trail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{
        document::{DecodeError, Document as _},
        json::to_json,
    };

    fn shown(json: &str) -> String {
        let node = Node::decode(json.as_bytes()).unwrap_or_else(|error| panic!("{json}: {error}"));
        String::from_utf8(to_json(&node)).expect("text")
    }

    #[test]
    fn any_object_is_shown_sorted() {
        assert_eq!(
            shown(r#"{"ssh_port": 22, "name": "n1", "x": {"b": [1, null, {"d": true, "c": "<"}], "a": {}}, "X": []}"#),
            r#"{"X":[],"name":"n1","ssh_port":22,"x":{"a":{},"b":[1,null,{"c":"\u003c","d":true}]}}"#
        );
        assert_eq!(shown("{}"), "{}");
        assert_eq!(shown(r#"{"a":1,"A":2,"a":{"b":1},"a":{"c":"\ud800"}}"#), "{\"A\":2,\"a\":{\"c\":\"\u{fffd}\"}}");
    }

    #[test]
    fn null_is_shown() {
        assert_eq!(shown(" null "), "null");
    }

    #[test]
    fn numbers_are_shown_as_go_shows_floats() {
        let numbers = "1.50, 1.0, 12345678901234567890, -0.0, -0, 0, 1e20, 1e21, 0.000001, 0.0000001, -1.5e-7, 1e-10, \
            9007199254740993, -9223372036854775809, 1e-400, 5e-324, 1.7976931348623157e308, 123456789.125, 22";
        let shown_as = "1.5,1,12345678901234567000,-0,-0,0,100000000000000000000,1e+21,0.000001,1e-7,-1.5e-7,1e-10,\
            9007199254740992,-9223372036854776000,0,5e-324,1.7976931348623157e+308,123456789.125,22";
        assert_eq!(shown(&format!(r#"{{"n":[{numbers}]}}"#)), format!(r#"{{"n":[{shown_as}]}}"#));
    }

    #[test]
    fn zero_and_minus_zero_are_not_the_same() {
        let decode = |json: &str| Node::decode(json.as_bytes()).expect("a node");
        assert_ne!(decode(r#"{"a":0}"#), decode(r#"{"a":-0}"#));
        assert_eq!(decode(r#"{"a":1}"#), decode(r#"{"a":1.0}"#));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for json in ["[]", "1", "\"a\"", r#"{"a":1e400}"#, r#"{"a":-1e309}"#] {
            assert!(Node::decode(json.as_bytes()).is_err(), "{json}");
        }
        assert!(matches!(Node::decode(b"{} {}"), Err(DecodeError::Syntax { .. })));
        assert!(Node::decode("[".repeat(100_000).as_bytes()).is_err());
        assert!(Node::decode(format!(r#"{{"a":{}}}"#, "[".repeat(100_000)).as_bytes()).is_err());
    }
}
