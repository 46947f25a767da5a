//! Asks etcd for its version, again and again: what `/version` repeats, and whether etcd can be reached at all.
//!
//! Not here: whether feeds are up to date; each feed holds readiness for itself.
//! Always holds: not ready while no member answers; the last known version stays.

use std::{sync::Arc, time::Duration};

use http::{Request, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use rand::Rng as _;
use thiserror::Error;
use tokio::{net::TcpStream, sync::watch, time::timeout};

use super::Endpoint;
use crate::{telemetry::ReadyBoard, types::MemberVersion};

/// Between answers: how long a member that vanished goes unnoticed, with the patience for one answer.
const STEADY: Duration = Duration::from_secs(5);
/// Between failures, doubled up to the second; each is jittered by half.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// What a member calls its cluster's version until the members have agreed, some seconds after their first start.
const UNSETTLED: &str = "not_decided";
/// `/version` answers with less than 100 bytes.
const MAX_ANSWER: usize = 4096;

/// Asks the members in turn.
#[derive(Debug)]
pub struct Probe {
    endpoints: Vec<Endpoint>,
    patience: Duration,
    ready: ReadyBoard,
    version: watch::Sender<Option<Arc<MemberVersion>>>,
}

/// Why a member did not tell its version.
#[derive(Debug, Error)]
#[non_exhaustive]
enum ProbeError {
    #[error("{0}")]
    Connect(#[from] std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    #[error("/version answers with status {0}; is this etcd's client port?")]
    Status(http::StatusCode),
    #[error("/version answers with something else than etcd's JSON: {0}")]
    Answer(Box<dyn std::error::Error + Send + Sync>),
}

impl Probe {
    /// Makes a probe of `endpoints` with `patience` for one answer, which holds `ready` back while none answers.
    #[must_use]
    pub fn new(endpoints: Vec<Endpoint>, patience: Duration, ready: ReadyBoard) -> Self {
        Self { endpoints, patience, ready, version: watch::Sender::new(None) }
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
            for endpoint in &self.endpoints {
                match self.ask(endpoint).await {
                    Ok(version) => {
                        answer = Some(version);
                        break;
                    }
                    Err(error) => failures.push(format!("{endpoint}: {error}")),
                }
            }
            let wait = if let Some(version) = answer {
                let settled = version.etcdcluster != UNSETTLED;
                if hold.take().is_some() {
                    tracing::info!(etcdserver = version.etcdserver, etcdcluster = version.etcdcluster, "Reached etcd");
                }
                self.version.send_if_modified(|known| {
                    let changed = known.as_deref() != Some(&version);
                    *known = Some(Arc::new(version));
                    changed
                });
                pause = RETRY.0;
                if settled { STEADY } else { RETRY.0 }
            } else {
                let reason = format!("etcd cannot be reached: {}", failures.join("; "));
                match &hold {
                    Some(hold) => {
                        if pause == RETRY.0 {
                            tracing::warn!(reason, "Cannot reach etcd; trying on");
                        }
                        hold.explain(reason);
                    }
                    None => {
                        tracing::warn!(reason, "Lost etcd; trying on");
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

    async fn ask(&self, endpoint: &Endpoint) -> Result<MemberVersion, ProbeError> {
        timeout(self.patience, fetch(endpoint)).await.unwrap_or(Err(ProbeError::Timeout(self.patience)))
    }
}

async fn fetch(endpoint: &Endpoint) -> Result<MemberVersion, ProbeError> {
    let stream = TcpStream::connect(endpoint.host_and_port()).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/version")
        .header(header::HOST, endpoint.authority().as_str())
        .body(Empty::<Bytes>::new())
        .expect("a constant request");
    let exchange = async {
        let response = sender.send_request(request).await?;
        if !response.status().is_success() {
            return Err(ProbeError::Status(response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(ProbeError::Answer)?;
        serde_json::from_slice(&body.to_bytes()).map_err(|error| ProbeError::Answer(error.into()))
    };
    tokio::pin!(exchange, connection);
    // The connection has to be driven for the exchange to move; it may end first, once the answer is in.
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        ended = &mut connection => {
            ended?;
            exchange.await
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
        let endpoints = vec![
            format!("http://{gone_at}").parse().expect("an endpoint"),
            member("{}").await,
            member(r#"{"etcdserver":"3.5.16","etcdcluster":"3.5.0"}"#).await,
        ];
        let ready = ReadyBoard::new();
        let probe = Probe::new(endpoints, Duration::from_secs(5), ready.clone());
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
        let probe = Probe::new(vec![member("{}").await], Duration::from_secs(5), ready.clone());
        let task = tokio::spawn(probe.run());
        ready.wait_for(false).await;
        while !ready.reasons().iter().any(|reason| reason.contains("something else than etcd's JSON")) {
            tokio::task::yield_now().await;
        }
        task.abort();
    }
}
