//! Checks that the files in `deploy` fit the program: variables and flags exist, the example settings start a relay,
//! systemd accepts the unit, and the image has what its manifest says.
//!
//! Not here: `deploy/kubernetes`, the alerts and the board, which have their own tests. Tests that need a missing tool
//! print `SKIPPED`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tokio::net::TcpListener;

use crate::support::relay::RelayCommand;

const PROGRAM: &str = env!("CARGO_BIN_EXE_etcd-relay");

/// All files with variables of the program.
const FILES: [&str; 8] = [
    "deploy/Dockerfile",
    "deploy/image",
    "deploy/compose/compose.yaml",
    "deploy/drop-ins/credentials.conf",
    "deploy/drop-ins/tls-group.conf",
    "deploy/etcd-relay.env",
    "deploy/etcd-relay.service",
    "docs/installing.md",
];
/// Variables of the build, which the running program does not read.
const OF_THE_BUILD: [&str; 2] = ["ETCD_RELAY_COMMIT", "ETCD_RELAY_PROGRAM"];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn output(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

fn help(args: &[&str]) -> String {
    String::from_utf8(output(PROGRAM, args).stdout).expect("UTF-8")
}

/// The words of a text with this beginning, up to the first character that cannot be part of a name.
fn words<'a>(text: &'a str, start: &'a str) -> impl Iterator<Item = &'a str> {
    let is_of_name = |char: char| char.is_ascii_alphanumeric() || char == '_' || char == '-';
    text.match_indices(start).filter_map(move |(at, _)| {
        let is_within = text[..at].ends_with(is_of_name);
        let rest = &text[at..];
        let end = start.len() + rest[start.len()..].find(|char| !is_of_name(char)).unwrap_or(rest.len() - start.len());
        (!is_within && end > start.len()).then(|| rest[..end].trim_end_matches('-'))
    })
}

#[test]
fn each_variable_and_flag_that_they_name_exists() {
    let serve = help(&["serve", "--help"]);
    let variables: BTreeSet<&str> = words(&serve, "ETCD_RELAY_").chain(OF_THE_BUILD).collect();
    assert!(variables.len() > 50, "help names the variables: {variables:?}");
    let mut strange: Vec<String> = Vec::new();
    for file in FILES {
        let text = read(file);
        let unknown = words(&text, "ETCD_RELAY_").filter(|name| !variables.contains(name));
        strange.extend(unknown.map(|name| format!("{file}: {name}")));
    }
    // Other programs' flags are in the other files.
    let health = help(&["health", "--help"]);
    let flags: BTreeSet<&str> = words(&serve, "--").chain(words(&health, "--")).chain(["--now", "--help"]).collect();
    for file in FILES.iter().filter(|file| file.ends_with(".conf") || file.contains("etcd-relay.")) {
        let text = read(file);
        let unknown = words(&text, "--").filter(|name| !flags.contains(name));
        strange.extend(unknown.map(|name| format!("{file}: {name}")));
    }
    assert!(strange.is_empty(), "not of this program:\n{}", strange.join("\n"));
}

#[tokio::test]
async fn the_example_settings_start_a_relay() {
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let text = read("deploy/etcd-relay.env");
    let mut settings: Vec<(&str, &str)> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        settings.push(line.split_once('=').unwrap_or_else(|| panic!("no setting: {line}")));
    }
    let named = |name: &str| settings.iter().any(|(found, _)| *found == name);
    assert!(named("ETCD_RELAY_ETCD") && named("ETCD_RELAY_LISTEN_GRPC") && named("ETCD_RELAY_LISTEN_HTTP"));
    // Free ports, and no etcd of this machine. A flag has precedence over its variable, and the test reads the log as
    // JSON.
    let mut command = RelayCommand::serve(&[format!("http://{gone}")]).unready();
    for (name, value) in &settings {
        command = command.env(name, value);
    }
    let relay = command.start().await;
    let first: Value = serde_json::from_str(relay.log().lines().next().expect("a line")).expect("JSON");
    assert_eq!((&first["prefixes"], &first["on_demand"]), (&"/app/".into(), &true.into()), "{first}");
    relay.assert_log_has_only(&["Cannot reach etcd", "Feed cannot follow etcd"]);
}

