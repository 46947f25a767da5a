//! Where a relay's data comes from: what the hub reads, where calls are forwarded to, and which version clients are
//! shown.
//!
//! Not here: what is kept in memory, see `core`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    RelayConfig, Upstream as Where,
    config::{Advertise, Embedded, Etcd, EtcdV2},
};
use crate::{
    front::{balance::load_key, grpc},
    hub::upstream::Upstream,
    rpc::GrpcService,
    shutdown::Phases,
    source::{
        AutoSync, Dialler, EtcdConfig, EtcdUpstream, Judge, LoadKey, Members, Registration, V2Config, V2Upstream,
        forward::Forward, probe::Probe,
    },
    store::{self, Store, demo::SeedError},
    telemetry::ReadyBoard,
    types::MemberVersion,
};

/// Where the data comes from, made before anything runs.
#[derive(Debug)]
pub(super) enum Data {
    Etcd(Box<OverEtcd>),
    EtcdV2 { etcd: Box<EtcdV2>, probe_prefix: Bytes },
    Store { store: Store, changes_every: Option<Duration> },
}

/// An etcd cluster, and what the relay reads and writes there for itself.
#[derive(Debug)]
pub(super) struct OverEtcd {
    etcd: Etcd,
    probe_key: Bytes,
    registration: Option<Registration>,
    load: Option<watch::Sender<Bytes>>,
}

/// What the rest of the relay needs from it.
pub(super) struct Running {
    /// What the hub reads from.
    pub(super) upstream: Arc<dyn Upstream>,
    /// Handles all calls that the relay does not answer itself.
    pub(super) forward: GrpcService,
    /// The same for the relay's own requests, over connections that clients' calls do not use.
    pub(super) own: GrpcService,
    /// The version by which clients choose features.
    pub(super) version: watch::Receiver<Option<Arc<MemberVersion>>>,
    /// How long one request may take.
    pub(super) patience: Duration,
    /// What is known about etcd's members, if there are any.
    pub(super) members: Option<Members>,
    /// Publishes the relay's number of connections, if that is configured.
    pub(super) load: Option<watch::Sender<Bytes>>,
}

impl Data {
    pub(super) fn new(config: &RelayConfig) -> Result<Self, SeedError> {
        match &config.upstream {
            Where::Etcd(etcd) => {
                let (registration, load) = config.advertise.as_ref().and_then(registration).unzip();
                let (etcd, probe_key) = (etcd.clone(), config.feeds.probe_key());
                Ok(Self::Etcd(Box::new(OverEtcd { etcd, probe_key, registration, load: load.flatten() })))
            }
            Where::EtcdV2(etcd) => {
                let probe_prefix = config.feeds.prefixes.first().cloned().unwrap_or_default();
                Ok(Self::EtcdV2 { etcd: Box::new(etcd.clone()), probe_prefix })
            }
            Where::Embedded(Embedded { seeded, changes_every }) => {
                let store = Store::new(store::StoreConfig::default());
                if *seeded {
                    let keys = store::demo::seed(&store)?;
                    tracing::info!(keys, "Filled the embedded store with example data");
                }
                Ok(Self::Store { store, changes_every: *changes_every })
            }
        }
    }

    /// Starts the tasks that it needs.
    pub(super) fn run(self, phases: &Phases, ready: &ReadyBoard) -> Running {
        match self {
            Self::Etcd(over) => over_etcd(*over, phases, ready),
            Self::EtcdV2 { etcd, probe_prefix } => over_etcd_v2(*etcd, probe_prefix, phases, ready),
            Self::Store { store, changes_every } => over_store(store, changes_every, phases),
        }
    }
}

/// What the relay registers, if it is configured to.
fn registration(advertise: &Advertise) -> Option<(Registration, Option<watch::Sender<Bytes>>)> {
    let (key, value) = advertise.advertised.registration()?;
    let load = load_key(&advertise.advertised).filter(|_| advertise.shed);
    let (load, told) = load
        .map(|key| {
            let (told, value) = watch::channel(Bytes::new());
            (LoadKey { key, value }, told)
        })
        .unzip();
    Some((Registration { key, value, ttl: advertise.ttl, load }, told))
}

