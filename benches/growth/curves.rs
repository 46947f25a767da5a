//! Which curves there are: their loads, the servers on them, and the figures that are drawn.
//!
//! Running them is in `measure`. Always holds: the rate of writes falls as what a write reaches grows, so that the
//! server and the load generator together leave half of a machine with two cores free, and no curve measures a queue
//! for the processor instead of the server.

use super::{
    data::{Load, Metric},
    limits::Limit,
};
use crate::comparison::run::Target;

/// A curve: one number grows while the rest of the load stays as it is.
#[derive(Debug)]
pub struct Curve {
    /// The name on the command line and of its files.
    pub name: &'static str,
    /// What grows.
    pub title: &'static str,
    /// The name of the axis.
    pub across: &'static str,
    /// What the load is otherwise.
    pub what: &'static str,
    pub points: Vec<(f64, Load)>,
    /// Why there is no further point.
    pub ended_by: String,
    pub servers: Vec<Server>,
    pub figures: &'static [Metric],
}

/// A server on a curve.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    pub label: &'static str,
    pub target: Target,
    pub tls: bool,
    /// Whether the clients are on a relay behind this one, even where the load does not say so.
    pub is_behind: bool,
    /// The last place at which it is measured. Beyond it, it would take more than this machine has.
    pub until: f64,
}

/// Deliveries per second, if the load does not demand more.
const DELIVERIES: f64 = 20_000.0;
/// A load that grows beyond these at the same number of writes is for the relay alone: at some 10 µs a delivery,
/// another server would take half of the machine.
const DELIVERIES_OF_OTHERS: f64 = 40_000.0;
const BYTES: u64 = 256;
/// Writes a second, if the load does not demand more or less. Between two of them, even a busy machine delivers the
/// first, so that no server saves work by delivering several together.
const RATE: f64 = 50.0;

const RELAY: Server =
    Server { label: "relay", target: Target::Relay, tls: false, is_behind: false, until: f64::INFINITY };
const RELAY_TLS: Server = Server { label: "relay, TLS", tls: true, ..RELAY };
const BEHIND: Server = Server { label: "relay behind a relay", is_behind: true, ..RELAY };
const PROXY: Server = Server { label: "grpc-proxy", target: Target::Proxy, ..RELAY };
const PROXY_TLS: Server = Server { label: "grpc-proxy, TLS", tls: true, ..PROXY };
const ETCD: Server = Server { label: "etcd", target: Target::Etcd, ..RELAY };
const FLOOR: Server = Server { label: "bare sockets", target: Target::Floor, ..RELAY };

/// The places of the servers in every drawing.
pub const LOOKS: [&str; 7] =
    [RELAY.label, PROXY.label, FLOOR.label, ETCD.label, RELAY_TLS.label, PROXY_TLS.label, BEHIND.label];

const PLAIN: Load = Load { connections: 100, watches: 1, ranges: 1, keys: 0, rate: RATE, value_size: BYTES, leaves: 0 };

/// All curves; their first two points for a smoke run.
pub fn all(limit: &Limit, quick: bool) -> Vec<Curve> {
    let mut curves = vec![
        connections(limit),
        watches(),
        keys(),
        own_keys(),
        ranges(),
        rates(),
        value_sizes(),
        tiers(limit),
        leaves(),
    ];
    if quick {
        for curve in &mut curves {
            curve.points.truncate(2);
            "A smoke run has two points.".clone_into(&mut curve.ended_by);
        }
    }
    curves
}

fn connections(limit: &Limit) -> Curve {
    let (places, ended_by) = limit.cut(&[100, 300, 1_000, 3_000, 9_000, 20_000, 50_000]);
    Curve {
        name: "connections",
        title: "Connections",
        across: "connections, one watch each",
        what: "all watch one prefix; 256 B; 20,000 deliveries/s, from 50 writes a second to one",
        points: places.into_iter().map(|x| point(x, Load { connections: x, rate: rate_for(x), ..PLAIN })).collect(),
        ended_by,
        servers: vec![
            RELAY,
            RELAY_TLS,
            PROXY,
            Server { until: 3_000.0, ..PROXY_TLS },
            // It takes 200 KiB a connection.
            Server { until: 9_000.0, ..ETCD },
            FLOOR,
        ],
        figures: &[Metric::CpuPerDelivery, Metric::Delay99, Metric::MemoryPerConnection, Metric::OpeningCpu],
    }
}

fn watches() -> Curve {
    let load = |x| Load { watches: x, rate: f64::max(rate_for(100 * x), 2.0), ..PLAIN };
    let until = |server: Server| Server { until: DELIVERIES_OF_OTHERS / 2.0 / 100.0, ..server };
    Curve {
        name: "watches",
        title: "Watches of a stream",
        across: "watches of a stream, on each of 100 connections",
        what: "all watch one prefix; 256 B; 20,000 deliveries/s, from 50 writes a second to two",
        points: [1, 4, 16, 64, 256, 512, 1_024].map(|x| point(x, load(x))).into(),
        ended_by: planned(),
        servers: vec![RELAY, until(PROXY), until(ETCD), FLOOR],
        figures: &[Metric::CpuPerDelivery, Metric::Delay99, Metric::MemoryPerWatch],
    }
}

