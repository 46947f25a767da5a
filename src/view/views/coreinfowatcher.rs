//! `/v2/coreinfowatcher`: everything about a process, `{"<proc>":{"PodInfos":[…]}}`.

use serde::Serialize;

use crate::{
    pb::lainlet as pb,
    view::{
        document::{Container, ContainerSpec, PodGroup},
        projection::{Projection, Rows, Spec},
        views::PodInfos,
    },
};

#[derive(Debug)]
pub(super) struct Coreinfowatcher;

static SPEC: Spec = Spec { paths: &["/v2/coreinfowatcher"], service: "Coreinfo", ..Spec::OF_APPS };

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PodInfo<'a> {
    annotation: &'a str,
    container_infos: Vec<ContainerInfo<'a>>,
    dependencies: &'a [Dependency<'a>],
    instance_no: i64,
}

/// A list that is `None` is written as `null`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerInfo<'a> {
    command: Option<&'a [Box<str>]>,
    container_id: &'a str,
    container_ip: &'a str,
    cpu: i64,
    env: Option<&'a [Box<str>]>,
    expose: i64,
    image: &'a str,
    memory: i64,
    node_ip: &'a str,
    node_name: &'a str,
    volumes: Option<&'a [Box<str>]>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Dependency<'a> {
    pod_name: &'a str,
    policy: i64,
}

impl Projection<PodGroup> for Coreinfowatcher {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn rows(&self, _key: &[u8], group: &PodGroup, rows: &mut Rows<'_>) {
        let spec = &group.spec.pod;
        let dependencies: Vec<Dependency<'_>> = spec
            .dependencies
            .iter()
            .map(|dependency| Dependency { pod_name: &dependency.pod_name, policy: dependency.policy })
            .collect();
        let pod_infos: Vec<PodInfo<'_>> = group
            .pods
            .iter()
            .map(|pod| PodInfo {
                annotation: &spec.annotation,
                container_infos: group.containers(pod).map(ContainerInfo::of).collect(),
                dependencies: &dependencies,
                instance_no: pod.instance_no,
            })
            .collect();
        let message = pb::CoreInfo { pod_infos: pod_infos.iter().map(PodInfo::message).collect() };
        rows.entry(group.spec.name.as_bytes(), &PodInfos { pod_infos }, &message);
    }
}

impl PodInfo<'_> {
    fn message(&self) -> pb::PodInfo {
        let dependency = |dependency: &Dependency<'_>| pb::Dependency {
            pod_name: dependency.pod_name.to_owned(),
            policy: dependency.policy as i32,
        };
        pb::PodInfo {
            annotation: self.annotation.to_owned(),
            containers: self.container_infos.iter().map(ContainerInfo::message).collect(),
            dependencies: self.dependencies.iter().map(dependency).collect(),
            instance_no: self.instance_no as i32,
        }
    }
}

impl<'a> ContainerInfo<'a> {
    fn of((container, spec): (&'a Container, &'a ContainerSpec)) -> Self {
        Self {
            command: spec.command.as_deref(),
            container_id: &container.id,
            container_ip: &container.container_ip,
            cpu: spec.cpu_limit,
            env: spec.env.as_deref(),
            expose: spec.expose,
            image: &spec.image,
            memory: spec.memory_limit,
            node_ip: &container.node_ip,
            node_name: &container.node_name,
            volumes: spec.volumes.as_deref(),
        }
    }

