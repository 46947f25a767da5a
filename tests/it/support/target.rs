//! [`Target`]: one of the things that must behave like an etcd, with all the servers that it is made of.
//!
//! Not here: what is expected. Shared targets are started once for the whole test binary, and their tests keep apart by key
//! ([`Target::namespace`]); a test that compacts or counts revisions takes one of its own.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::OnceCell;

use super::{
    client::WatchStream,
    etcd::Etcd,
    kv::Kv,
    relay::{Relay, RelayCommand},
};

/// What is under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Real etcd: shows that the expectation is true.
    Etcd,
    /// The embedded store, as `demo` serves it.
    Store,
    /// The relay with one feed over the whole key space, over etcd.
    RelayOverEtcd,
    /// The relay without a prefix, so that each range opens a feed, over etcd.
    RelayOnDemand,
    /// The relay over the embedded store.
    RelayOverStore,
    /// A relay over a relay over etcd.
    RelayOverRelay,
}

/// A running target.
#[derive(Debug)]
pub struct Target {
    /// What it is.
    pub kind: Kind,
    // Fields drop in order: clients before servers, so that no relay logs the loss of its upstream at the end.
    relays: Vec<Relay>,
    etcd: Option<Etcd>,
}

/// Settings of a target of one's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Flags for etcd.
    pub etcd: &'static [&'static str],
    /// Flags for each relay and for the embedded store.
    pub relay: &'static [&'static str],
}

static SHARED: [OnceCell<Target>; 6] = [const { OnceCell::const_new() }; 6];
static NAMESPACES: AtomicU32 = AtomicU32::new(0);

impl Target {
    /// The one that all tests share.
    pub async fn shared(kind: Kind) -> &'static Self {
        SHARED[kind as usize].get_or_init(|| Self::start(kind, Settings::default())).await
    }

    /// One for this test alone.
    pub async fn start(kind: Kind, settings: Settings) -> Self {
        let etcd = match kind {
            Kind::Store | Kind::RelayOverStore => None,
            _ => Some(Etcd::start_with(settings.etcd).await),
        };
        let configured = |command: RelayCommand| settings.relay.iter().fold(command, |command, arg| command.arg(arg));
        let origin = etcd.as_ref().map(Etcd::endpoint);
        let mut relays = Vec::new();
        match (kind, origin) {
            (Kind::Etcd, _) => {}
            (Kind::Store, _) => relays.push(configured(RelayCommand::demo()).start().await),
            (Kind::RelayOverStore, _) => {
                let store = configured(RelayCommand::demo()).start().await;
                let relay = configured(RelayCommand::serve(&[store.endpoint()]).prefix("")).start().await;
                relays.extend([relay, store]);
            }
            (Kind::RelayOverEtcd, Some(origin)) => {
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
        Self { kind, relays, etcd }
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

    /// A watch stream on a connection of its own.
    pub async fn stream(&self) -> WatchStream {
        WatchStream::open(&self.endpoint()).await
    }

    /// A key prefix that no other test uses; ends with a slash.
    pub fn namespace(&self) -> String {
        format!("/test/{}/", NAMESPACES.fetch_add(1, Ordering::Relaxed))
    }

    /// Prints all logs.
    pub fn print_logs(&self) {
        self.etcd.iter().for_each(Etcd::print_log);
        self.relays.iter().for_each(Relay::print_log);
    }
}
