//! [`Store`]: a client of etcd's v2 API, with one connection per request.
//!
//! It does not wait for changes. An unexpected error panics.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// A client at `host:port` of a member or of a gate in front of it.
#[derive(Clone, Debug)]
pub struct Store {
    addr: String,
    /// The header with its credentials.
    credentials: String,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// `X-Etcd-Index`.
    pub index: i64,
    /// The body, where it is JSON.
    pub body: Value,
}

/// The keys of a directory, with values and `modifiedIndex`.
pub type Keys = BTreeMap<String, (String, i64)>;

impl Store {
    /// A client of this member.
    pub fn at(addr: &str) -> Self {
        Self { addr: addr.to_owned(), credentials: String::new() }
    }

    /// The same as a user whose password is its name; the argument is `user:password` in base64.
    pub fn as_user(&self, encoded: &str) -> Self {
        Self { addr: self.addr.clone(), credentials: format!("Authorization: Basic {encoded}\r\n") }
    }

    /// `host:port`.
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// PUT with these form fields; it must succeed.
    pub async fn put(&self, key: &str, fields: &[(&str, &str)]) -> Answer {
        let answer = self.ask("PUT", key, fields).await;
        assert!(answer.status < 300, "PUT {key} {fields:?}: {answer:?}");
        answer
    }

    /// Sets a value. Returns its index.
    pub async fn set(&self, key: &str, value: &str) -> i64 {
        self.put(key, &[("value", value)]).await.index
    }

    /// DELETE with `recursive`. Returns its index.
    pub async fn delete(&self, key: &str) -> i64 {
        let answer = self.ask("DELETE", &format!("{key}?recursive=true"), &[]).await;
        assert!(answer.status < 300, "DELETE {key}: {answer:?}");
        answer.index
    }

    /// A quorum's listing of a directory, with its index.
    pub async fn list(&self, directory: &str) -> (i64, Keys) {
        let answer = self.ask("GET", &format!("{directory}?recursive=true&quorum=true"), &[]).await;
        let mut keys = Keys::new();
        assert!(matches!(answer.status, 200 | 404), "{answer:?}");
        collect(&answer.body["node"], &mut keys);
        (answer.index, keys)
    }

    /// Any request.
    pub async fn ask(&self, method: &str, key: &str, fields: &[(&str, &str)]) -> Answer {
        self.try_ask(method, key, fields)
            .await
            .unwrap_or_else(|error| panic!("{method} {key} at {}: {error}", self.addr))
    }

    /// Any request, to a member that may be unavailable.
    pub async fn try_ask(&self, method: &str, key: &str, fields: &[(&str, &str)]) -> std::io::Result<Answer> {
        let form: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
        let form = form.join("&");
        let path = key.replace(' ', "%20");
        let request = format!(
            "{method} /v2/keys{path} HTTP/1.0\r\nHost: {}\r\n{}Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
            self.addr,
            self.credentials,
            form.len()
        );
        let exchange = async {
            let mut stream = TcpStream::connect(&self.addr).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await?;
            Ok::<_, std::io::Error>(bytes)
        };
        let bytes = timeout(Duration::from_secs(10), exchange)
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))?;
        let text = String::from_utf8_lossy(&bytes);
        let (head, body) = text.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let status =
            head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(std::io::ErrorKind::InvalidData)?;
        let index = head.lines().find_map(|line| line.strip_prefix("X-Etcd-Index: "));
        let index = index.and_then(|index| index.trim().parse().ok()).unwrap_or_default();
        Ok(Answer { status, index, body: serde_json::from_str(body).unwrap_or(Value::Null) })
    }
}

fn collect(node: &Value, keys: &mut Keys) {
    if let Some(nodes) = node["nodes"].as_array() {
        nodes.iter().for_each(|node| collect(node, keys));
    }
    if let (Some(key), Some(value)) = (node["key"].as_str(), node["value"].as_str()) {
        keys.insert(key.to_owned(), (value.to_owned(), node["modifiedIndex"].as_i64().expect("an index")));
    }
}

fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
