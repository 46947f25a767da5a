//! `/v2/webrouter/webprocs`: web processes and their addresses, `{"<proc>":{"PodInfos":[…]}}`.
//!
//! It is not shown while most of their pods have no address, so that the router keeps its previous data when the
//! cluster is in trouble.

use serde::Serialize;

use crate::{
    pb::lainlet as pb,
    view::{
        document::PodGroup,
        projection::{Pods, Projection, Rows, Spec, ViewError},
        views::{PodInfos, pods},
    },
};

#[derive(Debug)]
pub(super) struct Webprocs;

static SPEC: Spec = Spec { paths: &["/v2/webrouter/webprocs"], service: "WebrouterWebprocs", ..Spec::OF_APPS };

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PodInfo<'a> {
    annotation: &'a str,
    container_infos: Vec<ContainerInfo<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerInfo<'a> {
    container_ip: &'a str,
    expose: i64,
}

impl Projection<PodGroup> for Webprocs {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn rows(&self, _key: &[u8], group: &PodGroup, rows: &mut Rows<'_>) {
        if !is_web(&group.spec.name) {
            return;
        }
        let pod_infos: Vec<PodInfo<'_>> = group
            .pods
            .iter()
            .map(|pod| PodInfo {
                annotation: &group.spec.pod.annotation,
                container_infos: group
                    .containers(pod)
                    .map(|(container, spec)| ContainerInfo {
                        container_ip: &container.container_ip,
                        expose: spec.expose,
                    })
                    .collect(),
            })
            .collect();
        let message = pb::CoreInfoForWebrouter { pod_infos: pod_infos.iter().map(PodInfo::message).collect() };
        rows.entry(group.spec.name.as_bytes(), &PodInfos { pod_infos }, &message);
        rows.pods(pods(group));
    }

    fn verdict(&self, pods: Pods) -> Result<(), ViewError> {
        pods.mostly_alive()
    }
}

/// Whether a process is `<app>.web.<short name>`.
fn is_web(proc: &str) -> bool {
    let mut parts = proc.rsplit('.');
    let (_short, kind, app) = (parts.next(), parts.next(), parts.next());
    kind == Some("web") && app.is_some()
}

impl PodInfo<'_> {
    fn message(&self) -> pb::PodInfoForWebrouter {
        let container = |info: &ContainerInfo<'_>| pb::ContainerForWebrouter {
            ip: info.container_ip.to_owned(),
            expose: info.expose as i32,
        };
        pb::PodInfoForWebrouter {
            annotation: self.annotation.to_owned(),
            containers: self.container_infos.iter().map(container).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::views::tests::{Showing, decode};

    /// A process with `alive` pods that have an address, and `dead` pods that have none.
    fn group(name: &str, alive: usize, dead: usize) -> String {
        let pods =
            [vec![r#"{"Containers":[{"ContainerIp":"172.20.0.2"}]}"#; alive], vec![r#"{"Containers":[{}]}"#; dead]];
        format!(r#"{{"Spec":{{"Name":"{name}"}},"Pods":[{}]}}"#, pods.concat().join(","))
    }

    #[test]
    fn web_processes_alone() {
        let names = [
            ("a.web.w", true),
            ("b.c.web.w", true),
            (".web.w", true),
            ("web.web.web", true),
            ("a.worker.web", false),
            ("a.web.w.x", false),
            ("web.w", false),
            ("web", false),
            ("", false),
        ];
        for (name, is_shown) in names {
            let mut webprocs = Showing::all(&Webprocs);
            webprocs.put("a/a", &group(name, 1, 0));
            assert_eq!(webprocs.error().is_none(), is_shown, "{name}");
        }
    }

    #[test]
    fn every_container_with_the_exposed_port_of_its_spec() {
        let mut webprocs = Showing::all(&Webprocs);
        webprocs.put(
            "a/a.web.w",
            r#"{"Spec":{"Name":"a.web.w","Pod":{"Annotation":"x","Containers":[{"Expose":80}]}},"Pods":[
                {"InstanceNo":1,"Containers":[{"ContainerIp":"172.20.0.2","ContainerPort":8080},{"ContainerIp":"172.20.0.3"}]},
                {"InstanceNo":2,"Containers":null}]}"#,
        );
        webprocs.put("a/a.web.x", r#"{"Spec":{"Name":"a.web.x"},"Pods":[]}"#);
        webprocs.put("a/a.worker.y", r#"{"Spec":{"Name":"a.worker.y"},"Pods":[{}]}"#);
        let containers = r#"[{"ContainerIp":"172.20.0.2","Expose":80},{"ContainerIp":"172.20.0.3","Expose":0}]"#;
        let pods =
            format!(r#"{{"Annotation":"x","ContainerInfos":{containers}}},{{"Annotation":"x","ContainerInfos":[]}}"#);
        assert_eq!(webprocs.json(), format!(r#"{{"a.web.w":{{"PodInfos":[{pods}]}},"a.web.x":{{"PodInfos":[]}}}}"#));
        let container = |ip: &str, expose| pb::ContainerForWebrouter { ip: ip.to_owned(), expose };
        let pod = |containers| pb::PodInfoForWebrouter { annotation: "x".to_owned(), containers };
        let shown = decode::<pb::WebrouterWebprocsReply>(&webprocs).data["a.web.w"].pod_infos.clone();
        assert_eq!(shown, [pod(vec![container("172.20.0.2", 80), container("172.20.0.3", 0)]), pod(vec![])]);
    }

    #[test]
    fn shown_while_at_least_half_of_all_pods_live() {
        let cases: [(&[(usize, usize)], bool); 9] = [
            (&[], false),
            (&[(0, 0)], false),
            (&[(0, 1)], false),
            (&[(1, 0)], true),
            (&[(1, 1)], true),
            (&[(1, 2)], false),
            (&[(2, 3)], false),
            (&[(0, 2), (2, 0)], true),
            (&[(0, 2), (1, 0), (0, 0)], false),
        ];
        for (groups, is_shown) in cases {
            let mut webprocs = Showing::all(&Webprocs);
            // Pods of other processes do not count.
            webprocs.put("z/z.worker.z", &group("z.worker.z", 9, 0));
            for (index, (alive, dead)) in groups.iter().enumerate() {
                webprocs.put(&format!("a/{index}"), &group(&format!("a.web.{index}"), *alive, *dead));
            }
            let error = (!is_shown).then_some(ViewError::ContainersLost);
            assert_eq!(webprocs.error(), error, "{groups:?}");
        }
    }

    #[test]
    fn comes_back_with_the_pods() {
        let mut webprocs = Showing::all(&Webprocs);
        webprocs.put("a/a.web.w", &group("a.web.w", 1, 2));
        assert_eq!(webprocs.error(), Some(ViewError::ContainersLost));
        webprocs.put("a/a.web.w", &group("a.web.w", 2, 1));
        assert_eq!(webprocs.error(), None);
        webprocs.delete("a/a.web.w");
        assert_eq!(webprocs.error(), Some(ViewError::ContainersLost));
    }
}
