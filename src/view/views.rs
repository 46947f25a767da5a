//! The views, one file each. A new one is a file and a line in the list of the directory whose keys it shows.

mod configwatcher;
mod containers;
mod depends;
mod localspecquery;
mod nodes;

use super::{
    document::{ConfigValue, Node, PodGroup, Portal},
    projection::{Projection, Spec},
};

type Views<D> = Vec<Box<dyn Projection<D>>>;

/// Views of `/lain/config/`.
pub(super) fn of_config() -> Views<ConfigValue> {
    vec![Box::new(configwatcher::Configwatcher)]
}

/// Views of `/lain/deployd/pod_groups/`.
pub(super) fn of_pod_groups() -> Views<PodGroup> {
    vec![Box::new(containers::Containers), Box::new(localspecquery::Localspecquery)]
}

/// Views of `/lain/deployd/depends/pods/`.
pub(super) fn of_portals() -> Views<Portal> {
    vec![Box::new(depends::Depends)]
}

/// Views of `/lain/nodes/nodes/`.
pub(super) fn of_nodes() -> Views<Node> {
    vec![Box::new(nodes::Nodes)]
}

/// All of them, as requests name them.
pub(super) fn specs() -> Vec<&'static Spec> {
    fn of<D: 'static>(views: &Views<D>) -> impl Iterator<Item = &'static Spec> {
        views.iter().map(|view| view.spec())
    }
    of(&of_config()).chain(of(&of_pod_groups())).chain(of(&of_portals())).chain(of(&of_nodes())).collect()
}
