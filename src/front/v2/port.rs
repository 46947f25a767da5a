//! [`V2Port`]: serves etcd's v2 API on a port: finds the handler of a path, reads the request and answers.
//!
//! Keys are in `keys`, the cluster in `server` and `members`. Always holds: a path that is not clean is never looked
//! up.

use std::{
    convert::Infallible,
    fmt,
    sync::Arc,
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, Request, Response, header, request::Parts};
use hyper::service::Service;
use metrics::counter;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, percent_encode};

use super::{
    answer::{DENIED, Refusal},
    fields::Fields,
    forms::Forms,
    keys::{Keys, Said},
    members,
    path::clean,
    reply::{self, V2Body, of_keys, of_refusal, plain_error, wrong_method},
    server,
    store::V3,
    users::{Users, as_user},
};
use crate::{
    front::{Inspect, body::RequestBody, client::Client, signal::Signal},
    telemetry::names::{self, FacadeRequest},
    types::Revision,
};

/// The characters that Go leaves unescaped in a path.
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b',')
    .remove(b'/')
    .remove(b':')
    .remove(b';')
    .remove(b'=')
    .remove(b'@');
const KEYS: &str = "HEAD,GET,PUT,POST,DELETE";

/// See the module. Cloned for each connection.
#[derive(Clone)]
pub struct V2Port {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) keys: Arc<Keys>,
    pub(super) v3: V3,
    pub(super) users: Users,
    pub(super) forms: Forms,
    pub(super) inspect: Arc<dyn Inspect>,
    pub(super) advertised: Vec<String>,
    pub(super) started: (SystemTime, Instant),
    pub(super) stop: Signal,
}

impl fmt::Debug for V2Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("V2Port").field("advertised", &self.shared.advertised).finish_non_exhaustive()
    }
}

impl Service<Request<RequestBody>> for V2Port {
    type Response = Response<V2Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<V2Body>, Infallible>>;

    fn call(&self, request: Request<RequestBody>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let is_head = request.method() == Method::HEAD;
            let mut response = this.answer(request).await;
            reply::put_cors(response.headers_mut());
            Ok(if is_head { reply::without_body(response) } else { response })
        })
    }
}

impl V2Port {
    async fn answer(&self, request: Request<RequestBody>) -> Response<V2Body> {
        let shared = &*self.shared;
        let method = request.method().clone();
        if method == Method::OPTIONS {
            return reply::bare(200);
        }
        let decoded: Vec<u8> = percent_decode(request.uri().path().as_bytes()).collect();
        let mut cleaned = clean(&decoded);
        if decoded.ends_with(b"/") && cleaned != b"/" {
            cleaned.push(b'/');
        }
        if cleaned != decoded {
            return moved(&method, &cleaned, request.uri().query());
        }
        if let Some(path) = below(&decoded, b"/v2/keys") {
            return self.keys(request, path).await;
        }
        if let Some(rest) = below(&decoded, b"/v2/members") {
            return Box::pin(self.members(request, &String::from_utf8_lossy(&rest))).await;
        }
        // Boxed, because otherwise the future of each request for keys would be as large.
        match &decoded[..] {
            b"/v2/machines" => server::machines(&method, &shared.advertised),
            b"/v2/stats/self" => Box::pin(server::stats(&shared.v3, &method, "self", shared.started)).await,
            b"/v2/stats/leader" => Box::pin(server::stats(&shared.v3, &method, "leader", shared.started)).await,
            b"/v2/stats/store" => Box::pin(server::stats(&shared.v3, &method, "store", shared.started)).await,
            b"/version" => server::version(&method, shared.inspect.version().as_deref()),
            b"/health" => Box::pin(server::health(&shared.keys.hub, &method)).await,
            _ => plain_error(404, "404 page not found\n"),
        }
    }

    async fn members(&self, request: Request<RequestBody>, below: &str) -> Response<V2Body> {
        let shared = &*self.shared;
        let (head, body) = request.into_parts();
        let v3 = shared.v3.of(&head.extensions);
        // As in etcd, everyone may list members; etcd decides who may change them.
        let token = if head.method == Method::GET { Ok(None) } else { shared.users.token_of(&v3, &head.headers).await };
        let mut response = match token {
            Ok(token) => {
                let v3 = V3 { token, ..v3 };
                members::answer(&v3, &head.method, below, &head.headers, body, &shared.advertised).await
            }
            Err(_) => reply::message(401, "Insufficient credentials"),
        };
        if !response.headers().contains_key(header::ALLOW) {
            reply::put_cluster(response.headers_mut(), &shared.keys.hub.header().at(Revision::ZERO));
        }
        response
    }

