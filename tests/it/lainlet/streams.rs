//! Makes the fixture's changes one by one with a watch on each view, and checks which stream sends what after which
//! change, and in which order.
//!
//! The framing of events (heartbeats, heads, slow readers) is tested in `http`. Silence of a stream is shown without
//! waiting: after each change, each view is requested at the change's revision, which it must have reached to answer.
//! An unexpected event would then be the next one that the test sees. After the last change, one more follows that
//! every stream must show.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{
    Lain, NODE,
    client::Answer,
    data::{self, Change},
    sse::{Event, Sse},
};
use crate::support::{kv, patience};

/// The lines of `events.jsonl` that each stream must show: `d` means that the kind is `delete`, `x` that it is `error`.
/// The last element is the final change.
pub(super) const TABLE: [(&str, &str); 22] = [
    ("/v2/coreinfowatcher", "1 3 4 5 9 11 14 23-30 35 36 38 39d 40d 41d"),
    ("/v2/coreinfowatcher?appname=hello", "1 3 4 5 9 11 23 24 25 27 36 38"),
    ("/v2/procwatcher?appname=hello", "3 4 5 9 11 23 24 25 27"),
    ("/v2/proxywatcher", "3 4 5 9 11 23-30 35 39d 40d 41d"),
    ("/v2/procwatcher?appname=*", "3 4 5 9 11 23-30 35 39d 40d 41d"),
    ("/v2/proxywatcher?appname=chat", "29 39d 40d 41d"),
    ("/v2/backupspec", "3 4 5 9 11 14 23-30 35 36 38 39d 40d 41d"),
    ("/v2/appswatcher", "41d"),
    ("/v2/streamrouter/ports", "14 41d"),
    ("/v2/containers", "1 3 4 5 9 11 14 23-30 35 39d 41d"),
    ("/v2/containers?nodename=node3", "1 5 9 11 26-30"),
    ("/v2/depends", "31 32 42"),
    ("/v2/nodes", "33d 34"),
    ("/v2/webrouter/webprocs", "3 4 5 23 24 25 27 28 29 39d"),
    ("/v2/webrouter/webprocs?appname=hello", "3 4 5 23 24x"),
    ("/v2/streamrouter/streamprocs", "14 41x"),
    ("/v2/rebellion/localprocs", "1 14 26 27 28 30 35 41d"),
    ("/v2/configwatcher", "15 16 17d 18d 19 20 21d"),
    ("/v2/configwatcher?target=vip", "17d 18d"),
    ("/v2/configwatcher?target=vips", "16 18d"),
    ("/v2/configwatcher?target=super_apps", "20 21d"),
    // Not in the page's table, because no change of the fixture affects it.
    ("/v2/configwatcher?target=domain", ""),
];
/// The streams that are also opened over HTTP/2.
const ALSO_OVER_HTTP2: [&str; 6] = [
    "/v2/coreinfowatcher",
    "/v2/proxywatcher?appname=chat",
    "/v2/webrouter/webprocs?appname=hello",
    "/v2/containers",
    "/v2/nodes",
    "/v2/configwatcher",
];
/// How long an expected event may take after its view was requested at its revision.
const EVENT_DEADLINE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn each_stream_tells_exactly_what_its_view_shows() {
    let lain = Lain::over_etcd(&data::small()).await;
    let mut streams = open(&lain, false).await;
    streams.extend(open(&lain, true).await.into_iter().filter(|stream| ALSO_OVER_HTTP2.contains(&stream.uri)));
    tell_the_changes(&lain, streams).await;
}

#[tokio::test]
async fn the_same_is_told_out_of_one_feed() {
    let lain = Lain::over_etcd_with(&data::small(), |command| command.arg(NODE[0]).arg(NODE[1]).prefix("/lain/")).await;
    let streams = open(&lain, true).await;
    tell_the_changes(&lain, streams).await;
}

#[tokio::test]
async fn the_same_is_told_over_the_embedded_store() {
    let lain = Lain::embedded(&data::small()).await;
    let streams = open(&lain, false).await;
    tell_the_changes(&lain, streams).await;
}

