//! Answers a client that does not use TLS on a port with TLS, or the reverse.
//!
//! Always holds: bytes and time per client are bounded. What it sends meanwhile is read and dropped, because closing a
//! connection with unread bytes resets it and loses the answer.

use std::time::Duration;

use h2::Reason;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

/// The answer to a client without TLS on a port with TLS.
pub(super) const WANTS_TLS: &str = "This port of etcd-relay uses TLS: use https://, and --cacert with etcdctl\n";
/// The answer to a client with TLS on a port without it. Clients report it as a bad TLS record that looks like HTTP.
pub(super) const WANTS_NO_TLS: &str = "This port of etcd-relay does not use TLS: use http://\n";

/// The first byte from a client with TLS: the content type of a handshake.
pub(super) const TLS: u8 = 22;

/// How long a client may continue, and how many bytes it may send.
const TIME: Duration = Duration::from_secs(2);
const MOST: u64 = 64 << 10;

/// Answers a client in the protocol of its first bytes, and closes the connection.
pub(super) async fn answer<T>(mut stream: T, text: &str)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let answered = timeout(TIME, async {
        let mut begun = [0; 2];
        stream.read_exact(&mut begun).await?;
        // No usual method of HTTP/1.1 begins like the preface of HTTP/2.
        let bytes = if begun == *b"PR" { over_http2(text) } else { over_http1(text) };
        stream.write_all(&bytes).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(MOST), &mut tokio::io::sink()).await
    });
    // A client that leaves without the answer does not need it.
    if let Ok(Err(error)) = answered.await {
        tracing::debug!(%error, "A client with the wrong protocol did not take its answer");
    }
}

fn over_http1(text: &str) -> Vec<u8> {
    let head =
        "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: ";
    format!("{head}{}\r\n\r\n{text}", text.len()).into_bytes()
}

/// Empty settings, and a GOAWAY with the reason.
fn over_http2(text: &str) -> Vec<u8> {
    let mut frames = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    let len = 8 + text.len() as u32;
    frames.extend_from_slice(&len.to_be_bytes()[1..]);
    frames.extend_from_slice(&[7, 0, 0, 0, 0, 0]);
    frames.extend_from_slice(&0_u32.to_be_bytes());
    frames.extend_from_slice(&u32::from(Reason::INADEQUATE_SECURITY).to_be_bytes());
    frames.extend_from_slice(text.as_bytes());
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(sent: &[u8]) -> Vec<u8> {
        let (mut client, server) = tokio::io::duplex(1024);
        client.write_all(sent).await.expect("sent");
        client.shutdown().await.expect("closed");
        let mut told = Vec::new();
        let ((), read) = tokio::join!(answer(server, WANTS_TLS), client.read_to_end(&mut told));
        read.expect("all");
        told
    }

    #[tokio::test]
    async fn each_protocol_gets_the_answer_that_its_clients_show() {
        for request in ["GET / HTTP/1.1\r\nhost: a\r\n\r\n", "POST / HTTP/1.1\r\n\r\n"] {
            let text = String::from_utf8(told(request.as_bytes()).await).expect("text");
            assert!(text.starts_with("HTTP/1.1 400 ") && text.ends_with(WANTS_TLS), "{text}");
        }
        let bytes = told(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        let (settings, goaway) = bytes.split_at(9);
        assert_eq!(settings[3], 4, "the first frame has settings");
        assert_eq!((goaway[3], usize::from(goaway[2])), (7, goaway.len() - 9), "then a GOAWAY of this length");
        assert!(goaway.ends_with(WANTS_TLS.as_bytes()));
    }
}
