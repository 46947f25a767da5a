//! [`Lasting`] answers over HTTP/1.1: they take over their connection from hyper, and stream until one side closes.
//!
//! Over HTTP/2, such an answer is one stream of many and not handled here. `serve` calls this for each connection. It
//! is not done within hyper for two reasons. Once hyper's buffer holds bytes that a client sent too early, it stops
//! reading and does not notice that the client left. And it keeps about 20 KiB for each connection. Always holds:
//! - what the client sends after its request is read and dropped, and its close ends the stream at once;
//! - the body is polled only when all of its earlier data is written, so it may skip what is outdated by then;
//! - answers to earlier requests on the connection are written before it is taken over.

use std::{
    convert::Infallible,
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Response, StatusCode};
use http_body::Body;
use hyper::{body::Incoming, server::conn::http1::Connection, service::HttpService};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    socket::Socket,
    turns::{Turns, Written},
};
use crate::front::{body::BoxError, signal::Listener};

/// In the extensions of a response: its body does not end by itself. Over HTTP/1.1 it lasts as long as the connection,
/// and is sent without a length or chunks.
#[derive(Clone, Copy, Debug)]
pub struct Lasting;

/// Most pieces in one write.
const MAX_SLICES: usize = 32;
/// Dropped bytes are read in steps of this size.
const SCRATCH: usize = 1024;

/// Holds an answer that will take over the connection.
#[derive(Debug)]
pub(super) struct Takeover<B> {
    offer: Mutex<Option<Response<B>>>,
    written: Arc<Written>,
}

impl<B> Takeover<B> {
    /// Empty at first. `written` tells whether hyper has written everything.
    pub(super) fn new(written: Arc<Written>) -> Self {
        Self { offer: Mutex::new(None), written }
    }

    /// Waits for an answer. If it is [`Lasting`], keeps it from hyper and calls `lasts`.
    pub(super) async fn offer<E>(
        self: Arc<Self>,
        answer: impl Future<Output = Result<Response<B>, E>>,
        lasts: impl FnOnce(),
    ) -> Result<Response<B>, E> {
        let response = answer.await?;
        if response.extensions().get::<Lasting>().is_none() {
            return Ok(response);
        }
        lasts();
        *self.offer.lock() = Some(response);
        // The connection is taken from hyper, and this future is dropped with it.
        match std::future::pending::<Infallible>().await {}
    }

    /// Drives a connection to its end, or until an answer takes it over.
    pub(super) fn poll<T, S>(
        &self,
        connection: Pin<&mut Connection<TokioIo<Socket<T>>, S>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<B>, hyper::Result<()>>>
    where
        T: AsyncRead + AsyncWrite + Unpin,
        S: HttpService<Incoming, ResBody = B, Error: Into<BoxError>>,
        B: Body<Error: Into<BoxError>> + 'static,
    {
        let began = Instant::now();
        let outcome = connection.poll(cx);
        self.written.lasted(began.elapsed());
        if let Poll::Ready(result) = outcome {
            return Poll::Ready(Err(result));
        }
        // hyper pauses only after it has tried to write what it has.
        if !self.written.is_everything() {
            return Poll::Pending;
        }
        self.offer.lock().take().map_or(Poll::Pending, |response| Poll::Ready(Ok(response)))
    }
}

/// Writes a response to a socket until its body ends, the client closes, or it is told to stop. It is written by hand
/// because there are thousands of them, and an async function would be twice as large.
pub(super) struct ResponseWriter<T, B: Body> {
    socket: Socket<T>,
    turns: Turns,
    abort: Listener,
    out: Out<B::Data>,
    body: B,
    ended: bool,
}

impl<T, B: Body> ResponseWriter<T, B> {
    pub(super) fn new(socket: Socket<T>, mut turns: Turns, response: Response<B>, abort: Listener) -> Self {
        // An answer may begin with everything that there is.
        turns.expect_long();
        let (parts, body) = response.into_parts();
        let out = Out { head: head(parts.status, &parts.headers), data: None };
        Self { socket, turns, abort, out, body, ended: false }
    }
}

// Only the body is ever pinned.
impl<T: Unpin, B: Body + Unpin> Unpin for ResponseWriter<T, B> {}

impl<T, B> Future for ResponseWriter<T, B>
where
    T: AsyncRead + AsyncWrite + Unpin,
    B: Body<Error: Into<BoxError>> + Unpin,
{
    /// The error is from the body or from the socket.
    type Output = Result<(), BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { socket, turns, abort, out, body, ended } = self.get_mut();
        if abort.poll(cx).is_ready() || poll_closed(socket, cx)?.is_ready() {
            return Poll::Ready(Ok(()));
        }
        turns.poll(cx, |cx| {
            loop {
                // The head is sent together with the first data, if that is ready.
                let mut waits = false;
                if out.data.is_none() && !*ended {
                    match Pin::new(&mut *body).poll_frame(cx) {
                        Poll::Ready(Some(frame)) => out.data = frame.map_err(Into::into)?.into_data().ok(),
                        Poll::Ready(None) => *ended = true,
                        Poll::Pending => waits = true,
                    }
                }
                ready!(out.poll_write(socket, cx))?;
                // This is done each time: the socket may still have bytes that it took before, of TLS or of a batch.
                ready!(Pin::new(&mut *socket).poll_flush(cx))?;
                if *ended {
                    return Pin::new(socket).poll_shutdown(cx).map_err(Into::into);
                }
                if waits {
                    return Poll::Pending;
                }
            }
        })
    }
}

