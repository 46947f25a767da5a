//! Where data comes from: an etcd cluster, reached over the network.
//!
//! Not here: what is done with the data (`hub`) and who asks for it (`front`, which never sees this module).

mod endpoint;
pub mod forward;
pub mod probe;

pub use endpoint::{Endpoint, EndpointError};
