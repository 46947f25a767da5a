//! [`Versions`]: which version of etcd each member runs. This decides whether its progress can be trusted.
//!
//! A member reports its version over plain HTTP (`/version`), unless `--listen-client-http-urls` has moved HTTP to
//! another port; and through `Maintenance.Status`, unless authentication is on: etcd 3.5.28 to 3.5.31 and 3.6.0 to
//! 3.6.11 allow that call only to root. So both are tried, HTTP first. If neither answers, the version that was known
//! before is kept. If none was known, the member's progress is not trusted, and everything else works.
//!
//! Not here: how etcd is reached over gRPC, see `etcd`; the version that the relay repeats to its clients, see `probe`.
//! Always holds: a member is asked once for as long as its watches last, however many they are. After one of them
//! broke, the next one asks again, since the member may run another version by then.

use std::{sync::Arc, time::Duration};

use http::{Request, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use parking_lot::{Mutex, RwLock};
use thiserror::Error;
use tokio::time::timeout;

use super::{Dialler, Endpoint};
use crate::{tls::Speaks, types::MemberVersion};

/// An answer to `/version` has less than 100 bytes.
const MAX_ANSWER: usize = 4096;

/// Why a member's version could not be read over HTTP.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(super) enum VersionError {
    #[error("{0}")]
    Connect(#[from] std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    #[error("/version answers with status {0}; is this etcd's client port?")]
    Status(http::StatusCode),
    #[error("/version answers with something other than etcd's JSON: {0}")]
    Answer(Box<dyn std::error::Error + Send + Sync>),
}

/// The versions of the members; see the module.
#[derive(Debug, Default)]
pub(super) struct Versions {
    members: RwLock<Vec<Arc<Member>>>,
}

#[derive(Debug, Default)]
struct Member {
    known: Mutex<Known>,
    /// Held while the member is asked, so that feeds that start together ask once.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    /// The version that the member reported last.
    version: Option<String>,
    /// Whether the member was asked since a watch of it broke.
    asked: bool,
    /// How often it was asked.
    times: u64,
}

/// What was known about a member, and after which request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Belief {
    pub(super) trusts_progress: bool,
    member: usize,
    times: u64,
}

impl Versions {
    /// Members become known while the relay runs.
    fn member(&self, index: usize) -> Arc<Member> {
        if let Some(member) = self.members.read().get(index) {
            return member.clone();
        }
        let mut members = self.members.write();
        while members.len() <= index {
            members.push(Arc::default());
        }
        members[index].clone()
    }

    /// The version of a member. If the member was not asked yet, `ask` asks it, and returns `None` if it does not
    /// answer.
    pub(super) async fn of(&self, index: usize, ask: impl AsyncFnOnce() -> Option<String>) -> Belief {
        let member = self.member(index);
        if let Some(belief) = member.belief(index) {
            return belief;
        }
        let _asking = member.asking.lock().await;
        if let Some(belief) = member.belief(index) {
            return belief;
        }
        let told = ask().await;
        let mut known = member.known.lock();
        let before = known.version.clone();
        if told.is_some() {
            known.version = told;
        } else {
            tracing::info!(
                kept = known.version,
                "An etcd member reports its version neither at /version nor by Status"
            );
        }
        known.asked = true;
        known.times += 1;
        if known.version != before {
            tracing::debug!(version = known.version, "Learned the version of an etcd member");
        }
        known.belief(index)
    }

    /// A watch that began with this belief broke, so the next one asks again.
    pub(super) fn outdate(&self, belief: Belief) {
        let member = self.member(belief.member);
        let mut known = member.known.lock();
        if known.times == belief.times {
            known.asked = false;
        }
    }
}

impl Member {
    fn belief(&self, index: usize) -> Option<Belief> {
        let known = self.known.lock();
        known.asked.then(|| known.belief(index))
    }
}

impl Known {
    fn belief(&self, member: usize) -> Belief {
        let trusts_progress = self.version.as_deref().is_some_and(trusts_progress);
        Belief { trusts_progress, member, times: self.times }
    }
}

/// Asks a member over HTTP.
pub(super) async fn over_http(
    dialler: &Dialler,
    endpoint: &Endpoint,
    patience: Duration,
) -> Result<MemberVersion, VersionError> {
    timeout(patience, fetch(dialler, endpoint)).await.unwrap_or(Err(VersionError::Timeout(patience)))
}

