//! The flags of etcd's v2 API over the keys of v3.
//!
//! Not here: the v2 store as upstream (`serve`). Always holds: without an address there is no facade.

use clap::Args;

use super::{groups::Ports, listen::ListenUrl};
use crate::{relay::V2Facade, source::Endpoint, tls};

#[derive(Debug, Args)]
#[command(next_help_heading = "etcd's v2 API")]
pub(super) struct V2Flags {
    /// Where to serve etcd's v2 API over the keys of v3 that begin with /, such as 127.0.0.1:4001, or https://…; port 0 takes a free one.
    /// It costs a feed over all these keys. Default: none
    #[arg(long, env = "ETCD_RELAY_LISTEN_V2", value_name = "URL", value_delimiter = ',')]
    pub(super) listen_v2: Vec<ListenUrl>,

    /// URL at which clients reach --listen-v2; they learn it at their first sync. Repeated or separated by commas. Default:
    /// the address that it listens at
    #[arg(long, env = "ETCD_RELAY_ADVERTISE_V2_URL", value_name = "URL", value_delimiter = ',')]
    advertise_v2_url: Vec<Endpoint>,
}

impl V2Flags {
    pub(super) fn facade(self, ports: &Ports, tls: &Option<tls::Server>) -> Option<V2Facade> {
        let advertised = self.advertise_v2_url.iter().map(Endpoint::url).collect();
        ports.v2(&self.listen_v2, tls).map(|port| V2Facade { port, advertised })
    }
}
