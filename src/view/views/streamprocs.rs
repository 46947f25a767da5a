//! `/v2/streamrouter/streamprocs`: processes that want ports from the streamrouter, `{"<app>":[…]}`.
//!
//! Sorted by process, instance and port. It is not shown while most of their pods have no address, so that the router
//! keeps its previous data when the cluster is in trouble.

use serde::Serialize;

use crate::{
    pb::lainlet as pb,
    view::{
        document::{PodGroup, StreamPort},
        projection::{Pods, Projection, Rows, Shape, Spec, ViewError},
        views::pods,
    },
};

#[derive(Debug)]
pub(super) struct Streamprocs;

static SPEC: Spec = Spec {
    paths: &["/v2/streamrouter/streamprocs"],
    service: "StreamrouterStreamprocs",
    shape: Shape::Groups,
    ..Spec::OF_APPS
};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Proc<'a> {
    name: &'a str,
    upstreams: Vec<Upstream<'a>>,
    services: Vec<Service>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Upstream<'a> {
    host: &'a str,
    instance_no: i64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    upstream_port: i64,
    listen_port: i64,
    /// Always empty, like the next field.
    send: &'static str,
    expect: &'static str,
}

impl Projection<PodGroup> for Streamprocs {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn rows(&self, key: &[u8], group: &PodGroup, rows: &mut Rows<'_>) {
        let mut ports = group.spec.pod.stream_ports();
        if ports.is_empty() {
            return;
        }
        ports.sort_by_key(|port| port.listen);
        let mut upstreams: Vec<Upstream<'_>> =
            group.pods.iter().map(|pod| Upstream { host: pod.ip(), instance_no: pod.instance_no }).collect();
        upstreams.sort_by_key(|upstream| upstream.instance_no);
        let name = &*group.spec.name;
        let proc = Proc { name, upstreams, services: ports.into_iter().map(Service::of).collect() };
        // All processes of the same name are shown, in the order of their keys.
        let order = [name.as_bytes(), b"\0", key].concat();
        rows.grouped(group.spec.namespace.as_bytes(), &order, &proc, &proc.message());
        rows.pods(pods(group));
    }

    fn verdict(&self, pods: Pods) -> Result<(), ViewError> {
        pods.mostly_alive()
    }
}

impl Service {
    fn of(port: StreamPort) -> Self {
        Self { upstream_port: port.upstream, listen_port: port.listen, send: "", expect: "" }
    }
}

