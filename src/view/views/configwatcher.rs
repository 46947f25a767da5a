//! `/v2/configwatcher`: settings, `{"<key>":"<value>"}`.
//!
//! Callers that are not super never see secret keys, not even if they request a prefix of one.

use crate::view::{
    directory::Directory,
    document::ConfigValue,
    json,
    lainlet::is_secret,
    projection::{Projection, Rows, Rule, Spec},
    wire,
};

#[derive(Debug)]
pub(super) struct Configwatcher;

static SPEC: Spec = Spec {
    paths: &["/v2/configwatcher"],
    service: "Config",
    directory: Directory::Config,
    parameter: Some("target"),
    rule: Rule::Secrets,
    ..Spec::PLAIN
};

impl Projection<ConfigValue> for Configwatcher {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn rows(&self, key: &[u8], value: &ConfigValue, rows: &mut Rows<'_>) {
        if rows.select().public && is_secret(key) {
            return;
        }
        let mut json = Vec::with_capacity(key.len() + value.as_bytes().len() + 8);
        json::write_string(&mut json, key);
        json.push(b':');
        json::write_string(&mut json, value.as_bytes());
        rows.raw_entry(key, json, wire::text(value.as_bytes()).as_bytes());
    }
}