    fn message(&self) -> pb::Container {
        let strings =
            |list: Option<&[Box<str>]>| list.unwrap_or_default().iter().map(|text| text.to_string()).collect();
        pb::Container {
            command: strings(self.command),
            id: self.container_id.to_owned(),
            ip: self.container_ip.to_owned(),
            cpu: self.cpu as i32,
            env: strings(self.env),
            expose: self.expose as i32,
            image: self.image.to_owned(),
            memory: self.memory,
            node_ip: self.node_ip.to_owned(),
            node_name: self.node_name.to_owned(),
            volumes: strings(self.volumes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::views::tests::{Showing, decode};

    /// An empty container, with the fields that no specification provides.
    const EMPTY: &str = r#"{"Command":null,"ContainerId":"","ContainerIp":"","Cpu":0,"Env":null,"Expose":0,"Image":"","Memory":0,"NodeIp":"","NodeName":"","Volumes":null}"#;

    #[test]
    fn all_of_a_process() {
        let mut coreinfo = Showing::all(&Coreinfowatcher);
        coreinfo.put(
            "a/a.web.w",
            r#"{"Spec":{"Name":"a.web.w","Pod":{"Annotation":"<a>","Dependencies":[{"PodName":"s.portal.portal-s","Policy":1}],
                "Containers":[{"Image":"i","Command":null,"Env":["A=<1>"],"Volumes":[],"CpuLimit":2,"MemoryLimit":5368709120,
                "Expose":80}]}},"Pods":[{"InstanceNo":1,"Containers":[{"Id":"f1","ContainerIp":"172.20.0.2","ContainerPort":8080,
                "NodeIp":"10.0.0.1","NodeName":"n1"}]}]}"#,
        );
        let container = r#"{"Command":null,"ContainerId":"f1","ContainerIp":"172.20.0.2","Cpu":2,"Env":["A=\u003c1\u003e"],"Expose":80,"Image":"i","Memory":5368709120,"NodeIp":"10.0.0.1","NodeName":"n1","Volumes":[]}"#;
        let dependencies = r#"[{"PodName":"s.portal.portal-s","Policy":1}]"#;
        assert_eq!(
            coreinfo.json(),
            format!(
                r#"{{"a.web.w":{{"PodInfos":[{{"Annotation":"\u003ca\u003e","ContainerInfos":[{container}],"Dependencies":{dependencies},"InstanceNo":1}}]}}}}"#
            )
        );
        let pod = pb::PodInfo {
            annotation: "<a>".to_owned(),
            containers: vec![pb::Container {
                command: vec![],
                id: "f1".to_owned(),
                ip: "172.20.0.2".to_owned(),
                cpu: 2,
                env: vec!["A=<1>".to_owned()],
                expose: 80,
                image: "i".to_owned(),
                memory: 5_368_709_120,
                node_ip: "10.0.0.1".to_owned(),
                node_name: "n1".to_owned(),
                volumes: vec![],
            }],
            dependencies: vec![pb::Dependency { pod_name: "s.portal.portal-s".to_owned(), policy: 1 }],
            instance_no: 1,
        };
        assert_eq!(decode::<pb::CoreinfoReply>(&coreinfo).data["a.web.w"].pod_infos, [pod]);
    }

    #[test]
    fn a_container_without_a_spec_has_an_empty_one() {
        let mut coreinfo = Showing::all(&Coreinfowatcher);
        coreinfo.put(
            "a/a.web.w",
            r#"{"Spec":{"Name":"a.web.w","Pod":{"Containers":[{"Command":["x"],"Volumes":["/v"]}]}},"Pods":[{"Containers":[{},{}]}]}"#,
        );
        let first = EMPTY
            .replace(r#""Command":null"#, r#""Command":["x"]"#)
            .replace(r#""Volumes":null"#, r#""Volumes":["/v"]"#);
        let pod = format!(r#"{{"Annotation":"","ContainerInfos":[{first},{EMPTY}],"Dependencies":[],"InstanceNo":0}}"#);
        assert_eq!(coreinfo.json(), format!(r#"{{"a.web.w":{{"PodInfos":[{pod}]}}}}"#));
        assert_eq!(decode::<pb::CoreinfoReply>(&coreinfo).data["a.web.w"].pod_infos[0].containers.len(), 2);
    }

    #[test]
    fn pods_without_containers_and_processes_without_pods_are_shown() {
        let mut coreinfo = Showing::all(&Coreinfowatcher);
        coreinfo.put("a/a.web.w", r#"{"Spec":{"Name":"a.web.w"},"Pods":[{"InstanceNo":2,"Containers":null}]}"#);
        coreinfo.put("a/a.web.x", r#"{"Spec":{"Name":"a.web.x"},"Pods":null}"#);
        let pod = r#"{"Annotation":"","ContainerInfos":[],"Dependencies":[],"InstanceNo":2}"#;
        assert_eq!(coreinfo.json(), format!(r#"{{"a.web.w":{{"PodInfos":[{pod}]}},"a.web.x":{{"PodInfos":[]}}}}"#));
    }

    #[test]
    fn of_two_groups_of_one_name_the_last_key_is_shown() {
        let mut coreinfo = Showing::all(&Coreinfowatcher);
        coreinfo.put("b/b.web.w", r#"{"Spec":{"Name":"same"},"Pods":[{}]}"#);
        coreinfo.put("a/a.web.w", r#"{"Spec":{"Name":"same"}}"#);
        assert!(coreinfo.json().contains("InstanceNo"), "{}", coreinfo.json());
        coreinfo.delete("b/b.web.w");
        assert_eq!(coreinfo.json(), r#"{"same":{"PodInfos":[]}}"#);
    }
}
