//! `/v2/depends`: where portals run and for which apps, `{"<portal>":{"<node>":{"<client app>":{…}}}}`.

use std::collections::BTreeMap;

use prost::Message as _;
use serde::Serialize;

use crate::{
    pb::lainlet as pb,
    view::{
        directory::Directory,
        document::{Client, Portal},
        projection::{Projection, Rows, Spec},
        wire,
    },
};

#[derive(Debug)]
pub(super) struct Depends;

static SPEC: Spec = Spec {
    paths: &["/v2/depends"],
    service: "Depends",
    directory: Directory::Depends,
    parameter: Some("target"),
    ..Spec::PLAIN
};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Item<'a> {
    annotation: &'a str,
    containers: Vec<ContainerInfo<'a>>,
}

#[derive(Serialize)]
struct ContainerInfo<'a> {
    #[serde(rename = "ContainerID")]
    id: &'a str,
    #[serde(rename = "NodeIP")]
    node_ip: &'a str,
    #[serde(rename = "IP")]
    ip: &'a str,
    #[serde(rename = "Port")]
    port: i64,
}

impl Projection<Portal> for Depends {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn rows(&self, key: &[u8], portal: &Portal, rows: &mut Rows<'_>) {
        let nodes: BTreeMap<&str, BTreeMap<&str, Item<'_>>> = portal
            .nodes
            .iter()
            .map(|(node, clients)| (&**node, clients.iter().map(|(app, client)| (&**app, item(client))).collect()))
            .collect();
        let message = |item: &Item<'_>| pb::DependsItem {
            annotation: item.annotation.to_owned(),
            containers: item
                .containers
                .iter()
                .map(|info| pb::ContainerInfo {
                    container_id: info.id.to_owned(),
                    node_ip: info.node_ip.to_owned(),
                    ip: info.ip.to_owned(),
                    port: info.port as i32,
                })
                .collect(),
        };
        // A `DependsNodeMap` of `DependsAppMap`s.
        let mut by_node = Vec::new();
        for (node, clients) in &nodes {
            let mut by_app = Vec::new();
            for (app, item) in clients {
                wire::put_entry(&mut by_app, 1, app, &message(item).encode_to_vec());
            }
            wire::put_entry(&mut by_node, 1, node, &by_app);
        }
        rows.encoded_entry(key, &nodes, &by_node);
    }
}

fn item(client: &Client) -> Item<'_> {
    Item {
        annotation: &client.spec.annotation,
        containers: client
            .pod
            .containers
            .iter()
            .map(|container| ContainerInfo {
                id: &container.id,
                node_ip: &container.node_ip,
                ip: &container.container_ip,
                port: container.container_port,
            })
            .collect(),
    }
}
