//! [`Cluster`]: a LAIN cluster of any size as keys and values, and the changes that its orchestrator would make.
//!
//! It is created in `create` and written in `render` and `values`. Used by the scenarios and the micro-benchmarks.
//! Always holds: the same seed and the same calls give the same cluster and changes. A [`Change`] names exactly the
//! views and targets that show it, so the number of expected messages is known.

mod create;
mod render;

use std::collections::BTreeMap;

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use serde_json::json;

/// The directory of pod groups.
pub const POD_GROUPS: &str = "/lain/deployd/pod_groups/";
/// The directory of portals.
pub const PORTALS: &str = "/lain/deployd/depends/pods/";
/// The directory of nodes.
pub const NODES: &str = "/lain/nodes/nodes/";
/// The directory of the configuration.
pub const CONFIG: &str = "/lain/config/";

/// The size of a cluster.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Apps.
    pub apps: usize,
    /// Nodes that run them.
    pub nodes: usize,
    /// Process types, and so pod groups, per app.
    pub procs: usize,
    /// Instances of each.
    pub instances: usize,
}

/// One write to etcd.
#[derive(Debug)]
pub struct Change {
    /// The key.
    pub key: String,
    /// The value, or `None` if the key is deleted.
    pub value: Option<String>,
    /// The views that show it, named by [`shown`]; empty if none does.
    pub shown_by: Vec<String>,
}

/// The name of a view with a target, for [`Change::shown_by`].
pub fn shown(view: &str, target: &str) -> String {
    format!("{view} {target}")
}

/// The cluster.
#[derive(Debug)]
pub struct Cluster {
    rng: StdRng,
    procs: usize,
    /// Seconds since the cluster was created; each request for the time advances it.
    clock: u64,
    addresses: u32,
    nodes: Vec<Node>,
    groups: Vec<Group>,
    portals: Vec<Portal>,
    config: BTreeMap<String, String>,
    /// An app that appears and disappears.
    visitor: Group,
    visiting: bool,
}

#[derive(Debug)]
struct Node {
    name: String,
    ip: String,
}

/// A process type of an app, with its instances.
#[derive(Clone, Debug)]
struct Group {
    app: String,
    /// The full name: `<app>.<type>.<short>`.
    name: String,
    short: String,
    web: bool,
    ports: Vec<u16>,
    release: String,
    version: u32,
    env: Vec<String>,
    options: Vec<String>,
    command: &'static [&'static str],
    volumes: &'static [&'static str],
    annotation: String,
    memory: u64,
    expose: u16,
    sidecar: bool,
    depends_on: Vec<String>,
    pods: Vec<Pod>,
    created: String,
}

#[derive(Clone, Debug)]
struct Pod {
    node: usize,
    containers: Vec<Container>,
    updated: String,
}

#[derive(Clone, Debug)]
struct Container {
    id: String,
    ip: String,
    image_id: String,
    swarm_id: String,
    pid: u32,
    started: String,
}

/// A service's portal, with an instance per client app and node.
#[derive(Debug)]
struct Portal {
    name: String,
    group: Group,
    /// By the name of the node, then of the client.
    places: BTreeMap<String, BTreeMap<String, Place>>,
}

#[derive(Debug)]
struct Place {
    verified: String,
    pod: Pod,
}

