//! [`Members`]: sends requests to the members of a cluster over HTTP/1.1, and chooses the member.
//!
//! Not here: the content of requests, and retries. Always holds: a request goes to one member; a connection is reused
//! only after its answer was read to the end; every wait for a member has a timeout, except the wait for a wait's
//! event.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    task::AbortHandle,
    time::{Instant, timeout},
};

use super::{
    V2Config,
    answer::{Refusal, Standing, UNAUTHORIZED},
};
use crate::{
    hub::upstream::UpstreamError,
    source::{causes::chain, members::healthy_metric},
    tls::Speaks,
};

/// How many connections to a member are kept for the next request: as many as there are feeds that list at a time,
/// which is rarely more.
const IDLE: usize = 8;
/// The most bytes of a listing or an event. etcd itself would fail long before.
pub(super) const MAX_ANSWER: usize = 1 << 30;
/// How long the end of an answer may take after its last line. Mostly they come together.
const END_PATIENCE: Duration = Duration::from_millis(200);
/// How long a member that does not report its id is not asked for it again, since each answer's header would have to
/// wait for that.
const ID_PAUSE: Duration = Duration::from_secs(60);
/// How long a member may take to report its id. It answers by itself, without the others.
pub(super) const ID_PATIENCE: Duration = Duration::from_secs(1);
/// The most bytes of an error, or of a member's report about itself, which has a few hundred.
const MAX_SELF: usize = 64 << 10;

/// The members of a v2 cluster; see the module.
#[derive(Debug)]
pub(super) struct Members {
    config: V2Config,
    credentials: Option<HeaderValue>,
    members: Vec<Member>,
    preferred: AtomicUsize,
    /// The newest term that any member reported.
    term: AtomicU64,
}

#[derive(Debug, Default)]
struct Member {
    idle: Mutex<Vec<Connection>>,
    /// Zero until it is known.
    id: AtomicU64,
    /// When it was last asked for its id.
    asked: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    task: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The head of an answer, and what is needed to read the rest.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) member: usize,
    status: StatusCode,
    standing: Option<Standing>,
    body: Incoming,
    connection: Connection,
    read: BytesMut,
}

/// A member's answer if it is not the requested one.
#[derive(Debug)]
pub(super) enum Declined {
    /// A v2 error.
    Refused(Refusal, Standing),
    /// Anything else.
    Failed(UpstreamError),
}

impl Members {
    pub(super) fn new(config: V2Config) -> Arc<Self> {
        let credentials = config.identity.as_ref().map(|identity| {
            let text = format!("{}:{}", identity.user, identity.password);
            let text = format!("Basic {}", BASE64_STANDARD.encode(text));
            let mut value = HeaderValue::try_from(text).expect("base64 is visible ASCII");
            value.set_sensitive(true);
            value
        });
        let members = config.endpoints.iter().enumerate().map(|(at, _)| {
            // It was not asked yet.
            healthy_metric(at, None);
            Member::default()
        });
        let members = members.collect();
        Arc::new(Self { config, credentials, members, preferred: AtomicUsize::new(0), term: AtomicU64::new(0) })
    }

    pub(super) fn config(&self) -> &V2Config {
        &self.config
    }

