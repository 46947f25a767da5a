//! What each view shows of the documents, according to the model.
//!
//! Permissions are in the parent module.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    Granted, Model, Refused, is_secret,
    json::{array, escape, list, map, members, number, object, string, strings, text},
    matching,
};

const LOST: &str = "over half of the containers lost their IPs";

impl Model {
    pub(super) fn configwatcher(&self, granted: &Granted) -> Result<String, Refused> {
        let shown = matching(&self.config, &granted.key)?.into_iter();
        let shown = shown.filter(|(key, _)| granted.is_super || !is_secret(key));
        Ok(map(shown.map(|(key, value)| (key, string(value)))))
    }

    pub(super) fn procwatcher(&self, key: &str) -> Result<String, Refused> {
        let procs = matching(&self.groups, key)?.into_iter().map(|(_, group)| {
            let pods = list(group, "/Pods").iter().filter_map(|pod| {
                let container = list(pod, "/Containers").first()?;
                let env = list(container, "/Runtime/Config/Env").iter().filter_map(Value::as_str);
                let name = env.filter_map(|entry| entry.strip_prefix("LAIN_PROCNAME=")).next_back();
                Some(object(&[
                    ("InstanceNo", number(pod, "/InstanceNo")),
                    ("IP", string(text(container, "/ContainerIp"))),
                    ("Port", number(container, "/ContainerPort")),
                    ("ProcName", string(name.unwrap_or_default())),
                ]))
            });
            object(&[("proc", array(pods))])
        });
        Ok(array(procs))
    }

    pub(super) fn coreinfowatcher(&self, key: &str) -> Result<String, Refused> {
        let groups = matching(&self.groups, key)?.into_iter().map(|(_, group)| {
            let dependencies = || {
                array(list(group, "/Spec/Pod/Dependencies").iter().map(|dependency| {
                    object(&[
                        ("PodName", string(text(dependency, "/PodName"))),
                        ("Policy", number(dependency, "/Policy")),
                    ])
                }))
            };
            let pods = list(group, "/Pods").iter().map(|pod| {
                let containers = paired(group, pod).map(|(container, spec)| {
                    object(&[
                        ("Command", strings(spec, "/Command")),
                        ("ContainerId", string(text(container, "/Id"))),
                        ("ContainerIp", string(text(container, "/ContainerIp"))),
                        ("Cpu", number(spec, "/CpuLimit")),
                        ("Env", strings(spec, "/Env")),
                        ("Expose", number(spec, "/Expose")),
                        ("Image", string(text(spec, "/Image"))),
                        ("Memory", number(spec, "/MemoryLimit")),
                        ("NodeIp", string(text(container, "/NodeIp"))),
                        ("NodeName", string(text(container, "/NodeName"))),
                        ("Volumes", strings(spec, "/Volumes")),
                    ])
                });
                object(&[
                    ("Annotation", annotation(group)),
                    ("ContainerInfos", array(containers)),
                    ("Dependencies", dependencies()),
                    ("InstanceNo", number(pod, "/InstanceNo")),
                ])
            });
            (text(group, "/Spec/Name"), object(&[("PodInfos", array(pods))]))
        });
        Ok(map(groups))
    }

    pub(super) fn proxywatcher(&self, key: &str) -> Result<String, Refused> {
        let groups = matching(&self.groups, key)?.into_iter().map(|(_, group)| {
            let containers = list(group, "/Pods").iter().flat_map(|pod| paired(group, pod)).map(|(container, spec)| {
                object(&[
                    ("container_ip", string(text(container, "/ContainerIp"))),
                    ("container_port", number(spec, "/Expose")),
                ])
            });
            (text(group, "/Spec/Name"), object(&[("containers", array(containers))]))
        });
        Ok(map(groups))
    }

    pub(super) fn webprocs(&self, key: &str) -> Result<String, Refused> {
        let is_web = |group: &Value| {
            let parts: Vec<_> = text(group, "/Spec/Name").split('.').collect();
            parts.len() >= 3 && parts[parts.len() - 2] == "web"
        };
        let groups: Vec<_> = matching(&self.groups, key)?.into_iter().filter(|(_, group)| is_web(group)).collect();
        alive(groups.iter().map(|(_, group)| *group))?;
        Ok(map(groups.into_iter().map(|(_, group)| {
            let pods = list(group, "/Pods").iter().map(|pod| {
                let containers = paired(group, pod).map(|(container, spec)| {
                    object(&[
                        ("ContainerIp", string(text(container, "/ContainerIp"))),
                        ("Expose", number(spec, "/Expose")),
                    ])
                });
                object(&[("Annotation", annotation(group)), ("ContainerInfos", array(containers))])
            });
            (text(group, "/Spec/Name"), object(&[("PodInfos", array(pods))]))
        })))
    }