/// A stream with its events.
#[derive(Debug)]
struct Stream {
    uri: &'static str,
    sse: Sse,
    expected: Vec<(usize, &'static str)>,
    /// The line after which an event came, and its kind.
    seen: Vec<(usize, String)>,
    /// The data of the last event, except errors.
    last: String,
    complaints: Vec<String>,
    ended: bool,
}

async fn open(lain: &Lain, http2: bool) -> Vec<Stream> {
    let loaded = lain.kv.revision().await.to_string();
    let mut streams = Vec::new();
    for (uri, lines) in TABLE {
        let client = if http2 { lain.local().http2() } else { lain.local() };
        let mut sse = client.watch(&super::client::with(uri, "watch=1")).await;
        assert_eq!(sse.headers()["vary"], "Accept-Encoding", "{uri}");
        let index = sse.headers()["x-etcd-index"].to_str().expect("a number");
        assert_eq!(index, loaded, "the revision that {uri} begins with");
        let init = sse.expect(1, "init").await;
        assert_eq!(init, lain.get(uri).await.text(), "the init of {uri}");
        streams.push(Stream {
            uri,
            sse,
            expected: parse(lines),
            seen: Vec::new(),
            last: init,
            complaints: Vec::new(),
            ended: false,
        });
    }
    streams
}

async fn tell_the_changes(lain: &Lain, mut streams: Vec<Stream>) {
    for (index, change) in data::changes().iter().enumerate() {
        let revision = lain.apply(change).await;
        step(lain, &mut streams, index + 1, revision).await;
    }
    let finals: BTreeMap<String, String> = data::expected()
        .into_iter()
        .filter(|expected| expected.state == "final" && expected.peer == "127.0.0.1" && expected.status == 200)
        .map(|expected| (expected.uri, expected.body))
        .collect();
    let mut compared = 0;
    for stream in streams.iter_mut().filter(|stream| !stream.ended) {
        if let Some(body) = finals.get(stream.uri) {
            compared += 1;
            if stream.last != *body {
                stream.complaints.push(format!("ends with {:.300?}, and should with {body:.300?}", stream.last));
            }
        }
    }
    assert!(compared >= 12, "only {compared} streams were compared with the final answers");
    let last = data::changes().len() + 1;
    let revision = put_back(lain).await;
    for stream in streams.iter_mut().filter(|stream| !stream.ended && !stream.expected.is_empty()) {
        stream.expected.push((last, "update"));
    }
    step(lain, &mut streams, last, revision).await;
    let complaints: Vec<_> = streams.iter().flat_map(Stream::judge).collect();
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
    lain.relay.assert_no_panic();
}

/// Lets each stream send its events for this revision.
async fn step(lain: &Lain, streams: &mut [Stream], line: usize, revision: i64) {
    let uris: Vec<_> = streams.iter().filter(|stream| !stream.ended).map(|stream| stream.uri).collect();
    let answers = join_all(uris.iter().map(|uri| lain.reached_by(uri, revision))).await;
    let answers: BTreeMap<_, _> = uris.into_iter().zip(answers).collect();
    for stream in streams.iter_mut().filter(|stream| !stream.ended) {
        stream.listen(line, &answers[stream.uri]).await;
    }
}

/// Undoes all changes as one revision, which every stream must show.
async fn put_back(lain: &Lain) -> i64 {
    let changed: Vec<_> = data::changes().iter().map(|change| change.key().to_owned()).collect();
    let mut operations: Vec<_> = data::small()
        .iter()
        .filter(|entry| changed.contains(&entry.key))
        .map(|entry| kv::op_put(&entry.key, &entry.value))
        .collect();
    for (key, value) in [("vips/last", "{}"), ("super_apps/last", "{}")] {
        operations.push(kv::op_put(format!("/lain/config/{key}"), value));
    }
    lain.kv.txn(operations).await
}

impl Stream {
    /// Takes the events that are expected after this line, and any others.
    async fn listen(&mut self, line: usize, answer: &Answer) {
        if self.expected.iter().any(|(expected, _)| *expected == line) {
            match timeout(EVENT_DEADLINE.min(patience()), self.sse.take()).await {
                Ok(Some(event)) => self.hear(line, event, answer),
                _ => self.complaints.push(format!("nothing came after line {line}")),
            }
        }
        while let Some(event) = self.sse.take_now() {
            self.hear(line, event, answer);
        }
        if self.seen.last().is_some_and(|(_, kind)| kind == "error") {
            self.ended = true;
            if let Err(error) = self.sse.ended().await {
                self.complaints.push(format!("after the error: {error}"));
            }
        }
    }

    fn hear(&mut self, line: usize, event: Event, answer: &Answer) {
        let is_error = event.kind == "error";
        // `init` had 1.
        let id = if is_error { 0 } else { self.seen.len() as u64 + 2 };
        if event.id != id {
            self.complaints.push(format!("after line {line}: id {}, not {id}", event.id));
        }
        let data = event.data.unwrap_or_default();
        if data != answer.text() || is_error != (answer.status == 500) {
            let expected = (answer.status, answer.text());
            self.complaints.push(format!("after line {line}: {data:.300?}, where a GET has {expected:.300?}"));
        }
        self.seen.push((line, event.kind));
        if !is_error {
            self.last = data;
        }
    }

