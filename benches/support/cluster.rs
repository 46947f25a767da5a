//! [`Cluster`]: a LAIN cluster of any size as its keys and values, and the changes that its orchestrator would make to it.
//!
//! Not here: how a value is written; see `values`. Called by the scenarios and by the micro-benchmarks. Always holds: the same
//! seed and the same calls give the same cluster and the same changes; a [`Change`] names each view and target that shows it,
//! and no other, so whoever watches knows how many messages there should be.

use std::{borrow::Cow, collections::BTreeMap};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::json;

use super::values::{self, Inspection, NEVER, PrevState};

/// Where pod groups are.
pub const POD_GROUPS: &str = "/lain/deployd/pod_groups/";
/// Where portals are.
pub const PORTALS: &str = "/lain/deployd/depends/pods/";
/// Where nodes are.
pub const NODES: &str = "/lain/nodes/nodes/";
/// Where the configuration is.
pub const CONFIG: &str = "/lain/config/";

const WORDS: &[&str] = &[
    "amber", "billing", "cargo", "delta", "ember", "fleet", "gossip", "harbor", "index", "jade", "kernel", "ledger",
    "metric", "nimbus", "orbit", "parcel", "quota", "relay", "search", "ticket", "umbra", "vector", "wallet", "zephyr",
];

/// How large a cluster is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Apps.
    pub apps: usize,
    /// Nodes that run them.
    pub nodes: usize,
    /// Process types, so pod groups, of an app.
    pub procs: usize,
    /// Instances of each.
    pub instances: usize,
}

/// One write to etcd.
#[derive(Debug)]
pub struct Change {
    /// The key.
    pub key: String,
    /// The value, or `None` where the key goes.
    pub value: Option<String>,
    /// The views that show it, as [`shown`] names them; empty where no view does.
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
    /// Seconds since the cluster was made; moves with whatever asks for the time.
    clock: u64,
    addresses: u32,
    nodes: Vec<Node>,
    groups: Vec<Group>,
    portals: Vec<Portal>,
    config: BTreeMap<String, String>,
    /// An app that comes and goes.
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

/// A service's portal: an instance for each client app and node.
#[derive(Debug)]
struct Portal {
    name: String,
    group: Group,
    /// By name of node, then of client.
    places: BTreeMap<String, BTreeMap<String, Place>>,
}

#[derive(Debug)]
struct Place {
    verified: String,
    pod: Pod,
}

impl Cluster {
    /// A cluster of this size. The same seed gives the same one.
    pub fn new(size: Size, seed: u64) -> Self {
        let mut cluster = Self {
            rng: StdRng::seed_from_u64(seed),
            procs: size.procs,
            clock: 0,
            addresses: 0,
            nodes: (0..size.nodes.max(1)).map(Node::numbered).collect(),
            groups: Vec::with_capacity(size.apps * size.procs),
            portals: Vec::new(),
            config: configuration(size),
            visitor: Group::unplaced("visitor", "web", "web"),
            visiting: false,
        };
        let mut services = Vec::new();
        let mut clients = Vec::new();
        let mut port = 9_500;
        for number in 0..size.apps {
            let app = format!("{}-{number:04}", cluster.pick(WORDS));
            let release = cluster.release();
            let version = cluster.rng.random_range(0..=30);
            for proc in 0..size.procs {
                let mut group = cluster.group(&app, proc, &mut port);
                if group.short.starts_with("svc") {
                    services.push(cluster.groups.len());
                }
                group.release.clone_from(&release);
                group.version = version;
                cluster.place(&mut group, size.instances);
                if cluster.rng.random_bool(0.3) {
                    clients.push(cluster.groups.len());
                }
                cluster.groups.push(group);
            }
        }
        for client in clients {
            let wanted = cluster.rng.random_range(1..=2).min(services.len());
            let chosen: Vec<_> = services.choose_multiple(&mut cluster.rng, wanted).copied().collect();
            for service in chosen {
                cluster.depend(service, client);
            }
        }
        let mut visitor = cluster.visitor.clone();
        visitor.release = cluster.release();
        cluster.place(&mut visitor, size.instances);
        cluster.visitor = visitor;
        cluster
    }

    /// All keys and values, as they are now.
    pub fn entries(&self) -> impl Iterator<Item = (String, String)> + '_ {
        let config = self.config.iter().map(|(name, value)| (format!("{CONFIG}{name}"), value.clone()));
        let groups = self.groups.iter().map(|group| (group.key(), self.group_value(group)));
        let portals = self.portals.iter().map(|portal| (portal.key(), self.portal_value(portal)));
        let nodes = self.nodes.iter().enumerate().map(|(index, node)| (node.key(), node.value(index)));
        config.chain(nodes).chain(groups).chain(portals)
    }

