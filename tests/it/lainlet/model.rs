//! [`Model`]: the simplest implementation of the views' description: everything is computed again for each question.
//!
//! `random` uses it to decide what the relay must answer. It leaves out damaged values (except that the old one is
//! kept), numbers that Go formats differently, and cases that the description leaves open (one address with two apps).
//! It shares no code with the relay.

mod json;
mod views;

use std::collections::BTreeMap;

use serde_json::Value;

use self::json::{list, members, text};

const SUPER: &str = "authorize failed, super required";
const NO_PERMISSION: &str = "authorize failed, no permission";
const CANNOT_CONFIRM: &str = "authorize failed, can not confirm the app by request ip";
const SECRETS: [&str; 18] = [
    "*",
    "swarm_manager_ip",
    "super_apps",
    "dnsmasq_servers",
    "calico_default_rule",
    "calico_network",
    "dnsmasq_addresses",
    "ssl",
    "vips",
    "tinydns_fqdns",
    "bootstrap_node_ip",
    "dns_port",
    "vip",
    "etcd_cluster_token",
    "system_volumes",
    "rsyncd_secrets",
    "dns_ip",
    "node_network",
];

/// The paths of the views.
pub(super) const PATHS: [&str; 14] = [
    "/v2/configwatcher",
    "/v2/procwatcher",
    "/v2/coreinfowatcher",
    "/v2/proxywatcher",
    "/v2/webrouter/webprocs",
    "/v2/streamrouter/streamprocs",
    "/v2/streamrouter/ports",
    "/v2/rebellion/localprocs",
    "/v2/backupspec",
    "/v2/appswatcher",
    "/v2/containers",
    "/v2/localspecquery",
    "/v2/depends",
    "/v2/nodes",
];

/// The names of their parameters.
pub(super) const NAMES: [&str; 6] = ["target", "appname", "nodename", "nodeip", "name", "ip"];

