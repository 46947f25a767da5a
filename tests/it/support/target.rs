//! [`Target`]: a server that must behave like an etcd, with all processes that it consists of.
//!
//! Shared targets are started once for the whole test binary, and their tests use separate keys
//! ([`Target::namespace`]). A test that compacts or counts revisions starts its own target.

use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::{
    client::WatchStream,
    etcd::{Etcd, Http},
    kv::Kv,
    relay::{Relay, RelayCommand},
};

/// The kind of server under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Real etcd, which shows that the expectations are correct.
    Etcd,
    /// Real etcd of a later line.
    EtcdOf(Line),
    /// The embedded store in `demo`.
    Store,
    /// The relay over etcd, with one feed for the whole key space.
    RelayOverEtcd,
    /// The same over etcd of a later line.
    RelayOverEtcdOf(Line),
    /// The relay over etcd without a prefix, so that each range opens a feed.
    RelayOnDemand,
    /// The relay over the embedded store.
    RelayOverStore,
    /// A relay over a relay over etcd.
    RelayOverRelay,
}

/// A line of etcd's releases after the one that most tests use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    V3_6,
    V3_7,
}

impl Line {
    /// Its newest release that `scripts/etcd-versions` installs.
    pub fn newest(self) -> &'static str {
        match self {
            Self::V3_6 => "3.6.16",
            Self::V3_7 => "3.7.3",
        }
    }
}

/// A running target.
#[derive(Debug)]
pub struct Target {
    /// What it is.
    pub kind: Kind,
    // Fields are dropped in order, clients before servers, so that no relay logs the loss of its upstream at the end.
    relays: Vec<Relay>,
    etcd: Option<Etcd>,
}

/// Settings of a separate target.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Flags for etcd.
    pub etcd: &'static [&'static str],
    /// Flags for each relay and for the embedded store.
    pub relay: &'static [&'static str],
}

/// A target that tests share; `None` inside if this machine does not have its etcd.
type Shared = OnceCell<Option<Target>>;

static SHARED: Mutex<Vec<(Kind, &'static Shared)>> = Mutex::new(Vec::new());
static NAMESPACES: AtomicU32 = AtomicU32::new(0);

impl Target {
    /// The shared target. `None`, with the reason printed, if this machine does not have its etcd.
    pub async fn shared(kind: Kind) -> Option<&'static Self> {
        let cell = {
            let mut shared = SHARED.lock();
            let known = shared.iter().find(|(of, _)| *of == kind).map(|(_, cell)| *cell);
            known.unwrap_or_else(|| {
                let cell: &'static Shared = Box::leak(Box::default());
                shared.push((kind, cell));
                cell
            })
        };
        cell.get_or_init(|| Self::start(kind, Settings::default())).await.as_ref()
    }

    /// A target for this test alone. `None` as for [`Self::shared`].
    pub async fn start(kind: Kind, settings: Settings) -> Option<Self> {
        let etcd = match kind {
            Kind::Store | Kind::RelayOverStore => None,
            Kind::EtcdOf(line) | Kind::RelayOverEtcdOf(line) => {
                Some(Etcd::of_version(line.newest(), settings.etcd, Http::Shared).await?)
            }
            Kind::Etcd | Kind::RelayOverEtcd | Kind::RelayOnDemand | Kind::RelayOverRelay => {
                Some(Etcd::start_with(settings.etcd).await)
            }
        };
        let configured = |command: RelayCommand| settings.relay.iter().fold(command, |command, arg| command.arg(arg));
        let origin = etcd.as_ref().map(Etcd::endpoint);
        let mut relays = Vec::new();
        match (kind, origin) {
            (Kind::Etcd | Kind::EtcdOf(_), _) => {}
            (Kind::Store, _) => relays.push(configured(RelayCommand::demo()).start().await),
            (Kind::RelayOverStore, _) => {
                let store = configured(RelayCommand::demo()).start().await;
                let relay = configured(RelayCommand::serve(&[store.endpoint()]).prefix("")).start().await;
                relays.extend([relay, store]);
            }
            (Kind::RelayOverEtcd | Kind::RelayOverEtcdOf(_), Some(origin)) => {
                relays.push(configured(RelayCommand::serve(&[origin]).prefix("")).start().await);
            }
            (Kind::RelayOnDemand, Some(origin)) => {
                relays.push(configured(RelayCommand::serve(&[origin]).arg("--on-demand=allow")).start().await);
            }
            (Kind::RelayOverRelay, Some(origin)) => {
                let near = configured(RelayCommand::serve(&[origin]).prefix("")).start().await;
                let far = configured(RelayCommand::serve(&[near.endpoint()]).prefix("")).start().await;
                relays.extend([far, near]);
            }
            (_, None) => unreachable!("these kinds have an etcd"),
        }
        Some(Self { kind, relays, etcd })
    }

    /// Whether it is etcd itself, the reference for the others.
    pub fn is_etcd(&self) -> bool {
        matches!(self.kind, Kind::Etcd | Kind::EtcdOf(_))
    }

    /// The URL under test.
    pub fn endpoint(&self) -> String {
        match self.relays.first() {
            Some(relay) => relay.endpoint(),
            None => self.etcd.as_ref().expect("no relay, so an etcd").endpoint(),
        }
    }

    /// The etcd behind it, or itself; `None` for the embedded store.
    pub fn etcd(&self) -> Option<&Etcd> {
        self.etcd.as_ref()
    }

    /// A key-value client.
    pub async fn kv(&self) -> Kv {
        Kv::connect(&self.endpoint()).await
    }

    /// A watch stream on a separate connection.
    pub async fn stream(&self) -> WatchStream {
        WatchStream::open(&self.endpoint()).await
    }

    /// A key prefix that no other test uses. It ends with a slash.
    pub fn namespace(&self) -> String {
        format!("/test/{}/", NAMESPACES.fetch_add(1, Ordering::Relaxed))
    }

    /// Prints all logs.
    pub fn print_logs(&self) {
        self.etcd.iter().for_each(Etcd::print_log);
        self.relays.iter().for_each(Relay::print_log);
    }
}
