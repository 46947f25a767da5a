//! Checks of every pod, with all values: no unnecessary rights, enough time to drain, and probes and variables that the
//! program has.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{all_documents, tools};

/// The paths of the relay's metrics port (`front/http/metrics_only.rs`).
const PROBED: [&str; 2] = ["/live", "/ready"];

/// Deployments of a set of documents.
fn deployments(documents: &[Value]) -> impl Iterator<Item = &Value> {
    documents.iter().filter(|document| document["kind"] == "Deployment")
}

/// All Deployments of all cases, with their origin.
fn all_deployments() -> Vec<(String, Value)> {
    let Some(tools) = tools() else { return Vec::new() };
    let all = all_documents(tools).into_iter().flat_map(|(name, documents)| {
        let found: Vec<_> = deployments(&documents).map(|found| (name.clone(), found.clone())).collect();
        assert!(!found.is_empty(), "{name}: there is no Deployment");
        found
    });
    all.map(|(name, deployment)| (format!("{name}: {}", deployment["metadata"]["name"]), deployment)).collect()
}

/// The pod of a Deployment, and its only container.
fn pod(deployment: &Value) -> (&Value, &Value) {
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["containers"].as_array().map(Vec::len), Some(1));
    (pod, &pod["containers"][0])
}

/// The variables of a container, by name.
pub(super) fn variables(container: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
    let all = container["env"].as_array().expect("variables").iter();
    all.filter_map(|variable| Some((text(&variable["name"])?, text(&variable["value"])?))).collect()
}

fn variable(container: &Value, name: &str) -> Option<String> {
    variables(container).into_iter().find_map(|(found, value)| (found == name).then_some(value))
}

