//! [`Lainlet`]: finds the requested view, decides what the caller may see of it, and returns its versions.
//!
//! Paths, headers and status codes belong to the fronts, which translate a [`Refusal`]. Always holds:
//! - nothing is served, and no permission is decided, before all directories that are needed have been read completely;
//! - a reply reflects every change up to its revision.

use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use hashbrown::HashMap;
use thiserror::Error;
use tokio::{runtime::Handle, sync::watch};
use tokio_util::sync::CancellationToken;

use super::{
    access::{ByAddress, Rules, Trust, Viewer},
    directory::Directory,
    document::Document,
    engine::{Engine, Stats},
    payload::Version,
    projection::{Absent, Rule, Spec, ViewError},
    select::{Match, Select},
    target::Subscription,
    views,
};
use crate::{
    critical::Tasks,
    hub::{Feed, Hub},
    types::Revision,
};

/// The operator's settings for the views.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LainletConfig {
    /// Callers that are trusted independently of the tables.
    pub trust: Trust,
    /// The relay's node, for callers on an unknown node.
    pub node_name: Option<String>,
    /// How long a request may wait for directories to be read, or for a revision.
    pub patience: Duration,
}

impl LainletConfig {
    /// Long enough to read some ten thousand keys from a busy cluster, and short enough that a caller learns why it
    /// waits.
    pub const PATIENCE: Duration = Duration::from_secs(5);
}

impl Default for LainletConfig {
    fn default() -> Self {
        Self { trust: Trust { nodes: true, ..Trust::default() }, node_name: None, patience: Self::PATIENCE }
    }
}

/// A request for a view.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The view.
    pub spec: &'static Spec,
    /// The caller.
    pub caller: Viewer,
    /// The view's parameter; empty counts as absent.
    pub parameter: Option<&'a str>,
    /// The node, by name or address, for views of one node; empty counts as absent.
    pub node: Option<&'a str>,
    /// The revision that the reply must reflect at least.
    pub min_revision: Option<Revision>,
}

/// Why a request gets no view. The texts are Lainlet's if it has one.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// The caller may not see it.
    #[error("{0}")]
    Forbidden(&'static str),
    /// A required parameter is missing.
    #[error("{0} required")]
    Missing(&'static str),
    /// The match key would be empty.
    #[error("empty key")]
    EmptyKey,
    /// No app has this address.
    #[error("unkown address {0}")]
    UnknownAddress(String),
    /// The view cannot be shown in the current state of the cluster.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The directories were not read yet, or the relay may not read them.
    #[error("etcd-relay: not ready: {0}")]
    NotReady(String),
    /// The view did not reach the revision in time.
    #[error(
        "etcd-relay: the view has not reached revision {wanted} in {waited:?}, it is at {at}; retry, or use a lower \
         revision"
    )]
    Behind {
        /// The requested revision.
        wanted: Revision,
        /// The revision of the view.
        at: Revision,
        /// How long the request waited.
        waited: Duration,
    },
}

const SUPER: Refusal = Refusal::Forbidden("authorize failed, super required");
const NO_PERMISSION: Refusal = Refusal::Forbidden("authorize failed, no permission");
const NO_APP: Refusal = Refusal::Forbidden("authorize failed, can not confirm the app by request ip");

/// Only super callers see keys with these prefixes, or may request such a prefix.
const SECRETS: [&str; 18] = [
    "*",
    "swarm_manager_ip",
    "super_apps",
    "dnsmasq_servers",
    "calico_default_rule",
    "calico_network",
    "dnsmasq_addresses",
    "ssl",
    "vips",
    "tinydns_fqdns",
    "bootstrap_node_ip",
    "dns_port",
    "vip",
    "etcd_cluster_token",
    "system_volumes",
    "rsyncd_secrets",
    "dns_ip",
    "node_network",
];

