//! The part of HTTP/1.1 that a load of views needs: GET on a connection that stays open, and bodies with any of the
//! three kinds of framing.
//!
//! Events are in `sse`. It is handwritten to use as little as possible of the CPU that the servers under test need.

use std::io::{self, BufRead as _, Write as _};

use thiserror::Error;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::link::Socket;

/// Why an answer is not usable.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The connection failed.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The server's data is invalid.
    #[error("{0}")]
    Breach(String),
}

impl HttpError {
    pub(super) fn breach(what: impl Into<String>) -> Self {
        Self::Breach(what.into())
    }
}

/// A result with an [`HttpError`].
pub type Result<T> = std::result::Result<T, HttpError>;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// Makes one GET on a connection of its own.
///
/// # Errors
/// Fails if there is no HTTP/1.1 answer.
pub async fn get(addr: &str, uri: &str) -> Result<Answer> {
    let mut connection = Connection::open(addr).await?;
    let status = connection.get(uri).await?;
    Ok(Answer { status, body: std::mem::take(&mut connection.body) })
}

/// A connection for successive requests.
#[derive(Debug)]
pub struct Connection {
    stream: Socket,
    addr: String,
    received: Vec<u8>,
    request: Vec<u8>,
    /// The body of the last answer.
    pub body: Vec<u8>,
}

impl Connection {
    /// Connects to `addr` (`host:port`).
    ///
    /// # Errors
    /// Fails if the connection is refused.
    pub async fn open(addr: &str) -> Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(Self::over(Socket::Plain(stream), addr))
    }

    /// Uses a socket that is connected to `addr`.
    pub(super) fn over(stream: Socket, addr: &str) -> Self {
        Self { stream, addr: addr.to_owned(), received: Vec::new(), request: Vec::new(), body: Vec::new() }
    }

    /// Requests `uri` and returns the status; [`Self::body`] has the body.
    ///
    /// # Errors
    /// Fails if there is no HTTP/1.1 answer.
    pub async fn get(&mut self, uri: &str) -> Result<u16> {
        self.request.clear();
        write!(self.request, "GET {uri} HTTP/1.1\r\nHost: {}\r\n\r\n", self.addr)?;
        self.stream.write_all(&self.request).await?;
        self.stream.flush().await?;
        self.received.clear();
        self.body.clear();
        let mut head = None;
        loop {
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return match head {
                    Some((status, Framing::UntilClose)) => Ok(status),
                    _ => Err(HttpError::breach("the connection closed in the middle of an answer")),
                };
            }
            if head.is_none() {
                let Some((length, parsed)) = Head::parse(&self.received)? else { continue };
                self.received.drain(..length);
                head = Some((parsed.status, parsed.framing));
            }
            let Some((status, framing)) = &mut head else { continue };
            let ended = framing.decode(&self.received, |part| {
                self.body.extend_from_slice(part);
                Ok::<(), HttpError>(())
            })?;
            self.received.clear();
            if ended {
                return Ok(*status);
            }
        }
    }
}

/// The head of an answer.
#[derive(Debug)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// How the body ends.
    pub framing: Framing,
}

impl Head {
    /// Parses the head. Returns its length in bytes as well; `None` if it is incomplete.
    ///
    /// # Errors
    /// Fails if it is not the head of an HTTP/1.1 answer.
    pub fn parse(bytes: &[u8]) -> Result<Option<(usize, Self)>> {
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
        let text =
            std::str::from_utf8(&bytes[..end]).map_err(|_| HttpError::breach("the head of the answer is not text"))?;
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok());
        let status = status.ok_or_else(|| HttpError::breach(format!("not an HTTP/1.1 answer: {text:?}")))?;
        let mut framing = Framing::UntilClose;
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            if name.eq_ignore_ascii_case("content-length") {
                framing = Framing::Left(
                    value.trim().parse().map_err(|_| HttpError::breach(format!("Content-Length: {value}")))?,
                );
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                framing = Framing::Chunks(Chunks::default());
            }
        }
        Ok(Some((end + 4, Self { status, framing })))
    }
}

/// How a body ends, and how far it was read.
#[derive(Debug)]
pub enum Framing {
    /// After this many more bytes.
    Left(usize),
    /// With an empty chunk.
    Chunks(Chunks),
    /// At the end of the connection.
    UntilClose,
}

impl Framing {
    /// Passes on the part of these bytes that belongs to the body. Returns whether the body is complete.
    ///
    /// # Errors
    /// Fails if the bytes break the framing, or if `body` fails.
    pub fn decode<E: From<HttpError>>(
        &mut self,
        bytes: &[u8],
        mut body: impl FnMut(&[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<bool, E> {
        match self {
            Self::Left(left) => {
                *left = left
                    .checked_sub(bytes.len())
                    .ok_or_else(|| HttpError::breach("more body than its Content-Length"))?;
                body(bytes)?;
                Ok(*left == 0)
            }
            Self::Chunks(chunks) => chunks.decode(bytes, body),
            Self::UntilClose => {
                body(bytes)?;
                Ok(false)
            }
        }
    }
}

/// The position in a chunked body.
#[derive(Debug, Default)]
pub struct Chunks {
    /// The received part of the line with a chunk's length.
    line: Vec<u8>,
    left: usize,
    /// The line break after a chunk is still to come.
    after_chunk: bool,
    last: bool,
}

impl Chunks {
    fn decode<E: From<HttpError>>(
        &mut self,
        mut bytes: &[u8],
        mut body: impl FnMut(&[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<bool, E> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let (part, rest) = bytes.split_at(self.left.min(bytes.len()));
                body(part)?;
                self.left -= part.len();
                self.after_chunk = self.left == 0;
                bytes = rest;
                continue;
            }
            bytes.read_until(b'\n', &mut self.line).map_err(HttpError::Io)?;
            if !self.line.ends_with(b"\n") {
                continue;
            }
            let line = self.line.trim_ascii();
            if self.last && line.is_empty() {
                return Ok(true);
            } else if self.after_chunk && line.is_empty() {
                self.after_chunk = false;
            } else if !self.last {
                let digits = std::str::from_utf8(line).ok().and_then(|line| usize::from_str_radix(line, 16).ok());
                self.left = digits.ok_or_else(|| HttpError::breach(format!("not a chunk's length: {line:?}")))?;
                self.last = self.left == 0;
            }
            self.line.clear();
        }
        Ok(false)
    }
}
