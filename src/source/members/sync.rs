//! [`AutoSync`]: regularly asks the cluster for its members, which the relay then uses.
//!
//! This is what etcd's own clients do with their `AutoSyncInterval`: the members' advertised client URLs replace the
//! configured ones, except for learners and members that have not started. Not here: what happens when a member comes
//! or goes, see `members`. Runs as a task.
//! Always holds: a list without a usable URL changes nothing, and neither does a list that cannot be read.

use std::{sync::Arc, time::Duration};

use super::Members;
use crate::source::{Endpoint, EtcdUpstream};

/// Reads the list of members; see the module.
#[derive(Debug)]
pub struct AutoSync {
    members: Members,
    upstream: Arc<EtcdUpstream>,
    interval: Duration,
}

impl AutoSync {
    /// Asks `upstream` every `interval`.
    #[must_use]
    pub fn new(upstream: Arc<EtcdUpstream>, interval: Duration) -> Self {
        Self { members: upstream.members().clone(), upstream, interval }
    }

    /// Runs forever.
    pub async fn run(self) {
        let mut said = Vec::new();
        loop {
            tokio::time::sleep(self.interval).await;
            let urls = match self.upstream.listed().await {
                Ok(urls) => urls,
                Err(error) => {
                    tracing::debug!(%error, "Cannot read the list of etcd's members");
                    continue;
                }
            };
            let (endpoints, others) = usable(&urls);
            if std::mem::replace(&mut said, others) != said && !said.is_empty() {
                tracing::warn!(urls = ?said, "Members of etcd advertise client URLs that the relay cannot use");
            }
            self.members.list(&endpoints);
        }
    }
}

/// The endpoints, and the URLs that are not usable.
fn usable(urls: &[String]) -> (Vec<Endpoint>, Vec<String>) {
    let mut endpoints: Vec<Endpoint> = Vec::new();
    let mut others = Vec::new();
    for url in urls {
        match url.parse() {
            Ok(endpoint) if endpoints.contains(&endpoint) => {}
            Ok(endpoint) => endpoints.push(endpoint),
            Err(_) => others.push(url.clone()),
        }
    }
    (endpoints, others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_url_that_can_be_used_is_taken_once() {
        let urls = ["http://a:1", "unix://socket", "https://b:2", "http://a:1"].map(str::to_owned);
        let (endpoints, others) = usable(&urls);
        assert_eq!(endpoints.iter().map(ToString::to_string).collect::<Vec<_>>(), ["http://a:1", "https://b:2"]);
        assert_eq!(others, ["unix://socket"]);
    }
}
