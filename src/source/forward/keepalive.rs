//! [`KeepAlives`]: passes `Lease.LeaseKeepAlive` calls of thousands of clients to etcd over a few streams.
//!
//! Each request of a client goes to etcd, and each answer goes back to the client that sent the request. The relay
//! keeps no lease alive by itself, so the lease of a client that is gone ends when etcd says. Only the streams are
//! shared, by clients with the same user (token), since etcd checks the stream's. etcd answers the requests of a stream
//! one after the other, so an answer belongs to the oldest unanswered request. An error, which ends the stream, belongs
//! to that request too, and the other requests are sent again on the next stream.
//!
//! Shared streams are the relay's own, so they never wait for a place on a connection behind a client's calls. A client
//! that uses a thousand tokens must not take all places: it opens no more than [`LANES`] shared streams, and its
//! further ones are only for itself and take places in its name.
//!
//! Not here: what goes over one stream, see `lane`. All other calls are passed on. Always holds: a client has at most
//! one request under way, so its answers come in order, and a client that does not read sends no more; clients take
//! turns by address.

mod lane;
mod line;

use std::sync::Arc;

use hashbrown::HashMap;
use http::{HeaderMap, HeaderName};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, async_trait, codegen::BoxStream};
use tower::ServiceExt as _;

use self::lane::{Lane, Member};
use super::{Call, Forward, status};
use crate::{
    critical::Tasks,
    pb::etcdserverpb::{
        LeaseKeepAliveRequest, LeaseKeepAliveResponse,
        lease_server::{Lease, LeaseServer},
    },
    rpc::{Caller, GrpcService},
    telemetry::names::{self, Outcome},
    types::ClientKey,
};

/// The method's path.
const PATH: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
/// Clients of one stream. With more, they would wait for each other when etcd has to ask its leader about each lease.
const PER_LANE: usize = 512;
/// Streams of clients with the same user. If there are more than `PER_LANE` clients for each, they are shared by more.
/// No client address opens more shared streams than this, whatever tokens it uses.
const LANES: usize = 16;
/// The fields of a stream that etcd reads, or a relay in between.
const LOOKED_AT: [HeaderName; 5] = [
    HeaderName::from_static("token"),
    http::header::AUTHORIZATION,
    HeaderName::from_static("hasleader"),
    HeaderName::from_static("client-api-version"),
    super::VIA,
];

/// Shares the streams; see the module. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct KeepAlives {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    forward: Forward,
    tasks: Tasks,
    lanes: Mutex<Lanes>,
}

/// Streams at etcd. A stream without clients is dropped.
#[derive(Debug, Default)]
struct Lanes {
    alike: HashMap<Kind, Vec<Arc<Lane>>>,
    /// How many shared streams each client has opened; clients with none are not listed.
    opened: HashMap<ClientKey, usize>,
}

/// Decides which clients may share a stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    /// The fields that etcd reads.
    fields: Fields,
    /// The client that has the stream to itself, if there is one.
    owner: Option<ClientKey>,
}

/// Fields of a stream, in the order of [`LOOKED_AT`], each with its values as they came.
type Fields = Vec<(HeaderName, http::HeaderValue)>;

/// Passes all calls to etcd, with keep-alives over shared streams.
pub(super) fn over(forward: Forward, tasks: Tasks) -> GrpcService {
    let direct = forward.clone();
    let shared = Arc::new(Shared { forward, tasks, lanes: Mutex::default() });
    let keepalives = LeaseServer::new(KeepAlives { shared });
    GrpcService::passing(move |request| {
        // A compressed request is left to etcd, which may or may not understand it.
        if request.uri().path() == PATH && !request.headers().contains_key("grpc-encoding") {
            Box::pin(keepalives.clone().oneshot(request))
        } else {
            direct.answer(request)
        }
    })
}

#[async_trait]
impl Lease for KeepAlives {
    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<BoxStream<LeaseKeepAliveResponse>>, Status> {
        let client = Caller::client_of(request.extensions());
        let clients = &self.shared.forward.shared.clients;
        let Some(counted) = clients.enter(client) else {
            clients.counts.refuse(Some(names::Service::Lease), Outcome::Refused);
            return Err(status::too_many(clients.most()));
        };
        let stop = Caller::leave_of(request.extensions(), &self.shared.forward.shared.drain);
        let fields = fields(request.metadata().clone().into_headers());
        let keeping = Keeping {
            member: self.shared.join(fields, client),
            requests: request.into_inner(),
            stop,
            call: Some(Call::start(Some(names::Service::Lease), counted)),
        };
        Ok(Response::new(Box::pin(futures_util::stream::unfold(keeping, Keeping::step))))
    }
}

