//! GET requests in HTTP/1.0 and parsing of Prometheus text: enough to read the health and metrics of servers under
//! test.
//!
//! It uses HTTP/1.0, so that a server may not answer in chunks.

use std::{io, net::Ipv4Addr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

/// A server that does not answer within this time counts as unavailable.
const DEADLINE: Duration = Duration::from_secs(5);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// Requests `path` from `addr` (`host:port`).
pub async fn get(addr: &str, path: &str) -> io::Result<Answer> {
    get_as(Ipv4Addr::LOCALHOST, addr, path, "").await
}

/// The same from an address of this machine, with an additional header (`name: value\r\n`, or empty).
pub async fn get_as(from: Ipv4Addr, addr: &str, path: &str, header: &str) -> io::Result<Answer> {
    timeout(DEADLINE, exchange(from, addr, path, header))
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer to GET {addr}{path}"))))
}

/// The sum of all series of a metric; `None` if it does not exist.
pub fn metric(text: &str, name: &str) -> Option<f64> {
    series(text, name).map(|(_, value)| value).reduce(|sum, value| sum + value)
}

/// The series of a metric: its labels as text (`a="b",…`, possibly empty) and its value.
pub fn series<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    text.lines().filter_map(move |line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        Some((labels, value.trim().parse().ok()?))
    })
}

async fn exchange(from: Ipv4Addr, addr: &str, path: &str, header: &str) -> io::Result<Answer> {
    let mut stream = if from.is_loopback() && from != Ipv4Addr::LOCALHOST {
        let socket = TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        socket.connect(addr.parse().map_err(io::Error::other)?).await?
    } else {
        TcpStream::connect(addr).await?
    };
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {addr}\r\n{header}\r\n").as_bytes()).await?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    let text = String::from_utf8_lossy(&bytes);
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, format!("not an HTTP answer: {text:?}"));
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(malformed)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(malformed)?;
    Ok(Answer { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read_with_and_without_labels() {
        let text = "# HELP a_total x\n# TYPE a_total counter\na_total{k=\"v w\"} 2\na_total{k=\"u\"} 3.5\na_total_more 9\nplain 1e3\n";
        assert_eq!(metric(text, "a_total"), Some(5.5));
        assert_eq!(metric(text, "plain"), Some(1_000.0));
        assert_eq!(metric(text, "absent"), None);
        assert_eq!(series(text, "a_total").next(), Some(("k=\"v w\"", 2.0)));
    }
}