#[test]
fn no_pod_has_a_right_that_it_does_not_need() {
    for (name, deployment) in all_deployments() {
        let (pod, container) = pod(&deployment);
        let of_pod = &pod["securityContext"];
        assert_eq!(of_pod["runAsNonRoot"], json!(true), "{name}");
        // A number, since a node cannot check whether a user name means root.
        assert!(of_pod["runAsUser"].as_u64().is_some_and(|user| user >= 10_000), "{name}");
        assert!(of_pod["runAsGroup"].as_u64().is_some_and(|group| group >= 10_000), "{name}");
        assert_eq!(of_pod["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        let of_container = &container["securityContext"];
        assert_eq!(of_container["readOnlyRootFilesystem"], json!(true), "{name}");
        assert_eq!(of_container["allowPrivilegeEscalation"], json!(false), "{name}");
        assert_eq!(of_container["capabilities"], json!({"drop": ["ALL"]}), "{name}");
        assert_eq!(pod["automountServiceAccountToken"], json!(false), "{name}");
        // Otherwise Kubernetes sets ETCD_RELAY_PORT and others for a Service called etcd-relay.
        assert_eq!(pod["enableServiceLinks"], json!(false), "{name}");
        for field in ["hostNetwork", "hostPID", "hostIPC"] {
            assert!(pod[field].is_null(), "{name}: {field}");
        }
        assert!(container["ports"].as_array().expect("ports").iter().all(|port| port["hostPort"].is_null()), "{name}");
        for volume in pod["volumes"].as_array().into_iter().flatten() {
            // The pod's user can read the files of Secrets through its group, and nobody else can.
            assert_eq!(volume["secret"]["defaultMode"], json!(0o440), "{name}");
            assert_eq!(of_pod["fsGroup"], of_pod["runAsGroup"], "{name}");
        }
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            // A file that is mounted alone would not be updated.
            assert!(mount["subPath"].is_null() && mount["readOnly"] == json!(true), "{name}: {mount}");
        }
        assert!(container["resources"]["requests"]["memory"].is_string(), "{name}");
        assert!(container["resources"]["limits"]["cpu"].is_null(), "{name}: a relay that is throttled delivers late");
    }
}

#[test]
fn a_pod_has_the_time_to_drain_and_no_two_of_a_deployment_drain_at_once() {
    for (name, deployment) in all_deployments() {
        let (pod, container) = pod(&deployment);
        let drain = variable(container, "ETCD_RELAY_DRAIN_TIME").expect("a drain time");
        let drain = humantime::parse_duration(&drain).expect("a time").as_secs();
        let pre_stop = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap_or(0);
        let grace = pod["terminationGracePeriodSeconds"].as_u64().expect("a grace period");
        assert!(grace >= pre_stop + drain + 5, "{name}: {grace} s for {pre_stop} s and {drain} s");
        let spec = &deployment["spec"];
        let update = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
        assert_eq!(spec["strategy"], update, "{name}");
        let pause = spec["minReadySeconds"].as_u64().expect("a pause");
        assert!(pause >= pre_stop + drain, "{name}: the next relay stops after {pause} s");
        // The API server rejects a deadline that is not longer.
        assert!(spec["progressDeadlineSeconds"].as_u64().expect("a deadline") > pause, "{name}");
    }
}

#[test]
fn evictions_take_one_relay_at_a_time_and_never_none() {
    let Some(tools) = tools() else { return };
    let mut budgets = 0;
    for (name, documents) in all_documents(tools) {
        for budget in documents.iter().filter(|document| document["kind"] == "PodDisruptionBudget") {
            budgets += 1;
            let spec = &budget["spec"];
            // With a minimum instead, a single relay could never be evicted.
            assert!(spec["minAvailable"].is_null() && spec["maxUnavailable"] != json!(0), "{name}: {spec}");
            assert!(!spec["maxUnavailable"].is_null(), "{name}: {spec}");
            assert_eq!(spec["unhealthyPodEvictionPolicy"], "AlwaysAllow", "{name}");
            assert_selects_all(&name, &spec["selector"]["matchLabels"], &documents);
        }
    }
    assert!(budgets > 0);
}

#[test]
fn services_policies_and_probes_lead_to_ports_that_the_relay_listens_on() {
    let Some(tools) = tools() else { return };
    for (name, documents) in all_documents(tools) {
        let mut ports = BTreeSet::new();
        for deployment in deployments(&documents) {
            let (_, container) = pod(deployment);
            for port in container["ports"].as_array().expect("ports") {
                let port_name = port["name"].as_str().expect("a name");
                let flag = format!("ETCD_RELAY_LISTEN_{}", port_name.to_uppercase());
                let url = variable(container, &flag).unwrap_or_else(|| panic!("{name}: {flag}"));
                assert!(url.ends_with(&format!("://:{}", port["containerPort"])), "{name}: {url}");
                ports.insert(port_name.to_owned());
            }
            for (probe, path) in [("startupProbe", "/live"), ("livenessProbe", "/live"), ("readinessProbe", "/ready")] {
                let get = &container[probe]["httpGet"];
                // A relay that waits for etcd is not ready, but must not be restarted.
                assert!(get["path"] == path && PROBED.contains(&path) && get["port"] == "metrics", "{name}: {get}");
            }
            // Probes and Prometheus use that port without TLS.
            let metrics = variable(container, "ETCD_RELAY_LISTEN_METRICS").expect("metrics");
            assert!(metrics.starts_with("http://"), "{name}: {metrics}");
        }
        for service in documents.iter().filter(|document| document["kind"] == "Service") {
            for port in service["spec"]["ports"].as_array().expect("ports") {
                assert!(ports.contains(port["targetPort"].as_str().expect("a name")), "{name}: {port}");
            }
            if service["metadata"]["labels"]["relay-zone"].is_null() {
                assert_selects_all(&name, &service["spec"]["selector"], &documents);
            }
        }
        for policy in documents.iter().filter(|document| document["kind"] == "NetworkPolicy") {
            let spec = &policy["spec"];
            let open = spec["ingress"]
                .as_array()
                .expect("rules")
                .iter()
                .flat_map(|rule| rule["ports"].as_array().expect("ports"));
            let open: BTreeSet<_> = open.map(|port| port["port"].as_str().expect("a name").to_owned()).collect();
            assert_eq!(open, ports, "{name}");
            assert_selects_all(&name, &spec["podSelector"]["matchLabels"], &documents);
            let ways: Vec<_> = spec["egress"]
                .as_array()
                .expect("rules")
                .iter()
                .flat_map(|rule| rule["ports"].as_array().into_iter().flatten())
                .collect();
            for deployment in deployments(&documents) {
                let (_, container) = pod(deployment);
                for url in variable(container, "ETCD_RELAY_ETCD").expect("etcd").split(',') {
                    let port: u64 =
                        url.trim_end_matches('/').rsplit_once(':').expect("a port").1.parse().expect("a port");
                    assert!(ways.iter().any(|way| way["port"] == json!(port)), "{name}: no way to {url}");
                }
            }
        }
    }
}

#[test]
fn every_variable_of_a_pod_is_one_of_serve() {
    let help = std::process::Command::new(env!("CARGO_BIN_EXE_etcd-relay")).args(["serve", "--help"]).output();
    let help = String::from_utf8(help.expect("it runs").stdout).expect("UTF-8");
    let known = |variable: &str| help.contains(&format!("[env: {variable}="));
    assert!(known("ETCD_RELAY_DRAIN_TIME") && !known("ETCD_RELAY_DRAIN"), "{help}");
    for (name, deployment) in all_deployments() {
        let (_, container) = pod(&deployment);
        assert_eq!(container["args"], json!(["serve"]), "{name}");
        for (variable, _) in variables(container) {
            assert!(known(&variable), "{name}: serve does not read {variable}");
        }
    }
}

#[test]
fn a_prefix_reaches_the_relay_as_it_was_written() {
    for (name, deployment) in all_deployments().into_iter().filter(|(name, _)| name.starts_with("everything")) {
        let (_, container) = pod(&deployment);
        // A comma in the prefix is escaped for the relay, and text that looks like a variable is escaped for
        // Kubernetes.
        let prefixes = variable(container, "ETCD_RELAY_PREFIX");
        assert_eq!(prefixes.as_deref(), Some(r"/app/,/a\,b/,/c/$$(POD_IP)/"), "{name}");
        let zone = deployment["metadata"]["labels"]["relay-zone"].as_str().expect("a zone").to_owned();
        assert_eq!(variable(container, "ETCD_RELAY_RESOLVER_PREFIX"), Some(format!("/relays/{zone}")), "{name}");
        assert_eq!(variable(container, "ETCD_RELAY_ADVERTISE_CLIENT_URL").as_deref(), Some("https://$(POD_IP):23790"));
    }
}

/// Fails if labels do not select the pods of each Deployment.
fn assert_selects_all(name: &str, selector: &Value, documents: &[Value]) {
    let selector = selector.as_object().expect("labels");
    assert!(!selector.is_empty(), "{name}");
    for deployment in deployments(documents) {
        let labels = &deployment["spec"]["template"]["metadata"]["labels"];
        assert!(selector.iter().all(|(label, value)| labels[label] == *value), "{name}: {selector:?} and {labels}");
        let own = deployment["spec"]["selector"]["matchLabels"].as_object().expect("labels");
        assert!(own.iter().all(|(label, value)| labels[label] == *value), "{name}: {own:?} and {labels}");
    }
}
