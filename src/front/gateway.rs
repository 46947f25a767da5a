//! [`Gateway`]: etcd's JSON gateway, at `/v3/…` on the gRPC port, for clients without gRPC.
//!
//! A request is translated into the gRPC call that it stands for (`routes`, `decode`). The relay answers that call as
//! usual, from memory or by forwarding, and the answer is translated into JSON (`encode`, `answer`). So nothing here
//! depends on the meaning of a call, its permissions or its limits: the client has the same address and token, and the
//! same guard refuses requests that would harm etcd. Messages are translated by their descriptors (`schema`). A watch's
//! events are written as JSON once for all clients that get them (`lines`).
//!
//! It behaves like the gateway of etcd 3.5, including the text of errors. docs/json-gateway.md lists the differences of
//! 3.6. Always holds: the answers of a stream are sent at once, and only as fast as the client reads; bodies are read
//! within limits (`requests`).

mod answer;
mod decode;
mod encode;
mod errors;
mod lines;
mod metadata;
mod requests;
mod routes;
mod scan;
mod schema;
mod wire;

use std::{borrow::Cow, convert::Infallible, fmt, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body::Frame;
use http_body_util::{Full, StreamBody, combinators::UnsyncBoxBody};
use metrics::counter;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use tokio::time::{Sleep, sleep};
use tonic::{Code, Status, body::Body};

pub(in crate::front) use self::lines::{LineWriter, Lines};
pub use self::schema::SchemaError;
use self::{
    answer::{Answer, Begin, DEADLINE, Form},
    metadata::Metadata,
    requests::Requests,
    schema::{Call, Schema},
};
use super::{
    body::{BoxError, PortBody, RequestBody},
    client::Client,
    grpc::{Local, WATCH, mark_client},
    order,
};
use crate::{
    hub::room::Room,
    rpc::GrpcService,
    telemetry::names::{self, GatewayOutcome, Service},
};

/// Memory for all bodies that are being read.
const ROOM: usize = 256 << 20;
/// The error for a client whose body does not fit in time.
const FULL: &str = "etcd-relay: too many large requests are being read; try again";
/// An answer up to this length is sent in one piece with its length, once the call has ended. A longer one is sent as
/// it is made.
const WHOLE: usize = 64 << 10;

/// A call with less time left than this has already timed out.
const TICK: Duration = Duration::from_millis(1);

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
/// Characters that are escaped in a path.
const IN_PATH: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'<').add(b'>').add(b'?').add(b'`');
const FORM: &str = "application/x-www-form-urlencoded";
/// The content type of the gRPC answer, which the gateway passes on like all metadata.
const INNER_TYPE: HeaderName = HeaderName::from_static("grpc-metadata-content-type");

