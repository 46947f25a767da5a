//! Tests with byte streams that hold back what is written until they are flushed, as TLS does.

use std::{io, task::ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::*;

/// Passes nothing on until it is flushed or full, and sends a goodbye when it is shut down.
pub(crate) struct Buffering {
    inner: DuplexStream,
    held: Vec<u8>,
    said_goodbye: bool,
}

impl Buffering {
    /// Most bytes that it holds back.
    const HOLDS: usize = 1000;
    /// What it sends last.
    pub(crate) const GOODBYE: &[u8] = b"close_notify";

    /// Wraps `inner`.
    pub(crate) fn over(inner: DuplexStream) -> Self {
        Self { inner, held: Vec::new(), said_goodbye: false }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.held))?;
            self.held.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Buffering {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Buffering {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.held.len() >= Self::HOLDS {
            ready!(self.poll_drain(cx))?;
        }
        let count = buf.len().min(Self::HOLDS - self.held.len());
        self.held.extend_from_slice(&buf[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.said_goodbye, true) {
            self.held.extend_from_slice(Self::GOODBYE);
        }
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Takes what is written, finds out afterwards that nothing could be sent, wakes its writer, and sends it when it is
/// flushed then: as a stream does whose writes are joined with those of others.
pub(crate) struct Delaying {
    inner: Buffering,
    is_queued: bool,
}

impl Delaying {
    /// Wraps `inner`.
    pub(crate) fn over(inner: DuplexStream) -> Self {
        Self { inner: Buffering::over(inner), is_queued: false }
    }
}

impl AsyncRead for Delaying {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Delaying {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, buf))?;
        self.is_queued = true;
        cx.waker().wake_by_ref();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.is_queued) { Poll::Ready(Ok(())) } else { Pin::new(&mut self.inner).poll_flush(cx) }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Like [`serve`], over a buffering stream whose inner stream accepts `room` bytes at a time.
fn buffering(room: usize) -> (DuplexStream, mpsc::Receiver<Call>, JoinHandle<Result<(), Ended>>) {
    over(room, Buffering::over)
}

fn over<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    room: usize,
    wrap: impl FnOnce(DuplexStream) -> T,
) -> (DuplexStream, mpsc::Receiver<Call>, JoinHandle<Result<(), Ended>>) {
    let (client, io) = tokio::io::duplex(room);
    let (ask, calls) = mpsc::channel(8);
    let service = move |request: Request<Body>| -> BoxFuture<'static, Result<Answer, Failure>> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let _ = ask.try_send((request, answer));
        Box::pin(async move { answered.await.map_err(Into::into) })
    };
    let never = std::future::pending;
    let task = tokio::spawn(Connection::new(wrap(io), service, LIMITS, never(), never()));
    (client, calls, task)
}

#[tokio::test]
async fn an_answer_leaves_whole_and_at_once_also_where_the_stream_keeps_it_until_it_is_flushed() {
    for room in [7, 500, 100_000] {
        let (client, mut calls, task) = buffering(room);
        let mut raw = Raw::greet(client).await;
        const SIZES: [usize; 4] = [1, 990, 1000, 50_000];
        let data = |size| Bytes::from(vec![size as u8; size]);
        // Runs beside the client, which reads only after it has sent its request.
        let answers = tokio::spawn(async move {
            for size in SIZES {
                let (_, answer) = calls.recv().await.expect("a request");
                let body = http_body_util::Full::new(data(size)).map_err(|never| match never {}).boxed_unsync();
                let _ = answer.send(Response::new(body));
            }
        });
        for (number, size) in (0..).zip(SIZES) {
            raw.post(number * 2 + 1, true).await;
            let mut got = Vec::new();
            loop {
                let part = raw.until(Kind::Data).await;
                got.extend_from_slice(&part.payload);
                if part.flags & END == END {
                    break;
                }
            }
            assert!(got == data(size), "{} of {size} bytes, {room} at a time", got.len());
        }
        answers.await.expect("no panic");
        raw.frame(7, 0, 0, &[0; 8]).await;
        assert!(raw.next().await.is_none(), "nothing but the end");
        assert!(raw.read == Buffering::GOODBYE, "{:?}", raw.read);
        assert!(task.await.expect("no panic").is_ok());
    }
}

#[tokio::test]
async fn what_a_stream_could_not_send_when_it_was_written_leaves_although_nothing_follows() {
    let (client, mut calls, _task) = over(500, Delaying::over);
    let mut raw = Raw::greet(client).await;
    raw.post(1, true).await;
    let (_, answer) = calls.recv().await.expect("a request");
    let (data, sent) = mpsc::channel(1);
    let frames = ReceiverStream::new(sent).map(|data: Bytes| Ok(http_body::Frame::data(data)));
    let _ = answer.send(Response::new(http_body_util::StreamBody::new(frames).boxed_unsync()));
    for part in [b"one", b"two"] {
        data.send(Bytes::from_static(part)).await.expect("the stream is open");
        assert_eq!(raw.until(Kind::Data).await.payload[..], part[..]);
    }
}

#[tokio::test]
async fn the_last_words_leave_and_the_stream_is_shut_down_however_slowly_it_takes_them() {
    for room in [7, 500] {
        let (mut client, _call, task) = buffering(room);
        // The client starts to read when shutting down is all that the server has left to do.
        let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        frame::put_head(&mut out, 0, 4, 0, 0);
        frame::put_head(&mut out, 1, 0, 0, 0);
        out.push(0);
        client.write_all(&out).await.expect("sent");
        let mut said = Vec::new();
        let rest = tokio::time::timeout(Duration::from_secs(20), client.read_to_end(&mut said));
        rest.await.expect("it ends").expect("everything that the server sent");
        let frames = said.strip_suffix(Buffering::GOODBYE).expect("the stream was shut down");
        let mut raw = Raw { io: tokio::io::duplex(1).0, read: BytesMut::from(frames) };
        assert_eq!(raw.until(Kind::GoAway).await.reason(), Reason::PROTOCOL_ERROR);
        assert!(matches!(task.await.expect("no panic"), Err(Ended::Protocol(Reason::PROTOCOL_ERROR))));
    }
}
