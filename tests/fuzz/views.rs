//! Puts bytes as values into the directories of Lainlet's views, beside a valid value.
//!
//! Checks that no part of a view panics, even where its engine would recover, that each view is made and is JSON, and
//! that the valid value is still shown. What a view shows of a value is tested in `tests/it/lainlet`. Always holds: the
//! clock is real, because threads make the views. An input leaves nothing behind.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    panic,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use etcd_relay::{
    batch::Io,
    front::{
        http::{audience::Audience, keys::Cors},
        listen,
    },
    pb::etcdserverpb::{DeleteRangeRequest, PutRequest},
    relay::{self, Embedded, Feeds, LainletFeeds, OnDemand, RelayConfig, Upstream, Views, Watches},
    shutdown::Phases,
    store::{Store, StoreConfig},
    telemetry::{ReadyBoard, names::Port},
    types::Revision,
    view::{Ask, Lainlet, LainletConfig, Trust, Viewer},
};
use tokio::runtime::Runtime;

use crate::draw::Draw;

/// Timeout for a view.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most values of an input.
const VALUES: usize = 8;

const GROUPS: &str = "/lain/deployd/pod_groups/";
const SANE: &str = "/lain/deployd/pod_groups/sane/sane.web.web";

const PATHS: [&str; 14] = [
    "/v2/appswatcher",
    "/v2/backupspec",
    "/v2/configwatcher",
    "/v2/containers",
    "/v2/coreinfowatcher",
    "/v2/depends",
    "/v2/localspecquery",
    "/v2/nodes",
    "/v2/procwatcher",
    "/v2/proxywatcher",
    "/v2/rebellion/localprocs",
    "/v2/streamrouter/ports",
    "/v2/streamrouter/streamprocs",
    "/v2/webrouter/webprocs",
];

/// Replacements for parts of a value.
const TOKENS: [&[u8]; 14] = [
    b"null",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"0.5",
    b"\"\\ud800\"",
    b"\"\\u0000\"",
    b"[]",
    b"{}",
    b"\"\xff\"",
    b"true",
    b"\"\"",
    b"[[[[[[[[[[",
    b",",
];

/// See the module.
pub(crate) struct Target {
    runtime: Runtime,
    store: Store,
    lainlet: Lainlet,
    values: Vec<(String, Vec<u8>)>,
    panics: Arc<AtomicUsize>,
    _phases: Phases,
}

impl Target {
    pub(crate) fn new() -> Self {
        let panics = Arc::new(AtomicUsize::new(0));
        let (counted, report) = (panics.clone(), panic::take_hook());
        panic::set_hook(Box::new(move |info| {
            counted.fetch_add(1, Ordering::SeqCst);
            report(info);
        }));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let store = Store::new(StoreConfig::default());
        let (lainlet, phases) = runtime.block_on(async { wire(&store) });
        Self { runtime, store, lainlet, values: fixture(), panics, _phases: phases }
    }

    /// Puts some values, and then reads all views.
    pub(crate) fn run(&self, input: &[u8]) {
        let before = self.panics.load(Ordering::SeqCst);
        let mut draw = Draw(input);
        for _ in 0..VALUES {
            if draw.is_done() {
                break;
            }
            let (key, value) = self.draw(&mut draw);
            self.put(&key, value);
        }
        // Twice, so that it changes.
        for state in ["1", "2"] {
            let sane = self.values.iter().find(|(key, _)| key.starts_with(GROUPS)).expect("a pod group");
            let text = String::from_utf8(sane.1.clone())
                .expect("text")
                .replace("\"State\": 2", &format!("\"State\": {state}"));
            self.put(SANE, text.into());
        }
        let revision = self.store.header().revision;
        self.runtime.block_on(async {
            for path in PATHS {
                self.look(path, revision).await;
            }
        });
        let all = DeleteRangeRequest { key: "/lain/".into(), range_end: "/lain0".into(), ..Default::default() };
        self.store.delete_range(&all).expect("deleted");
        assert_eq!(self.panics.load(Ordering::SeqCst), before, "something panicked");
    }

