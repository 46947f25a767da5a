//! [`LainletApi`]: Lainlet's gRPC services, package `message`, answered from the views.
//!
//! `Get` returns the newest version of a view, and `Watch` that and every later one. All clients share the bytes of a
//! version, so these calls are served here instead of by tonic's server, which would encode them for each client. Every
//! request has at most one text, so one parser serves all services; the views define which services there are. What a
//! client may see is decided in `crate::view`; the same views over HTTP are in `front::http`.
//!
//! Metadata of a request: `min-revision`, the etcd revision that the reply must at least reflect, and `nodename` for
//! views of one node. Metadata of an answer: `x-etcd-index`, the revision that it, or a stream's first reply, reflects.
//! Only gRPC itself limits the size of replies.

mod answer;
mod request;
mod watch;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response, request::Parts};
use http_body::{Frame, SizeHint};
use metrics::counter;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use self::{request::Method, watch::WatchBody};
use super::{
    Local,
    pieces::{MAX_REQUEST, Pieces},
    reply::{Reply, read, refuse, refuse_compressed, respond},
};
use crate::{
    front::{body::RequestBody, client::Client, lainlet as told, listen},
    pb::lainlet::{AppnameReply, StatusReply, VersionReply, WatcherStatus},
    telemetry::names::{self, Answer, Transport},
    types::Revision,
    view::{Ask, Lainlet, Selected, Spec, Viewer},
};

/// The path prefix of all of Lainlet's methods.
const PACKAGE: &str = "/message.";

/// Lainlet's services; see the module. Cloned for each request.
#[derive(Clone, Debug)]
pub struct LainletApi {
    views: Option<Lainlet>,
    stop: CancellationToken,
}

impl LainletApi {
    /// Answers from `views`. Without them, refuses every call, so that none reaches etcd, which has no such services.
    /// Streams end when `stop` is cancelled.
    #[must_use]
    pub fn new(views: Option<Lainlet>, stop: CancellationToken) -> Self {
        Self { views, stop }
    }

    async fn answer(&self, request: Request<RequestBody>) -> Result<Response<LainletBody>, Refused> {
        let (parts, body) = request.into_parts();
        let Some(views) = &self.views else {
            return Err(Status::unimplemented("etcd-relay: Lainlet's views are off (--lainlet off)").into());
        };
        let method = Method::of(parts.uri.path().strip_prefix(PACKAGE).unwrap_or_default(), views)?;
        refuse_compressed(&parts.headers, "Lainlet's requests")?;
        let text = request::text(&read(body, MAX_REQUEST).await?)?;
        let response = match method {
            Method::Get(spec) => {
                let selected = select(views, spec, &parts, text.as_deref()).await?;
                let (revision, version) = selected.version().map_err(|refusal| answer::status(&refusal))?;
                let message =
                    answer::message(&version).map_err(|status| Refused { status, revision: Some(revision) })?;
                answered(message, Some(revision))
            }
            Method::Watch(spec) => {
                let stop = listen::leave(&parts.extensions, &self.stop);
                watch(select(views, spec, &parts, text.as_deref()).await?, stop).await?
            }
            Method::Appname => {
                let app = views.app_name(caller(views, &parts)?, text.as_deref()).await;
                let (revision, app) = app.map_err(|refusal| answer::status(&refusal))?;
                let data = BTreeMap::from([("appname".to_owned(), app)]);
                answered(answer::own(&AppnameReply { data }), Some(revision))
            }
            Method::Version => {
                let (version, api_version) = (told::VERSION.to_owned(), told::API_VERSION.to_owned());
                answered(answer::own(&VersionReply { version, api_version }), None)
            }
            Method::Status => answered(answer::own(&state(views)), None),
        };
        Ok(response)
    }
}

async fn watch(selected: Selected, stop: CancellationToken) -> Result<Response<LainletBody>, Refused> {
    let (revision, mut subscription) = selected.subscribe().map_err(|refusal| answer::status(&refusal))?;
    let first = subscription.next().await.ok_or_else(watch::ended)?;
    if let Err(error) = &first.body {
        return Err(Refused { status: answer::lost(*error), revision: Some(revision) });
    }
    let mut response = respond(LainletBody::Watch(WatchBody::new(first, subscription, stop)));
    answer::put_revision(response.headers_mut(), revision);
    Ok(response)
}

impl Local for LainletApi {
    type Body = LainletBody;

    fn answers(&self, path: &str) -> bool {
        path.starts_with(PACKAGE)
    }

    async fn call(&self, request: Request<RequestBody>) -> Response<LainletBody> {
        let answered = self.answer(request).await;
        let answer = answered.as_ref().map_or_else(|refused| answer::label(refused.status.code()), |_| Answer::Ok);
        counter!(
            names::VIEW_REQUESTS,
            Transport::LABEL => Transport::Grpc.as_str(),
            Answer::LABEL => answer.as_str()
        )
        .increment(1);
        answered.unwrap_or_else(|Refused { status, revision }| {
            let mut response = refuse(&status).map(LainletBody::Reply);
            if let Some(revision) = revision {
                answer::put_revision(response.headers_mut(), revision);
            }
            response
        })
    }
}

/// A call that is refused.
struct Refused {
    status: Status,
    /// The revision that the refusal is based on, if it depends on the cluster's state.
    revision: Option<Revision>,
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self { status, revision: None }
    }
}

/// The bodies of Lainlet's methods.
#[derive(Debug)]
pub enum LainletBody {
    /// One message, or an error.
    Reply(Reply),
    /// A stream of messages.
    Watch(WatchBody),
}

impl http_body::Body for LainletBody {
    type Data = Pieces;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Pieces>, Infallible>>> {
        match self.get_mut() {
            Self::Reply(body) => Pin::new(body).poll_frame(cx),
            Self::Watch(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Reply(body) => body.is_end_stream(),
            Self::Watch(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Reply(body) => body.size_hint(),
            Self::Watch(body) => body.size_hint(),
        }
    }
}

async fn select(
    views: &Lainlet,
    spec: &'static Spec,
    parts: &Parts,
    parameter: Option<&str>,
) -> Result<Selected, Status> {
    let ask = Ask {
        spec,
        caller: caller(views, parts)?,
        parameter,
        node: request::node_name(&parts.headers, spec)?,
        min_revision: request::min_revision(&parts.headers)?,
    };
    views.select(&ask).await.map_err(|refusal| answer::status(&refusal))
}

fn caller(views: &Lainlet, parts: &Parts) -> Result<Viewer, Status> {
    let client = Client::of(&parts.headers, &parts.extensions);
    let addr = client.addr.ok_or_else(|| Status::internal("etcd-relay: the caller has no address"))?;
    Ok(views.viewer(addr, |name| client.bears(name)))
}

fn answered(message: Pieces, revision: Option<Revision>) -> Response<LainletBody> {
    let mut response = respond(LainletBody::Reply(Reply::ok(message)));
    if let Some(revision) = revision {
        answer::put_revision(response.headers_mut(), revision);
    }
    response
}

fn state(views: &Lainlet) -> StatusReply {
    let count = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    let watchers = views.stats().into_iter().map(|(name, stats)| {
        let event = serde_json::to_vec(&told::LastEvent::of(&stats)).expect("a JSON number or text");
        let status = WatcherStatus {
            num_receivers: count(stats.subscribers),
            update_time: told::update_time(&stats),
            last_event: event.into(),
            total_keys: count(stats.keys),
        };
        (format!("{name}watcher"), status)
    });
    StatusReply { goroutines: count(told::goroutines()), status: watchers.collect() }
}
