//! Random clusters with random changes; each answer and each stream is compared with the model.
//!
//! Cases that the model leaves out are not tested. Always holds: a run depends only on its seed, which a failure
//! prints; `ETCD_RELAY_TEST_SEED` repeats it.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};

use super::{
    Lain,
    client::with,
    model::{Granted, Model, PATHS, Question},
    sse::Sse,
};
use crate::support::{
    kv::{self, Kv},
    relay::RelayCommand,
};

/// Changes per run, each of one to three keys.
const STEPS: usize = 120;
/// Requests after each change.
const QUESTIONS: usize = 10;
/// Rounds of a run with faults, and the changes per round.
const ROUNDS: usize = 12;
const BURST: usize = 25;
/// Number of open streams.
const STREAMS: usize = 14;

const NODE_NAME: &str = "n1";
const NODE_IP: &str = "127.66.9.9";
const NODES: [(&str, &str); 3] = [("n1", "127.66.0.1"), ("n11", "127.66.0.2"), ("n2", "127.66.0.3")];
const GROUPS: [&str; 10] = [
    "a.web.web",
    "a.web.web2",
    "a.worker.w",
    "ab.web.web",
    "a.b.worker.s",
    "a.b.web.web",
    "b.worker.s",
    "b.worker.s2",
    "resource.r.a.worker.r",
    "c.oneshot.o",
];
const APPS: [&str; 7] = ["a", "ab", "a.b", "b", "resource.r.a", "c", "nosuch"];
const PORTALS: [&str; 5] =
    ["a.portal.portal-s", "ab.portal.portal-a", "resource.r.a.portal.portal-r", "x", "a.b.portal.portal-q"];
const CONFIG: [&str; 18] = [
    "vip",
    "vips/a",
    "vips/b:80",
    "vipx",
    "d",
    "domain",
    "domains/*.x",
    "dns_ip",
    "dns_port",
    "super_apps/a",
    "super_apps/ab",
    "super_apps/b",
    "super_apps/resource.r.a",
    "ssl",
    "n",
    "notice",
    "rsyncd_secrets",
    "维护",
];
const STRINGS: [&str; 6] = ["", "plain", "<a & b>", "\"q\" \\ \n\t", "行 \u{2028} 😀", "k=v=w"];

#[tokio::test]
async fn a_random_cluster_is_shown_as_the_model_shows_it() {
    let (seed, mut rng) = seed();
    let mut model = Model::of_relay(NODE_NAME, NODE_IP);
    let lain = Lain::embedded_with(&[], arguments).await;
    let mut streams: Vec<Option<Stream>> = (0..STREAMS).map(|_| None).collect();
    let mut statuses = BTreeMap::<u16, usize>::new();
    let mut events = 0;
    for step in 0..STEPS {
        let changes = changes(&mut rng, step, true);
        let revision = make(&lain.kv, &changes, &mut model).await;
        lain.reached(revision).await;
        let at = format!("seed {seed}, step {step}, after {changes:.2000?}");
        for stream in streams.iter_mut() {
            let goes_on = match stream {
                Some(stream) => stream.check(&model, &at, &mut events).await,
                None => false,
            };
            if !goes_on {
                *stream = Stream::open(&lain, &model, &mut rng, &at).await;
            }
        }
        for _ in 0..QUESTIONS {
            let question = question(&mut rng, &model);
            let answer = lain.peer(&question.peer).get(&question.uri()).await;
            let (status, body) = model.answer(&question);
            answer.assert_is(status, &body, &format!("{question:?}; {at}"));
            *statuses.entry(status).or_default() += 1;
        }
    }
    assert!(events > STEPS, "seed {seed}: the streams told only {events} changes");
    assert!(statuses.len() >= 3, "seed {seed}: only answers of {statuses:?}");
    lain.relay.assert_no_panic();
}

