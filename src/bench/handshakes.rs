//! `bench handshakes`: the time that many simultaneous TLS handshakes take on this machine with a server that does
//! nothing else, using rustls alone.
//!
//! This is the comparison for a storm of clients on a server; see `watch::storm`. Server and clients present the same
//! certificate, and each requires the other's. Always holds: a handshake counts as done when the client has read a byte
//! from the server, because with TLS 1.3 the server checks the client's certificate last.

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket},
    runtime::{Builder, Runtime},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::{
    BenchError, Endpoint, background,
    link::{self, LinkError},
    progress::Progress,
    report::{self, Findings, Report},
};
use crate::tls::{self, Speaks};

/// Connections that wait to be accepted. All of them may arrive before the first is accepted.
const BACKLOG: u32 = 4096;

/// The load of handshakes.
#[derive(Clone, Debug)]
pub struct Handshakes {
    /// Number of simultaneous handshakes.
    pub connections: u64,
    /// The server's certificate, and the authority for the clients' certificates.
    pub server: tls::Server,
    /// The clients' certificate, and the authority for the server's certificate.
    pub client: tls::Client,
    /// How long they may take.
    pub patience: Duration,
}

/// What the clients saw.
struct Came {
    joins: Histogram<u64>,
    findings: Findings,
    elapsed: Duration,
}

impl Handshakes {
    pub(super) fn run(&self) -> Result<Report, BenchError> {
        let server =
            Builder::new_multi_thread().enable_all().thread_name("server").build().map_err(BenchError::Thread)?;
        let addr = self.serve(&server).map_err(LinkError::Io)?;
        let endpoint: Endpoint = format!("https://{addr}").parse().map_err(BenchError::Refused)?;
        let endpoint = endpoint.with(Some(&self.client));
        let progress = Progress::new();
        progress.stage("handshakes", Some(self.connections));
        let done = Arc::new(AtomicU64::new(0));
        let (connections, patience, counted) = (self.connections, self.patience, done.clone());
        let clients = background::run("clients", move || come(endpoint, connections, patience, counted));
        let clients = clients.map_err(BenchError::Thread)?;
        while !clients.is_finished() {
            progress.at(done.load(Ordering::Relaxed));
            super::pause(super::progress::TICK / 4);
        }
        let came = clients.join().map_err(|_| BenchError::Lost)??;
        server.shutdown_background();

        let mut report = Report::new("handshakes");
        report.setting("connections", self.connections);
        report.count("joins", came.joins.len());
        report.figure("joining_seconds", came.elapsed.as_secs_f64());
        report.figure("handshakes_per_second", came.joins.len() as f64 / came.elapsed.as_secs_f64().max(1e-9));
        report.quantiles("join", &came.joins);
        report.wrong(came.findings);
        Ok(report)
    }

    /// Accepts handshakes until the runtime ends.
    fn serve(&self, runtime: &Runtime) -> io::Result<SocketAddr> {
        let _context = runtime.enter();
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let listener = socket.listen(BACKLOG)?;
        let addr = listener.local_addr()?;
        runtime.spawn(accept(listener, self.server.acceptor()));
        Ok(addr)
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor) {
    let mut open = JoinSet::new();
    // An error of accept shows at the clients.
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        open.spawn(async move {
            stream.set_nodelay(true)?;
            let mut stream = acceptor.accept(stream).await?;
            stream.write_all(&[0]).await?;
            stream.flush().await?;
            // Until the client closes.
            stream.read_u8().await
        });
    }
}

/// Runs all clients at once.
async fn come(
    endpoint: Endpoint,
    connections: u64,
    patience: Duration,
    done: Arc<AtomicU64>,
) -> Result<Came, BenchError> {
    let begun = Instant::now();
    let joins = Rc::new(RefCell::new(report::histogram()));
    let mut clients = JoinSet::new();
    for _ in 0..connections {
        let (endpoint, joins, done) = (endpoint.clone(), joins.clone(), done.clone());
        clients.spawn_local(background::giving_way(async move {
            let mut socket = link::connect(&endpoint, Speaks::Http2).await?;
            socket.read_u8().await?;
            report::note(&mut joins.borrow_mut(), u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX));
            done.fetch_add(1, Ordering::Relaxed);
            Ok::<_, LinkError>(socket)
        }));
    }
    let mut findings = Findings::default();
    let mut open = Vec::new();
    let all = async {
        while let Some(client) = clients.join_next().await {
            match client {
                Ok(Ok(socket)) => open.push(socket),
                Ok(Err(error)) => findings.add(error),
                Err(error) => findings.add(error),
            }
        }
    };
    if tokio::time::timeout(patience, all).await.is_err() {
        findings.add(format_args!("not all handshakes were done after {}", humantime::format_duration(patience)));
    }
    let elapsed = begun.elapsed();
    let joins = joins.borrow().clone();
    Ok(Came { joins, findings, elapsed })
}