fn keys() -> Curve {
    Curve {
        name: "keys",
        title: "Keys below the prefix",
        across: "keys of 256 B that exist",
        what: "100 connections, one watch each; 50 writes a second",
        points: [100, 1_000, 10_000, 100_000, 300_000].map(|x| point(x, Load { keys: x, ..PLAIN })).into(),
        ended_by: planned(),
        servers: vec![RELAY, PROXY],
        figures: &[Metric::CpuPerDelivery, Metric::Delay99, Metric::IdleMemory],
    }
}

fn own_keys() -> Curve {
    let load = |x| Load { watches: x / 100, ranges: 0, rate: 200.0, ..PLAIN };
    Curve {
        name: "own-keys",
        title: "Watches that follow a key each",
        across: "watches, each of another key, on 100 connections",
        what: "200 writes of 256 B a second, each for one watch",
        points: [100, 1_000, 10_000, 30_000, 100_000].map(|x| point(x, load(x))).into(),
        ended_by: planned(),
        // Its memory and its time to create them grow with the distinct keys.
        servers: vec![RELAY, Server { until: 10_000.0, ..PROXY }, ETCD],
        figures: &[Metric::CpuPerWrite, Metric::Delay99, Metric::MemoryPerWatch],
    }
}

fn ranges() -> Curve {
    let load = |x| Load { connections: 1_000, ranges: x, rate: 20.0, ..PLAIN };
    Curve {
        name: "ranges",
        title: "Different ranges that contain the key",
        across: "different ranges, over 1,000 connections",
        what: "1,000 connections, one watch each; 256 B; 20 writes a second, each in all ranges",
        points: [1, 10, 100, 1_000].map(|x| point(x, load(x))).into(),
        ended_by: planned(),
        servers: vec![RELAY, PROXY, ETCD],
        figures: &[Metric::CpuPerDelivery, Metric::Delay99],
    }
}

fn rates() -> Curve {
    Curve {
        name: "rate",
        title: "Writes a second",
        across: "writes a second",
        what: "10 connections, one watch each; 256 B",
        points: [3, 10, 30, 100, 300, 1_000, 3_000]
            .map(|x| point(x, Load { connections: 10, rate: x as f64, ..PLAIN }))
            .into(),
        ended_by: planned(),
        servers: vec![RELAY, PROXY, ETCD],
        figures: &[Metric::CpuPerWrite, Metric::Delay99, Metric::EtcdCpuPerWrite],
    }
}

fn value_sizes() -> Curve {
    // At most 100 MB a second.
    let load = |x| Load { value_size: x, rate: (1e6 / x as f64).clamp(4.0, RATE), ..PLAIN };
    Curve {
        name: "value-size",
        title: "Bytes of a value",
        across: "bytes of a value",
        what: "100 connections, one watch each; 50 writes a second, and no more than 100 MB/s",
        points: [64, 256, 1_024, 4_096, 16_384, 65_536, 262_144].map(|x| point(x, load(x))).into(),
        ended_by: planned(),
        servers: vec![RELAY, RELAY_TLS, PROXY, FLOOR],
        figures: &[Metric::CpuPerDelivery, Metric::Delay99],
    }
}

fn tiers(limit: &Limit) -> Curve {
    let (places, ended_by) = limit.cut(&[100, 1_000, 9_000]);
    Curve {
        name: "tiers",
        title: "One tier and two",
        across: "connections, one watch each",
        what: "as above; behind a relay, CPU is that of the relay with the clients",
        points: places.into_iter().map(|x| point(x, Load { connections: x, rate: rate_for(x), ..PLAIN })).collect(),
        ended_by,
        servers: vec![RELAY, BEHIND],
        figures: &[Metric::CpuPerDelivery, Metric::Delay50, Metric::Delay99],
    }
}

fn leaves() -> Curve {
    Curve {
        name: "leaves",
        title: "Relays behind a relay",
        across: "relays behind the first one",
        what: "50 writes of 256 B a second; 10 connections, one watch each, on one of the relays behind",
        points: [1, 2, 5, 10, 20].map(|x| point(x, Load { connections: 10, leaves: x, ..PLAIN })).into(),
        ended_by: planned(),
        servers: vec![BEHIND],
        figures: &[Metric::FirstCpuPerWrite, Metric::EtcdCpuPerWrite],
    }
}

fn point(x: u64, load: Load) -> (f64, Load) {
    (x as f64, load)
}

/// Writes a second that make the usual number of deliveries.
fn rate_for(reached: u64) -> f64 {
    (DELIVERIES / reached as f64).clamp(1.0, RATE)
}

fn planned() -> String {
    "The last point is the last one that was planned.".to_owned()
}

impl Load {
    /// The number of relays behind the first one.
    pub fn leaves_of(&self, server: &Server) -> u64 {
        if server.is_behind { self.leaves.max(1) } else { self.leaves }
    }

    /// The arguments of `etcd-relay bench`, for writes over this many seconds.
    pub fn args(&self, target: Target, seconds: f64) -> Vec<String> {
        let Self { connections, watches, ranges, rate, value_size, .. } = self;
        let mut args =
            format!("--connections {connections} --watches {watches} --rate {rate} --value-size {value_size}");
        args.push_str(&format!(" --duration {}ms", (seconds * 1e3) as u64));
        if target == Target::Floor {
            return format!("floor {args}").split(' ').map(ToOwned::to_owned).collect();
        }
        args.push_str(" --patience 20s");
        if *ranges == 0 {
            args.push_str(&format!(" --distinct --keys {}", connections * watches));
        } else if *ranges > 1 {
            args.push_str(&format!(" --ranges {ranges}"));
        }
        format!("watch {args}").split(' ').map(ToOwned::to_owned).collect()
    }
}
