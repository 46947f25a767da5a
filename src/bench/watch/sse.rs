//! [`EventStream`]: a connection with one `GET /v1/watch` over HTTP/1.1, and the blocks of text that come on it.
//!
//! Blocks are read in `block`; who connects, and when, is decided in `fleet`. Always holds: it reads into a buffer of
//! its thread and keeps only the part of a block whose end has not come, which is bounded.

use std::{
    io::BufRead as _,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead as _, AsyncWriteExt as _, ReadBuf};

use crate::{
    bench::{
        Endpoint,
        check::Wrong,
        http::{Framing, Head},
        link::{self, LinkError, READS, Socket},
    },
    tls::Speaks,
};

/// Largest head of an answer.
const HEAD_MOST: usize = 64 << 10;
/// Largest block; the largest value that the load writes needs a third of it, in base64.
const BLOCK_MOST: usize = 4 << 20;
/// Largest part of a refusal that is shown.
const REFUSAL_MOST: usize = 4 << 10;

/// One connection.
#[derive(Debug)]
pub(super) struct EventStream {
    socket: Socket,
    answer: Answer,
}

/// What comes on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said<'a> {
    /// The watch was created.
    Created,
    /// A block, without the empty line at its end.
    Block(&'a [u8]),
}

/// Receives what comes.
type On<'a> = &'a mut dyn FnMut(Said<'_>) -> Result<(), Wrong>;

/// How much of the answer has come.
#[derive(Debug)]
enum Answer {
    /// A part of its head.
    Head(Vec<u8>),
    Events(Framing, Splitter),
    /// The status and the text of an error.
    Refused(u16, Framing, Vec<u8>),
}

/// Divides a text into blocks.
#[derive(Debug, Default)]
struct Splitter {
    /// The part of a block whose end has not come.
    rest: Vec<u8>,
}

impl EventStream {
    /// Connects as one of many, and requests a path.
    pub(super) async fn open(endpoint: &Endpoint, number: u64, path: &str) -> Result<Self, Wrong> {
        let mut socket = link::connect_as(endpoint, Speaks::Http1, number).await?;
        let addr = endpoint.addr();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nAccept: text/event-stream\r\n\r\n");
        socket.write_all(request.as_bytes()).await.map_err(LinkError::Io)?;
        socket.flush().await.map_err(LinkError::Io)?;
        Ok(Self { socket, answer: Answer::Head(Vec::new()) })
    }

    /// Passes on what arrives. Ready only when the connection has ended.
    pub(super) fn poll(&mut self, context: &mut Context<'_>, buffer: &mut [u8], on: On<'_>) -> Poll<Wrong> {
        for _ in 0..READS {
            let mut read = ReadBuf::new(buffer);
            match ready!(Pin::new(&mut self.socket).poll_read(context, &mut read)) {
                Ok(()) if read.filled().is_empty() => return Poll::Ready(self.answer.closed()),
                Ok(()) => {}
                Err(error) => return Poll::Ready(LinkError::Io(error).into()),
            }
            if let Err(wrong) = self.answer.read(read.filled(), on) {
                return Poll::Ready(wrong);
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Answer {
    fn read(&mut self, bytes: &[u8], on: On<'_>) -> Result<(), Wrong> {
        match self {
            Self::Head(received) => {
                received.extend_from_slice(bytes);
                let Some((length, Head { status, framing })) = Head::parse(received)? else {
                    return if received.len() > HEAD_MOST { Err(too_large("a head", HEAD_MOST)) } else { Ok(()) };
                };
                let body = received.split_off(length);
                if status == 200 {
                    *self = Self::Events(framing, Splitter::default());
                    on(Said::Created)?;
                } else {
                    *self = Self::Refused(status, framing, Vec::new());
                }
                self.read(&body, on)
            }
            Self::Events(framing, splitter) => {
                let ended = framing.decode(bytes, |part| splitter.read(part, on))?;
                if ended { Err(self.closed()) } else { Ok(()) }
            }
            Self::Refused(_, framing, text) => {
                let ended = framing.decode(bytes, |part| {
                    text.extend_from_slice(part);
                    Ok::<_, Wrong>(())
                })?;
                if ended || text.len() > REFUSAL_MOST { Err(self.closed()) } else { Ok(()) }
            }
        }
    }

    /// What the end of the answer means.
    fn closed(&self) -> Wrong {
        match self {
            Self::Head(_) => LinkError::Closed.into(),
            Self::Events(..) => Wrong::Ended("the server ended the stream".to_owned()),
            Self::Refused(status, _, text) => {
                let text = &text[..text.len().min(REFUSAL_MOST)];
                Wrong::Ended(format!("status {status}: {}", String::from_utf8_lossy(text).trim_end()))
            }
        }
    }
}

impl Splitter {
    fn read(&mut self, part: &[u8], on: On<'_>) -> Result<(), Wrong> {
        // Most parts end together with a block, so that nothing is copied.
        if self.rest.is_empty() {
            self.rest = blocks(part, 0, on)?.to_vec();
        } else {
            let mut text = mem::take(&mut self.rest);
            // An empty line may be divided.
            let searched = text.len() - 1;
            text.extend_from_slice(part);
            let left = blocks(&text, searched, on)?.len();
            text.drain(..text.len() - left);
            if !text.is_empty() {
                self.rest = text;
            }
        }
        if self.rest.len() > BLOCK_MOST { Err(too_large("an event", BLOCK_MOST)) } else { Ok(()) }
    }
}

/// Passes on all blocks, none of which ends before `searched`. Returns what is left.
fn blocks<'a>(text: &'a [u8], searched: usize, on: On<'_>) -> Result<&'a [u8], Wrong> {
    let (mut begin, mut at) = (0, searched);
    loop {
        let line = (&text[at..]).skip_until(b'\n').unwrap_or_default();
        at += line;
        if line == 0 || text[at - 1] != b'\n' || at == text.len() {
            return Ok(&text[begin..]);
        }
        if text[at] == b'\n' {
            on(Said::Block(&text[begin..at - 1]))?;
            (begin, at) = (at + 1, at + 1);
        }
    }
}

fn too_large(what: &str, most: usize) -> Wrong {
    Wrong::Text(format!("{what} of more than {most} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n";

    /// What an answer says, received in parts of this size, and its end.
    fn said(answer: &[u8], size: usize) -> (Vec<String>, Option<Wrong>) {
        let mut said = Vec::new();
        let mut state = Answer::Head(Vec::new());
        let mut on = |what: Said<'_>| {
            said.push(match what {
                Said::Created => "created".to_owned(),
                Said::Block(text) => String::from_utf8_lossy(text).into_owned(),
            });
            Ok(())
        };
        let end = answer.chunks(size).find_map(|part| state.read(part, &mut on).err());
        (said, end)
    }

    #[test]
    fn blocks_come_out_however_the_bytes_are_divided() {
        let text = "retry: 1\n\nevent: put\ndata: {}\nid: 1\n\n: heartbeat\n\nid: 2\n\n";
        let chunks: String = ["retry: 1\n\nevent: put\ndata", ": {}\nid: 1\n", "\n: heartbeat\n\nid: 2\n\n"]
            .iter()
            .map(|part| format!("{:x}\r\n{part}\r\n", part.len()))
            .collect();
        for answer in [format!("{HEAD}\r\n{text}"), format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n{chunks}")] {
            for size in 1..=answer.len() {
                let (said, end) = said(answer.as_bytes(), size);
                let expected = ["created", "retry: 1", "event: put\ndata: {}\nid: 1", ": heartbeat", "id: 2"];
                assert_eq!((said.as_slice(), end), (&expected.map(str::to_owned)[..], None), "{size}");
            }
        }
    }

    #[test]
    fn a_refusal_and_an_end_are_told() {
        let refused = "HTTP/1.1 400 Bad Request\r\nContent-Length: 14\r\n\r\n{\"error\":\"no\"}";
        let told = Some(Wrong::Ended("status 400: {\"error\":\"no\"}".to_owned()));
        assert_eq!(said(refused.as_bytes(), 10), (Vec::new(), told));
        let ended = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n7\r\nid: 1\n\n\r\n0\r\n\r\n");
        let (said, end) = said(ended.as_bytes(), 64);
        assert_eq!(said, ["created", "id: 1"]);
        assert_eq!(end, Some(Wrong::Ended("the server ended the stream".to_owned())));
    }

    #[test]
    fn what_is_kept_of_a_stream_is_bounded() {
        let mut splitter = Splitter::default();
        let part = vec![b'x'; BLOCK_MOST / 8];
        let ends = (0..9).map(|_| splitter.read(&part, &mut |_| Ok(())).is_err());
        assert_eq!(ends.collect::<Vec<_>>(), [&[false; 8][..], &[true]].concat());
        let (said, end) = said(&vec![b'x'; HEAD_MOST + 1], 1 << 10);
        assert!(said.is_empty() && end.is_some_and(|wrong| wrong.to_string().contains("a head of more than")));
    }
}
