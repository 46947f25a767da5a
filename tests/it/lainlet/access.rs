//! Permissions: the caller is its address, and the current data determine what an address may see.
//!
//! The same over gRPC is in `grpc`; the original's answers to each peer are in `answers`.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    Lain, NODE,
    client::{Answer, Client, with},
    data,
};
use crate::support::relay::RelayCommand;

/// Addresses of the fixture's small cluster.
const CONSOLE: &str = "127.20.0.2";
const HELLO: &str = "127.20.0.8";
const CHAT: &str = "127.20.0.15";
const PORTAL_OF_MYSQL_FOR_HELLO: &str = "127.20.0.22";
const PORTAL_OF_REDIS_FOR_HELLO: &str = "127.20.0.27";
const UNKNOWN: &str = "127.9.9.9";

const SUPER_REQUIRED: &str = "authorize failed, super required";
const NO_PERMISSION: &str = "authorize failed, no permission";
const CANNOT_CONFIRM: &str = "authorize failed, can not confirm the app by request ip";

/// Views that only super apps may see.
const FOR_SUPER: [&str; 8] = [
    "/v2/configwatcher",
    "/v2/backupspec",
    "/v2/appswatcher",
    "/v2/containers",
    "/v2/localspecwatcher",
    "/v2/localspecquery",
    "/v2/depends",
    "/v2/nodes",
];
/// Views of which each app may see its own part.
const FOR_APPS: [&str; 6] = [
    "/v2/coreinfowatcher",
    "/v2/proxywatcher",
    "/v2/webrouter/webprocs",
    "/v2/streamrouter/streamprocs",
    "/v2/streamrouter/ports",
    "/v2/rebellion/localprocs",
];
/// Prefixes in the configuration that only super apps may request.
const SECRETS: [&str; 18] = [
    "*",
    "swarm_manager_ip",
    "super_apps",
    "dnsmasq_servers",
    "calico_default_rule",
    "calico_network",
    "dnsmasq_addresses",
    "ssl",
    "vips",
    "tinydns_fqdns",
    "bootstrap_node_ip",
    "dns_port",
    "vip",
    "etcd_cluster_token",
    "system_volumes",
    "rsyncd_secrets",
    "dns_ip",
    "node_network",
];

