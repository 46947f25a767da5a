//! Sends raw bytes over TCP, and as the body of a gRPC call.

use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body_util::{BodyExt, Full};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::{Code, Status};
use tower::{Service, ServiceExt};

use crate::support::{kv, patience};

/// Sends the bytes and waits until the server closes the connection. Fails after `deadline`.
pub async fn closes(addr: &str, bytes: &[u8], deadline: Duration) {
    let mut stream = TcpStream::connect(addr).await.expect("accepted");
    let exchange = async {
        // The server may have closed before it has read everything.
        if stream.write_all(bytes).await.is_ok() {
            let mut answer = Vec::new();
            let _ended = stream.read_to_end(&mut answer).await;
        }
    };
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
    timeout(deadline, exchange).await.unwrap_or_else(|_| panic!("{addr} kept the connection that sent {shown:?}"));
}

/// Calls a method with one message of these bytes.
pub async fn call(endpoint: &str, path: &str, message: Vec<u8>) -> Result<Bytes, Status> {
    let length = u32::try_from(message.len()).expect("a length for gRPC").to_be_bytes();
    call_framed(endpoint, path, &[&[0][..], &length, &message].concat()).await
}

/// Calls a method with this body, which includes gRPC's framing.
pub async fn call_framed(endpoint: &str, path: &str, body: &[u8]) -> Result<Bytes, Status> {
    within_patience(path, exchange(endpoint, path, "identity", body)).await
}

/// The same, marked as compressed with gzip.
pub async fn call_compressed(endpoint: &str, path: &str, body: &[u8]) -> Result<Bytes, Status> {
    within_patience(path, exchange(endpoint, path, "gzip", body)).await
}

/// Calls a method with a field of this many bytes.
pub async fn call_with_field_of(endpoint: &str, path: &str, length: usize) -> Result<Bytes, Status> {
    within_patience(path, exchange(endpoint, path, &"e".repeat(length), b"")).await
}

async fn within_patience<T>(path: &str, call: impl Future<Output = T>) -> T {
    let late = |_| panic!("{path} was not answered within {:?}", patience());
    timeout(patience(), call).await.unwrap_or_else(late)
}

async fn exchange(endpoint: &str, path: &str, encoding: &str, body: &[u8]) -> Result<Bytes, Status> {
    let request = http::Request::post(path)
        .header("grpc-encoding", encoding)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(tonic::body::Body::new(Full::new(Bytes::copy_from_slice(body))))
        .expect("a request");
    let mut channel = kv::channel(endpoint).await;
    let ready = channel.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let response = ready.call(request).await.map_err(|error| Status::from_error(error.into()))?;
    if let Some(status) = Status::from_header_map(response.headers()) {
        return ok(status).map(|()| Bytes::new());
    }
    if response.status() != http::StatusCode::OK {
        return Err(Status::unknown(format!("HTTP status {}", response.status())));
    }
    let collected = response.into_body().collect().await?;
    if let Some(status) = collected.trailers().and_then(Status::from_header_map) {
        ok(status)?;
    }
    let mut body = collected.aggregate();
    Ok(body.copy_to_bytes(body.remaining()))
}

fn ok(status: Status) -> Result<(), Status> {
    if status.code() == Code::Ok { Ok(()) } else { Err(status) }
}
