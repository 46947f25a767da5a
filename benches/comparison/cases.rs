//! The loads, the servers they run on, and the goals of the relay for each.
//!
//! Running them is in `run`. Always holds: a case has a name, and each of its runs ends.

use std::time::Duration;

use super::run::Target;

/// One load on several servers.
#[derive(Debug)]
pub struct Case {
    /// The name on the command line.
    pub name: &'static str,
    /// The description for people.
    pub what: String,
    /// The runs.
    pub runs: Vec<Run>,
    /// The goals.
    pub goals: Vec<Goal>,
}

/// One load on one server.
#[derive(Debug)]
pub struct Run {
    /// The label in the table.
    pub label: &'static str,
    /// The server.
    pub target: Target,
    /// The arguments for `etcd-relay bench`.
    pub args: Vec<String>,
    /// The number of repetitions. The runs of a case take turns, and the median counts.
    pub times: usize,
    /// Whether all sides use TLS, with client certificates.
    pub tls: bool,
    /// The number of keys that exist beforehand.
    pub filled: u64,
    /// Whether reading these keys once is all of the load: by the server while it starts, or from etcd in one call.
    pub reads_once: bool,
    /// The number of relays behind the server. The load is on the first of them, if there are any.
    pub leaves: u64,
    /// Longest duration. Servers other than the relay may fail by taking longer.
    pub patience: Duration,
}

/// A goal for the relay.
#[derive(Debug)]
pub struct Goal {
    /// The name of the measurement.
    pub what: &'static str,
    /// The run that is measured.
    pub of: &'static str,
    /// The run to compare with; `None` if the measurement itself must reach the bound.
    pub against: Option<&'static str>,
    /// Where the measurement is in a report.
    pub figure: Figure,
    /// Where it is in the report of the other run.
    pub theirs: Figure,
    /// The bound to reach.
    pub bound: Bound,
}