impl Cluster {
    /// All current keys and values.
    pub fn entries(&self) -> impl Iterator<Item = (String, String)> + '_ {
        let config = self.config.iter().map(|(name, value)| (format!("{CONFIG}{name}"), value.clone()));
        let groups = self.groups.iter().map(|group| (group.key(), self.group_value(group)));
        let portals = self.portals.iter().map(|portal| (portal.key(), self.portal_value(portal)));
        let nodes = self.nodes.iter().enumerate().map(|(index, node)| (node.key(), node.value(index)));
        config.chain(nodes).chain(groups).chain(portals)
    }

    /// The apps in the order of their creation.
    pub fn apps(&self) -> Vec<&str> {
        let mut apps: Vec<_> = self.groups.iter().map(|group| group.app.as_str()).collect();
        apps.dedup();
        apps
    }

    /// The names of the nodes.
    pub fn node_names(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|node| node.name.as_str())
    }

    /// The routine refresh of a pod group, which changes times that no view shows.
    pub fn refresh(&mut self) -> Change {
        let (index, _) = self.any_group();
        self.refresh_group(index)
    }

    /// The same for a group of one of the first `apps` apps.
    pub fn refresh_of_first(&mut self, apps: usize) -> Change {
        let index = self.any_group_of_first(apps);
        self.refresh_group(index)
    }

    /// A repeated check of a portal, which changes times that no view shows; a refresh if there are no portals.
    pub fn verify_portal(&mut self) -> Change {
        let Some(index) = self.any_portal() else { return self.refresh() };
        let now = self.now();
        for place in self.portals[index].places.values_mut().flat_map(BTreeMap::values_mut) {
            place.verified.clone_from(&now);
        }
        self.portal_change(index, Vec::new())
    }

    /// Replaces an instance on its node, with other containers and addresses.
    pub fn replace_instance(&mut self) -> Change {
        let (index, _) = self.any_group();
        self.replace_instance_of(index)
    }

    /// The same for a group of one of the first `apps` apps.
    pub fn replace_instance_of_first(&mut self, apps: usize) -> Change {
        let index = self.any_group_of_first(apps);
        self.replace_instance_of(index)
    }

    /// Begins an upgrade: writes the new specification with the old instances.
    pub fn release_app(&mut self) -> Change {
        let (index, _) = self.any_group();
        let release = self.release();
        let now = self.now();
        let group = &mut self.groups[index];
        group.release = release;
        group.version += 1;
        group.created = now;
        group.set_env();
        let group = &self.groups[index];
        let mut shown_by = vec![shown("coreinfowatcher", &group.app), shown("coreinfowatcher", "*")];
        shown_by.push(shown("containers", "*"));
        for node in self.nodes_of(group) {
            shown_by.push(shown("containers", node));
            shown_by.push(shown("localprocs", node));
        }
        self.group_change(index, shown_by)
    }

    /// A stream process opens another port; a new release if no group has ports.
    pub fn move_port(&mut self) -> Change {
        let streams: Vec<_> = (0..self.groups.len()).filter(|index| !self.groups[*index].ports.is_empty()).collect();
        let Some(&index) = streams.choose(&mut self.rng) else { return self.release_app() };
        let group = &mut self.groups[index];
        // A port beyond the existing ones, so that no two groups have the same.
        group.ports =
            group.ports.iter().map(|port| if *port < 19_500 { port + 10_000 } else { port - 10_000 }).collect();
        group.annotation = streaming(&group.ports);
        let group = &self.groups[index];
        let mut shown_by = Vec::new();
        for view in ["coreinfowatcher", "streamprocs", "ports"] {
            shown_by.push(shown(view, &group.app));
            shown_by.push(shown(view, "*"));
        }
        shown_by.push(shown("backupspec", "*"));
        shown_by.extend(self.nodes_of(group).map(|node| shown("localprocs", node)));
        self.group_change(index, shown_by)
    }

    /// Replaces a portal's instance, or an app's instance if there are no portals.
    pub fn replace_portal(&mut self) -> Change {
        let Some(index) = self.any_portal() else { return self.replace_instance() };
        let containers = self.containers(1);
        let place = self.portals[index].places.values_mut().flat_map(BTreeMap::values_mut).next();
        place.expect("a portal has a client").pod.containers = containers;
        let name = &self.portals[index].name;
        let shown_by = vec![shown("depends", name), shown("depends", "*")];
        self.portal_change(index, shown_by)
    }

    /// An operator or the network daemon sets a value: a virtual address, or a domain of an app.
    pub fn configure(&mut self) -> Change {
        let vip = self.rng.random_bool(0.5);
        let number = self.rng.random_range(1..=65_000);
        let (target, name) = if vip {
            ("vips", format!("vips/192.168.77.{}", self.rng.random_range(201..=203)))
        } else {
            ("domains", format!("domains/app-{:04}.lain", self.rng.random_range(0..100)))
        };
        let value = if vip {
            json!({"app": "webrouter", "proc": "worker", "ports": [{"src": "80", "proto": "tcp", "dest": number.to_string()}]})
        } else {
            json!({"ips": [format!("10.1.{}.{}", number >> 8, number & 255)], "type": ""})
        };
        // The clock makes each value different.
        let value = format!("{value} {}", self.tick());
        self.config.insert(name.clone(), value.clone());
        Change {
            key: format!("{CONFIG}{name}"),
            value: Some(value),
            shown_by: vec![shown("configwatcher", target), shown("configwatcher", "*")],
        }
    }

    /// An app with one process appears or disappears.
    pub fn come_or_go(&mut self) -> Change {
        self.visiting = !self.visiting;
        let group = &self.visitor;
        let mut shown_by = vec![shown("appswatcher", "*"), shown("containers", "*")];
        for view in ["coreinfowatcher", "procwatcher", "proxywatcher", "webprocs", "backupspec"] {
            shown_by.push(shown(view, "*"));
        }
        for node in self.nodes_of(group) {
            shown_by.push(shown("containers", node));
            shown_by.push(shown("localprocs", node));
        }
        Change { key: group.key(), value: self.visiting.then(|| self.group_value(group)), shown_by }
    }

    fn refresh_group(&mut self, index: usize) -> Change {
        let now = self.now();
        for pod in &mut self.groups[index].pods {
            pod.updated.clone_from(&now);
        }
        self.group_change(index, Vec::new())
    }

    fn replace_instance_of(&mut self, index: usize) -> Change {
        let containers = self.containers(self.groups[index].containers());
        let now = self.now();
        let pods = self.groups[index].pods.len();
        if pods == 0 {
            return self.group_change(index, Vec::new());
        }
        let chosen = self.rng.random_range(0..pods);
        let pod = &mut self.groups[index].pods[chosen];
        pod.containers = containers;
        pod.updated = now;
        let node = &self.nodes[pod.node].name;
        let group = &self.groups[index];
        let mut shown_by = vec![shown("backupspec", "*"), shown("containers", "*"), shown("containers", node)];
        let mut views = vec!["coreinfowatcher", "procwatcher", "proxywatcher"];
        if group.web {
            views.push("webprocs");
        }
        if !group.ports.is_empty() {
            views.push("streamprocs");
        }
        for view in views {
            shown_by.push(shown(view, &group.app));
            shown_by.push(shown(view, "*"));
        }
        self.group_change(index, shown_by)
    }

    fn group_change(&self, index: usize, shown_by: Vec<String>) -> Change {
        let group = &self.groups[index];
        Change { key: group.key(), value: Some(self.group_value(group)), shown_by }
    }

    fn portal_change(&self, index: usize, shown_by: Vec<String>) -> Change {
        let portal = &self.portals[index];
        Change { key: portal.key(), value: Some(self.portal_value(portal)), shown_by }
    }

    fn any_group(&mut self) -> (usize, &Group) {
        let index = self.rng.random_range(0..self.groups.len());
        (index, &self.groups[index])
    }

    fn any_group_of_first(&mut self, apps: usize) -> usize {
        self.rng.random_range(0..(apps * self.procs).clamp(1, self.groups.len()))
    }

    fn any_portal(&mut self) -> Option<usize> {
        (!self.portals.is_empty()).then(|| self.rng.random_range(0..self.portals.len()))
    }

    /// The nodes of a group, each once.
    fn nodes_of<'a>(&'a self, group: &Group) -> impl Iterator<Item = &'a str> {
        let mut nodes: Vec<_> = group.pods.iter().map(|pod| pod.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes.into_iter().map(|node| self.nodes[node].name.as_str())
    }
}

impl Node {
    fn key(&self) -> String {
        format!("{NODES}{}:{}:22", self.name, self.ip)
    }
}

impl Group {
    fn key(&self) -> String {
        format!("{POD_GROUPS}{}/{}", self.app, self.name)
    }

    fn containers(&self) -> usize {
        1 + usize::from(self.sidecar)
    }
}

impl Portal {
    fn key(&self) -> String {
        format!("{PORTALS}{}", self.name)
    }
}

/// The annotation of a process that serves these ports.
fn streaming(ports: &[u16]) -> String {
    let ports: Vec<_> =
        ports.iter().map(|port| format!(r#"{{"srcport": {port}, "dstport": 7000, "proto": "tcp"}}"#)).collect();
    format!(r#"{{"mountpoint": [], "https_only": true, "ports": [{}]}}"#, ports.join(", "))
}
