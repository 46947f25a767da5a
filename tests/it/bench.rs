//! `etcd-relay bench` from outside: each load on etcd and on the relay, its output, and its failure on a server with
//! wrong answers.
//!
//! Each kind of finding is tested beside `bench::check`; measurements are not tested.

mod event_liar;
mod liar;

use std::{process::Output, time::Duration};

use serde_json::Value;

use self::{
    event_liar::EventLiar,
    liar::{Liar, Lie},
};
use crate::support::{
    etcd::Etcd,
    http,
    relay::{Relay, RelayCommand},
    tls::{Authority, flag},
};

/// A load of one second takes little longer; the rest is for busy machines.
const SOON: Duration = Duration::from_secs(60);

async fn bench(args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_etcd-relay"));
    let output = command.arg("bench").args(args).kill_on_drop(true).output();
    let Output { status, stdout, stderr } =
        tokio::time::timeout(SOON, output).await.expect("it ends").expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

/// The report of a load without errors.
async fn report(args: &[&str]) -> Value {
    let (code, stdout, stderr) = bench(&[args, &["--json"]].concat()).await;
    assert_eq!(code, Some(0), "{args:?}: {stdout}{stderr}");
    // There is no progress bar if standard error is not a terminal.
    assert!(stderr.is_empty(), "{args:?}: {stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"));
    assert_eq!(report["wrong"]["count"], 0, "{args:?}: {report}");
    report
}

fn count(report: &Value, name: &str) -> u64 {
    report["figures"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {report}"))
}

/// An etcd, a relay over it, and an endpoint of each.
async fn servers() -> (Etcd, Relay, [String; 2]) {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).arg("--no-auth").start().await;
    let endpoints = [etcd.endpoint(), relay.endpoint()];
    (etcd, relay, endpoints)
}

#[tokio::test]
async fn watches_get_each_write_whatever_they_are() {
    let (etcd, relay, endpoints) = servers().await;
    for endpoint in &endpoints {
        let pid = format!("relay={}", relay.pid());
        let plain = report(&[
            "watch",
            "--endpoint",
            endpoint,
            "--connections",
            "4",
            "--streams",
            "2",
            "--watches",
            "3",
            "--puts",
            "50",
            "--pid",
            &pid,
        ])
        .await;
        assert_eq!((count(&plain, "writes"), count(&plain, "deliveries")), (50, 50 * 24), "{plain}");
        assert!(plain["figures"]["delay_99_ms"].as_f64().is_some_and(|delay| delay > 0.0), "{plain}");
        assert!(plain["processes"]["relay"]["rss_mib"].as_f64().is_some_and(|memory| memory > 1.0), "{plain}");
        assert!(plain["processes"]["bench"]["cpu_us_each"].is_number(), "{plain}");

        // Two streams of 6 watches cover 4 keys: 3 watches of each. 10 transactions of 2 puts are 5 puts of each key.
        let distinct = report(&[
            "watch",
            "--endpoint",
            endpoint,
            "--connections",
            "2",
            "--watches",
            "6",
            "--distinct",
            "--keys",
            "4",
            "--puts",
            "10",
            "--puts-per-write",
            "2",
        ])
        .await;
        assert_eq!(count(&distinct, "deliveries"), 4 * 3 * 5, "{distinct}");

        let ranges = report(&[
            "watch",
            "--endpoint",
            endpoint,
            "--connections",
            "3",
            "--watches",
            "4",
            "--ranges",
            "5",
            "--puts",
            "10",
        ])
        .await;
        assert_eq!(count(&ranges, "deliveries"), 3 * 4 * 10, "each range contains all keys: {ranges}");

        let past = report(&[
            "watch",
            "--endpoint",
            endpoint,
            "--connections",
            "2",
            "--history",
            "40",
            "--puts",
            "5",
            "--puts-per-write",
            "3",
        ])
        .await;
        assert_eq!(count(&past, "writes"), 5, "{past}");

        let mixed = report(&[
            "watch",
            "--endpoint",
            endpoint,
            "--connections",
            "6",
            "--slow",
            "1",
            "--reconnect",
            "2",
            "--reconnect-every",
            "50ms",
            "--rate",
            "100",
            "--puts",
            "100",
            "--put-endpoint",
            &etcd.endpoint(),
        ])
        .await;
        assert!(count(&mixed, "reconnects") > 2, "{mixed}");
        assert_eq!(count(&mixed, "deliveries"), 600, "{mixed}");
    }
}