    pub(super) fn streamprocs(&self, key: &str) -> Result<String, Refused> {
        let groups = matching(&self.groups, key)?.into_iter().map(|(_, group)| group);
        let groups: Vec<_> = groups.filter(|group| !ports_of(group).is_empty()).collect();
        alive(groups.iter().copied())?;
        let mut apps = BTreeMap::<_, Vec<_>>::new();
        for group in groups {
            let name = text(group, "/Spec/Name");
            let mut pods: Vec<_> = list(group, "/Pods").iter().collect();
            pods.sort_by_key(|pod| pod["InstanceNo"].as_i64());
            let upstreams = array(pods.into_iter().map(|pod| {
                object(&[("Host", string(first_address(pod))), ("InstanceNo", number(pod, "/InstanceNo"))])
            }));
            let mut ports = ports_of(group);
            ports.sort_by_key(|(source, _)| *source);
            let services = array(ports.into_iter().map(|(source, destination)| {
                object(&[
                    ("UpstreamPort", destination.to_string()),
                    ("ListenPort", source.to_string()),
                    ("Send", string("")),
                    ("Expect", string("")),
                ])
            }));
            let proc = object(&[("Name", string(name)), ("Upstreams", upstreams), ("Services", services)]);
            apps.entry(text(group, "/Spec/Namespace")).or_default().push((name, proc));
        }
        Ok(map(apps.into_iter().map(|(app, mut procs)| {
            procs.sort_by_key(|(name, _)| *name);
            (app, array(procs.into_iter().map(|(_, proc)| proc)))
        })))
    }

    pub(super) fn ports(&self, key: &str) -> Result<String, Refused> {
        let mut ports: Vec<_> =
            matching(&self.groups, key)?.into_iter().flat_map(|(_, group)| ports_of(group)).collect();
        ports.sort_unstable_by_key(|(source, _)| *source);
        Ok(array(ports.into_iter().map(|(source, _)| source.to_string())))
    }

    pub(super) fn localprocs(&self, Granted { key, node, .. }: &Granted) -> Result<String, Refused> {
        let groups = matching(&self.groups, key)?.into_iter().filter_map(|(_, group)| {
            let here = |pod: &&Value| list(pod, "/Containers").iter().any(|one| text(one, "/NodeName") == *node);
            let pods: Vec<_> = list(group, "/Pods").iter().filter(here).collect();
            let infos = array(pods.iter().map(|pod| {
                object(&[
                    ("Annotation", annotation(group)),
                    ("AppVersion", string(app_version(group))),
                    ("InstanceNo", number(pod, "/InstanceNo")),
                ])
            }));
            (!pods.is_empty()).then(|| (text(group, "/Spec/Name"), object(&[("PodInfos", infos)])))
        });
        Ok(map(groups))
    }

    pub(super) fn backupspec(&self, key: &str) -> Result<String, Refused> {
        let groups = matching(&self.groups, key)?.into_iter().map(|(_, group)| {
            let pods = list(group, "/Pods").iter().map(|pod| {
                let containers = list(pod, "/Containers").iter().map(|container| {
                    object(&[
                        ("Id", string(text(container, "/Id"))),
                        ("Ip", string(text(container, "/ContainerIp"))),
                        ("NodeIp", string(text(container, "/NodeIp"))),
                        ("NodeName", string(text(container, "/NodeName"))),
                    ])
                });
                object(&[
                    ("Annotation", annotation(group)),
                    ("Containers", array(containers)),
                    ("InstanceNo", number(pod, "/InstanceNo")),
                ])
            });
            (text(group, "/Spec/Name"), array(pods))
        });
        Ok(map(groups))
    }

    pub(super) fn appswatcher(&self) -> String {
        let apps = self.groups.values().map(|group| text(group, "/Spec/Namespace"));
        map(apps.map(|app| (app, object(&[("Appname", string(app))]))))
    }

    /// The containers' own cache keys, each with its group, pod and container.
    fn rows(&self) -> BTreeMap<String, (&Value, &Value, &Value)> {
        let mut rows = BTreeMap::new();
        for group in self.groups.values() {
            for pod in list(group, "/Pods") {
                for container in list(pod, "/Containers").iter().filter(|container| !text(container, "/Id").is_empty())
                {
                    for node in ["/NodeName", "/NodeIp"] {
                        let key = format!("{}/{}", text(container, node), text(container, "/Id"));
                        rows.insert(key, (group, pod, container));
                    }
                }
            }
        }
        rows
    }

