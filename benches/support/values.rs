//! The JSON of LAIN's orchestrator: the values of pod groups, portals and nodes, with all members in their usual order.
//!
//! The content is in `cluster`, the only caller. Always holds: `<`, `>` and `&` are escaped like in Go's encoder. A
//! container's `Runtime` has 3 to 5 KB like the output of docker's inspection.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::{Value, json};

/// Go's zero time.
pub const NEVER: &str = "0001-01-01T00:00:00Z";

/// The value as etcd holds it.
pub fn text<T: Serialize>(value: &T) -> String {
    let text = serde_json::to_string(value).expect("text, numbers and maps with text keys only");
    if !text.contains(['<', '>', '&']) {
        return text;
    }
    text.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

/// A pod group.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PodGroup<'a> {
    pub spec: Spec<'a>,
    pub prev_state: Vec<PrevState<'a>>,
    pub pods: Vec<Pod<'a>>,
    pub healthst: u8,
    pub state: u8,
    #[serde(rename = "OOMkilled")]
    pub oom_killed: bool,
    pub last_error: &'a str,
    pub updated_at: &'a str,
}

/// The specification of a pod group.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Spec<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
    pub version: u32,
    pub created_at: &'a str,
    pub updated_at: &'a str,
    pub pod: PodSpec<'a>,
    pub num_instances: usize,
    pub restart_policy: u8,
}

/// The specification of an instance.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PodSpec<'a> {
    pub name: Cow<'a, str>,
    pub namespace: &'a str,
    pub version: u32,
    pub created_at: &'a str,
    pub updated_at: &'a str,
    pub network: Cow<'a, str>,
    pub containers: Vec<ContainerSpec<'a>>,
    pub filters: Vec<String>,
    pub labels: Value,
    pub dependencies: Vec<Dependency<'a>>,
    pub annotation: &'a str,
    pub stateful: bool,
    pub setup_time: u32,
    pub kill_timeout: u32,
    pub prev_state: PrevState<'a>,
    pub health_config: Value,
}

/// A portal that the app uses.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Dependency<'a> {
    pub pod_name: &'a str,
    pub policy: u8,
}

/// The earlier place of an instance.
#[derive(Serialize)]
pub struct PrevState<'a> {
    #[serde(rename = "NodeName")]
    pub node_name: &'a str,
    #[serde(rename = "IPs")]
    pub ips: Option<Vec<&'a str>>,
}

/// The specification of a container.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerSpec<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
    pub version: u32,
    pub created_at: &'a str,
    pub updated_at: &'a str,
    pub image: String,
    pub env: &'a [String],
    pub user: &'a str,
    pub working_dir: &'a str,
    pub dns_search: Vec<String>,
    pub volumes: &'a [&'a str],
    pub system_volumes: Vec<&'a str>,
    pub cloud_volumes: Vec<Value>,
    pub command: &'a [&'a str],
    pub entrypoint: Option<Vec<&'a str>>,
    pub cpu_limit: u32,
    pub memory_limit: u64,
    pub expose: u16,
    pub log_config: Value,
}

/// A running instance.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Pod<'a> {
    pub instance_no: usize,
    pub containers: Vec<Container<'a>>,
    pub healthst: u8,
    pub state: u8,
    #[serde(rename = "OOMkilled")]
    pub oom_killed: bool,
    pub last_error: &'a str,
    pub updated_at: &'a str,
    pub target_state: u8,
    pub drift_count: u32,
    pub restart_count: u32,
    pub restart_at: &'a str,
}

/// A running container.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Container<'a> {
    pub id: &'a str,
    pub runtime: Value,
    pub node_name: &'a str,
    pub node_ip: &'a str,
    pub container_ip: &'a str,
    pub node_port: u16,
    pub container_port: u16,
    pub protocol: &'a str,
}

/// A portal of one client app on one node.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PortalPod<'a> {
    pub ref_count: u32,
    pub verify_time: &'a str,
    pub spec: PodSpec<'a>,
    pub pod: Pod<'a>,
}

/// The parts of docker's inspection of a container that differ between containers.
pub struct Inspection<'a> {
    pub app: &'a str,
    pub pod_name: &'a str,
    pub namespace: &'a str,
    pub network: &'a str,
    pub instance: usize,
    pub index: usize,
    pub version: u32,
    pub image: String,
    pub image_id: &'a str,
    pub env: &'a [String],
    pub command: &'a [&'a str],
    pub volumes: &'a [&'a str],
    pub annotation: &'a str,
    pub memory: u64,
    pub expose: u16,
    pub id: &'a str,
    pub swarm_id: &'a str,
    pub pid: u32,
    pub started: &'a str,
    pub ip: &'a str,
    pub node_name: &'a str,
    pub node_ip: &'a str,
}

