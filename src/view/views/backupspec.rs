//! `/v2/backupspec`: where backupd finds the volumes of a process, `{"<proc>":[<pod>,…]}`. The annotation says what to
//! back up.

use serde::Serialize;

use crate::{
    pb::lainlet as pb,
    view::{
        document::PodGroup,
        projection::{Projection, Rows, Rule, Spec},
    },
};

#[derive(Debug)]
pub(super) struct Backupspec;

static SPEC: Spec = Spec { paths: &["/v2/backupspec"], service: "Backupctl", rule: Rule::Super, ..Spec::OF_APPS };

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PodInfo<'a> {
    annotation: &'a str,
    containers: Vec<ContainerInfo<'a>>,
    instance_no: i64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerInfo<'a> {
    id: &'a str,
    ip: &'a str,
    node_ip: &'a str,
    node_name: &'a str,
}

impl Projection<PodGroup> for Backupspec {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn rows(&self, _key: &[u8], group: &PodGroup, rows: &mut Rows<'_>) {
        let pods: Vec<PodInfo<'_>> = group
            .pods
            .iter()
            .map(|pod| PodInfo {
                annotation: &group.spec.pod.annotation,
                containers: pod
                    .containers
                    .iter()
                    .map(|container| ContainerInfo {
                        id: &container.id,
                        ip: &container.container_ip,
                        node_ip: &container.node_ip,
                        node_name: &container.node_name,
                    })
                    .collect(),
                instance_no: pod.instance_no,
            })
            .collect();
        let message = pb::backupctl_reply::PodInfoList { pods: pods.iter().map(PodInfo::message).collect() };
        rows.entry(group.spec.name.as_bytes(), &pods, &message);
    }
}

impl PodInfo<'_> {
    fn message(&self) -> pb::PodInfoForBackupctl {
        let container = |info: &ContainerInfo<'_>| pb::ContainerForBackupctl {
            id: info.id.to_owned(),
            ip: info.ip.to_owned(),
            node_ip: info.node_ip.to_owned(),
            node_name: info.node_name.to_owned(),
        };
        pb::PodInfoForBackupctl {
            annotation: self.annotation.to_owned(),
            containers: self.containers.iter().map(container).collect(),
            instance_no: self.instance_no as i32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::views::tests::{Showing, decode};

    #[test]
    fn every_pod_with_all_its_containers() {
        let mut backups = Showing::all(&Backupspec);
        backups.put(
            "a/a.worker.w",
            r#"{"Spec":{"Name":"a.worker.w","Pod":{"Annotation":"{\"backup\": []}","Containers":[{}]}},"Pods":[
                {"InstanceNo":1,"Containers":[{"Id":"f1","ContainerIp":"172.20.0.2","NodeIp":"10.0.0.1","NodeName":"n1"},{}]},
                {"InstanceNo":2,"Containers":null}]}"#,
        );
        backups.put("a/a.worker.x", r#"{"Spec":{"Name":"a.worker.x"}}"#);
        let pod = r#"{"Annotation":"{\"backup\": []}","Containers":[{"Id":"f1","Ip":"172.20.0.2","NodeIp":"10.0.0.1","NodeName":"n1"},{"Id":"","Ip":"","NodeIp":"","NodeName":""}],"InstanceNo":1}"#;
        let unplaced = r#"{"Annotation":"{\"backup\": []}","Containers":[],"InstanceNo":2}"#;
        assert_eq!(backups.json(), format!(r#"{{"a.worker.w":[{pod},{unplaced}],"a.worker.x":[]}}"#));

        let data = decode::<pb::BackupctlReply>(&backups).data;
        assert_eq!(data["a.worker.x"], pb::backupctl_reply::PodInfoList::default());
        let pods = &data["a.worker.w"].pods;
        assert_eq!((&*pods[0].annotation, pods[0].containers.len(), pods[0].instance_no), (r#"{"backup": []}"#, 2, 1));
        let container = pb::ContainerForBackupctl {
            id: "f1".to_owned(),
            ip: "172.20.0.2".to_owned(),
            node_ip: "10.0.0.1".to_owned(),
            node_name: "n1".to_owned(),
        };
        assert_eq!(pods[0].containers[0], container);
        assert_eq!((pods[1].containers.len(), pods[1].instance_no), (0, 2));
    }
}