#[tokio::test]
async fn reads_are_counted_and_no_key_is_left_behind() {
    let (_etcd, _relay, endpoints) = servers().await;
    for endpoint in &endpoints {
        for more in [&["--all"][..], &["--serializable"], &["--rate", "50"]] {
            let args = ["range", "--endpoint", endpoint, "--keys", "20", "--concurrency", "8", "--duration", "300ms"];
            let reads = report(&[&args, more].concat()).await;
            assert!(count(&reads, "reads") > 0 && reads["figures"]["latency_99_ms"].is_number(), "{reads}");
        }
        let mut client = etcd_client::Client::connect([endpoint], None).await.expect("it serves");
        let all = etcd_client::GetOptions::new().with_prefix().with_count_only();
        let left = client.get("/etcd-relay-bench/", Some(all)).await.expect("an answer").count();
        assert_eq!(left, 0, "keys that are left at {endpoint}");
    }
}

#[tokio::test]
async fn puts_are_counted_and_found_again() {
    let (etcd, _relay, endpoints) = servers().await;
    for endpoint in &endpoints {
        let args = ["put", "--endpoint", endpoint, "--keys", "20", "--concurrency", "8", "--connections", "3"];
        // Whatever the measured server says, etcd must have the keys.
        let puts = report(&[&args[..], &["--duration", "300ms", "--check-endpoint", &etcd.endpoint()]].concat()).await;
        assert!(count(&puts, "puts") > 20 && puts["figures"]["latency_99_ms"].is_number(), "{puts}");
        let mut client = etcd_client::Client::connect([endpoint], None).await.expect("it serves");
        let all = etcd_client::GetOptions::new().with_prefix().with_count_only();
        let left = client.get("/etcd-relay-bench/", Some(all)).await.expect("an answer").count();
        assert_eq!(left, 0, "keys that are left at {endpoint}");
    }
}

#[tokio::test]
async fn leases_are_kept_alive_and_end_with_their_clients() {
    let (etcd, _relay, endpoints) = servers().await;
    let check = etcd.endpoint();
    let loads = endpoints.iter().map(async |endpoint| {
        let args = ["leases", "--endpoint", endpoint, "--check-endpoint", &check, "--ttl", "6", "--patience", "30s"];
        let few = ["--clients", "20", "--connections", "5", "--stop", "2", "--duration", "5s"];
        let leases = report(&[&args[..], &few].concat()).await;
        assert_eq!((count(&leases, "gone"), count(&leases, "broken_streams")), (8, 0), "{leases}");
        assert!(count(&leases, "keepalives") >= 25 && leases["figures"]["latency_99_ms"].is_number(), "{leases}");
    });
    futures_util::future::join_all(loads).await;
}

#[tokio::test]
async fn views_are_asked_for_and_watched() {
    let (etcd, relay, _) = servers().await;
    let endpoint = format!("http://{}", relay.http_addr());
    let view = ["views", "--endpoint", &endpoint, "--path", "/v2/configwatcher?target=bench", "--duration", "500ms"];
    let asked = report(&view).await;
    assert!(count(&asked, "messages") > 0 && asked["figures"]["latency_99_ms"].is_number(), "{asked}");
    let key = "/lain/config/bench";
    let watched = [&view[..], &["--watch", "--connections", "3", "--put-key", key, "--put-endpoint", &etcd.endpoint()]];
    let watched = report(&watched.concat()).await;
    assert!(count(&watched, "messages") >= 3 && watched["figures"]["delay_99_ms"].is_number(), "{watched}");
    views_over_tls(&etcd).await;
    // A missing server fails the load.
    let (code, _, stderr) =
        bench(&["views", "--endpoint", &endpoint, "--path", "/v2/none", "--duration", "100ms"]).await;
    let answered = http::get(relay.http_addr(), "/v2/none").await.expect("an answer").status;
    assert_eq!((code, answered), (Some(1), 404), "{stderr}");
}

/// A relay whose HTTP port has TLS, its URL, and the authority that a client must trust.
async fn secure_relay(etcd: &Etcd) -> (Relay, String, Authority) {
    let ca = Authority::new("the authority");
    let relay = RelayCommand::serve(&[etcd.endpoint()]).secure(&ca.pair("relay")).arg("--no-auth");
    let relay = relay.arg("--listen-http=https://127.0.0.1:0").start().await;
    let lines = relay.log();
    let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut fields = lines.map(|line| line.get("fields").cloned().unwrap_or(line));
    let secure = fields.find(|fields| fields["protocol"] == "http" && fields["tls"] == true).expect("an address");
    (relay, format!("https://{}", secure["addr"].as_str().expect("text")), ca)
}

