//! [`LainletHttp`]: Lainlet's HTTP API, answered from the views.
//!
//! | path | answer |
//! |---|---|
//! | `/v2/…` | a view; with `watch=` a stream of server-sent events |
//! | `/appname` | the application that an address belongs to |
//! | `/debug` | the state behind the views |
//! | `/version` | the version of Lainlet that this API replaces |
//!
//! What a client may see is decided in `crate::view`; the same views over gRPC are in `front::grpc`. `HttpPort` tries
//! these paths before any other route. Always holds:
//! - an answer that need not wait is made at once, without a task, a box or a router;
//! - every error of a watch is found before its head is sent. The error is then the only event, since clients read only
//!   events;
//! - replies are not copied: all clients get the same bytes.
//!
//! Additions to Lainlet's API: `min_revision=`, `nodename=` for views of one node, and `X-Etcd-Index`, the revision up
//! to which a reply, or a stream's first reply, reflects all changes.

mod body;
mod counted;
mod debug;
mod query;
mod sse;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use tokio_util::sync::CancellationToken;

pub use self::body::LainletBody;
use self::{counted::OpenStream, sse::SseBody};
use crate::{
    front::{
        client::Client,
        lainlet as told,
        listen::{self, Lasting},
        pieces::Pieces,
    },
    telemetry::names::Answer,
    types::Revision,
    view::{Ask, Lainlet, Refusal, Selected, Spec, Viewer, to_json},
};

static X_ETCD_INDEX: HeaderName = HeaderName::from_static("x-etcd-index");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");
/// In seconds. What was missing when the relay's patience ended may be there at any moment.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// See the module. Cloned for each connection.
#[derive(Clone, Debug)]
pub struct LainletHttp {
    views: Option<Lainlet>,
    in_progress: Arc<AtomicUsize>,
    stop: CancellationToken,
}

/// The meaning of a path in Lainlet's API.
#[derive(Clone, Copy, Debug)]
pub(super) enum Route {
    View(&'static Spec),
    AppName,
    Debug,
    Version,
    /// Any of these paths, if there are no views.
    Off,
}

/// The parts of a request that matter.
#[derive(Debug)]
struct Asked {
    route: Route,
    uri: Uri,
    caller: Viewer,
    version: Version,
    /// Cancelled when its connection is asked to leave.
    leave: CancellationToken,
}

/// An answer that is ready, or will be.
#[expect(clippy::large_enum_variant, reason = "boxing the large variant would cost an allocation per answer")]
pub enum Answering {
    /// Ready; taken at the first poll.
    Now(Option<Response<LainletBody>>),
    /// Waiting for something.
    Later(BoxFuture<'static, Response<LainletBody>>),
}

impl Answering {
    fn now(response: Response<LainletBody>) -> Self {
        Self::Now(Some(response))
    }
}

impl Future for Answering {
    type Output = Response<LainletBody>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Now(response) => response.take().map_or(Poll::Pending, Poll::Ready),
            Self::Later(answer) => answer.as_mut().poll(cx),
        }
    }
}

impl fmt::Debug for Answering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answering")
    }
}

impl LainletHttp {
    /// Answers from `views`; without them, says that there are none. Streams end when their connection is asked to
    /// leave, or with `stop`.
    #[must_use]
    pub fn new(views: Option<Lainlet>, stop: CancellationToken) -> Self {
        Self { views, in_progress: Arc::default(), stop }
    }

    /// What is at a path. A single slash at the end makes no difference.
    pub(super) fn route(&self, path: &str) -> Option<Route> {
        let path = if path.contains('%') { Cow::Owned(query::unescape_path(path)?) } else { Cow::Borrowed(path) };
        let path = path.strip_suffix('/').unwrap_or(&path);
        let Some(views) = &self.views else {
            let is_lainlets = path.starts_with("/v2/") || matches!(path, "/appname" | "/debug" | "/version");
            return is_lainlets.then_some(Route::Off);
        };
        match path {
            "/appname" => Some(Route::AppName),
            "/debug" => Some(Route::Debug),
            "/version" => Some(Route::Version),
            path => views.view_at(path).map(Route::View),
        }
    }

