//! [`Portal`]: gives client apps access to a service, with a pod for each client on each node, below
//! `/lain/deployd/depends/pods/`.

use std::collections::BTreeMap;

use serde::Deserializer;

use super::read::{Read, Trail, object};

/// A portal.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Portal {
    /// By node name, then by client app.
    pub(crate) nodes: BTreeMap<Box<str>, BTreeMap<Box<str>, Client>>,
}

impl Read for Portal {
    fn read<'de, D: Deserializer<'de>>(from: D, trail: &Trail) -> Result<Self, D::Error> {
        Read::read(from, trail).map(|nodes| Self { nodes })
    }
}

impl Portal {
    /// The containers of all its pods.
    pub(crate) fn containers(&self) -> impl Iterator<Item = &PortalContainer> {
        self.nodes.values().flat_map(BTreeMap::values).flat_map(|client| &client.pod.containers)
    }
}

/// A client app's part of the portal on one node.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Client {
    pub(crate) spec: PortalSpec,
    pub(crate) pod: PortalPod,
}
object!(Client { "Spec" => spec, "Pod" => pod });

/// The specification of the pod.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct PortalSpec {
    /// JSON as text with the service's name, passed on unchanged.
    pub(crate) annotation: Box<str>,
}
object!(PortalSpec { "Annotation" => annotation });

/// The pod.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct PortalPod {
    pub(crate) containers: Box<[PortalContainer]>,
}
object!(PortalPod { "Containers" => containers });

/// A container of the pod.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct PortalContainer {
    pub(crate) id: Box<str>,
    pub(crate) node_ip: Box<str>,
    pub(crate) container_ip: Box<str>,
    pub(crate) container_port: i64,
}
object!(PortalContainer {
    "Id" => id,
    "NodeIp" => node_ip,
    "ContainerIp" => container_ip,
    "ContainerPort" => container_port,
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::document::Document as _;

    fn decode(json: &str) -> Portal {
        Portal::decode(json.as_bytes()).unwrap_or_else(|error| panic!("{json}: {error}"))
    }

    #[test]
    fn all_that_is_read() {
        let portal = decode(
            r#"{"n2":{"b":{"RefCount":1,"Spec":{"Annotation":"x","Name":"n"},"Pod":{"InstanceNo":0,"Containers":
                [{"Id":"ff","NodeName":"n2","NodeIp":"10.0.0.2","ContainerIp":"172.20.0.2","ContainerPort":3306}]}},"a":null},
                "n1":{},"n0":null}"#,
        );
        let container = PortalContainer {
            id: "ff".into(),
            node_ip: "10.0.0.2".into(),
            container_ip: "172.20.0.2".into(),
            container_port: 3306,
        };
        assert_eq!(portal.containers().collect::<Vec<_>>(), [&container]);
        let client =
            Client { spec: PortalSpec { annotation: "x".into() }, pod: PortalPod { containers: [container].into() } };
        let on_n2 = BTreeMap::from([("a".into(), Client::default()), ("b".into(), client)]);
        let nodes = [("n0".into(), BTreeMap::new()), ("n1".into(), BTreeMap::new()), ("n2".into(), on_n2)];
        assert_eq!(portal.nodes, BTreeMap::from(nodes));
    }

    #[test]
    fn times_and_counts_make_no_difference() {
        let one = decode(r#"{"n":{"a":{"RefCount":1,"VerifyTime":"2018-06-08T10:03:32+08:00"}}}"#);
        assert_eq!(one, decode(r#"{"n":{"a":{"RefCount":"2"}}}"#));
    }

    #[test]
    fn null_is_an_empty_portal() {
        assert_eq!(decode("null"), Portal::default());
        assert_eq!(decode("{}"), Portal::default());
    }

    #[test]
    fn the_last_of_repeated_names_counts() {
        let portal = decode(r#"{"n":{"a":{},"b":{}},"n":{"c":{}}}"#);
        assert_eq!(portal.nodes["n"].keys().map(|client| &**client).collect::<Vec<_>>(), ["c"]);
    }

    #[test]
    fn an_error_does_not_show_the_names_in_the_value() {
        let json = br#"{"secret":{"hidden":{"Pod":{"Containers":[{"ContainerPort":1.5}]}}}}"#;
        let error = Portal::decode(json).expect_err("refused").to_string();
        assert!(error.starts_with("wrong type: *.*.Pod.Containers[0]"), "{error}");
    }
}