    /// Answers with the rights of the user that the request names.
    async fn answer_keys(&self, v3: &V3, asked: &Asked<'_>) -> Result<(Said, Client), Refusal> {
        let Asked { method, path, head, fields } = *asked;
        let users = &self.shared.users;
        let token = users.token_of(v3, &head.headers).await?;
        let user = as_user(Client::of(&head.headers, &head.extensions), token.as_ref());
        let unseen = if matches!(*method, Method::GET | Method::HEAD) {
            users.may_read(&user, path).await?;
            0
        } else {
            Box::pin(users.unseen(&user, path)).await
        };
        let said = self.shared.keys.answer(&V3 { token, unseen, ..v3.clone() }, method, path, fields).await?;
        Ok((said, user))
    }

    async fn keys(&self, request: Request<RequestBody>, path: Vec<u8>) -> Response<V2Body> {
        let shared = &*self.shared;
        let method = request.method().clone();
        if !matches!(method, Method::GET | Method::HEAD | Method::PUT | Method::POST | Method::DELETE) {
            return wrong_method(KEYS);
        }
        let path = Bytes::from(clean(&path));
        let (head, body) = request.into_parts();
        let v3 = shared.v3.of(&head.extensions);
        let answered = async {
            let form =
                shared.forms.read(v3.asker.client, &method, head.headers.get(header::CONTENT_TYPE), body).await?;
            let fields = Fields::read(&method, head.uri.query().unwrap_or_default(), &form.body)?;
            count(&method, &fields);
            let asked = Asked { method: &method, path: &path, head: &head, fields: &fields };
            let answered = self.answer_keys(&v3, &asked).await;
            // etcd may have forgotten the token. A denied request has changed nothing, so it can be repeated.
            let denied = matches!(&answered, Err(refusal) if refusal.code == DENIED);
            if denied && shared.users.forget(&head.headers) { self.answer_keys(&v3, &asked).await } else { answered }
        };
        let said = answered.await;
        let header = |revision: Revision| shared.keys.hub.header().at(revision);
        match said {
            Ok((Said::Body { status, index, body }, _)) => of_keys(status, &header(index), index, V2Body::whole(body)),
            Ok((Said::Waits(waiter), user)) => {
                let index = waiter.registered;
                let right = shared.users.right(user, &path, &shared.keys.feed);
                of_keys(200, &header(index), index, V2Body::waiting(waiter, shared.stop.listener(), right))
            }
            Err(refusal) => {
                // Its cause may be two values.
                let body = shared.keys.listings.count(v3.asker.client, refusal.body());
                of_refusal(&header(Revision::ZERO), &refusal, body)
            }
        }
    }
}

fn count(method: &Method, fields: &Fields) {
    let kind = match *method {
        Method::GET if fields.wait => FacadeRequest::Wait,
        Method::GET | Method::HEAD => FacadeRequest::Read,
        _ => FacadeRequest::Write,
    };
    counter!(names::FACADE_REQUESTS, FacadeRequest::LABEL => kind.as_str()).increment(1);
}

/// A request for keys that was read.
struct Asked<'a> {
    method: &'a Method,
    path: &'a Bytes,
    head: &'a Parts,
    fields: &'a Fields,
}

/// The rest of a path after a prefix, if the path equals the prefix or continues with a slash.
fn below(path: &[u8], prefix: &[u8]) -> Option<Vec<u8>> {
    let rest = path.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with(b"/")).then(|| rest.to_vec())
}

/// Redirects to the clean form of a path.
fn moved(method: &Method, cleaned: &[u8], query: Option<&str>) -> Response<V2Body> {
    let mut location = percent_encode(cleaned, PATH).to_string();
    if let Some(query) = query {
        location.push('?');
        location.push_str(query);
    }
    let mut response = if *method == Method::GET || *method == Method::HEAD {
        let escaped = location
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
            .replace('"', "&#34;")
            .replace('\'', "&#39;");
        let mut response = reply::text(301, format!("<a href=\"{escaped}\">Moved Permanently</a>.\n\n"));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        response
    } else {
        reply::bare(301)
    };
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}
