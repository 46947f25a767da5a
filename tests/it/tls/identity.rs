//! The identity of callers: no call without a token acts as the relay, whatever its certificate names, and a client's
//! own certificate gives it no user.
//!
//! The relay's certificate names `root` where possible, so a call that acted as the relay could do anything. The
//! expected answer is etcd's answer to a client without any identity, from the same etcd at its plain address.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    process::Stdio,
    sync::Arc,
};

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
    process::Command,
};
use tokio_rustls::TlsConnector;

use super::{SecureEtcd, upstream};
use crate::support::{
    etcd::etcdctl,
    eventually,
    relay::{Relay, RelayCommand},
    tls::{Authority, Leaf, Pair, flag},
};

/// Calls of each kind that a client can make without a token.
const CALLS: [&str; 14] = [
    "put stolen 1",
    "get secret",
    "get secret --consistency=s",
    "get --prefix s --limit=1 --sort-by=VALUE",
    "del secret",
    "user list",
    "role list",
    "user add mallory:mallory",
    "auth disable",
    "snapshot save $DIR/stolen.db",
    "lock secret true",
    "elect secret me",
    "member list",
    "alarm list",
];

/// A certificate that names a user with all permissions.
fn named_root(ca: &Authority, file: &str) -> Pair {
    ca.issue(file, &Leaf { common: "root", ..Leaf::default() })
}

/// Runs `etcdctl` with these flags. Returns its exit code and output.
async fn run(endpoint: &str, flags: &[String], args: &str, folder: &Path) -> (bool, String) {
    let args = args.replace("$DIR", &folder.display().to_string());
    let output = Command::new(etcdctl())
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", endpoint, "--command-timeout=10s"])
        .args(flags)
        .args(args.split(' ').filter(|arg| !arg.is_empty()))
        .stdin(Stdio::null())
        .output()
        .await
        .expect("etcdctl starts");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // The client's log contains times.
    let text = text.lines().filter(|line| !line.starts_with('{')).collect::<Vec<_>>().join("\n");
    (output.status.success(), text)
}

/// An etcd with a secret, a user `root`, and a user for the relay that may read everything.
async fn with_users(ca: &Authority) -> SecureEtcd {
    let etcd = SecureEtcd::start(ca).await;
    for args in [
        "put secret 1",
        "role add root",
        "user add root:root",
        "user grant-role root root",
        "role add reader",
        "role grant-permission reader --prefix=true read ",
        "user add relay:relay",
        "user grant-role relay reader",
    ] {
        // The last argument of the grant is the empty prefix, which a split at spaces would lose.
        let mut command = Command::new(etcdctl());
        command.env("ETCDCTL_API", "3").args(["--endpoints", &etcd.etcd.endpoint()]).args(args.trim_end().split(' '));
        if args.ends_with(' ') {
            command.arg("");
        }
        let output = command.output().await.expect("etcdctl starts");
        assert!(output.status.success(), "{args}: {output:?}");
    }
    etcd
}

async fn enable(etcd: &SecureEtcd, folder: &Path) {
    let (ok, text) = run(&etcd.etcd.endpoint(), &[], "auth enable", folder).await;
    assert!(ok, "{text}");
}

/// Flags with which `etcdctl` connects to a server with a certificate of `ca`.
fn with(ca: &Authority, pair: &Pair) -> Vec<String> {
    vec![flag("--cacert", &ca.file()), flag("--cert", &pair.cert), flag("--key", &pair.key)]
}

/// Each call without a token is answered like etcd answers a client without a certificate; a call with a token gets its
/// user's permissions.
async fn nobody_is_the_relay(etcd: &SecureEtcd, endpoint: &str, flags: &[String]) {
    let folder = tempfile::tempdir().expect("a folder");
    for call in CALLS {
        let expected = run(&etcd.etcd.endpoint(), &[], call, folder.path()).await;
        let told = run(endpoint, flags, call, folder.path()).await;
        let masked = |(ok, text): (bool, String)| (ok, text.replace(&etcd.etcd.endpoint(), "").replace(endpoint, ""));
        assert_eq!(masked(told.clone()), masked(expected.clone()), "{call}");
        if !["member list", "alarm list"].contains(&call) {
            assert!(!told.0, "{call}: {told:?}");
        }
    }
    let (ok, text) = run(endpoint, flags, "put stolen 1", folder.path()).await;
    assert!(!ok && text.contains("etcdserver: user name is empty"), "{text}");
    let as_root: Vec<String> = flags.iter().cloned().chain(["--user=root:root".to_owned()]).collect();
    let (ok, text) = run(endpoint, &as_root, "get secret", folder.path()).await;
    assert!(ok && text == "secret\n1", "a client with a token gets its own permissions: {text}");
}