/// A directory's values by cache key.
type Documents = BTreeMap<String, Value>;
/// Status and text.
pub(super) type Refused = (u16, &'static str);
/// Status and body.
pub(super) type Told = (u16, String);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Model {
    config: BTreeMap<String, String>,
    groups: Documents,
    portals: Documents,
    nodes: Documents,
    /// The relay's `--node-name` and `--node-ip`.
    node_name: String,
    node_ip: String,
}

/// A request to the relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) peer: String,
    pub(super) path: &'static str,
    pub(super) parameter: Option<(&'static str, String)>,
}

/// The part of a view that a caller may see. A stream keeps it.
#[derive(Clone, Debug)]
pub(super) struct Granted {
    path: &'static str,
    key: String,
    node: String,
    is_super: bool,
}

impl Question {
    pub(super) fn uri(&self) -> String {
        match &self.parameter {
            Some((name, value)) => format!("{}?{name}={value}", self.path),
            None => self.path.to_owned(),
        }
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.parameter.as_ref().filter(|(given, value)| *given == name && !value.is_empty()).map(|(_, value)| &**value)
    }
}

impl Model {
    /// An empty cluster in front of a relay with this `--node-name` and `--node-ip`.
    pub(super) fn of_relay(node_name: &str, node_ip: &str) -> Self {
        Self { node_name: node_name.to_owned(), node_ip: node_ip.to_owned(), ..Self::default() }
    }

    /// A put, or a delete if there is no value.
    pub(super) fn apply(&mut self, key: &str, value: Option<&str>) {
        if let Some(key) = key.strip_prefix("/lain/config/").filter(|key| !key.is_empty()) {
            match value {
                Some(value) => drop(self.config.insert(key.to_owned(), value.to_owned())),
                None => drop(self.config.remove(key)),
            }
        }
        let directories = [
            ("/lain/deployd/pod_groups/", &mut self.groups),
            ("/lain/deployd/depends/pods/", &mut self.portals),
            ("/lain/nodes/nodes/", &mut self.nodes),
        ];
        for (directory, documents) in directories {
            let Some(key) = key.strip_prefix(directory).filter(|key| !key.is_empty()) else { continue };
            match value.map(serde_json::from_str::<Value>) {
                Some(Ok(value)) if value.is_object() => drop(documents.insert(key.to_owned(), value)),
                Some(_) => {}
                None => drop(documents.remove(key)),
            }
        }
    }

    /// The addresses of all pods and portals.
    pub(super) fn addresses(&self) -> Vec<String> {
        self.pods().into_keys().chain(self.portals_by_address().into_keys()).collect()
    }

    /// What the relay must answer.
    pub(super) fn answer(&self, question: &Question) -> Told {
        match self.grant(question) {
            Ok(granted) => self.show(&granted),
            Err((status, text)) => (status, text.to_owned()),
        }
    }

    /// The part of a view that the caller may see.
    pub(super) fn grant(&self, question: &Question) -> Result<Granted, Refused> {
        let Question { peer, path, .. } = question;
        let is_super = self.is_super(peer);
        let or = |name, absent: &str| question.value(name).unwrap_or(absent).to_owned();
        let own_node = self.node_addresses().get(&**peer).copied();
        let key = match *path {
            "/v2/configwatcher" if is_secret(&or("target", "*")) && !is_super => Err((400, SUPER)),
            "/v2/configwatcher" => Ok(or("target", "*")),
            "/v2/procwatcher" => match question.value("appname") {
                None => Err((400, "appname required")),
                Some(app) if self.passes(peer, app) => Ok(app_key(app)),
                Some(_) => Err((400, NO_PERMISSION)),
            },
            "/v2/coreinfowatcher"
            | "/v2/proxywatcher"
            | "/v2/webrouter/webprocs"
            | "/v2/streamrouter/streamprocs"
            | "/v2/streamrouter/ports"
            | "/v2/rebellion/localprocs" => self.of_app(peer, &or("appname", "*")),
            _ if !is_super => Err((400, SUPER)),
            "/v2/backupspec" => Ok(app_key(&or("appname", "*"))),
            "/v2/containers" => Ok(with_end(&or("nodename", "*"), "/")),
            // A node never means all nodes.
            "/v2/localspecquery" if question.value("nodeip") == Some("*") => Ok("*/".to_owned()),
            "/v2/localspecquery" => Ok(with_end(&or("nodeip", own_node.unwrap_or(&self.node_ip)), "/")),
            "/v2/depends" => Ok(or("target", "*")),
            "/v2/nodes" => Ok(with_end(&or("name", "*"), ":")),
            _ => Ok("*".to_owned()),
        }?;
        let node = or("nodename", own_node.unwrap_or(&self.node_name));
        Ok(Granted { path, key, node, is_super })
    }

    /// What a caller with this permission sees.
    pub(super) fn show(&self, granted: &Granted) -> Told {
        let Granted { path, key, .. } = granted;
        let shown = match *path {
            "/v2/configwatcher" => self.configwatcher(granted),
            "/v2/procwatcher" => self.procwatcher(key),
            "/v2/coreinfowatcher" => self.coreinfowatcher(key),
            "/v2/proxywatcher" => self.proxywatcher(key),
            "/v2/webrouter/webprocs" => self.webprocs(key),
            "/v2/streamrouter/streamprocs" => self.streamprocs(key),
            "/v2/streamrouter/ports" => self.ports(key),
            "/v2/rebellion/localprocs" => self.localprocs(granted),
            "/v2/backupspec" => self.backupspec(key),
            "/v2/appswatcher" => Ok(self.appswatcher()),
            "/v2/containers" => self.containers(key),
            "/v2/localspecquery" => self.localspecquery(key),
            "/v2/depends" => self.depends(key),
            "/v2/nodes" => self.nodes(key),
            other => panic!("no such view: {other}"),
        };
        shown.map_or_else(|(status, text)| (status, text.to_owned()), |body| (200, body))
    }

    fn pods(&self) -> BTreeMap<String, String> {
        let mut pods = BTreeMap::new();
        for group in self.groups.values() {
            for container in list(group, "/Pods").iter().flat_map(|pod| list(pod, "/Containers")) {
                pods.insert(text(container, "/ContainerIp").to_owned(), text(group, "/Spec/Namespace").to_owned());
            }
        }
        pods.remove("");
        pods
    }

    fn portals_by_address(&self) -> BTreeMap<String, Vec<String>> {
        let mut portals = BTreeMap::<_, Vec<_>>::new();
        for (key, portal) in &self.portals {
            let parts: Vec<_> = key.split('.').collect();
            let app = if parts.len() <= 3 { parts[0].to_owned() } else { parts[..parts.len() - 2].join(".") };
            for client in members(portal).flat_map(|(_, node)| members(node)) {
                for container in list(client.1, "/Pod/Containers") {
                    portals.entry(text(container, "/ContainerIp").to_owned()).or_default().push(app.clone());
                }
            }
        }
        portals
    }

    /// The names of nodes by address.
    fn node_addresses(&self) -> BTreeMap<&str, &str> {
        let parts = |key: &'_ String| key.split(':').count() == 3;
        let keys = self.nodes.keys().filter(|key| parts(key));
        keys.map(|key| (key.split(':').nth(1).unwrap_or_default(), key.split(':').next().unwrap_or_default())).collect()
    }

    fn is_trusted(&self, peer: &str) -> bool {
        peer == "127.0.0.1" || peer == self.node_ip || self.node_addresses().contains_key(peer)
    }

    fn is_super(&self, peer: &str) -> bool {
        self.is_trusted(peer) || self.pods().get(peer).is_some_and(|app| self.is_super_app(app))
    }

    fn is_super_app(&self, app: &str) -> bool {
        self.config.contains_key(&format!("super_apps/{app}"))
    }

    fn app_name(&self, peer: &str) -> Option<String> {
        self.pods().remove(peer).or_else(|| self.portals_by_address().remove(peer).map(|apps| apps[0].clone()))
    }

    fn passes(&self, peer: &str, app: &str) -> bool {
        self.is_super(peer)
            || self.app_name(peer).is_some_and(|own| {
                own == app
                    || self.is_super_app(&own)
                    || self.portals_by_address().get(peer).is_some_and(|apps| apps.iter().any(|one| one == app))
            })
    }

    fn of_app(&self, peer: &str, app: &str) -> Result<String, Refused> {
        if self.passes(peer, app) {
            Ok(app_key(app))
        } else if app == "*" {
            self.app_name(peer).map(|own| app_key(&own)).ok_or((400, CANNOT_CONFIRM))
        } else {
            Err((400, NO_PERMISSION))
        }
    }
}

fn is_secret(key: &str) -> bool {
    SECRETS.iter().any(|secret| key.starts_with(secret))
}

/// Section 2 of the description.
fn matching<'a, V>(entries: &'a BTreeMap<String, V>, key: &str) -> Result<Vec<(&'a str, &'a V)>, Refused> {
    let all = || entries.iter().map(|(key, value)| (key.as_str(), value));
    match (key, entries.get_key_value(key)) {
        ("", _) => Err((500, "empty key")),
        ("*", _) => Ok(all().collect()),
        (_, Some((key, value))) => Ok(vec![(key, value)]),
        _ => Ok(all().filter(|(candidate, _)| candidate.starts_with(key)).collect()),
    }
}

