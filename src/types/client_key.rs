//! [`ClientKey`]: whose share of the relay a request, a stream or a feed on demand counts for.
//!
//! Not here: who the client is and what it may see, which is `front`'s to know. Made by `front` from the client's address, and from its user
//! where there is one; compared by all that divides something between clients: the hub, the ports, the calls that are forwarded.
//! Always holds: it tells nothing but sameness. Two clients behind one address are one client here.

use std::{fmt, net::IpAddr};

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

impl From<IpAddr> for ClientKey {
    /// The key of an address. Addresses of version 6 are one client for each network of 64 bits, since a host may have all of one.
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            // Behind what no network of version 6 has.
            IpAddr::V4(v4) => Self(1 << 32 | u64::from(v4.to_bits())),
            // Loopback is of network zero, which is the relay's.
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
