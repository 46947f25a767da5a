//! Bad certificates, and peers that stall: each gets a clear error, and nobody else is affected.

use std::{path::Path, sync::Arc};

use futures_util::{StreamExt as _, stream};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::ClientConfig;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
};
use tokio_rustls::client::TlsStream;

use etcd_relay::tls::{Client, ClientOptions, Speaks};

use super::mutual;
use crate::support::{
    client::{WatchStream, prefix},
    etcd::Etcd,
    eventually, eventually_within, free_port, http,
    kv::Kv,
    patience,
    relay::RelayCommand,
    tls::{Authority, Leaf, Pair, channel, connect, flag},
};

/// The first bytes of a ClientHello, in a record of 256 bytes whose rest never comes.
const HALF: &[u8] = b"\x16\x03\x01\x01\x00\x01\x00\x00\xfc\x03\x03";

/// Makes a handshake and one request: with TLS 1.3 a client learns only then that its certificate is refused.
async fn try_out(addr: &str, config: ClientConfig) -> Result<(), String> {
    let mut config = config;
    config.alpn_protocols.clear();
    let mut stream = connect(addr, &Arc::new(config)).await.map_err(|error| error.to_string())?;
    answered(&mut stream).await
}

async fn answered(stream: &mut TlsStream<TcpStream>) -> Result<(), String> {
    let request = "GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.map_err(|error| error.to_string())?;
    if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(answer) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_bad_certificate_of_a_client_gets_its_own_error_and_a_bystander_notices_nothing() {
    let (ca, stranger) = (Authority::new("the authority"), Authority::new("a stranger"));
    let etcd = Etcd::start().await;
    let revoked = ca.issue("revoked", &Leaf { serial: 77, ..Leaf::default() });
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("").secure(&ca.pair("relay"));
    let relay = relay
        .arg(&flag("--trusted-ca-file", &ca.file()))
        .arg("--client-cert-auth")
        .arg(&flag("--client-crl-file", &ca.revoke("crl.pem", &[revoked.serial])))
        .arg("--client-cert-allowed-hostname=localhost");
    let relay = relay.start().await;
    relay.follows().await;
    let good = ca.issue("good", &Leaf { serial: 2, ..Leaf::default() });
    let mut bystander = WatchStream::over(channel(relay.grpc_addr(), ca.client(Some(&good))).await, &[]);
    bystander.created(prefix("k")).await;
    let elsewhere = &["elsewhere.example"][..];
    let of = |file: &str, leaf: Leaf<'_>| Some(ca.issue(file, &leaf));
    let (day, year) = (86_400, 365 * 86_400);
    for (pair, alert) in [
        (of("expired", Leaf { lasts: (-year, -day), serial: 3, ..Leaf::default() }), "CertificateExpired"),
        (of("early", Leaf { lasts: (day, year), serial: 4, ..Leaf::default() }), "CertificateExpired"),
        (of("elsewhere", Leaf { hosts: elsewhere, serial: 5, ..Leaf::default() }), "BadCertificate"),
        (Some(stranger.pair("stranger")), "UnknownCA"),
        (Some(revoked), "CertificateRevoked"),
        (None, "CertificateRequired"),
    ] {
        let error = try_out(relay.grpc_addr(), ca.client(pair.as_ref())).await.expect_err("refused");
        assert!(error.contains(alert), "{pair:?}: {error}");
    }
    try_out(relay.grpc_addr(), ca.client(Some(&good))).await.expect("a good one is served meanwhile");
    let refused = r#"port="grpc",outcome="refused""#;
    assert_eq!(relay.metric_of("etcd_relay_tls_handshakes_total", refused).await, 6.0);
    let lines = relay.log().lines().filter(|line| line.contains("TLS handshake with a client failed")).count();
    assert!((1..6).contains(&lines), "clients cannot fill the log: {lines} lines");
    let revision = Kv::connect(&etcd.endpoint()).await.put("k", "1").await;
    bystander.until_revision(revision).await;
}

#[tokio::test]
async fn files_that_cannot_be_used_end_the_start_by_name() {
    let ca = Authority::new("the authority");
    let (one, other) = (ca.pair("one"), ca.pair("other"));
    let whole = std::fs::read_to_string(&one.key).expect("a key");
    let truncated = ca.write("truncated.key", &whole[..whole.len() / 2]);
    for (cert, key, named) in [
        (&one.cert, &truncated, "truncated.key"),
        (&one.cert, &other.key, "cannot be used together"),
        (&one.key, &one.key, "certificate"),
        (&one.cert, &ca.path("nowhere.key"), "nowhere.key"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_etcd-relay"))
            .args(["serve", "--etcd=http://127.0.0.1:1", "--listen-grpc=https://127.0.0.1:0"])
            .args([flag("--cert-file", cert), flag("--key-file", key)])
            .output()
            .await
            .expect("it starts");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{text}");
        assert!(text.contains(named) && !text.contains("PRIVATE KEY"), "{text}");
    }
}

/// Starts an etcd with this certificate and a relay in front of it. Returns why the relay is not ready, or `None`.
async fn reaches(pair: &Pair, flags: &[&str]) -> Option<String> {
    let addr = format!("127.0.0.1:{}", free_port());
    let flags_of_etcd = [
        format!("--listen-client-urls={{client-url}},https://{addr}"),
        flag("--cert-file", &pair.cert),
        flag("--key-file", &pair.key),
    ];
    let etcd = Etcd::start_with(&flags_of_etcd.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let command = RelayCommand::serve(&[format!("https://{addr}")]).prefix("").unready();
    let relay = flags.iter().fold(command, |command, flag| command.arg(flag)).start().await;
    let why = eventually("the relay is ready or knows why it is not", async || {
        let answer = http::get(relay.http_addr(), "/ready").await.ok()?;
        if answer.status == 200 {
            return Some(None);
        }
        answer.body.contains("TLS handshake").then_some(Some(answer.body))
    })
    .await;
    drop(etcd);
    if why.is_none() && flags.contains(&"--insecure-skip-tls-verify") {
        assert!(relay.log().contains("can read and change everything"), "{}", relay.log());
    }
    why
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_cannot_be_believed_is_not_and_the_reason_is_told() {
    let (ca, stranger) = (Authority::new("the authority"), Authority::new("a stranger"));
    let cacert = flag("--cacert", &ca.file());
    let year = 365 * 86_400;
    assert_eq!(reaches(&ca.pair("good"), &[&cacert]).await, None);
    for (pair, reason) in [
        (stranger.pair("stranger"), "UnknownIssuer"),
        (ca.issue("expired", &Leaf { lasts: (-year, -60), ..Leaf::default() }), "expired"),
        (ca.issue("elsewhere", &Leaf { hosts: &["elsewhere.example", "10.1.2.3"], ..Leaf::default() }), "127.0.0.1"),
    ] {
        let why = reaches(&pair, &[&cacert]).await.expect("not believed");
        assert!(why.contains(reason), "{why}");
        assert_eq!(reaches(&pair, &["--insecure-skip-tls-verify"]).await, None, "believed where the operator says so");
    }
}

/// The number of half handshakes: more than may be under way, and no more than the connections that the relay accepts
/// with so many files.
fn many(files: Option<u64>) -> usize {
    let full = std::env::var_os("ETCD_RELAY_TEST_SCALE").is_some_and(|scale| scale == "full");
    let room = files.map_or(usize::MAX, |files| files as usize / 2 - 100);
    room.min(if full { 10_000 } else { 6_000 })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_half_handshakes_hold_nobody_up_and_are_ended() {
    // Each of them needs a file here as well.
    let files = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: files, maximum: files }).expect("as many files as may be");
    let (ca, etcd) = (Authority::new("the authority"), Etcd::start().await);
    let relay = mutual(&etcd, &ca).await;
    relay.follows().await;
    let pair = ca.pair("client");
    let mut bystander = WatchStream::over(channel(relay.grpc_addr(), ca.client(Some(&pair))).await, &[]);
    bystander.created(prefix("k")).await;
    let before = relay.resident_bytes();
    let many = many(files);
    let half = async || {
        let mut stream = TcpStream::connect(relay.grpc_addr()).await.expect("connected");
        stream.write_all(HALF).await.expect("sent");
        stream
    };
    // Many at a time: on a fast machine, more than may be in a handshake at once.
    let mut halves: Vec<TcpStream> = stream::iter(0..many).map(|_| half()).buffered(256).collect().await;
    // Others can connect, and events are delivered.
    try_out(relay.grpc_addr(), ca.client(Some(&pair))).await.expect("there is room for who goes on");
    let revision = Kv::connect(&etcd.endpoint()).await.put("k", "1").await;
    bystander.until_revision(revision).await;
    let each = relay.resident_bytes().saturating_sub(before) / many as u64;
    assert!(each < 40 << 10, "{each} bytes for each connection");
    eventually_within(patience() * 2, "the relay ends all of them", async || {
        let open = relay.metric_of("etcd_relay_connections", r#"port="grpc""#).await;
        (open == 1.0).then_some(())
    })
    .await;
    // The oldest one is ended for the newest if they came fast enough to be too many at once.
    let mut ended = 0.0;
    for outcome in ["crowded", "timeout"] {
        let labels = format!(r#"port="grpc",outcome="{outcome}""#);
        ended += relay.metric_of("etcd_relay_tls_handshakes_total", &labels).await;
    }
    assert_eq!(ended, many as f64, "each is counted");
    let mut last = halves.pop().expect("there are some");
    let mut told = Vec::new();
    let _closed = last.read_to_end(&mut told).await;
    assert!(Path::new("/proc").join(relay.pid().to_string()).exists());
    relay.assert_no_panic();
}

/// DNS cannot be trusted, so a member's own name in its certificate proves nothing if DNS gave that name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_dns_named_must_have_a_certificate_for_the_domain() {
    let ca = Authority::new("the authority");
    let etcd = Etcd::start().await;
    let member = ca.issue("member", &Leaf { hosts: &["127.0.0.1", "example.org"], ..Leaf::default() });
    let relay = RelayCommand::serve(&[etcd.endpoint()]).secure(&member).start().await;
    for (domain, is_believed) in [(None, true), (Some("example.org"), true), (Some("example.com"), false)] {
        let server_name = domain.map(str::to_owned);
        let options = ClientOptions { cacert: Some(ca.file()), server_name, ..ClientOptions::default() };
        let client = Client::load(options).expect("the files can be used");
        let stream = TcpStream::connect(relay.grpc_addr()).await.expect("connected");
        let connected = client.connect("127.0.0.1", stream, Speaks::Http2).await;
        assert_eq!(connected.is_ok(), is_believed, "{domain:?}: {:?}", connected.err());
    }
}
