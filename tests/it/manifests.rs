//! Checks of deploy/kubernetes: the rendered chart and the plain manifests against Kubernetes' schemas and the program.
//!
//! `pods` checks what every pod must have, `running` runs the program like a pod does, `api` asks a real API server.
//! `scripts/manifest-tools` provides helm, kubeconform and kubectl; if it cannot, each test says so and passes. Not
//! here: a node that runs pods.

mod api;
mod pods;
mod running;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

use serde_json::Value;

/// Values without a default, which each rendering needs.
const ETCD: &str = "etcd.endpoints={http://etcd:2379}";

/// Renderings that together use every value of the chart: a name, and the arguments of `helm template`.
const CASES: &[(&str, &[&str])] = &[
    ("defaults", &["--set", ETCD]),
    ("example base", &["--values", "examples/base.yaml"]),
    ("example zones", &["--values", "examples/zones.yaml"]),
    ("example tls", &["--values", "examples/tls.yaml"]),
    ("everything", &["--values", "examples/everything.yaml"]),
    ("one relay", &["--set", ETCD, "--set", "replicas=1"]),
    ("a quick end", &["--set", ETCD, "--set", "drainSeconds=0,preStopSeconds=0,rollout.pauseSeconds=0"]),
    ("a slow end", &["--set", ETCD, "--set", "drainSeconds=600,preStopSeconds=30"]),
    ("a zone without relays", &["--set", ETCD, "--set", "zones[0].name=a,zones[0].replicas=0,zones[1].name=b"]),
    (
        "little of it",
        &[
            "--set",
            ETCD,
            "--set",
            "podDisruptionBudget.enabled=false,networkPolicy.enabled=false,serviceAccount.name=mine",
        ],
    ),
    ("no limit", &["--set", ETCD, "--set", "resources.limits=null"]),
];

/// Names that YAML takes for a number, a boolean or nothing unless they are quoted, and ones that are longer than a
/// Service's, or have dots.
const NAMES: &[&str] = &[
    "1e3",
    "123",
    "on",
    "true",
    "null",
    "0x1f",
    "a.b",
    "a-release-with-a-name-that-is-as-long-as-helm-accepts",
    "a-release-with-a-name-that-is-as-long-as-helm-allows",
];

/// Plain manifests, each independent of the others.
const PLAIN: [&str; 3] = ["base", "zones", "tls"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn kubernetes() -> PathBuf {
    root().join("deploy/kubernetes")
}

/// The folder of the tools, which are fetched once. `None`, with the reason printed, if that fails.
fn tools() -> Option<&'static Path> {
    static TOOLS: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let brought = TOOLS.get_or_init(|| {
        let found = Command::new(root().join("scripts/manifest-tools")).output().expect("the script runs");
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if found.status.success() { Ok(said(&found.stdout).into()) } else { Err(said(&found.stderr)) }
    });
    match brought {
        Ok(folder) => Some(folder),
        Err(why) => {
            println!("SKIPPED: {why}");
            None
        }
    }
}

/// Runs a tool with `input`, in the folder of the chart.
fn run(tool: &Path, args: &[&str], input: &str) -> Output {
    let mut command = Command::new(tool);
    command.current_dir(kubernetes().join("chart")).args(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            use std::io::Write as _;
            // A tool that does not read all of it says why with its exit code.
            let _ = stdin.write_all(input.as_bytes());
        });
        child.wait_with_output().expect("it ends")
    })
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("UTF-8")
}

/// Helm's output, or its error.
fn render(tools: &Path, version: &str, args: &[&str]) -> Result<String, String> {
    render_as("relay", tools, version, args)
}

