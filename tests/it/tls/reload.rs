//! Files that change while the relay runs: new handshakes use them, and existing connections are not affected.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::mutual;
use crate::support::{
    client::{WatchStream, prefix},
    etcd::Etcd,
    eventually, eventually_within,
    kv::Kv,
    relay::{Relay, RelayCommand},
    tls::{Authority, Leaf, channel, connect, flag},
};

/// How soon a change must take effect.
const SOON: Duration = Duration::from_secs(10);

async fn reloads(relay: &Relay, side: &str, outcome: &str) -> f64 {
    relay.metric_of("etcd_relay_tls_reloads_total", &format!("side=\"{side}\",outcome=\"{outcome}\"")).await
}

/// Waits until a new handshake gets the certificate in this file.
async fn is_shown(relay: &Relay, config: &Arc<ClientConfig>, file: &Path) {
    let wanted = CertificateDer::from_pem_file(file).expect("a certificate");
    eventually_within(SOON, "the new certificate is shown", async || {
        let stream = connect(relay.grpc_addr(), config).await.ok()?;
        let shown = stream.get_ref().1.peer_certificates()?.first()? == &wanted;
        shown.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_change_every_second_under_load_cost_no_event_and_no_connection() {
    let (ca, etcd) = (Authority::new("the authority"), Etcd::start().await);
    let relay = mutual(&etcd, &ca).await;
    relay.follows().await;
    let pair = ca.pair("client");
    let mut stream = WatchStream::over(channel(relay.grpc_addr(), ca.client(Some(&pair))).await, &[]);
    stream.created(prefix("k")).await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    let full = std::env::var_os("ETCD_RELAY_TEST_SCALE").is_some_and(|scale| scale == "full");
    let (begun, lasts) = (Instant::now(), Duration::from_secs(if full { 60 } else { 8 }));
    let (mut puts, mut swaps) = (0, 0);
    while begun.elapsed() < lasts {
        if begun.elapsed().as_secs() >= swaps {
            // First the certificate, then the key, as in programs that renew them.
            ca.issue("relay", &Leaf { serial: 100 + swaps, ..Leaf::default() });
            swaps += 1;
        }
        kv.put("k", puts.to_string()).await;
        puts += 1;
    }
    let mut next = 0;
    while next < puts {
        for event in stream.next().await.events {
            assert_eq!(event.kv.expect("a key").value, next.to_string().as_bytes());
            next += 1;
        }
    }
    is_shown(&relay, &Arc::new(ca.client(Some(&pair))), &ca.path("relay.pem")).await;
    assert!(reloads(&relay, "port", "taken").await >= 2.0);
    assert!(!stream.has_ended());
    relay.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_that_does_not_fit_keeps_the_old_one_is_counted_and_logged_once() {
    let (ca, etcd) = (Authority::new("the authority"), Etcd::start().await);
    let relay = mutual(&etcd, &ca).await;
    let pair = ca.pair("client");
    let config = Arc::new(ca.client(Some(&pair)));
    let old = ca.write("old.pem", &fs::read_to_string(ca.path("relay.pem")).expect("a certificate"));
    let other = ca.pair("other");
    ca.write("relay.key", &fs::read_to_string(&other.key).expect("a key"));
    eventually("it is found out twice", async || (reloads(&relay, "port", "failed").await >= 2.0).then_some(())).await;
    is_shown(&relay, &config, &old).await;
    let told = relay.log().lines().filter(|line| line.contains("Cannot use changed TLS files")).count();
    assert_eq!(told, 1, "{}", relay.log());
    // The other half follows.
    ca.write("relay.pem", &fs::read_to_string(&other.cert).expect("a certificate"));
    is_shown(&relay, &config, &other.cert).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_symbolic_link_that_is_swapped_is_a_change() {
    let (ca, etcd) = (Authority::new("the authority"), Etcd::start().await);
    // Like a secret mounted by Kubernetes: files are links into `..data`, which is itself a link that is replaced.
    let place = |version: u64| {
        let pair = ca.issue(&format!("version{version}"), &Leaf { serial: version, ..Leaf::default() });
        let folder = ca.path(&format!("..{version}"));
        fs::create_dir(&folder).expect("a folder");
        fs::copy(&pair.cert, folder.join("tls.crt")).expect("copied");
        fs::copy(&pair.key, folder.join("tls.key")).expect("copied");
        symlink(&folder, ca.path("..data_tmp")).expect("a link");
        fs::rename(ca.path("..data_tmp"), ca.path("..data")).expect("swapped");
        pair
    };
    place(1);
    symlink("..data/tls.crt", ca.path("tls.crt")).expect("a link");
    symlink("..data/tls.key", ca.path("tls.key")).expect("a link");
    let command = RelayCommand::serve(&[etcd.endpoint()]).arg("--listen-grpc=https://127.0.0.1:0");
    let command = command.arg(&flag("--cert-file", &ca.path("tls.crt"))).arg(&flag("--key-file", &ca.path("tls.key")));
    // The plain address comes first.
    let relay = command.start().await;
    let addr = relay
        .log()
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .map(|line| line.get("fields").cloned().unwrap_or(line))
        .find(|fields| fields["tls"] == true)
        .and_then(|fields| Some(fields["addr"].as_str()?.to_owned()))
        .expect("an address with TLS");
    let config = Arc::new(ca.client(None));
    let second = place(2);
    let wanted = CertificateDer::from_pem_file(&second.cert).expect("a certificate");
    eventually_within(SOON, "the new certificate is shown", async || {
        let stream = connect(&addr, &config).await.ok()?;
        (stream.get_ref().1.peer_certificates()?.first()? == &wanted).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_resumed_until_their_client_is_revoked() {
    let (ca, etcd) = (Authority::new("the authority"), Etcd::start().await);
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("").secure(&ca.pair("relay"));
    let relay =
        relay.arg(&flag("--trusted-ca-file", &ca.file())).arg(&flag("--client-crl-file", &ca.revoke("crl.pem", &[7])));
    let relay = relay.start().await;
    let pair = ca.issue("client", &Leaf { serial: 42, ..Leaf::default() });
    let mut config = ca.client(Some(&pair));
    config.alpn_protocols.clear();
    // It keeps session tickets.
    let config = Arc::new(config);
    let ask = async || {
        let mut stream = connect(relay.grpc_addr(), &config).await.ok()?;
        let request = "GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer.starts_with("HTTP/1.1 200"))
    };
    let resumed = async || relay.metric_of("etcd_relay_tls_handshakes_total", r#"port="grpc",outcome="resumed""#).await;
    assert_eq!(ask().await, Some(true));
    assert_eq!(ask().await, Some(true));
    assert_eq!(resumed().await, 1.0);
    // A new certificate of the relay ends no session.
    ca.issue("relay", &Leaf { serial: 9, ..Leaf::default() });
    eventually("the certificate is in use", async || (reloads(&relay, "port", "taken").await == 1.0).then_some(()))
        .await;
    assert_eq!(ask().await, Some(true));
    assert_eq!(resumed().await, 2.0);
    ca.revoke("crl.pem", &[7, pair.serial]);
    eventually("the list is in use", async || (reloads(&relay, "port", "taken").await == 2.0).then_some(())).await;
    assert_eq!(ask().await, None, "a ticket does not bypass a revocation");
    assert_eq!(resumed().await, 2.0);
}
