//! [`discover`]: finds members by the DNS SRV records of a domain, as etcd's own tools do with `--discovery-srv`.
//!
//! Not here: what a certificate must contain then, see `tls::client`. Called once, before the relay starts. The members
//! that were found are used until it ends.
//! Always holds: members with TLS come first, and members of a kind are in the order of RFC 2782; without `insecure`
//! only members with TLS are used.

use std::{io, time::Duration};

use domain::{
    base::{Name, RelativeName, name},
    resolv::{
        StubResolver,
        lookup::srv::{SrvError, lookup_srv},
        stub::conf::ResolvConf,
    },
};
use thiserror::Error;

use super::{Endpoint, EndpointError};

/// The most members that are taken from records. etcd advises seven members at most, and each member is probed once a
/// second.
const MOST: usize = 64;
/// How often a query is sent. Packets get lost, and a single lost packet must not stop the start of a relay.
const ATTEMPTS: u32 = 3;
/// The timeout of a query. All attempts at both queries take less than 10 s.
const ANSWER_PATIENCE: Duration = Duration::from_millis(1600);

/// What to look up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// The domain: the records are `_etcd-client-ssl._tcp.DOMAIN` and `_etcd-client._tcp.DOMAIN`.
    pub domain: String,
    /// Distinguishes clusters of one domain: it is appended to the service's name, after a hyphen.
    pub service_name: Option<String>,
    /// Whether members without TLS are used.
    pub insecure: bool,
}

/// The members that were found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovered {
    /// The members; at least one.
    pub endpoints: Vec<Endpoint>,
    /// Members without TLS that are not used.
    pub left_out: Vec<Endpoint>,
}

/// Why there are no members.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DiscoveryError {
    /// The domain or the service name is not allowed in a DNS name.
    #[error("`{0}` cannot be part of a DNS name: {1}")]
    Name(String, String),
    /// DNS did not answer, or its answer could not be read.
    #[error("DNS gave no usable answer to SRV {record}: {source}; the servers are those of /etc/resolv.conf")]
    Dns {
        /// The records that were requested.
        record: String,
        /// The reason.
        source: io::Error,
    },
    /// There are no records.
    #[error("DNS has no SRV records {0}")]
    NoRecords(String),
    /// Records name only members without TLS.
    #[error("all SRV records are for members without TLS ({0}); these are used only with --insecure-discovery")]
    Insecure(String),
    /// A record names something that cannot be a member.
    #[error("an SRV record names no member: {0}")]
    Target(#[from] EndpointError),
    /// Too many records.
    #[error("SRV records name {0} members, more than {MOST}")]
    TooMany(usize),
    /// The system did not give the relay a thread or a socket for the lookup.
    #[error("cannot look up DNS records: {0}")]
    Runtime(#[source] io::Error),
}

/// Looks the records up at the servers of `/etc/resolv.conf`. Blocks for 10 seconds at most.
///
/// # Errors
/// If no member is found.
pub fn discover(discovery: &Discovery) -> Result<Discovered, DiscoveryError> {
    discover_by(ResolvConf::default(), discovery)
}

fn discover_by(mut servers: ResolvConf, discovery: &Discovery) -> Result<Discovered, DiscoveryError> {
    servers.options.timeout = servers.options.timeout.min(ANSWER_PATIENCE);
    servers.finalize();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(DiscoveryError::Runtime)?;
    runtime.block_on(discovery.members(&StubResolver::from_conf(servers)))
}

impl Discovery {
    async fn members(&self, resolver: &StubResolver) -> Result<Discovered, DiscoveryError> {
        let suffix = self.service_name.as_ref().map(|name| format!("-{name}")).unwrap_or_default();
        let services =
            [("https", format!("_etcd-client-ssl{suffix}._tcp")), ("http", format!("_etcd-client{suffix}._tcp"))];
        let (mut endpoints, mut left_out, mut failed) = (Vec::new(), Vec::new(), None);
        for (scheme, service) in &services {
            match self.lookup(resolver, service).await {
                Ok(targets) => {
                    let found = targets.iter().map(|target| format!("{scheme}://{target}").parse());
                    let found = found.collect::<Result<Vec<Endpoint>, _>>()?;
                    if self.insecure || *scheme == "https" { endpoints.extend(found) } else { left_out.extend(found) }
                }
                Err(error @ DiscoveryError::Name(..)) => return Err(error),
                Err(error) => failed = Some(error),
            }
        }
        let found = endpoints.len() + left_out.len();
        match (endpoints.is_empty(), failed) {
            _ if found > MOST => Err(DiscoveryError::TooMany(found)),
            (false, _) => Ok(Discovered { endpoints, left_out }),
            (true, Some(error)) => Err(error),
            (true, None) if left_out.is_empty() => {
                let [(_, secure), (_, plain)] = services;
                Err(DiscoveryError::NoRecords(format!("{secure}.{0} or {plain}.{0}", self.domain)))
            }
            (true, None) => {
                let left_out: Vec<_> = left_out.iter().map(ToString::to_string).collect();
                Err(DiscoveryError::Insecure(left_out.join(", ")))
            }
        }
    }

    /// Targets and ports; an empty list if there are no records.
    async fn lookup(&self, resolver: &StubResolver, service: &str) -> Result<Vec<String>, DiscoveryError> {
        let bad = |text: &str, error: &dyn ToString| DiscoveryError::Name(text.to_owned(), error.to_string());
        let relative: RelativeName<Vec<u8>> =
            service.parse().map_err(|error: name::RelativeFromStrError| bad(service, &error))?;
        let domain: Name<Vec<u8>> =
            self.domain.parse().map_err(|error: name::FromStrError| bad(&self.domain, &error))?;
        let failed = |source| DiscoveryError::Dns { record: format!("{service}.{}", self.domain), source };
        let mut left = ATTEMPTS;
        let found = loop {
            left -= 1;
            // Without records the library returns the domain itself with this port, which no record of a service has.
            let lookup = lookup_srv(resolver, relative.clone(), domain.clone(), 0);
            let error = match tokio::time::timeout(ANSWER_PATIENCE, lookup).await {
                Ok(Ok(found)) => break found,
                Ok(Err(SrvError::Query(error))) => error,
                Ok(Err(SrvError::LongName)) => return Err(bad(&self.domain, &"with the service it is too long")),
                Ok(Err(SrvError::MalformedAnswer)) => return Err(failed(io::Error::other("it could not be read"))),
                Err(late) => late.into(),
            };
            if left == 0 {
                return Err(failed(error));
            }
        };
        let records = found.into_iter().flat_map(|found| found.into_srvs());
        Ok(records.filter(|srv| srv.port() != 0).map(|srv| format!("{}:{}", srv.target(), srv.port())).collect())
    }
}

#[cfg(test)]
mod tests;
