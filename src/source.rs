//! Where data comes from: an etcd cluster, another relay, which speaks the same API, or a cluster that has its keys in v2 (`v2`).
//!
//! Not here: the embedded store, see `store`; what is done with the data (`hub`) and who asks for it (`front`, which never
//! sees this module).

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
