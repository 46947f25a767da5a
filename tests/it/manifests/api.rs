//! A real kube-apiserver accepts all of deploy/kubernetes. This tests its schemas, its validation and its admission,
//! which enforces the profile `restricted`.
//!
//! `make kubernetes-api` builds the server and runs this; `make test` runs it if the server is built already. Not here:
//! controllers and kubelets, so no pod runs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use rcgen::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{CASES, documents, kubernetes, render, text, tools};
use crate::support::{etcd::Etcd, eventually, free_port, process::Process};

/// An API server over its own etcd, and its clients.
struct Api {
    folder: TempDir,
    tools: &'static Path,
    _server: Process,
    _etcd: Etcd,
}

impl Api {
    async fn start(program: &Path, tools: &'static Path) -> Self {
        let etcd = Etcd::start().await;
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).expect("a file");
            path.display().to_string()
        };
        let key = KeyPair::generate().expect("a key");
        let port = free_port();
        let private = write("accounts.key", &key.serialize_pem());
        let public = write("accounts.pub", &key.public_key_pem());
        let tokens = write("tokens.csv", "secret,admin,admin,system:masters\n");
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": format!("https://127.0.0.1:{port}"), "insecure-skip-tls-verify": true}}],
            "users": [{"name": "test", "user": {"token": "secret"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        write("kubeconfig", &kubeconfig.to_string());
        let command = [
            program.display().to_string(),
            format!("--etcd-servers={}", etcd.endpoint()),
            format!("--cert-dir={}", folder.path().join("certificates").display()),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            "--service-cluster-ip-range=10.0.0.0/16".to_owned(),
            "--service-account-issuer=https://kubernetes".to_owned(),
            format!("--service-account-signing-key-file={private}"),
            format!("--service-account-key-file={public}"),
            format!("--token-auth-file={tokens}"),
            "--authorization-mode=RBAC".to_owned(),
        ];
        let server = Process::spawn("kube-apiserver", &command, &[], &folder.path().join("server.log"));
        let api = Self { folder, tools, _server: server, _etcd: etcd };
        eventually("kube-apiserver is ready", async || {
            api.kubectl(&["get", "--raw=/readyz"]).status.success().then_some(())
        })
        .await;
        api
    }

    /// Runs `kubectl` or `helm` as the administrator, in the folder of the repository.
    fn run(&self, tool: &str, args: &[&str]) -> Output {
        let home = self.folder.path();
        Command::new(self.tools.join(tool))
            .args(args)
            .current_dir(super::root())
            .env("KUBECONFIG", home.join("kubeconfig"))
            .env("HOME", home)
            .output()
            .expect("it runs")
    }

    fn kubectl(&self, args: &[&str]) -> Output {
        self.run("kubectl", args)
    }

    /// Must succeed without a warning. Returns the output.
    fn must(&self, tool: &str, args: &[&str]) -> String {
        let output = self.run(tool, args);
        let said = text(output.stderr);
        assert!(output.status.success() && !said.contains("Warning:"), "{tool} {args:?}: {said}");
        text(output.stdout)
    }

    /// The path of a file with this text.
    fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, text).expect("a file");
        path.display().to_string()
    }

    /// Validates a change without making it.
    ///
    /// On the server, since a board is too long for the annotation in which the client keeps the last applied
    /// configuration.
    fn try_apply(&self, path: &str) {
        self.must("kubectl", &["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", path]);
    }

    /// Installs the custom resources of the Prometheus operator.
    async fn know_custom_resources(&self) {
        let crds = self.tools.join("crds");
        // They are too large for the annotation with the last applied configuration.
        self.must("kubectl", &["create", "-f", crds.to_str().expect("UTF-8")]);
        for kind in ["servicemonitors", "prometheusrules"] {
            eventually(&format!("{kind} are served"), async || {
                self.kubectl(&["get", &format!("{kind}.monitoring.coreos.com"), "-A"]).status.success().then_some(())
            })
            .await;
        }
    }
}

