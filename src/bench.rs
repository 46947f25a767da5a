//! `etcd-relay bench`: load on any server of etcd's API, or on Lainlet's views, with every answer checked, and what it cost.
//!
//! Not here: flags, see `cli::bench`. Knows nothing of the relay inside: it measures etcd, etcd's grpc-proxy and the relay alike.
//! Always holds: it writes below a prefix that is its own, and takes the keys away at the end; what came and should not have, or
//! should have and did not, fails the run, and no figure does.
//!
//! `wire` and `link` are a client that takes little of the machine that it shares with the server; `plan` says what is written,
//! `writer` writes it, `check` and `listed` judge what comes; `watch`, `range`, `leases`, `views` and `floor` are the loads; `report` tells.
//! `handshakes` is one more: what a storm of clients is compared with; `background` keeps such clients out of the way of what is measured.

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
mod range;
mod report;
mod scrape;
pub mod sse;
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
    plan::{KEYS_MAX, VALUE_MIN},
    range::Range,
    report::Report,
    scrape::{MetricsUrl, Scrape},
    usage::Watched,
    views::{ViewWrites, Views},
    watch::Watch,
    writer::Load,
};

/// What to run.
#[derive(Clone, Debug)]
pub enum Bench {
    /// Watches.
    Watch(Watch),
    /// Reads.
    Range(Range),
    /// Leases that clients keep alive.
    Leases(Leases),
    /// Lainlet's views.
    Views(Views),
    /// Bare sockets, to compare with.
    Floor(Floor),
    /// Bare TLS handshakes, to compare with.
    Handshakes(Handshakes),
}

/// Why a run could not be made.
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
    /// A view could not be had.
    #[error("a view could not be had: {0}")]
    View(String),
    /// The key to write exists.
    #[error("the key {0:?} exists, and would be written and deleted; name one that does not")]
    KeyExists(String),
    /// An answer is no protobuf.
    #[error("the answer to a call cannot be read")]
    Unreadable,
    /// Nothing more happened.
    #[error("nothing happened for {}: {done} of {all} {what}", humantime::format_duration(*waited))]
    Stalled {
        /// What was waited for.
        what: &'static str,
        /// How many there were.
        done: u64,
        /// How many there should have been.
        all: u64,
        /// How long nothing happened.
        waited: Duration,
    },
    /// A process to measure is not there.
    #[error("there is no process {0}")]
    Process(u32),
    /// The metrics of a server cannot be had.
    #[error("cannot read the metrics at {url}: {why}")]
    Metrics {
        /// Where they should be.
        url: String,
        /// Why not.
        why: String,
    },
    /// The system gives no threads.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// A thread of the load ended before its time.
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
    /// Runs it.
    ///
    /// # Errors
    /// Where it cannot be run. What was wrong with the answers is in the report.
    pub fn run(&self) -> Result<Report, BenchError> {
        raise_file_limit();
        match self {
            Self::Watch(watch) => watch.run(),
            Self::Range(range) => range.run(),
            Self::Leases(leases) => leases.run(),
            Self::Views(views) => views.run(),
            Self::Floor(floor) => floor.run(),
            Self::Handshakes(handshakes) => handshakes.run(),
        }
    }
}

/// A connection is a file. Where the limit cannot be raised, the first connection that does not fit says so.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).is_err() {
        tracing::debug!("The limit of open files stays as it is");
    }
}

/// Sleeps, on a thread that has no tasks.
#[expect(
    clippy::disallowed_methods,
    reason = "no runtime is on the threads that look at progress or pace bare sockets"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// A runtime for one thread.
fn runtime() -> Result<tokio::runtime::Runtime, BenchError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(BenchError::Thread)
}
