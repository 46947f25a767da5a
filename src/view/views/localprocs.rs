//! `/v2/rebellion/localprocs`: the instances on one node, for its log collector, `{"<proc>":{"PodInfos":[…]}}`.

use serde::Serialize;

use crate::{
    pb::lainlet as pb,
    view::{
        document::{Pod, PodGroup},
        projection::{Projection, Rows, Spec},
        views::PodInfos,
    },
};

#[derive(Debug)]
pub(super) struct Localprocs;

static SPEC: Spec =
    Spec { paths: &["/v2/rebellion/localprocs"], service: "RebellionLocalprocs", of_node: true, ..Spec::OF_APPS };

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PodInfo<'a> {
    annotation: &'a str,
    app_version: &'a str,
    instance_no: i64,
}

impl Projection<PodGroup> for Localprocs {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn rows(&self, _key: &[u8], group: &PodGroup, rows: &mut Rows<'_>) {
        // A container that was never created has an empty node, too, and nobody requests those.
        let Some(node) = rows.select().node.as_deref().filter(|node| !node.is_empty()) else { return };
        let is_here = |pod: &&Pod| pod.containers.iter().any(|container| *container.node_name == *node);
        let pod_infos: Vec<PodInfo<'_>> = group
            .pods
            .iter()
            .filter(is_here)
            .map(|pod| PodInfo {
                annotation: &group.spec.pod.annotation,
                app_version: group.app_version(),
                instance_no: pod.instance_no,
            })
            .collect();
        if pod_infos.is_empty() {
            return;
        }
        let message = pb::CoreInfoForRebellion { pod_infos: pod_infos.iter().map(PodInfo::message).collect() };
        rows.entry(group.spec.name.as_bytes(), &PodInfos { pod_infos }, &message);
    }
}

impl PodInfo<'_> {
    fn message(&self) -> pb::PodInfoForRebellion {
        pb::PodInfoForRebellion {
            annotation: self.annotation.to_owned(),
            app_version: self.app_version.to_owned(),
            instance_no: self.instance_no as i32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::views::tests::{Showing, decode};

    const GROUP: &str = r#"{"Spec":{"Name":"a.web.w","Pod":{"Annotation":"x","Containers":[{"Env":["LAIN_APP_RELEASE_VERSION=1-f"]}]}},
        "Pods":[{"InstanceNo":1,"Containers":[{"NodeName":"n1"}]},{"InstanceNo":2,"Containers":[{"NodeName":"n2"},{"NodeName":"n1"}]},
        {"InstanceNo":3,"Containers":[{"NodeName":"n2"}]},{"InstanceNo":4,"Containers":[{"NodeName":""}]},{"InstanceNo":5}]}"#;

    #[test]
    fn pods_with_any_container_on_the_node() {
        let mut procs = Showing::of_node(&Localprocs, "n1");
        procs.put("a/a.web.w", GROUP);
        procs.put(
            "a/a.web.x",
            r#"{"Spec":{"Name":"a.web.x"},"Pods":[{"Containers":[{"NodeName":"n2","NodeIp":"n1"}]},{}]}"#,
        );
        let pod = |instance: u8| format!(r#"{{"Annotation":"x","AppVersion":"1-f","InstanceNo":{instance}}}"#);
        assert_eq!(procs.json(), format!(r#"{{"a.web.w":{{"PodInfos":[{},{}]}}}}"#, pod(1), pod(2)));
        let message = |instance_no| pb::PodInfoForRebellion {
            annotation: "x".to_owned(),
            app_version: "1-f".to_owned(),
            instance_no,
        };
        assert_eq!(decode::<pb::RebellionLocalprocsReply>(&procs).data["a.web.w"].pod_infos, [message(1), message(2)]);
    }

    #[test]
    fn nothing_is_on_no_node() {
        let mut procs = Showing::of_node(&Localprocs, "");
        procs.put("a/a.web.w", GROUP);
        assert_eq!(procs.json(), "{}");
    }
}
