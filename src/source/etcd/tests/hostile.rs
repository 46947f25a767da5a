//! Members that speak HTTP/2 badly, or stop at the worst time: a question ends within its time, another member answers
//! it if there is one, and nothing that such a member says counts as an answer.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::source::testing::endpoint;

/// What a member does on each connection.
#[derive(Clone, Copy)]
struct Script {
    name: &'static str,
    /// What it sends at once.
    greeting: fn() -> Vec<u8>,
    /// What it sends when the head of a call has come; the call's stream is given.
    reply: fn(u32) -> Vec<u8>,
    then: Then,
    relay: Relay,
}

/// How the relay learns that it gets no answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Relay {
    /// By what the member does.
    Ends,
    /// By the time that passes.
    Waits,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It reads whatever comes.
    Reads,
    Closes,
    /// It has not even read the call.
    NeverReads,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH: u8 = 5;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a length").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// SETTINGS with one setting.
fn setting(id: u8, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&[0, id][..], &value.to_be_bytes()].concat())
}

fn settings() -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[])
}

fn nothing(_: u32) -> Vec<u8> {
    Vec::new()
}

/// `:status 200`.
fn head(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &[0x88])
}

fn trailers(stream: u32, status: &[u8]) -> Vec<u8> {
    let fields = [&b"\x00\x0bgrpc-status"[..], &[status.len() as u8], status].concat();
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &fields)
}

/// Trailers without anything before them.
fn trailers_only(stream: u32, status: &[u8]) -> Vec<u8> {
    let fields = [&b"\x88\x00\x0bgrpc-status"[..], &[status.len() as u8], status].concat();
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &fields)
}

/// The message that a good member would send.
fn message() -> Vec<u8> {
    let Reply::Message(message) = header_from(1) else { return Vec::new() };
    message.to_vec()
}

/// A whole answer, but for the prefix of its message.
fn answer_with_prefix(stream: u32, prefix: [u8; 5]) -> Vec<u8> {
    let data = [&prefix[..], &message()[5..]].concat();
    [head(stream), frame(DATA, 0, stream, &data), trailers(stream, b"0")].concat()
}

