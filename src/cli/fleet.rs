//! Flags for a relay that is one of several: how clients reach it, and how they find the other relays.

use std::time::Duration;

use clap::Args;
use http::Uri;

use super::{Exit, values::PositiveTime};
use crate::{front::grpc::Advertised, relay::Advertise};

/// How long a relay that crashed stays in the list of relays.
pub(super) const TTL: Duration = Duration::from_secs(60);
/// The shortest lease. etcd grants none below its election timeout, one second by default, and a lease is in whole
/// seconds.
const SHORTEST: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
#[command(next_help_heading = "Fleet")]
pub(super) struct FleetFlags {
    /// URL at which clients reach this relay. Member lists then name it in place of etcd's members, so clients that ask
    /// for the members (Go's with auto-sync, `etcdctl --cluster`) stay with the relay. Default: none; member lists are
    /// etcd's own
    #[arg(long, env = "ETCD_RELAY_ADVERTISE_CLIENT_URL", value_name = "URL")]
    advertise_client_url: Option<String>,

    /// Prefix of the etcd keys under which the relay registers itself with a lease. Member lists then name all relays
    /// that are registered there. The format is that of etcd's grpc-proxy and of clientv3's `naming/endpoints`.
    /// Default: none
    #[arg(long, env = "ETCD_RELAY_RESOLVER_PREFIX", value_name = "PREFIX", requires = "advertise_client_url")]
    resolver_prefix: Option<String>,

    /// How long the registration of a crashed relay remains, in whole seconds. A shorter time removes it from the list
    /// sooner, but renews the lease more often. Default: 1m
    #[arg(long, env = "ETCD_RELAY_RESOLVER_TTL", value_name = "TIME", requires = "resolver_prefix")]
    resolver_ttl: Option<PositiveTime>,

    /// Whether relays with the same --resolver-prefix balance their connections to --listen-grpc. Each relay writes its
    /// number of connections under PREFIX.connections/. A relay with clearly more than its share asks some clients to
    /// reconnect, at most 2 % of them per second, until the shares are similar. This costs etcd one watch per relay,
    /// and a write when the number changes, at most every 3 s. Default: true
    #[arg(
        long,
        env = "ETCD_RELAY_SHED_CONNECTIONS",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        requires = "resolver_prefix"
    )]
    shed_connections: Option<bool>,
}

impl FleetFlags {
    pub(super) fn advertise(self) -> Result<Option<Advertise>, Exit> {
        let Some(url) = self.advertise_client_url.filter(|url| !url.is_empty()) else { return Ok(None) };
        let prefix = self.resolver_prefix.filter(|prefix| !prefix.is_empty());
        let ttl = self.resolver_ttl.map_or(TTL, |PositiveTime(ttl)| ttl);
        Ok(Some(Advertise { shed: self.shed_connections.unwrap_or(true), ..advertise(url, prefix, ttl)? }))
    }
}

/// A relay that clients reach at `url`. It does not shed connections.
pub(super) fn advertise(url: String, prefix: Option<String>, ttl: Duration) -> Result<Advertise, Exit> {
    let parsed: Option<Uri> = url.parse().ok();
    let usable = parsed.is_some_and(|uri| {
        let with_scheme = matches!(uri.scheme_str(), Some("http" | "https"));
        with_scheme && uri.port().is_some() && matches!(uri.path(), "" | "/") && uri.query().is_none()
    });
    if !usable {
        return Err(Exit::Usage(format!(
            "--advertise-client-url: `{url}` is not a client URL; write it like http://10.0.0.1:23790"
        )));
    }
    if ttl < SHORTEST || ttl.subsec_nanos() != 0 {
        return Err(Exit::Usage(format!(
            "--resolver-ttl: the time must be in whole seconds, at least {}",
            SHORTEST.as_secs()
        )));
    }
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Ok(Advertise {
        advertised: Advertised { url: url.trim_end_matches('/').to_owned(), name, prefix },
        ttl,
        shed: false,
    })
}
