//! Runs the program like a pod does: with the arguments and variables of a manifest, as its user, without capabilities,
//! on a read-only root.
//!
//! Not here: a node. Only the variables with addresses are different: etcd's, and those of the ports, which the system
//! chooses on loopback.

use std::{fs, path::Path, process::Command, time::Duration};

use super::{documents, kubernetes, pods::variables, tools};
use crate::support::{
    client::{self, WatchStream},
    etcd::Etcd,
    eventually, free_port, http,
    kv::Kv,
    relay::{Relay, RelayCommand},
};

/// Makes a mount namespace in which everyone may run the program and nobody can write anything: `$1` is the
/// user, `$2` the program.
const AS_A_POD: &str = r#"
set -e
mount -t tmpfs -o size=1m tmpfs /mnt
touch /mnt/etcd-relay
mount --bind "$2" /mnt/etcd-relay
mount -o remount,bind,ro /mnt/etcd-relay
mount -o remount,ro /mnt
for place in / /tmp /var /run /dev/shm; do
    if mountpoint -q "$place"; then mount -o remount,bind,ro "$place"; fi
done
user=$1
shift 2
exec setpriv --reuid "$user" --regid "$user" --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs -- /mnt/etcd-relay "$@"
"#;

/// The container in base/etcd-relay.yaml, and the user of its pod.
fn of_base(tools: &Path) -> (Vec<(String, String)>, u64) {
    let text = fs::read_to_string(kubernetes().join("base/etcd-relay.yaml")).expect("a manifest");
    let documents = documents(tools, &text);
    let deployment = documents.iter().find(|document| document["kind"] == "Deployment").expect("a Deployment");
    let pod = &deployment["spec"]["template"]["spec"];
    (variables(&pod["containers"][0]), pod["securityContext"]["runAsUser"].as_u64().expect("a user"))
}

/// `serve` with these variables, except for addresses.
fn command(variables: &[(String, String)], etcd: &str) -> RelayCommand {
    variables.iter().fold(RelayCommand::told_by_environment(), |command, (name, value)| match &**name {
        "ETCD_RELAY_ETCD" => command.env(name, etcd),
        _ if name.starts_with("ETCD_RELAY_LISTEN_") => {
            let (scheme, _) = value.split_once("://:").expect("all addresses");
            command.env(name, &format!("{scheme}://127.0.0.1:0"))
        }
        _ => command.env(name, value),
    })
}

async fn status(relay: &Relay, path: &str) -> Option<u16> {
    let [probed] = &relay.metrics_addrs()[..] else { panic!("one port for metrics") };
    http::get(probed, path).await.ok().map(|answer| answer.status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_probe_restarts_a_pod_whose_etcd_is_away_and_it_gets_no_new_connections() {
    let Some(tools) = tools() else { return };
    let (variables, _) = of_base(tools);
    // At the start.
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let relay = command(&variables, &nobody).unready().start().await;
    assert_eq!((status(&relay, "/live").await, status(&relay, "/ready").await), (Some(200), Some(503)));
    drop(relay);
    // And later.
    let mut etcd = Etcd::start().await;
    let relay = command(&variables, &etcd.endpoint()).start().await;
    assert_eq!((status(&relay, "/live").await, status(&relay, "/ready").await), (Some(200), Some(200)));
    etcd.kill();
    eventually("it is not ready", async || (status(&relay, "/ready").await == Some(503)).then_some(())).await;
    assert_eq!(status(&relay, "/live").await, Some(200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_serves_as_its_user_on_a_root_that_cannot_be_written_and_ends_within_its_grace() {
    let Some(tools) = tools() else { return };
    let (variables, user) = of_base(tools);
    if let Err(why) = can_be_a_pod() {
        println!("SKIPPED: a pod's user and its read-only root: {why}");
        return;
    }
    let etcd = Etcd::start().await;
    let user = user.to_string();
    let under = ["unshare", "--mount", "sh", "-c", AS_A_POD, "sh", &user];
    let mut relay = command(&variables, &etcd.endpoint()).under(&under).start().await;

    let of_process = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", relay.pid())).expect("a process");
    let process = of_process("status");
    let field = |name: &str| {
        process
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .expect(name)
            .split_whitespace()
            .map(ToOwned::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(field("Uid:"), vec![user.clone(); 4]);
    assert_eq!(field("Gid:"), vec![user.clone(); 4]);
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    let root = of_process("mountinfo");
    let root = root.lines().find(|line| line.split(' ').nth(4) == Some("/")).expect("a root");
    assert!(root.split(' ').nth(5).is_some_and(|options| options.split(',').any(|option| option == "ro")), "{root}");

    let mut watch = WatchStream::open(&relay.endpoint()).await;
    watch.created(client::prefix("/app/")).await;
    let revision = Kv::connect(&relay.endpoint()).await.put("/app/a", "1").await;
    watch.until_revision(revision).await;
    relay.assert_log_has_only(&[]);
    relay.terminate();
    watch.ended().await.expect_err("the watch ends with a status");
    assert_eq!(relay.exit_code(Duration::from_secs(35)).await, 0);
}

/// Whether this process may change its user and mounts, like a container runtime.
fn can_be_a_pod() -> Result<(), String> {
    let trial =
        ["--mount", "sh", "-c", "mount -t tmpfs tmpfs /mnt && setpriv --reuid 65532 --regid 65532 --clear-groups true"];
    let output = Command::new("unshare").args(trial).output().map_err(|error| format!("unshare: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}
