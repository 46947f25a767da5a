//! The loads, on whom, and what the relay is to reach with each.
//!
//! Not here: how they run. Always holds: a case has a name, and a run of it an end.

use std::time::Duration;

use super::run::Target;

/// One load on several servers.
#[derive(Debug)]
pub struct Case {
    /// For the command line.
    pub name: &'static str,
    /// For people.
    pub what: String,
    /// The runs.
    pub runs: Vec<Run>,
    /// What is compared.
    pub goals: Vec<Goal>,
}

/// One load on one server.
#[derive(Debug)]
pub struct Run {
    /// For the table.
    pub label: &'static str,
    /// The server.
    pub target: Target,
    /// For `etcd-relay bench`.
    pub args: Vec<String>,
    /// How often; the runs of a case take turns, and the median counts.
    pub times: usize,
    /// Whether TLS is spoken on all sides, with certificates of clients.
    pub tls: bool,
    /// Longest time, in which others than the relay may fail.
    pub patience: Duration,
}

/// Something to reach.
#[derive(Debug)]
pub struct Goal {
    /// The figure.
    pub what: &'static str,
    /// The run that is measured.
    pub of: &'static str,
    /// The run that it is compared with; none where the figure itself counts.
    pub against: Option<&'static str>,
    /// Where in a report the figure is.
    pub figure: Figure,
    /// Where in the other's report its own is.
    pub theirs: Figure,
    /// What to reach.
    pub bound: Bound,
}

/// Where a figure is.
#[derive(Clone, Copy, Debug)]
pub enum Figure {
    /// Among the figures of the run.
    Run(&'static str),
    /// Of the process that is measured; for the bare sockets, of their sender.
    Server(&'static str),
    /// Of etcd.
    Etcd(&'static str),
    /// Of the relay's own metrics: the metric and its part.
    Metric(&'static str, &'static str),
}

/// At most, or at least.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// At most.
    Most(f64),
    /// At least.
    Least(f64),
}

const CPU: Figure = Figure::Server("cpu_us_each");
const P99: Figure = Figure::Run("delay_99_ms");
/// The same while others came.
const P99_MEANWHILE: Figure = Figure::Run("joining_delay_99_ms");
/// Until all had come.
const ALL_BACK: Figure = Figure::Run("joining_seconds");
const MEMORY: Figure = Figure::Server("kib_per_connection");
const MINUTE: Duration = Duration::from_secs(60);
/// Writes come as they do alone, so the same number of them costs etcd the same, or not.
const CPU_OF_ETCD: Figure = Figure::Etcd("cpu_us_per_write");
/// Runs of a side where one tells too little: figures of one run differ by a quarter with whatever else the machine does.
const TIMES: usize = 3;
/// Where the two sides are to be nearly the same.
const MANY_TIMES: usize = 5;

/// What holds the feed up: the bound of the longest wait for its lock, before it can push.
const PAUSE: Figure = Figure::Metric("etcd_relay_publish_seconds{part=\"waiting\"}", "max_at_most_ms");
/// What nearly all waits of the relay's tasks for a processor, its feeds' among them, did not exceed. The longest is the scheduler's: the
/// load has its share of the machine, too.
const TURN_99: Figure = Figure::Metric("etcd_relay_turn_seconds", "99_at_most_ms");

/// All of them; small and short ones for a smoke run.
pub fn all(quick: bool) -> Vec<Case> {
    // Shorter where there are several.
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
    // A number of writes, not a time: what etcd takes in ten seconds takes minutes to deliver. etcd itself would take minutes for
    // these as well, at 0.1 million deliveries a second, so it is not run.
    let full = format!("watch --puts {} --connections {}", size(20_000, 100), size(500, 10));
    let keys = size(3_000, 30);
    let distinct = watch(format!(
        "--connections {} --watches {keys} --distinct --keys {keys} --value-size 5000 --rate {} --patience 20s",
        size(100, 4),
        size(500, 50)
    ));
    let memory = watch(format!("--connections {} --rate 2", size(8_000, 50)));
    let millions = format!(
        "watch --connections {} --streams {} --watches {keys} --distinct --keys {keys} --puts {keys} --rate {} --patience 60s",
        size(35, 2),
        size(100, 2),
        size(30, 100)
    );
    let read = format!("range --duration {often} --connections 16 --concurrency 160");
    let read_all =
        format!("range --duration {often} --connections 16 --concurrency 16 --all --keys {}", size(1_000, 50));
    // As many as are healthy among the others, whose delays alone are told.
    let stay = if quick { "1s" } else { "8s" };
    let healthy = format!("watch --duration {stay} --connections {} --rate 100", size(198, 8));
    let mixed = format!("watch --duration {stay} --connections {} --slow 1 --reconnect 1 --rate 100", size(200, 10));
    let (joiners, listed) = (size(50, 3), size(500_000, 2_000));
    // The server is dropped with its keys; deleting half a million takes longer than the run.
    let joining = watch_often(format!(
        "--connections {} --rate 100 --join {joiners} --join-after 2s --keys {listed} --keep --patience 30s",
        size(100, 8)
    ));
    let watched = watch_often(format!("--connections {} --rate 100", size(100, 8)));
    let storming = size(2_000, 20);
    let calm = watch_often("--connections 10 --rate 100".to_owned());
    let storm = format!("{calm} --storm {storming} --join-after 1s --patience 30s");
    let one = |rest: &str| watch_often(format!("--connections 1 {rest}"));

    vec![
        Case {
            name: "fan-out",
            what: format!("{many} connections × 1 watch, one prefix, 100 puts/s"),
            runs: vec![
                run("relay", Target::Relay, &prefix_100).times(times(TIMES)),
                run("grpc-proxy", Target::Proxy, &prefix_100).times(times(TIMES)),
                run("etcd", Target::Etcd, &prefix_100),
                run("bare sockets", Target::Floor, &floor(format!("--connections {many} --rate 100")))
                    .times(times(TIMES)),
                run("etcd, one watcher", Target::Etcd, &one("--rate 100")).times(times(TIMES)),
            ],
            goals: vec![
                goal("CPU per delivery", "relay", "grpc-proxy", CPU, Bound::Most(0.33)),
                goal("CPU per delivery", "relay", "bare sockets", CPU, Bound::Most(1.6)),
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
                // What of it is not TLS.
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
                run("relay", Target::Relay, &distinct),
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
                goal("reads/s", "relay", "etcd", Figure::Run("reads_per_second"), Bound::Least(2.0)),
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
                // What the scheduler does to the same watchers without any of that.
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
    Run { label, target, args, times: 1, tls: false, patience: 2 * MINUTE }
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