/// Reads and drops what the client sends. Ready when the client has closed.
fn poll_closed<T: AsyncRead + Unpin>(socket: &mut Socket<T>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    loop {
        let mut scratch = [MaybeUninit::uninit(); SCRATCH];
        let mut dropped = ReadBuf::uninit(&mut scratch);
        ready!(Pin::new(&mut *socket).poll_read(cx, &mut dropped))?;
        if dropped.filled().is_empty() {
            return Poll::Ready(Ok(()));
        }
    }
}

/// The bytes to write next.
struct Out<D> {
    head: Bytes,
    data: Option<D>,
}

impl<D: Buf> Out<D> {
    /// Writes all of them.
    fn poll_write<T>(&mut self, socket: &mut Socket<T>, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        T: AsyncWrite + Unpin,
    {
        let mut socket = Pin::new(socket);
        while self.has_remaining() {
            let first = self.chunk();
            let count = if first.len() == self.remaining() {
                ready!(socket.as_mut().poll_write(cx, first))?
            } else {
                let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                let filled = self.chunks_vectored(&mut slices);
                ready!(socket.as_mut().poll_write_vectored(cx, &slices[..filled]))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(count);
        }
        self.data = None;
        Poll::Ready(Ok(()))
    }
}

impl<D: Buf> Buf for Out<D> {
    fn remaining(&self) -> usize {
        self.head.len() + self.data.as_ref().map_or(0, Buf::remaining)
    }

    fn chunk(&self) -> &[u8] {
        match &self.data {
            Some(data) if self.head.is_empty() => data.chunk(),
            _ => &self.head,
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let filled = self.head.chunks_vectored(slices);
        filled + self.data.as_ref().map_or(0, |data| data.chunks_vectored(&mut slices[filled..]))
    }

    fn advance(&mut self, count: usize) {
        let of_head = count.min(self.head.len());
        if of_head > 0 {
            self.head.advance(of_head);
            if self.head.is_empty() {
                // Frees its memory.
                self.head = Bytes::new();
            }
        }
        if let Some(data) = &mut self.data {
            data.advance(count - of_head);
        }
    }
}

/// The head of a response, with header names in the usual capitalization.
fn head(status: StatusCode, headers: &HeaderMap) -> Bytes {
    let mut head = BytesMut::with_capacity(256);
    head.put_slice(b"HTTP/1.1 ");
    head.put_slice(status.as_str().as_bytes());
    head.put_u8(b' ');
    head.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    head.put_slice(b"\r\n");
    for (name, value) in headers {
        let mut starts_word = true;
        for byte in name.as_str().bytes() {
            head.put_u8(if starts_word { byte.to_ascii_uppercase() } else { byte });
            starts_word = byte == b'-';
        }
        head.put_slice(b": ");
        head.put_slice(value.as_bytes());
        head.put_slice(b"\r\n");
    }
    head.put_slice(b"\r\n");
    head.freeze()
}