#[tokio::test]
async fn whatever_happens_on_the_way_the_newest_state_arrives() {
    let (seed, mut rng) = seed();
    let mut model = Model::of_relay(NODE_NAME, NODE_IP);
    let (lain, gate) = Lain::through_a_gate_with(&[], arguments).await;
    let mut streams: Vec<Option<Stream>> = (0..STREAMS).map(|_| None).collect();
    let mut step = 0;
    for round in 0..ROUNDS {
        // In bursts, and while etcd cannot be reached: some changes are combined, some are read from a new snapshot.
        let event = ["burst", "cut", "away", "compacted"][round % 4];
        match event {
            "away" | "compacted" => gate.shut(),
            _ => {}
        }
        // A relay that reads a snapshot does not see the value from before a damaged one.
        let damaged = round > 0 && event != "compacted";
        let mut revision = 0;
        for number in 0..BURST {
            revision = make(&lain.kv, &changes(&mut rng, step, damaged), &mut model).await;
            step += 1;
            if event == "cut" && number == BURST / 2 {
                gate.cut();
            }
        }
        if event == "compacted" {
            lain.kv.compact(revision).await;
        }
        gate.open();
        lain.reached(revision).await;
        let at = format!("seed {seed}, round {round}, {event}");
        for stream in &mut streams {
            let goes_on = match stream {
                Some(stream) => stream.catch_up(&model, &at).await,
                None => false,
            };
            if !goes_on {
                *stream = Stream::open(&lain, &model, &mut rng, &at).await;
            }
        }
        for _ in 0..QUESTIONS {
            let question = question(&mut rng, &model);
            let answer = lain.peer(&question.peer).get(&question.uri()).await;
            let (status, body) = model.answer(&question);
            answer.assert_is(status, &body, &format!("{question:?}; {at}"));
        }
    }
    assert!(lain.relay.metric("etcd_relay_upstream_resyncs_total").await > 0.0, "seed {seed}: nothing was read again");
    lain.relay.assert_no_panic();
}

fn seed() -> (u64, StdRng) {
    let seed = match std::env::var("ETCD_RELAY_TEST_SEED") {
        Ok(seed) => seed.parse().expect("ETCD_RELAY_TEST_SEED is a number"),
        Err(_) => rand::random(),
    };
    println!("seed {seed}");
    (seed, StdRng::seed_from_u64(seed))
}

fn arguments(command: RelayCommand) -> RelayCommand {
    command.arg(&format!("--node-ip={NODE_IP}")).arg(&format!("--node-name={NODE_NAME}"))
}

/// Makes the changes as one revision and returns it.
async fn make(kv: &Kv, changes: &[Change], model: &mut Model) -> i64 {
    let operations = changes.iter().map(|(key, value)| match value {
        Some(value) => kv::op_put(key, value),
        None => kv::op_delete(key),
    });
    let revision = kv.txn(operations.collect()).await;
    changes.iter().for_each(|(key, value)| model.apply(key, value.as_deref()));
    revision
}

/// A stream with its last event.
#[derive(Debug)]
struct Stream {
    granted: Granted,
    sse: Sse,
    shown: String,
    told: u64,
}

impl Stream {
    /// Opens a stream for a question that the caller may ask, or none this time.
    async fn open(lain: &Lain, model: &Model, rng: &mut StdRng, at: &str) -> Option<Self> {
        let question = question(rng, model);
        let granted = model.grant(&question).ok()?;
        let (200, body) = model.show(&granted) else { return None };
        if question.path == "/v2/localspecquery" {
            // This is the only view that cannot be watched.
            return None;
        }
        let mut sse = lain.peer(&question.peer).watch(&with(&question.uri(), "watch=1")).await;
        let init = sse.expect(1, "init").await;
        assert_eq!(init, body, "{question:?}; {at}");
        Some(Self { granted, sse, shown: init, told: 1 })
    }

    /// Takes the expected event. Returns false if the stream ends.
    async fn check(&mut self, model: &Model, at: &str, events: &mut usize) -> bool {
        let what = format!("{:?}; {at}", self.granted);
        let (status, body) = model.show(&self.granted);
        if status == 500 {
            self.sse.expect_error(&body).await;
            return false;
        }
        assert_eq!(status, 200, "{what}");
        if body == self.shown {
            assert_eq!(self.sse.take_now(), None, "{what}");
            return true;
        }
        let event = self.sse.next().await;
        self.told += 1;
        assert_eq!((event.id, event.data()), (self.told, &*body), "{what}");
        assert!(["update", "delete"].contains(&event.kind.as_str()), "{what}: {event:?}");
        self.shown = body;
        *events += 1;
        true
    }