async fn follows(relay: &Relay) {
    relay.ready().await;
    relay.follows().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_with_a_name_serves_the_feeds_and_no_client() {
    let ca = Authority::new("the authority");
    let etcd = with_users(&ca).await;
    enable(&etcd, ca.file().parent().expect("a folder")).await;
    let relay = etcd.relay(&ca, &named_root(&ca, "relay")).start().await;
    // Without a configured user: its certificate is its name.
    follows(&relay).await;
    nobody_is_the_relay(&etcd, &relay.endpoint(), &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_without_a_name_serves_no_client_either() {
    let ca = Authority::new("the authority");
    let etcd = with_users(&ca).await;
    enable(&etcd, ca.file().parent().expect("a folder")).await;
    let password = ca.write("password", "relay\n");
    let command = etcd.relay(&ca, &ca.pair("relay")).arg("--upstream-user=relay");
    let relay = command.arg(&flag("--upstream-password-file", &password)).start().await;
    follows(&relay).await;
    nobody_is_the_relay(&etcd, &relay.endpoint(), &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_gets_a_name_while_the_relay_runs_changes_nothing_for_clients() {
    let ca = Authority::new("the authority");
    let mut etcd = with_users(&ca).await;
    enable(&etcd, ca.file().parent().expect("a folder")).await;
    let password = ca.write("password", "relay\n");
    let own = ca.pair("own");
    let command = etcd.relay(&ca, &own).arg("--upstream-user=relay");
    let relay = command.arg(&flag("--upstream-password-file", &password)).start().await;
    follows(&relay).await;
    for (round, name) in [(1.0, "root"), (2.0, "")] {
        ca.issue("own", &Leaf { common: name, ..Leaf::default() });
        eventually("the files are read again", async || {
            let taken = relay.metric_of("etcd_relay_tls_reloads_total", r#"side="upstream",outcome="taken""#).await;
            (taken == round).then_some(())
        })
        .await;
        // So that every connection is new.
        etcd.etcd.kill();
        etcd.etcd.restart().await;
        follows(&relay).await;
        nobody_is_the_relay(&etcd, &relay.endpoint(), &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_behind_a_relay_is_nobody_to_it_and_a_clients_certificate_is_no_user() {
    let ca = Authority::new("the authority");
    let etcd = with_users(&ca).await;
    enable(&etcd, ca.file().parent().expect("a folder")).await;
    let root = named_root(&ca, "root");
    let near = etcd.relay(&ca, &root).secure(&ca.pair("near")).arg(&flag("--trusted-ca-file", &ca.file()));
    let near = near.start().await;
    follows(&near).await;
    let password = ca.write("password", "relay\n");
    let far = upstream(RelayCommand::serve(&[format!("https://{}", near.grpc_addr())]).prefix(""), &ca, &root);
    let far = far.arg("--upstream-user=relay").arg(&flag("--upstream-password-file", &password)).start().await;
    follows(&far).await;
    nobody_is_the_relay(&etcd, &far.endpoint(), &[]).await;
    // In etcd itself, this certificate means root.
    let folder = ca.file().parent().expect("a folder").to_owned();
    let (ok, text) = run(&format!("https://{}", etcd.addr), &with(&ca, &root), "user list", &folder).await;
    assert!(ok, "{text}");
    nobody_is_the_relay(&etcd, &format!("https://{}", near.grpc_addr()), &with(&ca, &root)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_the_moment_that_authentication_is_on_no_call_acts_as_the_relay() {
    let ca = Authority::new("the authority");
    let etcd = with_users(&ca).await;
    let relay = etcd.relay(&ca, &named_root(&ca, "relay")).start().await;
    follows(&relay).await;
    let kv = crate::support::kv::Kv::connect(&relay.endpoint()).await;
    let put = async |value: usize| {
        let request = crate::support::kv::put("public", value.to_string());
        kv.raw.clone().put(request).await
    };
    put(0).await.expect("authentication is off");
    enable(&etcd, ca.file().parent().expect("a folder")).await;
    for value in 1..200 {
        let refused = put(value).await.expect_err("authentication is on");
        assert_eq!(refused.message(), "etcdserver: user name is empty");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_in_a_clients_certificate_opens_the_views_where_it_is_allowed() {
    let ca = Authority::new("the authority");
    let relay = RelayCommand::demo_with_example().secure(&ca.pair("relay")).arg(&flag("--trusted-ca-file", &ca.file()));
    let relay =
        relay.listen_http("https://127.0.0.1:0").arg("--views-allow-san=lainlet.example").unready().start().await;
    for (file, hosts, status) in [
        ("allowed", &["lainlet.example", "localhost"][..], "200"),
        ("other", &["other.example"], "400"),
        ("near", &["lainlet.example.org"], "400"),
    ] {
        let pair = ca.issue(file, &Leaf { hosts, ..Leaf::default() });
        let mut config = ca.client(Some(&pair));
        config.alpn_protocols.clear();
        // From an address that nobody trusts.
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9)), 0)).expect("bound");
        let stream = socket.connect(relay.http_addr().parse().expect("an address")).await.expect("connected");
        let name = ServerName::try_from("127.0.0.1").expect("a name");
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("a handshake");
        let request = "GET /v2/nodes HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.expect("asked");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{file}: {answer}");
    }
}
