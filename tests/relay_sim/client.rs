//! [`Client`]: an etcd client that uses real HTTP/2 and protobuf over an in-memory connection.
//!
//! Its requests and checks are in `watcher` and `reads`. Always holds: a dropped call is reset, as when a client gives
//! up; a dropped client closes its connection.

use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::{RecvStream, SendStream, client::SendRequest};
use http::{HeaderMap, Method, Request};
use prost::Message;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status};

use crate::relay::{Host, Relay};

/// How long a client waits for an answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How much a client accepts before it reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Windows {
    pub(crate) stream: u32,
    pub(crate) connection: u32,
    pub(crate) socket: usize,
}

impl Windows {
    pub(crate) const WIDE: Self = Self { stream: 1 << 20, connection: 4 << 20, socket: 64 << 10 };
    pub(crate) const NARROW: Self = Self { stream: 200, connection: 65_535, socket: 600 };
}

/// A client; see the module. Clones share the connection.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    requests: SendRequest<Bytes>,
    token: Option<&'static str>,
    _connection: std::sync::Arc<AbortOnDropHandle<()>>,
}

impl Client {
    /// Connects from `host`, with `token` for each call.
    pub(crate) async fn connect(
        relay: &Relay,
        host: Host,
        token: Option<&'static str>,
        windows: Windows,
    ) -> Result<Self, Status> {
        let socket = relay.connect(host, windows.socket);
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(windows.stream).initial_connection_window_size(windows.connection);
        let (requests, connection) = builder.handshake(socket).await.map_err(broken)?;
        let task = tokio::spawn(async move {
            // Its streams report errors.
            let _ = connection.await;
        });
        Ok(Self { requests, token, _connection: std::sync::Arc::new(AbortOnDropHandle::new(task)) })
    }

    /// One call with one answer.
    pub(crate) async fn call<A: Message + Default>(&self, method: &str, message: &impl Message) -> Result<A, Status> {
        let answer = async {
            let (mut send, mut answer) = self.open(method).await?;
            send.send_data(frame(message), true).map_err(broken)?;
            let message = answer.message().await?;
            let message = message.ok_or_else(|| Status::internal("no message"))?;
            match answer.message::<A>().await? {
                None => Ok(message),
                Some(_) => Err(Status::internal("two messages")),
            }
        };
        timeout(PATIENCE, answer).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("the client gave up")))
    }

    /// Opens a call.
    pub(crate) async fn open(&self, method: &str) -> Result<(SendStream<Bytes>, Answer), Status> {
        let mut requests = self.requests.clone().ready().await.map_err(broken)?;
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://relay/etcdserverpb.{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(token) = self.token {
            request = request.header("token", token);
        }
        let request = request.body(()).map_err(|error| Status::internal(error.to_string()))?;
        let (response, send) = requests.send_request(request, false).map_err(broken)?;
        Ok((send, Answer { state: State::Head(response), bytes: BytesMut::new() }))
    }

    pub(crate) fn token(&self) -> Option<&'static str> {
        self.token
    }
}

/// What comes back.
#[derive(Debug)]
pub(crate) struct Answer {
    state: State,
    bytes: BytesMut,
}

#[derive(Debug)]
enum State {
    Head(h2::client::ResponseFuture),
    Body(RecvStream),
    Ended,
}

impl Answer {
    /// The next message; `None` at a normal end. Cancel safe.
    pub(crate) async fn message<M: Message + Default>(&mut self) -> Result<Option<M>, Status> {
        loop {
            if let Some(message) = self.whole()? {
                return Ok(Some(message));
            }
            match &mut self.state {
                State::Head(response) => {
                    let response = response.await.map_err(broken)?;
                    let (head, body) = response.into_parts();
                    if !head.status.is_success() {
                        return Err(Status::unknown(format!("HTTP {}", head.status)));
                    }
                    if head.headers.contains_key("grpc-status") {
                        self.state = State::Ended;
                        return status(&head.headers).map(|()| None);
                    }
                    self.state = State::Body(body);
                }
                State::Body(body) => match body.data().await {
                    Some(data) => {
                        let data = data.map_err(broken)?;
                        body.flow_control().release_capacity(data.len()).map_err(broken)?;
                        self.bytes.extend_from_slice(&data);
                    }
                    None => {
                        let trailers = body.trailers().await.map_err(broken)?.unwrap_or_default();
                        self.state = State::Ended;
                        if !self.bytes.is_empty() {
                            return Err(Status::internal("the answer ends within a message"));
                        }
                        return status(&trailers).map(|()| None);
                    }
                },
                State::Ended => return Ok(None),
            }
        }
    }

    fn whole<M: Message + Default>(&mut self) -> Result<Option<M>, Status> {
        let Some(prefix) = self.bytes.get(..5) else { return Ok(None) };
        let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        if self.bytes.len() < 5 + len {
            return Ok(None);
        }
        self.bytes.advance(5);
        let message = self.bytes.split_to(len).freeze();
        M::decode(message).map(Some).map_err(|error| Status::internal(format!("not a message: {error}")))
    }
}

/// A message as gRPC frames it.
pub(crate) fn frame(message: &impl Message) -> Bytes {
    let mut data = BytesMut::new();
    data.put_u8(0);
    data.put_u32(message.encoded_len() as u32);
    data.put_slice(&message.encode_to_vec());
    data.freeze()
}

fn status(headers: &HeaderMap) -> Result<(), Status> {
    match Status::from_header_map(headers) {
        Some(status) if status.code() == Code::Ok => Ok(()),
        Some(status) => Err(status),
        None => Err(Status::internal("an answer without a status")),
    }
}

fn broken(error: h2::Error) -> Status {
    Status::unavailable(format!("the connection broke: {error}"))
}