const SCRIPTS: &[Script] = &[
    Script { name: "it says nothing", greeting: Vec::new, reply: nothing, then: Then::Reads, relay: Relay::Waits },
    Script { name: "it never reads", greeting: Vec::new, reply: nothing, then: Then::NeverReads, relay: Relay::Waits },
    Script {
        name: "it greets and never reads",
        greeting: settings,
        reply: nothing,
        then: Then::NeverReads,
        relay: Relay::Waits,
    },
    Script {
        name: "it greets and freezes",
        greeting: settings,
        reply: nothing,
        then: Then::Reads,
        relay: Relay::Waits,
    },
    Script { name: "it greets and closes", greeting: settings, reply: nothing, then: Then::Closes, relay: Relay::Ends },
    Script {
        name: "it speaks HTTP/1.1",
        greeting: || b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        reply: nothing,
        then: Then::Reads,
        relay: Relay::Ends,
    },
    Script {
        name: "a ping before its settings",
        greeting: || frame(PING, 0, 0, &[0; 8]),
        reply: nothing,
        then: Then::Reads,
        relay: Relay::Ends,
    },
    Script { name: "garbage", greeting: settings, reply: |_| vec![0xff; 1_000], then: Then::Reads, relay: Relay::Ends },
    Script { name: "no calls", greeting: || setting(3, 0), reply: nothing, then: Then::Reads, relay: Relay::Waits },
    Script {
        name: "no more calls",
        greeting: settings,
        reply: |_| setting(3, 0),
        then: Then::Reads,
        relay: Relay::Waits,
    },
    Script { name: "no window", greeting: || setting(4, 0), reply: nothing, then: Then::Reads, relay: Relay::Waits },
    Script {
        name: "a window that becomes negative",
        greeting: || setting(4, 10),
        reply: |_| setting(4, 0),
        then: Then::Reads,
        relay: Relay::Waits,
    },
    Script {
        name: "a window beyond the largest",
        greeting: settings,
        reply: |_| frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()),
        then: Then::Reads,
        relay: Relay::Ends,
    },
    Script { name: "the head and no more", greeting: settings, reply: head, then: Then::Reads, relay: Relay::Waits },
    Script {
        name: "the head and the end of the connection",
        greeting: settings,
        reply: head,
        then: Then::Closes,
        relay: Relay::Ends,
    },
    Script {
        name: "a giant head",
        greeting: settings,
        reply: |stream| {
            let mut all = frame(HEADERS, 0, stream, &[0x88]);
            (0..1_100).for_each(|_| all.extend(frame(CONTINUATION, 0, stream, &[0; 16_000])));
            all
        },
        then: Then::Reads,
        relay: Relay::Ends,
    },
    Script {
        name: "a head that never ends",
        greeting: settings,
        reply: |stream| {
            let mut all = frame(HEADERS, 0, stream, &[0x88]);
            (0..10_000).for_each(|_| all.extend(frame(CONTINUATION, 0, stream, &[])));
            all
        },
        then: Then::Reads,
        relay: Relay::Ends,
    },
    Script {
        name: "data without a head",
        greeting: settings,
        reply: |stream| frame(DATA, END_STREAM, stream, &message()),
        then: Then::Reads,
        relay: Relay::Ends,
    },
    Script {
        name: "data without trailers",
        greeting: settings,
        reply: |stream| [head(stream), frame(DATA, END_STREAM, stream, &message())].concat(),
        then: Then::Reads,
        relay: Relay::Ends,
    },
    Script {
        name: "success without a message",
        greeting: settings,
        reply: |stream| trailers_only(stream, b"0"),
        then: Then::Reads,
        relay: Relay::Ends,
    },
    Script {
        name: "a refusal",
        greeting: settings,
        reply: |stream| trailers_only(stream, b"14"),
        then: Then::Reads,
        relay: Relay::Ends,
    },
    Script {
        name: "a refusal after a message",
        greeting: settings,
        reply: |stream| [head(stream), frame(DATA, 0, stream, &message()), trailers(stream, b"14")].concat(),
        then: Then::Reads,
        relay: Relay::Ends,
    },
    Script {
        name: "a status that is none",
        greeting: settings,
        reply: |stream| [head(stream), frame(DATA, 0, stream, &message()), trailers(stream, b"fine")].concat(),
        then: Then::Reads,
        relay: Relay::Ends,
    },
    Script {
        name: "a reset",
        greeting: settings,
        reply: |stream| frame(RESET, 0, stream, &2_u32.to_be_bytes()),
        then: Then::Reads,
        relay: Relay::Ends,
    },
    Script {
        name: "a reset after a message",
        greeting: settings,
        reply: |stream| {
            let reset = frame(RESET, 0, stream, &0_u32.to_be_bytes());
            [head(stream), frame(DATA, 0, stream, &message()), reset].concat()
        },
        then: Then::Reads,
        relay: Relay::Ends,
    },
    Script {
        name: "it leaves without an answer",
        greeting: settings,
        reply: |_| frame(GO_AWAY, 0, 0, &[0; 8]),
        then: Then::Reads,
        relay: Relay::Ends,
    },
    Script {
        name: "it leaves in the middle of an answer",
        greeting: settings,
        reply: |stream| {
            let leaves = [&stream.to_be_bytes()[..], &[0; 4]].concat();
            [head(stream), frame(DATA, 0, stream, &message()), frame(GO_AWAY, 0, 0, &leaves)].concat()
        },
        then: Then::Reads,
        relay: Relay::Waits,
    },
    Script {
        name: "two GiB are announced",
        greeting: settings,
        reply: |stream| answer_with_prefix(stream, [0, 0x7f, 0xff, 0xff, 0xff]),
        then: Then::Reads,
        relay: Relay::Ends,
    },
    Script {
        name: "nothing is announced",
        greeting: settings,
        reply: |stream| answer_with_prefix(stream, [0; 5]),
        then: Then::Reads,
        relay: Relay::Ends,
    },
    Script {
        name: "a compressed message",
        greeting: settings,
        reply: |stream| answer_with_prefix(stream, [1, 0, 0, 0, (message().len() - 5) as u8]),
        then: Then::Reads,
        relay: Relay::Ends,
    },
    Script {
        name: "more data than a message may have",
        greeting: settings,
        reply: |stream| {
            let mut all = head(stream);
            (0..100).for_each(|_| all.extend(frame(DATA, 0, stream, &[0; 16_000])));
            all
        },
        then: Then::Reads,
        relay: Relay::Ends,
    },
    Script {
        name: "frames of nothing",
        greeting: settings,
        reply: |stream| {
            let mut all = head(stream);
            (0..10_000).for_each(|_| all.extend(frame(DATA, 0, stream, &[])));
            all
        },
        then: Then::Reads,
        relay: Relay::Waits,
    },
    Script {
        name: "heads before the head",
        greeting: settings,
        reply: |stream| frame(HEADERS, END_HEADERS, stream, b"\x08\x03103").repeat(10_000),
        then: Then::Reads,
        relay: Relay::Waits,
    },
    Script {
        name: "pings that are never read",
        greeting: settings,
        reply: |_| frame(PING, 0, 0, &[0; 8]).repeat(100_000),
        then: Then::NeverReads,
        relay: Relay::Waits,
    },
    Script {
        name: "the answer to another call",
        greeting: settings,
        reply: |stream| [head(stream + 2), frame(DATA, 0, stream + 2, &message())].concat(),
        then: Then::Reads,
        relay: Relay::Ends,
    },
    Script {
        name: "a promise",
        greeting: settings,
        reply: |stream| frame(PUSH, END_HEADERS, stream, &[0, 0, 0, 2, 0x82]),
        then: Then::Reads,
        relay: Relay::Ends,
    },
];

