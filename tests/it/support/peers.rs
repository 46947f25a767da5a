//! [`Peers`]: what is between the members of a cluster: forwarders before each member's peer port, which can cut one off from the others, both
//! ways or one way, part two members, starve one, and slow all down.
//!
//! Not here: what is between members and clients, see `gate`. A connection tells who opened it and what for in its first request
//! (`X-Server-From`, the path). Always holds: each member is reached by the others through its forwarder alone.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// What happens between the members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// Nothing passes between this member and the others, and nobody is told.
    CutOff(usize),
    /// This member hears from its leader, and gets no entries.
    Starved(usize),
    /// Nothing that this member says reaches the others.
    Mute(usize),
    /// Nothing that the others say reaches this member.
    Deaf(usize),
    /// Nothing passes between these two, and each is in touch with the third.
    Parted(usize, usize),
    /// Everything comes later by this.
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
    /// Forwarders for so many members.
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

    /// Where the members listen for each other.
    pub fn lead_to(&self, ports: Vec<u16>) {
        *self.shared.targets.lock() = ports;
    }

    /// Who the members are.
    pub fn know(&self, ids: Vec<u64>) {
        *self.shared.ids.lock() = ids;
    }

    /// From now on.
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
    /// Whether what goes this way on the connection is stopped: back to who opened it (`down`), or from there.
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
            // Entries come on a stream that the member itself opens, or in requests of the leader; heartbeats on another stream.
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
    // The other side may have gone first; then there is nobody to tell.
    let _told = to.shutdown().await;
}

/// Waits while the fault stops what goes this way.
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
