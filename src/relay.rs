//! The composition root: binds the ports, wires the parts together, runs them, and ends them in order.
//!
//! Not here: flags (`cli` makes a [`RelayConfig`]) and logic. Called by `main` and by tests that want a whole relay.
//! Always holds: all ports are bound, and their addresses known, before anything is served.

mod config;
mod core;
mod status;
mod upstream;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use metrics::{gauge, histogram};
use serde_json::{Map, Value, json};
use thiserror::Error;
use tokio::{runtime::Handle, sync::watch};

pub use self::config::{
    Advertise, Embedded, Etcd, EtcdV2, Feeds, LainletFeeds, OnDemand, RelayConfig, Upstream, V2Facade, Views, Watches,
};
pub use self::core::{Core, wire};
use self::upstream::Data;
use crate::{
    batch::{Batcher, UringError},
    critical::Failure,
    fleet::{last_spread, spread},
    front::{
        self, Inspect,
        access::Access,
        balance::Balance,
        gateway::{Gateway, SchemaError},
        grpc::{self, GrpcPort, LainletApi, Locals, Streams},
        http::{
            admin::{Admin, HttpPort},
            audience::Gate,
            keys::{KeysHttp, KeysParts},
            lainlet::LainletHttp,
            member, metrics_only,
        },
        listen::{Address, BindError, Bound, ConnectionId, Connections, PortConfig, Stop, fit_connections},
    },
    http2::{TurnQueue, TurnWait},
    hub::{FeedStats, Hub, WatchStats, WatchStreamStats},
    rpc::GrpcService,
    service::ServiceManager,
    shutdown::{Drained, Phases, Shutdown},
    source::Members,
    store::demo::SeedError,
    telemetry::{ReadyBoard, names, recorder::Metrics},
    types::{MemberVersion, Revision},
};

/// A relay whose ports are bound, but which does not serve anything yet.
#[derive(Debug)]
pub struct Relay {
    config: RelayConfig,
    data: Data,
    reflection: GrpcService,
    gateway: Gateway,
    metrics: Metrics,
    started: Instant,
    connections: Arc<Connections>,
    batcher: Option<Arc<Batcher>>,
    grpc: Bound,
    http: Option<Bound>,
    metrics_only: Vec<Bound>,
    v2: Option<Bound>,
    manager: Option<ServiceManager>,
}

