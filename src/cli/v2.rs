//! Flags for etcd's v2 API over v3 keys.
//!
//! An etcd v2 store as upstream is `serve`'s `--etcd-v2`. Always holds: without an address, the v2 API is not served.

use clap::Args;

use super::{groups::Ports, listen::ListenUrl};
use crate::{relay::V2Facade, source::Endpoint, tls};

#[derive(Debug, Args)]
#[command(next_help_heading = "etcd's v2 API")]
pub(super) struct V2Flags {
    /// Address at which to serve etcd's v2 API over the v3 keys that begin with /. Same form as --listen-grpc, such as
    /// 127.0.0.1:4001. It costs one feed over all these keys. Default: none
    #[arg(long, env = "ETCD_RELAY_LISTEN_V2", value_name = "URL", value_delimiter = ',')]
    pub(super) listen_v2: Vec<ListenUrl>,

    /// URL at which clients reach --listen-v2, which they learn at their first sync. Repeatable, or separated by
    /// commas. Default: the address of --listen-v2
    #[arg(long, env = "ETCD_RELAY_ADVERTISE_V2_URL", value_name = "URL", value_delimiter = ',')]
    advertise_v2_url: Vec<Endpoint>,
}

impl V2Flags {
    pub(super) fn facade(self, ports: &Ports, tls: &Option<tls::Server>) -> Option<V2Facade> {
        let advertised = self.advertise_v2_url.iter().map(Endpoint::url).collect();
        ports.v2(&self.listen_v2, tls).map(|port| V2Facade { port, advertised })
    }
}
