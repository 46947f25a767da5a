//! Creates a cluster (its apps, their processes on its nodes, their portals, its configuration), and the new parts when
//! it changes.
//!
//! The changes themselves are in the parent module, the only caller.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::json;

use super::{super::values::NEVER, Cluster, Container, Group, Node, Place, Pod, Portal, Size, streaming};

const WORDS: &[&str] = &[
    "amber", "billing", "cargo", "delta", "ember", "fleet", "gossip", "harbor", "index", "jade", "kernel", "ledger",
    "metric", "nimbus", "orbit", "parcel", "quota", "relay", "search", "ticket", "umbra", "vector", "wallet", "zephyr",
];

impl Cluster {
    /// A cluster of this size. The same seed gives the same cluster.
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

    /// The `proc`th process of an app, without instances.
    pub(super) fn group(&mut self, app: &str, proc: usize, port: &mut u16) -> Group {
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

    /// Gives a group its instances on successive nodes.
    pub(super) fn place(&mut self, group: &mut Group, instances: usize) {
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
    pub(super) fn depend(&mut self, service: usize, client: usize) {
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

    pub(super) fn containers(&mut self, count: usize) -> Vec<Container> {
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

    pub(super) fn address(&mut self) -> String {
        self.addresses += 1;
        let number = self.addresses + 1;
        format!("172.{}.{}.{}", 20 + (number >> 16) % 12, (number >> 8) & 255, number & 255)
    }

    pub(super) fn hex(&mut self, digits: usize) -> String {
        let mut text = String::with_capacity(digits + 16);
        while text.len() < digits {
            text.push_str(&format!("{:016x}", self.rng.random::<u64>()));
        }
        text.truncate(digits);
        text
    }

    pub(super) fn release(&mut self) -> String {
        format!("{}-{}", 1_528_400_000 + self.tick(), self.hex(40))
    }

    pub(super) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        *choices.choose(&mut self.rng).expect("there are choices")
    }

    pub(super) fn tick(&mut self) -> u64 {
        self.clock += self.rng.random_range(1..=7);
        self.clock
    }

    /// The time, which advances with every call.
    pub(super) fn now(&mut self) -> String {
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
}

impl Node {
    fn numbered(index: usize) -> Self {
        let number = index + 20;
        Self { name: format!("node{}", index + 1), ip: format!("192.168.{}.{}", 77 + number / 253, number % 253 + 1) }
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

    pub(super) fn set_env(&mut self) {
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

/// The content of `/lain/config/`.
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
