//! The views, one file each. A new view is a file and a line in the list of its directory.

mod appswatcher;
mod backupspec;
mod configwatcher;
mod containers;
mod coreinfowatcher;
mod depends;
mod localprocs;
mod localspecquery;
mod nodes;
mod ports;
mod procwatcher;
mod proxywatcher;
mod streamprocs;
#[cfg(test)]
mod tests;
mod webprocs;

use serde::Serialize;

use super::{
    document::{ConfigValue, Node, PodGroup, Portal},
    projection::{Pods, Projection, Spec},
};

type Views<D> = Vec<Box<dyn Projection<D>>>;

/// Views of `/lain/config/`.
pub(super) fn of_config() -> Views<ConfigValue> {
    vec![Box::new(configwatcher::Configwatcher)]
}

/// Views of `/lain/deployd/pod_groups/`.
pub(super) fn of_pod_groups() -> Views<PodGroup> {
    vec![
        Box::new(appswatcher::Appswatcher),
        Box::new(backupspec::Backupspec),
        Box::new(containers::Containers),
        Box::new(coreinfowatcher::Coreinfowatcher),
        Box::new(localprocs::Localprocs),
        Box::new(localspecquery::Localspecquery),
        Box::new(ports::Ports),
        Box::new(procwatcher::Procwatcher),
        Box::new(proxywatcher::Proxywatcher),
        Box::new(streamprocs::Streamprocs),
        Box::new(webprocs::Webprocs),
    ]
}

/// Views of `/lain/deployd/depends/pods/`.
pub(super) fn of_portals() -> Views<Portal> {
    vec![Box::new(depends::Depends)]
}

/// Views of `/lain/nodes/nodes/`.
pub(super) fn of_nodes() -> Views<Node> {
    vec![Box::new(nodes::Nodes)]
}

/// All views with the names that requests use.
pub(super) fn specs() -> Vec<&'static Spec> {
    fn of<D: 'static>(views: &Views<D>) -> impl Iterator<Item = &'static Spec> {
        views.iter().map(|view| view.spec())
    }
    of(&of_config()).chain(of(&of_pod_groups())).chain(of(&of_portals())).chain(of(&of_nodes())).collect()
}

/// Shared by several views that show processes.
#[derive(Serialize)]
struct PodInfos<T> {
    #[serde(rename = "PodInfos")]
    pod_infos: Vec<T>,
}

/// The pods behind a process, for views that are not shown if too many are lost.
fn pods(group: &PodGroup) -> Pods {
    Pods { all: group.pods.len() as u64, alive: group.alive() as u64 }
}