    async fn look(&self, path: &str, revision: Revision) {
        let spec = self.lainlet.view_at(path).unwrap_or_else(|| panic!("no view at {path}"));
        let caller = Viewer::at(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let ask = Ask { spec, caller, parameter: None, node: Some("node1"), min_revision: Some(revision) };
        let selected = match self.lainlet.select(&ask).await {
            Ok(selected) => selected,
            Err(refusal @ etcd_relay::view::Refusal::NotReady(_)) => panic!("{path}: {refusal}"),
            // This view needs another request.
            Err(_) => return,
        };
        let (at, version) = selected.version().unwrap_or_else(|refusal| panic!("{path}: {refusal}"));
        assert!(at >= revision, "{path} is at {at}");
        let Ok(payload) = &version.body else { return };
        let json = payload.json().pieces().concat();
        if let Err(error) = serde_json::from_slice::<serde_json::Value>(&json) {
            panic!("{path}: {error} in {}", String::from_utf8_lossy(&json));
        }
        assert_eq!(payload.message().len(), payload.message().pieces().iter().map(Bytes::len).sum::<usize>());
        if path == "/v2/procwatcher" {
            assert!(String::from_utf8_lossy(&json).contains("sane.web.web"), "the valid value is not shown");
        }
    }

    fn put(&self, key: &str, value: Vec<u8>) {
        let put = PutRequest { key: key.to_owned().into(), value: value.into(), ..Default::default() };
        self.store.put(&put).expect("there is room");
    }

    /// A changed value of the fixture, or any bytes, at one of its keys.
    fn draw(&self, draw: &mut Draw<'_>) -> (String, Vec<u8>) {
        let (key, value) = &self.values[usize::from(draw.byte()) % self.values.len()];
        let mut value = value.clone();
        if draw.seldom() {
            value = draw.some().to_vec();
        }
        for _ in 0..draw.byte() % 4 {
            let place = usize::from(draw.byte()) << 8 | usize::from(draw.byte());
            let at = place % (value.len() + 1);
            match draw.byte() % 6 {
                0 => value.truncate(at),
                1 => {
                    let with = draw.some();
                    value.splice(at..at, with.iter().copied());
                }
                2 => {
                    let many = usize::from(draw.byte()) * 64;
                    let token = draw.of(b"[{\" 9");
                    value.splice(at..at, std::iter::repeat_n(token, many));
                }
                _ => {
                    // A whole scalar, as far as its bytes show.
                    let ends = |byte: &u8| b",:{}[]".contains(byte);
                    let from = value[..at].iter().rposition(ends).map_or(0, |found| found + 1);
                    let to = value[at..].iter().position(ends).map_or(value.len(), |found| at + found);
                    value.splice(from..to, draw.of(&TOKENS).iter().copied());
                }
            }
        }
        (key.clone(), value)
    }
}

fn wire(store: &Store) -> (Lainlet, Phases) {
    let config = RelayConfig {
        upstream: Upstream::Embedded(Embedded { seeded: false, changes_every: None }),
        feeds: Feeds { prefixes: Vec::new(), on_demand: OnDemand::Deny, ..Feeds::default() },
        watches: Watches::default(),
        views: Views {
            feeds: LainletFeeds::AtStart,
            lainlet: LainletConfig {
                trust: Trust { everyone: true, ..Trust::default() },
                patience: PATIENCE,
                ..LainletConfig::default()
            },
        },
        grpc: listen::PortConfig::new(Port::Grpc, SocketAddr::from((Ipv4Addr::LOCALHOST, 2379))),
        http: None,
        metrics: Vec::new(),
        v2: None,
        advertise: None,
        debug_from: Audience::Nobody,
        keys_from: Audience::Nobody,
        cors: Cors::Off,
        metrics_from: Audience::Nobody,
        io: Io::Auto,
        drain_time: PATIENCE,
    };
    let (phases, ready) = (Phases::new(), ReadyBoard::new());
    let (forward, own) = (store.forward_service(), store.forward_service());
    let core = relay::wire(&config, Arc::new(store.clone()), PATIENCE, forward, own, &phases, &ready);
    (core.lainlet.expect("the views are on"), phases)
}

/// The keys and values of a small cluster.
fn fixture() -> Vec<(String, Vec<u8>)> {
    #[derive(serde::Deserialize)]
    struct Entry {
        key: String,
        value: String,
    }
    let lines = include_str!("../fixtures/lain/small.jsonl").lines();
    lines
        .map(|line| serde_json::from_str::<Entry>(line).expect("an entry"))
        .map(|entry| (entry.key, entry.value.into_bytes()))
        .collect()
}
