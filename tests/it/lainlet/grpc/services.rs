//! Lainlet's gRPC services through their generated clients with a common interface; replies have the form of HTTP's
//! JSON.
//!
//! Where the two APIs differ, a reply keeps its own form: values of nodes have a type, and an empty array may have been
//! `null`; see [`as_grpc_has_it`].

use etcd_relay::pb::lainlet::{self as pb, node_info::value::Type};
use futures_util::{StreamExt as _, future::BoxFuture, stream::BoxStream};
use serde_json::{Map, Value, json};
use tokio::time::timeout;
use tonic::{
    Request, Response, Status, Streaming,
    metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap},
    transport::Channel,
};

use crate::support::{kv::MAX_MESSAGE, patience};

/// A client at one address.
#[derive(Clone, Debug)]
pub(super) struct Grpc {
    channel: Channel,
    metadata: MetadataMap,
}

/// A reply in the form of HTTP's JSON.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reply {
    pub(super) data: Value,
    /// The revision in its metadata.
    pub(super) revision: Option<i64>,
}

/// A stream of replies.
pub(super) struct Watch {
    /// The revision in its metadata.
    pub(super) revision: Option<i64>,
    replies: BoxStream<'static, Result<Value, Status>>,
}

impl Grpc {
    pub(super) fn over(channel: Channel) -> Self {
        Self { channel, metadata: MetadataMap::new() }
    }

    /// The same client with additional metadata in each request.
    pub(super) fn with(&self, key: &str, value: impl ToString) -> Self {
        let mut with = self.clone();
        let key = AsciiMetadataKey::from_bytes(key.as_bytes()).expect("a metadata key");
        with.metadata.insert(key, AsciiMetadataValue::try_from(value.to_string()).expect("a metadata value"));
        with
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Calls `Get` of a service with this text in the request.
    pub(super) async fn get(&self, service: &str, text: &str) -> Result<Reply, Status> {
        let answer = get(service, self.channel(), self.request(text));
        timeout(patience(), answer).await.unwrap_or_else(|_| panic!("{service}.Get({text}) is not answered"))
    }

    /// Calls `Watch` of a service with this text in the request.
    pub(super) async fn watch(&self, service: &str, text: &str) -> Result<Watch, Status> {
        let answer = watch(service, self.channel(), self.request(text));
        timeout(patience(), answer).await.unwrap_or_else(|_| panic!("{service}.Watch({text}) is not answered"))
    }

    fn request(&self, text: &str) -> Request<String> {
        Request::from_parts(self.metadata.clone(), Default::default(), text.to_owned())
    }
}

impl Watch {
    /// The next reply, or the error that ended the stream; `None` if it ended with OK.
    pub(super) async fn next(&mut self) -> Option<Result<Value, Status>> {
        timeout(patience(), self.replies.next()).await.expect("a reply in time")
    }

    /// The next reply, which must come.
    pub(super) async fn reply(&mut self) -> Value {
        self.next().await.expect("no end with OK").expect("no end with an error")
    }

    /// The next reply, if it is already here.
    pub(super) fn now(&mut self) -> Option<Result<Value, Status>> {
        use futures_util::FutureExt as _;
        self.replies.next().now_or_never().flatten()
    }
}

/// A reply whose form in HTTP's JSON is known.
trait Data {
    fn data(self) -> Value;
}

/// For each service: its client, its request with one text, and its methods.
macro_rules! services {
    (watched: $($service:literal $client:path, $request:expr;)+ got: $($other:literal $other_client:path, $other_request:expr;)+) => {
        /// Those with `Get` and `Watch`.
        pub(super) const WATCHED: &[&str] = &[$($service),+];

        fn get(service: &str, channel: Channel, request: Request<String>) -> BoxFuture<'static, Result<Reply, Status>> {
            match service {
                $($service => Box::pin(async move {
                    <$client>::new(channel).max_decoding_message_size(MAX_MESSAGE).get(request.map($request)).await.map(reply)
                }),)+
                $($other => Box::pin(async move {
                    <$other_client>::new(channel).get(request.map($other_request)).await.map(reply)
                }),)+
                _ => panic!("no service {service}"),
            }
        }

        fn watch(service: &str, channel: Channel, request: Request<String>) -> BoxFuture<'static, Result<Watch, Status>> {
            match service {
                $($service => Box::pin(async move {
                    <$client>::new(channel).max_decoding_message_size(MAX_MESSAGE).watch(request.map($request)).await.map(stream)
                }),)+
                _ => panic!("no service {service} that can be watched"),
            }
        }
    };
}

