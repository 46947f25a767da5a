//! [`ClientKey`]: whose share of the relay a request, a stream or a feed on demand counts for.
//!
//! Not here: who the client is and what it may see, which is `front`'s to know. Made by `front` from the client's address, and from its user
//! where there is one; compared by all that divides something between clients: the hub, the ports, the calls that are forwarded.
//! Always holds: it tells nothing but sameness. Two clients behind one address are one client here.

use std::fmt;

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientKey(u64);

impl ClientKey {
    /// The relay itself, where it acts for no client: configured feeds, views, probes.
    pub const RELAY: Self = Self(0);

    /// The key of a client that a front knows by this number. Equal numbers are one client; zero is the relay itself.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientKey({:x})", self.0)
    }
}
