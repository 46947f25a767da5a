//! Lainlet's HTTP and gRPC views in the real program over a real etcd, used like LAIN's components use them.
//!
//! `answers` compares with the answers of the original, `streams` makes changes one by one, `access` uses different
//! addresses, `broken` damages the data and the connection to it, `startup` sends requests before there is data, `grpc`
//! uses gRPC, and `http` checks the wire format of HTTP. They share [`Lain`], a relay over a cluster's data, and the
//! helpers in `client`, `sse` and `data`. Tests of single views are beside the code. Pods have addresses in
//! 127.0.0.0/8, so that one host can act as each of them.

mod access;
mod answers;
mod broken;
mod client;
mod data;
mod grpc;
mod http;
mod model;
mod random;
mod sse;
mod startup;
mod streams;

use std::net::{IpAddr, Ipv4Addr};

use tonic::transport::{Channel, Endpoint};

use self::{
    client::{Answer, Client},
    data::{Change, Entry},
    sse::Sse,
};
use crate::support::{
    etcd::Etcd,
    eventually,
    gate::Gate,
    kv::Kv,
    relay::{Relay, RelayCommand},
};

/// The address and name of the relay's own node, as for the recorded answers of the original.
const NODE: [&str; 2] = ["--node-ip=192.168.77.21", "--node-name=node1"];

/// A relay over LAIN's keys, with a way to change them.
#[derive(Debug)]
struct Lain {
    /// The program under test. It is the first field, so that it stops before its etcd.
    relay: Relay,
    /// Writes to etcd directly; with the embedded store, through the relay.
    kv: Kv,
    /// `None` with the embedded store.
    etcd: Option<Etcd>,
}

impl Lain {
    /// Starts `serve` over a new etcd that has these keys, with [`NODE`].
    async fn over_etcd(entries: &[Entry]) -> Self {
        Self::over_etcd_with(entries, |command| command.arg(NODE[0]).arg(NODE[1])).await
    }

    /// The same with other arguments than [`NODE`].
    async fn over_etcd_with(entries: &[Entry], arguments: impl FnOnce(RelayCommand) -> RelayCommand) -> Self {
        let etcd = Etcd::start().await;
        let kv = Kv::connect(&etcd.endpoint()).await;
        data::load(&kv, entries).await;
        let relay = arguments(RelayCommand::serve(&[etcd.endpoint()])).start().await;
        Self { relay, kv, etcd: Some(etcd) }
    }

    /// Like [`Self::over_etcd`], with a gate between the two.
    async fn through_a_gate(entries: &[Entry]) -> (Self, Gate) {
        Self::through_a_gate_with(entries, |command| command.arg(NODE[0]).arg(NODE[1])).await
    }

    /// The same with other arguments than [`NODE`].
    async fn through_a_gate_with(
        entries: &[Entry],
        arguments: impl FnOnce(RelayCommand) -> RelayCommand,
    ) -> (Self, Gate) {
        let etcd = Etcd::start().await;
        let kv = Kv::connect(&etcd.endpoint()).await;
        data::load(&kv, entries).await;
        let gate = Gate::before(&etcd.endpoint()).await;
        let relay = arguments(RelayCommand::serve(&[gate.endpoint()])).start().await;
        (Self { relay, kv, etcd: Some(etcd) }, gate)
    }

    /// Starts `demo` with only these keys in its store, with [`NODE`]. It starts faster, for tests that need no etcd.
    async fn embedded(entries: &[Entry]) -> Self {
        Self::embedded_with(entries, |command| command.arg(NODE[0]).arg(NODE[1])).await
    }

    /// The same with other arguments than [`NODE`].
    async fn embedded_with(entries: &[Entry], arguments: impl FnOnce(RelayCommand) -> RelayCommand) -> Self {
        let relay = arguments(RelayCommand::demo()).start().await;
        let kv = Kv::connect(&relay.endpoint()).await;
        data::load(&kv, entries).await;
        let lain = Self { relay, kv, etcd: None };
        let revision = lain.kv.revision().await;
        lain.reached(revision).await;
        lain
    }

    /// A client at 127.0.0.1, which is trusted.
    fn local(&self) -> Client {
        self.at(Ipv4Addr::LOCALHOST)
    }

    /// A client at this loopback address.
    fn at(&self, address: impl Into<IpAddr>) -> Client {
        Client::new(self.relay.http_addr(), address.into())
    }

    /// A client at this loopback address, given as text.
    fn peer(&self, address: &str) -> Client {
        self.at(address.parse::<IpAddr>().unwrap_or_else(|error| panic!("{address}: {error}")))
    }

    /// GET from 127.0.0.1.
    async fn get(&self, uri: &str) -> Answer {
        self.local().get(uri).await
    }

    /// A watch from 127.0.0.1. The URI must say `watch=1` itself.
    async fn watch(&self, uri: &str) -> Sse {
        self.local().watch(uri).await
    }

    /// Makes a change. Returns its revision.
    async fn apply(&self, change: &Change) -> i64 {
        data::apply(&self.kv, change).await
    }

    /// Makes a change and waits until the views show it.
    async fn apply_and_reach(&self, change: &Change) -> i64 {
        let revision = self.apply(change).await;
        self.reached(revision).await;
        revision
    }

    /// Puts a key and waits until the views show it.
    async fn put(&self, key: &str, value: impl AsRef<[u8]>) -> i64 {
        let revision = self.kv.put(key, value).await;
        self.reached(revision).await;
        revision
    }

    /// Deletes a key and waits until the views show it.
    async fn delete(&self, key: &str) -> i64 {
        let revision = self.kv.delete(key).await;
        self.reached(revision).await;
        revision
    }

    /// Waits until each of the four directories has reached `revision`, checked by one view of each.
    async fn reached(&self, revision: i64) {
        for uri in ["/v2/configwatcher", "/v2/streamrouter/ports", "/v2/depends", "/v2/nodes"] {
            self.reached_by(uri, revision).await;
        }
    }

    /// Waits until the view has reached `revision`. Returns its answer then, which may be an error of the view.
    async fn reached_by(&self, uri: &str, revision: i64) -> Answer {
        let uri = client::with(uri, &format!("min_revision={revision}"));
        eventually(&format!("GET {uri} is answered"), async || {
            let answer = self.get(&uri).await;
            assert_ne!(answer.status, 404, "GET {uri}: {}", answer.text());
            // A busy machine may take longer than the relay waits.
            (answer.status != 503 && answer.status != 504).then_some(answer)
        })
        .await
    }

    /// A gRPC channel from this loopback address.
    async fn channel_from(&self, address: &str) -> Channel {
        let address: IpAddr = address.parse().unwrap_or_else(|error| panic!("{address}: {error}"));
        let target = Endpoint::from_shared(self.relay.endpoint()).expect("a URL").local_address(Some(address));
        eventually("the relay accepts a gRPC connection", async || target.connect().await.ok()).await
    }
}
