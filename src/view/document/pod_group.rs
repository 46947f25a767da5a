//! [`PodGroup`]: a process of an app, its specification and where it runs, below `/lain/deployd/pod_groups/`.
//!
//! State, health, times and the rest of a container's inspection are left out: deployd writes them and nobody reads
//! them.

use std::sync::LazyLock;

use serde::Deserializer;
use serde_json::Value;

use super::{
    read::{Read, Trail, each, object},
    repair::repair,
};

/// A pod group.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct PodGroup {
    pub(crate) spec: Spec,
    /// The instances, in stored order.
    pub(crate) pods: Box<[Pod]>,
}
object!(PodGroup { "Spec" => spec, "Pods" => pods });

/// The specification of a pod group. During an upgrade it is newer than the pods.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Spec {
    /// The process, `<app>.<type>.<short name>`.
    pub(crate) name: Box<str>,
    /// The app.
    pub(crate) namespace: Box<str>,
    pub(crate) pod: PodSpec,
}
object!(Spec { "Name" => name, "Namespace" => namespace, "Pod" => pod });

/// The specification of each pod.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct PodSpec {
    pub(crate) containers: Box<[ContainerSpec]>,
    pub(crate) dependencies: Box<[Dependency]>,
    /// JSON as text, passed on unchanged.
    pub(crate) annotation: Box<str>,
}
object!(PodSpec { "Containers" => containers, "Dependencies" => dependencies, "Annotation" => annotation });

/// A service that the app uses.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Dependency {
    /// The name of the portal.
    pub(crate) pod_name: Box<str>,
    /// 0 for one portal per namespace, 1 for one per node.
    pub(crate) policy: i64,
}
object!(Dependency { "PodName" => pod_name, "Policy" => policy });

/// The specification of a container in each pod. A list that is `None` is `null` in etcd and for clients, which differs
/// from `[]`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct ContainerSpec {
    pub(crate) image: Box<str>,
    /// `NAME=value`.
    pub(crate) env: Option<Box<[Box<str>]>>,
    pub(crate) volumes: Option<Box<[Box<str>]>>,
    pub(crate) command: Option<Box<[Box<str>]>>,
    pub(crate) cpu_limit: i64,
    /// In bytes.
    pub(crate) memory_limit: i64,
    /// The port for other processes; 0 for none.
    pub(crate) expose: i64,
}
object!(ContainerSpec {
    "Image" => image,
    "Env" => env,
    "Volumes" => volumes,
    "Command" => command,
    "CpuLimit" => cpu_limit,
    "MemoryLimit" => memory_limit,
    "Expose" => expose,
});

/// An instance.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Pod {
    /// From 1.
    pub(crate) instance_no: i64,
    /// There may be more or fewer than in the specification, and none while the pod is not placed.
    pub(crate) containers: Box<[Container]>,
}
object!(Pod { "InstanceNo" => instance_no, "Containers" => containers });

/// A container of an instance. Its strings are empty if it could not be created.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Container {
    pub(crate) id: Box<str>,
    runtime: Runtime,
    pub(crate) node_name: Box<str>,
    pub(crate) node_ip: Box<str>,
    pub(crate) container_ip: Box<str>,
    pub(crate) container_port: i64,
}
object!(Container {
    "Id" => id,
    "Runtime" => runtime,
    "NodeName" => node_name,
    "NodeIp" => node_ip,
    "ContainerIp" => container_ip,
    "ContainerPort" => container_port,
});

/// Docker's information about the container.
#[derive(Debug, Default, PartialEq)]
struct Runtime {
    config: RuntimeConfig,
}
object!(Runtime { "Config" => config });

#[derive(Debug, Default, PartialEq)]
struct RuntimeConfig {
    env: RuntimeEnv,
}
object!(RuntimeConfig { "Env" => env });

/// Only one variable of its environment is read. Without the others, a document is a third smaller.
#[derive(Debug, Default, PartialEq)]
struct RuntimeEnv {
    proc_name: Box<str>,
}

