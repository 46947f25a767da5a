//! What is said at the start, and once the ports are bound: the words that each command's users, and the tools around them, wait for.

use std::io::Write as _;

use super::Build;
use crate::{
    front::listen::Address,
    relay::{EtcdV2, OnDemand, Relay, RelayConfig, Upstream},
};

/// Who waits for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Announce {
    /// The lines `Listening`, which the relay logs itself, are enough.
    Nothing,
    /// The line of `etcd grpc-proxy start`.
    GrpcProxy,
    /// What to try.
    Demo,
}

impl Announce {
    pub(super) fn say(self, relay: &Relay) {
        match self {
            Self::Nothing => {}
            Self::GrpcProxy => tracing::info!(address = %relay.grpc_addr(), "started gRPC proxy"),
            Self::Demo => {
                let text = to_try(relay.grpc_address(), relay.http_address(), relay.v2_address());
                // A closed standard output is no reason not to serve.
                let _ = std::io::stdout().write_all(text.as_bytes());
            }
        }
    }
}

/// What runs, over what, and for whom, in one line.
pub(super) fn starting(config: &RelayConfig, build: Build) {
    let upstream = match &config.upstream {
        Upstream::Etcd(etcd) | Upstream::EtcdV2(EtcdV2 { etcd, .. }) => joined(etcd.endpoints.iter()),
        Upstream::Embedded(_) => "embedded store".to_owned(),
    };
    let api = if matches!(config.upstream, Upstream::EtcdV2(_)) { "v2" } else { "v3" };
    let prefixes = joined(config.feeds.prefixes.iter().map(|prefix| format!("\"{}\"", prefix.escape_ascii())));
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        commit = build.commit.unwrap_or("unknown"),
        upstream,
        api,
        upstream_user = config.upstream.identity().map(|identity| &*identity.user),
        prefixes,
        on_demand = matches!(config.feeds.on_demand, OnDemand::Allow { .. }),
        "Starting etcd-relay"
    );
}

fn joined(items: impl Iterator<Item = impl ToString>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}

fn to_try(grpc: Address, http: Option<Address>, v2: Option<Address>) -> String {
    // Nobody knows the authority of a certificate that was made a moment ago.
    let unverified = if grpc.secure { "--insecure-transport=false --insecure-skip-tls-verify " } else { "" };
    let mut text = http.map_or_else(String::new, |http| format!("\nLook at it: {http}/\n"));
    text.push_str(&format!("\nTry:\n\n  etcdctl --endpoints {grpc} {unverified}watch --prefix /lain/\n"));
    if let Some(http) = http {
        for path in [
            "/v2/procwatcher?appname=hello",
            "/v2/proxywatcher?watch=1&heartbeat=5",
            "/v2/nodes?watch=1",
            "/debug/state?watch=1s",
            "/metrics",
        ] {
            let follow = if path.contains("watch=") { "-N " } else { "" };
            let unverified = if http.secure { "-k " } else { "" };
            text.push_str(&format!("\n  curl {unverified}{follow}'{http}{path}'\n"));
        }
    }
    if let Some(v2) = v2 {
        let unverified = if v2.secure { "-k " } else { "" };
        text.push_str(&format!("\n  curl {unverified}'{v2}/v2/keys/lain?recursive=true&sorted=true'\n"));
    }
    text.push('\n');
    text
}
