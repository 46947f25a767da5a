//! Where data comes from: an etcd cluster, or another relay, which speaks the same API.
//!
//! Not here: the embedded store, see `store`; what is done with the data (`hub`) and who asks for it (`front`, which never
//! sees this module).

mod causes;
mod dial;
mod driver;
mod endpoint;
mod etcd;
pub mod forward;
mod members;
mod pool;
pub mod probe;
mod version;

pub use self::{
    dial::Dialler,
    driver::{Driver, DriverConfig},
    endpoint::{Endpoint, EndpointError},
    etcd::{EtcdConfig, EtcdUpstream, Identity, Registration},
    members::{MemberState, Members, judge::Judge},
};