async fn fetch(dialler: &Dialler, endpoint: &Endpoint) -> Result<MemberVersion, VersionError> {
    let stream = dialler.dial(endpoint, Speaks::Http1).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/version")
        .header(header::HOST, endpoint.authority().as_str())
        .body(Empty::<Bytes>::new())
        .expect("a constant request");
    let exchange = async {
        let response = sender.send_request(request).await?;
        if !response.status().is_success() {
            return Err(VersionError::Status(response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(VersionError::Answer)?;
        serde_json::from_slice(&body.to_bytes()).map_err(|error| VersionError::Answer(error.into()))
    };
    tokio::pin!(exchange, connection);
    // The connection has to be driven for the exchange to proceed. It may end first, once the answer has arrived.
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        ended = &mut connection => {
            ended?;
            exchange.await
        }
    }
}

/// etcd 3.4.31 and 3.5.13 fixed the fault that progress could overtake events (issue 15220).
fn trusts_progress(version: &str) -> bool {
    let mut numbers = version.split(['.', '-', '+']).map(|part| part.parse::<u32>().unwrap_or(0));
    let mut number = || numbers.next().unwrap_or(0);
    match (number(), number(), number()) {
        (3, 4, patch) => patch >= 31,
        (3, 5, patch) => patch >= 13,
        (major, minor, _) => (major, minor) > (3, 5),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;

    use super::*;

    #[test]
    fn progress_is_believed_from_the_versions_that_mended_it() {
        for version in ["3.4.31", "3.5.13", "3.5.16", "3.6.0-rc.1", "3.8.0-alpha.0", "4.0.0"] {
            assert!(trusts_progress(version), "{version}");
        }
        for version in ["", "nonsense", "2.3.8", "3.3.27", "3.4.30", "3.5.0", "3.5.12"] {
            assert!(!trusts_progress(version), "{version}");
        }
    }

    /// Answers with a version, and counts the requests.
    #[derive(Default)]
    struct Told {
        version: Mutex<Option<&'static str>>,
        asked: AtomicUsize,
    }

    impl Told {
        async fn ask(&self) -> Option<String> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            self.version.lock().map(str::to_owned)
        }
    }

    #[tokio::test]
    async fn watches_that_begin_together_ask_a_member_once_and_one_after_a_break_asks_again() {
        let versions = Versions::default();
        let told = Told { version: Mutex::new(Some("3.5.16")), ..Told::default() };
        let beliefs = join_all((0..100).map(|_| versions.of(1, async || told.ask().await))).await;
        assert!(beliefs.iter().all(|belief| belief.trusts_progress));
        assert_eq!(told.asked.load(Ordering::Relaxed), 1);
        // All its watches break together, and the member comes back with an older version.
        *told.version.lock() = Some("3.5.12");
        beliefs.iter().for_each(|belief| versions.outdate(*belief));
        let again = versions.of(1, async || told.ask().await).await;
        assert!(!again.trusts_progress);
        // A watch that noticed late says nothing about the member as it is now.
        versions.outdate(beliefs[0]);
        versions.of(1, async || told.ask().await).await;
        assert_eq!(told.asked.load(Ordering::Relaxed), 2);
        versions.of(0, async || told.ask().await).await;
        assert_eq!(told.asked.load(Ordering::Relaxed), 3, "each member has its own version");
    }

    #[tokio::test]
    async fn what_was_known_is_kept_where_a_member_stops_telling_and_nothing_known_is_not_believed() {
        let versions = Versions::default();
        let told = Told::default();
        let unknown = versions.of(0, async || told.ask().await).await;
        assert!(!unknown.trusts_progress);
        assert!(!versions.of(0, async || told.ask().await).await.trusts_progress);
        assert_eq!(told.asked.load(Ordering::Relaxed), 1, "a member that does not answer is not asked for each watch");
        versions.outdate(unknown);
        *told.version.lock() = Some("3.6.11");
        let known = versions.of(0, async || told.ask().await).await;
        assert!(known.trusts_progress);
        // Authentication was enabled meanwhile, and only root may use Status.
        *told.version.lock() = None;
        versions.outdate(known);
        assert!(versions.of(0, async || told.ask().await).await.trusts_progress);
    }
}
