//! [`Fetcher`]: sends GET requests to a relay's HTTP port, one after the other over one connection, for the commands
//! that query a relay (`top`, `health`).
//!
//! Not here: the meaning of the answers. Always holds: a request has a deadline, which includes connecting; an answer
//! has a bounded length; after a failure, the next request begins with a new connection.

use std::{error::Error, fmt, io, net::IpAddr, pin::Pin, str::FromStr, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use crate::tls::{self, Speaks};

/// The longest answer. A page of `/debug/state` has a tenth of this.
const MOST_BYTES: usize = 16 << 20;
/// The port if the URL names none: the relay's default.
const DEFAULT_PORT: u16 = 9001;

type Socket = tls::Stream<TcpStream, tls::ClientStream<TcpStream>>;

/// The HTTP port of a relay: `http://host:port`, `https://host:port`, or `host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayUrl {
    host: String,
    port: u16,
    is_secure: bool,
}

/// Why there is no answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The address accepts no connections, or not over TLS.
    #[error("cannot connect to {at}: {cause}")]
    Connect {
        /// The address.
        at: String,
        /// The system's message.
        cause: io::Error,
    },
    /// There was no answer in time.
    #[error("{at} did not answer within {}", humantime::format_duration(*patience))]
    Late {
        /// The address.
        at: String,
        /// The timeout.
        patience: Duration,
    },
    /// The connection ended, or the answer was not HTTP/1.1.
    #[error("lost the connection to {at}: {cause}")]
    Lost {
        /// The address.
        at: String,
        /// The reason.
        cause: String,
    },
    /// The path is not valid in a request.
    #[error("`{0}` is not a valid path for a request")]
    Path(String),
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Bytes,
}

/// Sends requests to a relay; see the module.
#[derive(Debug)]
pub struct Fetcher {
    url: RelayUrl,
    tls: Option<tls::Client>,
    patience: Duration,
    link: Option<Link>,
}

/// A connection. It makes progress only while a request waits for its answer, so nothing runs in the background.
#[derive(Debug)]
struct Link {
    sender: http1::SendRequest<Empty<Bytes>>,
    connection: Pin<Box<http1::Connection<TokioIo<Socket>, Empty<Bytes>>>>,
}

impl Fetcher {
    /// Sends requests to `url`, over `tls` if the URL begins with `https://`, with `patience` as the timeout of each.
    #[must_use]
    pub fn new(url: RelayUrl, tls: Option<tls::Client>, patience: Duration) -> Self {
        Self { url, tls, patience, link: None }
    }

    /// The relay's URL.
    #[must_use]
    pub fn url(&self) -> &RelayUrl {
        &self.url
    }

    /// Requests a path, which may have a query.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn get(&mut self, path: &str) -> Result<Answer, FetchError> {
        let deadline = Instant::now() + self.patience;
        // The relay may have closed an idle connection, which shows only when it is used.
        if let Some(link) = self.link.take()
            && let Ok(answer) = self.exchange(link, path, deadline).await
        {
            return Ok(answer);
        }
        let connected = timeout_at(deadline, self.connect()).await.map_err(|_| self.late())?;
        self.exchange(connected?, path, deadline).await
    }

    async fn exchange(&mut self, mut link: Link, path: &str, deadline: Instant) -> Result<Answer, FetchError> {
        let request = Request::get(path)
            .header(header::HOST, self.url.authority())
            .header(header::USER_AGENT, concat!("etcd-relay/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .map_err(|_| FetchError::Path(path.to_owned()))?;
        let answer = timeout_at(deadline, link.exchange(request)).await.map_err(|_| self.late())?;
        let answer = answer.map_err(|cause| FetchError::Lost { at: self.url.to_string(), cause: chain(&*cause) })?;
        self.link = Some(link);
        Ok(answer)
    }

    async fn connect(&self) -> Result<Link, FetchError> {
        let failed = |cause: io::Error| FetchError::Connect { at: self.url.to_string(), cause };
        let stream = TcpStream::connect((&*self.url.host, self.url.port)).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let socket = match &self.tls {
            Some(tls) if self.url.is_secure => {
                Socket::Tls(Box::new(tls.connect(&self.url.host, stream, Speaks::Http1).await.map_err(failed)?))
            }
            None if self.url.is_secure => {
                return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "there are no settings for https://")));
            }
            _ => Socket::Plain(stream),
        };
        let (sender, connection) =
            http1::handshake(TokioIo::new(socket)).await.map_err(|error| failed(io::Error::other(error)))?;
        Ok(Link { sender, connection: Box::pin(connection) })
    }

    fn late(&self) -> FetchError {
        FetchError::Late { at: self.url.to_string(), patience: self.patience }
    }
}

impl Link {
    async fn exchange(&mut self, request: Request<Empty<Bytes>>) -> Result<Answer, Box<dyn Error + Send + Sync>> {
        let Self { sender, connection } = self;
        let answer = async {
            sender.ready().await?;
            let response = sender.send_request(request).await?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), MOST_BYTES).collect().await?.to_bytes();
            Ok::<_, Box<dyn Error + Send + Sync>>(Answer { status, body })
        };
        let mut answer = std::pin::pin!(answer);
        // If the deadline passes, both are dropped, together with the link.
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            ended = connection => {
                ended?;
                // What came before the end may be the whole answer. Nothing more will come.
                answer.now_or_never().unwrap_or_else(|| Err("it was closed before the answer".into()))
            }
        }
    }
}