    pub(super) fn containers(&self, key: &str) -> Result<String, Refused> {
        let rows = self.rows();
        Ok(map(matching(&rows, key)?.into_iter().map(|(key, (group, pod, container))| {
            let row = object(&[
                ("app", string(text(group, "/Spec/Namespace"))),
                ("app_version", string(app_version(group))),
                ("proc", string(text(group, "/Spec/Name"))),
                ("nodename", string(text(container, "/NodeName"))),
                ("nodeip", string(text(container, "/NodeIp"))),
                ("ip", string(text(container, "/ContainerIp"))),
                ("port", number(container, "/ContainerPort")),
                ("instanceNo", number(pod, "/InstanceNo")),
            ]);
            (key, row)
        })))
    }

    pub(super) fn localspecquery(&self, key: &str) -> Result<String, Refused> {
        let rows = self.rows();
        let names: BTreeSet<_> = matching(&rows, key)?
            .into_iter()
            .map(|(_, (group, ..))| format!("{}/{}", text(group, "/Spec/Namespace"), text(group, "/Spec/Name")))
            .collect();
        Ok(array(names.iter().map(|name| string(name))))
    }

    pub(super) fn depends(&self, target: &str) -> Result<String, Refused> {
        let of_client = |client: &Value| {
            let containers = list(client, "/Pod/Containers").iter().map(|container| {
                object(&[
                    ("ContainerID", string(text(container, "/Id"))),
                    ("NodeIP", string(text(container, "/NodeIp"))),
                    ("IP", string(text(container, "/ContainerIp"))),
                    ("Port", number(container, "/ContainerPort")),
                ])
            });
            object(&[("Annotation", string(text(client, "/Spec/Annotation"))), ("Containers", array(containers))])
        };
        let of_node = |node| map(members(node).map(|(client, value)| (client, of_client(value))));
        let portals = matching(&self.portals, target)?.into_iter();
        Ok(map(portals.map(|(key, portal)| (key, map(members(portal).map(|(node, value)| (node, of_node(value))))))))
    }

    pub(super) fn nodes(&self, key: &str) -> Result<String, Refused> {
        // Parsed objects are sorted, because the feature that would prevent it is off.
        Ok(map(matching(&self.nodes, key)?.into_iter().map(|(key, node)| (key, escape(&node.to_string())))))
    }
}

/// The liveness rule.
fn alive<'a>(groups: impl Iterator<Item = &'a Value>) -> Result<(), Refused> {
    let pods: Vec<_> = groups.flat_map(|group| list(group, "/Pods")).collect();
    let alive = pods.iter().filter(|pod| !first_address(pod).is_empty()).count();
    if pods.is_empty() || 2 * alive < pods.len() { Err((500, LOST)) } else { Ok(()) }
}

fn first_address(pod: &Value) -> &str {
    list(pod, "/Containers").first().map_or("", |container| text(container, "/ContainerIp"))
}

/// Each container with its specification.
fn paired<'a>(group: &'a Value, pod: &'a Value) -> impl Iterator<Item = (&'a Value, &'a Value)> {
    let specs = list(group, "/Spec/Pod/Containers");
    list(pod, "/Containers").iter().enumerate().map(|(index, one)| (one, specs.get(index).unwrap_or(&Value::Null)))
}

fn app_version(group: &Value) -> &str {
    let env = group.pointer("/Spec/Pod/Containers/0").map_or(&[][..], |spec| list(spec, "/Env"));
    let versions = env.iter().filter_map(Value::as_str).filter_map(|entry| {
        let parts: Vec<_> = entry.split('=').collect();
        (parts.len() == 2 && parts[0] == "LAIN_APP_RELEASE_VERSION").then(|| parts[1])
    });
    versions.into_iter().next().unwrap_or_default()
}

/// The source and destination of each port in the annotation.
fn ports_of(group: &Value) -> Vec<(i64, i64)> {
    let parsed = serde_json::from_str::<Value>(text(group, "/Spec/Pod/Annotation")).unwrap_or_default();
    let ports = parsed.get("ports").and_then(Value::as_array).cloned().unwrap_or_default();
    let source = |port: &Value| port.get("srcport").and_then(Value::as_i64);
    let destination = |port: &Value| port.get("dstport").and_then(Value::as_i64).unwrap_or_default();
    ports.iter().filter_map(|port| Some((source(port)?, destination(port)))).collect()
}

fn annotation(group: &Value) -> String {
    string(text(group, "/Spec/Pod/Annotation"))
}
