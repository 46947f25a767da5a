//! Reads the first bytes of a connection to tell HTTP/2 from HTTP/1.1, and gives them back.
//!
//! Always holds: no byte is lost; at most the length of HTTP/2's preface is read here.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// What each HTTP/2 client says first (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Which protocol a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// A connection of which the first bytes were read, and come first when read again.
#[derive(Debug)]
pub(super) struct Opened {
    stream: TcpStream,
    first: [u8; PREFACE.len()],
    given: usize,
    filled: usize,
}

/// Reads until the protocol is known. `None` where the peer closes before that.
pub(super) async fn open(mut stream: TcpStream) -> io::Result<Option<(Protocol, Opened)>> {
    let mut first = [0; PREFACE.len()];
    let mut filled = 0;
    let protocol = loop {
        let count = stream.read(&mut first[filled..]).await?;
        if count == 0 {
            return Ok(None);
        }
        filled += count;
        if first[..filled] != PREFACE[..filled] {
            break Protocol::Http1;
        }
        if filled == PREFACE.len() {
            break Protocol::Http2;
        }
    };
    Ok(Some((protocol, Opened { stream, first, given: 0, filled })))
}

impl AsyncRead for Opened {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.given < self.filled {
            let count = buf.remaining().min(self.filled - self.given);
            buf.put_slice(&self.first[self.given..self.given + count]);
            self.given += count;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Opened {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    use super::*;

    async fn opened(pieces: &[&[u8]]) -> Option<(Protocol, Vec<u8>)> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let (client, server) = tokio::join!(TcpStream::connect(addr), listener.accept());
        let (mut client, server) = (client.expect("connected"), server.expect("accepted").0);
        client.set_nodelay(true).expect("nodelay");
        let send = async move {
            for piece in pieces {
                client.write_all(piece).await.expect("sent");
                tokio::task::yield_now().await;
            }
        };
        let ((), opened) = tokio::join!(send, open(server));
        let (protocol, mut stream) = opened.expect("no error")?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.expect("all bytes");
        Some((protocol, bytes))
    }

    #[tokio::test]
    async fn tells_the_protocol_and_gives_every_byte_back() {
        assert_eq!(
            opened(&[b"PRI * HT", b"TP/2.0\r\n\r\nSM\r\n\r\n", b"rest"]).await,
            Some((Protocol::Http2, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nrest".to_vec()))
        );
        assert_eq!(
            opened(&[b"P", b"OST / HTTP/1.1\r\n\r\n"]).await,
            Some((Protocol::Http1, b"POST / HTTP/1.1\r\n\r\n".to_vec()))
        );
        assert_eq!(opened(&[b"PRI *"]).await, None);
    }
}
