//! What a whole relay does when a part of it fails.

use async_trait::async_trait;

use super::*;
use crate::{
    cli::{self, Task},
    hub::upstream::{Confirmed, Page, Upstream as HubUpstream, UpstreamError, UpstreamWatch, WatchRequest},
    types::{Header, KeyRange, Revision},
};

/// An upstream with an empty snapshot, whose watch makes the driver panic.
#[derive(Debug)]
struct Unbearable;

#[async_trait]
impl HubUpstream for Unbearable {
    async fn page(&self, _: &KeyRange, _: Option<Revision>, _: usize) -> Result<Page, UpstreamError> {
        let header = Header { cluster_id: 1, revision: Revision::new(1), ..Header::default() };
        Ok(Page { header, kvs: Vec::new(), more: false, count: None })
    }

    async fn watch(&self, _: WatchRequest) -> Result<Box<dyn UpstreamWatch>, UpstreamError> {
        panic!("a bug");
    }

    async fn confirm(&self, _: Option<Revision>) -> Result<Confirmed, UpstreamError> {
        Err(UpstreamError::Unavailable("this test does not ask for it".into()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_that_panics_ends_the_relay_at_once() {
    let args = ["etcd-relay", "demo", "--listen-grpc=127.0.0.1:0", "--listen-http=127.0.0.1:0", "--seed=none"];
    let Ok(Task::Relay(start)) = cli::parse(args.iter().map(Into::into), cli::Build::default()) else {
        panic!("good flags")
    };
    let relay = Relay::build(start.config, Metrics::install().expect("the only recorder")).expect("built");
    let running = |data: Data, phases: &Phases, ready: &ReadyBoard| upstream::Running {
        upstream: Arc::new(Unbearable),
        ..data.run(phases, ready)
    };
    let failure = relay.serve(Shutdown::new(), running).await.expect_err("the relay must stop");
    assert_eq!(failure, Failure { task: "feed driver", panic: "a bug".into() });
}