/// Where a measurement is in a report.
#[derive(Clone, Copy, Debug)]
pub enum Figure {
    /// A measurement of the run.
    Run(&'static str),
    /// A measurement of the server process; for bare sockets, of their sender.
    Server(&'static str),
    /// A measurement of etcd.
    Etcd(&'static str),
    /// One of the relay's own metrics: its name and part.
    Metric(&'static str, &'static str),
}

/// An upper or a lower bound.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// At most.
    Most(f64),
    /// At least.
    Least(f64),
}

const CPU: Figure = Figure::Server("cpu_us_each");
const P99: Figure = Figure::Run("delay_99_ms");
/// The same while other clients arrived.
const P99_MEANWHILE: Figure = Figure::Run("joining_delay_99_ms");
/// The time until all clients had arrived.
const ALL_BACK: Figure = Figure::Run("joining_seconds");
/// The CPU time of etcd while all keys were read once.
const CPU_OF_READING: Figure = Figure::Etcd("cpu_seconds");
const MEMORY: Figure = Figure::Server("kib_per_connection");
const MINUTE: Duration = Duration::from_secs(60);
/// The rate of writes is fixed, so the cost of the same number of writes for etcd can be compared.
const CPU_OF_ETCD: Figure = Figure::Etcd("cpu_us_per_write");
/// Repetitions if a single run is not precise enough: other work on the machine changes a single measurement by a
/// quarter.
const TIMES: usize = 3;
/// Repetitions if the two sides are expected to be nearly equal.
const MANY_TIMES: usize = 5;

/// How long the feed was held up: an upper bound of its longest wait for its lock before it could push.
const PAUSE: Figure = Figure::Metric("etcd_relay_publish_seconds{part=\"waiting\"}", "max_at_most_ms");
/// An upper bound of 99 % of the waits of the relay's tasks, including its feeds, for a core. The longest wait depends
/// on the scheduler, because the load uses the machine as well.
const TURN_99: Figure = Figure::Metric("etcd_relay_turn_seconds", "99_at_most_ms");

/// All cases; small and short ones for a smoke run.
pub fn all(quick: bool) -> Vec<Case> {
    // Shorter if there are several.
    let time = if quick { "1s" } else { "10s" };
    let often = if quick { "1s" } else { "5s" };
    let size = |full: u32, small: u32| if quick { small } else { full };
    let times = |times: usize| if quick { 1 } else { times };
    let watch = |rest: String| format!("watch --duration {time} {rest}");
    let watch_often = |rest: String| format!("watch --duration {often} {rest}");
    let floor = |rest: String| format!("floor --duration {often} {rest}");

    let many = size(1_000, 20);
    let prefix_100 = watch_often(format!("--connections {many} --rate 100"));
    let spread = size(100, 5);
    let prefix_10 = watch_often(format!("--connections {spread} --watches {spread} --rate 10"));
    // A number of writes instead of a time: what etcd accepts in ten seconds takes minutes to deliver. etcd itself
    // would also take minutes for these, at 0.1 million deliveries per second, so it is not run.
    let full = format!("watch --puts {} --connections {}", size(20_000, 100), size(500, 10));
    let keys = size(3_000, 30);
    let distinct = watch(format!(
        "--connections {} --watches {keys} --distinct --keys {keys} --value-size 5000 --rate {} --patience 20s",
        size(100, 4),
        size(500, 50)
    ));
    let memory = watch(format!("--connections {} --rate 2", size(8_000, 50)));
    let more = watch(format!("--connections {} --rate 2", size(18_000, 50)));
    let fewer = watch(format!("--connections {} --rate 20", size(1_000, 50)));
    let bare_many = floor(format!("--connections {} --rate 2", size(9_000, 25)));
    let bare_fewer = floor(format!("--connections {} --rate 20", size(1_000, 50)));
    let millions = format!(
        "watch --connections {} --streams {} --watches {keys} --distinct --keys {keys} --puts {keys} --rate {} --patience 60s",
        size(35, 2),
        size(100, 2),
        size(30, 100)
    );
    let read = format!("range --duration {often} --connections 16 --concurrency 160");
    let read_all =
        format!("range --duration {often} --connections 16 --concurrency 16 --all --keys {}", size(1_000, 50));
    // As many watchers as are healthy in the other runs, since only their delays are reported.
    let stay = if quick { "1s" } else { "8s" };
    let healthy = format!("watch --duration {stay} --connections {} --rate 100", size(198, 8));
    let mixed = format!("watch --duration {stay} --connections {} --slow 1 --reconnect 1 --rate 100", size(200, 10));
    let (joiners, listed) = (size(50, 3), size(500_000, 2_000));
    // The server is dropped together with its keys, because deleting half a million would take longer than the run.
    let joining = watch_often(format!(
        "--connections {} --rate 100 --join {joiners} --join-after 2s --keys {listed} --keep --patience 30s",
        size(100, 8)
    ));
    let watched = watch_often(format!("--connections {} --rate 100", size(100, 8)));
    let storming = size(2_000, 20);
    let calm = watch_often("--connections 10 --rate 100".to_owned());
    let storm = format!("{calm} --storm {storming} --join-after 1s --patience 30s");
    // Each key has as many watches as there are streams for it: 40,000 over 4,000 keys.
    let (followers, followed) = (size(400, 4), size(4_000, 40));
    let own_keys = format!("watch --connections {followers} --streams {} --distinct --keys {followed}", size(100, 10));
    let own_keys_often = format!("{own_keys} --duration {time} --rate {}", size(6_000, 100));
    let own_keys_full = format!("{own_keys} --puts {}", size(40_000, 100));
    let put_followed = format!("put --duration {often} --connections 10 --concurrency 80");
    // Nobody watches these keys: not the relay either, since for etcd a watch of them makes each put dearer.
    let put = format!("{put_followed} --prefix /etcd-relay-puts/");
    let many_keys = u64::from(size(1_000_000, 2_000));
    let first = |label, target, times| Run {
        filled: many_keys,
        reads_once: true,
        patience: 4 * MINUTE,
        ..run(label, target, "").times(times)
    };
    let one = |rest: &str| watch_often(format!("--connections 1 {rest}"));

    vec![
        Case {
            name: "fan-out",
            what: format!("{many} connections × 1 watch, one prefix, 100 puts/s"),
            runs: vec![
                run("relay", Target::Relay, &prefix_100).times(times(TIMES)),
                run("relay, --io epoll", Target::RelayByEpoll, &prefix_100).times(times(TIMES)),
                run("grpc-proxy", Target::Proxy, &prefix_100).times(times(TIMES)),
                run("etcd", Target::Etcd, &prefix_100),
                run("bare sockets", Target::Floor, &floor(format!("--connections {many} --rate 100")))
                    .times(times(TIMES)),
                run("etcd, one watcher", Target::Etcd, &one("--rate 100")).times(times(TIMES)),
            ],
            goals: vec![
                goal("CPU per delivery", "relay", "grpc-proxy", CPU, Bound::Most(0.33)),
                goal("CPU per delivery", "relay", "bare sockets", CPU, Bound::Most(1.0)),
                goal("CPU per delivery", "relay, --io epoll", "bare sockets", CPU, Bound::Most(1.25)),
                goal("99 % delay", "relay", "grpc-proxy", P99, Bound::Most(0.2)),
                goal("99 % delay", "relay", "etcd", P99, Bound::Most(0.25)),
                goal("CPU of etcd", "relay", "etcd, one watcher", CPU_OF_ETCD, Bound::Most(1.1)),
            ],
        },
        Case {
            name: "tls",
            what: format!("{many} connections × 1 watch, one prefix, 100 puts/s, with TLS on all sides"),
            runs: vec![
                run("relay", Target::Relay, &prefix_100).over_tls().times(times(TIMES)),
                run("relay without TLS", Target::Relay, &prefix_100).times(times(TIMES)),
                run("grpc-proxy", Target::Proxy, &prefix_100).over_tls().times(times(TIMES)),
                run("etcd", Target::Etcd, &prefix_100).over_tls(),
            ],
            goals: vec![
                goal("CPU per delivery", "relay", "grpc-proxy", CPU, Bound::Most(0.6)),
                goal("CPU per delivery", "relay", "relay without TLS", CPU, Bound::Most(1.5)),
                goal("99 % delay", "relay", "grpc-proxy", P99, Bound::Most(0.2)),
                goal("memory per connection", "relay", "grpc-proxy", MEMORY, Bound::Most(0.4)),
            ],
        },
        Case {
            name: "tls-storm",
            what: format!("{storming} clients that connect at once over TLS, beside 10 that watch, 100 puts/s"),
            runs: vec![
                run("relay", Target::Relay, &storm).over_tls().times(times(TIMES)),
                run("relay, nobody comes", Target::Relay, &calm).over_tls().times(times(TIMES)),
                run("rustls alone", Target::Floor, &format!("handshakes --connections {storming}"))
                    .over_tls()
                    .times(times(TIMES)),
                // The part of it that is not TLS.
                run("relay without TLS", Target::Relay, &storm).times(times(TIMES)),
            ],
            goals: vec![
                goal("time until all are back", "relay", "rustls alone", ALL_BACK, Bound::Most(1.5)),
                Goal {
                    theirs: P99,
                    ..goal("99 % delay meanwhile", "relay", "relay, nobody comes", P99_MEANWHILE, Bound::Most(3.0))
                },
            ],
        },
        Case {
            name: "sse",
            what: format!("{many} connections × 1 watch over plain HTTP (`GET /v1/watch`), one prefix, 100 puts/s"),
            runs: vec![
                run("relay", Target::Relay, &format!("{prefix_100} --sse")).times(times(TIMES)),
                run("relay over gRPC", Target::Relay, &prefix_100).times(times(TIMES)),
            ],
            goals: vec![goal("CPU per delivery", "relay", "relay over gRPC", CPU, Bound::Most(1.1))],
        },
        Case {
            name: "many-watches",
            what: format!("{spread} connections × {spread} watches, one prefix, 10 puts/s"),
            runs: vec![
                run("relay", Target::Relay, &prefix_10).times(times(TIMES)),
                run("grpc-proxy", Target::Proxy, &prefix_10).times(times(TIMES)),
                run("etcd", Target::Etcd, &prefix_10),
                run(
                    "bare sockets",
                    Target::Floor,
                    &floor(format!("--connections {spread} --watches {spread} --rate 10")),
                ),
                run("etcd, one watcher", Target::Etcd, &one("--rate 10")).times(times(TIMES)),
            ],
            goals: vec![
                goal("CPU per delivery", "relay", "grpc-proxy", CPU, Bound::Most(0.05)),
                goal("CPU of etcd", "relay", "etcd, one watcher", CPU_OF_ETCD, Bound::Most(1.1)),
            ],
        },
        Case {
            name: "as-fast-as-possible",
            what: format!(
                "{} connections × 1 watch, one prefix, {} puts as fast as etcd takes them",
                size(500, 10),
                size(20_000, 100)
            ),
            runs: vec![
                run("relay", Target::Relay, &full).times(times(TIMES)),
                run("grpc-proxy", Target::Proxy, &full).times(times(TIMES)),
                run("bare sockets", Target::Floor, &floor(format!("--connections {}", size(500, 10)))),
            ],
            goals: vec![
                goal("CPU per delivery", "relay", "grpc-proxy", CPU, Bound::Most(0.7)),
                goal("deliveries/s", "relay", "grpc-proxy", Figure::Run("deliveries_per_second"), Bound::Least(1.2)),
            ],
        },
        Case {
            name: "distinct-keys",
            what: format!(
                "{} connections × {keys} watches on {keys} distinct keys, 5,000 B values, {} puts/s",
                size(100, 4),
                size(500, 50)
            ),
            runs: vec![
                run("relay", Target::Relay, &distinct).times(times(TIMES)),
                run("grpc-proxy", Target::Proxy, &distinct),
                run(
                    "etcd, one watcher",
                    Target::Etcd,
                    &one(&format!("--keys {keys} --value-size 5000 --rate {}", size(500, 50))),
                ),
            ],
            goals: vec![
                goal("99 % delay", "relay", "grpc-proxy", P99, Bound::Most(0.01)),
                goal("time to create", "relay", "grpc-proxy", Figure::Run("create_seconds"), Bound::Most(0.1)),
                absolute("bytes per watch", "relay", Figure::Server("bytes_per_watch"), Bound::Most(300.0)),
                goal("CPU of etcd", "relay", "etcd, one watcher", CPU_OF_ETCD, Bound::Most(1.1)),
            ],
        },
        Case {
            name: "connections",
            what: format!("{} connections × 1 watch, 2 puts/s", size(8_000, 50)),
            runs: vec![run("relay", Target::Relay, &memory), run("grpc-proxy", Target::Proxy, &memory)],
            goals: vec![goal("memory per connection", "relay", "grpc-proxy", MEMORY, Bound::Most(0.5))],
        },
        Case {
            name: "more-connections",
            what: format!("{} connections × 1 watch, 2 puts/s, to a relay with one port", size(18_000, 50)),
            runs: vec![
                run("relay", Target::RelayAsProxy, &more).times(times(TIMES)),
                run("relay, fewer connections", Target::RelayAsProxy, &fewer).times(times(TIMES)),
                // How much dearer more sockets are for the kernel alone. Both ends of a connection are files of one
                // process here, which may have no more files than the relay; the two rows have nearly the same rate.
                run("bare sockets, half of them", Target::Floor, &bare_many).times(times(TIMES)),
                run("bare sockets, fewer connections", Target::Floor, &bare_fewer).times(times(TIMES)),
            ],
            goals: vec![goal("CPU per delivery", "relay", "relay, fewer connections", CPU, Bound::Most(1.0))],
        },
        Case {
            name: "own-keys",
            what: format!(
                "{followers} connections × {} streams, each a watch of one of {followed} keys, {} puts/s",
                size(100, 10),
                size(6_000, 100)
            ),
            runs: vec![
                run("relay", Target::Relay, &own_keys_often),
                // The part of it that is etcd's.
                run("etcd, one watcher", Target::Etcd, &one(&format!("--keys {followed} --rate {}", size(6_000, 100)))),
            ],
            goals: vec![absolute("99 % delay, ms", "relay", P99, Bound::Most(50.0))],
        },
        Case {
            name: "own-keys-as-fast-as-possible",
            what: format!("the same, {} puts as fast as etcd takes them", size(40_000, 100)),
            runs: vec![
                run("relay", Target::Relay, &own_keys_full),
                run(
                    "etcd, one watcher",
                    Target::Etcd,
                    &format!("watch --connections 1 --keys {followed} --puts {}", size(40_000, 100)),
                ),
            ],
            goals: vec![
                absolute("99 % delay, ms", "relay", P99, Bound::Most(50.0)),
                goal("99 % delay", "relay", "etcd, one watcher", P99, Bound::Most(1.1)),
            ],
        },
        Case {
            name: "puts",
            what: "puts of 256 B through the server, 10 connections, 80 at a time".to_owned(),
            runs: vec![
                run("relay", Target::Relay, &put).times(times(TIMES)),
                run("grpc-proxy", Target::Proxy, &put).times(times(TIMES)),
                run("etcd", Target::Etcd, &put).times(times(TIMES)),
            ],
            goals: vec![
                goal("CPU per put", "relay", "grpc-proxy", CPU, Bound::Most(0.3)),
                goal("puts/s", "relay", "etcd", Figure::Run("puts_per_second"), Bound::Least(0.85)),
            ],
        },
        Case {
            name: "puts-followed",
            what: "the same with keys that the relay follows, for which etcd has a watch then".to_owned(),
            runs: vec![run("relay", Target::Relay, &put_followed).times(times(TIMES))],
            goals: vec![],
        },
        Case {
            name: "first-snapshot",
            what: format!("{many_keys} keys of 256 B, read once: by a relay that starts, or from etcd in one call"),
            runs: vec![first("relay", Target::Relay, times(2)), first("etcd, one call", Target::Etcd, times(2))],
            goals: vec![
                goal("CPU of etcd", "relay", "etcd, one call", CPU_OF_READING, Bound::Most(1.5)),
                absolute("memory, times keys and values", "relay", Figure::Server("rss_of_data"), Bound::Most(1.3)),
            ],
        },
        Case {
            name: "millions",
            what: format!(
                "{} streams × {keys} watches, {keys} puts (etcd's issue 9839; its grpc-proxy hangs, so it is not run)",
                size(3_500, 4)
            ),
            runs: vec![Run { patience: 8 * MINUTE, ..run("relay", Target::Relay, &millions) }],
            goals: vec![
                absolute("memory of the relay, MiB", "relay", Figure::Server("rss_mib"), Bound::Most(3.0 * 953.67)),
                absolute(
                    "deliveries",
                    "relay",
                    Figure::Run("deliveries"),
                    Bound::Least(f64::from(size(3_500, 4)) * f64::from(keys)),
                ),
            ],
        },
        Case {
            name: "read-one",
            what: "linearizable reads of one key, 160 at a time".to_owned(),
            runs: vec![
                run("relay", Target::Relay, &read).times(times(TIMES)),
                run("etcd", Target::Etcd, &read).times(times(TIMES)),
            ],
            goals: vec![
                goal("CPU per read", "relay", "etcd", CPU, Bound::Most(0.35)),
                goal("reads/s", "relay", "etcd", Figure::Run("reads_per_second"), Bound::Least(2.2)),
            ],
        },
        Case {
            name: "read-many",
            what: format!("linearizable reads of {} keys, 16 at a time", size(1_000, 50)),
            runs: vec![
                run("relay", Target::Relay, &read_all).times(times(TIMES)),
                run("etcd", Target::Etcd, &read_all).times(times(TIMES)),
            ],
            goals: vec![goal("CPU per read", "relay", "etcd", CPU, Bound::Most(0.1))],
        },
        Case {
            name: "stalled",
            what: format!("one stalled and one reconnecting subscriber among {}, 100 puts/s", size(200, 10)),
            runs: vec![
                run("relay", Target::Relay, &mixed).times(times(MANY_TIMES)),
                run("relay, healthy alone", Target::Relay, &healthy).times(times(MANY_TIMES)),
                run("grpc-proxy", Target::Proxy, &mixed),
                run("etcd", Target::Etcd, &mixed),
            ],
            goals: vec![goal("99 % delay", "relay", "relay, healthy alone", P99, Bound::Most(1.1))],
        },
        Case {
            name: "joining",
            what: format!(
                "{joiners} subscribers that list {listed} keys and then watch, beside {} that watch, 100 puts/s",
                size(100, 8)
            ),
            runs: vec![
                Run { patience: 4 * MINUTE, ..run("relay", Target::Relay, &joining).times(times(2)) },
                // The effect of the scheduler on the same watchers alone.
                run("relay, nobody joins", Target::Relay, &watched).times(times(2)),
            ],
            goals: vec![
                absolute("pause of the feed, ms", "relay", PAUSE, Bound::Most(5.0)),
                absolute("99 % of its task's waits for a processor, ms", "relay", TURN_99, Bound::Most(5.0)),
            ],
        },
    ]
}

fn run(label: &'static str, target: Target, args: &str) -> Run {
    let args = args.split_whitespace().map(ToOwned::to_owned).collect();
    Run { label, target, args, times: 1, tls: false, filled: 0, reads_once: false, leaves: 0, patience: 2 * MINUTE }
}

impl Run {
    fn times(self, times: usize) -> Self {
        Self { times, ..self }
    }

    fn over_tls(self) -> Self {
        Self { tls: true, ..self }
    }
}

fn goal(what: &'static str, of: &'static str, against: &'static str, figure: Figure, bound: Bound) -> Goal {
    Goal { what, of, against: Some(against), figure, theirs: figure, bound }
}

fn absolute(what: &'static str, of: &'static str, figure: Figure, bound: Bound) -> Goal {
    Goal { what, of, against: None, figure, theirs: figure, bound }
}