/// Why a relay cannot start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A port cannot be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The example data does not fit into the store.
    #[error("cannot fill the embedded store")]
    Seed(#[from] SeedError),
    /// The configuration asks for io_uring, which cannot be used.
    #[error(transparent)]
    Uring(#[from] UringError),
    /// The protocol's descriptors cannot be used. This is a fault of the build.
    #[error("cannot serve reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The same fault, found by the JSON gateway.
    #[error("cannot serve the JSON gateway")]
    Gateway(#[from] SchemaError),
}

impl Relay {
    /// Binds the ports.
    ///
    /// # Errors
    /// If a port cannot be bound. No port stays bound then.
    pub fn build(mut config: RelayConfig, metrics: Metrics) -> Result<Self, BuildError> {
        let v2 = config.v2.as_mut().map(|v2| &mut v2.port);
        let ports = std::iter::once(&mut config.grpc).chain(&mut config.http).chain(&mut config.metrics).chain(v2);
        fit_connections(ports);
        names::begin(&config.present());
        config.show_bounds();
        let connections = Arc::new(Connections::default());
        let batcher = Batcher::new(config.io)?;
        let (waiting, waits) = (gauge!(names::TURNS_WAITING), histogram!(names::TURNS_WAIT_SECONDS));
        let turns = TurnQueue::new(Handle::current().metrics().num_workers(), move |wait| match wait {
            TurnWait::Began => waiting.increment(1.0),
            TurnWait::Ended(time) => {
                waiting.decrement(1.0);
                waits.record(time);
            }
        });
        let bind = |port: &PortConfig| {
            let leave_spread = spread(config.drain_time);
            // Whoever observes the relay is answered at once, above all while many clients come.
            let turns = (port.port != names::Port::Metrics).then(|| turns.clone());
            let port = PortConfig { leave_spread, batcher: batcher.clone(), turns, ..port.clone() };
            let bound = Bound::bind(port, connections.clone())?;
            for Address { addr, secure } in bound.addresses() {
                let port = bound.port();
                tracing::info!(protocol = port.protocol(), port = port.as_str(), %addr, tls = secure, "Listening");
            }
            Ok::<_, BindError>(bound)
        };
        let grpc = bind(&config.grpc)?;
        let http = config.http.as_ref().map(bind).transpose()?;
        let metrics_only = config.metrics.iter().map(bind).collect::<Result<_, _>>()?;
        let v2 = config.v2.as_ref().map(|v2| bind(&v2.port)).transpose()?;
        let data = Data::new(&config)?;
        let reflection = grpc::reflection(crate::pb::FILE_DESCRIPTOR_SET)?;
        let gateway = Gateway::new(crate::pb::FILE_DESCRIPTOR_SET)?;
        Ok(Self {
            config,
            data,
            reflection,
            gateway,
            metrics,
            started: Instant::now(),
            grpc,
            http,
            metrics_only,
            v2,
            connections,
            batcher,
            manager: None,
        })
    }

    /// Notifies a service manager of its status, from the time that it serves until it has stopped.
    #[must_use]
    pub fn managed_by(self, manager: Option<ServiceManager>) -> Self {
        Self { manager, ..self }
    }

    /// Where the gRPC port listens.
    #[must_use]
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc.addr()
    }

    /// Where the HTTP port listens, if there is one.
    #[must_use]
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(Bound::addr)
    }

    /// Where the ports that serve only metrics listen.
    pub fn metrics_addrs(&self) -> impl Iterator<Item = SocketAddr> {
        self.metrics_only.iter().map(Bound::addr)
    }

    /// The first address of the gRPC port, and whether it uses TLS.
    #[must_use]
    pub fn grpc_address(&self) -> Address {
        self.grpc.address()
    }

    /// The first address of the HTTP port.
    #[must_use]
    pub fn http_address(&self) -> Option<Address> {
        self.http.as_ref().map(Bound::address)
    }

    /// The first address of the port for etcd's v2 API.
    #[must_use]
    pub fn v2_address(&self) -> Option<Address> {
        self.v2.as_ref().map(Bound::address)
    }

    /// Serves until `shutdown`, then stops within the drain time.
    ///
    /// ```
    /// use etcd_relay::{
    ///     cli::{self, Build, Task},
    ///     relay::Relay,
    ///     shutdown::Shutdown,
    ///     telemetry::recorder::Metrics,
    /// };
    ///
    /// # let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    /// # runtime.block_on(async {
    /// let line = ["etcd-relay", "demo", "--listen-grpc=127.0.0.1:0", "--listen-http=127.0.0.1:0"];
    /// let Ok(Task::Relay(start)) = cli::parse(line.map(Into::into), Build::default()) else {
    ///     panic!("these flags start a relay");
    /// };
    /// let relay = Relay::build(start.config, Metrics::install()?)?;
    /// assert_ne!(relay.grpc_addr().port(), 0);
    ///
    /// // From here on clients are served. This one is told to end at once.
    /// let shutdown = Shutdown::new();
    /// shutdown.begin();
    /// relay.run(shutdown).await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// At once, and without a message to clients, if a task that holds the relay's state has panicked.
    pub async fn run(self, shutdown: Shutdown) -> Result<Drained, Failure> {
        self.serve(shutdown, Data::run).await
    }

    async fn serve(
        self,
        shutdown: Shutdown,
        run: impl FnOnce(Data, &Phases, &ReadyBoard) -> upstream::Running,
    ) -> Result<Drained, Failure> {
        let Self {
            config,
            data,
            reflection,
            gateway,
            metrics,
            started,
            connections,
            grpc,
            http,
            metrics_only,
            v2,
            batcher,
            manager,
        } = self;
        let phases = Phases::new();
        if let Some(batcher) = batcher {
            batcher.start(&phases.upkeep);
        }
        let ready = ReadyBoard::new();
        let stop = Stop { leave: phases.leave.clone(), accept: phases.accept.clone(), abort: phases.abort.clone() };

        let upstream::Running { upstream, forward, own, version, patience, members, load } = run(data, &phases, &ready);
        let core = core::wire(&config, upstream, patience, forward, own, &phases, &ready);
        let (v2_hub, v2_access) = (core.hub.clone(), core.access.clone());
        if let Some((told, advertise)) = load.zip(config.advertise.as_ref())
            && let Some(balance) = Balance::new(&advertise.advertised, &core.hub, grpc.pacing(), ready.clone(), told)
        {
            phases.spawn_upkeep("balance of the fleet", balance.run());
        }
        let relays = core.relays.clone();
        let status = status::Status { hub: core.hub.clone(), ready: ready.clone(), connections: connections.clone() };
        let trust = Arc::new(config.views.lainlet.trust.clone());
        let gate = |audience, flag| Gate { audience, trust: trust.clone(), flag };
        let keys = KeysHttp::new(KeysParts {
            sessions: core.sessions,
            streams: core.streams.clone(),
            tasks: phases.clients.clone(),
            forward: core.forward.clone(),
            gate: gate(config.keys_from, "--keys-from"),
            cors: config.cors.clone(),
            stop: phases.streams.clone(),
        });
        let process: Arc<dyn Inspect> = Arc::new(Process {
            ready: ready.clone(),
            version,
            hub: core.hub,
            members,
            access: core.access,
            streams: core.streams,
            metrics: metrics.clone(),
        });

        if let Some((v2, facade)) = v2.zip(config.v2.as_ref()) {
            let parts = front::v2::Parts {
                hub: v2_hub,
                access: v2_access,
                calls: core.forward.clone(),
                own: config.upstream.identity().map(|identity| front::v2::Own {
                    user: identity.user.clone(),
                    password: identity.password.clone(),
                }),
                advertised: if facade.advertised.is_empty() {
                    v2.addresses()
                        .map(|at| format!("{}://{}", if at.secure { "https" } else { "http" }, at.addr))
                        .collect()
                } else {
                    facade.advertised.clone()
                },
                stop: phases.upstream.clone(),
                streams: phases.streams.clone(),
            };
            let (feed, tasks, running) = front::v2::open(&parts);
            for (name, task) in tasks {
                phases.spawn_upkeep(name, task);
            }
            phases.spawn_upkeep("readiness of a feed", core::hold_ready(feed, ready.clone()));
            phases.spawn_port("v2 port", v2.serve(running.port(parts, process.clone()), stop.clone()));
        }

        let (health, keep_health) = grpc::health(ready.clone());
        let health = grpc::ending(health, phases.streams.clone());
        let reflection = grpc::ending(reflection, phases.streams.clone());
        let grpc_addr = grpc.addr();
        let may_scrape = gate(config.metrics_from, "--metrics-from");
        let member = member::router(process.clone(), may_scrape.clone());
        let over_http = LainletHttp::new(core.lainlet.clone(), phases.streams.clone());
        let lainlet = LainletApi::new(core.lainlet.clone(), phases.streams.clone());
        let local = Locals { etcd: core.api, lainlet };
        let port = GrpcPort { local, forward: core.forward, health, reflection, gateway, member };
        phases.spawn_port("gRPC port", grpc.serve(port, stop.clone()));
        if let Some(http) = http {
            let admin = Admin {
                inspect: process.clone(),
                connections,
                users: core.users,
                views: core.lainlet,
                grpc_addr,
                debug: gate(config.debug_from, "--debug-from"),
                metrics: may_scrape,
                started,
                stop: phases.streams.clone(),
            };
            let port = HttpPort::with_keys(admin.router(), over_http, keys, grpc_addr);
            phases.spawn_port("HTTP port", http.serve(port, stop.clone()));
        }
        // No client is served there, and whoever watches the relay is to see how it ends.
        let last = phases.upstream.clone();
        let last = Stop { leave: last.clone(), accept: last.clone(), abort: last };
        for port in metrics_only {
            let router = metrics_only::router(process.clone());
            phases.spawn_upkeep(
                "metrics port",
                port.serve(HttpPort::new(router, metrics_only::ABOUT, grpc_addr), last.clone()),
            );
        }
        // All ports have the same certificate.
        let mut ports = std::iter::once(&config.grpc).chain(&config.http).chain(&config.metrics);
        if let Some(tls) = ports.find_map(|port| port.tls.clone()) {
            phases.spawn_upkeep("TLS files for clients", tls.keep());
        }
        phases.spawn_upkeep("health", keep_health);
        phases.spawn_upkeep("readiness metric", keep_ready_metric(ready.clone()));
        phases.spawn_upkeep("metrics", metrics.upkeep());
        if let Some(manager) = manager.clone() {
            phases.spawn_upkeep("status for the service manager", manager.report(move || status.line()));
        }

        let orderly = async {
            shutdown.begun().await;
            let _stopping = ready.hold(status::STOPPING);
            if let Some(manager) = &manager {
                manager.stopping(config.drain_time + LAST_STEPS);
            }
            if relays.as_ref().is_some_and(grpc::Members::knows_others) {
                phases.accept.cancel();
            }
            let spread = spread(config.drain_time);
            let drained = phases.end(config.drain_time, spread + last_spread(spread), &shutdown).await;
            tracing::info!(cut_off = drained == Drained::CutOff, "Ended");
            drained
        };
        // On a failure, the rest of `orderly` ends with the process.
        tokio::select! {
            biased;
            failure = phases.upkeep.failed() => Err(failure),
            drained = orderly => Ok(drained),
        }
    }
}