#[tokio::test]
async fn what_is_for_super_apps_is_for_no_other() {
    let lain = Lain::embedded(&data::small()).await;
    for uri in FOR_SUPER.into_iter().chain(["/appname"]) {
        for peer in [HELLO, PORTAL_OF_MYSQL_FOR_HELLO, UNKNOWN] {
            lain.peer(peer).get(uri).await.assert_is(400, SUPER_REQUIRED, &format!("{peer} asks {uri}"));
        }
        let (by_super, by_trusted) = (lain.peer(CONSOLE).get(uri).await, lain.get(uri).await);
        if uri == "/appname" {
            by_super.assert_is(200, r#"{"appname":"console"}"#, "console asks who it is");
            by_trusted.assert_is(500, "unkown address 127.0.0.1", "the node asks who it is");
        } else {
            assert_eq!(by_trusted.status, 200, "127.0.0.1 asks {uri}");
            by_super.assert_is(200, by_trusted.text(), &format!("console asks {uri}"));
        }
    }
    for secret in SECRETS {
        let uri = format!("/v2/configwatcher?target={secret}");
        assert_eq!(lain.peer(CONSOLE).get(&uri).await.status, 200, "console asks {uri}");
        for uri in [uri.clone(), format!("{uri}/more")] {
            for peer in [HELLO, UNKNOWN] {
                lain.peer(peer).get(&uri).await.assert_is(400, SUPER_REQUIRED, &format!("{peer} asks {uri}"));
            }
        }
    }
}

#[tokio::test]
async fn an_app_sees_itself_and_no_other() {
    let lain = Lain::embedded(&data::small()).await;
    for uri in FOR_APPS {
        let own = |app: &str| with(uri, &format!("appname={app}"));
        for (peer, app) in [(HELLO, "hello"), (CHAT, "chat"), (PORTAL_OF_MYSQL_FOR_HELLO, "mysql-service")] {
            let expected = lain.get(&own(app)).await;
            // A caller that names no app, or all of them, gets its own app.
            for uri in [uri.to_owned(), own(app), own("*"), own("")] {
                let answer = lain.peer(peer).get(&uri).await;
                answer.assert_is(expected.status, expected.text(), &format!("{peer} asks {uri}"));
            }
            for other in ["console", "con", "nosuch", "resource.redis.hello", &format!("{app}/")] {
                let answer = lain.peer(peer).get(&own(other)).await;
                answer.assert_is(400, NO_PERMISSION, &format!("{peer} asks {uri} of {other}"));
            }
        }
        lain.peer(UNKNOWN).get(uri).await.assert_is(400, CANNOT_CONFIRM, uri);
        lain.peer(UNKNOWN).get(&own("hello")).await.assert_is(400, NO_PERMISSION, uri);
        // A super app may see each app, and by default sees all.
        for asked in [uri.to_owned(), own("hello"), own("chat"), own("*")] {
            let (by_super, by_trusted) = (lain.peer(CONSOLE).get(&asked).await, lain.get(&asked).await);
            by_super.assert_is(by_trusted.status, by_trusted.text(), &format!("console asks {asked}"));
        }
    }
    let procwatcher = |parameter: &str| format!("/v2/procwatcher{parameter}");
    for (peer, parameter, status, text) in [
        (HELLO, "", 400, "appname required"),
        (HELLO, "?appname=", 400, "appname required"),
        (HELLO, "?appname=*", 400, NO_PERMISSION),
        (HELLO, "?appname=chat", 400, NO_PERMISSION),
        (UNKNOWN, "?appname=hello", 400, NO_PERMISSION),
        (UNKNOWN, "", 400, "appname required"),
        (CONSOLE, "?appname=nosuch", 200, "[]"),
    ] {
        let uri = procwatcher(parameter);
        lain.peer(peer).get(&uri).await.assert_is(status, text, &format!("{peer} asks {uri}"));
    }
    let own = lain.get(&procwatcher("?appname=hello")).await;
    lain.peer(HELLO).get(&procwatcher("?appname=hello")).await.assert_is(200, own.text(), "hello asks for its procs");
}

#[tokio::test]
async fn a_portal_sees_its_service_and_not_its_client() {
    let lain = Lain::embedded(&data::small()).await;
    for (portal, service) in
        [(PORTAL_OF_MYSQL_FOR_HELLO, "mysql-service"), (PORTAL_OF_REDIS_FOR_HELLO, "resource.redis.hello")]
    {
        let named = lain.get(&format!("/v2/proxywatcher?appname={service}")).await;
        assert!(named.text().contains(service), "{}", named.text());
        for uri in ["/v2/proxywatcher".to_owned(), format!("/v2/proxywatcher?appname={service}")] {
            lain.peer(portal).get(&uri).await.assert_is(200, named.text(), &format!("{portal} asks {uri}"));
        }
        let uri = "/v2/proxywatcher?appname=hello";
        lain.peer(portal).get(uri).await.assert_is(400, NO_PERMISSION, &format!("{portal} asks {uri}"));
        let uri = format!("/appname?ip={portal}");
        lain.get(&uri).await.assert_is(200, &format!(r#"{{"appname":"{service}"}}"#), &uri);
    }
    // A portal's key names its service, even if that contains dots.
    for (name, service) in [
        ("short", "short"),
        ("a.portal.portal-a", "a"),
        ("a.b.portal.portal-a", "a.b"),
        ("x.y.z.portal.portal-a", "x.y.z"),
    ] {
        let entry = data::portal(name, "hello", ("node1", "192.168.77.21", "127.30.0.1"));
        lain.put(&entry.key, &entry.value).await;
        let answer = lain.get("/appname?ip=127.30.0.1").await;
        answer.assert_is(200, &format!(r#"{{"appname":"{service}"}}"#), name);
        lain.delete(&entry.key).await;
        lain.get("/appname?ip=127.30.0.1").await.assert_is(500, "unkown address 127.30.0.1", name);
    }
    // The portal of a super app is not super, and an address may be the portal of several services.
    for (name, ip) in [
        ("console.portal.portal-c", "127.30.0.2"),
        ("hello.portal.portal-h", "127.30.0.3"),
        ("tinydns.portal.portal-t", "127.30.0.3"),
    ] {
        let entry = data::portal(name, "chat", ("node1", "192.168.77.21", ip));
        lain.put(&entry.key, &entry.value).await;
    }
    lain.peer("127.30.0.2").get("/v2/nodes").await.assert_is(400, SUPER_REQUIRED, "a portal of console asks");
    for service in ["hello", "tinydns"] {
        let uri = format!("/v2/proxywatcher?appname={service}");
        lain.peer("127.30.0.3").get(&uri).await.assert_is(200, lain.get(&uri).await.text(), &uri);
    }
    let uri = "/v2/proxywatcher?appname=chat";
    lain.peer("127.30.0.3").get(uri).await.assert_is(400, NO_PERMISSION, uri);
}

#[tokio::test]
async fn a_refused_watch_is_one_error_and_the_end() {
    let lain = Lain::embedded(&data::small()).await;
    for client in [Client::http2, |client| client] {
        for (peer, uri, text) in [
            (HELLO, "/v2/nodes?watch=1", SUPER_REQUIRED),
            (UNKNOWN, "/v2/configwatcher?watch=1", SUPER_REQUIRED),
            (UNKNOWN, "/v2/proxywatcher?watch=1", CANNOT_CONFIRM),
            (HELLO, "/v2/coreinfowatcher?appname=chat&watch=1", NO_PERMISSION),
            (HELLO, "/v2/coreinfowatcher?appname=hello/&watch=1", NO_PERMISSION),
            (HELLO, "/v2/procwatcher?watch=1", "appname required"),
        ] {
            client(lain.peer(peer)).watch(uri).await.expect_error(text).await;
        }
    }
    let mut own = lain.peer(HELLO).watch("/v2/proxywatcher?watch=1").await;
    own.expect_event(1, "init", lain.get("/v2/proxywatcher?appname=hello").await.text()).await;
}

#[tokio::test]
async fn a_short_target_shows_no_secret_to_those_who_are_not_super() {
    let lain = Lain::embedded(&data::small()).await;
    for (target, keys) in [
        ("rsync", &[][..]),
        ("v", &[]),
        ("calico", &[]),
        ("ss", &[]),
        ("s", &["streamrouter/vippool"]),
        ("n", &["notice"]),
        ("dns", &["dnshijack/graphite.lain"]),
        (
            "d",
            &[
                "dnshijack/graphite.lain",
                "domain",
                "domain_servers/corp.internal",
                "domains/*.lain.local",
                "domains/lainlet.lain",
            ],
        ),
    ] {
        let uri = format!("/v2/configwatcher?target={target}");
        for peer in [HELLO, UNKNOWN] {
            let answer = lain.peer(peer).get(&uri).await;
            assert_eq!(
                (answer.status, keys_of(&answer)),
                (200, keys.iter().copied().map(String::from).collect()),
                "{peer} asks {uri}"
            );
        }
        let (by_super, by_trusted) = (lain.peer(CONSOLE).get(&uri).await, lain.get(&uri).await);
        by_super.assert_is(200, by_trusted.text(), &format!("console asks {uri}"));
        assert!(keys_of(&by_super).len() > keys.len(), "{uri} shows no secret to a super app: {}", by_super.text());
    }
    // The streams of the two are separate.
    let mut of_hello = lain.peer(HELLO).watch("/v2/configwatcher?target=d&watch=1").await;
    let mut of_console = lain.peer(CONSOLE).watch("/v2/configwatcher?target=d&watch=1").await;
    assert!(!of_hello.expect(1, "init").await.contains("dns_ip"));
    assert!(of_console.expect(1, "init").await.contains("dns_ip"));
    lain.put("/lain/config/dns_ip", "10.0.0.53").await;
    assert!(of_console.expect(2, "update").await.contains("10.0.0.53"));
    lain.put("/lain/config/domain", "other.local").await;
    let seen = of_hello.expect(2, "update").await;
    assert!(seen.contains("other.local") && !seen.contains("10.0.0.53"), "{seen}");
    assert!(of_console.expect(3, "update").await.contains("other.local"));
}

#[tokio::test]
async fn a_super_app_is_one_by_its_whole_name() {
    let lain = Lain::embedded(&data::small()).await;
    let con = data::group("con.worker.idle", &[("node1", "192.168.77.21", "127.30.0.1")]);
    let longer = data::group("console2.web.web", &[("node1", "192.168.77.21", "127.30.0.2")]);
    for entry in [&con, &longer] {
        lain.put(&entry.key, &entry.value).await;
    }
    for peer in ["127.30.0.1", "127.30.0.2"] {
        lain.peer(peer).get("/v2/nodes").await.assert_is(400, SUPER_REQUIRED, peer);
        lain.peer(peer).get("/v2/proxywatcher?appname=hello").await.assert_is(400, NO_PERMISSION, peer);
    }
    assert_eq!(lain.peer(CONSOLE).get("/v2/nodes").await.status, 200);
}

#[tokio::test]
async fn super_apps_come_and_go_while_streams_stay() {
    let lain = Lain::embedded(&data::small()).await;
    let hello = lain.peer(HELLO);
    hello.get("/v2/nodes").await.assert_is(400, SUPER_REQUIRED, "before");
    // The value does not matter.
    lain.put("/lain/config/super_apps/hello", "").await;
    let by_trusted = lain.get("/v2/nodes").await;
    hello.get("/v2/nodes").await.assert_is(200, by_trusted.text(), "while hello is super");
    hello.get("/v2/proxywatcher").await.assert_is(200, lain.get("/v2/proxywatcher").await.text(), "all apps");
    let mut stream = hello.watch("/v2/nodes?watch=1").await;
    stream.expect_event(1, "init", by_trusted.text()).await;
    lain.delete("/lain/config/super_apps/hello").await;
    hello.get("/v2/nodes").await.assert_is(400, SUPER_REQUIRED, "after");
    // What was granted when the stream began holds for the stream.
    lain.put("/lain/nodes/nodes/node9:127.88.0.9:22", r#"{"name": "node9"}"#).await;
    assert!(stream.expect(2, "update").await.contains("node9"));
}

#[tokio::test]
async fn rights_end_with_the_address() {
    let lain = Lain::embedded(&data::small()).await;
    let old = lain.peer(HELLO);
    assert_eq!(old.get("/v2/proxywatcher").await.status, 200);
    // Lines 1 to 3: an upgrade gives the first instance another address.
    for change in &data::changes()[..3] {
        lain.apply_and_reach(change).await;
    }
    old.get("/v2/proxywatcher").await.assert_is(400, CANNOT_CONFIRM, "the address of the instance that went");
    let own = lain.get("/v2/proxywatcher?appname=hello").await;
    lain.peer("127.20.0.30").get("/v2/proxywatcher").await.assert_is(200, own.text(), "the new address");
    lain.peer("127.20.0.9").get("/v2/proxywatcher").await.assert_is(200, own.text(), "an address that stayed");
    // The address moves to another app, which gets it before or after the first one gives it up.
    let place = [("node1", "192.168.77.21", "127.30.0.1")];
    let name_of = async || lain.get("/appname?ip=127.30.0.1").await.text().to_owned();
    for name in ["first.web.web", "second.web.web"] {
        let group = data::group(name, &place);
        lain.put(&group.key, &group.value).await;
    }
    let scaled_to_zero = data::group("first.web.web", &[]);
    lain.put(&scaled_to_zero.key, &scaled_to_zero.value).await;
    assert_eq!(name_of().await, r#"{"appname":"second"}"#);
    lain.delete(&data::group_key("second.web.web")).await;
    assert_eq!(name_of().await, "unkown address 127.30.0.1");
    let back = data::group("first.web.web", &place);
    lain.put(&back.key, &back.value).await;
    assert_eq!(name_of().await, r#"{"appname":"first"}"#);
    // Two groups of one app have the same address, as during a move; one of them disappears.
    let twin = data::group("first.worker.twin", &place);
    lain.put(&twin.key, &twin.value).await;
    lain.delete(&back.key).await;
    assert_eq!(name_of().await, r#"{"appname":"first"}"#);
    // An unreadable group keeps its previous data, including its address.
    lain.put(&twin.key, r#"{"Spec": "#).await;
    assert_eq!(name_of().await, r#"{"appname":"first"}"#);
}

#[tokio::test]
async fn a_deleted_group_takes_no_other_with_it() {
    let lain = Lain::embedded(&[]).await;
    for (name, ip) in [
        ("a.web.web", "127.30.0.1"),
        ("a.web.web2", "127.30.0.2"),
        ("a.web.web.web.web", "127.30.0.3"),
        ("ab.web.web", "127.30.0.4"),
    ] {
        let group = data::group(name, &[("node1", "192.168.77.21", ip)]);
        lain.put(&group.key, &group.value).await;
    }
    lain.delete(&data::group_key("a.web.web")).await;
    lain.peer("127.30.0.1").get("/v2/proxywatcher").await.assert_is(400, CANNOT_CONFIRM, "the one that was deleted");
    for (ip, app, proc) in [
        ("127.30.0.2", "a", "a.web.web2"),
        ("127.30.0.3", "a.web.web", "a.web.web.web.web"),
        ("127.30.0.4", "ab", "ab.web.web"),
    ] {
        lain.get(&format!("/appname?ip={ip}")).await.assert_is(200, &format!(r#"{{"appname":"{app}"}}"#), proc);
        let answer = lain.peer(ip).get("/v2/proxywatcher").await;
        assert!(answer.status == 200 && answer.text().contains(proc), "{ip}: {}", answer.text());
    }
}

#[tokio::test]
async fn no_auth_lets_everyone_see_everything() {
    let lain = Lain::embedded_with(&data::small(), |command| command.arg("--no-auth").arg(NODE[0]).arg(NODE[1])).await;
    for uri in
        FOR_SUPER.into_iter().chain(FOR_APPS).chain(["/v2/procwatcher?appname=hello", "/v2/configwatcher?target=v"])
    {
        let by_trusted = lain.get(uri).await;
        lain.peer(UNKNOWN).get(uri).await.assert_is(200, by_trusted.text(), uri);
    }
    assert_eq!(lain.get("/v2/nodes").await.status, 200);
}

#[tokio::test]
async fn networks_and_the_node_that_flags_name_are_trusted() {
    let lain = Lain::embedded_with(&data::small(), |command| {
        command.arg("--trusted-net=127.40.0.0/16").arg("--trusted-net=127.50.0.1/32").arg("--node-ip=127.77.0.21")
    })
    .await;
    let everything = lain.get("/v2/nodes").await;
    for peer in ["127.40.0.1", "127.40.255.254", "127.50.0.1", "127.77.0.21", "127.0.0.1"] {
        lain.peer(peer).get("/v2/nodes").await.assert_is(200, everything.text(), peer);
        let all = lain.get("/v2/proxywatcher").await;
        lain.peer(peer).get("/v2/proxywatcher").await.assert_is(200, all.text(), peer);
    }
    for peer in ["127.41.0.1", "127.39.255.255", "127.50.0.2", "127.77.0.22", "127.0.0.2"] {
        lain.peer(peer).get("/v2/nodes").await.assert_is(400, SUPER_REQUIRED, peer);
    }
}

#[tokio::test]
async fn nodes_are_trusted_while_their_keys_are_there_unless_told_otherwise() {
    let node = data::entry(
        "/lain/nodes/nodes/node8:127.88.0.8:22",
        r#"{"name": "node8", "ip": "127.88.0.8", "ssh_port": 22, "docker_device": ""}"#,
    );
    let lain = Lain::embedded(&data::small()).await;
    let at_node = lain.peer("127.88.0.8");
    at_node.get("/v2/containers").await.assert_is(400, SUPER_REQUIRED, "before its key");
    lain.put(&node.key, &node.value).await;
    at_node.get("/v2/containers").await.assert_is(200, lain.get("/v2/containers").await.text(), "with its key");
    at_node.get("/v2/proxywatcher").await.assert_is(200, lain.get("/v2/proxywatcher").await.text(), "with its key");
    lain.peer("127.88.0.9").get("/v2/nodes").await.assert_is(400, SUPER_REQUIRED, "an address that no key has");
    lain.delete(&node.key).await;
    at_node.get("/v2/containers").await.assert_is(400, SUPER_REQUIRED, "without its key");

    let lain = Lain::embedded_with(&data::small(), |command| command.arg("--trust-nodes=false")).await;
    lain.put(&node.key, &node.value).await;
    assert!(lain.get("/v2/nodes").await.text().contains("127.88.0.8"));
    lain.peer("127.88.0.8").get("/v2/containers").await.assert_is(400, SUPER_REQUIRED, "with --trust-nodes=false");
}

#[tokio::test]
async fn each_node_sees_its_own_part_by_default_and_another_on_request() {
    let place = |node: &'static str, node_ip: &'static str, ip: &'static str| {
        data::group(&format!("{node}app.web.web"), &[(node, node_ip, ip)])
    };
    let mut entries = vec![place("node7", "127.88.0.7", "127.30.0.7"), place("node8", "127.88.0.8", "127.30.0.8")];
    for (name, ip) in [("node7", "127.88.0.7"), ("node8", "127.88.0.8")] {
        let value = format!(r#"{{"name": "{name}", "ip": "{ip}", "ssh_port": 22}}"#);
        entries.push(data::entry(&format!("/lain/nodes/nodes/{name}:{ip}:22"), &value));
    }
    let lain =
        Lain::embedded_with(&entries, |command| command.arg("--node-ip=127.88.0.8").arg("--node-name=node8")).await;
    let (local, spec) = ("/v2/rebellion/localprocs", "/v2/localspecquery");
    for (peer, parameter, node) in [
        ("127.88.0.7", "", "node7"),
        ("127.88.0.8", "", "node8"),
        // Not a node, so the relay's own node is used.
        ("127.0.0.1", "", "node8"),
        ("127.0.0.1", "node7", "node7"),
        ("127.88.0.8", "node7", "node7"),
        ("127.88.0.7", "node8", "node8"),
    ] {
        let what = format!("{peer} asks for {parameter:?}");
        let asked = |uri: &str, name: &str| {
            if parameter.is_empty() { uri.to_owned() } else { with(uri, &format!("{name}={parameter}")) }
        };
        let procs = lain.peer(peer).get(&asked(local, "nodename")).await;
        assert_eq!(keys_of(&procs), [format!("{node}app.web.web")], "{what}");
        let specs = lain.peer(peer).get(&asked(spec, "nodeip")).await;
        specs.assert_is(200, &format!(r#"["{node}app/{node}app.web.web"]"#), &what);
    }
    let mut stream = lain.peer("127.88.0.7").watch(&with(local, "watch=1")).await;
    assert!(stream.expect(1, "init").await.contains("node7app"));
    let other = data::group("node8app.web.more", &[("node8", "127.88.0.8", "127.30.0.9")]);
    lain.put(&other.key, &other.value).await;
    let own = data::group("node7app.web.more", &[("node7", "127.88.0.7", "127.30.0.10")]);
    lain.put(&own.key, &own.value).await;
    let seen = stream.expect(2, "update").await;
    assert!(seen.contains("node7app.web.more") && !seen.contains("node8"), "{seen}");
}

#[tokio::test]
async fn what_proxies_say_of_the_caller_is_not_believed() {
    let lain = Lain::embedded(&data::small()).await;
    let claims = |client: Client, address: &str| -> Client {
        client
            .header("x-forwarded-for", address)
            .header("x-real-ip", address)
            .header("forwarded", &format!("for={address}"))
            .header("x-client-ip", address)
            .header("true-client-ip", address)
    };
    for (peer, claimed) in [(UNKNOWN, "127.0.0.1"), (UNKNOWN, CONSOLE), (HELLO, CONSOLE), (HELLO, "127.0.0.1")] {
        for client in [lain.peer(peer), lain.peer(peer).http2()] {
            let answer = claims(client, claimed).get("/v2/nodes").await;
            answer.assert_is(400, SUPER_REQUIRED, &format!("{peer} says that it is {claimed}"));
        }
    }
    // It does not lose anything either.
    let own = lain.get("/v2/proxywatcher?appname=hello").await;
    claims(lain.peer(HELLO), UNKNOWN).get("/v2/proxywatcher").await.assert_is(200, own.text(), "hello itself");
    assert_eq!(claims(lain.local(), UNKNOWN).get("/v2/nodes").await.status, 200);
}

#[tokio::test]
async fn an_ipv4_caller_is_the_same_over_a_port_of_ipv6() {
    let relay = RelayCommand::demo().listen_http("[::ffff:127.0.0.1]:0").start().await;
    let kv = crate::support::kv::Kv::connect(&relay.endpoint()).await;
    data::load(&kv, &data::small()).await;
    let lain = Lain { relay, kv, etcd: None };
    let server = lain.relay.http_addr().to_owned();
    let (_, port) = server.rsplit_once(':').expect("a port");
    let over_ipv4 = format!("127.0.0.1:{port}");
    let revision = lain.kv.revision().await;
    let get = async |peer: &str, uri: &str| -> Answer {
        lain.peer(peer).of(&over_ipv4).get(&with(uri, &format!("min_revision={revision}"))).await
    };
    assert_eq!(get("127.0.0.1", "/v2/nodes").await.status, 200, "trusted");
    assert_eq!(get(CONSOLE, "/v2/nodes").await.status, 200, "a super app");
    get(HELLO, "/v2/nodes").await.assert_is(400, SUPER_REQUIRED, "an app");
    let own = get("127.0.0.1", "/v2/proxywatcher?appname=hello").await;
    get(HELLO, "/v2/proxywatcher").await.assert_is(200, own.text(), "an app");
    get(UNKNOWN, "/v2/proxywatcher").await.assert_is(400, CANNOT_CONFIRM, "an unknown address");
}

#[tokio::test]
async fn the_loopback_address_of_ipv6_is_trusted() {
    let relay = RelayCommand::demo().listen_http("[::1]:0").start().await;
    let client = Client::new(relay.http_addr(), Ipv6Addr::LOCALHOST.into());
    assert_eq!(client.get("/v2/nodes").await.status, 200);
    assert_eq!(client.get("/v2/proxywatcher").await.status, 200);
}

#[tokio::test]
async fn the_app_of_an_address_is_told_to_super_apps() {
    let lain = Lain::embedded(&data::small()).await;
    for (uri, status, text) in [
        ("/appname?ip=127.20.0.8", 200, r#"{"appname":"hello"}"#),
        ("/appname?ip=127.20.0.8:31234", 200, r#"{"appname":"hello"}"#),
        ("/appname?ip=127.20.0.27", 200, r#"{"appname":"resource.redis.hello"}"#),
        ("/appname/?ip=127.20.0.8", 200, r#"{"appname":"hello"}"#),
        ("/appname?ip=127.9.9.9", 500, "unkown address 127.9.9.9"),
        ("/appname?ip=nonsense", 500, "unkown address nonsense"),
        // Outside /v2/ nothing can be watched.
        ("/appname?ip=127.20.0.8&watch=1", 200, r#"{"appname":"hello"}"#),
    ] {
        for client in [lain.local(), lain.peer(CONSOLE)] {
            client.get(uri).await.assert_is(status, text, uri);
        }
        lain.peer(HELLO).get(uri).await.assert_is(400, SUPER_REQUIRED, uri);
    }
    lain.at(Ipv4Addr::LOCALHOST).get("/appname").await.assert_is(500, "unkown address 127.0.0.1", "/appname");
}

/// The members of an object.
fn keys_of(answer: &Answer) -> Vec<String> {
    answer.json().as_object().unwrap_or_else(|| panic!("no object: {}", answer.text())).keys().cloned().collect()
}
