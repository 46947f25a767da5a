//! `/v2/containers`: what runs where, `{"<node>/<id>":{…}}`, with each container under its node's name and under its
//! address.

use serde::Serialize;

use crate::{
    pb::lainlet as pb,
    view::{
        directory::Directory,
        document::{Container, Pod, PodGroup},
        projection::{Projection, Rows, Spec},
    },
};

#[derive(Debug)]
pub(super) struct Containers;

static SPEC: Spec = Spec {
    paths: &["/v2/containers"],
    service: "Containers",
    directory: Directory::PodGroups,
    parameter: Some("nodename"),
    suffix: "/",
    matches_rows: true,
    ..Spec::PLAIN
};

#[derive(Serialize)]
struct Info<'a> {
    app: &'a str,
    app_version: &'a str,
    proc: &'a str,
    nodename: &'a str,
    nodeip: &'a str,
    ip: &'a str,
    port: i64,
    #[serde(rename = "instanceNo")]
    instance_no: i64,
}

impl Projection<PodGroup> for Containers {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn match_keys(&self, group: &PodGroup, each: &mut dyn FnMut(&[u8])) {
        keys(group, |key, _, _| each(key.as_bytes()));
    }

    fn rows(&self, _key: &[u8], group: &PodGroup, rows: &mut Rows<'_>) {
        keys(group, |key, pod, container| {
            if !rows.wants(key.as_bytes()) {
                return;
            }
            let info = Info {
                app: &group.spec.namespace,
                app_version: group.app_version(),
                proc: &group.spec.name,
                nodename: &container.node_name,
                nodeip: &container.node_ip,
                ip: &container.container_ip,
                port: container.container_port,
                instance_no: pod.instance_no,
            };
            let message = pb::Info {
                app_name: info.app.to_owned(),
                app_version: info.app_version.to_owned(),
                proc_name: info.proc.to_owned(),
                node_name: info.nodename.to_owned(),
                node_ip: info.nodeip.to_owned(),
                ip: info.ip.to_owned(),
                port: info.port as i32,
                instance_no: info.instance_no as i32,
            };
            rows.entry(key.as_bytes(), &info, &message);
        });
    }
}

/// The two keys of each container. A container without an id was never created.
pub(super) fn keys<'a>(group: &'a PodGroup, mut each: impl FnMut(&str, &'a Pod, &'a Container)) {
    for pod in &group.pods {
        for container in pod.containers.iter().filter(|container| !container.id.is_empty()) {
            each(&format!("{}/{}", container.node_name, container.id), pod, container);
            each(&format!("{}/{}", container.node_ip, container.id), pod, container);
        }
    }
}
