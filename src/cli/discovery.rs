//! Flags that find etcd's members by DNS, for `serve` and for `grpc-proxy start`.
//!
//! The look-up itself is in `source::discovery`.

use clap::Args;

use super::Exit;
use crate::source::{Discovered, Discovery, Endpoint, discover};

#[derive(Debug, Args)]
pub(super) struct DiscoveryFlags {
    /// Domain whose DNS SRV records name etcd's members, in place of --etcd. The records are _etcd-client-ssl._tcp and
    /// _etcd-client._tcp. They are looked up once, at the start. The members' certificates must be valid for the domain
    /// itself
    #[arg(long, env = "ETCD_RELAY_DISCOVERY_SRV", value_name = "DOMAIN")]
    discovery_srv: Option<String>,

    /// Name of the cluster, if a domain has several. The records are then _etcd-client-ssl-NAME._tcp and
    /// _etcd-client-NAME._tcp
    #[arg(long, env = "ETCD_RELAY_DISCOVERY_SRV_NAME", value_name = "NAME", requires = "discovery_srv")]
    discovery_srv_name: Option<String>,

    /// Also use members without TLS, and accept certificates that are valid for the names in the records. Anyone who
    /// can change DNS answers can then make the relay use a false etcd
    #[arg(long, env = "ETCD_RELAY_INSECURE_DISCOVERY", requires = "discovery_srv")]
    insecure_discovery: bool,
}

impl DiscoveryFlags {
    pub(super) fn parse(self) -> Option<Discovery> {
        let (service_name, insecure) = (self.discovery_srv_name, self.insecure_discovery);
        self.discovery_srv.map(|domain| Discovery { domain, service_name, insecure })
    }
}

/// Looks up the members.
pub(super) fn look_up(discovery: &Discovery, warnings: &mut Vec<String>) -> Result<Vec<Endpoint>, Exit> {
    let Discovered { endpoints, left_out } =
        discover(discovery).map_err(|error| Exit::Usage(format!("--discovery-srv {}: {error}", discovery.domain)))?;
    if !left_out.is_empty() {
        let left_out: Vec<_> = left_out.iter().map(ToString::to_string).collect();
        warnings.push(format!(
            "--discovery-srv: these members have no TLS and are not used (--insecure-discovery would use them): {}",
            left_out.join(", ")
        ));
    }
    Ok(endpoints)
}

/// The name that the members' certificates must have. DNS cannot be trusted, so the names in its answers prove nothing.
pub(super) fn server_name(discovery: &Discovery) -> Option<String> {
    (!discovery.insecure).then(|| discovery.domain.trim_end_matches('.').to_owned())
}