fn over_etcd(over: OverEtcd, phases: &Phases, ready: &ReadyBoard) -> Running {
    let OverEtcd { etcd, probe_key, registration, load } = over;
    if let Some(tls) = &etcd.tls {
        phases.spawn_upkeep("TLS files for etcd", tls.clone().keep());
    }
    let calls = etcd.forward();
    let patience = etcd.request_timeout;
    let upstream = EtcdUpstream::new(EtcdConfig {
        endpoints: etcd.endpoints.clone(),
        dialler: Dialler::new(etcd.tls.clone()),
        connect_timeout: etcd.connect_timeout,
        request_timeout: etcd.request_timeout,
        keepalive: etcd.keepalive,
        identity: etcd.identity,
        probe_key,
    });
    let members = upstream.members().clone();
    phases.spawn_upkeep("judge of the members", Judge::new(upstream.clone(), ready.clone()).run());
    if let Some(interval) = etcd.auto_sync {
        phases.spawn_upkeep("list of the members", AutoSync::new(upstream.clone(), interval).run());
    }
    let probe = Probe::new(members.clone(), Dialler::new(etcd.tls), patience);
    if let Some(registration) = registration {
        // It ends with the ports, and the shutdown waits for it as for them, so clients that look for a relay then find
        // another one.
        let stop = phases.leave.clone();
        phases.spawn_port("registration", upstream.clone().keep_registered(registration, stop));
    }
    let version = probe.version();
    phases.spawn_upkeep("probe of the version", probe.run());
    let forward = Forward::new(&calls, members.clone(), phases.streams.clone());
    let (own, forward) = (forward.own(), forward.sharing_keepalives(phases.upkeep.clone()));
    Running { upstream, own, forward, version, patience, members: Some(members), load }
}

fn over_etcd_v2(v2: EtcdV2, probe_prefix: Bytes, phases: &Phases, ready: &ReadyBoard) -> Running {
    let EtcdV2 { etcd, hold } = v2;
    if let Some(tls) = &etcd.tls {
        phases.spawn_upkeep("TLS files for etcd", tls.clone().keep());
    }
    let dialler = Dialler::new(etcd.tls);
    let probe = Probe::new(Members::new(&etcd.endpoints), dialler.clone(), etcd.request_timeout);
    let version = probe.version();
    phases.spawn_upkeep("probe of the version", probe.run());
    let patience = etcd.request_timeout;
    let upstream = V2Upstream::new(V2Config {
        endpoints: etcd.endpoints,
        dialler,
        connect_timeout: etcd.connect_timeout,
        request_timeout: etcd.request_timeout,
        identity: etcd.identity,
        hold,
        probe_prefix,
    });
    phases.spawn_upkeep("look at the members", upstream.clone().keep_ready(ready.clone()));
    let forward = grpc::ending(upstream.forward_service(), phases.streams.clone());
    Running { own: forward.clone(), forward, upstream, version, patience, members: None, load: None }
}

fn over_store(store: Store, changes_every: Option<Duration>, phases: &Phases) -> Running {
    phases.spawn_upkeep("leases of the store", store.clone().expire_leases(phases.upstream.clone()));
    if let Some(interval) = changes_every {
        let config = store::demo::DemoConfig { interval };
        let changes = store::demo::keep_changing(store.clone(), config, phases.upstream.clone());
        phases.spawn_upkeep("changes of the store", changes);
    }
    let version = MemberVersion {
        etcdserver: store::ETCD_API_VERSION.to_owned(),
        etcdcluster: store::ETCD_API_VERSION.to_owned(),
    };
    let version = watch::Sender::new(Some(Arc::new(version))).subscribe();
    let forward = grpc::ending(store.forward_service(), phases.streams.clone());
    let (own, patience) = (forward.clone(), Etcd::REQUEST_TIMEOUT);
    Running { own, forward, upstream: Arc::new(store), version, patience, members: None, load: None }
}