impl Read for RuntimeEnv {
    fn read<'de, D: Deserializer<'de>>(from: D, trail: &Trail) -> Result<Self, D::Error> {
        let mut env = Self::default();
        each(from, trail, |variable: Box<str>| {
            if let Some(name) = variable.strip_prefix("LAIN_PROCNAME=") {
                env.proc_name = name.into();
            }
        })?;
        Ok(env)
    }
}

impl PodGroup {
    /// The release of the app in the specification; empty if there is none.
    pub(crate) fn app_version(&self) -> &str {
        let first = self.spec.pod.containers.first();
        let env = first.and_then(|container| container.env.as_deref()).unwrap_or_default();
        env.iter()
            .filter_map(|variable| variable.strip_prefix("LAIN_APP_RELEASE_VERSION="))
            // As in the original, an entry with a second `=` does not count.
            .find(|version| !version.contains('='))
            .unwrap_or_default()
    }

    /// The containers of one of its pods, each with the specification at the same position. It is empty if the
    /// specification has fewer, for example while an upgrade removes a container.
    pub(crate) fn containers<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = (&'a Container, &'a ContainerSpec)> {
        static NONE: LazyLock<ContainerSpec> = LazyLock::new(ContainerSpec::default);
        let specs = self.spec.pod.containers.iter();
        pod.containers.iter().zip(specs.chain(std::iter::repeat(&*NONE)))
    }

    /// The number of its pods that are alive.
    pub(crate) fn alive(&self) -> usize {
        self.pods.iter().filter(|pod| !pod.ip().is_empty()).count()
    }
}

impl Pod {
    /// The address of its first container, which represents the pod. It is empty if there is none, and then the pod is
    /// not alive.
    pub(crate) fn ip(&self) -> &str {
        self.containers.first().map_or("", |container| &container.container_ip)
    }
}

impl Container {
    /// The short name of the process, which the container itself uses.
    pub(crate) fn proc_name(&self) -> &str {
        &self.runtime.config.env.proc_name
    }
}

/// A port that the streamrouter must open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamPort {
    /// The port that it listens on.
    pub(crate) listen: i64,
    /// The port that it connects to on each instance.
    pub(crate) upstream: i64,
}

impl PodSpec {
    /// The ports in the annotation, in order. One without a listen port is left out; an unreadable annotation has none.
    pub(crate) fn stream_ports(&self) -> Vec<StreamPort> {
        let annotation = serde_json::from_slice(&repair(self.annotation.as_bytes())).unwrap_or(Value::Null);
        let Some(Value::Array(ports)) = member(&annotation, "ports") else { return Vec::new() };
        let integer = |port, name| member(port, name).and_then(Value::as_i64);
        let stream_port = |port| {
            Some(StreamPort {
                listen: integer(port, "srcport")?,
                upstream: integer(port, "dstport").unwrap_or_default(),
            })
        };
        ports.iter().filter_map(stream_port).collect()
    }
}