/// The same for a release of this name.
fn render_as(release: &str, tools: &Path, version: &str, args: &[&str]) -> Result<String, String> {
    let template = ["template", release, "etcd-relay", "--namespace", "relays", "--kube-version", version];
    let output = run(&tools.join("helm"), &[&template, args].concat(), "");
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// YAML documents as JSON.
fn documents(tools: &Path, yaml: &str) -> Vec<Value> {
    let output = run(&tools.join("manifests"), &["json"], yaml);
    assert!(output.status.success(), "{}\n{yaml}", text(output.stderr));
    serde_json::from_slice(&output.stdout).expect("a list")
}

/// Versions of Kubernetes with schemas, the oldest and the newest that the chart supports: `1.31.14`.
fn versions(tools: &Path) -> Vec<String> {
    let entries = fs::read_dir(tools).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    let mut versions: Vec<String> =
        entries.filter_map(|name| Some(name.to_str()?.strip_prefix("schemas-v")?.to_owned())).collect();
    versions.sort();
    assert_eq!(versions.len(), 2, "{versions:?}");
    versions
}

/// Everything to check: each case as rendered for the newest version of Kubernetes, and the plain manifests.
fn all_documents(tools: &Path) -> Vec<(String, Vec<Value>)> {
    let newest = versions(tools).pop().expect("versions");
    let rendered = CASES.iter().map(|(name, args)| {
        let yaml = render(tools, &newest, args).unwrap_or_else(|why| panic!("{name}: {why}"));
        ((*name).to_owned(), documents(tools, &yaml))
    });
    let plain = PLAIN.iter().map(|name| {
        let path = kubernetes().join(name).join("etcd-relay.yaml");
        ((*name).to_owned(), documents(tools, &fs::read_to_string(path).expect("a manifest")))
    });
    rendered.chain(plain).collect()
}

/// Kubeconform's output for documents, and whether it found nothing.
fn conform(tools: &Path, version: &str, yaml: &str) -> (bool, String) {
    let schemas = tools.join(format!("schemas-v{version}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"));
    let schemas = schemas.to_str().expect("UTF-8");
    let output = run(&tools.join("kubeconform"), &["-strict", "-summary", "-schema-location", schemas], yaml);
    (output.status.success(), text(output.stdout) + &text(output.stderr))
}

#[test]
fn everything_passes_the_schemas_of_the_oldest_and_of_the_newest_kubernetes() {
    let Some(tools) = tools() else { return };
    for version in versions(tools) {
        for (name, args) in CASES {
            let yaml = render(tools, &version, args).unwrap_or_else(|why| panic!("{name}: {why}"));
            let (passes, said) = conform(tools, &version, &yaml);
            assert!(passes && said.contains("Skipped: 0"), "{name}, Kubernetes {version}: {said}");
        }
        for folder in ["base", "zones", "tls", "monitoring", "try"] {
            let path = kubernetes().join(folder);
            let path = path.to_str().expect("UTF-8");
            let built = run(&tools.join("kubectl"), &["kustomize", "--load-restrictor=LoadRestrictionsNone", path], "");
            assert!(built.status.success(), "{folder}: {}", text(built.stderr));
            let (passes, said) = conform(tools, &version, &text(built.stdout));
            assert!(passes && said.contains("Skipped: 0"), "{folder}, Kubernetes {version}: {said}");
        }
    }
}

#[test]
fn every_name_stays_a_name_and_no_two_releases_share_one() {
    let Some(tools) = tools() else { return };
    let version = versions(tools).pop().expect("versions");
    let mut services = BTreeSet::new();
    for name in NAMES {
        let zone = name.replace('.', "-");
        let zones = format!("zones[0].name={}", &zone[..zone.len().min(22)].trim_end_matches('-'));
        let names = format!("priorityClassName={name},tls.secretName={name},serviceAccount.name={name}");
        let args = ["--set", ETCD, "--set-string", &zones, "--set-string", &names];
        let yaml = render_as(name, tools, &version, &args).unwrap_or_else(|why| panic!("{name}: {why}"));
        let (passes, said) = conform(tools, &version, &yaml);
        assert!(passes, "{name}: {said}");
        for document in documents(tools, &yaml) {
            let label = document["metadata"]["labels"]["app.kubernetes.io/instance"].as_str();
            assert_eq!(label, Some(*name), "{document}");
            let own = document["metadata"]["name"].as_str().unwrap_or_else(|| panic!("no name: {document}")).to_owned();
            if document["kind"] == "Service" {
                let fits = own.starts_with(|char: char| char.is_ascii_lowercase()) && own.len() <= 63;
                assert!(fits && own.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'), "{own}");
                assert!(services.insert(own), "{name}: {document}");
            }
        }
    }
}

#[test]
fn what_goes_to_the_relay_and_what_lets_it_through_has_the_numbers_that_were_given() {
    let Some(tools) = tools() else { return };
    let values = tempfile::NamedTempFile::new().expect("a file");
    let text = "etcd: {endpoints: ['http://etcd-1', 'http://10.0.0.7:2381/', 'http://[fd00::1]:2382', 'http://[fd00::2]']}\n\
                settings: {ETCD_RELAY_MAX_CONNECTIONS: 1000000, ETCD_RELAY_HISTORY_ENTRIES: 123456789, ETCD_RELAY_NO_AUTH: true}\n";
    fs::write(values.path(), text).expect("written");
    let yaml = render(tools, "1.37.0", &["--values", values.path().to_str().expect("UTF-8")]).expect("it renders");
    let documents = documents(tools, &yaml);
    let of_kind = |kind: &str| documents.iter().find(|document| document["kind"] == kind).expect("one of the kind");
    let variables = pods::variables(&of_kind("Deployment")["spec"]["template"]["spec"]["containers"][0]);
    for (name, want) in [
        ("ETCD_RELAY_MAX_CONNECTIONS", "1000000"),
        ("ETCD_RELAY_HISTORY_ENTRIES", "123456789"),
        ("ETCD_RELAY_NO_AUTH", "true"),
    ] {
        let value = variables.iter().find_map(|(found, value)| (found == name).then_some(&**value));
        assert_eq!(value, Some(want), "{name}");
    }
    let ports = of_kind("NetworkPolicy")["spec"]["egress"][0]["ports"].as_array().expect("ports").iter();
    let ports: Vec<_> = ports.map(|port| port["port"].as_i64()).collect();
    assert_eq!(ports, [Some(2379), Some(2381), Some(2382)], "etcd's members, two of them at the default port");
}

#[test]
fn the_schemas_refuse_what_no_kind_has() {
    let Some(tools) = tools() else { return };
    let good = render(tools, "1.37.0", &["--values", "examples/everything.yaml"]).expect("it renders");
    for (of, instead) in [
        ("minReadySeconds: ", "minReadySecond: "),
        ("readOnlyRootFilesystem: ", "readOnlyRootFileSystem: "),
        ("ipFamilyPolicy: ", "ipFamilyPolicies: "),
        ("maxUnavailable: 34%", "maxUnavailable: [1]"),
        ("podTargetLabels: ", "podTargetLabel: "),
    ] {
        assert!(good.contains(of), "{of}");
        for version in versions(tools) {
            let (passes, said) = conform(tools, &version, &good.replace(of, instead));
            assert!(!passes, "{instead}, Kubernetes {version}: {said}");
        }
    }
}

#[test]
fn the_plain_manifests_and_the_table_of_values_are_what_the_chart_says() {
    let Some(_) = tools() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let rendered = Command::new(root().join("scripts/manifests")).arg(folder.path()).output().expect("the script runs");
    assert!(rendered.status.success(), "{}", text(rendered.stderr));
    for path in
        ["base/etcd-relay.yaml", "zones/etcd-relay.yaml", "tls/etcd-relay.yaml", "monitoring/servicemonitor.yaml"]
    {
        let want = fs::read_to_string(folder.path().join(path)).expect("rendered");
        let have = fs::read_to_string(kubernetes().join(path)).expect("a manifest");
        assert_eq!(have, want, "deploy/kubernetes/{path} is not what the chart says: run scripts/manifests");
    }
}

#[test]
fn values_that_cannot_work_are_refused_with_the_reason() {
    let Some(tools) = tools() else { return };
    for (set, said) in [
        ("", "etcd.endpoints is empty"),
        ("etcd.endpoints={etcd:2379}", "/etcd/endpoints/0"),
        ("etcd.endpoints={http://e},onDemand.mode=deny", "name a prefix"),
        ("etcd.endpoints={http://e},tls.clientCertAuth=true", "tls.secretName"),
        ("etcd.endpoints={http://e},etcd.user.name=relay", "etcd.user.secretName"),
        ("etcd.endpoints={http://e},resources.limits.memory=256Mi", "may need 384 MiB"),
        ("etcd.endpoints={http://e},onDemand.bytes=2GiB", "may need 2176 MiB"),
        ("etcd.endpoints={http://e},onDemand.bytes=lots", "/onDemand/bytes"),
        ("etcd.endpoints={http://e},podDisruptionBudget.maxUnavailable=0", "/podDisruptionBudget/maxUnavailable"),
        ("etcd.endpoints={http://e},settings.ETCD_RELAY_DRAIN_TIME=5m", "ETCD_RELAY_DRAIN_TIME"),
        ("etcd.endpoints={http://e},zones[0].name=Zone", "/zones/0/name"),
        ("etcd.endpoints={http://e},zones[0].name=metrics", "/zones/0/name"),
        ("etcd.endpoints={http://e},zones[0].name=a,zones[1].name=a", "twice"),
        ("etcd.endpoints={http://e},replica=1", "replica"),
    ] {
        let args: &[&str] = if set.is_empty() { &[] } else { &["--set", set] };
        let why = render(tools, "1.37.0", args).expect_err(set);
        assert!(why.contains(said), "{set}: {why}");
    }
    let why = render(tools, "1.30.0", &["--set", ETCD]).expect_err("an old Kubernetes");
    assert!(why.contains("kubeVersion"), "{why}");
}

#[test]
fn the_chart_is_of_the_version_of_the_program() {
    let chart = fs::read_to_string(kubernetes().join("chart/etcd-relay/Chart.yaml")).expect("a chart");
    let version = format!("appVersion: \"{}\"", env!("CARGO_PKG_VERSION"));
    assert!(chart.lines().any(|line| line == version), "Chart.yaml does not say {version}");
}

#[test]
fn the_schema_of_the_chart_has_every_value() {
    let Some(tools) = tools() else { return };
    let chart = kubernetes().join("chart/etcd-relay");
    let values = documents(tools, &fs::read_to_string(chart.join("values.yaml")).expect("values"));
    let schema = fs::read(chart.join("values.schema.json")).expect("a schema");
    let schema: Value = serde_json::from_slice(&schema).expect("JSON");
    assert_described("", &values[0], &schema);
}

/// Fails if a schema lacks a value, or accepts an unknown one beside it.
fn assert_described(name: &str, value: &Value, schema: &Value) {
    let Some(properties) = schema["properties"].as_object() else { return };
    assert_eq!(schema["additionalProperties"], Value::Bool(false), "values.schema.json takes anything in {name}");
    for (key, below) in value.as_object().expect("a map") {
        let schema = properties.get(key).unwrap_or_else(|| panic!("values.schema.json does not have {name}.{key}"));
        assert_described(&format!("{name}.{key}"), below, schema);
    }
}