/// The program. `None`, with the reason printed, if it is not there.
fn program() -> Option<PathBuf> {
    let mut script = Command::new(super::root().join("scripts/kube-apiserver"));
    if std::env::var("ETCD_RELAY_TEST_SCALE").is_ok_and(|scale| scale == "full") {
        script.stderr(std::process::Stdio::inherit());
    } else {
        script.arg("--if-built");
    }
    let found = script.output().expect("the script runs");
    if !found.status.success() {
        println!("SKIPPED: {}", text(found.stderr));
        return None;
    }
    Some(PathBuf::from(text(found.stdout).trim()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_api_server_takes_the_manifests_and_the_chart() {
    let (Some(program), Some(tools)) = (program(), tools()) else { return };
    let api = Api::start(&program, tools).await;
    api.know_custom_resources().await;
    let folder = |name: &str| kubernetes().join(name).display().to_string();

    // As the README says, one after the other, so each changes what the previous one has left.
    api.must("kubectl", &["apply", "--validate=strict", "-f", &folder("base/etcd-relay.yaml")]);
    for name in ["base", "zones", "tls", "monitoring"] {
        api.must("kubectl", &["apply", "--validate=strict", "-k", &folder(name)]);
    }

    api.must("kubectl", &["apply", "--server-side", "-f", &api.file("cluster.yaml", CLUSTER)]);
    for (name, args) in CASES {
        let yaml = render(tools, "1.37.0", args).unwrap_or_else(|why| panic!("{name}: {why}"));
        api.try_apply(&api.file("rendered.yaml", &yaml));
        for deployment in documents(tools, &yaml).iter().filter(|document| document["kind"] == "Deployment") {
            take_pod(&api, name, deployment);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_api_server_takes_the_kit_to_try() {
    let (Some(program), Some(tools)) = (program(), tools()) else { return };
    let api = Api::start(&program, tools).await;
    let built = api.must("kubectl", &["kustomize", "--load-restrictor=LoadRestrictionsNone", "deploy/kubernetes/try"]);
    // A board is too long for the annotation in which the client would keep the last applied configuration.
    api.must("kubectl", &["apply", "--server-side", "--validate=strict", "-f", &api.file("try.yaml", &built)]);
    let deployments = documents(tools, &built).into_iter().filter(|document| document["kind"] == "Deployment");
    let pods: Vec<_> = deployments.map(|deployment| pod_of(&deployment, "etcd-relay")).collect();
    assert_eq!(pods.len(), 4);
    for mut pod in pods {
        // The manifests have this account. A controller, which does not run here, would create the default one.
        pod["spec"]["serviceAccountName"] = json!("etcd-relay");
        api.must(
            "kubectl",
            &["create", "--dry-run=server", "--validate=strict", "-f", &api.file("pod.json", &pod.to_string())],
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn helm_installs_upgrades_and_takes_away_the_chart() {
    let (Some(program), Some(tools)) = (program(), tools()) else { return };
    let api = Api::start(&program, tools).await;
    let chart = "deploy/kubernetes/chart/etcd-relay";
    api.know_custom_resources().await;
    let install = ["--namespace", "etcd-relay", "--create-namespace", "--set", super::ETCD];
    let notes = api.must("helm", &[&["install", "etcd-relay", chart], &install[..]].concat());
    assert!(notes.contains("http://etcd-relay.etcd-relay.svc:23790"), "{notes}");
    let zones = ["--set", "zones[0].name=a,zones[1].name=b"];
    api.must("helm", &[&["upgrade", "etcd-relay", chart], &install[..], &zones].concat());
    let names = api.must("kubectl", &["-n", "etcd-relay", "get", "deployments", "-o", "name"]);
    assert_eq!(names.lines().collect::<Vec<_>>(), ["deployment.apps/etcd-relay-a", "deployment.apps/etcd-relay-b"]);
    let monitoring = "monitoring.serviceMonitor.enabled=true,monitoring.prometheusRule.enabled=true,monitoring.dashboards.enabled=true";
    let same = ["upgrade", "etcd-relay", chart, "--namespace", "etcd-relay", "--reuse-values", "--set", monitoring];
    api.must("helm", &same);
    let names =
        api.must("kubectl", &["-n", "etcd-relay", "get", "servicemonitors,prometheusrules,configmaps", "-o", "name"]);
    assert_eq!(names.lines().count(), 3, "{names}");
    api.must("helm", &["uninstall", "etcd-relay", "--namespace", "etcd-relay"]);
    let left = api.must(
        "kubectl",
        &["-n", "etcd-relay", "get", "deployments,services,poddisruptionbudgets,networkpolicies", "-o", "name"],
    );
    assert_eq!(left, "");
}

/// What the pods of the cases need: a namespace that enforces `restricted`, accounts, and a priority class.
const CLUSTER: &str = "apiVersion: v1
kind: List
items:
  - {apiVersion: v1, kind: Namespace, metadata: {name: relays, labels: {pod-security.kubernetes.io/enforce: restricted}}}
  - {apiVersion: v1, kind: ServiceAccount, metadata: {name: relay, namespace: relays}}
  - {apiVersion: v1, kind: ServiceAccount, metadata: {name: relays, namespace: relays}}
  - {apiVersion: v1, kind: ServiceAccount, metadata: {name: mine, namespace: relays}}
  - {apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: high}, value: 1000}
";

/// The namespace, which enforces `restricted`, accepts the pod of a Deployment, and rejects one with an additional
/// right.
fn take_pod(api: &Api, name: &str, deployment: &Value) {
    let pod = pod_of(deployment, "relays");
    let create = ["create", "--dry-run=server", "--validate=strict", "-f"];
    api.must("kubectl", &[&create[..], &[&api.file("pod.json", &pod.to_string())]].concat());
    for (path, value) in [
        ("/spec/securityContext/runAsNonRoot", json!(false)),
        ("/spec/securityContext/seccompProfile/type", json!("Unconfined")),
        ("/spec/containers/0/securityContext/allowPrivilegeEscalation", json!(true)),
        ("/spec/containers/0/securityContext/capabilities/drop", json!([])),
    ] {
        let mut worse = pod.clone();
        *worse.pointer_mut(path).unwrap_or_else(|| panic!("{name}: no {path}")) = value;
        let refused = api.kubectl(&[&create[..], &[&api.file("worse.json", &worse.to_string())]].concat());
        let said = text(refused.stderr);
        assert!(!refused.status.success() && said.contains("violates PodSecurity"), "{name}: {path}: {said}");
    }
}

/// A pod of a Deployment, as its controller would create it.
fn pod_of(deployment: &Value, namespace: &str) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": deployment["spec"]["template"]["metadata"],
        "spec": deployment["spec"]["template"]["spec"],
    });
    pod["metadata"]["name"] = json!("pod");
    pod["metadata"]["namespace"] = json!(namespace);
    pod
}