    fn judge(&self) -> Vec<String> {
        let mut complaints = self.complaints.clone();
        let show = |lines: Vec<(usize, &str)>| {
            let mark = |kind| match kind {
                "update" => "",
                "delete" => "d",
                "error" => "x",
                other => other,
            };
            lines.iter().map(|(line, kind)| format!("{line}{}", mark(*kind))).collect::<Vec<_>>().join(" ")
        };
        let expected = show(self.expected.clone());
        let seen = show(self.seen.iter().map(|(line, kind)| (*line, kind.as_str())).collect());
        if expected != seen {
            complaints.push(format!("spoke after the lines\n    {seen}, and should after\n    {expected}"));
        }
        complaints.iter().map(|complaint| format!("{}: {complaint}", self.sse.uri())).collect()
    }
}

/// Parses lines and kinds of events: `1 3-5 7d 8x`.
pub(super) fn parse(lines: &str) -> Vec<(usize, &'static str)> {
    let number = |text: &str| text.parse::<usize>().unwrap_or_else(|error| panic!("{lines}: {text}: {error}"));
    let mut parsed = Vec::new();
    for word in lines.split_whitespace() {
        if let Some((first, last)) = word.split_once('-') {
            parsed.extend((number(first)..=number(last)).map(|line| (line, "update")));
        } else if let Some(line) = word.strip_suffix('d') {
            parsed.push((number(line), "delete"));
        } else if let Some(line) = word.strip_suffix('x') {
            parsed.push((number(line), "error"));
        } else {
            parsed.push((number(word), "update"));
        }
    }
    parsed
}

#[tokio::test]
async fn a_change_of_many_keys_is_one_event() {
    let lain = Lain::embedded(&data::small()).await;
    let mut all = lain.watch("/v2/coreinfowatcher?watch=1").await;
    let mut chat = lain.watch("/v2/proxywatcher?appname=chat&watch=1").await;
    let mut ports = lain.watch("/v2/streamrouter/ports?watch=1").await;
    for stream in [&mut all, &mut chat, &mut ports] {
        stream.expect(1, "init").await;
    }
    // A recursive delete: all keys below, in one revision.
    let range_end = kv::prefix_end("/lain/deployd/pod_groups/chat/");
    let request = etcd_relay::pb::etcdserverpb::DeleteRangeRequest {
        key: kv::bytes("/lain/deployd/pod_groups/chat/"),
        range_end,
        ..Default::default()
    };
    let deleted = lain.kv.delete_request(request).await;
    assert_eq!(deleted.deleted, 3);
    chat.expect_event(2, "delete", "{}").await;
    ports.expect_event(2, "delete", "[]").await;
    let without = all.expect(2, "delete").await;
    assert!(!without.contains("chat."), "{without}");
    // Restored in one transaction.
    let groups: Vec<_> = data::small().into_iter().filter(|entry| entry.key.contains("/pod_groups/chat/")).collect();
    data::load(&lain.kv, &groups).await;
    let back = chat.expect(3, "update").await;
    assert_eq!(back, lain.get("/v2/proxywatcher?appname=chat").await.text());
    ports.expect_event(3, "update", "[9601,9602,9603]").await;
    assert_eq!(all.expect(3, "update").await, lain.get("/v2/coreinfowatcher").await.text());
}

#[tokio::test]
async fn an_event_is_named_after_the_last_change_that_touched_the_streams_keys() {
    let lain = Lain::embedded(&data::small()).await;
    let mut all = lain.watch("/v2/configwatcher?target=d&watch=1").await;
    let mut domains = lain.watch("/v2/configwatcher?target=domains&watch=1").await;
    let mut hijack = lain.watch("/v2/configwatcher?target=dnshijack&watch=1").await;
    for stream in [&mut all, &mut domains, &mut hijack] {
        stream.expect(1, "init").await;
    }
    let put = || kv::op_put("/lain/config/dnshijack/new", "10.0.0.1");
    let delete = || kv::op_delete("/lain/config/domains/lainlet.lain");
    lain.kv.txn(vec![put(), delete()]).await;
    all.expect(2, "delete").await;
    domains.expect(2, "delete").await;
    hijack.expect(2, "update").await;
    let operations = vec![kv::op_delete("/lain/config/dnshijack/new"), kv::op_put("/lain/config/domains/x", "{}")];
    lain.kv.txn(operations).await;
    all.expect(3, "update").await;
    domains.expect(3, "update").await;
    hijack.expect(3, "delete").await;
}

#[tokio::test]
async fn what_changes_and_changes_back_is_told_both_times() {
    let lain = Lain::embedded(&data::small()).await;
    let mut stream = lain.watch("/v2/configwatcher?target=domain&watch=1").await;
    stream.expect_event(1, "init", r#"{"domain":"lain.local"}"#).await;
    let change = |value: &str| Change::Put { key: "/lain/config/domain".to_owned(), value: value.to_owned() };
    for (id, value) in [(2, "a"), (3, "lain.local"), (4, "b")] {
        lain.apply(&change(value)).await;
        stream.expect_event(id, "update", &format!(r#"{{"domain":"{value}"}}"#)).await;
        // The same change again.
        let revision = lain.apply(&change(value)).await;
        stream.nothing_up_to(&lain, revision).await;
    }
}
