//! [`Client`]: who sent a request, as far as a front can tell: the address of the connection, and the client's
//! credentials.
//!
//! What a client may see is decided by etcd for watches and reads (`access`), and by Lainlet's rules for views. The
//! fronts create it from a request for everything that decides or counts by client. Always holds: the address is that
//! of the other end of the connection, never one from a header.

use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use http::{Extensions, HeaderMap, HeaderName, HeaderValue};
use tracing::field::{DisplayValue, display};

use super::listen::{Connected, ConnectionId};
use crate::{tls, types::ClientKey};

/// A client; see the module. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    /// The address of the connection's other end. An IPv4 address in IPv6 form counts as IPv4. `None` without a
    /// connection.
    pub addr: Option<IpAddr>,
    /// Its connection.
    pub connection: Option<ConnectionId>,
    /// The names in its certificate, if it had to present one. They give it no rights at etcd; only credentials do.
    pub certificate: Option<Arc<tls::Names>>,
    /// How etcd identifies the client.
    pub credentials: Credentials,
}

/// The secret for hashing tokens into user keys. If clients could predict the keys, one could use up the share of
/// another.
static SECRET: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The metadata by which etcd identifies a client. Equal credentials mean the same user; a user may have several.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credentials(Arc<[(HeaderName, HeaderValue)]>);

impl Client {
    /// The client of a request with these headers. The port has put the other details into `extensions`.
    #[must_use]
    pub fn of(headers: &HeaderMap, extensions: &Extensions) -> Self {
        let connected = Connected::of(extensions);
        Self {
            addr: connected.map(|connected| connected.addr.0.ip().to_canonical()),
            connection: connected.map(|connected| connected.id),
            certificate: connected.and_then(|connected| connected.certificate.clone()),
            credentials: Credentials::of(headers),
        }
    }

    /// The relay itself, when it asks for its own purposes. It has no name.
    #[must_use]
    pub fn relay() -> Self {
        Self { addr: None, connection: None, certificate: None, credentials: Credentials::none() }
    }

    /// Its address and the number of its connection in `/debug/state`, for the log.
    #[must_use]
    pub fn named(&self) -> (Option<DisplayValue<IpAddr>>, Option<u64>) {
        (self.addr.map(display), self.connection.map(|connection| connection.0))
    }

    /// Whether its certificate contains this name.
    #[must_use]
    pub fn bears(&self, name: &str) -> bool {
        self.certificate.as_ref().is_some_and(|certificate| certificate.bears(name))
    }

    /// The key by which resources are divided between clients: that of its address. Credentials do not count, because
    /// anyone can invent any number of them.
    #[must_use]
    pub fn key(&self) -> ClientKey {
        self.addr.map_or(ClientKey::RELAY, ClientKey::from)
    }

    /// The key of its user, if it has credentials. It counts beside the address where several addresses must not give a
    /// user more.
    #[must_use]
    pub fn user_key(&self) -> Option<ClientKey> {
        // Zero is reserved for the relay itself.
        (!self.credentials.is_none()).then(|| ClientKey::new(SECRET.hash_one(&self.credentials).max(1)))
    }
}

impl Credentials {
    /// The credentials in a request's headers.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let named = |name: &'static str| {
            headers.get_all(name).into_iter().map(move |value| (HeaderName::from_static(name), value.clone()))
        };
        // etcd takes the first of these headers, or the second if the first is missing.
        Self(named("token").chain(named("authorization")).collect())
    }

    /// The credentials of an anonymous client.
    #[must_use]
    pub fn none() -> Self {
        Self(Arc::default())
    }

    /// Whether there are no credentials.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// The headers that carry the credentials.
    pub fn headers(&self) -> impl Iterator<Item = &(HeaderName, HeaderValue)> {
        self.0.iter()
    }

    /// Approximate memory use in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|(_, value)| value.len() + 64).sum()
    }
}

/// Tokens are secret and not shown.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_none() { "Credentials(none)" } else { "Credentials(…)" })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("addr", &self.addr)
            .field("connection", &self.connection)
            .field("certificate", &self.certificate)
            .field("credentials", &self.credentials)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front::order::Order;

    fn client(addr: &str, connection: u64, token: Option<&'static str>) -> Client {
        let mut extensions = Extensions::new();
        extensions.insert(Connected::for_tests(ConnectionId(connection), addr, Order::new()));
        let mut headers = HeaderMap::new();
        headers.extend(token.map(|token| (HeaderName::from_static("token"), HeaderValue::from_static(token))));
        Client::of(&headers, &extensions)
    }

    #[test]
    fn the_share_is_that_of_the_address_whatever_the_client_says() {
        let alice = client("10.0.0.1:1000", 1, Some("alice.1"));
        assert_eq!(alice.key(), client("10.0.0.1:2000", 2, Some("made up")).key());
        assert_eq!(alice.key(), client("[::ffff:10.0.0.1]:2000", 3, None).key());
        assert_ne!(alice.key(), client("10.0.0.2:1000", 4, Some("alice.1")).key());
        assert_eq!(Client::relay().key(), ClientKey::RELAY);
    }

    #[test]
    fn a_user_is_one_wherever_it_comes_from_and_nobody_is_none() {
        let alice = client("10.0.0.1:1000", 1, Some("alice.1"));
        assert_eq!(alice.user_key(), client("10.0.0.2:1000", 2, Some("alice.1")).user_key());
        assert_ne!(alice.user_key(), client("10.0.0.1:1000", 1, Some("bob.1")).user_key());
        assert_eq!(client("10.0.0.1:1000", 1, None).user_key(), None);
    }

    #[test]
    fn tokens_are_not_printed() {
        let printed = format!("{:?}", client("10.0.0.1:1000", 1, Some("secret")));
        assert!(!printed.contains("secret") && printed.contains("10.0.0.1"), "{printed}");
    }
}
