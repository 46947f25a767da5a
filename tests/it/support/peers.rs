//! [`Peers`]: forwarders in front of each member's peer port. They can cut off a member in both directions or one,
//! separate two members, starve one, and slow down all.
//!
//! Connections between members and clients are in `gate`. The first request of a connection shows who opened it and why
//! (`X-Server-From`, the path). Always holds: the other members reach a member only through its forwarder.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// The fault between the members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// Nothing passes between this member and the others, silently.
    CutOff(usize),
    /// This member hears its leader but gets no entries.
    Starved(usize),
    /// The others hear nothing from this member.
    Mute(usize),
    /// This member hears nothing from the others.
    Deaf(usize),
    /// Nothing passes between these two, but both reach the third.
    Parted(usize, usize),
    /// Everything is delayed by this time.
    Late(Duration),
}

/// The forwarders.
#[derive(Debug)]
pub struct Peers {
    addrs: Vec<SocketAddr>,
    shared: Arc<Shared>,
    accepting: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// The peer ports, once they are known.
    targets: Mutex<Vec<u16>>,
    /// The ids of the members, once they are known.
    ids: Mutex<Vec<u64>>,
    fault: watch::Sender<Fault>,
}

/// One connection.
#[derive(Clone, Debug)]
struct Line {
    from: Option<u64>,
    path: String,
    to: usize,
}

impl Peers {
    /// Creates forwarders for `size` members.
    pub async fn new(size: usize) -> Self {
        let shared = Arc::new(Shared {
            targets: Mutex::default(),
            ids: Mutex::default(),
            fault: watch::Sender::new(Fault::None),
        });
        let (mut addrs, mut accepting) = (Vec::new(), Vec::new());
        for to in 0..size {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind a forwarder");
            addrs.push(listener.local_addr().expect("a bound address"));
            accepting.push(tokio::spawn(accept(listener, to, shared.clone())));
        }
        Self { addrs, shared, accepting }
    }

    /// The URL at which the others reach a member.
    pub fn url(&self, member: usize) -> String {
        format!("http://{}", self.addrs[member])
    }

    /// Sets the ports on which the members listen for each other.
    pub fn lead_to(&self, ports: Vec<u16>) {
        *self.shared.targets.lock() = ports;
    }

    /// Sets the ids of the members.
    pub fn know(&self, ids: Vec<u64>) {
        *self.shared.ids.lock() = ids;
    }

    /// Sets the fault.
    pub fn set(&self, fault: Fault) {
        self.shared.fault.send_replace(fault);
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.accepting.iter().for_each(JoinHandle::abort);
    }
}

impl Shared {
    /// Whether this direction of the connection is stopped: towards the side that opened it (`down`), or away from it.
    fn stops(&self, fault: Fault, line: &Line, down: bool) -> bool {
        let ids = self.ids.lock();
        let from = |member: usize| line.from.is_some() && line.from == ids.get(member).copied();
        let says = |member: usize| if down { line.to == member } else { from(member) };
        let hears = |member: usize| if down { from(member) } else { line.to == member };
        match fault {
            Fault::None | Fault::Late(_) => false,
            Fault::CutOff(member) => line.to == member || from(member),
            Fault::Mute(member) => says(member),
            Fault::Deaf(member) => hears(member),
            Fault::Parted(one, other) => says(one) && hears(other) || says(other) && hears(one),
            // Entries come on a stream that the member itself opens, or in requests of the leader; heartbeats come on
            // another stream.
            Fault::Starved(member) => {
                from(member) && line.path.starts_with("/raft/stream/msgapp")
                    || line.to == member && !line.path.starts_with("/raft/stream/")
            }
        }
    }
}

async fn accept(listener: TcpListener, to: usize, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(carry(stream, to, shared.clone()));
    }
}

async fn carry(mut client: TcpStream, to: usize, shared: Arc<Shared>) -> Option<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if client.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let path = text.split(' ').nth(1)?.to_owned();
    let from = text.lines().find_map(|line| line.strip_prefix("X-Server-From: "));
    let from = from.and_then(|id| u64::from_str_radix(id.trim(), 16).ok());
    let line = Line { from, path, to };
    let port = *shared.targets.lock().get(to)?;
    let mut server = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    pass(&shared, &line, false).await;
    server.write_all(&head).await.ok()?;
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    tokio::join!(
        copy(client_read, server_write, &shared, &line, false),
        copy(server_read, client_write, &shared, &line, true)
    );
    Some(())
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    shared: &Shared,
    line: &Line,
    down: bool,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(read) => read,
        };
        pass(shared, line, down).await;
        if to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
    // The other side may already be gone.
    let _told = to.shutdown().await;
}

/// Waits while the fault stops this direction.
async fn pass(shared: &Shared, line: &Line, down: bool) {
    let mut fault = shared.fault.subscribe();
    let late = match *fault.borrow() {
        Fault::Late(delay) => Some(delay),
        _ => None,
    };
    if let Some(delay) = late {
        tokio::time::sleep(delay).await;
    }
    // The sender lives as long as `shared`.
    let _ = fault.wait_for(|fault| !shared.stops(*fault, line, down)).await;
}