async fn views_over_tls(etcd: &Etcd) {
    let (_relay, endpoint, ca) = secure_relay(etcd).await;
    let trust = flag("--cacert", &ca.file());
    let view = ["views", "--endpoint", &endpoint, &trust, "--path", "/v2/configwatcher?target=tls"];
    let asked = report(&[&view[..], &["--duration", "300ms"]].concat()).await;
    assert!(count(&asked, "messages") > 0, "{asked}");
    let written = ["--put-key", "/lain/config/tls", "--put-endpoint", &etcd.endpoint(), "--duration", "300ms"];
    let watched = report(&[&view[..], &["--watch", "--connections", "3"], &written].concat()).await;
    assert!(count(&watched, "messages") >= 3, "{watched}");
}

#[tokio::test]
async fn server_sent_events_have_each_write() {
    let (etcd, relay, [put, grpc]) = servers().await;
    let endpoint = format!("http://{}", relay.http_addr());
    let pid = format!("relay={}", relay.pid());
    for encoding in ["--sse", "--sse=base64"] {
        let own = ["watch", encoding, "--endpoint", &endpoint, "--put-endpoint", &put];
        let plain = report(&[&own[..], &["--connections", "4", "--puts", "50", "--pid", &pid]].concat()).await;
        assert_eq!((count(&plain, "writes"), count(&plain, "deliveries")), (50, 200), "{plain}");
        for (part, figure) in [("figures", "delay_99_ms"), ("figures", "deliveries_per_second")] {
            assert!(plain[part][figure].as_f64().is_some_and(|figure| figure > 0.0), "{figure}: {plain}");
        }
        assert!(plain["processes"]["relay"]["cpu_us_each"].is_number(), "{plain}");
        assert!(plain["processes"]["relay"]["rss_mib"].as_f64().is_some_and(|memory| memory > 1.0), "{plain}");

        // 10 transactions of 2 puts are 5 puts of each of 4 keys. Each key has 2 watches.
        let distinct = ["--connections", "8", "--distinct", "--keys", "4", "--puts", "10", "--puts-per-write", "2"];
        let distinct = report(&[&own[..], &distinct].concat()).await;
        assert_eq!(count(&distinct, "deliveries"), 8 * 5, "{distinct}");

        let past = ["--connections", "2", "--history", "40", "--puts", "5", "--puts-per-write", "3"];
        let past = report(&[&own[..], &past].concat()).await;
        assert_eq!(count(&past, "writes"), 5, "{past}");

        let mixed = ["--connections", "6", "--slow", "1", "--reconnect", "2", "--reconnect-every", "50ms"];
        let mixed = report(&[&own[..], &mixed, &["--rate", "100", "--puts", "100"]].concat()).await;
        assert!(count(&mixed, "reconnects") > 2, "{mixed}");
        assert_eq!(count(&mixed, "deliveries"), 600, "{mixed}");
    }
    let (_relay, secure, ca) = secure_relay(&etcd).await;
    let trust = flag("--cacert", &ca.file());
    let own = ["watch", "--sse", "--endpoint", &secure, "--put-endpoint", &put, &trust];
    let plain = report(&[&own[..], &["--connections", "3", "--puts", "20"]].concat()).await;
    assert_eq!(count(&plain, "deliveries"), 60, "{plain}");
    // A port without these paths fails the load.
    let (code, _, stderr) = bench(&["watch", "--sse", "--endpoint", &grpc, "--put-endpoint", &put]).await;
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("status 404"), "{stderr}");
}

#[tokio::test]
async fn server_sent_events_that_are_wrong_fail_the_load() {
    let store = RelayCommand::demo().start().await;
    for (lie, told) in [
        (Lie::None, None),
        (Lie::Forget, Some("never came")),
        (Lie::Repeat, Some("came twice")),
        (Lie::Swap, Some("came after")),
        (Lie::Alter, Some("a wrong value")),
        (Lie::Cancel, Some("canceled")),
        (Lie::WrongId, Some("has the id")),
        (Lie::NoId, Some("ended without an id")),
        (Lie::Late, Some("1 of 25 events never came")),
        (Lie::End, Some("the stream ended")),
    ] {
        let liar = EventLiar::over(store.http_addr(), lie).await;
        let own = ["watch", "--sse", "--endpoint", liar.endpoint(), "--put-endpoint", &store.endpoint()];
        let load = ["--connections", "1", "--puts", "20", "--patience", "2s", "--keys", "3", "--rate", "200"];
        let past: &[&str] = if lie == Lie::Late { &["--history", "5"] } else { &[] };
        let (code, stdout, stderr) = bench(&[&own[..], &load, past].concat()).await;
        match told {
            None => assert_eq!(code, Some(0), "{stdout}{stderr}"),
            Some(told) => {
                assert_eq!(code, Some(1), "{lie:?}: {stdout}{stderr}");
                assert!(stdout.contains("WRONG: 1 findings") && stdout.contains(told), "{lie:?}: {stdout}{stderr}");
            }
        }
    }
}

