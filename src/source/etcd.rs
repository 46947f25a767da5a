//! [`EtcdUpstream`]: an etcd v3 cluster as the hub's upstream, through etcd-client.
//!
//! Not here: when to retry and from where, see `driver`; calls that are passed through, see `forward`.
//! Always holds: a call goes to one member, the one that `members` prefers. When that member is left for another one,
//! its calls and watches end, and the caller tries again there. Watches, bulk reads and small requests have connections
//! of their own, so a large snapshot does not hold up events, and a request can be made however many watches there are.

mod asker;
mod member_watch;
mod register;

use std::{
    convert::Infallible,
    num::NonZeroU32,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Client, ConnectOptions, Error, GetOptions, WatchOptions,
    proto::{PbKeyValue, PbResponseHeader},
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tonic::Status;

pub use self::register::{LoadKey, Registration};
use self::{
    asker::{Asker, Questions},
    member_watch::EtcdWatch,
};
use super::{
    Dialler, Endpoint,
    causes::{chain, with_causes},
    members::{Members, race::race},
    pool::{Keepalive, Kind, Pool, Settings},
    version::{Versions, over_http},
};
use crate::{
    hub::upstream::{Agreement, Confirmed, Page, Upstream, UpstreamError, UpstreamWatch, WatchRequest},
    pb::etcdserverpb::RangeResponse,
    telemetry::names,
    types::{Header, KeyRange, KeyValueFields, Revision},
};

/// The most bytes under way to the relay on one connection: enough for a burst of large values.
const WINDOW: NonZeroU32 = NonZeroU32::new(8 << 20).expect("not zero");

/// The most bytes of a page. A reader of pages learns the size of values as it goes, and can be surprised by large
/// ones.
const MOST_OF_PAGE: usize = 64 << 20;

/// Pages of no more keys than this have no such bound.
const FEW: usize = 8;

/// How long a call may go unanswered before its member is put in doubt.
const SLOW: Duration = Duration::from_millis(300);

/// How to reach the cluster.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// Client URLs of its members.
    pub endpoints: Vec<Endpoint>,
    /// What opens connections to them.
    pub dialler: Dialler,
    /// The timeout of a connection attempt.
    pub connect_timeout: Duration,
    /// The timeout of a request.
    pub request_timeout: Duration,
    /// Pings on its connections. etcd closes connections that ping more often than every 5 s.
    pub keepalive: Option<Keepalive>,
    /// The relay's own user, if etcd requires one.
    pub identity: Option<Identity>,
    /// A key that the relay may read, for requests for the current revision.
    pub probe_key: Bytes,
}

/// A user of etcd. It has no effect while etcd's authentication is off.
#[derive(Clone)]
pub struct Identity {
    /// The user's name.
    pub user: String,
    /// The user's password.
    pub password: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("user", &self.user).finish_non_exhaustive()
    }
}

/// An etcd cluster as upstream; see the module.
#[derive(Debug)]
pub struct EtcdUpstream {
    config: EtcdConfig,
    /// In the members' order; a link is made when its member is first called.
    links: RwLock<Vec<Arc<MemberLink>>>,
    members: Members,
    versions: Arc<Versions>,
    questions: Questions,
}

/// The connections to one member.
struct MemberLink {
    watch: LaneLink,
    bulk: LaneLink,
    ask: LaneLink,
    /// On the connections of `ask`.
    asker: Asker,
    /// The cluster that it last answered for; zero before that.
    cluster: AtomicU64,
}

/// The connections of one lane, and the client that uses them, once there is one.
struct LaneLink {
    pool: Pool,
    client: Mutex<Option<Client>>,
}

impl std::fmt::Debug for MemberLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemberLink").finish_non_exhaustive()
    }
}

