//! [`Rules`]: who may see which views. [`ByAddress`] has Lainlet's rules: a caller is identified by its address. A name
//! in its certificate can replace a trusted address.
//!
//! Not here: the handling of a refusal, and etcd's own users (`front::access`). `lainlet` checks the rules when a
//! request or a stream begins. Rules based on tokens can implement the same trait. Always holds: the tables reflect the
//! current documents; an address that is in no document any more has no rights left.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use ipnet::IpNet;
use parking_lot::RwLock;

use super::document::{PodGroup, Portal};

/// The caller of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Viewer {
    /// The address of the connection's other end. An IPv4 address in IPv6 form counts as IPv4.
    pub addr: IpAddr,
    /// Whether its verified certificate contains a name that may see everything; see [`Trust::certificates`].
    pub is_named: bool,
}

impl Viewer {
    /// The caller at an address.
    #[must_use]
    pub fn at(addr: IpAddr) -> Self {
        Self { addr: addr.to_canonical(), is_named: false }
    }
}

/// Who may see what. Each answer may change with the next request.
pub(super) trait Rules: Send + Sync + 'static {
    /// Whether the caller is trusted without looking into any table.
    fn is_trusted(&self, caller: Viewer) -> bool;

    /// Whether the caller may see everything.
    fn is_super(&self, caller: Viewer) -> bool;

    /// Whether the caller may see the data of `app`; `*` stands for the data of all apps.
    fn passes(&self, caller: Viewer, app: &str) -> bool;

    /// The app that the caller belongs to.
    fn own_app(&self, caller: Viewer) -> Option<String>;

    /// The app that an address belongs to.
    fn app_at(&self, addr: IpAddr) -> Option<String>;

    /// The name of the node at the caller's address.
    fn node_of(&self, caller: Viewer) -> Option<String>;

    /// The name of the node with this name or address.
    fn node_named(&self, name: &str) -> Option<String>;
}

/// Callers that are trusted independently of the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// Everyone.
    pub everyone: bool,
    /// The relay's own address.
    pub own: Option<IpAddr>,
    /// Networks.
    pub nets: Vec<IpNet>,
    /// Names in clients' certificates.
    pub certificates: Vec<String>,
    /// The addresses below `/lain/nodes/nodes/`: each node was trusted by its own Lainlet.
    pub nodes: bool,
}

impl Trust {
    /// Whether an address belongs to this machine or to a network of the operator.
    #[must_use]
    pub fn names(&self, addr: IpAddr) -> bool {
        let addr = addr.to_canonical();
        let is_loopback = addr == Ipv4Addr::LOCALHOST || addr == Ipv6Addr::LOCALHOST;
        is_loopback || self.own == Some(addr) || self.nets.iter().any(|net| net.contains(&addr))
    }
}

/// Lainlet's rules; see the module.
#[derive(Debug, Default)]
pub(super) struct ByAddress {
    trust: Trust,
    tables: RwLock<Tables>,
}

/// For each address, the sorted keys that contain it, with a value each.
type Table = HashMap<IpAddr, BTreeMap<Bytes, String>>;

#[derive(Debug, Default)]
struct Tables {
    /// The app of each container's address.
    pods: Table,
    /// The app whose service the portal at each address provides.
    portals: Table,
    /// Apps that may see everything.
    super_apps: HashSet<Bytes>,
    /// The name of the node at each address.
    nodes: Table,
}

impl ByAddress {
    pub(super) fn new(trust: Trust) -> Self {
        Self { trust, tables: RwLock::default() }
    }

    pub(super) fn pod_group_changed(&self, key: &Bytes, old: Option<&PodGroup>, new: Option<&PodGroup>) {
        let mut tables = self.tables.write();
        for (group, is_new) in [(old, false), (new, true)] {
            let Some(group) = group else { continue };
            let addrs = group
                .pods
                .iter()
                .flat_map(|pod| pod.containers.iter())
                .filter_map(|container| parse(&container.container_ip));
            note(&mut tables.pods, addrs, key, is_new.then_some(&*group.spec.namespace));
        }
    }

    pub(super) fn portal_changed(&self, key: &Bytes, old: Option<&Portal>, new: Option<&Portal>) {
        let mut tables = self.tables.write();
        let app = service_app(&String::from_utf8_lossy(key)).to_owned();
        for (portal, is_new) in [(old, false), (new, true)] {
            let Some(portal) = portal else { continue };
            let addrs = portal.containers().filter_map(|container| parse(&container.container_ip));
            note(&mut tables.portals, addrs, key, is_new.then_some(&*app));
        }
    }

    pub(super) fn config_changed(&self, key: &Bytes, is_there: bool) {
        let Some(app) = key.strip_prefix(b"super_apps/") else { return };
        let app = key.slice_ref(app);
        let mut tables = self.tables.write();
        if is_there {
            tables.super_apps.insert(app);
        } else {
            tables.super_apps.remove(&app);
        }
    }

    pub(super) fn node_changed(&self, key: &Bytes, is_there: bool) {
        let text = String::from_utf8_lossy(key);
        let Some((name, addr)) = node_parts(&text) else { return };
        note(&mut self.tables.write().nodes, parse(addr).into_iter(), key, is_there.then_some(name));
    }
}