#[tokio::test]
async fn a_table_is_for_people() {
    let store = RelayCommand::demo().start().await;
    let (code, stdout, _) =
        bench(&["watch", "--endpoint", &store.endpoint(), "--connections", "2", "--puts", "10"]).await;
    assert_eq!(code, Some(0), "{stdout}");
    for shown in ["deliveries ", "delay_99_ms", "process bench", "Every answer was correct."] {
        assert!(stdout.contains(shown), "{shown}: {stdout}");
    }
    let (code, stdout, _) = bench(&["floor", "--connections", "3", "--rate", "100", "--duration", "200ms"]).await;
    assert_eq!(code, Some(0), "{stdout}");
    assert!(stdout.contains("cpu_us_each"), "{stdout}");
}

#[tokio::test]
async fn a_server_that_misbehaves_fails_the_load() {
    let store = RelayCommand::demo().start().await;
    for (lie, told) in [
        (Lie::None, None),
        (Lie::Forget, Some("never came")),
        (Lie::Repeat, Some("came twice")),
        (Lie::Swap, Some("came after")),
        (Lie::Alter, Some("a wrong value")),
        (Lie::Cancel, Some("canceled")),
        (Lie::End, Some("the stream ended")),
    ] {
        let liar = Liar::over(&store.endpoint(), lie).await;
        let put = store.endpoint();
        let args = [
            "watch",
            "--endpoint",
            liar.endpoint(),
            "--put-endpoint",
            &put,
            "--connections",
            "1",
            "--puts",
            "20",
            "--patience",
            "2s",
            "--keys",
            "3",
            "--rate",
            "200",
        ];
        let (code, stdout, stderr) = bench(&args).await;
        match told {
            None => assert_eq!(code, Some(0), "{stdout}{stderr}"),
            Some(told) => {
                assert_eq!(code, Some(1), "{lie:?}: {stdout}{stderr}");
                assert!(stdout.contains("WRONG: 1 findings") && stdout.contains(told), "{lie:?}: {stdout}{stderr}");
            }
        }
    }
}

/// Keys that joiners list, some per page, while they change.
const JOINING: [&str; 14] = [
    "--join",
    "3",
    "--join-after",
    "50ms",
    "--keys",
    "300",
    "--connections",
    "2",
    "--rate",
    "300",
    "--duration",
    "300ms",
    "--patience",
    "2s",
];

#[tokio::test]
async fn who_joins_lists_all_and_misses_nothing_after_it() {
    let (etcd, relay, endpoints) = servers().await;
    let metrics = format!("relay=http://{}/metrics", relay.http_addr());
    for endpoint in &endpoints {
        for page in ["7", "300", "0"] {
            let own = ["watch", "--endpoint", endpoint, "--put-endpoint", &etcd.endpoint(), "--join-page", page];
            let measured = ["--metrics-url", &metrics, "--metric", "etcd_relay_publish_seconds"];
            let joined = report(&[&own[..], &JOINING, &measured].concat()).await;
            assert_eq!((count(&joined, "joins"), count(&joined, "listed_keys")), (3, 900), "{joined}");
            // Both earlier clients and joiners received everything written since they began.
            let (writes, deliveries) = (count(&joined, "writes"), count(&joined, "deliveries"));
            assert!(2 * writes < deliveries && deliveries < 5 * writes, "{joined}");
            assert!(joined["figures"]["join_99_ms"].is_number(), "{joined}");
            assert!(joined["figures"]["joining_delay_max_ms"].is_number(), "{joined}");
            for part in ["reading", "waiting", "taking", "pushing"] {
                let told = &joined["metrics"]["relay"][format!("etcd_relay_publish_seconds{{part=\"{part}\"}}")];
                // If clients join etcd directly, the relay has nothing to do.
                let is_relay = *endpoint == relay.endpoint();
                assert_eq!(told["count"].as_f64().is_some_and(|count| count > 0.0), is_relay, "{part}: {joined}");
                assert_eq!(told["max_at_most_ms"].is_number(), is_relay, "{part}: {joined}");
            }
        }
    }
}

