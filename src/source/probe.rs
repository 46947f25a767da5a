//! Regularly asks etcd for its version, which `/version` repeats.
//!
//! Not here: how a version is read, and whether progress is trusted, see `version`; whether etcd can be reached, see
//! `members`.
//! Always holds: the last known version stays. A cluster whose members serve HTTP elsewhere
//! (`--listen-client-http-urls`) has no version to repeat.

use std::{sync::Arc, time::Duration};

use rand::Rng as _;
use tokio::sync::watch;

use super::{Dialler, Members, members::race::race, version::over_http};
use crate::types::MemberVersion;

/// Time between answers.
const STEADY: Duration = Duration::from_secs(5);
/// The pause after a failure, doubled from the first to the second of these; each is jittered by half.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// What a member reports as its cluster's version until the members have agreed, some seconds after their first start.
const UNSETTLED: &str = "not_decided";

/// Reads the version from the members, the best member first.
#[derive(Debug)]
pub struct Probe {
    members: Members,
    dialler: Dialler,
    patience: Duration,
    version: watch::Sender<Option<Arc<MemberVersion>>>,
}

impl Probe {
    /// Makes a probe of these members, which connects by `dialler` and has `patience` for one answer.
    #[must_use]
    pub fn new(members: Members, dialler: Dialler, patience: Duration) -> Self {
        Self { members, dialler, patience, version: watch::Sender::new(None) }
    }

    /// The last known version; `None` until the first answer.
    #[must_use]
    pub fn version(&self) -> watch::Receiver<Option<Arc<MemberVersion>>> {
        self.version.subscribe()
    }

    /// Runs forever; spawn it as a task.
    pub async fn run(self) {
        let mut pause = RETRY.0;
        loop {
            let ask = async |member| over_http(&self.dialler, &self.members.endpoint(member), self.patience).await;
            let wait = match race(self.members.ranked(), ask, |_| true).await {
                Ok((_, version)) => {
                    let settled = version.etcdcluster != UNSETTLED;
                    self.version.send_if_modified(|known| {
                        let changed = known.as_deref() != Some(&version);
                        if changed {
                            tracing::info!(
                                etcdserver = version.etcdserver,
                                etcdcluster = version.etcdcluster,
                                "Learned etcd's version"
                            );
                            *known = Some(Arc::new(version));
                        }
                        changed
                    });
                    pause = RETRY.0;
                    if settled { STEADY } else { RETRY.0 }
                }
                Err(failures) => {
                    for (member, error) in failures {
                        tracing::debug!(endpoint = %self.members.endpoint(member), %error, "Cannot read an etcd member's version");
                    }
                    let wait = pause;
                    pause = (pause * 2).min(RETRY.1);
                    wait
                }
            };
            let jitter = rand::rng().random_range(0.5..=1.0);
            tokio::time::sleep(wait.mul_f64(jitter)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::source::Endpoint;

    async fn member(answer: &'static str) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address")).parse().expect("an endpoint");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
                let _ = stream.write_all(head.as_bytes()).await;
            }
        });
        endpoint
    }

    #[tokio::test]
    async fn the_version_is_that_of_the_first_member_that_answers() {
        let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let gone_at = gone.local_addr().expect("an address");
        drop(gone);
        let endpoints = [
            format!("http://{gone_at}").parse().expect("an endpoint"),
            member("{}").await,
            member(r#"{"etcdserver":"3.5.16","etcdcluster":"3.5.0"}"#).await,
        ];
        let probe = Probe::new(Members::new(&endpoints), Dialler::default(), Duration::from_secs(5));
        let mut version = probe.version();
        let task = tokio::spawn(probe.run());
        let known = version.wait_for(Option::is_some).await.expect("the probe runs").clone();
        assert_eq!(known.expect("known").etcdserver, "3.5.16");
        task.abort();
    }
}