impl RelayUrl {
    /// Whether it begins with `https://`.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.is_secure
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for RelayUrl {
    type Err = String;

    /// Accepts what `--listen-http` accepts: of several URLs it takes the first, and it takes this machine for an
    /// address that means all addresses.
    fn from_str(text: &str) -> Result<Self, String> {
        let problem =
            || format!("`{text}` is not the URL of a relay's HTTP port; write it like http://127.0.0.1:{DEFAULT_PORT}");
        let first = text.split(',').next().unwrap_or(text);
        let (is_secure, rest) = match first.split_once("://") {
            None => (false, first),
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some((scheme, _)) => {
                return Err(format!("`{text}`: the scheme `{scheme}` isn't supported; write http:// or https://"));
            }
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(problem)?;
                (host, port.strip_prefix(':').or(port.is_empty().then_some("")).ok_or_else(problem)?)
            }
            None => authority.rsplit_once(':').unwrap_or((authority, "")),
        };
        let port = if port.is_empty() { DEFAULT_PORT } else { port.parse().map_err(|_| problem())? };
        let is_name = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
        let host = match host.parse::<IpAddr>() {
            Ok(addr) if addr.is_unspecified() => "127.0.0.1".to_owned(),
            Ok(addr) => addr.to_string(),
            Err(_) if host.is_empty() && authority.starts_with(':') => "127.0.0.1".to_owned(),
            Err(_) if is_name && !host.is_empty() => host.to_owned(),
            Err(_) => return Err(problem()),
        };
        Ok(Self { host, port, is_secure })
    }
}

impl fmt::Display for RelayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.is_secure { "https" } else { "http" }, self.authority())
    }
}

/// An error with its causes.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |&cause| cause.source()) {
        let cause = cause.to_string();
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn urls_are_those_that_listen_http_takes() {
        for (text, want) in [
            ("http://127.0.0.1:9001", "http://127.0.0.1:9001"),
            ("127.0.0.1:9001", "http://127.0.0.1:9001"),
            ("https://relay.rack-1:7/", "https://relay.rack-1:7"),
            ("relay", "http://relay:9001"),
            ("http://0.0.0.0:1,http://10.0.0.1:2", "http://127.0.0.1:1"),
            (":5", "http://127.0.0.1:5"),
            ("https://[::]:5", "https://127.0.0.1:5"),
            ("[::1]:5", "http://[::1]:5"),
            ("[::1]", "http://[::1]:9001"),
        ] {
            assert_eq!(text.parse::<RelayUrl>().map(|url| url.to_string()), Ok(want.to_owned()), "{text}");
        }
        for text in
            ["", "http://", "http://a:1/metrics", "a:b", "a:70000", "ftp://a", "a b", "[::1", "[::1]x", "a\x1b:1"]
        {
            assert!(text.parse::<RelayUrl>().is_err(), "{text:?}");
        }
    }

    /// Answers `each` requests on a connection, and then closes it.
    async fn server(each: usize) -> RelayUrl {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = listener.local_addr().expect("an address").to_string().parse().expect("a URL");
        tokio::spawn(async move {
            for connection in 1.. {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                for _ in 0..each {
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        if stream.read_buf(&mut request).await.unwrap_or_default() == 0 {
                            return;
                        }
                    }
                    let body = connection.to_string();
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    stream.write_all(head.as_bytes()).await.expect("written");
                }
            }
        });
        url
    }

    #[tokio::test]
    async fn requests_share_a_connection_and_a_closed_one_is_replaced() {
        let mut fetcher = Fetcher::new(server(2).await, None, SOON);
        for connection in ["1", "1", "2", "2", "3"] {
            let answer = fetcher.get("/x").await.expect("an answer");
            assert_eq!((answer.status, &*answer.body), (200, connection.as_bytes()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_says_nothing_is_left_at_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url: RelayUrl = listener.local_addr().expect("an address").to_string().parse().expect("a URL");
        let late = Fetcher::new(url.clone(), None, SOON).get("/").await.expect_err("nothing comes");
        assert_eq!(late.to_string(), format!("{url} did not answer within 20s"));
    }

    #[tokio::test]
    async fn nobody_there_is_said_with_the_address() {
        let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
        let url: RelayUrl = gone.to_string().parse().expect("a URL");
        let error = Fetcher::new(url, None, SOON).get("/").await.expect_err("nobody listens").to_string();
        assert!(error.contains(&gone.to_string()) && error.contains("cannot connect"), "{error}");
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_not_kept() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = listener.local_addr().expect("an address").to_string().parse().expect("a URL");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let _ = stream.read(&mut [0; 1024]).await;
            // Until the client has read enough.
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            while stream.write_all(&[b'x'; 1 << 16]).await.is_ok() {}
        });
        let error = Fetcher::new(url, None, SOON).get("/").await.expect_err("too long").to_string();
        assert!(error.contains("lost the connection") && error.contains("limit"), "{error}");
    }
}
