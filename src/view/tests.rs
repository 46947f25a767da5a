//! Tests of engines over feeds that the test drives: random changes are compared with an engine that reads the same
//! state at once.

use std::{
    collections::BTreeMap,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::{
    directory::Directory,
    document::Document,
    engine::Engine,
    payload::Version,
    projection::Projection,
    select::{Match, Select},
    target::Subscription,
    views,
};
use crate::{
    hub::{Feed, FeedState, KeyMap, OutboxLimits, Reset, testing, upstream::Changes},
    types::{EventFields, EventKind, KeyValue, KeyValueFields, Revision},
};

/// Keys with their revisions and values, as etcd has them.
type Plain = BTreeMap<String, (i64, String)>;

fn feed(directory: Directory, state: &Plain, revision: i64) -> Arc<Feed> {
    let hub = testing::hub(OutboxLimits { bytes: 1 << 10, deliveries: 10, watches: 10 });
    let feed = hub.always(directory.range());
    feed.install(Arc::default(), map(directory, state), Revision::new(revision));
    feed.set_state(FeedState::Live);
    feed
}

fn map(directory: Directory, state: &Plain) -> KeyMap {
    let mut map = KeyMap::default();
    for (key, (revision, value)) in state {
        map.insert(KeyValue::new(&fields(directory, key, *revision, Some(value))));
    }
    map
}

fn fields(directory: Directory, key: &str, revision: i64, value: Option<&str>) -> KeyValueFields {
    KeyValueFields {
        key: format!("{}{key}", directory.prefix()).into(),
        value: value.unwrap_or_default().to_owned().into(),
        create_revision: Revision::new(i64::from(value.is_some())),
        mod_revision: Revision::new(revision),
        version: 1,
        lease: 0,
    }
}

fn changes(directory: Directory, revision: i64, events: &[(String, Option<String>)]) -> Changes {
    let event = |(key, value): &(String, Option<String>)| EventFields {
        kind: if value.is_some() { EventKind::Put } else { EventKind::Delete },
        kv: fields(directory, key, revision, value.as_deref()),
    };
    Changes {
        revision: Revision::new(revision),
        received: Instant::now(),
        events: events.iter().map(event).collect(),
        prev: Vec::new(),
    }
}

fn engine<D: Document>(directory: Directory, views: Vec<Box<dyn Projection<D>>>, feed: &Feed) -> Arc<Engine<D>> {
    let engine = Engine::new(directory, views, Box::new(|_, _, _| {}));
    engine.catch_up(feed);
    engine
}

/// The whole content of a version as text.
fn said(version: &Version) -> String {
    match &version.body {
        Ok(payload) => {
            let frame = String::from_utf8(payload.frame(version.kind).to_vec()).expect("text");
            let json = String::from_utf8(payload.json().to_vec()).expect("text");
            assert_eq!(frame, format!("event: {}\ndata: {json}\n\n", version.kind.as_str()));
            assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{json}");
            format!("{json} {:?}", payload.message().to_vec())
        }
        Err(error) => error.to_string(),
    }
}

fn next(subscription: &mut Subscription) -> Option<Arc<Version>> {
    match subscription.poll_next(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(version) => Some(version.expect("the engine lives")),
        Poll::Pending => None,
    }
}

/// A pod group of `app` with pods on two nodes; the number determines the rest.
fn pod_group(app: &str, proc: &str, number: u32) -> String {
    match number {
        0 => return "{broken".to_owned(),
        1 => return format!(r#"{{"Spec":{{"Name":"{proc}","Namespace":"{app}"}},"Pods":null,"State":7}}"#),
        _ => {}
    }
    let pods: Vec<String> = (1..=number % 4)
        .map(|no| {
            let ip = if number.is_multiple_of(5) { String::new() } else { format!("172.20.{}.{no}", number % 3) };
            let node = 1 + (number + no) % 2;
            format!(
                r#"{{"InstanceNo":{no},"Containers":[{{"Id":"{app}{no}{proc}","NodeName":"n{node}","NodeIp":"10.0.0.{node}","ContainerIp":"{ip}","ContainerPort":80}}]}}"#
            )
        })
        .collect();
    let ports = if number.is_multiple_of(2) { r#"{\"ports\": [{\"srcport\": 9501, \"dstport\": 80}]}"# } else { "" };
    // The seconds change without being shown.
    format!(
        r#"{{"Spec":{{"Name":"{proc}","Namespace":"{app}","Pod":{{"Annotation":"{ports}","Containers":[{{"Image":"i{}","Expose":80}}]}}}},"Pods":[{}],"UpdatedAt":"{}"}}"#,
        number % 3,
        pods.join(","),
        number / 12,
    )
}

/// Runs random changes over views of `directory`; `value` makes a value for a key.
fn run<D: Document>(
    seed: u64,
    directory: Directory,
    views: impl Fn() -> Vec<Box<dyn Projection<D>>>,
    keys: &[&str],
    targets: &[&str],
    value: impl Fn(&str, u32) -> String,
) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut state = Plain::new();
    let mut revision = 10;
    let feed = feed(directory, &state, revision);
    let engine = engine(directory, views(), &feed);
    let selects: Vec<Select> = views()
        .iter()
        .flat_map(|view| targets.iter().map(|target| (view.spec(), *target)))
        .flat_map(|(spec, target)| {
            let keys = if target == "*" { Match::All } else { Match::Key(target.as_bytes().into()) };
            let node = spec.of_node.then(|| "n1".into());
            [false, true].map(|public| Select { spec, keys: keys.clone(), node: node.clone(), public })
        })
        .collect();
    // Some targets are watched from the start, others are requested now and then.
    let mut watched: Vec<(Select, Subscription, Option<String>)> = selects
        .iter()
        .filter(|_| random.random_bool(0.7))
        .map(|select| (select.clone(), engine.subscribe(select).expect("read"), None))
        .collect();
    for step in 0..100 {
        let mut batch = Vec::new();
        for _ in 0..random.random_range(1..4) {
            revision += 1;
            let mut events = BTreeMap::new();
            for _ in 0..random.random_range(1..4) {
                let key = (*keys.choose(&mut random).expect("a key")).to_owned();
                let new = random
                    .random_bool(0.75)
                    .then(|| value(&key, random.random_range(0..30) + 60 * random.random_range(0..2)));
                if new.is_none() && !state.contains_key(&key) {
                    continue;
                }
                events.insert(key, new);
            }
            for (key, new) in &events {
                match new {
                    // An unreadable value keeps the previous one.
                    Some(new) => drop(state.insert(key.clone(), (revision, new.clone()))),
                    None => drop(state.remove(key)),
                }
            }
            let events: Vec<_> = events.into_iter().collect();
            if !events.is_empty() {
                batch.push(changes(directory, revision, &events));
            }
        }
        if random.random_bool(0.05) {
            // A gap: the history is lost.
            let reset = Reset::Compacted { compact_revision: Revision::new(revision) };
            feed.reset(&Arc::default(), map(directory, &state), Revision::new(revision), &reset);
        } else if !batch.is_empty() {
            feed.publish(&batch).expect("in order");
        }
        engine.catch_up(&feed);
        let context = format!("{directory:?}, seed {seed}, step {step}, revision {revision}");
        // Reads the documents as they are kept: keys with an unreadable value have the previous one.
        let fresh = engine.rebuilt(views());
        for (select, subscription, last) in &mut watched {
            let want = said(&fresh.version(select).expect("read"));
            let got = next(subscription).map(|version| said(&version));
            if last.as_ref() == Some(&want) {
                assert_eq!(got, None, "{context}: said the same again: {select:?}");
            } else {
                assert_eq!(got.as_ref(), Some(&want), "{context}: {select:?}");
                *last = got;
            }
        }
        for select in selects.choose_multiple(&mut random, 3) {
            assert_eq!(
                said(&engine.version(select).expect("read")),
                said(&fresh.version(select).expect("read")),
                "{context}: {select:?}"
            );
        }
    }
}

#[test]
fn targets_show_what_reading_everything_anew_would_show_and_speak_only_of_changes() {
    let keys = [
        "hello/hello.web.web",
        "hello/hello.worker.w",
        "hell/hell.web.web",
        "hello/same",
        "other/same",
        "o/o.web.w",
        "z/z.worker.long",
    ];
    let targets = ["*", "hello/", "hell/", "h", "n1/", "10.0.0.2/", "none/", "hello/hello.web.web"];
    for seed in 0..3 {
        let value = |key: &str, number| {
            let (app, proc) = key.split_once('/').expect("an app");
            pod_group(app, proc, number)
        };
        run(seed, Directory::PodGroups, views::of_pod_groups, &keys, &targets, value);
        let keys = ["vip", "vips/a", "vips/b", "v", "ssl", "a", "a/b", "super_apps/x", "ärger/<&>"];
        let targets = ["*", "vip", "vips", "v", "a", "s", "ä"];
        run(seed, Directory::Config, views::of_config, &keys, &targets, |key, number| format!("{key}{}", number % 5));
        let keys = ["n1:10.0.0.1:22", "n2:10.0.0.2:22", "n10:10.0.0.10:22"];
        let value = |key: &str, number: u32| match number % 4 {
            0 => "null".to_owned(),
            1 => "[]".to_owned(),
            number => format!(r#"{{"name":"{key}","ssh_port":{number}}}"#),
        };
        run(seed, Directory::Nodes, views::of_nodes, &keys, &["*", "n1:", "n1", "n2:10.0.0.2:22"], value);
    }
}

#[test]
fn an_invisible_change_makes_no_version() {
    let mut state = Plain::new();
    let key = "hello/hello.web.web".to_owned();
    state.insert(key.clone(), (1, pod_group("hello", "hello.web.web", 3)));
    let feed = feed(Directory::PodGroups, &state, 1);
    let engine = engine(Directory::PodGroups, views::of_pod_groups(), &feed);
    let select = Select { spec: views::of_pod_groups()[0].spec(), keys: Match::All, node: None, public: false };
    let first = engine.version(&select).expect("read");
    // 3 and 63 differ only in the time.
    feed.publish(&[changes(Directory::PodGroups, 2, &[(key.clone(), Some(pod_group("hello", "hello.web.web", 63)))])])
        .expect("in order");
    engine.catch_up(&feed);
    assert!(Arc::ptr_eq(&first, &engine.version(&select).expect("read")));
    assert_eq!(engine.revision(), Revision::new(2));
    feed.publish(&[changes(Directory::PodGroups, 3, &[(key, None)])]).expect("in order");
    engine.catch_up(&feed);
    assert_eq!(said(&engine.version(&select).expect("read")), "{} []");
}

/// A cluster is restored to an older revision and has passed the relay's revision again before the engine looks. Its
/// history begins below the engine's revision, but does not continue it.
#[test]
fn a_restored_cluster_is_read_anew() {
    let at = |revision: i64, value: &str| (revision, value.to_owned());
    let old = Plain::from([("a".into(), at(5, "old")), ("gone".into(), at(6, "gone"))]);
    let feed = feed(Directory::Config, &old, 100);
    let engine = engine(Directory::Config, views::of_config(), &feed);
    let select = Select { spec: views::of_config()[0].spec(), keys: Match::All, node: None, public: false };
    let mut subscription = engine.subscribe(&select).expect("read");
    next(&mut subscription).expect("the first version");
    // The same revision of the key with another value, in another cluster.
    let new = Plain::from([("a".into(), at(5, "new"))]);
    feed.reset(&Arc::default(), map(Directory::Config, &new), Revision::new(50), &Reset::Replaced);
    for revision in 51..=101 {
        feed.publish(&[changes(Directory::Config, revision, &[("b".into(), Some(revision.to_string()))])])
            .expect("in order");
    }
    engine.catch_up(&feed);
    let version = next(&mut subscription).expect("another version");
    assert!(said(&version).starts_with(r#"{"a":"new","b":"101"} "#), "{}", said(&version));
    assert!(next(&mut subscription).is_none());
}

#[test]
fn changes_taken_together_say_what_they_would_one_by_one() {
    let node = |text: &str| Some(text.to_owned());
    let (good, bad) = (r#"{"name":"n"}"#, "{broken");
    for (steps, want) in [
        (&[node(good), node(bad)][..], r#"{"n:1:22":{"name":"n"}}"#),
        (&[node(good), node(bad), node(bad)], r#"{"n:1:22":{"name":"n"}}"#),
        (&[node(good), None, node(bad)], "{}"),
        (&[node(bad), node(good)], r#"{"n:1:22":{"name":"n"}}"#),
        (&[node(bad)], r#"{"n:1:22":{"name":"old"}}"#),
        (&[None], "{}"),
    ] {
        for together in [false, true] {
            let old = Plain::from([("n:1:22".into(), (1, r#"{"name":"old"}"#.to_owned()))]);
            let feed = feed(Directory::Nodes, &old, 1);
            let engine = engine(Directory::Nodes, views::of_nodes(), &feed);
            let select = Select { spec: views::of_nodes()[0].spec(), keys: Match::All, node: None, public: false };
            for (revision, value) in (2..).zip(steps) {
                let event = ("n:1:22".to_owned(), value.clone());
                feed.publish(&[changes(Directory::Nodes, revision, &[event])]).expect("in order");
                if !together {
                    engine.catch_up(&feed);
                }
            }
            engine.catch_up(&feed);
            let version = engine.version(&select).expect("read");
            let json = version.body.as_ref().map(|payload| payload.json().to_vec()).unwrap_or_default();
            assert_eq!(String::from_utf8_lossy(&json), want, "{steps:?}, together: {together}");
        }
    }
}

/// A view that panics on a certain value.
struct Fragile;

impl Projection<super::document::ConfigValue> for Fragile {
    fn spec(&self) -> &'static super::projection::Spec {
        views::of_config()[0].spec()
    }

    fn rows(&self, key: &[u8], value: &super::document::ConfigValue, rows: &mut super::projection::Rows<'_>) {
        assert_ne!(value.as_bytes(), b"unbearable");
        rows.entry(key, &1, &crate::pb::lainlet::AppInfo::default());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_panics_ends_its_streams_and_all_is_read_anew() {
    let state = Plain::from([("a".into(), (1, "1".to_owned()))]);
    let feed = feed(Directory::Config, &state, 1);
    let engine =
        Engine::new(Directory::Config, vec![Box::new(Fragile) as Box<dyn Projection<_>>], Box::new(|_, _, _| {}));
    let stop = tokio_util::sync::CancellationToken::new();
    let thread = {
        let (engine, feed, stop) = (engine.clone(), feed.clone(), stop.clone());
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || engine.follow(&runtime, &feed, &stop))
    };
    let mut revisions = engine.watch_revision();
    revisions.wait_for(|at| *at == Revision::new(1)).await.expect("read");
    let select = Select { spec: views::of_config()[0].spec(), keys: Match::All, node: None, public: false };
    let mut subscription = engine.subscribe(&select).expect("read");
    assert!(subscription.next().await.is_some());
    feed.publish(&[changes(Directory::Config, 2, &[("b".into(), Some("unbearable".into()))])]).expect("in order");
    assert!(subscription.next().await.is_none());
    feed.publish(&[changes(Directory::Config, 3, &[("b".into(), Some("good".into()))])]).expect("in order");
    revisions.wait_for(|at| *at == Revision::new(3)).await.expect("read again");
    assert!(said(&engine.version(&select).expect("read")).starts_with(r#"{"a":1,"b":1}"#));
    stop.cancel();
    thread.await.expect("ended");
}

#[test]
fn targets_that_nobody_watches_go_and_come_back_as_they_would_be() {
    let state = Plain::from([("a".into(), (1, "1".to_owned()))]);
    let feed = feed(Directory::Config, &state, 1);
    let engine = engine(Directory::Config, views::of_config(), &feed);
    let select = |key: &str| Select {
        spec: views::of_config()[0].spec(),
        keys: Match::Key(key.as_bytes().into()),
        node: None,
        public: false,
    };
    let watched = engine.subscribe(&select("a")).expect("read");
    engine.version(&select("b")).expect("read");
    assert!(engine.has(&select("a")) && engine.has(&select("b")));
    // The first sweep only notes that it was requested.
    engine.sweep();
    engine.sweep();
    assert!(engine.has(&select("a")) && !engine.has(&select("b")));
    feed.publish(&[changes(Directory::Config, 2, &[("b".into(), Some("2".into()))])]).expect("in order");
    engine.catch_up(&feed);
    assert!(said(&engine.version(&select("b")).expect("read")).starts_with(r#"{"b":"2"} "#));
    drop(watched);
    engine.sweep();
    engine.sweep();
    engine.sweep();
    assert!(!engine.has(&select("a")) && !engine.has(&select("b")));
}

#[test]
fn keys_beside_the_directory_are_not_in_it() {
    for key in ["/lain/config_backup/a", "/lain/config/", "/lain/configs"] {
        assert_eq!(Directory::Config.cache_key(&Bytes::from(key)), None, "{key}");
    }
    assert_eq!(Directory::Config.cache_key(&Bytes::from("/lain/config/a/b")), Some(Bytes::from("a/b")));
}
