//! `etcd-relay bench`: puts load on a server of etcd's API or of Lainlet's views, checks every answer, and measures the
//! cost.
//!
//! The flags are in `cli::bench`. It is independent of the relay's internals, and measures etcd, etcd's grpc-proxy and
//! the relay alike. Always holds: it writes only below its own prefix, and deletes the keys at the end. A wrong or
//! missing answer fails the run; a bad measurement does not.
//!
//! `wire` and `link` are a client that uses little CPU, because it shares the machine with the server. `plan` defines
//! what is written, `writer` writes it, `check` and `listed` check the answers. The loads are `watch`, `range`, `put`,
//! `leases`, `views` and `floor`; `handshakes` is for comparison with a storm of clients. `background` keeps such
//! clients from slowing down what is measured. `report` prints the results.

mod background;
mod calls;
mod check;
mod floor;
mod handshakes;
mod hpack;
pub mod http;
mod leases;
mod link;
mod listed;
mod message;
mod plan;
mod progress;
mod put;
mod range;
mod report;
mod scrape;
pub mod sse;
mod steady;
mod usage;
mod views;
mod watch;
mod wire;
mod writer;

use std::{io, time::Duration};

use thiserror::Error;

pub use self::{
    floor::Floor,
    handshakes::Handshakes,
    leases::Leases,
    link::{Endpoint, LinkError},
    plan::{KEYS_MAX, TEXT_MIN, VALUE_MIN},
    put::Put,
    range::Range,
    report::Report,
    scrape::{MetricsUrl, Scrape},
    usage::Watched,
    views::{ViewWrites, Views},
    watch::{Encoding, Watch},
    writer::Load,
};

/// The load to run.
#[derive(Clone, Debug)]
pub enum Bench {
    /// Watches.
    Watch(Watch),
    /// Reads.
    Range(Range),
    /// Puts.
    Put(Put),
    /// Leases that clients keep alive.
    Leases(Leases),
    /// Lainlet's views.
    Views(Views),
    /// Bare sockets, for comparison.
    Floor(Floor),
    /// Bare TLS handshakes, for comparison.
    Handshakes(Handshakes),
}

/// Why a run failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BenchError {
    /// A connection could not be made or broke.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A call was refused.
    #[error("a call was refused: {0}")]
    Refused(String),
    /// A watch could not be created.
    #[error("a watch could not be created: {0}")]
    Watch(String),
    /// A view could not be read.
    #[error("cannot read the view: {0}")]
    View(String),
    /// The key to write already exists.
    #[error("the key {0:?} already exists and would be overwritten and deleted; choose one that does not exist")]
    KeyExists(String),
    /// An answer is not valid protobuf.
    #[error("the answer to a call cannot be read")]
    Unreadable,
    /// There was no progress.
    #[error("no progress for {}: {done} of {all} {what}", humantime::format_duration(*waited))]
    Stalled {
        /// What was awaited.
        what: &'static str,
        /// How many there were.
        done: u64,
        /// How many there should have been.
        all: u64,
        /// How long there was no progress.
        waited: Duration,
    },
    /// A process to measure does not exist.
    #[error("process {0} does not exist")]
    Process(u32),
    /// The metrics of a server cannot be read.
    #[error("cannot read the metrics at {url}: {why}")]
    Metrics {
        /// Their URL.
        url: String,
        /// The reason.
        why: String,
    },
    /// The system cannot start a thread.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// A thread of the load generator ended too early.
    #[error("a thread of the load generator ended")]
    Lost,
}

impl From<message::Unreadable> for BenchError {
    fn from(_: message::Unreadable) -> Self {
        Self::Unreadable
    }
}

impl From<wire::WireError> for BenchError {
    fn from(error: wire::WireError) -> Self {
        Self::Link(error.into())
    }
}

impl Bench {
    /// Runs the load.
    ///
    /// # Errors
    /// Fails if the run cannot be made. Wrong answers are in the report instead.
    pub fn run(&self) -> Result<Report, BenchError> {
        raise_file_limit();
        match self {
            Self::Watch(watch) => watch.run(),
            Self::Range(range) => range.run(),
            Self::Put(put) => put.run(),
            Self::Leases(leases) => leases.run(),
            Self::Views(views) => views.run(),
            Self::Floor(floor) => floor.run(),
            Self::Handshakes(handshakes) => handshakes.run(),
        }
    }
}

/// Raises the limit on open files, since each connection needs one. If that fails, the first connection that does not
/// fit reports it.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).is_err() {
        tracing::debug!("The limit on open files stays as it is");
    }
}

/// Sleeps on a thread without tasks.
#[expect(clippy::disallowed_methods, reason = "the threads that poll progress or pace bare sockets have no runtime")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// A runtime for one thread.
fn runtime() -> Result<tokio::runtime::Runtime, BenchError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(BenchError::Thread)
}