/// Headers of all of etcd's answers. By default they allow pages of any origin.
const CORS: [(HeaderName, HeaderValue); 3] = [
    (header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE")),
    (header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")),
    (header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("accept, content-type, authorization")),
];

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    schema: Arc<Schema>,
    room: Room,
    lines: Lines,
}

impl Gateway {
    /// Creates a gateway to the calls in `descriptors`, an encoded `FileDescriptorSet` of etcd's API.
    ///
    /// # Errors
    /// Fails if the descriptors are not those of etcd's API, which is a fault of the build.
    pub fn new(descriptors: &[u8]) -> Result<Self, SchemaError> {
        let schema = Arc::new(Schema::new(descriptors, routes::calls())?);
        let lines = Lines::new(&schema)?;
        Ok(Self { schema, room: Room::new(ROOM, FULL), lines })
    }

    /// Whether the gateway answers requests to this path.
    pub(super) fn serves(path: &str) -> bool {
        routes::of_gateway(path)
    }

    /// Answers a request, by passing its call to `local` or `forward`.
    pub(super) async fn answer<L: Local>(
        &self,
        request: Request<RequestBody>,
        local: L,
        forward: GrpcService,
    ) -> Response<PortBody<L::Body>> {
        let mut response = match self.route(&request) {
            Ok(call) => self.call(call, request, local, forward).await,
            Err(refusal) => refusal.map(PortBody::Plain),
        };
        response.headers_mut().extend(CORS);
        response
    }

    /// The call that a request stands for.
    fn route(&self, request: &Request<RequestBody>) -> Result<Call, Box<Response<Body>>> {
        if request.method() == Method::OPTIONS {
            return Err(Box::new(Response::new(Body::empty())));
        }
        let refuse = |status, text| {
            count(Service::Other, GatewayOutcome::Refused);
            Err(Box::new(plain(status, text)))
        };
        let path = request.uri().path();
        let path = match path.strip_prefix("/v3beta/") {
            Some(rest) => Cow::Owned(format!("/v3/{rest}")),
            None => Cow::Borrowed(path),
        };
        // As in Go since 1.22: an escaped slash is not a slash when a path is cleaned.
        if let Some(clean) = routes::cleaned(&path) {
            return Err(Box::new(redirect(&clean, request.uri().query())));
        }
        let path = percent_decode_str(&path).decode_utf8_lossy();
        let Some(call) = routes::call(&path).and_then(|call| self.schema.call(call)) else {
            return refuse(StatusCode::NOT_FOUND, "Not Found\n");
        };
        if *request.method() != Method::POST || overridden(request.headers()).is_some_and(|method| method != "POST") {
            return refuse(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
        }
        Ok(call)
    }

    async fn call<L: Local>(
        &self,
        call: Call,
        request: Request<RequestBody>,
        local: L,
        forward: GrpcService,
    ) -> Response<PortBody<L::Body>> {
        let mut counted = Counted::new(call.path);
        let (mut parts, mut body) = request.into_parts();
        if call.path == WATCH {
            body = order::note_ahead(&mut parts.extensions, body);
        }
        if overridden(&parts.headers).is_some() {
            // As in Go: looking for a form field consumes the body.
            body = RequestBody::Made(Body::empty());
        }
        let metadata = match metadata::of(&parts.headers) {
            Ok(metadata) => metadata,
            Err(status) => return counted.refuse(&status).map(PortBody::Plain),
        };
        // As in grpc-gateway: a call with many requests begins before the first of them is read.
        let unable = metadata.illegal.clone().or_else(|| {
            let expired = metadata.timeout.is_some_and(|timeout| timeout < TICK);
            expired.then(|| Status::deadline_exceeded(DEADLINE))
        });
        if let Some(status) = unable.as_ref().filter(|_| call.requests) {
            return counted.fail(call, status, false).map(PortBody::Plain);
        }
        let mut deadline = metadata.timeout.filter(|_| unable.is_none()).map(|timeout| Box::pin(sleep(timeout)));
        let place = self.room.place(Client::of(&parts.headers, &parts.extensions).key());
        let reading = Requests::new(self.schema.clone(), call.request, body, place);
        let read = within(&mut deadline, async {
            if call.requests {
                stream_of(reading).await
            } else {
                reading.only().await.map(one).map_err(|error| error.status(Code::InvalidArgument))
            }
        });
        let read = read.await;
        let body = match read {
            Ok(body) => body,
            Err(status) => return counted.refuse(&status).map(PortBody::Plain),
        };
        if let Some(status) = unable {
            return counted.fail(call, &status, false).map(PortBody::Plain);
        }
        parts.headers = inner_headers(&parts.headers, metadata);
        parts.method = Method::POST;
        parts.uri = Uri::from_static(call.path);
        parts.version = Version::HTTP_2;
        parts.extensions.insert(self.lines.clone());
        let asked = within(&mut deadline, async { Ok(ask(Request::from_parts(parts, body), local, forward).await) });
        let asked = asked.await;
        match asked {
            Ok(response) => self.answered(call, response, deadline, counted).await,
            Err(status) => counted.fail(call, &status, true).map(PortBody::Plain),
        }
    }

    /// Turns the call's response into the gateway's response.
    async fn answered<B>(
        &self,
        call: Call,
        response: Response<PortBody<B>>,
        deadline: Option<Pin<Box<Sleep>>>,
        mut counted: Counted,
    ) -> Response<PortBody<B>>
    where
        B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static,
    {
        let (head, body) = response.into_parts();
        if head.headers.contains_key("grpc-status") {
            // An answer without a message.
            return counted.fail(call, &answer::status_of(&head.headers), true).map(PortBody::Plain);
        }
        let form = match head.extensions.get::<Lines>() {
            Some(_) => Form::Made,
            None if call.responses => Form::Lines,
            None => Form::Whole,
        };
        let mut answer = Answer::new(body, self.schema.clone(), call.response, form, deadline, counted);
        if let Begin::End(status) = answer.begin().await {
            if status.code() == Code::Ok {
                // A stream without any message. A call with a single answer has one, or an error.
                answer.count(GatewayOutcome::Ok);
                return json(StatusCode::OK, PortBody::Plain(Body::empty()));
            }
            answer.count(GatewayOutcome::Error);
            return failed(call, &status, true).map(PortBody::Plain);
        }
        if form == Form::Whole {
            match answer.whole(WHOLE).await {
                Ok(None) => {}
                Ok(Some(whole)) => {
                    let whole = PortBody::Plain(Body::new(Full::from(whole)));
                    return with_type(json(StatusCode::OK, whole));
                }
                Err(status) => {
                    answer.count(GatewayOutcome::Error);
                    return failed(call, &status, true).map(PortBody::Plain);
                }
            }
        }
        with_type(json(StatusCode::OK, PortBody::Made(UnsyncBoxBody::new(answer))))
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").finish_non_exhaustive()
    }
}

/// Passes the call to the handler that answers it.
async fn ask<L: Local>(
    mut request: Request<RequestBody>,
    local: L,
    forward: GrpcService,
) -> Response<PortBody<L::Body>> {
    if local.answers(request.uri().path()) {
        return local.call(request).await.map(PortBody::Local);
    }
    request.extensions_mut().remove::<Lines>();
    if order::writes(request.uri().path()) {
        order::hold_whole(request.extensions()).await;
    }
    mark_client(request.extensions_mut());
    let Ok(response) = forward.answer(request.map(Body::new)).await;
    response.map(PortBody::Plain)
}

/// Runs a future within the call's timeout.
async fn within<T>(
    deadline: &mut Option<Pin<Box<Sleep>>>,
    work: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let Some(deadline) = deadline else { return work.await };
    // Whichever arm is not first is dropped.
    tokio::select! {
        biased;
        () = deadline.as_mut() => Err(Status::deadline_exceeded(DEADLINE)),
        done = work => done,
    }
}

/// The body of a call with one request.
fn one(message: Bytes) -> RequestBody {
    RequestBody::Made(Body::new(Full::new(message)))
}

/// The body of a call with many requests, the first of which has arrived. As in grpc-gateway, an unreadable later
/// request ends them.
///
/// # Errors
/// Fails if the first request cannot be read.
async fn stream_of(mut requests: Requests) -> Result<RequestBody, Status> {
    let first = requests.next().await.map_err(|error| error.status(Code::Unknown))?;
    let Some(first) = first else { return Ok(RequestBody::Made(Body::empty())) };
    let frames = stream::unfold((Some(first), requests), |(first, mut requests)| async move {
        let message = match first {
            Some(first) => first,
            None => requests.next().await.ok().flatten()?,
        };
        Some((Ok::<_, Infallible>(Frame::data(message)), (None, requests)))
    });
    Ok(RequestBody::Made(Body::new(StreamBody::new(frames))))
}

/// The headers of the gRPC call.
fn inner_headers(outer: &HeaderMap, metadata: Metadata) -> HeaderMap {
    let mut headers = metadata.headers;
    headers.insert(header::CONTENT_TYPE, GRPC);
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    if let Some(agent) = outer.get(header::USER_AGENT) {
        headers.insert(header::USER_AGENT, agent.clone());
    }
    if let Some(timeout) = metadata.timeout {
        // gRPC allows at most eight digits. A timeout of more than three years is left out.
        let text = match (timeout.as_millis(), timeout.as_secs()) {
            (millis @ 0..100_000_000, _) => Some(format!("{millis}m")),
            (_, seconds @ 0..100_000_000) => Some(format!("{seconds}S")),
            _ => None,
        };
        if let Some(value) = text.and_then(|text| HeaderValue::try_from(text).ok()) {
            headers.insert("grpc-timeout", value);
        }
    }
    headers
}

/// The method that a client declares by `X-HTTP-Method-Override`, if any.
fn overridden(headers: &HeaderMap) -> Option<String> {
    let method = headers.get("x-http-method-override").filter(|method| !method.is_empty())?;
    let is_form = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == FORM);
    is_form.then(|| String::from_utf8_lossy(method.as_bytes()).to_ascii_uppercase())
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::<Bytes>::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, TEXT);
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Redirects to a cleaned path, as Go's server does.
fn redirect(path: &str, query: Option<&str>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    let mut target = utf8_percent_encode(path, IN_PATH).to_string();
    if let Some(query) = query {
        target.push('?');
        target.push_str(query);
    }
    response.headers_mut().extend(HeaderValue::try_from(target).ok().map(|target| (header::LOCATION, target)));
    response
}

fn json<B>(status: StatusCode, body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// Adds the metadata that etcd's answers have.
fn with_type<B>(mut response: Response<B>) -> Response<B> {
    response.headers_mut().insert(INNER_TYPE, GRPC);
    response
}

/// The response to a call that failed before anything was sent. `asked` tells whether the call itself failed.
fn failed(call: Call, status: &Status, asked: bool) -> Response<Body> {
    let body = if call.responses && asked { errors::in_stream(status) } else { errors::whole(status) };
    json(errors::http_status(status.code()), Body::new(Full::from(body)))
}

/// Counts a request when it ends or is dropped.
struct Counted {
    service: Service,
    ended: bool,
}

impl Counted {
    fn new(path: &str) -> Self {
        let service = match path.split('/').nth(1) {
            Some("etcdserverpb.KV") => Service::Kv,
            Some("etcdserverpb.Watch") => Service::Watch,
            Some("etcdserverpb.Lease") => Service::Lease,
            Some("etcdserverpb.Cluster") => Service::Cluster,
            Some("etcdserverpb.Maintenance") => Service::Maintenance,
            Some("etcdserverpb.Auth") => Service::Auth,
            Some("v3lockpb.Lock") => Service::Lock,
            Some("v3electionpb.Election") => Service::Election,
            _ => Service::Other,
        };
        Self { service, ended: false }
    }

    fn end(&mut self, outcome: GatewayOutcome) {
        if !std::mem::replace(&mut self.ended, true) {
            count(self.service, outcome);
        }
    }

    /// The response to a request that cannot be translated into a call.
    fn refuse(&mut self, status: &Status) -> Response<Body> {
        self.end(GatewayOutcome::Refused);
        json(errors::http_status(status.code()), Body::new(Full::from(errors::whole(status))))
    }

    fn fail(&mut self, call: Call, status: &Status, asked: bool) -> Response<Body> {
        self.end(GatewayOutcome::Error);
        failed(call, status, asked)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.end(GatewayOutcome::Canceled);
    }
}

fn count(service: Service, outcome: GatewayOutcome) {
    counter!(
        names::GATEWAY_REQUESTS,
        Service::LABEL => service.as_str(),
        GatewayOutcome::LABEL => outcome.as_str()
    )
    .increment(1);
}