impl Inspection<'_> {
    /// The value of `Runtime`.
    pub fn value(&self) -> Value {
        let Self { id, pod_name, namespace, instance, .. } = self;
        let root = format!("/data/docker/containers/{id}");
        let port = format!("{}/tcp", self.expose);
        let mut env = self.env.to_vec();
        env.extend([
            format!("DEPLOYD_POD_INSTANCE_NO={instance}"),
            format!("DEPLOYD_POD_NAME={pod_name}"),
            format!("DEPLOYD_POD_NAMESPACE={namespace}"),
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        ]);
        let binds: Vec<_> = self
            .volumes
            .iter()
            .map(|volume| format!("/data/lain/volumes/{namespace}/{pod_name}/{instance}{volume}:{volume}"))
            .chain(["/etc/localtime:/etc/localtime:ro".to_owned()])
            .collect();
        let exposed = |value: Value| if self.expose == 0 { json!({}) } else { json!({ &port: value }) };
        let config = json!({
            "AttachStderr": false, "AttachStdin": false, "AttachStdout": false, "Cmd": self.command,
            "Domainname": "", "Entrypoint": null, "Env": env, "ExposedPorts": exposed(json!({})),
            "Hostname": &id[..12], "Image": self.image,
            "Labels": {
                "cc.bdp.lain.deployd.annotation": self.annotation,
                "cc.bdp.lain.deployd.container_index": self.index.to_string(),
                "cc.bdp.lain.deployd.drift_count": "0",
                "cc.bdp.lain.deployd.instance_no": instance.to_string(),
                "cc.bdp.lain.deployd.pg_name": pod_name,
                "cc.bdp.lain.deployd.pg_namespace": namespace,
                "cc.bdp.lain.deployd.version": self.version.to_string(),
                "com.docker.swarm.id": self.swarm_id,
            },
            "MacAddress": "", "NetworkDisabled": false, "OnBuild": null, "OpenStdin": false, "PortSpecs": null,
            "StdinOnce": false, "Tty": false, "User": "", "VolumeDriver": "",
            "Volumes": self.volumes.iter().map(|volume| ((*volume).to_owned(), json!({}))).collect::<serde_json::Map<_, _>>(),
            "WorkingDir": "",
        });
        let host_config = json!({
            "Binds": binds, "CapAdd": null, "CapDrop": null, "ContainerIDFile": "", "Dns": [],
            "DnsSearch": [format!("{}.lain", self.app)], "ExtraHosts": null, "IpcMode": "", "Links": null,
            "LxcConf": null, "NetworkMode": self.network, "PidMode": "",
            "PortBindings": exposed(json!([{"HostIp": "", "HostPort": ""}])),
            "Privileged": false, "PublishAllPorts": false, "ReadonlyRootfs": false,
            "RestartPolicy": {"MaximumRetryCount": 0, "Name": ""}, "SecurityOpt": null, "VolumesFrom": null,
            "LogConfig": {"Type": "syslog", "Config": {"syslog-address": format!("tcp://{}:8178", self.node_ip)}},
            "CpuShares": 0, "Memory": self.memory, "CgroupParent": "", "BlkioWeight": 0, "BlkioWeightDevice": null,
            "BlkioDeviceReadBps": [], "BlkioDeviceWriteBps": [], "BlkioDeviceReadIOps": [],
            "BlkioDeviceWriteIOps": [], "CpuPeriod": 1_000_000, "CpuQuota": 1_000_000, "CpusetCpus": "",
            "CpusetMems": "", "Devices": [], "DiskQuota": 0, "KernelMemory": 0, "MemoryReservation": 0,
            "MemorySwap": self.memory, "MemorySwappiness": 0, "OomKillDisable": false, "PidsLimit": 0,
            "Ulimits": null, "CpuCount": 0, "CpuPercent": 0, "IOMaximumIOps": 0, "IOMaximumBandwidth": 0,
        });
        let network = json!({
            "Bridge": "", "Gateway": "", "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0, "IPAddress": "",
            "IPPrefixLen": 0, "IPv6Gateway": "", "LinkLocalIPv6Address": "", "LinkLocalIPv6PrefixLen": 0,
            "MacAddress": "", "Ports": exposed(Value::Null),
            "Networks": {self.network: {"Gateway": "", "IPAddress": self.ip}},
        });
        let state = json!({
            "Dead": false, "Error": "", "ExitCode": 0, "FinishedAt": NEVER, "OOMKilled": false, "Paused": false,
            "Pid": self.pid, "Restarting": false, "Running": true, "StartedAt": self.started, "Health": null,
        });
        let node = json!({
            "Name": self.node_name, "ID": &self.swarm_id[..12], "Addr": format!("{}:2375", self.node_ip),
            "IP": self.node_ip, "Cpus": 8, "Memory": 16_657_661_952_u64,
            "Labels": {"group": "default", "storagedriver": "devicemapper"},
        });
        json!({
            "AppArmorProfile": "",
            "Args": [],
            "Config": config,
            "Created": self.started,
            "Driver": "devicemapper",
            "ExecDriver": "",
            "ExecIDs": null,
            "GraphDriver": {"Data": {"DeviceId": (self.pid % 997).to_string()}, "Name": "devicemapper"},
            "HostConfig": host_config,
            "HostnamePath": format!("{root}/hostname"),
            "HostsPath": format!("{root}/hosts"),
            "Id": id,
            "Image": format!("sha256:{}", self.image_id),
            "LogPath": "",
            "MountLabel": "",
            "Name": format!("/{pod_name}.v{}-i{instance}-d0", self.version),
            "NetworkSettings": network,
            "Path": self.command.first(),
            "ProcessLabel": "",
            "ResolvConfPath": format!("{root}/resolv.conf"),
            "RestartCount": 0,
            "State": state,
            "Volumes": null,
            "VolumesRW": null,
            "Node": node,
        })
    }
}
