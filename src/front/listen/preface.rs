//! Reads the first bytes of a connection to distinguish HTTP/2, HTTP/1.1 and TLS, and puts them back.
//!
//! Always holds: no byte is lost, and at most the length of HTTP/2's preface is read here.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::{
    mistaken,
    socket::{FIRST, Socket, Terms},
};

/// What every HTTP/2 client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8; FIRST] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The protocol of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
    /// TLS, on a port without it.
    Tls,
}

/// Reads until the protocol is known. `None` if the peer closes before that.
pub(super) async fn open<T>(mut stream: T, terms: Terms) -> io::Result<Option<(Protocol, Socket<T>)>>
where
    T: AsyncRead + Unpin,
{
    let mut first = [0; FIRST];
    let mut filled = 0;
    let protocol = loop {
        let count = stream.read(&mut first[filled..]).await?;
        if count == 0 {
            return Ok(None);
        }
        filled += count;
        if first[0] == mistaken::TLS {
            break Protocol::Tls;
        }
        if first[..filled] != PREFACE[..filled] {
            break Protocol::Http1;
        }
        if filled == FIRST {
            break Protocol::Http2;
        }
    };
    Ok(Some((protocol, Socket::new(stream, first, filled, terms))))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::{front::listen::PortConfig, telemetry::names::Port};

    async fn opened(pieces: &[&[u8]]) -> Option<(Protocol, Vec<u8>)> {
        let (mut client, server) = tokio::io::duplex(8);
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let terms = Terms { port: Port::Http, peer, write_stall: PortConfig::WRITE_STALL };
        let send = async move {
            for piece in pieces {
                client.write_all(piece).await.expect("sent");
                tokio::task::yield_now().await;
            }
        };
        let receive = async move {
            let (protocol, mut stream) = open(server, terms).await.expect("no error")?;
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await.expect("all bytes");
            Some((protocol, bytes))
        };
        tokio::join!(send, receive).1
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
        assert_eq!(opened(&[b"\x16\x03\x01"]).await, Some((Protocol::Tls, b"\x16\x03\x01".to_vec())));
        assert_eq!(opened(&[b"PRI *"]).await, None);
    }
}
