//! `/v2/procwatcher`: the instances of an app's processes, `[{"proc":[…]}]`, in the order of their keys.

use serde::Serialize;

use crate::{
    pb::lainlet as pb,
    view::{
        document::{Pod, PodGroup},
        projection::{Absent, Projection, Rows, Rule, Shape, Spec},
    },
};

#[derive(Debug)]
pub(super) struct Procwatcher;

static SPEC: Spec = Spec {
    paths: &["/v2/procwatcher"],
    service: "Podgroup",
    absent: Absent::Refused,
    rule: Rule::App,
    shape: Shape::List,
    ..Spec::OF_APPS
};

#[derive(Serialize)]
struct Proc<'a> {
    proc: Vec<Instance<'a>>,
}

#[derive(Serialize)]
struct Instance<'a> {
    #[serde(rename = "InstanceNo")]
    instance_no: i64,
    #[serde(rename = "IP")]
    ip: &'a str,
    #[serde(rename = "Port")]
    port: i64,
    #[serde(rename = "ProcName")]
    proc_name: &'a str,
}

impl Projection<PodGroup> for Procwatcher {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn rows(&self, key: &[u8], group: &PodGroup, rows: &mut Rows<'_>) {
        let proc = Proc { proc: group.pods.iter().filter_map(Instance::of).collect() };
        let message = pb::PodGroup { pods: proc.proc.iter().map(Instance::message).collect() };
        rows.element(key, &proc, Rows::message_element(&message));
    }
}

impl<'a> Instance<'a> {
    /// Taken from its first container. A pod without one is not shown.
    fn of(pod: &'a Pod) -> Option<Self> {
        let container = pod.containers.first()?;
        Some(Self {
            instance_no: pod.instance_no,
            ip: &container.container_ip,
            port: container.container_port,
            proc_name: container.proc_name(),
        })
    }

    fn message(&self) -> pb::Pod {
        pb::Pod {
            instance_no: self.instance_no as i32,
            ip: self.ip.to_owned(),
            port: self.port as i32,
            proc_name: self.proc_name.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::views::tests::{Showing, decode};

    #[test]
    fn the_first_container_of_each_pod_in_the_order_of_keys() {
        let mut procs = Showing::all(&Procwatcher);
        procs.put(
            "b/b.web.w",
            r#"{"Pods":[{"InstanceNo":2,"Containers":[{"ContainerIp":"172.20.0.2","ContainerPort":80,
                "Runtime":{"Config":{"Env":["LAIN_PROCNAME=w"]}}},{"ContainerIp":"172.20.0.3"}]},
                {"InstanceNo":1,"Containers":[{}]}]}"#,
        );
        procs.put("a/a.web.w", r#"{"Pods":null}"#);
        let instances = r#"{"InstanceNo":2,"IP":"172.20.0.2","Port":80,"ProcName":"w"},{"InstanceNo":1,"IP":"","Port":0,"ProcName":""}"#;
        assert_eq!(procs.json(), format!(r#"[{{"proc":[]}},{{"proc":[{instances}]}}]"#));
        let first = pb::Pod { instance_no: 2, ip: "172.20.0.2".to_owned(), port: 80, proc_name: "w".to_owned() };
        let second = pb::Pod { instance_no: 1, ..pb::Pod::default() };
        let groups = [pb::PodGroup::default(), pb::PodGroup { pods: vec![first, second] }];
        assert_eq!(decode::<pb::PodgroupReply>(&procs).data, groups);
    }

    #[test]
    fn a_pod_without_containers_is_left_out() {
        let mut procs = Showing::all(&Procwatcher);
        procs
            .put("a/a.web.w", r#"{"Pods":[{"Containers":null},{"InstanceNo":2,"Containers":[{}]},{"Containers":[]}]}"#);
        assert_eq!(procs.json(), r#"[{"proc":[{"InstanceNo":2,"IP":"","Port":0,"ProcName":""}]}]"#);
    }

    #[test]
    fn like_groups_are_all_there() {
        let mut procs = Showing::all(&Procwatcher);
        procs.put("a/a.web.w", "{}");
        procs.put("a/a.web.x", "{}");
        assert_eq!(procs.json(), r#"[{"proc":[]},{"proc":[]}]"#);
        procs.delete("a/a.web.w");
        assert_eq!(procs.json(), r#"[{"proc":[]}]"#);
    }
}