    /// The member that requests go to.
    pub(super) fn preferred(&self) -> usize {
        self.preferred.load(Ordering::Relaxed) % self.members.len()
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// Prefers another member than the one that failed, and adds its name to the error.
    pub(super) fn failed(&self, member: usize, error: UpstreamError) -> UpstreamError {
        if matches!(error, UpstreamError::Denied(_) | UpstreamError::TooLarge(_)) {
            // Another member would give the same answer.
            return error;
        }
        healthy_metric(member, Some(false));
        let next = (member + 1) % self.members.len();
        let _ = self.preferred.compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
        match error {
            UpstreamError::Unavailable(text) => {
                UpstreamError::Unavailable(format!("{}: {text}", self.config.endpoints[member]))
            }
            error => error,
        }
    }

    /// The term in an answer's head, or the newest that is known.
    pub(super) fn term(&self, said: Option<u64>) -> u64 {
        let known = self.term.fetch_max(said.unwrap_or_default(), Ordering::Relaxed);
        said.unwrap_or(known)
    }

    /// The member's id, as it reports it; zero if it does not.
    pub(super) async fn id(&self, member: usize) -> u64 {
        let Member { id, asked, .. } = &self.members[member];
        let known = id.load(Ordering::Relaxed);
        if known != 0 {
            return known;
        }
        // One caller asks, and the others wait for the result.
        let mut asked = asked.lock().await;
        let known = id.load(Ordering::Relaxed);
        if known != 0 || asked.is_some_and(|asked| asked.elapsed() < ID_PAUSE) {
            return known;
        }
        // Before the request, since the caller may give up.
        *asked = Some(Instant::now());
        let said = async {
            let reply = self.send(member, "/v2/stats/self").await?;
            reply.whole(self, MAX_SELF).await
        };
        let said = timeout(ID_PATIENCE, said).await.ok().and_then(Result::ok).and_then(|text| {
            let answer: serde_json::Value = serde_json::from_slice(&text).ok()?;
            u64::from_str_radix(answer.get("id")?.as_str()?, 16).ok()
        });
        id.store(said.unwrap_or_default(), Ordering::Relaxed);
        said.unwrap_or_default()
    }

    /// Sends a GET request to a member and reads the head of its answer.
    pub(super) async fn get(&self, member: usize, target: &str) -> Result<(Standing, Reply), Declined> {
        let sent = self.send(member, target).await;
        let reply = sent.map_err(|error| Declined::Failed(self.failed(member, error)))?;
        match reply.standing {
            Some(standing) if reply.status == StatusCode::OK => {
                healthy_metric(member, Some(true));
                Ok((standing, reply))
            }
            _ => Err(self.declined(reply).await),
        }
    }

    /// Whether authentication is on in the v2 API. etcd 2.0 has none.
    pub(super) async fn is_auth_on(&self) -> Result<bool, UpstreamError> {
        let member = self.preferred();
        let asked = async {
            let reply = self.send(member, "/v2/auth/enable").await?;
            let status = reply.status;
            let text = reply.whole(self, MAX_SELF).await?;
            let answer = serde_json::from_slice::<serde_json::Value>(&text).ok();
            match answer.as_ref().and_then(|answer| answer.get("enabled")?.as_bool()) {
                Some(enabled) => Ok(enabled),
                None if status == StatusCode::NOT_FOUND => Ok(false),
                None => Err(UpstreamError::Unavailable(format!("/v2/auth/enable answers with status {status}"))),
            }
        };
        asked.await.map_err(|error| self.failed(member, error))
    }

    async fn declined(&self, reply: Reply) -> Declined {
        let Reply { member, status, standing, .. } = reply;
        let text = match reply.whole(self, MAX_SELF).await {
            Ok(text) => text,
            Err(error) => return Declined::Failed(self.failed(member, error)),
        };
        let refusal = serde_json::from_slice::<Refusal>(&text).ok();
        let error = match (refusal, standing) {
            (Some(refusal), _) if refusal.error_code == UNAUTHORIZED => UpstreamError::Denied(refusal.to_string()),
            (Some(refusal), Some(standing)) if status.is_client_error() => {
                healthy_metric(member, Some(true));
                return Declined::Refused(refusal, standing);
            }
            (Some(refusal), _) => UpstreamError::Unavailable(format!("etcd v2 answers {refusal}")),
            (None, _) if status == StatusCode::NOT_FOUND => UpstreamError::Unavailable(
                "it does not serve etcd's v2 API. From etcd 3.4 on the API is off unless etcd runs with --enable-v2, and from 3.6 on it does not exist: then its data is in v3, and --etcd is the flag to use"
                    .to_owned(),
            ),
            (None, _) => UpstreamError::Unavailable(format!("it answers with status {status}, and not in the form of etcd v2")),
        };
        Declined::Failed(self.failed(member, error))
    }

    /// Keeps a connection, whose last answer was read to the end, for the next request.
    fn keep(&self, member: usize, connection: Connection) {
        let mut idle = self.members[member].idle.lock();
        if idle.len() < IDLE && !connection.sender.is_closed() {
            idle.push(connection);
        }
    }

    async fn send(&self, member: usize, target: &str) -> Result<Reply, UpstreamError> {
        let patience = self.config.request_timeout;
        let kept = self.members[member].idle.lock().pop();
        if let Some(connection) = kept.filter(|kept| !kept.sender.is_closed()) {
            match timeout(patience, self.send_on(member, connection, target)).await {
                // The member closes idle connections. A GET request can be sent again.
                Ok(Err(_)) => {}
                Ok(reply) => return reply,
                Err(_) => return Err(UpstreamError::Timeout(patience)),
            }
        }
        let connection = timeout(self.config.connect_timeout, self.connect(member))
            .await
            .unwrap_or(Err(UpstreamError::Timeout(self.config.connect_timeout)))?;
        timeout(patience, self.send_on(member, connection, target))
            .await
            .unwrap_or(Err(UpstreamError::Timeout(patience)))
    }

    async fn connect(&self, member: usize) -> Result<Connection, UpstreamError> {
        let unavailable = |error: &(dyn std::error::Error + 'static)| UpstreamError::Unavailable(chain(error));
        let stream = self
            .config
            .dialler
            .dial(&self.config.endpoints[member], Speaks::Http1)
            .await
            .map_err(|error| unavailable(&error))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| unavailable(&error))?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "Connection to an etcd v2 member ended");
            }
        });
        Ok(Connection { sender, task: task.abort_handle() })
    }

    async fn send_on(&self, member: usize, mut connection: Connection, target: &str) -> Result<Reply, UpstreamError> {
        let mut request = Request::get(target)
            .header(header::HOST, self.config.endpoints[member].authority().as_str())
            .body(Empty::new())
            .map_err(|error| UpstreamError::Protocol(error.to_string()))?;
        if let Some(credentials) = &self.credentials {
            request.headers_mut().insert(header::AUTHORIZATION, credentials.clone());
        }
        let failed = |error: &hyper::Error| UpstreamError::Unavailable(chain(error));
        connection.sender.ready().await.map_err(|error| failed(&error))?;
        let response = connection.sender.send_request(request).await.map_err(|error| failed(&error))?;
        let (head, body) = response.into_parts();
        let standing = Standing::of(&head.headers);
        Ok(Reply { member, status: head.status, standing, body, connection, read: BytesMut::new() })
    }
}