#[tokio::test]
async fn a_storm_over_tls_has_its_watches_and_delays_of_the_others_are_told() {
    let (ca, etcd) = (Authority::new("the authority"), Etcd::start().await);
    let pair = ca.pair("both");
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("").secure(&pair);
    let relay = relay.arg(&flag("--trusted-ca-file", &ca.file())).start().await;
    let endpoint = format!("https://{}", relay.grpc_addr());
    let tls = [flag("--cacert", &ca.file()), flag("--cert", &pair.cert), flag("--key", &pair.key)];
    let tls: Vec<&str> = tls.iter().map(String::as_str).collect();
    let own = ["watch", "--endpoint", &endpoint, "--put-endpoint", &etcd.endpoint(), "--connections", "2"];
    let storm = ["--rate", "100", "--duration", "300ms", "--storm", "30", "--join-after", "100ms"];
    let came = report(&[&own[..], &storm, &tls].concat()).await;
    assert_eq!(count(&came, "joins"), 30, "{came}");
    // These clients watch a key that is never written.
    assert_eq!(count(&came, "deliveries"), 2 * count(&came, "writes"), "{came}");
    for figure in ["joining_seconds", "join_max_ms", "joining_delay_99_ms"] {
        assert!(came["figures"][figure].as_f64().is_some_and(|figure| figure > 0.0), "{figure}: {came}");
    }
    assert!(relay.metric("etcd_relay_tls_handshakes_total").await >= 32.0);

    let bare = report(&[&["handshakes", "--connections", "30"][..], &tls].concat()).await;
    assert_eq!(count(&bare, "joins"), 30, "{bare}");
    assert!(bare["figures"]["joining_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{bare}");
    // A certificate of another authority.
    let strangers = Authority::new("a stranger");
    let stranger = strangers.pair("stranger");
    let tls = [flag("--cacert", &ca.file()), flag("--cert", &stranger.cert), flag("--key", &stranger.key)];
    let tls: Vec<&str> = tls.iter().map(String::as_str).collect();
    let (code, stdout, stderr) = bench(&[&["handshakes", "--connections", "3"][..], &tls].concat()).await;
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    assert!(stdout.contains("WRONG: 3 findings"), "{stdout}{stderr}");
    let (code, _, stderr) = bench(&["handshakes"]).await;
    assert_eq!(code, Some(64), "{stderr}");
    assert!(stderr.contains("--cacert, --cert and --key"), "{stderr}");
}

#[tokio::test]
async fn a_wrong_list_or_a_gap_after_it_fails_the_load() {
    let store = RelayCommand::demo().start().await;
    for (lie, told) in [(Lie::None, None), (Lie::LeaveOut, Some("a wrong list: key")), (Lie::Late, Some("1 of "))] {
        let liar = Liar::over(&store.endpoint(), lie).await;
        let own = ["watch", "--endpoint", liar.endpoint(), "--put-endpoint", &store.endpoint(), "--join-page", "20"];
        let (code, stdout, stderr) = bench(&[&own[..], &JOINING].concat()).await;
        match told {
            None => assert_eq!(code, Some(0), "{stdout}{stderr}"),
            Some(told) => {
                assert_eq!(code, Some(1), "{lie:?}: {stdout}{stderr}");
                assert!(stdout.contains("joiner ") && stdout.contains(told), "{lie:?}: {stdout}{stderr}");
            }
        }
    }
}

#[tokio::test]
async fn metrics_that_are_not_there_fail_the_load() {
    let store = RelayCommand::demo().start().await;
    let url = format!("http://{}/metrics", store.http_addr());
    let args =
        ["watch", "--endpoint", &store.endpoint(), "--puts", "1", "--metrics-url", &url, "--metric", "none_such"];
    let (code, stdout, stderr) = bench(&args).await;
    assert_eq!(code, Some(1), "{stdout}");
    assert!(stderr.contains("none_such"), "{stderr}");
}

#[tokio::test]
async fn where_nobody_listens_it_ends_with_the_reason() {
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let (code, stdout, stderr) = bench(&["watch", "--endpoint", &gone.to_string(), "--puts", "1"]).await;
    assert_eq!(code, Some(1), "{stdout}");
    assert!(stderr.contains(&gone.to_string()), "{stderr}");
}
