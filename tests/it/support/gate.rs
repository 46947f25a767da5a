//! [`Gate`]: a TCP forwarder between two servers. A test can close it, slow it down, redirect it, or hold it: in both
//! directions or one, or only for connections that have carried certain bytes.
//!
//! It never damages bytes. Always holds: its own address never changes, so the server behind it can be killed,
//! restarted or replaced while the client knows a single endpoint.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// What the gate does with connections.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Mode {
    /// Forwards.
    Open,
    /// Accepts connections and keeps existing ones, but passes no bytes.
    Held,
    /// The same for one direction: to the client (`down`) or to the server.
    HeldOneWay { down: bool },
    /// Closes existing connections, and every new one at once.
    Shut,
}

#[derive(Clone, Debug)]
struct State {
    mode: Mode,
    target: String,
    /// Increases when every existing connection must be closed.
    generation: u64,
    /// After these bytes came from the server on a connection, nothing more passes from there on it.
    mark: Option<Vec<u8>>,
    /// How long each piece of data is delayed.
    delay: Duration,
}

/// A running gate.
#[derive(Debug)]
pub struct Gate {
    addr: SocketAddr,
    state: Arc<watch::Sender<State>>,
    accepting: JoinHandle<()>,
}

impl Gate {
    /// An open gate in front of `endpoint` (a URL).
    pub async fn before(endpoint: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind a gate");
        let addr = listener.local_addr().expect("a bound address");
        let state =
            State { mode: Mode::Open, target: host_port(endpoint), generation: 0, mark: None, delay: Duration::ZERO };
        let state = Arc::new(watch::Sender::new(state));
        let accepting = tokio::spawn(accept(listener, Arc::clone(&state)));
        Self { addr, state, accepting }
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Lets everything pass.
    pub fn open(&self) {
        self.state.send_modify(|state| state.mode = Mode::Open);
    }

    /// Holds everything silently, like an unplugged cable.
    pub fn hold(&self) {
        self.state.send_modify(|state| state.mode = Mode::Held);
    }

    /// Holds everything from the client to the server; answers to earlier requests still pass.
    pub fn hold_requests(&self) {
        self.state.send_modify(|state| state.mode = Mode::HeldOneWay { down: false });
    }

    /// Holds everything from the server to the client; requests are still handled.
    pub fn hold_answers(&self) {
        self.state.send_modify(|state| state.mode = Mode::HeldOneWay { down: true });
    }

    /// Delays each piece of data in both directions.
    pub fn delay(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }

    /// Closes all connections, and each new one at once, like an unavailable server.
    pub fn shut(&self) {
        self.state.send_modify(|state| {
            state.mode = Mode::Shut;
            state.generation += 1;
        });
    }

    /// Closes all existing connections; new ones pass.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.generation += 1);
    }

    /// From now on, holds data to clients on connections on which these bytes have come in one piece.
    pub fn hold_carriers_of(&self, mark: &[u8]) {
        self.state.send_modify(|state| state.mark = Some(mark.to_vec()));
    }

    /// Ends that, and lets what was held pass.
    pub fn release_carriers(&self) {
        self.state.send_modify(|state| state.mark = None);
    }

    /// Redirects new connections to another endpoint.
    pub fn point_at(&self, endpoint: &str) {
        self.state.send_modify(|state| state.target = host_port(endpoint));
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.accepting.abort();
        self.shut();
    }
}

async fn accept(listener: TcpListener, state: Arc<watch::Sender<State>>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let state = state.subscribe();
        if state.borrow().mode != Mode::Shut {
            tokio::spawn(forward(stream, state));
        }
    }
}

/// Forwards one connection in both directions until either end or the gate closes it.
async fn forward(client: TcpStream, mut state: watch::Receiver<State>) {
    let generation = state.borrow().generation;
    let (mut ended, (upward, downward)) = (state.clone(), (state.clone(), state.clone()));
    let carried = async {
        state.wait_for(|state| state.mode != Mode::Held).await.ok()?;
        let target = state.borrow().target.clone();
        let server = TcpStream::connect(target).await.ok()?;
        let _not_needed = (client.set_nodelay(true), server.set_nodelay(true));
        let (mut client_read, mut client_write) = client.into_split();
        let (mut server_read, mut server_write) = server.into_split();
        tokio::join!(
            copy(&mut client_read, &mut server_write, upward, false),
            copy(&mut server_read, &mut client_write, downward, true),
        );
        Some(())
    };
    tokio::select! {
        _ = carried => {}
        _ = ended.wait_for(|state| state.generation != generation) => {}
    }
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    mut state: watch::Receiver<State>,
    down: bool,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(read) => read,
        };
        let marked = state
            .borrow()
            .mark
            .as_ref()
            .is_some_and(|mark| down && buffer[..read].windows(mark.len()).any(|window| window == mark.as_slice()));
        let delay = state.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if pass_point(&mut state, down).await.is_none() || to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
        if marked {
            let _ends_with_the_gate = state.wait_for(|state| state.mark.is_none()).await;
        }
    }
    // The other side may already be gone.
    let _told = to.shutdown().await;
}

/// Waits while this direction is held.
async fn pass_point(state: &mut watch::Receiver<State>, down: bool) -> Option<()> {
    let held = |state: &State| state.mode == Mode::Held || state.mode == Mode::HeldOneWay { down };
    state.wait_for(|state| !held(state)).await.ok().map(|_| ())
}

fn host_port(endpoint: &str) -> String {
    endpoint.trim_start_matches("http://").to_owned()
}
