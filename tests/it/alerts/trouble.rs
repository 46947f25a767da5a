//! Records real relays in trouble: the intended alert fires, and no other. For healthy relays, and those that recover
//! from everyday events of a cluster, no alert fires.

use std::time::Duration;

use tokio::task::JoinHandle;

use super::recording::Recording;
use crate::{
    support::{
        client::{self, WatchStream},
        etcd::Etcd,
        eventually, eventually_within,
        gate::Gate,
        kv::Kv,
        relay::{Relay, RelayCommand},
        tls::{Authority, Leaf, flag},
    },
    tls::SecureEtcd,
};

const PREFIX: &str = "/alerts/";
/// Samples of a healthy relay: ten minutes of scrapes.
const WELL: usize = 40;
/// Samples of a relay in trouble: as many.
const TROUBLE: usize = 40;
/// Longer than a relay on a busy machine takes to notice something that it checks every few seconds.
const SOON: Duration = Duration::from_secs(60);

/// Writes through a relay, and a watch that receives them, until this value is dropped.
struct Load {
    writing: JoinHandle<()>,
    _watching: WatchStream,
}

impl Load {
    async fn start(endpoint: &str) -> Self {
        let mut watching = WatchStream::open(endpoint).await;
        watching.created(client::prefix(PREFIX)).await;
        let kv = Kv::connect(endpoint).await;
        let writing = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(50));
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            for round in 0_u64.. {
                ticks.tick().await;
                let put = client_put(&kv, round);
                // While etcd is down they fail, like those of real clients.
                let _answer = tokio::time::timeout(Duration::from_secs(1), put).await;
            }
        });
        Self { writing, _watching: watching }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.writing.abort();
    }
}

async fn client_put(kv: &Kv, round: u64) -> bool {
    let put = crate::support::kv::put(format!("{PREFIX}{}", round % 10), round.to_string());
    kv.raw.clone().put(put).await.is_ok()
}

async fn led_by_the_last(etcd: &Etcd) {
    if etcd.leader().await != 2 {
        etcd.move_leader(2).await;
    }
}