fn app_key(app: &str) -> String {
    with_end(app, "/")
}

fn with_end(key: &str, end: &str) -> String {
    if key == "*" || key.ends_with(end) { key.to_owned() } else { format!("{key}{end}") }
}

#[cfg(test)]
mod tests {
    use super::super::data;
    use super::*;

    /// The model itself is checked against the original.
    #[test]
    fn the_model_answers_as_the_original_did() {
        let mut asked = 0;
        for state in ["small", "final"] {
            let mut model = Model::of_relay("node1", "192.168.77.21");
            data::small().iter().for_each(|entry| model.apply(&entry.key, Some(&entry.value)));
            for change in data::changes().iter().filter(|_| state == "final") {
                match change {
                    data::Change::Put { key, value } => model.apply(key, Some(value)),
                    data::Change::Delete { key } => model.apply(key, None),
                }
            }
            for expected in data::expected().iter().filter(|expected| expected.state == state) {
                let (path, query) = expected.uri.split_once('?').unwrap_or((&expected.uri, ""));
                let path = PATHS.iter().find(|known| **known == path.trim_end_matches('/'));
                let Some(path) = path else { continue };
                let parameter = query.split_once('=').map(|(name, value)| {
                    let name = NAMES.iter().find(|known| **known == name).expect("a known parameter");
                    (*name, value.to_owned())
                });
                let question = Question { peer: expected.peer.clone(), path, parameter };
                asked += 1;
                assert_eq!(model.answer(&question), (expected.status, expected.body.clone()), "{state}: {question:?}");
            }
        }
        assert!(asked > 110, "only {asked} answers");
    }
}