async fn member(script: Script) -> Endpoint {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = endpoint(listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket, script));
        }
    });
    endpoint
}

/// The relay may close the connection at any time.
async fn serve(mut socket: TcpStream, script: Script) -> Option<()> {
    socket.write_all(&(script.greeting)()).await.ok()?;
    if script.then == Then::NeverReads {
        // The call comes at some time, and is not looked at.
        socket.write_all(&(script.reply)(1)).await.ok()?;
        std::future::pending::<()>().await;
    }
    socket.read_exact(&mut [0; 24]).await.ok()?;
    loop {
        let mut head = [0; 9];
        socket.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        socket.read_exact(&mut payload).await.ok()?;
        if head[3] == HEADERS {
            socket.write_all(&(script.reply)(u32::from_be_bytes([head[5], head[6], head[7], head[8]]))).await.ok()?;
            if script.then == Then::Closes {
                return Some(());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_to_a_hostile_member_ends_in_time_and_another_member_answers_it() {
    const SOON: Duration = Duration::from_millis(400);
    let good = super::member(|_| header_from(1)).await;
    let asked = SCRIPTS.iter().map(|script| {
        let good = good.endpoint.clone();
        async move {
            // What ends by itself must do so long before this.
            let patience = if script.relay == Relay::Waits { SOON } else { 2 * PATIENCE };
            let alone = upstream_at(vec![member(*script).await], None, patience);
            let began = std::time::Instant::now();
            for _ in 0..3 {
                let answer = alone.confirm(None).await;
                let is_late = matches!(answer, Err(UpstreamError::Timeout(_)));
                assert!(answer.is_err() && is_late == (script.relay == Relay::Waits), "{}: {answer:?}", script.name);
            }
            assert!(began.elapsed() < PATIENCE, "{}: {:?}", script.name, began.elapsed());
            let busy = alone.link(0).ask.pool.busy();
            assert!(busy.iter().all(|busy| *busy == 0), "{}: {busy:?} calls are left", script.name);
            let both = upstream_at(vec![member(*script).await, good], None, PATIENCE);
            let answer = tokio::time::timeout(PATIENCE, both.confirm(None)).await;
            assert_eq!(revision_of(answer.unwrap_or_else(|_| panic!("{}", script.name))), REVISION, "{}", script.name);
        }
    });
    futures_util::future::join_all(asked).await;
}