impl MemberLink {
    fn new(endpoint: &Endpoint, config: &EtcdConfig) -> Self {
        let settings = Settings {
            dialler: config.dialler.clone(),
            connect_timeout: config.connect_timeout,
            keepalive: config.keepalive,
            stream_window: WINDOW,
            connection_window: WINDOW,
        };
        let link = |lane, kind| LaneLink {
            pool: Pool::new(endpoint.clone(), settings.clone(), lane, kind),
            client: Mutex::default(),
        };
        let ask = link(names::Lane::Own, Kind::Short);
        Self {
            watch: link(names::Lane::Feeds, Kind::Streams),
            bulk: link(names::Lane::Snapshots, Kind::Streams),
            asker: Asker::new(ask.pool.clone(), config.identity.clone()),
            ask,
            cluster: AtomicU64::new(0),
        }
    }

    /// Notes that the member answered for this cluster. With a token from another cluster, such as the one before a
    /// restore, etcd lets a call wait until it has written as much as its predecessor had when it issued the token. So
    /// a change of cluster drops the tokens.
    fn answered_for(&self, cluster_id: u64) {
        let before = self.cluster.swap(cluster_id, Ordering::AcqRel);
        if before != 0 && before != cluster_id {
            self.forget_tokens();
        }
    }

    /// Makes the next calls authenticate again.
    fn forget_tokens(&self) {
        for lane in [&self.watch, &self.bulk, &self.ask] {
            *lane.client.lock() = None;
        }
        self.asker.forget_token();
    }

    fn lane(&self, lane: Lane) -> &LaneLink {
        match lane {
            Lane::Watch => &self.watch,
            Lane::Bulk => &self.bulk,
            Lane::Ask => &self.ask,
        }
    }
}

/// The connections that a call uses.
#[derive(Clone, Copy)]
enum Lane {
    /// Watches, which never end by themselves.
    Watch,
    /// Reads of whole ranges.
    Bulk,
    /// Small requests that somebody waits for.
    Ask,
}

impl EtcdUpstream {
    /// An upstream that connects when it is first used.
    #[must_use]
    pub fn new(config: EtcdConfig) -> Arc<Self> {
        let members = Members::new(&config.endpoints);
        let versions = Arc::default();
        let questions = Questions::new(&config.probe_key);
        Arc::new(Self { config, links: RwLock::default(), members, versions, questions })
    }

    fn link(&self, member: usize) -> Arc<MemberLink> {
        if let Some(link) = self.links.read().get(member) {
            return link.clone();
        }
        let mut links = self.links.write();
        while links.len() <= member {
            let endpoint = self.members.endpoint(links.len());
            links.push(Arc::new(MemberLink::new(&endpoint, &self.config)));
        }
        links[member].clone()
    }

    /// The client URLs of the cluster's voting members, as a healthy member reports them.
    ///
    /// # Errors
    /// If no member answers.
    pub(super) async fn listed(&self) -> Result<Vec<String>, UpstreamError> {
        let list = async |client: Client| client.cluster_client().member_list().await.map_err(|error| refused(&error));
        let list = self.call(self.members.preferred(), Lane::Ask, list).await?;
        // A member without a name has not started yet.
        let voters = list.members().iter().filter(|member| !member.name().is_empty() && !member.is_learner());
        Ok(voters.flat_map(|member| member.client_urls()).cloned().collect())
    }

    /// What is known about its members.
    #[must_use]
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// Sends a member a request that it can answer only in touch with its cluster.
    ///
    /// # Errors
    /// If it does not answer, or not as such a member does.
    pub(super) async fn question(&self, member: usize, patience: Duration) -> Result<(), UpstreamError> {
        if let Some(header) = self.nameless(member, patience, &self.questions.current).await? {
            self.members.in_term(member, header.raft_term);
        }
        Ok(())
    }

