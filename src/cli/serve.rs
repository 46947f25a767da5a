//! `etcd-relay serve`.

use std::net::SocketAddr;

use clap::Args;

use super::{Exit, Start};
use crate::{
    front::listen,
    relay::{Config, DRAIN_TIME, Etcd, Feeds, Upstream, Watches},
    source::{Endpoint, forward},
    telemetry::{logging, names::Port},
};

#[derive(Debug, Args)]
pub(super) struct Serve {
    #[arg(long, env = "ETCD_RELAY_ETCD", value_delimiter = ',', required = true)]
    etcd: Vec<Endpoint>,
    #[arg(long, env = "ETCD_RELAY_LISTEN_GRPC", default_value = "127.0.0.1:23790")]
    listen_grpc: SocketAddr,
    #[arg(long, env = "ETCD_RELAY_LISTEN_HTTP", default_value = "127.0.0.1:9001")]
    listen_http: SocketAddr,
}

impl Serve {
    pub(super) fn start(self) -> Result<Start, Exit> {
        Ok(Start {
            config: Config {
                upstream: Upstream::Etcd(Etcd {
                    endpoints: self.etcd,
                    credentials: None,
                    connect_timeout: forward::Config::CONNECT_TIMEOUT,
                    request_timeout: Etcd::REQUEST_TIMEOUT,
                    keepalive: Some(forward::Config::KEEPALIVE),
                }),
                feeds: Feeds::default(),
                watches: Watches::default(),
                grpc: listen::Config::new(Port::Grpc, self.listen_grpc),
                http: Some(listen::Config::new(Port::Http, self.listen_http)),
                metrics: None,
                drain_time: DRAIN_TIME,
            },
            logging: logging::Config::default(),
            warnings: Vec::new(),
        })
    }
}