    /// Answers a request for a route.
    pub(super) fn call<B>(&self, route: Route, request: Request<B>) -> Answering {
        let in_progress = InProgress::new(&self.in_progress);
        let (parts, _ignored) = request.into_parts();
        let is_head = parts.method == Method::HEAD;
        if !is_head && parts.method != Method::GET {
            return Answering::now(wrong_method());
        }
        let client = Client::of(&parts.headers, &parts.extensions);
        let Some(addr) = client.addr else {
            return Answering::now(text(StatusCode::INTERNAL_SERVER_ERROR, "etcd-relay: the caller has no address"));
        };
        let leave = listen::leave(&parts.extensions, &self.stop);
        let viewer = |views: &Lainlet| views.viewer(addr, |name| client.bears(name));
        let caller = self.views.as_ref().map_or(Viewer::at(addr), viewer);
        let asked = Asked { route, uri: parts.uri, caller, version: parts.version, leave };
        let finish = move |response| if is_head { without_body(response) } else { response };
        // Most views are ready, and trying first costs nothing for the others.
        if let Some(response) = self.answer(&asked).now_or_never() {
            return Answering::now(finish(response));
        }
        let this = self.clone();
        Answering::Later(Box::pin(async move {
            let _in_progress = in_progress;
            finish(this.answer(&asked).await)
        }))
    }

    /// Cancel safe.
    async fn answer(&self, asked: &Asked) -> Response<LainletBody> {
        let Some(views) = &self.views else { return text(StatusCode::NOT_FOUND, OFF) };
        match asked.route {
            Route::View(spec) => self.view(views, spec, asked).await,
            Route::AppName => app_name(views, asked).await,
            Route::Debug => text(StatusCode::OK, debug::describe(views, self.in_progress.load(Ordering::Relaxed))),
            Route::Version => text(StatusCode::OK, told::VERSION),
            Route::Off => text(StatusCode::NOT_FOUND, OFF),
        }
    }

    async fn view(&self, views: &Lainlet, spec: &'static Spec, asked: &Asked) -> Response<LainletBody> {
        let names = [spec.parameter.unwrap_or_default(), "nodename", "min_revision", "watch", "heartbeat"];
        let [parameter, node, min_revision, watch, heartbeat] =
            query::parameters(asked.uri.query().unwrap_or_default(), names);
        let stream = query::wants_stream(watch.as_deref());
        if stream && !spec.watch {
            counted::answered(Answer::Invalid);
            return stream_of(asked.version, LainletBody::whole(sse::error(NO_WATCH)), None);
        }
        let selected = match query::min_revision(min_revision.as_deref()) {
            Ok(min_revision) => {
                let (parameter, node) = (parameter.as_deref(), node.as_deref());
                let ask = Ask { spec, caller: asked.caller, parameter, node, min_revision };
                views.select(&ask).await.map_err(|refusal| Failure::from(&refusal))
            }
            Err(error) => {
                Err(Failure { answer: Answer::Invalid, status: StatusCode::BAD_REQUEST, text: error.to_string() })
            }
        };
        if !stream {
            return selected.map_or_else(Failure::response, |selected| once(&selected));
        }
        let subscribed = selected.and_then(|selected| selected.subscribe().map_err(|refusal| Failure::from(&refusal)));
        let (revision, mut subscription) = match subscribed {
            Ok(subscribed) => subscribed,
            Err(failure) => {
                counted::answered(failure.answer);
                return stream_of(asked.version, LainletBody::whole(sse::error(&failure.text)), None);
            }
        };
        // The first version is ready, unless the view has just failed.
        let Some(first) = subscription.next().await else {
            counted::answered(Answer::NotReady);
            return stream_of(asked.version, LainletBody::whole(sse::error(sse::READ_ANEW)), None);
        };
        let body = match &first.body {
            Err(error) => {
                counted::answered(Answer::Unshowable);
                LainletBody::whole(sse::error(&error.to_string()))
            }
            Ok(_) => {
                counted::answered(Answer::Ok);
                let heartbeat = query::heartbeat(heartbeat.as_deref());
                let open = (OpenStream::new(), InProgress::new(&self.in_progress));
                LainletBody::Events(SseBody::new(first, subscription, heartbeat, asked.leave.clone(), open))
            }
        };
        stream_of(asked.version, body, Some(revision))
    }
}

