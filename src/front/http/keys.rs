//! [`KeysHttp`]: any part of the key space over plain HTTP: `/v1/keys` lists it as JSON, `/v1/watch` follows it as
//! server-sent events.
//!
//! docs/http-api.md describes the format. Reads and watches take the same path as over gRPC, with the same feeds,
//! permissions and queues. Lainlet's views are in `lainlet`. `HttpPort` tries these paths before any other route.
//! Always holds: every error of a request is found before the head of its answer is sent.

mod begin;
mod caller;
mod cors;
mod counted;
mod follow;
mod json;
mod list;
mod query;
mod reply;
mod stream;
mod text;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    caller::Callers,
    follow::Watching,
    list::Answers,
    query::{List, Watch},
    reply::Failure,
};
pub use self::{
    cors::{Cors, NoOrigin, Origin},
    list::ListBody,
    reply::KeysBody,
    stream::WatchEvents,
};
use super::audience::Gate;
use crate::{
    front::{
        client::Client,
        grpc::Streams,
        listen::{self, Lasting},
        pieces::Pieces,
        session::Sessions,
    },
    rpc::GrpcService,
    telemetry::names::{KeysAnswer, KeysPath},
};

const KEYS: &str = "/v1/keys";
const WATCH: &str = "/v1/watch";

static X_ETCD_INDEX: HeaderName = HeaderName::from_static("x-etcd-index");
const JSON_TYPE: HeaderValue = HeaderValue::from_static("application/json");
const EVENTS_TYPE: HeaderValue = HeaderValue::from_static("text/event-stream");
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");

/// The parts that the keys' paths need.
#[derive(Debug)]
pub struct KeysParts {
    /// Watches, and the feeds that reads are answered from.
    pub sessions: Sessions,
    /// Where open watch streams are listed.
    pub streams: Streams,
    /// Where sessions run.
    pub tasks: TaskTracker,
    /// Answers calls that memory cannot answer.
    pub forward: GrpcService,
    /// Who may read while etcd's authentication is off.
    pub gate: Gate,
    /// Which pages may read the answers.
    pub cors: Cors,
    /// Ends streams that did not come over a connection.
    pub stop: CancellationToken,
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct KeysHttp {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    sessions: Sessions,
    streams: Streams,
    tasks: TaskTracker,
    forward: GrpcService,
    callers: Callers,
    cors: Cors,
    stop: CancellationToken,
    answers: Arc<Answers>,
}

impl KeysHttp {
    /// Creates the handler from its parts.
    #[must_use]
    pub fn new(parts: KeysParts) -> Self {
        let KeysParts { sessions, streams, tasks, forward, gate, cors, stop } = parts;
        let callers = Callers::new(sessions.access.clone(), forward.clone(), gate);
        Self {
            shared: Arc::new(Shared {
                sessions,
                streams,
                tasks,
                forward,
                callers,
                cors,
                stop,
                answers: Arc::default(),
            }),
        }
    }

    /// What is at a path.
    pub(super) fn route(path: &str) -> Option<KeysPath> {
        match path {
            KEYS => Some(KeysPath::Keys),
            WATCH => Some(KeysPath::Watch),
            _ => None,
        }
    }

    /// Answers a request for a path.
    pub(super) fn call<B>(&self, path: KeysPath, request: Request<B>) -> BoxFuture<'static, Response<KeysBody>> {
        let this = self.clone();
        let (parts, _ignored) = request.into_parts();
        Box::pin(async move { this.answer(path, parts).await })
    }

    async fn answer(&self, path: KeysPath, mut parts: Parts) -> Response<KeysBody> {
        let cors = &self.shared.cors;
        if parts.method == Method::OPTIONS {
            let mut response = empty(StatusCode::NO_CONTENT);
            response.headers_mut().insert(header::ALLOW, METHODS);
            cors.mark_preflight(&parts.headers, response.headers_mut());
            return response;
        }
        let is_head = parts.method == Method::HEAD;
        let may = parts.method == Method::GET || is_head && path == KeysPath::Keys;
        let answered = if may { self.admitted(path, &mut parts).await } else { Err(wrong_method(&parts.method)) };
        let (mut response, answer) = match answered {
            Ok(response) => (response, KeysAnswer::Ok),
            Err(failure) => failure.response(),
        };
        counted::answered(path, answer);
        if response.status() == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(header::ALLOW, METHODS);
        }
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        cors.mark(&parts.headers, response.headers_mut());
        if is_head { response.map(|_| KeysBody::whole(Pieces::default())) } else { response }
    }

    /// Answers a request whose client is admitted.
    async fn admitted(&self, path: KeysPath, parts: &mut Parts) -> Result<Response<KeysBody>, Failure> {
        let callers = &self.shared.callers;
        let credentials = parts.headers.get(header::AUTHORIZATION).cloned();
        callers.admit(parts).await?;
        let answered = self.read(path, parts).await;
        // etcd may have forgotten the token while the password is still right.
        let is_unknown = matches!(&answered, Err(failure) if failure.status == StatusCode::UNAUTHORIZED);
        if is_unknown && callers.forget(credentials.as_ref()) {
            if let Some(credentials) = credentials {
                parts.headers.insert(header::AUTHORIZATION, credentials);
            }
            callers.admit(parts).await?;
            return self.read(path, parts).await;
        }
        answered
    }

    async fn read(&self, path: KeysPath, parts: &Parts) -> Result<Response<KeysBody>, Failure> {
        let query = parts.uri.query().unwrap_or_default();
        match path {
            KeysPath::Keys => list::answer(&self.shared, parts, List::read(query)?).await,
            KeysPath::Watch => self.watch(parts, Watch::read(query, &parts.headers)?).await,
        }
    }

    async fn watch(&self, parts: &Parts, watch: Watch) -> Result<Response<KeysBody>, Failure> {
        let watching = Arc::new(Watching {
            shared: self.shared.clone(),
            watch,
            client: Client::of(&parts.headers, &parts.extensions),
            leave: listen::leave(&parts.extensions, &self.shared.stop),
        });
        let opened = watching.clone().open(watching.wanted()).await?;
        let mut response = Response::new(KeysBody::Watch(Box::new(WatchEvents::new(watching, opened))));
        response.headers_mut().insert(header::CONTENT_TYPE, EVENTS_TYPE);
        // Tells proxies to pass each event on at once.
        response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
        if parts.version < Version::HTTP_2 {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.extensions_mut().insert(Lasting);
        Ok(response)
    }
}

fn empty(status: StatusCode) -> Response<KeysBody> {
    let mut response = Response::new(KeysBody::whole(Pieces::default()));
    *response.status_mut() = status;
    response
}

fn wrong_method(method: &Method) -> Failure {
    Failure::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{method} is not allowed here: these paths are read-only, use GET"),
    )
}
