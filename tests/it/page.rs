//! The page at `/` in a real browser: what it shows, that it updates, and that data from others cannot do anything in
//! it.
//!
//! The content of `/debug/state` is tested in `state`, the headers of the page's files in `front::http::page`. Without
//! Chromium each test is skipped with a message. Always holds: a test fails if a script throws, if the page's policy
//! had to stop something, or if the browser sent a request to any other address than the relay.

use std::{convert::Infallible, path::Path};

use bytes::Bytes;
use etcd_relay::pb::etcdserverpb::WatchCreateRequest;
use http_body_util::Empty;
use hyper::{Request, Response, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::support::{
    browser::Browser,
    client::{self, WatchStream},
    etcd::Etcd,
    eventually, http,
    kv::Kv,
    relay::{Relay, RelayCommand},
};

/// Would run a script if it entered the page as anything but text.
const HOSTILE: &str = "</pre></script><script>window.harmed=1</script><img src=x onerror=\"window.harmed=2\"><a href=javascript:window.harmed=3>";

async fn open(browser: &mut Browser, relay: &Relay, part: &str) {
    browser.open(&format!("http://{}/#{part}", relay.http_addr())).await;
    browser.until_text("#link", "live").await;
}

/// Fails if the page caused errors or requests to other addresses.
async fn assert_at_peace(browser: &mut Browser, relay: &Relay) {
    let complaints = browser.complaints().await;
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    let home = format!("http://{}/", relay.http_addr());
    for request in browser.requests().await {
        assert!(
            request.starts_with(&home) || request.starts_with("data:") || request == "about:blank",
            "asked for {request}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_overview_shows_the_cluster_and_changes_with_it() {
    let Some(mut browser) = Browser::start().await else { return };
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("/a/").prefix("/b/").start().await;
    relay.follows().await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    let first = kv.put("/a/x", "1").await;
    let mut stream = WatchStream::open(&relay.endpoint()).await;
    stream.created(client::prefix("/a/")).await;
    open(&mut browser, &relay, "overview").await;
    browser.until_text("#ready", "ready").await;
    browser.until_text("#tiles", &first.to_string()).await;
    let id = relay.state().await["cluster"]["id"].as_str().expect("a cluster").to_owned();
    for shown in [&*id, &*etcd.endpoint(), "1 key", "every feed is up to date"] {
        browser.until_text("#tiles", shown).await;
    }
    browser.until_text("#members", "healthy").await;
    browser.until("document.querySelectorAll('#feeds tr').length === 2").await;
    for shown in ["[\"/a/\", \"/a0\")", "[\"/b/\", \"/b0\")", "live", &*etcd.endpoint(), "none"] {
        browser.until_text("#feeds", shown).await;
    }
    // The page is loaded once; all changes happen in it.
    browser.value("window.same = true").await;
    let mut last = first;
    for round in 0..50 {
        last = kv.put("/a/x", format!("{round}")).await;
    }
    stream.until_revision(last).await;
    browser.until_text("#feeds", &last.to_string()).await;
    browser.until_text("#tiles", &last.to_string()).await;
    let drawn = "[...document.querySelectorAll('.chart-line')].every(line => line.getAttribute('d').includes('L'))";
    browser.until(drawn).await;
    drop(stream);
    browser
        .until("[...document.querySelectorAll('#feeds tr')].every(row => row.children[7].textContent === '0')")
        .await;
    assert_eq!(browser.value("window.same").await, true);
    assert_at_peace(&mut browser, &relay).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_show_who_watches_what_and_who_is_behind() {
    let Some(mut browser) = Browser::start().await else { return };
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("/a/").arg("--stream-buffer-bytes=65536").start().await;
    relay.follows().await;
    let mut streams = Vec::new();
    for key in ["/a/one", "/a/two"] {
        let mut stream = WatchStream::open(&relay.endpoint()).await;
        stream.created(client::key(key)).await;
        streams.push(stream);
    }
    open(&mut browser, &relay, "connections").await;
    browser.until_text("#connections", "\"/a/one\"").await;
    browser.until_text("#connections", "\"/a/two\"").await;
    browser.until_text("#connections", "tonic/").await;
    browser.until_text("#connections", "/debug/state?watch=").await;
    // The relay does the search.
    browser.type_into("#find", "/a/two").await;
    browser.until("document.querySelector('#connections').innerText.includes('/a/two') && !document.querySelector('#connections').innerText.includes('/a/one')").await;
    // A client that does not read falls behind.
    browser.value("(() => { const find = document.querySelector('#find'); find.value = ''; find.dispatchEvent(new Event('input')); })()").await;
    browser.value("document.querySelector('#only-behind').click()").await;
    browser.until_text("#connections-empty", "No connection is behind").await;
    streams[0].pause();
    let kv = Kv::connect(&etcd.endpoint()).await;
    let value = "x".repeat(100_000);
    eventually("the client is behind", async || {
        kv.put("/a/one", &value).await;
        let page = http::get(relay.http_addr(), "/debug/state/connections?behind=true").await.expect("an answer").body;
        page.contains("parked").then_some(())
    })
    .await;
    browser.until_text("#connections", "parked").await;
    browser.until_text("#connections", "revision").await;
    browser.until("document.querySelectorAll('#connections tr').length === 1").await;
    browser.value("location.hash = '#overview'").await;
    browser.until_text("#behind", "\"/a/one\"").await;
    streams[0].resume();
    let last = kv.put("/a/one", "end").await;
    streams[0].until_revision(last).await;
    browser.until_text("#behind-empty", "every watch has received everything").await;
    assert_at_peace(&mut browser, &relay).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_shown_with_their_values_as_they_change() {
    let Some(mut browser) = Browser::start().await else { return };
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("").start().await;
    let kv = Kv::connect(&relay.endpoint()).await;
    for number in 0..250 {
        kv.put(format!("/many/{number:03}"), "v").await;
    }
    kv.put("/app/a", "old value").await;
    kv.put(b"/app/\xff<b>", [0xfe_u8, b'<']).await;
    open(&mut browser, &relay, "keys=%2Fapp%2F").await;
    browser.until_text("#keys", "old value").await;
    browser.until_text("#keys", "/app/\\xff<b>").await;
    browser.until_text("#keys-state", "live").await;
    kv.put("/app/a", "{\"new\":[\"value\"]}").await;
    kv.put("/app/b", "another").await;
    browser.until_text("#keys", "{\"new\":[\"value\"]}").await;
    browser.until_text("#keys", "another").await;
    // Opens a key by the keyboard, and follows its changes.
    browser.value("document.querySelector('#keys button').focus()").await;
    browser.press("Enter", 13, "\r").await;
    browser.until_text("#key-value", "\"value\"").await;
    browser.until_text("#key-facts", "Version").await;
    kv.put("/app/a", "newest").await;
    browser.until_text("#key-value", "newest").await;
    kv.delete("/app/a").await;
    browser.until_text("#key-facts", "deleted").await;
    browser.until("!document.querySelector('#keys').innerText.includes('/app/a')").await;
    browser.press("Escape", 27, "").await;
    browser.until("document.querySelector('#key').hidden").await;
    // Pages: the second has the remaining keys, and follows only those.
    browser.value("location.hash = '#keys=%2Fmany%2F'").await;
    browser.until_text("#keys", "/many/099").await;
    assert!(!browser.text("#keys").await.contains("/many/100"));
    browser.value("document.querySelector('#keys-pager button:last-child').click()").await;
    browser.until_text("#keys", "/many/100").await;
    browser.until_text("#keys-state", "live").await;
    kv.put("/many/099", "elsewhere").await;
    kv.put("/many/150", "here").await;
    browser.until_text("#keys", "here").await;
    assert!(!browser.text("#keys").await.contains("elsewhere"));
    assert_at_peace(&mut browser, &relay).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_choose_is_shown_as_text() {
    let Some(mut browser) = Browser::start().await else { return };
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("").start().await;
    let kv = Kv::connect(&relay.endpoint()).await;
    kv.put(format!("/h/{HOSTILE}"), HOSTILE).await;
    kv.put("/lain/config/hostile", HOSTILE).await;
    let mut stream = WatchStream::open(&relay.endpoint()).await;
    stream.created(client::key(format!("/h/{HOSTILE}"))).await;
    // A stream of events keeps its connection. Its client can use any name.
    let mut agent = TcpStream::connect(relay.http_addr()).await.expect("connected");
    let request = format!("GET /debug/state?watch=5s HTTP/1.1\r\nHost: localhost\r\nUser-Agent: {HOSTILE}\r\n\r\n");
    agent.write_all(request.as_bytes()).await.expect("a request");
    assert!(agent.read(&mut [0; 64]).await.expect("an answer") > 0);

    open(&mut browser, &relay, "connections").await;
    // Keys and agents are shown escaped and cut.
    browser.until_text("#connections", "<script>window.harmed=1</script>").await;
    browser.until("[...document.querySelectorAll('#connections .second')].some(agent => agent.textContent.startsWith('</pre></script><script>'))").await;
    browser.type_into("#find", "<script>").await;
    browser.until("document.querySelectorAll('#connections tr').length === 2").await;
    browser.value(&format!("location.hash = '#keys=' + encodeURIComponent('/h/' + {})", json!(&HOSTILE[..10]))).await;
    browser.until_text("#keys", HOSTILE).await;
    browser.value("document.querySelector('#keys button').click()").await;
    browser.until(&format!("document.querySelector('#key-value').textContent === {}", json!(HOSTILE))).await;
    browser.until(&format!("document.querySelector('#key-name').textContent === '/h/' + {}", json!(HOSTILE))).await;
    browser.value("location.hash = '#views'").await;
    browser.until_text("#views", "/v2/configwatcher").await;
    browser.value("[...document.querySelectorAll('#views li')].find(item => item.innerText.includes('/v2/configwatcher')).querySelector('button').click()").await;
    browser.until_text("#view-text", "window.harmed=1").await;
    assert_unharmed(&mut browser).await;
    assert_at_peace(&mut browser, &relay).await;

    // Texts from an untrusted upstream.
    let upstream = hostile_upstream().await;
    let relay = RelayCommand::serve(&[upstream]).prefix("/a/").unready().start().await;
    open(&mut browser, &relay, "overview").await;
    browser.until_text("#feeds", "ongoing").await;
    browser.value("document.querySelector('#feeds details').open = true").await;
    browser.until_text("#feeds", "<script>window.harmed=1</script>").await;
    browser.until_text("#notice", "<script>window.harmed=1</script>").await;
    assert_unharmed(&mut browser).await;
    assert_at_peace(&mut browser, &relay).await;
}

async fn assert_unharmed(browser: &mut Browser) {
    assert_eq!(browser.value("window.harmed ?? null").await, Value::Null);
    let foreign =
        "document.querySelectorAll('img:not(.brand img), a[href^=\"javascript\"], body script, iframe').length";
    assert_eq!(browser.value(foreign).await, 0);
}

/// Answers every call with an error that contains [`HOSTILE`].
async fn hostile_upstream() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let addr = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(async |_: Request<hyper::body::Incoming>| {
                let message: String = HOSTILE.bytes().map(|byte| format!("%{byte:02X}")).collect();
                let response = Response::builder()
                    .header("content-type", "application/grpc")
                    .header("grpc-status", "14")
                    .header("grpc-message", message);
                Ok::<_, Infallible>(response.body(Empty::<Bytes>::new()).expect("a response"))
            });
            tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service));
        }
    });
    format!("http://{addr}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_nobody_sees_costs_nothing_and_one_that_lost_its_relay_comes_back() {
    let Some(mut browser) = Browser::start().await else { return };
    let etcd = Etcd::start().await;
    let mut relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("/a/").start().await;
    open(&mut browser, &relay, "overview").await;
    eventually("the page has a stream", async || (state_streams(&relay).await == 1).then_some(())).await;
    hide(&mut browser, true).await;
    browser.until_text("#link", "paused").await;
    eventually("the stream is closed", async || (state_streams(&relay).await == 0).then_some(())).await;
    hide(&mut browser, false).await;
    browser.until_text("#link", "live").await;
    // Another part follows another part of the state, with one stream at a time.
    browser.value("location.hash = '#connections'").await;
    browser.until_text("#connections", "connections=50").await;
    eventually("one stream is left", async || (state_streams(&relay).await == 1).then_some(())).await;
    assert_at_peace(&mut browser, &relay).await;

    let addr = relay.http_addr().to_owned();
    relay.kill();
    browser.until_text("#link", "disconnected").await;
    browser.until_text("#notice", "Retrying").await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("/a/").listen_http(&addr).start().await;
    browser.until_text("#link", "live").await;
    browser.until("document.querySelector('#notice').hidden").await;
    drop(relay);
}

/// Pauses before retries are recorded and not waited for. The last streams are kept where a test can break them.
const RECORD: &str = "(() => {
    window.pauses = [];
    const wait = window.setTimeout;
    window.setTimeout = (act, pause) => {
        if (pause < 1000 || pause > 10000) return wait(act, pause);
        window.pauses.push(pause);
        return wait(act, 0);
    };
    window.streams = [];
    const Real = window.EventSource;
    window.EventSource = class extends Real {
        constructor(path) {
            super(path.startsWith('/v1/watch') && window.refuses ? '/nothing' : path);
            window.streams.push(this);
        }
    };
})()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_comes_and_goes_leaves_one_stream() {
    let Some(mut browser) = Browser::start().await else { return };
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("/a/").start().await;
    open(&mut browser, &relay, "overview").await;
    browser.value(RECORD).await;
    // The answers to the question why a stream broke come late, and after the next stream broke too.
    browser
        .value(
            "(() => {
                window.answered = 0;
                const go = new Promise((resolve) => { window.answer = resolve; });
                const ask = window.fetch;
                window.fetch = async (...asked) => {
                    const answer = await ask(...asked);
                    await go;
                    window.answered += 1;
                    return answer;
                };
                window.dispatchEvent(new Event('online'));
                streams.at(-1).dispatchEvent(new Event('error'));
                window.dispatchEvent(new Event('online'));
                streams.at(-1).dispatchEvent(new Event('error'));
                window.answer();
            })()",
        )
        .await;
    browser.until("answered === 2").await;
    browser.until_text("#link", "live").await;
    assert_eq!(browser.value("pauses.length").await, 1, "one retry follows, for the stream that broke last");
    assert_eq!(browser.value("streams.filter((stream) => stream.readyState !== 2).length").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_keys_that_cannot_be_followed_is_read_less_and_less_often() {
    let Some(mut browser) = Browser::start().await else { return };
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("").start().await;
    open(&mut browser, &relay, "overview").await;
    browser.value(RECORD).await;
    browser.value("window.refuses = true").await;
    browser.value("location.hash = '#keys=%2F'").await;
    browser.until("pauses.length >= 5").await;
    assert_eq!(browser.value("pauses.slice(0, 5)").await, json!([1000, 2000, 4000, 8000, 10000]));
    browser.value("window.refuses = false").await;
    browser.until("document.querySelector('#keys-state').textContent === 'live'").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_is_not_valid_is_followed_as_it_is() {
    let Some(mut browser) = Browser::start().await else { return };
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("").start().await;
    open(&mut browser, &relay, "keys=%zz").await;
    browser.until("document.querySelector('#prefix').value === '%zz'").await;
    assert_at_peace(&mut browser, &relay).await;
}

/// A browser without a screen never hides a page by itself.
async fn hide(browser: &mut Browser, hidden: bool) {
    let expression = format!(
        "Object.defineProperty(document, 'hidden', {{ configurable: true, get: () => {hidden} }}); document.dispatchEvent(new Event('visibilitychange'))"
    );
    browser.value(&expression).await;
}

/// Open streams of the state. Those of the page have their own connections.
async fn state_streams(relay: &Relay) -> usize {
    let state = relay.state().await;
    let connections = state["connections"].as_array().expect("a list");
    let requests = connections.iter().filter_map(|connection| connection["request"].as_str());
    requests.filter(|request| request.starts_with("/debug/state?watch")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_may_not_look_is_told_who_may() {
    let Some(mut browser) = Browser::start().await else { return };
    let relay = RelayCommand::demo().arg("--debug-from=nobody").start().await;
    browser.open(&format!("http://{}/", relay.http_addr())).await;
    browser.until_text("#link", "not allowed").await;
    browser.until_text("#notice", "--debug-from nobody").await;
}

/// On a phone nothing needs sideways scrolling. With `ETCD_RELAY_SCREENSHOTS=FOLDER`, it saves pictures there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_fits_a_phone_and_a_large_screen() {
    let Some(mut browser) = Browser::start().await else { return };
    let etcd = Etcd::cluster_of_three().await;
    let relay = RelayCommand::serve(&etcd.endpoints())
        .prefix("/registry/")
        .prefix("/lain/")
        .prefix("/apisix/")
        .arg("--stream-buffer-bytes=65536")
        .start()
        .await;
    relay.follows().await;
    let kv = Kv::connect(&relay.endpoint()).await;
    let mut streams = Vec::new();
    for number in 0..12 {
        let mut stream = WatchStream::open(&relay.endpoint()).await;
        stream.created(client::prefix(["/registry/pods/", "/registry/services/", "/apisix/routes/"][number % 3])).await;
        stream
            .created(WatchCreateRequest { progress_notify: true, ..client::key(format!("/apisix/upstreams/{number}")) })
            .await;
        streams.push(stream);
    }
    streams[3].pause();
    let value = "x".repeat(20_000);
    eventually("a client is behind", async || {
        kv.put("/registry/pods/large", &value).await;
        let page = http::get(relay.http_addr(), "/debug/state/connections?behind=true").await.expect("an answer").body;
        page.contains("parked").then_some(())
    })
    .await;
    let pod = json!({ "kind": "Pod", "metadata": { "name": "web-0", "namespace": "default", "labels": { "app": "web" } }, "spec": { "nodeName": "node-3" } });
    for number in 0..40 {
        kv.put(format!("/registry/pods/default/web-{number}"), pod.to_string()).await;
        kv.put(format!("/apisix/routes/{number}"), format!("{{\"uri\":\"/{number}\"}}")).await;
    }
    let pictures = std::env::var("ETCD_RELAY_SCREENSHOTS").ok();
    for (part, wanted) in [
        ("overview", "#feeds"),
        ("connections", "#connections"),
        ("keys=%2Fregistry%2Fpods%2Fdefault%2F", "#keys"),
        ("views", "#views"),
    ] {
        open(&mut browser, &relay, part).await;
        browser.until(&format!("document.querySelector('{wanted}').children.length > 0")).await;
        if pictures.is_some() && part == "overview" {
            busy(&kv).await;
        }
        for (width, height, scheme) in
            [(1400, 900, "light"), (1400, 900, "dark"), (390, 844, "light"), (390, 844, "dark")]
        {
            browser.screen(width, height, scheme).await;
            browser.until(&format!("innerWidth === {width}")).await;
            let wide = browser.value("document.documentElement.scrollWidth").await;
            assert!(wide.as_u64() <= Some(width.into()), "{part} is {wide} wide on {width}");
            if let Some(folder) = &pictures {
                let size = if width > 1000 { "wide" } else { "narrow" };
                let part = part.split('=').next().expect("a name");
                browser.picture(&Path::new(folder).join(format!("page-{part}-{size}-{scheme}.png"))).await;
            }
        }
        browser.screen(1400, 900, "light").await;
    }
    assert_at_peace(&mut browser, &relay).await;
}

/// Produces data for the charts.
async fn busy(kv: &Kv) {
    let begun = std::time::Instant::now();
    let mut number = 0;
    while begun.elapsed().as_secs() < 60 {
        number += 1;
        kv.put(format!("/registry/pods/default/web-{}", number % 40), format!("{number}")).await;
        let pause = 10.0 + 8.0 * (begun.elapsed().as_secs_f64() / 5.0).sin();
        tokio::time::sleep(std::time::Duration::from_secs_f64(pause / 1000.0)).await;
    }
}
