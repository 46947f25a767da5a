//! Flags that find etcd's members by DNS, for `serve` and for `grpc-proxy start`.
//!
//! Not here: the look-up itself, see `source::discovery`.

use clap::Args;

use super::Exit;
use crate::source::{Discovered, Discovery, Endpoint, discover};

#[derive(Debug, Args)]
pub(super) struct DiscoveryFlags {
    /// In place of --etcd: domain whose DNS SRV records _etcd-client-ssl._tcp and _etcd-client._tcp name the members. They are looked up
    /// once, at the start. Members' certificates must be for the domain itself
    #[arg(long, env = "ETCD_RELAY_DISCOVERY_SRV", value_name = "DOMAIN")]
    discovery_srv: Option<String>,

    /// Name of the cluster where a domain has several: the records are then _etcd-client-ssl-NAME._tcp and _etcd-client-NAME._tcp
    #[arg(long, env = "ETCD_RELAY_DISCOVERY_SRV_NAME", value_name = "NAME", requires = "discovery_srv")]
    discovery_srv_name: Option<String>,

    /// Also use members without TLS that the records name, and take members' certificates for their own names. Whoever can change DNS
    /// answers on the way then decides what the relay takes for etcd
    #[arg(long, env = "ETCD_RELAY_INSECURE_DISCOVERY", requires = "discovery_srv")]
    insecure_discovery: bool,
}

impl DiscoveryFlags {
    pub(super) fn parse(self) -> Option<Discovery> {
        let (service_name, insecure) = (self.discovery_srv_name, self.insecure_discovery);
        self.discovery_srv.map(|domain| Discovery { domain, service_name, insecure })
    }
}

/// The members.
pub(super) fn look_up(discovery: &Discovery, warnings: &mut Vec<String>) -> Result<Vec<Endpoint>, Exit> {
    let Discovered { endpoints, left_out } =
        discover(discovery).map_err(|error| Exit::Usage(format!("--discovery-srv {}: {error}", discovery.domain)))?;
    if !left_out.is_empty() {
        let left_out: Vec<_> = left_out.iter().map(ToString::to_string).collect();
        warnings.push(format!(
            "--discovery-srv: members without TLS are not used without --insecure-discovery: {}",
            left_out.join(", ")
        ));
    }
    Ok(endpoints)
}

/// What members' certificates must name. DNS is not to be trusted, so the names that it gave are none to check by.
pub(super) fn server_name(discovery: &Discovery) -> Option<String> {
    (!discovery.insecure).then(|| discovery.domain.trim_end_matches('.').to_owned())
}
