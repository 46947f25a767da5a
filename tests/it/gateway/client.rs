//! A client over HTTP without gRPC: posts JSON and reads the answer, over HTTP/1.1 or HTTP/2.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{Method, Request, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::timeout,
};

use crate::support::{patience, quiet_time};

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: String,
    /// The number of lines to wait for, if the answer does not end by itself.
    pub(super) lines: Option<usize>,
    /// A text in the last line to wait for, if the number of lines is unknown.
    pub(super) last: Option<&'static str>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) status: u16,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: String,
}

impl Ask {
    pub(super) fn post(path: &str, body: &str) -> Self {
        let (method, path, body) = (Method::POST, path.to_owned(), body.to_owned());
        Self { method, path, headers: Vec::new(), body, lines: None, last: None }
    }

    pub(super) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub(super) fn lines(mut self, lines: usize) -> Self {
        self.lines = Some(lines);
        self
    }

    pub(super) fn through(mut self, last: &'static str) -> Self {
        self.last = Some(last);
        self
    }

    /// Sends it to `addr` over its own connection.
    pub(super) async fn put(&self, addr: &str, version: Version) -> Told {
        timeout(patience(), self.exchange(addr, version)).await.unwrap_or_else(|_| panic!("no answer to {self:?}"))
    }

    async fn exchange(&self, addr: &str, version: Version) -> Told {
        let stream = TokioIo::new(TcpStream::connect(addr).await.expect("connected"));
        let uri = if version == Version::HTTP_2 { format!("http://{addr}{}", self.path) } else { self.path.clone() };
        let mut request = Request::builder().method(&self.method).uri(uri);
        if version != Version::HTTP_2 {
            request = request.header("host", addr);
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(Bytes::from(self.body.clone()))).expect("a request");
        let response = if version == Version::HTTP_2 {
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.expect("HTTP/2");
            tokio::spawn(connection);
            sender.send_request(request).await
        } else {
            let (mut sender, connection) = http1::handshake(stream).await.expect("HTTP/1.1");
            tokio::spawn(connection);
            sender.send_request(request).await
        };
        let (head, body) = response.expect("an answer").into_parts();
        let headers = head.headers.iter().filter(|(name, _)| matters(name.as_str()));
        let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned()));
        Told { status: head.status.as_u16(), headers: headers.collect(), body: self.read(body).await }
    }

    async fn read(&self, mut body: Incoming) -> String {
        let mut read = Vec::new();
        let enough = |read: &[u8]| {
            let has_last =
                |last: &str| read.ends_with(b"\n") && read.windows(last.len()).any(|part| part == last.as_bytes());
            self.lines.is_some_and(|lines| read.iter().filter(|byte| **byte == b'\n').count() >= lines)
                || self.last.is_some_and(has_last)
        };
        while !enough(&read) {
            match body.frame().await {
                Some(frame) => read.extend(frame.expect("not broken off").into_data().unwrap_or_default()),
                None => break,
            }
        }
        if self.lines.is_some() {
            // An extra line is a difference as well.
            if let Ok(Some(frame)) = timeout(quiet_time(), body.frame()).await {
                read.extend(frame.expect("not broken off").into_data().unwrap_or_default());
            }
        }
        String::from_utf8(read).expect("text")
    }
}

/// The headers that must be the same; the others concern transport.
fn matters(header: &str) -> bool {
    header.starts_with("access-control-")
        || header.starts_with("grpc-")
        || ["content-type", "x-content-type-options", "allow", "location"].contains(&header)
}

/// Posts a request over HTTP/1.1 and hands on the chunks of the answer as they are sent. Clients such as etcd3gw parse
/// an answer chunk by chunk, which a client library would hide.
pub(super) struct Chunks {
    stream: BufReader<TcpStream>,
}

impl Chunks {
    /// Sends the request, and reads the head of the answer.
    pub(super) async fn of(addr: &str, path: &str, body: &str) -> Self {
        let mut stream = BufReader::new(TcpStream::connect(addr).await.expect("connected"));
        let request = format!("POST {path} HTTP/1.1\r\nhost: {addr}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut chunks = Self { stream };
        let mut head = Vec::new();
        while head.last().is_none_or(|line: &String| !line.is_empty()) {
            head.push(chunks.line().await.to_ascii_lowercase());
        }
        assert!(head[0].starts_with("http/1.1 200 "), "{head:?}");
        assert!(head.iter().any(|line| line == "transfer-encoding: chunked"), "{head:?}");
        chunks
    }

    /// The next chunk.
    pub(super) async fn next(&mut self) -> String {
        let len = usize::from_str_radix(&self.line().await, 16).expect("the length of a chunk");
        let mut chunk = vec![0; len];
        timeout(patience(), self.stream.read_exact(&mut chunk)).await.expect("a chunk in time").expect("a whole chunk");
        assert_eq!(self.line().await, "", "the end of a chunk");
        String::from_utf8(chunk).expect("text")
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        timeout(patience(), self.stream.read_line(&mut line)).await.expect("a line in time").expect("a line");
        line.strip_suffix("\r\n").expect("not broken off").to_owned()
    }
}

/// The text without the parts that differ between clusters.
pub(super) fn masked(text: &str) -> String {
    const NAMES: [&str; 12] = [
        "cluster_id",
        "member_id",
        "raft_term",
        "leader",
        "raftIndex",
        "raftTerm",
        "raftAppliedIndex",
        "dbSize",
        "dbSizeInUse",
        "dbSizeQuota",
        "token",
        "hash",
    ];
    let mut text = text.to_owned();
    for name in NAMES {
        let start = format!("\"{name}\":");
        let mut from = 0;
        while let Some(at) = text[from..].find(&start) {
            let value = from + at + start.len();
            let rest = &text[value..];
            // An object is not specific to a cluster.
            let len = match rest.as_bytes().first() {
                Some(b'"') => rest[1..].find('"').map_or(rest.len(), |end| end + 2),
                Some(b'{') => 0,
                _ => rest.find([',', '}']).unwrap_or(rest.len()),
            };
            if len > 0 {
                text.replace_range(value..value + len, "…");
            }
            from = value;
        }
    }
    // etcd may report either.
    let text = text.replace("stream terminated by RST_STREAM with error code: CANCEL", "context deadline exceeded");
    without_made_up_ids(&text)
}

/// Ids of leases that etcd chooses are as long as those of clusters.
fn without_made_up_ids(text: &str) -> String {
    const LEAST: usize = 15;
    let is_made_up = |part: &str| part.len() >= LEAST && part.bytes().all(|byte| byte.is_ascii_digit());
    text.split('"').map(|part| if is_made_up(part) { "…" } else { part }).collect::<Vec<_>>().join("\"")
}