    /// Whether a member answers over gRPC at all, whatever the answer is.
    ///
    /// # Errors
    /// If it does not answer.
    pub(super) async fn reach(&self, member: usize, patience: Duration) -> Result<(), UpstreamError> {
        match self.nameless(member, patience, &self.questions.serializable).await {
            // It is there, and as useful as its cluster.
            Ok(_) | Err(UpstreamError::NoLeader) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A request without a token. When etcd refuses it for the missing user, it does so only after everything else, and
    /// without a header.
    async fn nameless(
        &self,
        member: usize,
        patience: Duration,
        question: &Bytes,
    ) -> Result<Option<Header>, UpstreamError> {
        let link = self.link(member);
        let attempt = async {
            let answer = link.asker.ask_nameless(question.clone()).await.map_err(|status| refused_by(&status))?;
            self.header(member, header_of(&answer)).map(Some)
        };
        match tokio::time::timeout(patience, attempt).await.unwrap_or(Err(UpstreamError::Timeout(patience))) {
            Err(UpstreamError::Denied(_)) => Ok(None),
            result => result,
        }
    }

    /// The version of a member, however it can be learned; `None` if it cannot.
    async fn ask_version(&self, member: usize, client: &Client) -> Option<String> {
        // A quarter of the time for each, so that a port that swallows one kind of request leaves enough time for the
        // watch.
        let patience = self.config.request_timeout / 4;
        match over_http(&self.config.dialler, &self.members.endpoint(member), patience).await {
            Ok(version) => return Some(version.etcdserver),
            Err(error) => tracing::debug!(%error, "Cannot read an etcd member's version over HTTP"),
        }
        let mut maintenance = client.maintenance_client();
        match tokio::time::timeout(patience, maintenance.status()).await {
            Ok(Ok(status)) => return Some(status.version().to_owned()),
            Ok(Err(error)) => tracing::debug!(%error, "Cannot read an etcd member's version by Status"),
            Err(_) => tracing::debug!("Cannot read an etcd member's version by Status: no answer in time"),
        }
        None
    }

    /// Reads a page: linearizable, or what the member itself has if `serializable` is set.
    async fn read(
        &self,
        range: &KeyRange,
        revision: Option<Revision>,
        limit: usize,
        serializable: bool,
    ) -> Result<Page, UpstreamError> {
        let (key, end) = range.to_wire();
        let mut options =
            GetOptions::new().with_range(end).with_limit(limit as i64).with_revision(revision.map_or(0, Revision::get));
        if serializable {
            options = options.with_serializable();
        }
        let member = self.for_feed().await;
        self.call(member, Lane::Bulk, async |client| {
            // A page of a few keys is accepted whatever their size, since it cannot be read in smaller parts.
            let most = if limit > FEW { MOST_OF_PAGE } else { usize::MAX };
            let mut kv = client.kv_client().max_decoding_message_size(most);
            let reply = kv.get(key, Some(options)).await.map_err(|error| refused_page(&error))?.0;
            let header = self.header(member, header(reply.header.as_ref()))?;
            let count = usize::try_from(reply.count).ok();
            Ok(Page { header, kvs: reply.kvs.into_iter().map(fields).collect(), more: reply.more, count })
        })
        .await
    }

    /// Runs `call` against this member, with the request timeout.
    async fn call<T, F>(&self, member: usize, lane: Lane, call: impl FnOnce(Client) -> F) -> Result<T, UpstreamError>
    where
        F: Future<Output = Result<T, UpstreamError>>,
    {
        let attempt = pin!(async {
            let client = self.client(member, lane).await?;
            call(client).await
        });
        self.attend(member, attempt).await
    }

    /// Waits for an attempt at this member, with the request timeout, and draws the conclusions from how it ends.
    async fn attend<T>(
        &self,
        member: usize,
        attempt: Pin<&mut impl Future<Output = Result<T, UpstreamError>>>,
    ) -> Result<T, UpstreamError> {
        let patience = self.config.request_timeout;
        let slow = async {
            tokio::time::sleep(SLOW).await;
            self.members.doubt(member);
            std::future::pending::<Infallible>().await
        };
        // Cancel safe: an answer that has not arrived is not needed any more.
        let result = tokio::select! {
            result = tokio::time::timeout(patience, attempt) => result.unwrap_or(Err(UpstreamError::Timeout(patience))),
            () = self.members.left(member) => Err(UpstreamError::Unavailable(LEFT.to_owned())),
            never = slow => match never {},
        };
        // The token may be expired, or from before authentication was enabled, or from before the cluster was restored,
        // see `answered_for`.
        let is_void = match &result {
            Err(error @ UpstreamError::Denied(_)) => !lacks_permission(error),
            Err(UpstreamError::Timeout(_)) => true,
            _ => false,
        };
        if is_void && self.config.identity.is_some() {
            self.link(member).forget_tokens();
        }
        result.map_err(|error| self.failed(member, error))
    }

    /// Puts the member that failed in doubt, and adds its name to the error.
    fn failed(&self, member: usize, error: UpstreamError) -> UpstreamError {
        if !is_of_member(&error) {
            return error;
        }
        self.members.doubt(member);
        match error {
            UpstreamError::Unavailable(text) => {
                UpstreamError::Unavailable(format!("{}: {text}", self.members.endpoint(member)))
            }
            error => error,
        }
    }

    /// The header of a member's answer.
    fn header(&self, member: usize, found: Result<Header, UpstreamError>) -> Result<Header, UpstreamError> {
        let header = found?;
        self.link(member).answered_for(header.cluster_id);
        Ok(header)
    }

    /// The member for a feed's watch or a page of its snapshot.
    async fn for_feed(&self) -> usize {
        self.members.settled().await;
        self.members.for_watch()
    }

    async fn client(&self, member: usize, lane: Lane) -> Result<Client, UpstreamError> {
        let link = self.link(member);
        let LaneLink { pool, client: slot } = link.lane(lane);
        if let Some(client) = &*slot.lock() {
            return Ok(client.clone());
        }
        let channel = pool.channel();
        // Feeds read and watch without a leader as well. The judge of the members finds out whether there is one.
        let requires_leader = matches!(lane, Lane::Ask);
        let options = ConnectOptions::new().with_require_leader(requires_leader).with_auto_token_refresh(true);
        let client = match &self.config.identity {
            Some(Identity { user, password }) => {
                let named = options.clone().with_user(user, password);
                match Client::from_channel(channel.clone(), Some(named)).await {
                    // There are no users while authentication is off. Once it is on, calls are refused and the client
                    // is made again here.
                    Err(Error::GRpcStatus(status)) if is_auth_off(&status) => {
                        Client::from_channel(channel, Some(options)).await
                    }
                    result => result,
                }
            }
            None => Client::from_channel(channel, Some(options)).await,
        };
        let client = client.map_err(|error| refused(&error))?;
        *slot.lock() = Some(client.clone());
        Ok(client)
    }
}

#[async_trait]
impl Upstream for EtcdUpstream {
    async fn page(&self, range: &KeyRange, revision: Option<Revision>, limit: usize) -> Result<Page, UpstreamError> {
        // Both branches are cancel safe. etcd would let a read wait for seven seconds.
        tokio::select! {
            page = self.read(range, revision, limit, false) => page,
            () = self.members.quorum_lost() => Err(UpstreamError::Unavailable(SILENT.to_owned())),
        }
    }

    async fn page_of_member(
        &self,
        range: &KeyRange,
        revision: Option<Revision>,
        limit: usize,
    ) -> Result<Page, UpstreamError> {
        self.read(range, revision, limit, true).await
    }

    fn agreement(&self) -> watch::Receiver<Agreement> {
        self.members.agreement()
    }

    async fn left(&self, member: &str) {
        self.members.others_for_watch(member).await;
    }

    async fn watch(&self, request: WatchRequest) -> Result<Box<dyn UpstreamWatch>, UpstreamError> {
        let (key, end) = request.range.to_wire();
        let mut options = WatchOptions::new()
            .with_range(end)
            .with_start_revision(request.start_revision.get())
            .with_progress_notify()
            .with_fragment();
        if request.prev_kv {
            options = options.with_prev_key();
        }
        let member = self.for_feed().await;
        self.call(member, Lane::Watch, async |client| {
            let belief = self.versions.of(member, async || self.ask_version(member, &client).await).await;
            let mut watch = client.watch_client().max_decoding_message_size(usize::MAX);
            let (sender, mut stream) = watch.watch(key, Some(options)).await.map_err(|error| refused(&error))?.split();
            let created = stream.message().await.map_err(|error| refused(&error))?.ok_or_else(ended)?.0;
            if !created.created {
                return Err(UpstreamError::Protocol("the first response of a watch is not `created`".into()));
            }
            if created.canceled {
                return Err(canceled(created.cancel_reason));
            }
            let created = self.header(member, header(created.header.as_ref()))?;
            let (members, versions) = (self.members.clone(), self.versions.clone());
            let left = Box::pin(async move { members.left_by_watches(member).await });
            let (members, fragments) = (self.members.clone(), Vec::new());
            Ok(Box::new(EtcdWatch { sender, stream, fragments, versions, belief, created, member, members, left })
                as Box<_>)
        })
        .await
    }

    async fn confirm(&self, oldest: Option<Revision>) -> Result<Confirmed, UpstreamError> {
        let ask_once = async |member: usize, revision: Option<Revision>| {
            let question = self.questions.at(revision);
            let attempt = pin!(async {
                let answer = self.link(member).asker.ask(question).await.map_err(|status| refused_by(&status))?;
                let header = self.header(member, header_of(&answer))?;
                self.members.in_term(member, header.raft_term);
                Ok(header)
            });
            self.attend(member, attempt).await
        };
        // The first request to each member that waited through an election ends like this when an answer can be had.
        let ask = async |member: usize, revision: Option<Revision>| match ask_once(member, revision).await {
            Err(UpstreamError::LeaderChanged) => ask_once(member, revision).await,
            answer => answer,
        };
        let confirm = async |member: usize| match ask(member, oldest).await {
            Ok(header) => Ok(Ok(Confirmed { header, compacted: false })),
            // A future revision is not compacted.
            Err(error @ (UpstreamError::Compacted | UpstreamError::Future)) => {
                let compacted = matches!(error, UpstreamError::Compacted);
                ask(member, None).await.map(|header| Ok(Confirmed { header, compacted }))
            }
            Err(error) if is_of_member(&error) => Err(error),
            // Another member would give the same answer.
            Err(error) => Ok(Err(error)),
        };
        // Another member may answer if the preferred one does not.
        let is_late = |member| {
            self.members.doubt(member);
            true
        };
        // Both branches are cancel safe. A member that has just lost its leader would let it wait for seven seconds,
        // together with everybody who asks later.
        let answer = tokio::select! {
            answer = race(self.members.ranked(), confirm, is_late) => answer,
            () = self.members.quorum_lost() => return Err(UpstreamError::Unavailable(SILENT.to_owned())),
        };
        match answer {
            Ok((_, answer)) => answer,
            Err(failures) => Err(failures
                .into_iter()
                .next_back()
                .map_or_else(|| UpstreamError::Unavailable("no endpoint is configured".into()), |(_, error)| error)),
        }
    }
}

fn fields(kv: PbKeyValue) -> KeyValueFields {
    KeyValueFields {
        key: kv.key.into(),
        value: kv.value.into(),
        create_revision: Revision::new(kv.create_revision),
        mod_revision: Revision::new(kv.mod_revision),
        version: kv.version,
        lease: kv.lease,
    }
}

fn header(header: Option<&PbResponseHeader>) -> Result<Header, UpstreamError> {
    let header = header.ok_or_else(headless)?;
    Ok(Header {
        cluster_id: header.cluster_id,
        member_id: header.member_id,
        revision: Revision::new(header.revision),
        raft_term: header.raft_term,
    })
}

/// The same of the answer to a question.
fn header_of(answer: &RangeResponse) -> Result<Header, UpstreamError> {
    let header = answer.header.as_ref().ok_or_else(headless)?;
    Ok(Header {
        cluster_id: header.cluster_id,
        member_id: header.member_id,
        revision: Revision::new(header.revision),
        raft_term: header.raft_term,
    })
}

fn headless() -> UpstreamError {
    UpstreamError::Protocol("a response without a header".into())
}

/// The error of a request that went unanswered while another member answers.
const LEFT: &str = "the member does not answer, and another one does";

/// The error of a request that ended because no member can answer.
const SILENT: &str = "no member knows what the cluster agrees on";

/// Whether another member may answer without this error.
fn is_of_member(error: &UpstreamError) -> bool {
    !matches!(error, UpstreamError::Compacted | UpstreamError::Future | UpstreamError::TooLarge(_))
        && !lacks_permission(error)
}

fn ended() -> UpstreamError {
    UpstreamError::Unavailable("the watch stream ended".into())
}

/// The error for a watch that the server ended. The reasons are etcd's texts.
fn canceled(reason: String) -> UpstreamError {
    if reason.contains("permission denied") || reason.contains("auth") || reason.contains("user name is empty") {
        UpstreamError::Denied(reason)
    } else if reason.contains("no leader") {
        UpstreamError::NoLeader
    } else {
        UpstreamError::Protocol(reason)
    }
}

/// Classifies etcd's errors by how to react to them.
fn refused(error: &Error) -> UpstreamError {
    match error {
        Error::GRpcStatus(status) => refused_by(status),
        error => UpstreamError::Unavailable(chain(error)),
    }
}

/// The same for a status.
fn refused_by(status: &Status) -> UpstreamError {
    match status.code() {
        tonic::Code::OutOfRange if status.message().contains("compacted") => UpstreamError::Compacted,
        tonic::Code::OutOfRange if status.message().contains("future revision") => UpstreamError::Future,
        tonic::Code::Unavailable if status.message() == "etcdserver: no leader" => UpstreamError::NoLeader,
        tonic::Code::Unavailable if status.message() == "etcdserver: leader changed" => UpstreamError::LeaderChanged,
        tonic::Code::PermissionDenied | tonic::Code::Unauthenticated => UpstreamError::Denied(status.message().into()),
        tonic::Code::InvalidArgument if DENIALS.iter().any(|text| status.message().contains(text)) => {
            UpstreamError::Denied(status.message().into())
        }
        _ => UpstreamError::Unavailable(with_causes(status.message().to_owned(), status)),
    }
}

/// The same for a page, which may be larger than the relay accepts, or than etcd can send.
fn refused_page(error: &Error) -> UpstreamError {
    let is_large = matches!(error, Error::GRpcStatus(status)
        if matches!(status.code(), tonic::Code::OutOfRange | tonic::Code::ResourceExhausted)
            && (status.message().contains("message length too large") || status.message().contains("message larger than max")));
    if is_large { UpstreamError::TooLarge(MOST_OF_PAGE) } else { refused(error) }
}

/// etcd's refusals whose status code has other meanings too.
const DENIALS: [&str; 3] = ["user name is empty", "revision of auth store is old", "authentication failed"];

/// Whether etcd knows the relay's user and does not let it read this range. To authenticate again, which costs etcd
/// much, would change nothing then.
fn lacks_permission(error: &UpstreamError) -> bool {
    matches!(error, UpstreamError::Denied(text) if text.contains("permission denied"))
}

fn is_auth_off(status: &Status) -> bool {
    status.code() == tonic::Code::FailedPrecondition && status.message().contains("authentication is not enabled")
}

#[cfg(test)]
mod tests;