/// What the ports report about this process.
struct Process {
    ready: ReadyBoard,
    version: watch::Receiver<Option<Arc<MemberVersion>>>,
    hub: Arc<Hub>,
    members: Option<Members>,
    access: Access,
    streams: Streams,
    metrics: Metrics,
}

impl Inspect for Process {
    fn not_ready(&self) -> Vec<String> {
        self.ready.reasons()
    }

    fn version(&self) -> Option<Arc<MemberVersion>> {
        self.version.borrow().clone()
    }

    fn state(&self) -> Map<String, Value> {
        let totals = self.hub.totals();
        let id = self.hub.header().at(Revision::ZERO).cluster_id;
        let cluster = json!({
            "id": (id != 0).then(|| format!("{id:x}")),
            "member": self.members.as_ref().map(Members::in_use),
            "revision": totals.revision,
            "keys": totals.keys,
            "watches": totals.watches,
            "lag_revisions": totals.lag_revisions,
            "lag_seconds": totals.lag.as_secs_f64(),
            "agreement": *self.hub.agreement().borrow(),
        });
        let auth = json!(self.access.known().auth);
        let mut state = Map::from_iter([("auth".to_owned(), auth), ("cluster".to_owned(), cluster)]);
        // One member for each endpoint on the command line.
        state.extend(self.members.as_ref().map(|members| ("members".to_owned(), json!(members.state()))));
        state
    }

