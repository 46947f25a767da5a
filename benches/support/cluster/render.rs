//! The current values of a cluster's keys.
//!
//! Their members are in `values`. Called only by the parent module.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::json;

use super::{
    super::values::{self, Inspection, NEVER, PrevState},
    Cluster, Group, Node, Pod, Portal,
};

impl Cluster {
    pub(super) fn group_value(&self, group: &Group) -> String {
        let never_placed = PrevState { node_name: "", ips: None };
        let pods = group.pods.iter().enumerate();
        values::text(&values::PodGroup {
            spec: values::Spec {
                name: &group.name,
                namespace: &group.app,
                version: group.version,
                created_at: &group.created,
                updated_at: NEVER,
                pod: pod_spec(group, group.name.as_str(), &group.app, "", None, never_placed),
                num_instances: group.pods.len(),
                restart_policy: 1,
            },
            prev_state: group.pods.iter().map(|pod| self.prev_state(pod)).collect(),
            pods: pods
                .map(|(index, pod)| self.pod(group, pod, index + 1, &group.name, &group.app, &group.app))
                .collect(),
            healthst: 0,
            state: 2,
            oom_killed: false,
            last_error: "",
            updated_at: &group.created,
        })
    }

    pub(super) fn portal_value(&self, portal: &Portal) -> String {
        let mut nodes = BTreeMap::new();
        for (node, clients) in &portal.places {
            let clients: BTreeMap<_, _> = clients
                .iter()
                .map(|(client, place)| {
                    let name = format!("{}-{node}-{client}", portal.name);
                    let network = format!("{}_{client}", portal.name);
                    let pod = self.pod(&portal.group, &place.pod, 0, &name, &portal.name, &network);
                    let prev_state = self.prev_state(&place.pod);
                    let spec = pod_spec(&portal.group, name, &portal.name, network, Some(node), prev_state);
                    (client, values::PortalPod { ref_count: 1, verify_time: &place.verified, spec, pod })
                })
                .collect();
            nodes.insert(node, clients);
        }
        values::text(&nodes)
    }

    fn pod<'a>(
        &'a self,
        group: &'a Group,
        pod: &'a Pod,
        instance: usize,
        name: &str,
        namespace: &str,
        network: &str,
    ) -> values::Pod<'a> {
        let node = &self.nodes[pod.node];
        let containers = pod.containers.iter().enumerate().map(|(index, container)| {
            let inspection = Inspection {
                app: &group.app,
                pod_name: name,
                namespace,
                network,
                instance,
                index,
                version: group.version,
                image: group.image(index),
                image_id: &container.image_id,
                env: &group.env,
                command: group.command,
                volumes: group.volumes,
                annotation: &group.annotation,
                memory: group.memory,
                expose: group.expose,
                id: &container.id,
                swarm_id: &container.swarm_id,
                pid: container.pid,
                started: &container.started,
                ip: &container.ip,
                node_name: &node.name,
                node_ip: &node.ip,
            };
            values::Container {
                id: &container.id,
                runtime: inspection.value(),
                node_name: &node.name,
                node_ip: &node.ip,
                container_ip: &container.ip,
                node_port: 0,
                container_port: if index == 0 { group.expose } else { 0 },
                protocol: "tcp",
            }
        });
        values::Pod {
            instance_no: instance,
            containers: containers.collect(),
            healthst: 0,
            state: 2,
            oom_killed: false,
            last_error: "",
            updated_at: &pod.updated,
            target_state: 0,
            drift_count: 0,
            restart_count: 0,
            restart_at: NEVER,
        }
    }

    fn prev_state<'a>(&'a self, pod: &'a Pod) -> PrevState<'a> {
        let ips = pod.containers.iter().map(|container| container.ip.as_str()).collect();
        PrevState { node_name: &self.nodes[pod.node].name, ips: Some(ips) }
    }
}

impl Node {
    /// The installer writes the first port as text, the admin's tool writes the others as numbers.
    pub(super) fn value(&self, index: usize) -> String {
        let port = if index == 0 { json!("22") } else { json!(22) };
        json!({"docker_device": "", "ip": self.ip, "name": self.name, "ssh_port": port}).to_string()
    }
}

impl Group {
    fn image(&self, index: usize) -> String {
        let side = if index == 0 { "" } else { "-sidecar" };
        format!("registry.lain.local/{}{side}:release-{}", self.app, self.release)
    }
}

fn pod_spec<'a>(
    group: &'a Group,
    name: impl Into<Cow<'a, str>>,
    namespace: &'a str,
    network: impl Into<Cow<'a, str>>,
    node: Option<&str>,
    prev_state: PrevState<'a>,
) -> values::PodSpec<'a> {
    let containers = (0..group.containers()).map(|index| values::ContainerSpec {
        name: "",
        namespace: "",
        version: 0,
        created_at: NEVER,
        updated_at: NEVER,
        image: group.image(index),
        env: &group.env,
        user: "",
        working_dir: "",
        dns_search: vec![format!("{}.lain", group.app)],
        volumes: group.volumes,
        system_volumes: vec!["/data/lain/entrypoint:/lain/entrypoint:ro", "/etc/localtime:/etc/localtime:ro"],
        cloud_volumes: Vec::new(),
        command: group.command,
        entrypoint: None,
        cpu_limit: 0,
        memory_limit: group.memory,
        expose: if index == 0 { group.expose } else { 0 },
        log_config: json!({"Type": "", "Config": null}),
    });
    let mut filters = vec!["constraint:group==default".to_owned()];
    filters.extend(node.map(|node| format!("constraint:node=={node}")));
    // For a portal, only the instances have a version and times.
    let portal = node.is_some();
    values::PodSpec {
        name: name.into(),
        namespace,
        version: group.version,
        created_at: if portal { NEVER } else { &group.created },
        updated_at: NEVER,
        network: network.into(),
        containers: containers.collect(),
        filters,
        labels: json!({}),
        dependencies: group.depends_on.iter().map(|name| values::Dependency { pod_name: name, policy: 0 }).collect(),
        annotation: &group.annotation,
        stateful: false,
        setup_time: 0,
        kill_timeout: 10,
        prev_state,
        health_config: json!({"cmd": "", "options": {"interval": 0, "timeout": 0, "retries": 0}}),
    }
}