impl Proc<'_> {
    fn message(&self) -> pb::StreamProc {
        let upstream = |upstream: &Upstream<'_>| pb::StreamUpstream {
            host: upstream.host.to_owned(),
            instance_no: upstream.instance_no as i32,
        };
        let service = |service: &Service| pb::StreamService {
            upstream_port: service.upstream_port as i32,
            listen_port: service.listen_port as i32,
            send: service.send.to_owned(),
            expect: service.expect.to_owned(),
        };
        pb::StreamProc {
            name: self.name.to_owned(),
            upstreams: self.upstreams.iter().map(upstream).collect(),
            services: self.services.iter().map(service).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::views::tests::{Showing, decode};

    const PORTS: &str = r#"{\"ports\": [{\"srcport\": 9502, \"dstport\": 80}, {\"srcport\": \"9501\"}, {\"srcport\": 9500, \"dstport\": 81}]}"#;

    fn group(app: &str, name: &str, annotation: &str, pods: &str) -> String {
        format!(
            r#"{{"Spec":{{"Name":"{name}","Namespace":"{app}","Pod":{{"Annotation":"{annotation}"}}}},"Pods":{pods}}}"#
        )
    }

    #[test]
    fn grouped_by_app_and_sorted() {
        let mut procs = Showing::all(&Streamprocs);
        let pods =
            r#"[{"InstanceNo":2,"Containers":[{"ContainerIp":"172.20.0.2"},{}]},{"InstanceNo":1,"Containers":null}]"#;
        procs.put("b/b.worker.x", &group("b", "b.worker.x", PORTS, pods));
        procs.put("b/b.worker.a", &group("b", "b.worker.a", PORTS, "[]"));
        procs.put("a/a.worker.w", &group("a", "a.worker.w", PORTS, "null"));
        let services = r#"[{"UpstreamPort":81,"ListenPort":9500,"Send":"","Expect":""},{"UpstreamPort":80,"ListenPort":9502,"Send":"","Expect":""}]"#;
        let proc = |name: &str, upstreams: &str| {
            format!(r#"{{"Name":"{name}","Upstreams":[{upstreams}],"Services":{services}}}"#)
        };
        let upstreams = r#"{"Host":"","InstanceNo":1},{"Host":"172.20.0.2","InstanceNo":2}"#;
        let (a, b, x) = (proc("a.worker.w", ""), proc("b.worker.a", ""), proc("b.worker.x", upstreams));
        assert_eq!(procs.json(), format!(r#"{{"a":[{a}],"b":[{b},{x}]}}"#));

        let data = decode::<pb::StreamrouterStreamprocsReply>(&procs).data;
        let names = |app: &str| data[app].procs.iter().map(|proc| proc.name.clone()).collect::<Vec<_>>();
        assert_eq!(
            (names("a"), names("b")),
            (vec!["a.worker.w".to_owned()], vec!["b.worker.a".to_owned(), "b.worker.x".to_owned()])
        );
        let upstream = |host: &str, instance_no| pb::StreamUpstream { host: host.to_owned(), instance_no };
        assert_eq!(data["b"].procs[1].upstreams, [upstream("", 1), upstream("172.20.0.2", 2)]);
        let service =
            |upstream_port, listen_port| pb::StreamService { upstream_port, listen_port, ..Default::default() };
        assert_eq!(data["b"].procs[1].services, [service(81, 9500), service(80, 9502)]);
    }

    #[test]
    fn instances_and_ports_of_one_number_keep_their_order() {
        let mut procs = Showing::all(&Streamprocs);
        let ports = r#"{\"ports\": [{\"srcport\": 9500, \"dstport\": 2}, {\"srcport\": 9500, \"dstport\": 1}]}"#;
        let pods = r#"[{"Containers":[{"ContainerIp":"172.20.0.9"}]},{"Containers":[{"ContainerIp":"172.20.0.1"}]}]"#;
        procs.put("a/a.worker.w", &group("a", "a.worker.w", ports, pods));
        let reply = decode::<pb::StreamrouterStreamprocsReply>(&procs);
        let proc = &reply.data["a"].procs[0];
        assert_eq!(
            proc.upstreams.iter().map(|upstream| &*upstream.host).collect::<Vec<_>>(),
            ["172.20.0.9", "172.20.0.1"]
        );
        assert_eq!(proc.services.iter().map(|service| service.upstream_port).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn only_processes_with_ports_are_shown_and_counted() {
        let (living, dead) = (r#"[{"Containers":[{"ContainerIp":"172.20.0.2"}]}]"#, r#"[{"Containers":[{}]}]"#);
        for annotation in ["", "{}", "broken", r#"{\"ports\": []}"#, r#"{\"ports\": null}"#, r#"{\"ports\": [{}]}"#] {
            let mut procs = Showing::all(&Streamprocs);
            procs.put("a/a.worker.w", &group("a", "a.worker.w", annotation, living));
            assert_eq!(procs.error(), Some(ViewError::ContainersLost), "{annotation}");
            procs.put("a/a.worker.w", &group("a", "a.worker.w", annotation, dead));
            procs.put("b/b.worker.w", &group("b", "b.worker.w", PORTS, living));
            assert!(procs.json().starts_with(r#"{"b":["#) && !procs.json().contains(r#""a""#), "{}", procs.json());
        }
    }

    #[test]
    fn shown_while_at_least_half_of_all_pods_live() {
        let mut procs = Showing::all(&Streamprocs);
        let (living, gone) = (r#"{"Containers":[{"ContainerIp":"172.20.0.2"}]}"#, r#"{"Containers":null}"#);
        let with = |pods: &[&str]| group("a", "a.worker.w", PORTS, &format!("[{}]", pods.join(",")));
        procs.put("a/a.worker.w", &with(&[living, gone]));
        assert_eq!(procs.error(), None);
        procs.put("a/a.worker.w", &with(&[living, gone, gone]));
        assert_eq!(procs.error(), Some(ViewError::ContainersLost));
        procs.put("a/a.worker.w", &with(&[]));
        assert_eq!(procs.error(), Some(ViewError::ContainersLost));
    }
}
