//! The messages at the start and once the ports are bound. Users of each command, and tools around them, wait for these
//! words.

use std::io::Write as _;

use super::Build;
use crate::{
    front::listen::Address,
    relay::{EtcdV2, OnDemand, Relay, RelayConfig, Upstream},
};

/// What a command announces once its ports are bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Announce {
    /// Nothing: the relay's own `Listening` log lines are enough.
    Nothing,
    /// The log line of `etcd grpc-proxy start`.
    GrpcProxy,
    /// Commands for the user to try.
    Demo,
}

impl Announce {
    pub(super) fn say(self, relay: &Relay) {
        match self {
            Self::Nothing => {}
            Self::GrpcProxy => tracing::info!(address = %relay.grpc_addr(), "started gRPC proxy"),
            Self::Demo => {
                let text = to_try(relay.grpc_address(), relay.http_address(), relay.v2_address());
                // The relay also serves if standard output is closed.
                let _ = std::io::stdout().write_all(text.as_bytes());
            }
        }
    }
}

/// Logs one line: the version, the upstream, and what the relay keeps.
pub(super) fn starting(config: &RelayConfig, build: Build) {
    let upstream = match &config.upstream {
        Upstream::Etcd(etcd) | Upstream::EtcdV2(EtcdV2 { etcd, .. }) => joined(etcd.endpoints.iter()),
        Upstream::Embedded(_) => "embedded store".to_owned(),
    };
    let api = if matches!(config.upstream, Upstream::EtcdV2(_)) { "v2" } else { "v3" };
    let prefixes = joined(config.feeds.prefixes.iter().map(|prefix| spelled(prefix)));
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        commit = build.commit.unwrap_or("unknown"),
        %upstream,
        api,
        upstream_user = config.upstream.identity().map(|identity| &*identity.user),
        %prefixes,
        on_demand = matches!(config.feeds.on_demand, OnDemand::Allow { .. }),
        "Starting etcd-relay"
    );
}

/// A prefix as in `--prefix`, where a comma separates two; `""` for the whole key space.
fn spelled(prefix: &[u8]) -> String {
    match prefix {
        b"" => "\"\"".to_owned(),
        prefix => prefix.escape_ascii().to_string().replace(',', "\\,"),
    }
}

fn joined(items: impl Iterator<Item = impl ToString>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}

fn to_try(grpc: Address, http: Option<Address>, v2: Option<Address>) -> String {
    // No client trusts a certificate authority that was generated a moment ago.
    let unverified = if grpc.secure { "--insecure-transport=false --insecure-skip-tls-verify " } else { "" };
    let mut text = http.map_or_else(String::new, |http| format!("\nLook at it: {http}/\n"));
    text.push_str(&format!("\nTry:\n\n  etcdctl --endpoints {grpc} {unverified}watch --prefix /lain/\n"));
    if let Some(http) = http {
        for path in [
            "/v1/watch?prefix=/lain/&keys_only=true",
            "/v1/keys?prefix=/lain/nodes/",
            "/v2/procwatcher?appname=hello",
            "/v2/nodes?watch=1",
            "/debug/state?watch=1s",
            "/metrics",
        ] {
            let follow = if path.contains("/watch") || path.contains("watch=") { "-N " } else { "" };
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