/// A member by its name, ignoring case.
fn member<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    let object = object.as_object()?;
    object.get(name).or_else(|| object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::document::{DecodeError, Document as _};

    fn decode(json: &str) -> PodGroup {
        PodGroup::decode(json.as_bytes()).unwrap_or_else(|error| panic!("{json}: {error}"))
    }

    fn error(json: impl AsRef<[u8]>) -> String {
        PodGroup::decode(json.as_ref()).expect_err("refused").to_string()
    }

    fn with_annotation(annotation: &str) -> PodSpec {
        PodSpec { annotation: annotation.into(), ..PodSpec::default() }
    }

    fn strings(strings: &[&str]) -> Option<Box<[Box<str>]>> {
        Some(strings.iter().copied().map(Box::from).collect())
    }

    #[test]
    fn all_that_is_read() {
        let group = decode(
            r#"{"Spec":{"Name":"a.web.w","Namespace":"a","Version":3,"CreatedAt":"0001-01-01T00:00:00Z","Pod":{
                "Name":"other","Containers":[{"Name":"","Image":"i","Env":["A=1"],"Volumes":[],"Command":null,
                "CpuLimit":1,"MemoryLimit":1099511627776,"Expose":80}],"Labels":{"a":"b"},
                "Dependencies":[{"PodName":"s.portal.portal-s","Policy":1}],"Annotation":"{\"a\": 1}"}},
                "Pods":[{"InstanceNo":2,"Containers":[{"Id":"ff","Runtime":{"Args":[],"Config":{"Env":
                ["LAIN_PROCNAME=first","A=1","LAIN_PROCNAME=last","XLAIN_PROCNAME=no"]},"State":{"Pid":1}},
                "NodeName":"n","NodeIp":"10.0.0.1","ContainerIp":"172.20.0.2","NodePort":1,"ContainerPort":81}]}],
                "State":2}"#,
        );
        let expected = PodGroup {
            spec: Spec {
                name: "a.web.w".into(),
                namespace: "a".into(),
                pod: PodSpec {
                    containers: [ContainerSpec {
                        image: "i".into(),
                        env: strings(&["A=1"]),
                        volumes: strings(&[]),
                        command: None,
                        cpu_limit: 1,
                        memory_limit: 1 << 40,
                        expose: 80,
                    }]
                    .into(),
                    dependencies: [Dependency { pod_name: "s.portal.portal-s".into(), policy: 1 }].into(),
                    annotation: r#"{"a": 1}"#.into(),
                },
            },
            pods: [Pod {
                instance_no: 2,
                containers: [Container {
                    id: "ff".into(),
                    runtime: Runtime { config: RuntimeConfig { env: RuntimeEnv { proc_name: "last".into() } } },
                    node_name: "n".into(),
                    node_ip: "10.0.0.1".into(),
                    container_ip: "172.20.0.2".into(),
                    container_port: 81,
                }]
                .into(),
            }]
            .into(),
        };
        assert_eq!(group, expected);
    }

    #[test]
    fn what_is_not_read_makes_no_difference() {
        let one = decode(
            r#"{"Pods":[{"UpdatedAt":"x","Containers":[{"Runtime":{"State":{"Pid":1},"Config":{"Env":["A=1"]}}}]}]}"#,
        );
        let other = decode(
            r#"{"State":"2","Pods":[{"Containers":[{"Runtime":{"State":7},"NodePort":[]}]}],"Healthst":{"a":[[]]}}"#,
        );
        assert_eq!(one, other);
        assert_ne!(one, decode(r#"{"Pods":[{"Containers":[{"Runtime":{"Config":{"Env":["LAIN_PROCNAME=a"]}}}]}]}"#));
    }

    #[test]
    fn missing_and_null_are_zero() {
        let nothing = PodGroup::default();
        assert_eq!(decode("{}"), nothing);
        assert_eq!(decode(r#" {"Spec":null,"Pods":null} "#), nothing);
        assert_eq!(decode(r#"{"Spec":{"Name":null,"Namespace":null,"Pod":null},"Pods":[]}"#), nothing);
        let pod = r#"{"Spec":{"Pod":{"Containers":null,"Dependencies":null,"Annotation":null}}}"#;
        assert_eq!(decode(pod), nothing);
        assert_eq!(decode(r#"{"Pods":[null]}"#).pods, [Pod::default()].into());
        let containers = r#"{"Pods":[{"InstanceNo":null,"Containers":[null,{"Id":null,"Runtime":null}]}]}"#;
        assert_eq!(decode(containers).pods[0].containers, [Container::default(), Container::default()].into());
        let runtime = r#"{"Pods":[{"Containers":[{"Runtime":{"Config":null}},{"Runtime":{"Config":{"Env":null}}}]}]}"#;
        assert_eq!(decode(runtime).pods[0].containers, [Container::default(), Container::default()].into());
        let env = r#"{"Spec":{"Pod":{"Containers":[{"Env":[null,"A"]}]}}}"#;
        assert_eq!(decode(env).spec.pod.containers[0].env, strings(&["", "A"]));
    }

    #[test]
    fn names_match_exactly_or_but_for_case_and_the_last_counts() {
        assert_eq!(&*decode(r#"{"SPEC":{"name":"a"}}"#).spec.name, "a");
        assert_eq!(&*decode(r#"{"Spec":{"Name":"a","name":"b"}}"#).spec.name, "b");
        assert_eq!(&*decode(r#"{"Spec":{"name":"b","Name":"a"}}"#).spec.name, "a");
        assert_eq!(&*decode(r#"{"Spec":{"N\u0061me":"a","Name ":"b"}}"#).spec.name, "a");
        assert_eq!(decode(r#"{"Pods":[{},{}],"Pods":[{}]}"#).pods.len(), 1);
    }

    #[test]
    fn integers_are_digits_in_range() {
        let read = |number: &str| {
            let json = format!(r#"{{"Pods":[{{"InstanceNo":{number}}}]}}"#);
            PodGroup::decode(json.as_bytes()).map(|group| group.pods[0].instance_no)
        };
        for (number, value) in
            [("0", 0), ("-0", 0), ("-7", -7), ("9223372036854775807", i64::MAX), ("-9223372036854775808", i64::MIN)]
        {
            assert_eq!(read(number), Ok(value), "{number}");
        }
        let wrong = ["2.0", "-0.0", "1e3", "9223372036854775808", "-9223372036854775809", "\"2\"", "true", "[]", "{}"];
        for number in wrong.into_iter().map(str::to_owned).chain(["9".repeat(60)]) {
            assert!(matches!(read(&number), Err(DecodeError::Type { .. })), "{number}: {:?}", read(&number));
        }
        for number in ["01", "+1", "-", "1.", "0x1", ""] {
            assert!(matches!(read(number), Err(DecodeError::Syntax { .. })), "{number}: {:?}", read(number));
        }
    }

    #[test]
    fn text_that_is_no_text_becomes_replacement_characters() {
        let group = decode(r#"{"Spec":{"Name":"a\ud800b","Namespace":"\ud83d\ude80"}}"#);
        assert_eq!((&*group.spec.name, &*group.spec.namespace), ("a\u{fffd}b", "🚀"));
        let group = PodGroup::decode(b"{\"Spec\":{\"Name\":\"a\xe2\x82b\"},\"St\xffte\":\"\xff\"}").expect("mended");
        assert_eq!(&*group.spec.name, "a\u{fffd}\u{fffd}b");
    }

    #[test]
    fn what_is_no_document_is_refused() {
        let broken = [
            "",
            " ",
            "{",
            "{}{}",
            "{} x",
            "{}]",
            "\u{feff}{}",
            "{\"a\":1,}",
            "{'a':1}",
            "nul",
            r#"{"Spec":{"Name":"hello.worker.sender""#,
        ];
        for json in broken {
            assert!(error(json).starts_with("not one JSON document"), "{json}: {}", error(json));
        }
        assert!(error(b"\xff{}").starts_with("not one JSON document"));
        assert_eq!(error("null"), "null");
        for json in ["[]", "3", "\"a\"", "true", "[{}]"] {
            assert!(error(json).starts_with("wrong type: the document"), "{json}: {}", error(json));
        }
    }

    #[test]
    fn an_error_tells_the_place_and_nothing_of_the_value() {
        let json = "{\"Spec\":{\"Pod\":{\"Containers\":[{},\n{\"Expose\":\"secret\"}]}}}";
        assert!(
            error(json).starts_with("wrong type: Spec.Pod.Containers[1].Expose, line 2, column "),
            "{}",
            error(json)
        );
        let wrong = [
            (r#"{"Spec":{"Name":12345}}"#, "Spec.Name"),
            (r#"{"spec":["secret"]}"#, "Spec"),
            (r#"{"Pods":{"secret":1}}"#, "Pods"),
            (
                r#"{"Pods":[{"Containers":[{"Runtime":{"Config":{"Env":["a",{"secret":1}]}}}]}]}"#,
                "Pods[0].Containers[0].Runtime.Config.Env[1]",
            ),
        ];
        for (json, member) in wrong {
            assert!(error(json).starts_with(&format!("wrong type: {member}, line 1, column ")), "{}", error(json));
            assert!(!error(json).contains("secret") && !error(json).contains("12345"), "{}", error(json));
        }
    }

    #[test]
    fn app_version_is_the_first_plain_one_of_the_first_container() {
        let version = |containers: &str| {
            decode(&format!(r#"{{"Spec":{{"Pod":{{"Containers":{containers}}}}}}}"#)).app_version().to_owned()
        };
        let first = r#"[{"Env":["A=1","LAIN_APP_RELEASE_VERSION=a=b","LAIN_APP_RELEASE_VERSION","LAIN_APP_RELEASE_VERSION=1-f",
            "LAIN_APP_RELEASE_VERSION=2"]},{"Env":["LAIN_APP_RELEASE_VERSION=3"]}]"#;
        assert_eq!(version(first), "1-f");
        assert_eq!(version(r#"[{"Env":["LAIN_APP_RELEASE_VERSION=","LAIN_APP_RELEASE_VERSION=2"]}]"#), "");
        assert_eq!(version(r#"[{"Env":null},{"Env":["LAIN_APP_RELEASE_VERSION=3"]}]"#), "");
        assert_eq!(version("null"), "");
    }

    #[test]
    fn containers_meet_the_spec_of_their_place_or_an_empty_one() {
        let group = decode(
            r#"{"Spec":{"Pod":{"Containers":[{"Expose":80},{"Expose":81}]}},
                "Pods":[{"Containers":[{"Id":"a"},{"Id":"b"},{"Id":"c"}]},{"Containers":[{"Id":"d"}]},{}]}"#,
        );
        let pairs = |pod: usize| -> Vec<_> {
            group.containers(&group.pods[pod]).map(|(container, spec)| (&*container.id, spec.expose)).collect()
        };
        assert_eq!(pairs(0), [("a", 80), ("b", 81), ("c", 0)]);
        assert_eq!(pairs(1), [("d", 80)]);
        assert_eq!(pairs(2), []);
    }

    #[test]
    fn a_pod_lives_by_its_first_container() {
        let group = decode(
            r#"{"Pods":[{"Containers":[{"ContainerIp":"172.20.0.2"},{}]},{"Containers":[{},{"ContainerIp":"172.20.0.3"}]},
                {"Containers":[]},{"Containers":null}]}"#,
        );
        let ips: Vec<_> = group.pods.iter().map(Pod::ip).collect();
        assert_eq!(ips, ["172.20.0.2", "", "", ""]);
        assert_eq!(group.alive(), 1);
    }

    #[test]
    fn stream_ports_of_an_annotation() {
        let ports = |annotation: &str| -> Vec<(i64, i64)> {
            with_annotation(annotation).stream_ports().iter().map(|port| (port.listen, port.upstream)).collect()
        };
        let two =
            r#"{"mountpoint": [], "ports": [{"srcport": 9501, "dstport": 80, "proto": "tcp"}, {"srcport": 9500}]}"#;
        assert_eq!(ports(two), [(9501, 80), (9500, 0)]);
        assert_eq!(ports(r#"{"Ports": [{"SrcPort": 9500, "DSTPORT": 80}], "bad": "\ud800"}"#), [(9500, 80)]);
        let odd = r#"{"ports": [{"srcport": "9500"}, {"srcport": 9500.0}, {"dstport": 1}, null, 5, [], {"srcport": 9502, "dstport": "80"}]}"#;
        assert_eq!(ports(odd), [(9502, 0)]);
        for none in [
            "",
            "not json",
            "[]",
            "{}",
            "null",
            r#"{"ports": null}"#,
            r#"{"ports": 5}"#,
            r#"{"ports": {"srcport": 1}}"#,
        ] {
            assert_eq!(ports(none), [], "{none}");
        }
    }
}
