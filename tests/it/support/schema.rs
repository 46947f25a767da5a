//! Checks JSON against a JSON Schema, as far as the schemas in `docs` need.
//!
//! It is not all of JSON Schema. Always holds: an unknown keyword is an error, so every part of a schema is checked.

use serde_json::{Map, Value};

/// A schema with its definitions.
#[derive(Debug)]
pub struct Schema {
    root: Value,
}

impl Schema {
    /// The schema in a file of this repository.
    pub fn of_file(path: &str) -> Self {
        let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        Self { root: serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}")) }
    }

    /// Fails if `value` does not match the schema.
    pub fn assert_describes(&self, value: &Value) {
        self.assert(&self.root, value);
    }

    /// The same for one of `$defs`.
    pub fn assert_part_describes(&self, part: &str, value: &Value) {
        self.assert(&self.root["$defs"][part], value);
    }

    fn assert(&self, schema: &Value, value: &Value) {
        let mut findings = Vec::new();
        self.check(schema, value, "", &mut findings);
        assert!(findings.is_empty(), "{}\nin {value:#}", findings.join("\n"));
    }

    fn check(&self, schema: &Value, value: &Value, at: &str, findings: &mut Vec<String>) {
        let Value::Object(schema) = schema else { panic!("{at}: no schema, but {schema}") };
        for (keyword, says) in schema {
            let fits = match keyword.as_str() {
                "$schema" | "$id" | "$defs" | "title" | "description" => true,
                "$ref" => {
                    self.check(self.referred(says), value, at, findings);
                    true
                }
                "type" => types(says).any(|name| is_of(value, name)),
                "enum" => says.as_array().expect("a list").contains(value),
                "minimum" => value.as_f64().is_none_or(|number| number >= says.as_f64().expect("a number")),
                "maxLength" => {
                    value.as_str().is_none_or(|text| text.chars().count() as u64 <= says.as_u64().expect("a number"))
                }
                "required" => {
                    let missing =
                        |name: &&Value| value.is_object() && value.get(name.as_str().expect("a name")).is_none();
                    findings.extend(
                        says.as_array().expect("a list").iter().filter(missing).map(|name| format!("{at}: no {name}")),
                    );
                    true
                }
                "properties" => {
                    for (name, field) in value.as_object().into_iter().flatten() {
                        if let Some(schema) = says.get(name) {
                            self.check(schema, field, &format!("{at}/{name}"), findings);
                        }
                    }
                    true
                }
                "additionalProperties" => {
                    assert_eq!(says, &Value::Bool(false), "{at}: only `false` is known");
                    findings.extend(unknown(schema, value).map(|name| format!("{at}: {name} is not described")));
                    true
                }
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.check(says, item, &format!("{at}/{index}"), findings);
                    }
                    true
                }
                other => panic!("{at}: the keyword {other} is not known"),
            };
            if !fits {
                findings.push(format!("{at}: {value} does not fit {keyword} {says}"));
            }
        }
    }

    fn referred(&self, name: &Value) -> &Value {
        let path = name.as_str().and_then(|name| name.strip_prefix('#')).expect("a place in this schema");
        self.root.pointer(path).unwrap_or_else(|| panic!("{name} is not there"))
    }
}

fn types(says: &Value) -> impl Iterator<Item = &str> {
    let one = says.as_str().into_iter();
    one.chain(says.as_array().into_iter().flatten().map(|name| name.as_str().expect("a name")))
}

fn is_of(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("the type {other} is not known"),
    }
}

fn unknown<'a>(schema: &'a Map<String, Value>, value: &'a Value) -> impl Iterator<Item = &'a String> {
    let described = &schema["properties"];
    value.as_object().into_iter().flatten().map(|(name, _)| name).filter(move |name| described.get(name).is_none())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn findings(value: &Value) -> usize {
        let schema = Schema {
            root: json!({
                "type": "object",
                "additionalProperties": false,
                "required": ["rows"],
                "properties": { "rows": { "type": "array", "items": { "$ref": "#/$defs/row" } }, "next": { "type": ["string", "null"] } },
                "$defs": { "row": { "enum": ["a", "b"], "maxLength": 1 }, "count": { "type": "integer", "minimum": 0 } },
            }),
        };
        let mut findings = Vec::new();
        schema.check(&schema.root, value, "", &mut findings);
        findings.len()
    }

    #[test]
    fn what_does_not_fit_is_found() {
        assert_eq!(findings(&json!({ "rows": ["a", "b"], "next": null })), 0);
        assert_eq!(findings(&json!({ "rows": [] })), 0);
        for wrong in [
            json!([]),
            json!({}),
            json!({ "rows": ["c"] }),
            json!({ "rows": {} }),
            json!({ "rows": [], "next": 1 }),
            json!({ "rows": [], "more": 1 }),
        ] {
            assert!(findings(&wrong) > 0, "{wrong}");
        }
    }
}
