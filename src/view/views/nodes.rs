//! `/v2/nodes`: the machines, `{"<name>:<ip>:<port>":<object>}`, with their whole values.
//!
//! A gRPC reply cannot hold all of JSON: objects become maps of texts, and other values become their JSON text.

use prost::Message as _;

use crate::{
    pb::lainlet::{self as pb, node_info::value::Type},
    view::{
        directory::Directory,
        document::{Json, Node},
        json,
        projection::{Projection, Rows, Spec},
        wire,
    },
};

#[derive(Debug)]
pub(super) struct Nodes;

static SPEC: Spec = Spec {
    paths: &["/v2/nodes"],
    service: "Nodes",
    directory: Directory::Nodes,
    parameter: Some("name"),
    suffix: ":",
    ..Spec::PLAIN
};

impl Projection<Node> for Nodes {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn rows(&self, key: &[u8], node: &Node, rows: &mut Rows<'_>) {
        // A `NodeInfo`: its map `v`.
        let mut info = Vec::new();
        for (name, value) in node.0.iter().flatten() {
            wire::put_entry(&mut info, 1, name, &message(value).encode_to_vec());
        }
        rows.encoded_entry(key, node, &info);
    }
}

fn message(value: &Json) -> pb::node_info::Value {
    match value {
        Json::Object(members) => pb::node_info::Value {
            vtype: Type::Map.into(),
            sval: String::new(),
            mval: members.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        },
        value => pb::node_info::Value { vtype: Type::String.into(), sval: text(value), mval: Default::default() },
    }
}

fn text(value: &Json) -> String {
    match value {
        Json::String(text) => text.to_string(),
        value => String::from_utf8_lossy(&json::to_json(value)).into_owned(),
    }
}
