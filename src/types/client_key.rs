//! [`ClientKey`]: the client that a request, a stream or a feed on demand is charged to when the relay divides its
//! resources.
//!
//! Not here: who the client is and what it may read; `front` knows that. `front` makes the key from the client's
//! address, and from its user if there is one. Everything that divides something between clients compares keys: the
//! hub, the ports and the forwarded calls.
//! Always holds: the order of two keys means nothing, but it is always the same, so turns can go round them. Two clients
//! behind one address count as one client.

use std::{fmt, net::IpAddr};

/// Identifies a client for fairness; see the module.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientKey(u64);

impl ClientKey {
    /// The relay itself, when it acts for no client: configured feeds, views and probes.
    pub const RELAY: Self = Self(0);

    /// The key of the client that a front knows by this number. Equal numbers are one client; zero is the relay itself.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }
}

impl From<IpAddr> for ClientKey {
    /// The key of an address. For IPv6, all addresses of a /64 network are one client, since a single host may own all
    /// of them.
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            // In a range that no IPv6 network in use has.
            IpAddr::V4(v4) => Self(1 << 32 | u64::from(v4.to_bits())),
            // Loopback's network is zero, and zero is the relay itself.
            IpAddr::V6(v6) => Self(((v6.to_bits() >> 64) as u64).max(1)),
        }
    }
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientKey({:x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(address: &str) -> ClientKey {
        ClientKey::from(address.parse::<IpAddr>().expect("an address"))
    }

    #[test]
    fn addresses_of_one_host_are_one_client_and_none_is_the_relay() {
        assert_eq!(key("10.0.0.1"), key("::ffff:10.0.0.1"));
        assert_ne!(key("10.0.0.1"), key("10.0.0.2"));
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        for address in ["0.0.0.0", "::", "::1", "127.0.0.1"] {
            assert_ne!(key(address), ClientKey::RELAY, "{address}");
        }
    }
}
