//! Asks etcd for its version, again and again: what `/version` repeats, and whether etcd can be reached at all.
//!
//! Not here: how a version is asked for, and whether progress is believed, see `version`; whether feeds are up to date: each feed
//! holds readiness for itself. Always holds: not ready while no member answers; the last known version stays. A member that serves
//! no HTTP (`--listen-client-http-urls`) counts as reached where it answers over gRPC; then there is no version to repeat.

use std::{sync::Arc, time::Duration};

use rand::Rng as _;
use tokio::sync::watch;

use super::{
    Endpoint, EtcdUpstream,
    version::{VersionError, over_http},
};
use crate::{telemetry::ReadyBoard, types::MemberVersion};

/// Between answers: how long a member that vanished goes unnoticed, with the patience for one answer.
const STEADY: Duration = Duration::from_secs(5);
/// Between failures, doubled up to the second; each is jittered by half.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// What a member calls its cluster's version until the members have agreed, some seconds after their first start.
const UNSETTLED: &str = "not_decided";

/// Asks the members in turn.
#[derive(Debug)]
pub struct Probe {
    endpoints: Vec<Endpoint>,
    upstream: Arc<EtcdUpstream>,
    patience: Duration,
    ready: ReadyBoard,
    version: watch::Sender<Option<Arc<MemberVersion>>>,
}

impl Probe {
    /// Makes a probe of the members of `upstream`, which are at `endpoints`, with `patience` for one answer. It holds `ready` back
    /// while none answers.
    #[must_use]
    pub fn new(endpoints: Vec<Endpoint>, upstream: Arc<EtcdUpstream>, patience: Duration, ready: ReadyBoard) -> Self {
        Self { endpoints, upstream, patience, ready, version: watch::Sender::new(None) }
    }

    /// The last known version; `None` until the first answer.
    #[must_use]
    pub fn version(&self) -> watch::Receiver<Option<Arc<MemberVersion>>> {
        self.version.subscribe()
    }

    /// Asks for ever; run it as a task.
    pub async fn run(self) {
        let mut hold = Some(self.ready.hold("etcd: not asked yet"));
        let mut pause = RETRY.0;
        loop {
            let mut failures = Vec::new();
            let mut answer = None;
            for (member, endpoint) in self.endpoints.iter().enumerate() {
                match self.ask(member, endpoint).await {
                    Ok(version) => {
                        answer = Some(version);
                        break;
                    }
                    Err(error) => failures.push(format!("{endpoint}: {error}")),
                }
            }
            let wait = if let Some(version) = answer {
                if hold.take().is_some() {
                    let server = version.as_ref().map(|version| &*version.etcdserver);
                    let cluster = version.as_ref().map(|version| &*version.etcdcluster);
                    tracing::info!(etcdserver = server, etcdcluster = cluster, "Reached etcd");
                }
                let settled = version.as_ref().is_none_or(|version| version.etcdcluster != UNSETTLED);
                if let Some(version) = version {
                    self.version.send_if_modified(|known| {
                        let changed = known.as_deref() != Some(&version);
                        *known = Some(Arc::new(version));
                        changed
                    });
                }
                pause = RETRY.0;
                if settled { STEADY } else { RETRY.0 }
            } else {
                let reason = format!("etcd cannot be reached: {}", failures.join("; "));
                match &hold {
                    Some(hold) => {
                        if pause == RETRY.0 {
                            tracing::warn!(reason, "Cannot reach etcd; retrying");
                        }
                        hold.explain(reason);
                    }
                    None => {
                        tracing::warn!(reason, "Lost etcd; retrying");
                        hold = Some(self.ready.hold(reason));
                    }
                }
                let wait = pause;
                pause = (pause * 2).min(RETRY.1);
                wait
            };
            let jitter = rand::rng().random_range(0.5..=1.0);
            tokio::time::sleep(wait.mul_f64(jitter)).await;
        }
    }

    /// What a member answers: its version, or `None` where it answers over gRPC alone.
    async fn ask(&self, member: usize, endpoint: &Endpoint) -> Result<Option<MemberVersion>, VersionError> {
        match over_http(endpoint, self.patience).await {
            Ok(version) => Ok(Some(version)),
            // Nobody listens there, whatever the protocol.
            Err(error @ VersionError::Connect(_)) => Err(error),
            Err(error) => match self.upstream.reach(member).await {
                Ok(()) => Ok(None),
                Err(_) => Err(error),
            },
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
    use crate::source::EtcdConfig;

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

    fn probe(endpoints: Vec<Endpoint>, ready: &ReadyBoard) -> Probe {
        let patience = Duration::from_secs(5);
        let upstream = EtcdUpstream::new(EtcdConfig {
            endpoints: endpoints.clone(),
            connect_timeout: patience,
            request_timeout: patience,
            keepalive: None,
            identity: None,
            probe_key: bytes::Bytes::from_static(b"k"),
        });
        Probe::new(endpoints, upstream, patience, ready.clone())
    }

    #[tokio::test]
    async fn the_version_is_that_of_the_first_member_that_answers() {
        let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let gone_at = gone.local_addr().expect("an address");
        drop(gone);
        let endpoints = vec![
            format!("http://{gone_at}").parse().expect("an endpoint"),
            member("{}").await,
            member(r#"{"etcdserver":"3.5.16","etcdcluster":"3.5.0"}"#).await,
        ];
        let ready = ReadyBoard::new();
        let probe = probe(endpoints, &ready);
        let mut version = probe.version();
        let task = tokio::spawn(probe.run());
        let known = version.wait_for(Option::is_some).await.expect("the probe runs").clone();
        assert_eq!(known.expect("known").etcdserver, "3.5.16");
        ready.wait_for(true).await;
        task.abort();
    }

    #[tokio::test]
    async fn not_ready_while_no_member_answers_as_etcd_does() {
        let ready = ReadyBoard::new();
        let probe = probe(vec![member("{}").await], &ready);
        let task = tokio::spawn(probe.run());
        ready.wait_for(false).await;
        while !ready.reasons().iter().any(|reason| reason.contains("something else than etcd's JSON")) {
            tokio::task::yield_now().await;
        }
        task.abort();
    }
}
