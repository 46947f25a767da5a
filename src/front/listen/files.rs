//! The limit on open files, which a relay with many clients reaches first. It is raised as far as possible and divided,
//! so that clients cannot use up the files that the relay needs for etcd and for its operator.
//!
//! Always holds: the limit is never lowered, and never raised above what the system's administrator allows.

use std::num::NonZeroUsize;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::PortConfig;
use crate::telemetry::names::Port;

/// Raises this process's limit on open files, and reduces the largest numbers of connections of `ports` to what fits. A
/// sixteenth of the files stays for everything else. The ports divide the rest: of sixteen parts, the gRPC port gets
/// eight if there are an HTTP port and a metrics port, the HTTP port six, and all metrics ports together one.
pub fn fit_connections<'a>(ports: impl IntoIterator<Item = &'a mut PortConfig>) {
    // Without a limit there is nothing to divide.
    let Some(files) = raise() else { return };
    let ports: Vec<_> = ports.into_iter().collect();
    let mut kinds: Vec<Port> = ports.iter().map(|port| port.port).collect();
    let number = |kind: Port, kinds: &[Port]| kinds.iter().filter(|other| **other == kind).count().max(1) as u64;
    let of_kind: Vec<u64> = kinds.iter().map(|kind| number(*kind, &kinds)).collect();
    kinds.sort_unstable_by_key(|kind| kind.as_str());
    kinds.dedup();
    let parts: u64 = kinds.into_iter().map(parts).sum();
    for (port, of_kind) in ports.into_iter().zip(of_kind) {
        // Ports of the same kind divide their share.
        let share = (files - files / 16) * self::parts(port.port) / parts / of_kind;
        let share = NonZeroUsize::new(usize::try_from(share).unwrap_or(usize::MAX)).unwrap_or(NonZeroUsize::MIN);
        if port.max_connections > share {
            let (name, wanted) = (port.port.as_str(), port.max_connections);
            if wanted == PortConfig::MAX_CONNECTIONS {
                // Nobody requested this many, so this is not a warning.
                tracing::debug!(
                    port = name,
                    files,
                    max_connections = share,
                    "The limit on open files determines the largest number of connections"
                );
            } else {
                tracing::warn!(
                    port = name,
                    files,
                    wanted,
                    max_connections = share,
                    "The limit on open files allows fewer connections than --max-connections; raise it (ulimit -n, \
                     LimitNOFILE=)"
                );
            }
            port.max_connections = share;
        }
    }
}

/// A port's part of the files, relative to those of the other ports.
fn parts(port: Port) -> u64 {
    match port {
        Port::Grpc => 8,
        // Each watcher over HTTP/1.1 has its own connection.
        Port::Http => 6,
        Port::V2 => 4,
        Port::Metrics => 1,
    }
}

/// Raises the limit as far as possible and returns it.
fn raise() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::debug!(%error, ?current, ?maximum, "Cannot raise the limit on open files");
            current
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn port(port: Port, max_connections: usize) -> PortConfig {
        PortConfig {
            max_connections: NonZeroUsize::new(max_connections).expect("not zero"),
            ..PortConfig::new(port, SocketAddr::from(([127, 0, 0, 1], 0)))
        }
    }

    /// The connections of ports of these kinds that ask for as many as possible, in sixteenths of the files.
    fn sixteenths<const N: usize>(kinds: [Port; N]) -> [f64; N] {
        let mut ports = kinds.map(|kind| port(kind, usize::MAX));
        fit_connections(&mut ports);
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!(current, maximum, "the limit is raised");
        // Without a limit, everybody gets what it asks for.
        ports.map(|port| {
            port.max_connections.get() as f64 * 16.0 / maximum.map_or(usize::MAX as f64, |files| files as f64)
        })
    }

    #[test]
    fn the_ports_that_there_are_divide_the_files() {
        let mut few = [port(Port::Grpc, 1), port(Port::Http, 1)];
        fit_connections(&mut few);
        assert_eq!(few.map(|port| port.max_connections.get()), [1, 1], "none gets more than it asks for");
        if getrlimit(Resource::Nofile).maximum.is_none() {
            return;
        }
        let near = |found: &[f64], expected: &[f64]| {
            let near = found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 0.1);
            assert!(near, "{found:?}, expected {expected:?}");
        };
        near(&sixteenths([Port::Grpc, Port::Http, Port::Metrics]), &[8.0, 6.0, 1.0]);
        near(&sixteenths([Port::Grpc, Port::Metrics, Port::Http, Port::Metrics]), &[8.0, 0.5, 6.0, 0.5]);
        near(&sixteenths([Port::Grpc]), &[15.0]);
        let all = sixteenths([Port::Grpc, Port::Http, Port::V2, Port::Metrics]);
        assert!(all.iter().sum::<f64>() <= 15.0, "{all:?}: the relay's own files are not given away");
    }
}
