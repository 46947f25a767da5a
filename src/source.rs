//! Where data comes from: an etcd cluster, another relay, which speaks the same API, or a cluster that keeps its keys
//! in the v2 store (`v2`).
//!
//! Not here: the embedded store, see `store`; what is done with the data (`hub`), and who requests it (`front`, which
//! never uses this module).

mod audit;
mod causes;
mod dial;
mod discovery;
mod driver;
mod endpoint;
mod etcd;
pub mod forward;
mod members;
mod pool;
pub mod probe;
#[cfg(test)]
mod testing;
mod v2;
mod version;

pub use self::{
    audit::Audit,
    dial::Dialler,
    discovery::{Discovered, Discovery, DiscoveryError, discover},
    driver::{Driver, DriverConfig},
    endpoint::{Endpoint, EndpointError},
    etcd::{EtcdConfig, EtcdUpstream, Identity, LoadKey, Registration},
    members::{MemberState, Members, judge::Judge, sync::AutoSync},
    v2::{V2Config, V2Upstream},
};
