//! Flags for Lainlet's views.

use std::net::IpAddr;

use clap::{Args, ValueEnum};
use ipnet::IpNet;

use super::values::network;
use crate::{
    relay::{LainletFeeds, Views},
    view::{LainletConfig, Trust},
};

#[derive(Debug, Args)]
#[command(next_help_heading = "Lainlet's views")]
pub(super) struct LainletFlags {
    /// When to open the feeds for Lainlet's views, all under /lain/. `at-start` spares the first request the wait;
    /// `off` refuses views
    #[arg(long, env = "ETCD_RELAY_LAINLET", value_name = "WHEN", value_enum, default_value_t)]
    lainlet: When,

    /// This machine's address in the cluster. Callers from this address may see every view. A caller on an unknown node
    /// is shown the views of this machine's node
    #[arg(long, env = "ETCD_RELAY_NODE_IP", value_name = "ADDR")]
    node_ip: Option<IpAddr>,

    /// This machine's name in the cluster, used for views of one node that are requested from an unknown node. Default:
    /// the host name
    #[arg(long, env = "ETCD_RELAY_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,

    /// Let everyone see every view, whatever their address
    #[arg(long, env = "ETCD_RELAY_NO_AUTH")]
    no_auth: bool,

    /// Network whose callers may see every view; repeatable, or separated by commas
    #[arg(long, env = "ETCD_RELAY_TRUSTED_NET", value_name = "CIDR", value_delimiter = ',', value_parser = network)]
    trusted_net: Vec<IpNet>,

    /// Name in a client certificate that lets its holder see every view from any address. It is an alternative name
    /// (DNS, address, URI or e-mail), or the common name of a certificate without any. Repeatable, or separated by
    /// commas. Needs --trusted-ca-file
    #[arg(
        long,
        env = "ETCD_RELAY_VIEWS_ALLOW_SAN",
        value_name = "NAME",
        value_delimiter = ',',
        requires = "trusted_ca_file"
    )]
    views_allow_san: Vec<String>,

    /// Whether callers from the addresses under /lain/nodes/nodes/ may see every view, as each node could in its own
    /// Lainlet
    #[arg(
        long,
        env = "ETCD_RELAY_TRUST_NODES",
        value_name = "BOOL",
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        default_value_t = true,
        default_missing_value = "true"
    )]
    trust_nodes: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum When {
    /// At the first request for a view
    #[default]
    OnDemand,
    /// At the start; the process is ready only once they have been read
    AtStart,
    /// Never; views are refused
    Off,
}

impl LainletFlags {
    pub(super) fn views(self) -> Views {
        let host_name = || rustix::system::uname().nodename().to_str().ok().map(str::to_owned);
        Views {
            feeds: match self.lainlet {
                When::OnDemand => LainletFeeds::OnDemand,
                When::AtStart => LainletFeeds::AtStart,
                When::Off => LainletFeeds::Off,
            },
            lainlet: LainletConfig {
                trust: Trust {
                    everyone: self.no_auth,
                    own: self.node_ip.map(|addr| addr.to_canonical()),
                    nets: self.trusted_net,
                    certificates: self.views_allow_san,
                    nodes: self.trust_nodes,
                },
                node_name: self.node_name.or_else(host_name),
                ..LainletConfig::default()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{refused, started};
    use super::*;

    const SERVE: [&str; 3] = ["serve", "--etcd", "http://127.0.0.1:2379"];

    fn views(flags: &[&str]) -> Views {
        started(&[&SERVE, flags].concat()).config.views
    }

    #[test]
    fn nodes_are_trusted_unless_told_otherwise() {
        assert!(views(&[]).lainlet.trust.nodes);
        assert!(views(&["--trust-nodes"]).lainlet.trust.nodes);
        for flags in [&["--trust-nodes=false"][..], &["--trust-nodes", "false"]] {
            assert!(!views(flags).lainlet.trust.nodes, "{flags:?}");
        }
    }

    #[test]
    fn networks_add_up_and_a_bad_one_is_refused() {
        let nets =
            views(&["--trusted-net", "10.0.0.0/8,fd00::/8", "--trusted-net", "192.168.77.0/24"]).lainlet.trust.nets;
        assert_eq!(nets.len(), 3);
        assert!(refused(&[&SERVE[..], &["--trusted-net", "10.0.0.0"]].concat()).contains("--trusted-net"));
        assert!(refused(&[&SERVE[..], &["--node-ip", "node1"]].concat()).contains("--node-ip"));
    }

    #[test]
    fn the_node_is_called_as_the_host_unless_told_otherwise() {
        assert!(views(&[]).lainlet.node_name.is_some_and(|name| !name.is_empty()));
        assert_eq!(views(&["--node-name", "node7"]).lainlet.node_name.as_deref(), Some("node7"));
    }
}