/// The answer for unknown paths.
pub(super) const NO_SUCH_PATH: &str = "404 not found";
const OFF: &str = "etcd-relay: Lainlet's views are off (--lainlet off)";
/// Lainlet's text, for any of its paths.
const NO_WATCH: &str = "/localspecquery do not support watch action";

async fn app_name(views: &Lainlet, asked: &Asked) -> Response<LainletBody> {
    let [ip] = query::parameters(asked.uri.query().unwrap_or_default(), ["ip"]);
    match views.app_name(asked.caller, ip.as_deref()).await {
        Ok((revision, app)) => {
            counted::answered(Answer::Ok);
            let mut response = text(StatusCode::OK, to_json(&BTreeMap::from([("appname", app)])));
            put_revision(&mut response, revision);
            response
        }
        Err(refusal) => Failure::from(&refusal).response(),
    }
}

/// The newest version.
fn once(selected: &Selected) -> Response<LainletBody> {
    let (revision, version) = match selected.version() {
        Ok(version) => version,
        Err(refusal) => return Failure::from(&refusal).response(),
    };
    let mut response = match &version.body {
        Ok(payload) => {
            counted::answered(Answer::Ok);
            text(StatusCode::OK, payload.json())
        }
        Err(error) => Failure::from(&Refusal::View(*error)).response(),
    };
    put_revision(&mut response, revision);
    response
}

/// A request that gets no view.
struct Failure {
    answer: Answer,
    status: StatusCode,
    text: String,
}

impl From<&Refusal> for Failure {
    fn from(refusal: &Refusal) -> Self {
        let (answer, status) = match refusal {
            Refusal::Forbidden(_) => (Answer::Forbidden, StatusCode::BAD_REQUEST),
            Refusal::Missing(_) => (Answer::Invalid, StatusCode::BAD_REQUEST),
            Refusal::EmptyKey | Refusal::UnknownAddress(_) => (Answer::Invalid, StatusCode::INTERNAL_SERVER_ERROR),
            Refusal::View(_) => (Answer::Unshowable, StatusCode::INTERNAL_SERVER_ERROR),
            Refusal::NotReady(_) | Refusal::Behind { .. } => (Answer::NotReady, StatusCode::SERVICE_UNAVAILABLE),
        };
        Self { answer, status, text: refusal.to_string() }
    }
}

impl Failure {
    fn response(self) -> Response<LainletBody> {
        counted::answered(self.answer);
        let mut response = text(self.status, Bytes::from(self.text));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}

/// An answer in Lainlet's content type, which it also uses for JSON.
fn text(status: StatusCode, body: impl Into<Pieces>) -> Response<LainletBody> {
    let mut response = Response::new(LainletBody::whole(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, TEXT);
    response
}

/// The head of a stream. It is the same if the stream contains only an error.
fn stream_of(version: Version, body: LainletBody, revision: Option<Revision>) -> Response<LainletBody> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, EVENTS);
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    if let Some(revision) = revision {
        put_revision(&mut response, revision);
    }
    if version < Version::HTTP_2 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.extensions_mut().insert(Lasting);
    response
}

fn put_revision(response: &mut Response<LainletBody>, revision: Revision) {
    response.headers_mut().insert(X_ETCD_INDEX.clone(), HeaderValue::from(revision.get()));
}

/// The answer to methods other than GET and HEAD on Lainlet's paths.
fn wrong_method() -> Response<LainletBody> {
    let mut response = text(StatusCode::NOT_FOUND, "404 page not found\n");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The answer to HEAD, made from the one to GET.
fn without_body(mut response: Response<LainletBody>) -> Response<LainletBody> {
    if response.extensions_mut().remove::<Lasting>().is_none() {
        let length = http_body::Body::size_hint(response.body()).exact().unwrap_or_default();
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    response.map(|_| LainletBody::whole(Pieces::default()))
}

/// Counts a request or an open stream while it exists.
#[derive(Debug)]
struct InProgress(Arc<AtomicUsize>);

impl InProgress {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
