//! [`Client`]: who asks, as far as a front can tell: where the connection comes from, and what the client says it is.
//!
//! Not here: what a client may see, which etcd decides for watches and reads (`access`) and Lainlet's rules for views. Made by the
//! fronts from a request; taken by all that decides for, or counts by, a client.
//! Always holds: the address is that of the connection's other end, and never what a header says.

use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use http::{Extensions, HeaderMap, HeaderName, HeaderValue};

use super::listen::{ClientAddr, ClientCertificate, ConnectionId};
use crate::{tls, types::ClientKey};

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    /// Where the connection comes from; an IPv4 address in IPv6 form counts as the former. None where there is no connection.
    pub addr: Option<IpAddr>,
    /// Its connection.
    pub connection: Option<ConnectionId>,
    /// What its certificate says, where it had to show one. It gives a client nothing at etcd: only its credentials do.
    pub certificate: Option<Arc<tls::Names>>,
    /// By what etcd knows it.
    pub credentials: Credentials,
}

/// By what users' keys are made of their tokens: who could foresee them could use up another's share.
static SECRET: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The metadata by which etcd knows a client. Equal ones are one user; one user may have several.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credentials(Arc<[(HeaderName, HeaderValue)]>);

impl Client {
    /// The client that sent a request with these headers; the port that it came through has put the rest into `extensions`.
    #[must_use]
    pub fn of(headers: &HeaderMap, extensions: &Extensions) -> Self {
        Self {
            addr: extensions.get().map(|ClientAddr(peer)| peer.ip().to_canonical()),
            connection: extensions.get().copied(),
            certificate: extensions.get().map(|ClientCertificate(names)| names.clone()),
            credentials: Credentials::of(headers),
        }
    }

    /// The relay itself, where it asks on nobody's behalf. It has no name.
    #[must_use]
    pub fn relay() -> Self {
        Self { addr: None, connection: None, certificate: None, credentials: Credentials::none() }
    }

    /// Whether its certificate bears this name.
    #[must_use]
    pub fn bears(&self, name: &str) -> bool {
        self.certificate.as_ref().is_some_and(|certificate| certificate.bears(name))
    }

    /// Whose share it takes of what is divided between clients: that of its address. Credentials do not count, since anyone can make up
    /// as many as they like.
    #[must_use]
    pub fn key(&self) -> ClientKey {
        self.addr.map_or(ClientKey::RELAY, ClientKey::from)
    }

    /// The key of its user, where it says who it is: counts beside its address where a user is to have no more by having several.
    #[must_use]
    pub fn user_key(&self) -> Option<ClientKey> {
        // Zero is the relay itself.
        (!self.credentials.is_none()).then(|| ClientKey::new(SECRET.hash_one(&self.credentials).max(1)))
    }
}

impl Credentials {
    /// Those in a request's headers.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let named = |name: &'static str| {
            headers.get_all(name).into_iter().map(move |value| (HeaderName::from_static(name), value.clone()))
        };
        // etcd takes the first, and the second where the first is not there.
        Self(named("token").chain(named("authorization")).collect())
    }

    /// Those of a client without a name.
    #[must_use]
    pub fn none() -> Self {
        Self(Arc::default())
    }

    /// Whether there is nothing to be known by.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// The headers.
    pub fn headers(&self) -> impl Iterator<Item = &(HeaderName, HeaderValue)> {
        self.0.iter()
    }

    /// About how much memory they take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|(_, value)| value.len() + 64).sum()
    }
}

/// Tokens are secrets.
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
    use std::net::SocketAddr;

    use super::*;

    fn client(addr: &str, connection: u64, token: Option<&'static str>) -> Client {
        let mut extensions = Extensions::new();
        extensions.insert(ClientAddr(addr.parse::<SocketAddr>().expect("an address")));
        extensions.insert(ConnectionId(connection));
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