impl Reply {
    /// Reads the whole body. It may take any time, as long as some of it keeps coming.
    pub(super) async fn whole(mut self, members: &Members, most: usize) -> Result<Bytes, UpstreamError> {
        let patience = members.config.request_timeout;
        while timeout(patience, self.more(most)).await.unwrap_or(Err(UpstreamError::Timeout(patience)))? {}
        let Self { member, connection, read, .. } = self;
        members.keep(member, connection);
        Ok(read.freeze())
    }

    /// A whole listing of no more than `most` bytes.
    pub(super) async fn listing(self, members: &Members, most: usize) -> Result<Bytes, UpstreamError> {
        let member = self.member;
        self.whole(members, most).await.map_err(|error| members.failed(member, error))
    }

    /// Waits for the line that ends a wait; empty if the answer ends without one. Cancel safe: what was read is kept.
    pub(super) async fn line(&mut self) -> Result<Bytes, UpstreamError> {
        loop {
            if self.read.ends_with(b"\n") || !self.more(MAX_ANSWER).await? {
                return Ok(self.read.split().freeze());
            }
        }
    }

    /// Makes the connection reusable, once the end of the answer has followed its line.
    pub(super) async fn recycle(mut self, members: Arc<Members>) {
        if let Ok(Ok(false)) = timeout(END_PATIENCE, self.more(MAX_ANSWER)).await {
            members.keep(self.member, self.connection);
        }
    }

    /// Reads some more. Returns false at the end. Cancel safe.
    async fn more(&mut self, most: usize) -> Result<bool, UpstreamError> {
        match self.body.frame().await {
            None => Ok(false),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    self.read.extend_from_slice(&data);
                }
                if self.read.len() > most {
                    return Err(UpstreamError::TooLarge(most));
                }
                Ok(true)
            }
            Some(Err(error)) => Err(UpstreamError::Unavailable(chain(&error))),
        }
    }
}