impl Rules for ByAddress {
    fn is_trusted(&self, caller: Viewer) -> bool {
        self.trust.everyone || caller.is_named || self.trust.names(caller.addr)
    }

    fn is_super(&self, caller: Viewer) -> bool {
        if self.is_trusted(caller) {
            return true;
        }
        let tables = self.tables.read();
        (self.trust.nodes && tables.nodes.contains_key(&caller.addr))
            || first(&tables.pods, caller.addr).is_some_and(|app| tables.super_apps.contains(app.as_bytes()))
    }

    fn passes(&self, caller: Viewer, app: &str) -> bool {
        if self.is_super(caller) {
            return true;
        }
        let tables = self.tables.read();
        let own = first(&tables.pods, caller.addr).or_else(|| first(&tables.portals, caller.addr));
        // An app's portal has the app's rights to the data of apps, and no others.
        own.is_some_and(|own| own == app || tables.super_apps.contains(own.as_bytes()))
            || tables.portals.get(&caller.addr).is_some_and(|services| services.values().any(|service| service == app))
    }

    fn own_app(&self, caller: Viewer) -> Option<String> {
        self.app_at(caller.addr)
    }

    fn app_at(&self, addr: IpAddr) -> Option<String> {
        let tables = self.tables.read();
        first(&tables.pods, addr).or_else(|| first(&tables.portals, addr)).map(str::to_owned)
    }

    fn node_of(&self, caller: Viewer) -> Option<String> {
        first(&self.tables.read().nodes, caller.addr).map(str::to_owned)
    }

    fn node_named(&self, name: &str) -> Option<String> {
        let tables = self.tables.read();
        match parse(name) {
            Some(addr) => first(&tables.nodes, addr).map(str::to_owned),
            None => tables.nodes.values().flat_map(BTreeMap::values).find(|node| *node == name).cloned(),
        }
    }
}

/// Adds or removes a key's entries for some addresses.
fn note(table: &mut Table, addrs: impl Iterator<Item = IpAddr>, key: &Bytes, says: Option<&str>) {
    for addr in addrs {
        match says {
            Some(says) => drop(table.entry(addr).or_default().insert(key.clone(), says.to_owned())),
            None => {
                if let Some(keys) = table.get_mut(&addr) {
                    keys.remove(key);
                    if keys.is_empty() {
                        table.remove(&addr);
                    }
                }
            }
        }
    }
}

fn first(table: &Table, addr: IpAddr) -> Option<&str> {
    table.get(&addr)?.values().next().map(String::as_str)
}

fn parse(addr: &str) -> Option<IpAddr> {
    addr.parse().ok().map(|addr: IpAddr| addr.to_canonical())
}

/// The app whose service a portal provides: `<app>.portal.portal-<service>` without the last two parts.
fn service_app(portal: &str) -> &str {
    let cut = |text: &str| text.rfind('.');
    let short = || portal.split('.').next().unwrap_or(portal);
    if portal.split('.').count() <= 3 {
        return short();
    }
    cut(portal).and_then(|at| cut(&portal[..at])).map_or_else(short, |at| &portal[..at])
}

/// The name and address in a node's key, `<name>:<address>:<port>`.
fn node_parts(key: &str) -> Option<(&str, &str)> {
    let (name, rest) = key.split_once(':')?;
    let (addr, _port) = rest.rsplit_once(':')?;
    Some((name, addr.trim_start_matches('[').trim_end_matches(']')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portals_app_is_what_stands_before_its_last_two_parts() {
        assert_eq!(service_app("mysql-service.portal.portal-m"), "mysql-service");
        assert_eq!(service_app("resource.redis.hello.portal.portal-redis"), "resource.redis.hello");
        assert_eq!(service_app("alone"), "alone");
        assert_eq!(service_app("two.parts"), "two");
    }

    #[test]
    fn a_nodes_key_has_its_name_and_address() {
        assert_eq!(node_parts("node1:192.168.77.21:22"), Some(("node1", "192.168.77.21")));
        assert_eq!(node_parts("node1:fd00::1:22"), Some(("node1", "fd00::1")));
        assert_eq!(node_parts("node1:192.168.77.21"), None);
        assert_eq!(node_parts("node1"), None);
    }

    #[test]
    fn an_address_keeps_its_rights_while_any_key_names_it() {
        let mut table = Table::new();
        let addr: IpAddr = [10, 0, 0, 1].into();
        note(&mut table, [addr].into_iter(), &Bytes::from("a"), Some("one"));
        note(&mut table, [addr].into_iter(), &Bytes::from("b"), Some("two"));
        assert_eq!(first(&table, addr), Some("one"));
        note(&mut table, [addr].into_iter(), &Bytes::from("a"), None);
        assert_eq!(first(&table, addr), Some("two"));
        note(&mut table, [addr].into_iter(), &Bytes::from("b"), None);
        assert_eq!(first(&table, addr), None);
        assert!(table.is_empty());
    }
}
