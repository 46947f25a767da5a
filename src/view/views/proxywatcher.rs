//! `/v2/proxywatcher`: where a process can be reached, `{"<proc>":{"containers":[…]}}`.
//!
//! The port is the one that the specification exposes (0 for a sidecar), not the container's.

use serde::Serialize;

use crate::{
    pb::lainlet as pb,
    view::{
        document::PodGroup,
        projection::{Projection, Rows, Spec},
    },
};

#[derive(Debug)]
pub(super) struct Proxywatcher;

static SPEC: Spec = Spec { paths: &["/v2/proxywatcher"], service: "Proxy", ..Spec::OF_APPS };

#[derive(Serialize)]
struct Proc<'a> {
    containers: Vec<Reached<'a>>,
}

#[derive(Serialize)]
struct Reached<'a> {
    container_ip: &'a str,
    container_port: i64,
}

impl Projection<PodGroup> for Proxywatcher {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn rows(&self, _key: &[u8], group: &PodGroup, rows: &mut Rows<'_>) {
        let containers: Vec<Reached<'_>> = group
            .pods
            .iter()
            .flat_map(|pod| group.containers(pod))
            .map(|(container, spec)| Reached { container_ip: &container.container_ip, container_port: spec.expose })
            .collect();
        let message = pb::ProcInfo { containers: containers.iter().map(Reached::message).collect() };
        rows.entry(group.spec.name.as_bytes(), &Proc { containers }, &message);
    }
}

impl Reached<'_> {
    fn message(&self) -> pb::ContainerForProxy {
        pb::ContainerForProxy { container_ip: self.container_ip.to_owned(), container_port: self.container_port as i32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::views::tests::{Showing, decode};

    #[test]
    fn every_container_with_the_exposed_port_of_its_spec() {
        let mut proxies = Showing::all(&Proxywatcher);
        proxies.put(
            "a/a.web.w",
            r#"{"Spec":{"Name":"a.web.w","Pod":{"Containers":[{"Expose":80},{}]}},"Pods":[
                {"Containers":[{"ContainerIp":"172.20.0.2","ContainerPort":8080},{"ContainerIp":"172.20.0.3","ContainerPort":1},
                {"ContainerIp":"172.20.0.4","ContainerPort":2}]},{"Containers":null},{"Containers":[{}]}]}"#,
        );
        proxies.put("a/a.web.x", r#"{"Spec":{"Name":"a.web.x"},"Pods":[]}"#);
        let reached = [("172.20.0.2", 80), ("172.20.0.3", 0), ("172.20.0.4", 0), ("", 80)];
        let containers: Vec<String> =
            reached.iter().map(|(ip, port)| format!(r#"{{"container_ip":"{ip}","container_port":{port}}}"#)).collect();
        let json =
            format!(r#"{{"a.web.w":{{"containers":[{}]}},"a.web.x":{{"containers":[]}}}}"#, containers.join(","));
        assert_eq!(proxies.json(), json);
        let message =
            |(ip, port): (&str, i32)| pb::ContainerForProxy { container_ip: ip.to_owned(), container_port: port };
        assert_eq!(decode::<pb::ProxyReply>(&proxies).data["a.web.w"].containers, reached.map(message));
    }
}