    /// Takes events until the stream shows its final state. Returns false if it ends.
    async fn catch_up(&mut self, model: &Model, at: &str) -> bool {
        let what = format!("{:?}; {at}", self.granted);
        let (status, body) = model.show(&self.granted);
        while status != 200 || self.shown != body {
            let event = self.sse.next().await;
            if event.kind == "error" {
                assert_eq!(self.sse.ended().await, Ok(()), "{what}");
                return false;
            }
            self.told += 1;
            assert_eq!(event.id, self.told, "{what}");
            assert_ne!(event.data(), self.shown, "{what}: the same twice");
            self.shown = event.data().to_owned();
        }
        true
    }
}

/// A key with its new value, or without one.
type Change = (String, Option<String>);

/// One to three changes, sometimes an unreadable one that keeps the previous value.
fn changes(rng: &mut StdRng, step: usize, damaged: bool) -> Vec<Change> {
    let mut changes = BTreeMap::new();
    // The first steps fill the cluster.
    let count = if step < 5 { 12 } else { rng.random_range(1..=3) };
    for _ in 0..count {
        let delete = step >= 5 && rng.random_bool(0.2);
        let (key, value) = match rng.random_range(0..10) {
            0..=4 => {
                let name = GROUPS.choose(rng).expect("a group");
                (super::data::group_key(name), group(rng, name, step))
            }
            5 => {
                let name = PORTALS.choose(rng).expect("a portal");
                (format!("/lain/deployd/depends/pods/{name}"), portal(rng, name))
            }
            6 => {
                let (name, ip) = NODES.choose(rng).expect("a node");
                let value = json!({"name": name, "ip": ip, "ssh_port": rng.random_range(20..23), "x": STRINGS.choose(rng),
                    "list": [null, true, {"b": 1, "a": []}]});
                (format!("/lain/nodes/nodes/{name}:{ip}:22"), value.to_string())
            }
            _ => {
                let name = CONFIG.choose(rng).expect("a name");
                (format!("/lain/config/{name}"), (*STRINGS.choose(rng).expect("a text")).to_owned())
            }
        };
        let is_json = !key.starts_with("/lain/config/");
        let value = if is_json && damaged && rng.random_bool(0.05) {
            value.chars().take(value.len() / 3).collect()
        } else {
            value
        };
        changes.insert(key, (!delete).then_some(value));
    }
    changes.into_iter().collect()
}

fn group(rng: &mut StdRng, name: &str, step: usize) -> String {
    let index = GROUPS.iter().position(|group| *group == name).expect("a group");
    let app = name.rsplitn(3, '.').nth(2).expect("an app");
    let maybe = |rng: &mut StdRng, value: Value| if rng.random_bool(0.2) { Value::Null } else { value };
    let specs: Vec<_> = (0..rng.random_range(0..3))
        .map(|_| {
            let strings: Vec<_> = (0..rng.random_range(0..3)).filter_map(|_| STRINGS.choose(rng)).collect();
            let version = format!("LAIN_APP_RELEASE_VERSION={}", ["", "1", "1=2", "3"].choose(rng).expect("a version"));
            json!({"Image": STRINGS.choose(rng), "Env": maybe(rng, json!(["A=1", version, "LAIN_APP_RELEASE_VERSION=9"])),
                "Command": maybe(rng, json!(strings)), "Volumes": maybe(rng, json!(strings)), "User": "u",
                "CpuLimit": rng.random_range(-1..3), "MemoryLimit": rng.random::<i64>(), "Expose": rng.random_range(0..9)})
        })
        .collect();
    let pods: Vec<_> = (0..rng.random_range(0..4_usize))
        .map(|pod| {
            let containers: Vec<_> = (0..rng.random_range(0..3))
                .map(|container| {
                    let (node, node_ip) = NODES.choose(rng).expect("a node");
                    // Used only by this group.
                    let ip = format!("127.{}.{}.{}", 100 + index, 1 + pod * 4 + container, 1 + step % 8);
                    let ip = if rng.random_bool(0.25) { String::new() } else { ip };
                    let id = format!("{index:08x}{pod:08x}{container:08x}{:040x}", step % 8);
                    let id = if rng.random_bool(0.05) { String::new() } else { id };
                    let env = json!([
                        "LAIN_PROCNAME=x",
                        "B",
                        format!("LAIN_PROCNAME={}", STRINGS.choose(rng).expect("a text"))
                    ]);
                    let runtime = json!({"Config": {"Env": maybe(rng, env)}, "Args": []});
                    json!({"Id": id, "NodeName": node, "NodeIp": node_ip, "ContainerIp": ip,
                        "ContainerPort": rng.random_range(0..9),
                        "Runtime": maybe(rng, runtime)})
                })
                .collect();
            let containers = maybe(rng, json!(containers));
            json!({"InstanceNo": pod + 1, "Containers": containers, "UpdatedAt": "2018-06-08T10:00:00Z", "State": 2})
        })
        .collect();
    let ports: Vec<_> = (0..rng.random_range(0..3))
        .map(|_| {
            let source = if rng.random_bool(0.2) { json!("9500") } else { json!(rng.random_range(9500..9510)) };
            json!({"srcport": source, "dstport": rng.random_range(1..9), "proto": "udp"})
        })
        .collect();
    // Two groups may have the same process name; the last one in the order of keys is shown.
    let shown_name = if index % 3 == 0 && !name.contains(".web.") && rng.random_bool(0.3) { GROUPS[7] } else { name };
    let annotation = match rng.random_range(0..6) {
        _ if shown_name != name => String::new(),
        0 => "not json <&>".to_owned(),
        1 => "[]".to_owned(),
        2 => json!({"mountpoint": STRINGS.to_vec(), "ports": null}).to_string(),
        _ => json!({"https_only": true, "ports": ports}).to_string(),
    };
    let dependencies = json!([{"PodName": "x.portal.portal-x", "Policy": rng.random_range(0..2)}]);
    let pods = maybe(rng, json!(pods));
    let spec = json!({"Containers": maybe(rng, json!(specs)), "Dependencies": maybe(rng, dependencies),
        "Annotation": annotation, "Labels": {"z": "1"}});
    json!({"Spec": {"Name": shown_name, "Namespace": app, "Version": step, "Pod": spec}, "Pods": pods, "State": 2})
        .to_string()
}

