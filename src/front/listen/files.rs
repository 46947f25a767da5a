//! The limit on open files, which a relay with many clients reaches first. It is raised as far as possible and divided,
//! so that clients cannot use up the files that the relay needs for etcd and for its operator.
//!
//! Always holds: the limit is never lowered, and never raised above what the system's administrator allows.

use std::num::NonZeroUsize;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::PortConfig;
use crate::telemetry::names::Port;

/// Raises this process's limit on open files, and reduces the largest numbers of connections of `ports` to what fits:
/// half of the files for the gRPC port, three eighths for the HTTP port, a sixteenth for all metrics ports together.
pub fn fit_connections<'a>(ports: impl IntoIterator<Item = &'a mut PortConfig>) {
    // Without a limit there is nothing to divide.
    let Some(files) = raise() else { return };
    let ports: Vec<_> = ports.into_iter().collect();
    let kinds: Vec<Port> = ports.iter().map(|port| port.port).collect();
    for port in ports {
        let share = match port.port {
            Port::Grpc => files / 2,
            // Each watcher over HTTP/1.1 has its own connection.
            Port::Http => files / 8 * 3,
            Port::V2 => files / 4,
            Port::Metrics => files / 16,
        };
        // Ports of the same kind divide their share.
        let share = share / kinds.iter().filter(|kind| **kind == port.port).count().max(1) as u64;
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

    #[test]
    fn the_limit_is_raised_and_shared_out() {
        let port = |port, max_connections| PortConfig {
            max_connections: NonZeroUsize::new(max_connections).expect("not zero"),
            ..PortConfig::new(port, SocketAddr::from(([127, 0, 0, 1], 0)))
        };
        let mut few = [port(Port::Grpc, 1), port(Port::Http, 1)];
        let mut many = [Port::Grpc, Port::Http, Port::Metrics, Port::Metrics].map(|kind| port(kind, usize::MAX));
        fit_connections(few.iter_mut().chain(&mut many));
        assert_eq!(few.map(|port| port.max_connections.get()), [1, 1]);
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!(current, maximum);
        if let Some(files) = maximum {
            let shares = many.map(|port| port.max_connections.get() as u64);
            assert!(
                shares.iter().sum::<u64>() < files && shares.iter().all(|share| *share > 0),
                "{shares:?} of {files}"
            );
            assert_eq!(shares[2], shares[3], "both metrics ports divide one share");
        }
    }
}
