//! [`Client`]: an HTTP client at a chosen address of this host, over HTTP/1.1 or HTTP/2.
//!
//! Watches are in `sse`; what only raw bytes can show, such as the exact head, is elsewhere. Always holds: a connection
//! carries one request, and its local address is the chosen one, since that identifies the client.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, client::conn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::sse::Sse;
use crate::support::patience;

/// The client's address, the server, and the form of requests.
#[derive(Clone, Debug)]
pub(super) struct Client {
    server: String,
    address: IpAddr,
    http2: bool,
    headers: Vec<(&'static str, String)>,
}

/// A complete answer.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Client {
    /// A client of `server` (`host:port`) at this address, over HTTP/1.1.
    pub(super) fn new(server: &str, address: IpAddr) -> Self {
        Self { server: server.to_owned(), address, http2: false, headers: Vec::new() }
    }

    /// Uses HTTP/2 with prior knowledge.
    pub(super) fn http2(mut self) -> Self {
        self.http2 = true;
        self
    }

    /// Adds this header to each request.
    pub(super) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// The same client for another server.
    pub(super) fn of(mut self, server: &str) -> Self {
        server.clone_into(&mut self.server);
        self
    }

    /// Sends a GET and returns the complete answer.
    pub(super) async fn get(&self, uri: &str) -> Answer {
        self.request(Method::GET, uri).await
    }

    /// Sends any method and returns the complete answer.
    pub(super) async fn request(&self, method: Method, uri: &str) -> Answer {
        let exchange = async {
            let (head, body) = self.send(method.clone(), uri).await.into_parts();
            let body = body.collect().await.unwrap_or_else(|error| panic!("the answer to {uri}: {error}")).to_bytes();
            Answer { status: head.status.as_u16(), headers: head.headers, body }
        };
        timeout(patience(), exchange).await.unwrap_or_else(|_| panic!("no whole answer to {method} {uri}"))
    }

    /// Sends a GET that must be answered with a stream of events. The URI must contain `watch=1`.
    pub(super) async fn watch(&self, uri: &str) -> Sse {
        let response = timeout(patience(), self.send(Method::GET, uri))
            .await
            .unwrap_or_else(|_| panic!("no answer to the watch {uri}"));
        assert_eq!(response.status(), StatusCode::OK, "the watch {uri} by {}", self.address);
        let kind = response.headers().get("content-type").expect("a Content-Type");
        assert_eq!(kind, "text/event-stream", "the watch {uri} by {}", self.address);
        Sse::read(uri, response)
    }

    /// The answer's head, before its body is read.
    pub(super) async fn send(&self, method: Method, uri: &str) -> Response<Incoming> {
        let stream =
            self.connect().await.unwrap_or_else(|error| panic!("{} to {}: {error}", self.address, self.server));
        let io = TokioIo::new(stream);
        let mut request = Request::builder().method(method);
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let sent = if self.http2 {
            let request = request.uri(format!("http://{}{uri}", self.server)).body(Empty::<Bytes>::new());
            over_http2(io, request.expect("a request")).await
        } else {
            let request = request.uri(uri).header("host", &self.server).body(Empty::<Bytes>::new());
            over_http1(io, request.expect("a request")).await
        };
        sent.unwrap_or_else(|error| panic!("{uri} by {}: {error}", self.address))
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let server: SocketAddr = self.server.parse().expect("the relay's address");
        let socket = if server.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::new(self.address, 0))?;
        let stream = socket.connect(server).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Answer {
    /// The body as text.
    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap_or_else(|error| panic!("a body that is not UTF-8: {error}"))
    }

    /// The value of a header, where there is one.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("a header of ASCII"))
    }

    /// The revision that it reflects.
    pub(super) fn revision(&self) -> Option<i64> {
        self.header("x-etcd-index").map(|text| text.parse().expect("X-Etcd-Index is a number"))
    }

    /// The body as JSON.
    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON: {error}: {:?}", self.text()))
    }

    /// Fails unless status and body are these; `what` is in the message.
    pub(super) fn assert_is(&self, status: u16, body: &str, what: &str) {
        assert_eq!((self.status, self.text()), (status, body), "{what}");
    }
}

async fn over_http1(io: TokioIo<TcpStream>, request: Request<Empty<Bytes>>) -> hyper::Result<Response<Incoming>> {
    let (mut sender, connection) = conn::http1::handshake(io).await?;
    // It ends with the answer's body, which shows how it ended.
    tokio::spawn(connection);
    sender.send_request(request).await
}

async fn over_http2(io: TokioIo<TcpStream>, request: Request<Empty<Bytes>>) -> hyper::Result<Response<Incoming>> {
    let (mut sender, connection) = conn::http2::handshake(TokioExecutor::new(), io).await?;
    tokio::spawn(connection);
    sender.send_request(request).await
}

/// The URI with another parameter.
pub(super) fn with(uri: &str, parameter: &str) -> String {
    let separator = if uri.contains('?') { '&' } else { '?' };
    format!("{uri}{separator}{parameter}")
}