    /// The apps, in the order in which they were made.
    pub fn apps(&self) -> Vec<&str> {
        let mut apps: Vec<_> = self.groups.iter().map(|group| group.app.as_str()).collect();
        apps.dedup();
        apps
    }

    /// The names of the nodes.
    pub fn node_names(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|node| node.name.as_str())
    }

    /// The routine refresh of a pod group, which moves times that no view shows.
    pub fn refresh(&mut self) -> Change {
        let (index, _) = self.any_group();
        self.refresh_group(index)
    }

    /// The same for a group of one of the first `apps` apps.
    pub fn refresh_of_first(&mut self, apps: usize) -> Change {
        let index = self.any_group_of_first(apps);
        self.refresh_group(index)
    }

    /// A portal is verified again: times that no view shows. A refresh where there are no portals.
    pub fn verify_portal(&mut self) -> Change {
        let Some(index) = self.any_portal() else { return self.refresh() };
        let now = self.now();
        for place in self.portals[index].places.values_mut().flat_map(BTreeMap::values_mut) {
            place.verified.clone_from(&now);
        }
        self.portal_change(index, Vec::new())
    }

    /// An instance is replaced on the node where it was: other containers, other addresses.
    pub fn replace_instance(&mut self) -> Change {
        let (index, _) = self.any_group();
        self.replace_instance_of(index)
    }

    /// The same for a group of one of the first `apps` apps.
    pub fn replace_instance_of_first(&mut self, apps: usize) -> Change {
        let index = self.any_group_of_first(apps);
        self.replace_instance_of(index)
    }

    /// A new release is wanted: the first of the writes of an upgrade, with the new specification and the old instances.
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

    /// A stream process opens another port. A new release where no group has ports.
    pub fn move_port(&mut self) -> Change {
        let streams: Vec<_> = (0..self.groups.len()).filter(|index| !self.groups[*index].ports.is_empty()).collect();
        let Some(&index) = streams.choose(&mut self.rng) else { return self.release_app() };
        let group = &mut self.groups[index];
        // As many again as there are, and no two groups ever the same.
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

    /// A portal's instance is replaced. A replaced instance of an app where there are no portals.
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
        // The clock makes it another value each time.
        let value = format!("{value} {}", self.tick());
        self.config.insert(name.clone(), value.clone());
        Change {
            key: format!("{CONFIG}{name}"),
            value: Some(value),
            shown_by: vec![shown("configwatcher", target), shown("configwatcher", "*")],
        }
    }

    /// An app of one process appears, or goes again.
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

    /// The nodes that run a group, each once.
    fn nodes_of<'a>(&'a self, group: &Group) -> impl Iterator<Item = &'a str> {
        let mut nodes: Vec<_> = group.pods.iter().map(|pod| pod.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes.into_iter().map(|node| self.nodes[node].name.as_str())
    }

    /// The `proc`th process of an app, without instances.
    fn group(&mut self, app: &str, proc: usize, port: &mut u16) -> Group {
        let expose = 8_000_u16.saturating_add(u16::try_from(proc).unwrap_or(u16::MAX));
        let kind = if proc == 0 { "web" } else { self.pick(&["worker", "worker", "service", "stream", "web"]) };
        let mut group = match kind {
            "web" => {
                let short = if proc == 0 { "web".to_owned() } else { format!("web{proc}") };
                let mut group = Group::unplaced(app, "web", &short);
                group.command = &["./serve", "--bind", ":8000"];
                group.expose = expose;
                group.annotation = format!(
                    r#"{{"mountpoint": ["{app}-{proc}.lain.local"], "https_only": false, "logs": ["access.log"], "healthcheck": "/health?full=1&json=1"}}"#
                );
                group
            }
            "stream" if *port < 19_500 => {
                let mut group = Group::unplaced(app, "worker", &format!("stream{proc}"));
                group.command = &["./stream"];
                group.expose = 7_000;
                group.ports = vec![*port];
                group.annotation = streaming(&group.ports);
                *port += 1;
                group
            }
            "service" => {
                let mut group = Group::unplaced(app, "worker", &format!("svc{proc}"));
                group.command = &["./service"];
                group.expose = 6_000;
                group.volumes = &["/var/lib/data", "/lain/logs"];
                group
            }
            _ => {
                let mut group = Group::unplaced(app, "worker", &format!("job{proc}"));
                group.command = &["./worker", "--名前", "<all>"];
                group
            }
        };
        group.memory = self.pick(&[64, 128, 256, 512]) << 20;
        group.sidecar = self.rng.random_bool(0.05);
        group.options = (0..self.rng.random_range(0..=6)).map(|k| format!("OPTION_{k}={}", self.hex(8))).collect();
        group
    }

    /// Gives a group its instances, on nodes that follow each other.
    fn place(&mut self, group: &mut Group, instances: usize) {
        let first = self.rng.random_range(0..self.nodes.len());
        group.created = self.now();
        group.set_env();
        group.pods = (0..instances)
            .map(|number| Pod {
                node: (first + number) % self.nodes.len(),
                containers: self.containers(group.containers()),
                updated: self.now(),
            })
            .collect();
    }

    /// Makes a group a client of a service, with a portal on each node where it runs.
    fn depend(&mut self, service: usize, client: usize) {
        let service = &self.groups[service];
        let (app, short) = (service.app.clone(), service.short.clone());
        let name = format!("{app}.portal.portal-{short}");
        let index = self.portals.iter().position(|portal| portal.name == name).unwrap_or_else(|| {
            let mut group = Group::unplaced(&app, "portal", &format!("portal-{short}"));
            group.command = &["./proxy", "--service"];
            group.expose = 6_000;
            group.memory = 32 << 20;
            group.annotation = format!(r#"{{"mountpoint": [], "https_only": true, "service_name": "{short}"}}"#);
            group.options = vec![format!("LAIN_SERVICE_NAME={short}")];
            group.release.clone_from(&service.release);
            group.set_env();
            self.portals.push(Portal { name: name.clone(), group, places: BTreeMap::new() });
            self.portals.len() - 1
        });
        if self.groups[client].depends_on.contains(&name) {
            return;
        }
        self.groups[client].depends_on.push(name);
        let client_app = self.groups[client].app.clone();
        let mut nodes: Vec<_> = self.groups[client].pods.iter().map(|pod| pod.node).collect();
        nodes.dedup();
        for node in nodes {
            let pod = Pod { node, containers: self.containers(1), updated: self.now() };
            let place = Place { verified: self.now(), pod };
            let places = self.portals[index].places.entry(self.nodes[node].name.clone()).or_default();
            places.entry(client_app.clone()).or_insert(place);
        }
    }

    fn containers(&mut self, count: usize) -> Vec<Container> {
        (0..count)
            .map(|_| Container {
                id: self.hex(64),
                ip: self.address(),
                image_id: self.hex(64),
                swarm_id: self.hex(64),
                pid: self.rng.random_range(1_000..32_000),
                started: self.now(),
            })
            .collect()
    }

    fn address(&mut self) -> String {
        self.addresses += 1;
        let number = self.addresses + 1;
        format!("172.{}.{}.{}", 20 + (number >> 16) % 12, (number >> 8) & 255, number & 255)
    }

    fn hex(&mut self, digits: usize) -> String {
        let mut text = String::with_capacity(digits + 16);
        while text.len() < digits {
            text.push_str(&format!("{:016x}", self.rng.random::<u64>()));
        }
        text.truncate(digits);
        text
    }

    fn release(&mut self) -> String {
        format!("{}-{}", 1_528_400_000 + self.tick(), self.hex(40))
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        *choices.choose(&mut self.rng).expect("there are choices")
    }

    fn tick(&mut self) -> u64 {
        self.clock += self.rng.random_range(1..=7);
        self.clock
    }

    /// A later time on every call.
    fn now(&mut self) -> String {
        let seconds = self.tick();
        let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
        format!(
            "2018-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}+08:00",
            6 + days / 28 % 6,
            1 + days % 28,
            hours % 24,
            minutes % 60,
            seconds % 60,
            self.rng.random_range(1..1_000_000_000)
        )
    }

    fn group_value(&self, group: &Group) -> String {
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

    fn portal_value(&self, portal: &Portal) -> String {
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
    fn numbered(index: usize) -> Self {
        let number = index + 20;
        Self { name: format!("node{}", index + 1), ip: format!("192.168.{}.{}", 77 + number / 253, number % 253 + 1) }
    }

    fn key(&self) -> String {
        format!("{NODES}{}:{}:22", self.name, self.ip)
    }

    /// The installer writes the first one, with the port as text; the admin's tool the rest, with a number.
    fn value(&self, index: usize) -> String {
        let port = if index == 0 { json!("22") } else { json!(22) };
        json!({"docker_device": "", "ip": self.ip, "name": self.name, "ssh_port": port}).to_string()
    }
}

impl Group {
    fn unplaced(app: &str, kind: &str, short: &str) -> Self {
        Self {
            app: app.to_owned(),
            name: format!("{app}.{kind}.{short}"),
            short: short.to_owned(),
            web: kind == "web",
            ports: Vec::new(),
            release: String::new(),
            version: 0,
            env: Vec::new(),
            options: Vec::new(),
            command: &["./run"],
            volumes: &["/lain/logs"],
            annotation: r#"{"mountpoint": [], "https_only": true}"#.to_owned(),
            memory: 256 << 20,
            expose: 0,
            sidecar: false,
            depends_on: Vec::new(),
            pods: Vec::new(),
            created: NEVER.to_owned(),
        }
    }

    fn key(&self) -> String {
        format!("{POD_GROUPS}{}/{}", self.app, self.name)
    }

    fn containers(&self) -> usize {
        1 + usize::from(self.sidecar)
    }

    fn image(&self, index: usize) -> String {
        let side = if index == 0 { "" } else { "-sidecar" };
        format!("registry.lain.local/{}{side}:release-{}", self.app, self.release)
    }

    fn set_env(&mut self) {
        self.env = vec!["TZ=Asia/Shanghai".to_owned()];
        self.env.extend(self.options.iter().cloned());
        self.env.extend([
            format!("LAIN_APPNAME={}", self.app),
            format!("LAIN_APP_RELEASE_VERSION={}", self.release),
            format!("LAIN_PROCNAME={}", self.short),
            "LAIN_DOMAIN=lain.local".to_owned(),
        ]);
    }
}

impl Portal {
    fn key(&self) -> String {
        format!("{PORTALS}{}", self.name)
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
    // Of a portal only the instances have a version and times.
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

/// The annotation of a process that serves these ports.
fn streaming(ports: &[u16]) -> String {
    let ports: Vec<_> =
        ports.iter().map(|port| format!(r#"{{"srcport": {port}, "dstport": 7000, "proto": "tcp"}}"#)).collect();
    format!(r#"{{"mountpoint": [], "https_only": true, "ports": [{}]}}"#, ports.join(", "))
}

/// What lies under `/lain/config/`.
fn configuration(size: Size) -> BTreeMap<String, String> {
    let fixed = [
        ("domain", "lain.local"),
        ("vip", "192.168.77.201"),
        ("bootstrap_node_ip", "192.168.77.21"),
        ("dns_ip", "192.168.77.202"),
        ("dns_port", "53"),
        ("swarm_manager_ip", "192.168.77.21"),
        ("node_network", "192.168.77.0/24"),
        ("calico_network", "172.20.0.0/16"),
        ("etcd_cluster_token", "6b1f0a7f2d7c4f0d9f1a1c6d2f3b4a59"),
        ("ssl", r#"{"*.lain.local": "web", "*.lain": "web"}"#),
        ("extra_domains", r#"["lain.internal"]"#),
        ("features/graphite", "True"),
        ("features/maintaining", "False"),
        ("auth/console", r#"{"type": "lain-sso", "url": "http://sso.lain.local"}"#),
        ("kafka", r#"["192.168.77.31:9092", "192.168.77.32:9092"]"#),
        ("streamrouter/vippool", r#"["192.168.77.203"]"#),
        ("domains/lainlet.lain", r#"{"ips":[],"type":"node"}"#),
        ("domain_servers/corp.internal", r#"{"servers":["10.0.0.2#53"]}"#),
        ("tinydns_fqdns/lain", r#"[".lain:192.168.77.202:a:300"]"#),
        ("tinydns_fqdns/webrouter.lain", r#"["+webrouter.lain:192.168.77.201:300"]"#),
        ("whitelist_ips/office", r#"["10.1.0.0/16"]"#),
        ("whitelist_in_ports/office", "[22]"),
        ("whitelist_ex_ports/office", "[9002]"),
        ("super_apps/console", "{}"),
        ("super_apps/webrouter", "{}"),
        ("super_apps/tinydns", "{}"),
    ];
    let mut config: BTreeMap<_, _> = fixed.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    for vip in 201..=203 {
        let value =
            json!({"app": "webrouter", "proc": "worker", "ports": [{"src": "80", "proto": "tcp", "dest": "80"}]});
        config.insert(format!("vips/192.168.77.{vip}"), value.to_string());
    }
    for app in 0..size.apps.max(100) {
        config.insert(format!("domains/app-{app:04}.lain"), json!({"ips": ["10.1.0.1"], "type": ""}).to_string());
    }
    config
}