#[test]
fn systemd_understands_the_unit_and_finds_it_well_confined() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("SKIPPED: there is no systemd-analyze on PATH");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let unit = folder.path().join("etcd-relay.service");
    let settings = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/etcd-relay.env");
    let text = read("deploy/etcd-relay.service")
        .replace("/usr/bin/etcd-relay", PROGRAM)
        .replace("/etc/etcd-relay/etcd-relay.env", &settings.display().to_string());
    fs::write(&unit, text).expect("written");
    let drop_ins = folder.path().join("etcd-relay.service.d");
    fs::create_dir(&drop_ins).expect("a folder");
    for drop_in in ["credentials.conf", "tls-group.conf"] {
        fs::write(drop_ins.join(drop_in), read(&format!("deploy/drop-ins/{drop_in}"))).expect("written");
    }
    let unit = unit.display().to_string();
    let said = output("systemd-analyze", &["verify", "--man=no", &unit]);
    let text = String::from_utf8_lossy(&said.stderr);
    // If systemd does not run, it reports that as well.
    let about: Vec<_> = text.lines().filter(|line| line.contains("etcd-relay") || line.contains(".conf")).collect();
    assert!(about.is_empty(), "{text}");
    fs::remove_dir_all(&drop_ins).expect("removed");
    // In tenths; 1.2 of 10, where 10 is a service without any confinement.
    let said = output("systemd-analyze", &["security", "--offline=true", "--threshold=15", &unit]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
}

/// Reads a blob of the image, and compares its digest with its name.
fn blob(layout: &Path, descriptor: &Value) -> PathBuf {
    let digest = descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:")).expect("a digest");
    let path = layout.join("blobs/sha256").join(digest);
    assert_eq!(sha256(&path), digest);
    assert_eq!(fs::metadata(&path).expect("it is there").len(), descriptor["size"].as_u64().expect("a size"));
    path
}

fn sha256(path: &Path) -> String {
    let said = output("sha256sum", &[&path.display().to_string()]);
    String::from_utf8_lossy(&said.stdout).split(' ').next().expect("a digest").to_owned()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("it is there")).expect("JSON")
}

#[test]
fn the_image_holds_the_program_alone_for_a_user_without_rights() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("program");
    fs::write(&program, "#!/bin/sh\necho 'etcd-relay 0.0.0 (commit abc)'\n").expect("written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("it can be run");
    let image = |name: &str| {
        let path = folder.path().join(name);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/image");
        let said = Command::new(script).arg(&path).env("ETCD_RELAY_PROGRAM", &program).output().expect("it runs");
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        path
    };
    let (first, second) = (image("first.tar"), image("second.tar"));
    assert_eq!(sha256(&first), sha256(&second), "the same program gives the same image");

    let layout = folder.path().join("layout");
    fs::create_dir(&layout).expect("a folder");
    let tar = |args: &[&str]| {
        let said = output("tar", args);
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        String::from_utf8(said.stdout).expect("UTF-8")
    };
    tar(&["-xf", &first.display().to_string(), "-C", &layout.display().to_string()]);
    let index = json(&layout.join("index.json"));
    let named = |at: usize| &index["manifests"][at]["annotations"]["io.containerd.image.name"];
    let names = [concat!("etcd-relay:", env!("CARGO_PKG_VERSION")), "etcd-relay:latest"];
    assert_eq!([named(0), named(1)], names.map(|name| format!("docker.io/library/{name}")).each_ref());
    assert_eq!(index["manifests"][0]["digest"], index["manifests"][1]["digest"]);
    let manifest = json(&blob(&layout, &index["manifests"][0]));
    let config = json(&blob(&layout, &manifest["config"]));
    let layer = blob(&layout, &manifest["layers"][0]);
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/etcd-relay");
    assert_eq!(config["config"]["Labels"]["org.opencontainers.image.revision"], "abc");
    assert_eq!(config["config"]["Labels"]["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
    let files = tar(&["-tzf", &layer.display().to_string()]);
    let files: BTreeSet<_> = files.lines().filter(|name| !name.ends_with('/')).collect();
    assert_eq!(files, BTreeSet::from(["./usr/bin/etcd-relay", "./usr/share/doc/etcd-relay/LICENSE"]));
    // This is what older versions of `docker load` read.
    let docker = &json(&layout.join("manifest.json"))[0];
    assert_eq!(docker["RepoTags"], serde_json::json!(names));
    assert!(docker["Config"].as_str().is_some_and(|path| layout.join(path).is_file()), "{docker}");
    assert!(docker["Layers"][0].as_str().is_some_and(|path| layout.join(path) == layer), "{docker}");
}

#[test]
fn the_composed_services_are_pinned_and_reached_from_this_machine_alone() {
    let text = read("deploy/compose/compose.yaml");
    let values = |key: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.trim().strip_prefix(key));
        lines.map(|value| value.trim().to_owned()).collect()
    };
    for image in values("image:") {
        let tag = image.rsplit_once(':').map(|(_, tag)| tag.trim_start_matches('v'));
        let is_pinned = tag.is_some_and(|tag| tag.split('.').count() == 3);
        assert!(is_pinned || image == "etcd-relay:latest", "{image} can be another tomorrow");
    }
    let ports = values("ports:");
    assert_eq!(ports.len(), 4, "{ports:?}");
    for port in ports.iter().flat_map(|ports| ports.split(',')) {
        assert!(port.trim_start_matches([' ', '[', '"']).starts_with("127.0.0.1:"), "{port} is open to others");
    }
}
