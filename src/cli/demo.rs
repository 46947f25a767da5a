//! `etcd-relay demo`: a relay over the embedded store.

use clap::{Args, ValueEnum};

use super::{
    Exit, Start,
    announce::Announce,
    groups::{Log, Memory, Ports},
    lainlet::LainletFlags,
    v2::V2Flags,
    values::TimeOrNone,
};
use crate::{
    relay::{Embedded, Feeds, OnDemand, RelayConfig, Upstream},
    store,
};

#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Data that the store starts with
    #[arg(long, env = "ETCD_RELAY_SEED", value_name = "DATA", value_enum, default_value_t)]
    seed: Seed,

    /// Average time between small changes to the example data, such as 1s; none stops the changes
    #[arg(
        long,
        env = "ETCD_RELAY_CHANGES_EVERY",
        value_name = "TIME",
        default_value_t = TimeOrNone(Some(store::demo::DemoConfig::default().interval))
    )]
    changes_every: TimeOrNone,

    #[command(flatten)]
    ports: Ports,
    #[command(flatten)]
    v2: V2Flags,
    #[command(flatten)]
    memory: Memory,
    #[command(flatten)]
    lainlet: LainletFlags,
    #[command(flatten)]
    log: Log,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Seed {
    /// The configuration and pods of a small LAIN cluster
    #[default]
    Lain,
    /// No data
    None,
}

impl Demo {
    pub(super) fn start(mut self) -> Result<Start, Exit> {
        self.ports.speak_tls_if_asked();
        let tls = self.ports.tls(&self.v2.listen_v2)?;
        Ok(Start {
            config: RelayConfig {
                upstream: Upstream::Embedded(Embedded {
                    seeded: self.seed == Seed::Lain,
                    changes_every: self.changes_every.0,
                }),
                feeds: Feeds {
                    // The store is small, so one feed covers the whole key space.
                    prefixes: vec![bytes::Bytes::new()],
                    on_demand: OnDemand::Deny,
                    history_bytes: self.memory.history_bytes.0,
                    history_entries: self.memory.history_entries,
                    ..Feeds::default()
                },
                watches: self.memory.watches(),
                views: self.lainlet.views(),
                grpc: self.ports.grpc(&tls),
                http: Some(self.ports.http(&tls)),
                metrics: self.ports.metrics(&tls),
                debug_from: self.ports.debug_from(),
                metrics_from: self.ports.metrics_from(),
                keys_from: self.ports.keys_from(),
                cors: self.ports.cors(),
                advertise: None,
                v2: self.v2.facade(&self.ports, &tls),
                io: self.ports.io(),
                drain_time: self.ports.drain_time.0,
            },
            logging: self.log.config()?,
            warnings: Vec::new(),
            announce: Announce::Demo,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{refused, started};
    use super::*;

    #[test]
    fn the_store_is_as_asked() {
        let store = |line: &[&str]| match started(line).config.upstream {
            Upstream::Embedded(embedded) => embedded,
            other => panic!("{line:?} has {other:?}"),
        };
        assert_eq!(store(&["demo"]), Embedded { seeded: true, changes_every: Some(Duration::from_secs(1)) });
        assert_eq!(
            store(&["demo", "--seed", "none", "--changes-every", "none"]),
            Embedded { seeded: false, changes_every: None }
        );
        assert!(started(&["demo"]).config.v2.is_none());
        let facade =
            started(&["demo", "--listen-v2", "127.0.0.1:4001", "--advertise-v2-url", "http://a:4001"]).config.v2;
        assert_eq!(facade.expect("a facade").advertised, ["http://a:4001"]);
        assert!(refused(&["demo", "--changes-every", "0s"]).contains("--changes-every"));
    }
}
