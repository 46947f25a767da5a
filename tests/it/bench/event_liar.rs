//! [`EventLiar`]: a server that passes `GET /v1/watch` on to a relay's HTTP port and falsifies one event.
//!
//! It is what [`super::liar::Liar`] is for gRPC. Always holds: it falsifies only the tenth event, or watches that begin
//! at a revision.

use etcd_relay::bench::http::{Head, HttpError};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

use super::liar::{LIED_ABOUT, Lie};

/// A running one.
#[derive(Debug)]
pub struct EventLiar {
    endpoint: String,
    task: JoinHandle<()>,
}

/// What it does to the events of a connection.
struct Teller {
    lie: Lie,
    seen: usize,
    held: Option<String>,
}

impl EventLiar {
    /// A server that passes on the answers of this address.
    pub async fn over(upstream: &str, lie: Lie) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let upstream = upstream.to_owned();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(pass_on(client, upstream.clone(), lie));
            }
        });
        Self { endpoint, task }
    }

    /// Its URL.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

impl Drop for EventLiar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes a connection on until one of its sides ends it.
async fn pass_on(mut client: TcpStream, upstream: String, lie: Lie) -> Result<(), HttpError> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") && client.read_buf(&mut request).await? > 0 {}
    let mut request = String::from_utf8(request).expect("a request is text");
    if lie == Lie::Late
        && let Some((_, after)) = request.split_once("&since=")
    {
        let since: i64 = after.split(' ').next().and_then(|since| since.parse().ok()).expect("a revision");
        request = request.replacen(&format!("&since={since}"), &format!("&since={}", since + 1), 1);
    }
    let mut server = TcpStream::connect(upstream).await?;
    server.write_all(request.as_bytes()).await?;
    let mut received = Vec::new();
    let (length, Head { status, mut framing }) = loop {
        if server.read_buf(&mut received).await? == 0 {
            return Ok(());
        }
        if let Some(head) = Head::parse(&received)? {
            break head;
        }
    };
    assert_eq!(status, 200, "the relay opens the stream");
    received.drain(..length);
    client.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await?;
    let mut teller = Teller { lie, seen: 0, held: None };
    let mut text = Vec::new();
    loop {
        framing.decode(&received, |part| {
            text.extend_from_slice(part);
            Ok::<_, HttpError>(())
        })?;
        while let Some(end) = text.windows(2).position(|two| two == b"\n\n") {
            let block: Vec<u8> = text.drain(..end + 2).collect();
            let Some(told) = teller.tell(String::from_utf8(block).expect("events are text")) else { return Ok(()) };
            client.write_all(told.as_bytes()).await?;
        }
        received.clear();
        if server.read_buf(&mut received).await? == 0 {
            return Ok(());
        }
    }
}

impl Teller {
    /// What to send for a block; `None` to close the connection.
    fn tell(&mut self, block: String) -> Option<String> {
        if !block.starts_with("event: put\n") {
            return Some(block);
        }
        self.seen += 1;
        if self.seen != LIED_ABOUT {
            return Some(block + &self.held.take().unwrap_or_default());
        }
        let (event, id) = block.trim_end().rsplit_once("\nid: ").expect("an id after the event");
        Some(match self.lie {
            Lie::None | Lie::Late | Lie::LeaveOut => block,
            Lie::Forget => String::new(),
            Lie::Repeat => block.repeat(2),
            Lie::Swap => {
                self.held = Some(block);
                String::new()
            }
            Lie::Alter => block.replacen("\"value\":\"", "\"value\":\"+", 1),
            Lie::Cancel => "event: compacted\ndata: {\"compact_revision\":7,\"message\":\"gone\"}\n\n".to_owned(),
            Lie::WrongId => format!("{event}\nid: {}\n\n", id.parse::<i64>().expect("a revision") + 1),
            Lie::NoId => format!("{event}\n\n"),
            Lie::End => return None,
        })
    }
}