services! {
    watched:
    "Apps" pb::apps_client::AppsClient<Channel>, |_| pb::AppsRequest {};
    "Backupctl" pb::backupctl_client::BackupctlClient<Channel>, |appname| pb::BackupctlRequest { appname };
    "Config" pb::config_client::ConfigClient<Channel>, |target| pb::ConfigRequest { target };
    "Containers" pb::containers_client::ContainersClient<Channel>, |nodename| pb::ContainersRequest { nodename };
    "Coreinfo" pb::coreinfo_client::CoreinfoClient<Channel>, |appname| pb::CoreinfoRequest { appname };
    "Depends" pb::depends_client::DependsClient<Channel>, |target| pb::DependsRequest { target };
    "Nodes" pb::nodes_client::NodesClient<Channel>, |name| pb::NodesRequest { name };
    "Podgroup" pb::podgroup_client::PodgroupClient<Channel>, |appname| pb::PodgroupRequest { appname };
    "Proxy" pb::proxy_client::ProxyClient<Channel>, |appname| pb::ProxyRequest { appname };
    "RebellionLocalprocs" pb::rebellion_localprocs_client::RebellionLocalprocsClient<Channel>,
        |appname| pb::RebellionLocalprocsRequest { appname };
    "StreamrouterPorts" pb::streamrouter_ports_client::StreamrouterPortsClient<Channel>,
        |appname| pb::StreamrouterPortsRequest { appname };
    "StreamrouterStreamprocs" pb::streamrouter_streamprocs_client::StreamrouterStreamprocsClient<Channel>,
        |appname| pb::StreamrouterStreamprocsRequest { appname };
    "WebrouterWebprocs" pb::webrouter_webprocs_client::WebrouterWebprocsClient<Channel>,
        |appname| pb::WebrouterWebprocsRequest { appname };
    got:
    "Appname" pb::appname_client::AppnameClient<Channel>, |ip| pb::AppnameRequest { ip };
    "Localspec" pb::localspec_client::LocalspecClient<Channel>, |nodeip| pb::LocalspecRequest { nodeip };
}

/// The service and the text for the same request as this URI; `None` if there is no such service.
pub(super) fn of_uri(uri: &str) -> Option<(&'static str, String)> {
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let (service, parameter) = match path.trim_end_matches('/') {
        "/appname" => ("Appname", "ip"),
        "/v2/appswatcher" => ("Apps", ""),
        "/v2/backupspec" => ("Backupctl", "appname"),
        "/v2/configwatcher" => ("Config", "target"),
        "/v2/containers" => ("Containers", "nodename"),
        "/v2/coreinfowatcher" => ("Coreinfo", "appname"),
        "/v2/depends" => ("Depends", "target"),
        "/v2/localspecquery" => ("Localspec", "nodeip"),
        "/v2/nodes" => ("Nodes", "name"),
        "/v2/procwatcher" => ("Podgroup", "appname"),
        "/v2/proxywatcher" => ("Proxy", "appname"),
        "/v2/rebellion/localprocs" => ("RebellionLocalprocs", "appname"),
        "/v2/streamrouter/ports" => ("StreamrouterPorts", "appname"),
        "/v2/streamrouter/streamprocs" => ("StreamrouterStreamprocs", "appname"),
        "/v2/webrouter/webprocs" => ("WebrouterWebprocs", "appname"),
        _ => return None,
    };
    let text = query.split('&').filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == parameter);
    Some((service, text.map_or_else(String::new, |(_, text)| text.to_owned())))
}