    fn feeds(&self) -> usize {
        self.hub.feeds().len()
    }

    fn feeds_after(&self, after: u64, most: usize) -> Vec<FeedStats> {
        let mut feeds = self.hub.feeds();
        feeds.retain(|feed| feed.number() > after);
        feeds.sort_unstable_by_key(|feed| feed.number());
        feeds.into_iter().take(most).map(|feed| feed.stats()).collect()
    }

    fn streams(&self, connection: ConnectionId) -> usize {
        self.streams.of(connection)
    }

    fn streams_after(&self, connection: ConnectionId, after: u64, most: usize) -> Vec<(u64, WatchStreamStats)> {
        self.streams.after(connection, after, most)
    }

    fn watches_after(&self, connection: ConnectionId, stream: u64, after: u64, most: usize) -> Option<Vec<WatchStats>> {
        self.streams.watches_after(connection, stream, after, most)
    }

    fn metrics(&self) -> String {
        self.hub.refresh_metrics();
        self.metrics.render()
    }
}

async fn keep_ready_metric(ready: ReadyBoard) {
    loop {
        let is_ready = ready.is_ready();
        gauge!(names::READY).set(if is_ready { 1.0 } else { 0.0 });
        ready.wait_for(!is_ready).await;
    }
}

/// The longest wait for clients at the end. Two thirds of it are used to ask them to leave: with thousands of clients,
/// 6 % move to the other relays each second. It is less than the 30 s that Kubernetes gives a pod.
pub const DRAIN_TIME: Duration = Duration::from_secs(25);

/// What a service manager should wait beyond the drain time: tasks that are cut off take up to two seconds, and more on
/// a busy machine.
const LAST_STEPS: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