/// A relay that follows etcd and has clients, sampled for a while.
async fn well(command: RelayCommand) -> (Relay, Load, Recording) {
    let relay = command.prefix(PREFIX).start().await;
    relay.follows().await;
    let load = Load::start(&relay.endpoint()).await;
    let mut recording = Recording::new();
    recording.look(relay.http_addr(), WELL).await;
    (relay, load, recording)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_well_makes_no_alert() {
    let etcd = Etcd::cluster_of_three().await;
    let (relay, _load, mut recording) = well(RelayCommand::serve(&etcd.endpoints())).await;
    // Everyday events of a cluster.
    let kv = Kv::connect(&etcd.endpoint()).await;
    kv.compact(kv.put(format!("{PREFIX}a"), "1").await).await;
    let leader = etcd.leader().await;
    etcd.move_leader((leader + 1) % 3).await;
    recording.look(relay.http_addr(), WELL).await;
    recording.fired(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_that_is_killed_makes_a_feed_that_is_not_live() {
    let mut etcd = Etcd::start().await;
    let (relay, _load, mut recording) = well(RelayCommand::serve(&[etcd.endpoint()])).await;
    etcd.kill();
    eventually("the feed notices", async || (relay.state().await["feeds"][0]["state"] != "live").then_some(())).await;
    recording.look(relay.http_addr(), TROUBLE).await;
    etcd.restart().await;
    relay.follows().await;
    recording.look(relay.http_addr(), WELL).await;
    recording.fired(&[("EtcdRelayFeedNotLive", "page")]);
}

/// A compaction that overtakes a feed once is bad luck. The second time makes an alert.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_while_cut_off_makes_resyncs() {
    let etcd = Etcd::start().await;
    let gate = Gate::before(&etcd.endpoint()).await;
    let (relay, _load, mut recording) = well(RelayCommand::serve(&[gate.endpoint()])).await;
    let direct = Kv::connect(&etcd.endpoint()).await;
    for (times, expected) in [(1.0, &[][..]), (2.0, &[("EtcdRelayResyncing", "ticket")])] {
        gate.shut();
        direct.put(format!("{PREFIX}missed"), "1").await;
        direct.put(format!("{PREFIX}missed"), "2").await;
        direct.compact(direct.put(format!("{PREFIX}missed"), "3").await).await;
        gate.open();
        eventually("the feed reads another snapshot", async || {
            let resyncs = relay.metric_of("etcd_relay_upstream_resyncs_total", r#"reason="compacted""#).await;
            (resyncs >= times).then_some(())
        })
        .await;
        relay.follows().await;
        recording.look(relay.http_addr(), WELL).await;
        recording.fired(expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_stands_still_makes_a_lag() {
    let etcd = Etcd::start().await;
    let gate = Gate::before(&etcd.endpoint()).await;
    let (relay, _load, mut recording) = well(RelayCommand::serve(&[gate.endpoint()])).await;
    gate.hold_carriers_of(b"the last that comes");
    Kv::connect(&etcd.endpoint()).await.put(format!("{PREFIX}mark"), "the last that comes").await;
    eventually_within(SOON, "the relay says that it is behind", async || {
        recording.look(relay.http_addr(), 1).await;
        (relay.metric("etcd_relay_feed_lag_seconds").await > 11.0).then_some(())
    })
    .await;
    recording.look(relay.http_addr(), TROUBLE).await;
    gate.hold_carriers_of(b"nothing that comes");
    gate.cut();
    relay.ready().await;
    recording.look(relay.http_addr(), WELL).await;
    recording.fired(&[("EtcdRelayLagging", "page")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_killed_is_a_member_that_was_left() {
    let mut etcd = Etcd::cluster_of_three().await;
    // The member that the relay starts with, so that there is no election.
    led_by_the_last(&etcd).await;
    let (relay, _load, mut recording) = well(RelayCommand::serve(&etcd.endpoints())).await;
    etcd.kill_member(0);
    eventually("it was left", async || {
        (relay.metric_of("etcd_relay_member_healthy", r#"member="1""#).await < 1.0).then_some(())
    })
    .await;
    recording.look(relay.http_addr(), TROUBLE).await;
    recording.fired(&[("EtcdRelayMemberUnhealthy", "ticket")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_quorum_makes_a_cluster_without_a_leader() {
    let mut etcd = Etcd::cluster_of_three().await;
    let (relay, _load, mut recording) = well(RelayCommand::serve(&etcd.endpoints())).await;
    etcd.kill_member(1);
    etcd.kill_member(2);
    eventually("the relay says so", async || {
        (relay.metric("etcd_relay_upstream_leaderless").await > 0.0).then_some(())
    })
    .await;
    recording.look(relay.http_addr(), TROUBLE).await;
    recording.fired(&[("EtcdRelayEtcdLeaderless", "page")]);
}

/// On both sides. A renewal a week before the end avoids alerts. After that there is a ticket, and on the last day a
/// page.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_near_their_end() {
    const DAY: i64 = 86_400;
    let ca = Authority::new("the authority");
    let etcd = SecureEtcd::start(&ca).await;
    let lasting = |days: i64| Leaf { lasts: (-3600, days * DAY), ..Leaf::default() };
    let (port, own) = (ca.issue("relay", &lasting(8)), ca.issue("own", &lasting(8)));
    let relay = etcd.relay(&ca, &own).secure(&port).arg(&flag("--trusted-ca-file", &ca.file())).start().await;
    relay.follows().await;
    let mut recording = Recording::new();
    recording.look(relay.http_addr(), WELL).await;
    recording.fired(&[]);
    let (ticket, page) = (("EtcdRelayCertificateExpiring", "ticket"), ("EtcdRelayCertificateExpiring", "page"));
    for (days, expected, taken) in [(6, &[ticket][..], 1.0), (0, &[ticket, page], 2.0)] {
        // Two hours of the last day are over.
        let leaf = if days > 0 { lasting(days) } else { Leaf { lasts: (-3600, DAY - 7200), ..Leaf::default() } };
        ca.issue("relay", &leaf);
        ca.issue("own", &leaf);
        eventually_within(SOON, "the relay takes both", async || {
            for side in ["port", "upstream"] {
                let labels = format!(r#"side="{side}",outcome="taken""#);
                if relay.metric_of("etcd_relay_tls_reloads_total", &labels).await < taken {
                    return None;
                }
            }
            Some(())
        })
        .await;
        recording.look(relay.http_addr(), TROUBLE + 10).await;
        recording.fired_on_each(expected, 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_killed_is_down() {
    let etcd = Etcd::start().await;
    let (mut relay, _load, mut recording) = well(RelayCommand::serve(&[etcd.endpoint()])).await;
    relay.kill();
    recording.look(relay.http_addr(), TROUBLE).await;
    recording.fired(&[("EtcdRelayDown", "page")]);
}

/// The client's network is gone, so its connection cannot end. The metrics port still answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_that_does_not_end_is_seen_at_the_port_for_metrics() {
    let etcd = Etcd::start().await;
    let command = RelayCommand::serve(&[etcd.endpoint()]).arg("--listen-metrics=127.0.0.1:0");
    let mut relay = command.arg("--drain-time=10m").prefix(PREFIX).start().await;
    relay.follows().await;
    let addr = relay.metrics_addrs().pop().expect("an address");
    let gate = Gate::before(&relay.endpoint()).await;
    let mut stream = WatchStream::open(&gate.endpoint()).await;
    stream.created(client::prefix(PREFIX)).await;
    let mut recording = Recording::new();
    recording.look(&addr, WELL).await;
    gate.hold();
    relay.terminate();
    recording.look(&addr, TROUBLE).await;
    assert!(relay.is_running(), "it waits for its client");
    recording.fired(&[("EtcdRelayDrainStuck", "ticket")]);
    gate.shut();
    assert_eq!(relay.exit_code(SOON).await, 0, "the port for metrics holds nothing up");
}