/// Whether a key of the config directory, or a requested prefix of one, is only for super callers.
pub(super) fn is_secret(key: &[u8]) -> bool {
    SECRETS.iter().any(|secret| key.starts_with(secret.as_bytes()))
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Lainlet {
    shared: Arc<LainletInner>,
}

struct LainletInner {
    config: LainletConfig,
    hub: Arc<Hub>,
    rules: Arc<dyn Rules>,
    /// In the order of [`Directory::ALL`].
    engines: [Arc<dyn Shows>; 4],
    feeds: OnceLock<[Arc<Feed>; 4]>,
    by_path: HashMap<&'static str, &'static Spec>,
    by_service: HashMap<&'static str, &'static Spec>,
    tasks: Tasks,
    stop: CancellationToken,
}

impl std::fmt::Debug for Lainlet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lainlet").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

/// An engine for any type of documents.
trait Shows: Send + Sync {
    fn follow(&self, runtime: &Handle, feed: &Feed, stop: &CancellationToken);
    fn has(&self, select: &Select) -> bool;
    fn version(&self, select: &Select) -> Option<Arc<Version>>;
    fn subscribe(&self, select: &Select) -> Option<Subscription>;
    fn watch_revision(&self) -> watch::Receiver<Revision>;
    fn revision(&self) -> Revision;
    fn stats(&self, of_rows: bool) -> Stats;
}

impl<D: Document> Shows for Engine<D> {
    fn follow(&self, runtime: &Handle, feed: &Feed, stop: &CancellationToken) {
        Self::follow(self, runtime, feed, stop);
    }

    fn has(&self, select: &Select) -> bool {
        Self::has(self, select)
    }

    fn version(&self, select: &Select) -> Option<Arc<Version>> {
        Self::version(self, select)
    }

    fn subscribe(&self, select: &Select) -> Option<Subscription> {
        Self::subscribe(self, select)
    }

    fn watch_revision(&self) -> watch::Receiver<Revision> {
        Self::watch_revision(self)
    }

    fn revision(&self) -> Revision {
        Self::revision(self)
    }

    fn stats(&self, of_rows: bool) -> Stats {
        Self::stats(self, of_rows)
    }
}

impl Lainlet {
    /// Views over `hub`. Their feeds are opened at the first request, or by [`Lainlet::open`]. The threads that follow
    /// them run in `tasks` until `stop`.
    #[must_use]
    pub fn new(config: LainletConfig, hub: Arc<Hub>, tasks: Tasks, stop: CancellationToken) -> Self {
        let rules = Arc::new(ByAddress::new(config.trust.clone()));
        let [of_config, of_groups, of_portals, of_nodes] = [(); 4].map(|()| rules.clone());
        let engines: [Arc<dyn Shows>; 4] = [
            Engine::new(
                Directory::Config,
                views::of_config(),
                Box::new(move |key, _, new| of_config.config_changed(key, new.is_some())),
            ),
            Engine::new(
                Directory::PodGroups,
                views::of_pod_groups(),
                Box::new(move |key, old, new| of_groups.pod_group_changed(key, old, new)),
            ),
            Engine::new(
                Directory::Depends,
                views::of_portals(),
                Box::new(move |key, old, new| of_portals.portal_changed(key, old, new)),
            ),
            Engine::new(
                Directory::Nodes,
                views::of_nodes(),
                Box::new(move |key, _, new| of_nodes.node_changed(key, new.is_some())),
            ),
        ];
        let specs = views::specs();
        let by_path = specs.iter().flat_map(|spec| spec.paths.iter().map(|path| (*path, *spec))).collect();
        let by_service = specs.iter().map(|spec| (spec.service, *spec)).collect();
        let feeds = OnceLock::new();
        Self { shared: Arc::new(LainletInner { config, hub, rules, engines, feeds, by_path, by_service, tasks, stop }) }
    }

    /// The caller at an address. `bears` tells whether its certificate contains a name.
    #[must_use]
    pub fn viewer(&self, addr: IpAddr, bears: impl Fn(&str) -> bool) -> Viewer {
        let is_named = self.shared.config.trust.certificates.iter().any(|name| bears(name));
        Viewer { is_named, ..Viewer::at(addr) }
    }

    /// The view at an HTTP path, given without a slash at its end.
    #[must_use]
    pub fn view_at(&self, path: &str) -> Option<&'static Spec> {
        self.shared.by_path.get(path).copied()
    }

    /// The HTTP paths of all views in order, each with its view.
    #[must_use]
    pub fn views(&self) -> Vec<(&'static str, &'static Spec)> {
        let mut views: Vec<_> = self.shared.by_path.iter().map(|(path, spec)| (*path, *spec)).collect();
        views.sort_unstable_by_key(|(path, _)| *path);
        views
    }

    /// The view of a gRPC service in the package `message`.
    #[must_use]
    pub fn view_of(&self, service: &str) -> Option<&'static Spec> {
        self.shared.by_service.get(service).copied()
    }

    /// Opens the feeds for the views, in the order of [`Directory::ALL`], and follows them from now on.
    pub fn open(&self) -> &[Arc<Feed>; 4] {
        self.shared.feeds.get_or_init(|| {
            let feeds = Directory::ALL.map(|directory| self.shared.hub.always(directory.range()));
            for (engine, feed) in self.shared.engines.iter().zip(&feeds) {
                let (engine, feed, stop) = (engine.clone(), feed.clone(), self.shared.stop.clone());
                let runtime = Handle::current();
                self.shared.tasks.spawn_blocking("view engine", move || engine.follow(&runtime, &feed, &stop));
            }
            feeds
        })
    }

    /// Decides what a request may see. Waits for directories and for a revision, at most [`LainletConfig::patience`].
    /// Cancel safe.
    ///
    /// # Errors
    /// Returns a [`Refusal`]. A view that cannot be shown in the current state of the cluster is reported by its
    /// version instead.
    pub async fn select(&self, ask: &Ask<'_>) -> Result<Selected, Refusal> {
        let Ask { spec, caller, .. } = *ask;
        self.wait_read(caller, &[spec.directory]).await?;
        if spec.of_node || spec.absent == Absent::CallersNode {
            self.wait_read(caller, &[Directory::Nodes]).await?;
        }
        let select = self.authorize(ask)?;
        if let Some(revision) = ask.min_revision {
            self.wait_for(spec.directory, revision).await?;
        }
        let engine = self.shared.engines[spec.directory as usize].clone();
        if !engine.has(&select) {
            // This walks over documents, possibly over all of them.
            let (engine, select) = (engine.clone(), select.clone());
            let made = tokio::task::spawn_blocking(move || drop(engine.version(&select)));
            made.await.map_err(|error| Refusal::NotReady(error.to_string()))?;
        }
        Ok(Selected { engine, select })
    }

    /// The app that an address belongs to, or the caller's own app without an address. A port after the address is
    /// ignored.
    ///
    /// # Errors
    /// Returns a [`Refusal`].
    pub async fn app_name(&self, caller: Viewer, addr: Option<&str>) -> Result<(Revision, String), Refusal> {
        self.wait_read(caller, &[Directory::PodGroups, Directory::Depends]).await?;
        if !self.shared.rules.is_super(caller) {
            return Err(SUPER);
        }
        let revision = |directory: Directory| self.shared.engines[directory as usize].revision();
        let revision = revision(Directory::PodGroups).min(revision(Directory::Depends));
        let asked = addr.filter(|addr| !addr.is_empty()).map_or_else(|| caller.addr.to_string(), str::to_owned);
        let is_bare = asked.parse::<IpAddr>().is_ok();
        let without_port = if is_bare { &*asked } else { asked.rsplit_once(':').map_or(&*asked, |(addr, _)| addr) };
        if without_port.is_empty() {
            return Err(Refusal::EmptyKey);
        }
        let parsed = without_port.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
        let app = parsed.and_then(|addr| self.shared.rules.app_at(addr.to_canonical()));
        app.map(|app| (revision, app)).ok_or_else(|| Refusal::UnknownAddress(without_port.to_owned()))
    }

    /// The state of each of Lainlet's watchers, sorted by name.
    #[must_use]
    pub fn stats(&self) -> [(&'static str, Stats); 5] {
        let of = |directory: Directory, rows| self.shared.engines[directory as usize].stats(rows);
        [
            ("config", of(Directory::Config, false)),
            ("container", of(Directory::PodGroups, true)),
            ("depends", of(Directory::Depends, false)),
            ("nodes", of(Directory::Nodes, false)),
            ("podgroup", of(Directory::PodGroups, false)),
        ]
    }

    /// Waits until `directories`, and those that decide the rights of `caller`, were read completely.
    async fn wait_read(&self, caller: Viewer, directories: &[Directory]) -> Result<(), Refusal> {
        let feeds = self.open();
        let all = if self.shared.rules.is_trusted(caller) { directories } else { &Directory::ALL };
        let deadline = tokio::time::Instant::now() + self.shared.config.patience;
        for directory in all {
            let (engine, feed) = (&self.shared.engines[*directory as usize], &feeds[*directory as usize]);
            if engine.revision() == Revision::ZERO {
                let mut revisions = engine.watch_revision();
                let read = revisions.wait_for(|revision| *revision != Revision::ZERO);
                if tokio::time::timeout_at(deadline, read).await.is_err() {
                    return Err(not_ready(*directory, feed, "has not been read from etcd yet"));
                }
            }
            if feed.is_denied() {
                return Err(not_ready(*directory, feed, "may not be read by the relay's own user"));
            }
        }
        Ok(())
    }

    /// Waits until a directory's views reflect `revision`.
    async fn wait_for(&self, directory: Directory, revision: Revision) -> Result<(), Refusal> {
        let (engine, feed) = (&self.shared.engines[directory as usize], &self.open()[directory as usize]);
        let patience = self.shared.config.patience;
        let mut revisions = engine.watch_revision();
        let reached = revisions.wait_for(|at| *at >= revision);
        // Asks etcd for its progress. If that cannot be trusted, only a change in the directory helps.
        let asked = async {
            let _told_by_the_engine = feed.wait_for(revision, patience).await;
            std::future::pending::<()>().await;
        };
        // All branches are cancel safe.
        tokio::select! {
            biased;
            reached = reached => if reached.is_ok() { return Ok(()) },
            () = asked => {}
            () = tokio::time::sleep(patience) => {}
        }
        Err(Refusal::Behind { wanted: revision, at: engine.revision(), waited: patience })
    }

    /// What the caller may see of the requested view.
    fn authorize(&self, ask: &Ask<'_>) -> Result<Select, Refusal> {
        let Ask { spec, caller, .. } = *ask;
        let rules = &*self.shared.rules;
        let given = ask.parameter.filter(|parameter| !parameter.is_empty() && spec.parameter.is_some());
        let wanted = match (given, spec.absent) {
            (Some(given), _) => given.to_owned(),
            (None, Absent::All) => "*".to_owned(),
            (None, Absent::Refused) => return Err(Refusal::Missing(spec.parameter.unwrap_or_default())),
            (None, Absent::CallersNode) => rules
                .node_of(caller)
                .or_else(|| self.shared.config.trust.own.map(|addr| addr.to_string()))
                .unwrap_or_default(),
        };
        let mut public = false;
        let wanted = match spec.rule {
            Rule::Super if rules.is_super(caller) => wanted,
            Rule::Super => return Err(SUPER),
            Rule::App | Rule::AppOrOwn if rules.passes(caller, &wanted) => wanted,
            Rule::AppOrOwn if wanted == "*" => rules.own_app(caller).ok_or(NO_APP)?,
            Rule::App | Rule::AppOrOwn => return Err(NO_PERMISSION),
            Rule::Secrets => {
                public = !rules.is_super(caller);
                if public && is_secret(wanted.as_bytes()) {
                    return Err(SUPER);
                }
                wanted
            }
        };
        let keys = match wanted.as_str() {
            // A node never means all nodes.
            "*" if spec.absent != Absent::CallersNode => Match::All,
            "" => return Err(Refusal::EmptyKey),
            key if key.ends_with(spec.suffix) => Match::Key(key.as_bytes().into()),
            key => Match::Key([key, spec.suffix].concat().into_bytes().into()),
        };
        let node = spec.of_node.then(|| {
            let asked = ask.node.filter(|node| !node.is_empty());
            let node = match asked {
                Some(node) => rules.node_named(node).unwrap_or_else(|| node.to_owned()),
                None => rules.node_of(caller).or_else(|| self.shared.config.node_name.clone()).unwrap_or_default(),
            };
            node.into_boxed_str()
        });
        Ok(Select { spec, keys, node, public })
    }
}