/// HTTP's answer in the form of a gRPC reply: `null` arrays are empty, and a node's members are texts or maps of texts.
pub(super) fn as_grpc_has_it(service: &str, answer: Value) -> Value {
    fn without_null(value: Value) -> Value {
        match value {
            Value::Null => json!([]),
            Value::Array(items) => items.into_iter().map(without_null).collect(),
            Value::Object(members) => members.into_iter().map(|(name, value)| (name, without_null(value))).collect(),
            value => value,
        }
    }
    fn text(value: Value) -> String {
        if let Value::String(text) = value { text } else { value.to_string() }
    }
    fn typed(value: Value) -> Value {
        match value {
            Value::Object(map) => json!({ "MAP": object(map, |value| text(value).into()) }),
            value => json!({ "STRING": text(value) }),
        }
    }
    match (service, answer) {
        ("Nodes", Value::Object(nodes)) => nodes
            .into_iter()
            .map(|(key, node)| {
                let Value::Object(members) = node else { panic!("{key} is no object: {node}") };
                (key, members.into_iter().map(|(name, value)| (name, typed(value))).collect::<Value>())
            })
            .collect(),
        (_, answer) => without_null(answer),
    }
}

fn reply<T: Data>(response: Response<T>) -> Reply {
    Reply { revision: revision(response.metadata()), data: response.into_inner().data() }
}

fn stream<T: Data + Send + 'static>(response: Response<Streaming<T>>) -> Watch {
    let revision = revision(response.metadata());
    Watch { revision, replies: response.into_inner().map(|reply| reply.map(Data::data)).boxed() }
}

/// The revision in an answer's metadata.
pub(super) fn revision(metadata: &MetadataMap) -> Option<i64> {
    metadata.get("x-etcd-index").map(|text| text.to_str().ok().and_then(|text| text.parse().ok()).expect("a revision"))
}

fn object<V>(map: impl IntoIterator<Item = (String, V)>, value: impl Fn(V) -> Value) -> Value {
    Value::Object(map.into_iter().map(|(key, item)| (key, value(item))).collect::<Map<_, _>>())
}

fn array<V>(list: impl IntoIterator<Item = V>, value: impl Fn(V) -> Value) -> Value {
    list.into_iter().map(value).collect()
}

impl Data for pb::AppnameReply {
    fn data(self) -> Value {
        json!(self.data)
    }
}

impl Data for pb::AppsReply {
    fn data(self) -> Value {
        object(self.data, |app| json!({ "Appname": app.appname }))
    }
}

impl Data for pb::BackupctlReply {
    fn data(self) -> Value {
        let container = |c: pb::ContainerForBackupctl| json!({ "Id": c.id, "Ip": c.ip, "NodeIp": c.node_ip, "NodeName": c.node_name });
        let pod = |pod: pb::PodInfoForBackupctl| {
            let containers = array(pod.containers, container);
            json!({ "Annotation": pod.annotation, "Containers": containers, "InstanceNo": pod.instance_no })
        };
        object(self.data, |list| array(list.pods, pod))
    }
}

impl Data for pb::ConfigReply {
    fn data(self) -> Value {
        json!(self.data)
    }
}

impl Data for pb::ContainersReply {
    fn data(self) -> Value {
        object(self.data, |info| {
            json!({
                "app": info.app_name, "app_version": info.app_version, "proc": info.proc_name, "nodename": info.node_name,
                "nodeip": info.node_ip, "ip": info.ip, "port": info.port, "instanceNo": info.instance_no,
            })
        })
    }
}