impl Shared {
    /// Finds a place for a client on the least busy of the streams that it may share.
    fn join(self: &Arc<Self>, fields: Fields, client: ClientKey) -> Member {
        let mut lanes = self.lanes.lock();
        let Lanes { alike, opened } = &mut *lanes;
        let has_opened = opened.get(&client).copied().unwrap_or_default();
        let mut kind = Kind { fields, owner: None };
        if has_opened >= LANES && !alike.contains_key(&kind) {
            kind.owner = Some(client);
        }
        let may_open = has_opened < LANES || kind.owner.is_some();
        let known = alike.entry(kind.clone()).or_default();
        let roomy = known.iter().find(|lane| lane.members() < PER_LANE);
        let lane = match roomy {
            Some(lane) => lane.clone(),
            None if known.len() < LANES && may_open => {
                let lane = Lane::new(&kind.fields, kind.owner);
                known.push(lane.clone());
                if kind.owner.is_none() {
                    *opened.entry(client).or_default() += 1;
                }
                let (shared, running) = (self.clone(), lane.clone());
                self.tasks.detach("keep-alives", async move {
                    loop {
                        running.run(&shared.forward).await;
                        if shared.forget(&kind, &running, client) {
                            break;
                        }
                    }
                });
                lane
            }
            // There is a stream, since otherwise there would be room for a new one.
            None => known
                .iter()
                .min_by_key(|lane| lane.members())
                .cloned()
                .unwrap_or_else(|| Lane::new(&kind.fields, kind.owner)),
        };
        lane.join(client)
    }

    /// Removes a stream that nobody needs, so that nobody joins it. Returns false if somebody has joined meanwhile.
    fn forget(&self, kind: &Kind, lane: &Arc<Lane>, opener: ClientKey) -> bool {
        let mut lanes = self.lanes.lock();
        let Lanes { alike, opened } = &mut *lanes;
        if lane.is_wanted() {
            return false;
        }
        if let Some(known) = alike.get_mut(kind) {
            known.retain(|known| !Arc::ptr_eq(known, lane));
            if known.is_empty() {
                alike.remove(kind);
            }
        }
        if kind.owner.is_none()
            && let Some(count) = opened.get_mut(&opener)
        {
            *count -= 1;
            if *count == 0 {
                opened.remove(&opener);
            }
        }
        true
    }
}

/// The fields that etcd reads.
fn fields(headers: HeaderMap) -> Fields {
    LOOKED_AT.iter().flat_map(|name| headers.get_all(name).iter().map(|value| (name.clone(), value.clone()))).collect()
}

/// One client's call.
struct Keeping {
    member: Member,
    requests: Streaming<LeaseKeepAliveRequest>,
    stop: CancellationToken,
    /// `None` once the call has ended.
    call: Option<Call>,
}

impl Keeping {
    /// The next answer, requested when the client is ready to take it. `None` if the client has sent its last request.
    async fn step(mut self) -> Option<(Result<LeaseKeepAliveResponse, Status>, Self)> {
        self.call.as_ref()?;
        let Self { member, requests, stop, .. } = &mut self;
        // All branches are cancel safe: what a branch leaves undone is cleaned up when the call ends.
        let answer = tokio::select! {
            biased;
            () = stop.cancelled() => Err((status::stopped(), Outcome::Shutdown)),
            lost = member.lost() => Err((lost, Outcome::Error)),
            request = requests.message() => match request {
                Ok(Some(request)) => tokio::select! {
                    biased;
                    answer = member.request(request) => answer.map_err(|status| (status, Outcome::Error)),
                    lost = member.lost() => Err((lost, Outcome::Error)),
                },
                Ok(None) => {
                    self.end(Outcome::Ok);
                    return None;
                }
                Err(status) => Err((status, Outcome::Canceled)),
            },
        };
        let answer = answer.map_err(|(status, outcome)| {
            let unavailable = outcome == Outcome::Error && status.code() == tonic::Code::Unavailable;
            self.end(if unavailable { Outcome::Unavailable } else { outcome });
            status
        });
        Some((answer, self))
    }

    fn end(&mut self, outcome: Outcome) {
        if let Some(call) = self.call.take() {
            call.end(outcome);
        }
    }
}