/// The part of a view that a caller may see.
pub struct Selected {
    engine: Arc<dyn Shows>,
    select: Select,
}

impl std::fmt::Debug for Selected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Selected").field("select", &self.select).finish_non_exhaustive()
    }
}

impl Selected {
    /// The newest version, and the revision up to which it reflects every change.
    ///
    /// # Errors
    /// Returns [`Refusal::NotReady`] while the directory is being read again.
    pub fn version(&self) -> Result<(Revision, Arc<Version>), Refusal> {
        // The revision is taken first: a version that is newer than it is correct as well.
        let revision = self.engine.revision();
        let version = self.engine.version(&self.select).ok_or_else(|| self.is_read_anew())?;
        Ok((revision, version))
    }

    /// All versions from now on, beginning with the current one, and the revision up to which that one reflects every
    /// change.
    ///
    /// # Errors
    /// Returns [`Refusal::NotReady`] while the directory is being read again.
    pub fn subscribe(&self) -> Result<(Revision, Subscription), Refusal> {
        let revision = self.engine.revision();
        let subscription = self.engine.subscribe(&self.select).ok_or_else(|| self.is_read_anew())?;
        Ok((revision, subscription))
    }

    fn is_read_anew(&self) -> Refusal {
        Refusal::NotReady(format!("{} is being read again", self.select.spec.directory.prefix()))
    }
}

fn not_ready(directory: Directory, feed: &Feed, what: &str) -> Refusal {
    let why = feed.last_error().map_or_else(String::new, |error| format!(": {error}"));
    Refusal::NotReady(format!("{} {what}{why}", directory.prefix()))
}