impl Data for pb::CoreinfoReply {
    fn data(self) -> Value {
        let container = |c: pb::Container| {
            json!({
                "Command": c.command, "ContainerId": c.id, "ContainerIp": c.ip, "Cpu": c.cpu, "Env": c.env,
                "Expose": c.expose, "Image": c.image, "Memory": c.memory, "NodeIp": c.node_ip, "NodeName": c.node_name,
                "Volumes": c.volumes,
            })
        };
        let dependency = |d: pb::Dependency| json!({ "PodName": d.pod_name, "Policy": d.policy });
        let pod = |pod: pb::PodInfo| {
            json!({
                "Annotation": pod.annotation, "ContainerInfos": array(pod.containers, container),
                "Dependencies": array(pod.dependencies, dependency), "InstanceNo": pod.instance_no,
            })
        };
        object(self.data, |info| json!({ "PodInfos": array(info.pod_infos, pod) }))
    }
}

impl Data for pb::DependsReply {
    fn data(self) -> Value {
        let container = |c: pb::ContainerInfo| json!({ "ContainerID": c.container_id, "NodeIP": c.node_ip, "IP": c.ip, "Port": c.port });
        let item = |item: pb::DependsItem| json!({ "Annotation": item.annotation, "Containers": array(item.containers, container) });
        object(self.data, |portal| object(portal.nodes, |node| object(node.apps, item)))
    }
}

impl Data for pb::LocalspecReply {
    fn data(self) -> Value {
        assert_eq!((self.local_ip.as_str(), self.ip.as_str()), ("", ""), "these are never set");
        json!(self.data)
    }
}

impl Data for pb::NodesReply {
    fn data(self) -> Value {
        object(self.data, |node| {
            object(node.v, |value| match value.vtype() {
                Type::String if value.mval.is_empty() => json!({ "STRING": value.sval }),
                Type::Map if value.sval.is_empty() => json!({ "MAP": value.mval }),
                _ => panic!("a value of two types: {value:?}"),
            })
        })
    }
}

impl Data for pb::PodgroupReply {
    fn data(self) -> Value {
        let pod = |pod: pb::Pod| json!({ "InstanceNo": pod.instance_no, "IP": pod.ip, "Port": pod.port, "ProcName": pod.proc_name });
        array(self.data, |group| json!({ "proc": array(group.pods, pod) }))
    }
}

impl Data for pb::ProxyReply {
    fn data(self) -> Value {
        let container =
            |c: pb::ContainerForProxy| json!({ "container_ip": c.container_ip, "container_port": c.container_port });
        object(self.data, |info| json!({ "containers": array(info.containers, container) }))
    }
}

impl Data for pb::RebellionLocalprocsReply {
    fn data(self) -> Value {
        let pod = |pod: pb::PodInfoForRebellion| json!({ "Annotation": pod.annotation, "AppVersion": pod.app_version, "InstanceNo": pod.instance_no });
        object(self.data, |info| json!({ "PodInfos": array(info.pod_infos, pod) }))
    }
}

impl Data for pb::StreamrouterPortsReply {
    fn data(self) -> Value {
        json!(self.data)
    }
}

impl Data for pb::StreamrouterStreamprocsReply {
    fn data(self) -> Value {
        let upstream = |u: pb::StreamUpstream| json!({ "Host": u.host, "InstanceNo": u.instance_no });
        let service = |s: pb::StreamService| json!({ "UpstreamPort": s.upstream_port, "ListenPort": s.listen_port, "Send": s.send, "Expect": s.expect });
        let one = |one: pb::StreamProc| {
            let (upstreams, services) = (array(one.upstreams, upstream), array(one.services, service));
            json!({ "Name": one.name, "Upstreams": upstreams, "Services": services })
        };
        object(self.data, |list| array(list.procs, one))
    }
}

impl Data for pb::WebrouterWebprocsReply {
    fn data(self) -> Value {
        let container = |c: pb::ContainerForWebrouter| json!({ "ContainerIp": c.ip, "Expose": c.expose });
        let pod = |pod: pb::PodInfoForWebrouter| json!({ "Annotation": pod.annotation, "ContainerInfos": array(pod.containers, container) });
        object(self.data, |info| json!({ "PodInfos": array(info.pod_infos, pod) }))
    }
}
