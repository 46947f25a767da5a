//! [`Reader`]: a client of server-sent events that reads on request, and a GET with its head.
//!
//! It uses HTTP/1.1 on a bare socket, so that a test decides when bytes are read.

use std::{collections::BTreeMap, net::Ipv4Addr};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::support::patience;

/// An answer with its complete body.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("not JSON: {error}: {:?}", self.body))
    }

    /// The text of an error.
    pub(crate) fn error(&self) -> String {
        self.json()["error"].as_str().expect("a text").to_owned()
    }
}

/// Asks for a path, with headers (`name: value`).
pub(crate) async fn get(addr: &str, path: &str, headers: &[&str]) -> Answer {
    request("GET", Ipv4Addr::LOCALHOST, addr, path, headers).await
}

/// The same with any method, from any address of this machine. It uses HTTP/1.0, so the body has no chunks.
pub(crate) async fn request(method: &str, from: Ipv4Addr, addr: &str, path: &str, headers: &[&str]) -> Answer {
    let exchange = async {
        let mut socket = BufReader::new(send(method, "HTTP/1.0", from, addr, path, headers).await);
        let (status, headers) = head(&mut socket).await;
        let mut body = Vec::new();
        socket.read_to_end(&mut body).await.expect("a body");
        Answer { status, headers, body: String::from_utf8(body).expect("text") }
    };
    timeout(patience(), exchange).await.unwrap_or_else(|_| panic!("no answer to {path}"))
}

/// A block between two empty lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) event: String,
    pub(crate) data: String,
    pub(crate) id: Option<i64>,
    pub(crate) comment: bool,
}

impl Block {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("not JSON: {error}: {self:?}"))
    }

    /// In the form of an etcd watch: kind, key, value, revision.
    pub(crate) fn change(&self) -> Change {
        let json = self.json();
        let value = if self.event == "put" { bytes_of(&json, "value") } else { Vec::new() };
        (self.event.clone(), bytes_of(&json, "key"), value, json["mod_revision"].as_i64().expect("a revision"))
    }
}

/// Kind, key, value, revision.
pub(crate) type Change = (String, Vec<u8>, Vec<u8>, i64);

/// The bytes of a field, whose name shows whether it is text or base64.
pub(crate) fn bytes_of(json: &Value, name: &str) -> Vec<u8> {
    match (json.get(name), json.get(format!("{name}_base64"))) {
        (Some(text), None) => text.as_str().expect("text").as_bytes().to_vec(),
        (None, Some(base64)) => BASE64_STANDARD.decode(base64.as_str().expect("text")).expect("base64"),
        other => panic!("exactly one of {name} and {name}_base64 is there, not {other:?}"),
    }
}

/// An open stream.
#[derive(Debug)]
pub(crate) struct Reader {
    socket: BufReader<TcpStream>,
    /// The id of the last block that had one.
    pub(crate) last_id: Option<i64>,
    pub(crate) retry: Option<u64>,
}

impl Reader {
    /// Opens a stream, which must succeed.
    pub(crate) async fn open(addr: &str, path: &str, headers: &[&str]) -> Self {
        let mut socket = BufReader::new(send("GET", "HTTP/1.1", Ipv4Addr::LOCALHOST, addr, path, headers).await);
        let begun = timeout(patience(), head(&mut socket)).await.unwrap_or_else(|_| panic!("no head of {path}"));
        let (status, headers) = begun;
        if status != 200 {
            let mut body = vec![0; 4096];
            let read = socket.read(&mut body).await.expect("a body");
            panic!("{path}: {status}: {}", String::from_utf8_lossy(&body[..read]));
        }
        assert_eq!(headers["content-type"], "text/event-stream", "{path}");
        Self { socket, last_id: None, retry: None }
    }

    /// The next block, parsed as the specification says; `None` at the end of the stream.
    pub(crate) async fn block(&mut self) -> Option<Block> {
        let mut block = Block::default();
        loop {
            let mut line = Vec::new();
            let read = timeout(patience(), self.socket.read_until(b'\n', &mut line)).await;
            read.expect("a line in time").unwrap_or(0);
            // An incomplete block at the end is ignored, as in a browser.
            let line = line.strip_suffix(b"\n")?;
            assert!(!line.contains(&b'\r') && !line.contains(&0), "{}", line.escape_ascii());
            let line = std::str::from_utf8(line).expect("text");
            if line.is_empty() {
                self.last_id = block.id.or(self.last_id);
                return Some(block);
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value).to_owned();
            match field {
                "" => block.comment = true,
                "event" => block.event = value,
                "data" => {
                    assert!(block.data.is_empty(), "data in two lines");
                    block.data = value;
                }
                "id" => block.id = Some(value.parse().expect("a revision")),
                "retry" => self.retry = Some(value.parse().expect("milliseconds")),
                other => panic!("a field {other:?}"),
            }
        }
    }

    /// The next block that is an event.
    pub(crate) async fn event(&mut self) -> Block {
        loop {
            let block = self.block().await.expect("the stream goes on");
            if !block.event.is_empty() {
                return block;
            }
        }
    }

    /// The events up to the one whose id is at least this revision.
    pub(crate) async fn until(&mut self, revision: i64) -> Vec<Block> {
        let mut events = Vec::new();
        loop {
            let block = self.block().await.unwrap_or_else(|| panic!("the stream ended before {revision}: {events:?}"));
            let reached = block.id.is_some_and(|id| id >= revision);
            if !block.event.is_empty() {
                events.push(block);
            }
            if reached {
                return events;
            }
        }
    }

    /// The next snapshot: its keys with their values, and its revision.
    pub(crate) async fn snapshot(&mut self) -> (BTreeMap<Vec<u8>, Vec<u8>>, i64, usize) {
        let mut keys = BTreeMap::new();
        let mut parts = 0;
        loop {
            let block = self.event().await;
            assert_eq!(block.event, "snapshot", "{block:?}");
            let part = block.json();
            assert_eq!(part["first"], parts == 0, "{block:?}");
            parts += 1;
            for kv in part["kvs"].as_array().expect("keys") {
                keys.insert(bytes_of(kv, "key"), bytes_of(kv, "value"));
            }
            let revision = part["revision"].as_i64().expect("a revision");
            assert_eq!(block.id, (part["last"] == true).then_some(revision), "only the last part has an id");
            if part["last"] == true {
                return (keys, revision, parts);
            }
        }
    }
}

async fn send(method: &str, version: &str, from: Ipv4Addr, addr: &str, path: &str, headers: &[&str]) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    // Small, so that data of a reader that stops soon waits at the sender.
    socket.set_recv_buffer_size(64 << 10).expect("a buffer");
    socket.bind((from, 0).into()).expect("an address");
    let mut socket = socket.connect(addr.parse().expect("an address")).await.expect("a connection");
    let host = if headers.iter().any(|header| header.starts_with("Host:")) {
        String::new()
    } else {
        format!("Host: {addr}\r\n")
    };
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    socket.write_all(format!("{method} {path} {version}\r\n{host}{headers}\r\n").as_bytes()).await.expect("sent");
    socket
}

async fn head(socket: &mut BufReader<TcpStream>) -> (u16, BTreeMap<String, String>) {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        socket.read_line(&mut line).await.expect("a head");
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let status = lines.first().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
    let pair = |line: &String| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
    (status, lines.iter().skip(1).filter_map(pair).collect())
}