fn portal(rng: &mut StdRng, name: &str) -> String {
    let index = PORTALS.iter().position(|portal| *portal == name).expect("a portal");
    let mut nodes = serde_json::Map::new();
    for (place, (node, node_ip)) in NODES.iter().enumerate() {
        if rng.random_bool(0.5) {
            let ip = format!("127.90.{}.{}", index + 1, place + 1);
            let container = json!({"Id": "i", "NodeIp": node_ip, "ContainerIp": ip, "ContainerPort": place});
            let client =
                json!({"RefCount": 1, "Spec": {"Annotation": STRINGS.choose(rng)}, "Pod": {"Containers": [container]}});
            nodes.insert((*node).to_owned(), json!({ *APPS.choose(rng).expect("an app"): client }));
        }
    }
    Value::Object(nodes).to_string()
}

fn question(rng: &mut StdRng, model: &Model) -> Question {
    let path = *PATHS.choose(rng).expect("a path");
    let addresses = model.addresses();
    let peer = match rng.random_range(0..10) {
        0..=3 => "127.0.0.1".to_owned(),
        4 => NODES.choose(rng).expect("a node").1.to_owned(),
        5 => "127.9.9.9".to_owned(),
        _ => addresses.choose(rng).cloned().unwrap_or_else(|| NODE_IP.to_owned()),
    };
    let node = || NODES.iter().flat_map(|(name, ip)| [*name, *ip]).chain(["n", "*"]).collect::<Vec<_>>();
    let (name, values) = match path {
        "/v2/configwatcher" => {
            ("target", CONFIG[..16].iter().copied().chain(["v", "s", "super_apps", "*", "x"]).collect())
        }
        "/v2/containers" => ("nodename", node()),
        "/v2/localspecquery" => ("nodeip", node()),
        "/v2/depends" => ("target", PORTALS.iter().copied().chain(["a", "res", "*", "q"]).collect()),
        "/v2/nodes" => ("name", vec!["n1", "n11", "n2", "n", "n2:", "*", "n1:127.66.0.1:22"]),
        "/v2/rebellion/localprocs" if rng.random_bool(0.4) => ("nodename", vec!["n1", "n11", "n2", "q"]),
        "/v2/appswatcher" => ("nothing", vec!["x"]),
        _ => ("appname", APPS.iter().copied().chain(["*", "a/", "", "a/a.web.web"]).collect()),
    };
    let parameter = rng.random_bool(0.8).then(|| (name, (*values.choose(rng).expect("a value")).to_owned()));
    Question { peer, path, parameter }
}
