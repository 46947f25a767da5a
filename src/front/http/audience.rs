//! [`Audience`]: who may read an operator's path, by the address that the connection comes from.
//!
//! Access to the views depends on more than the address; see `view::Trust`. The ports put this check around routes.
//! Always holds: a page from another site, in a browser on the relay's machine, cannot read what is for trusted
//! callers. A header never grants access. A header that proxies add removes the access of trusted callers, since behind
//! a proxy everyone has the proxy's address, which may well be this machine's.

use std::{net::IpAddr, sync::Arc};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, StatusCode, Uri, header};

use crate::{front::listen::ClientAddr, view::Trust};

/// Whose requests are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Nobody's.
    Nobody,
    /// Those from this machine and from the operator's trusted networks.
    Trusted,
    /// Everyone's.
    Any,
}

/// Answers 403 to everyone outside an audience.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Who may pass.
    pub audience: Audience,
    /// Which addresses are trusted.
    pub trust: Arc<Trust>,
    /// The flag that sets the audience.
    pub flag: &'static str,
}

/// Headers that proxies add about their clients.
const OF_PROXIES: [&str; 4] = ["forwarded", "x-forwarded-for", "x-real-ip", "via"];

impl Gate {
    /// Puts the gate in front of each route of a router.
    pub fn before<S: Clone + Send + Sync + 'static>(self, router: Router<S>) -> Router<S> {
        router.route_layer(middleware::from_fn_with_state(self, pass))
    }

    /// The reason to refuse a request, and how the user can get access; `None` if it may pass.
    pub(super) fn refusal(&self, path: &str, client: Option<ClientAddr>, headers: &HeaderMap) -> Option<String> {
        let Self { flag, .. } = self;
        match self.audience {
            Audience::Any => None,
            Audience::Nobody => Some(format!("{path} is closed by {flag} nobody.\n")),
            Audience::Trusted => {
                let Some(ClientAddr(peer)) = client else {
                    return Some(format!("{path} needs a caller with an address; {flag} any opens it to everyone.\n"));
                };
                let addr = peer.ip().to_canonical();
                if !self.trust.names(addr) {
                    return Some(format!(
                        "{path} is for 127.0.0.1, ::1, --node-ip and each --trusted-net; your address is {addr}. Send \
                         the request from an allowed address, add your network with --trusted-net, which also opens \
                         Lainlet's views to it, or open {path} to everyone with {flag} any.\n"
                    ));
                }
                let proxy = OF_PROXIES.into_iter().find(|name| headers.contains_key(*name))?;
                Some(format!(
                    "This request came through a proxy (it has the header {proxy}), so the relay cannot tell who sent \
                     it. Send it to the relay's port directly, or open {path} to everyone with {flag} any.\n"
                ))
            }
        }
    }

    /// The reason to refuse a request from this machine because of the name that it uses. A page from another site can
    /// have a name that resolves to 127.0.0.1. Its browser then takes the relay for the page's own site.
    pub(super) fn borrowed_name(&self, uri: &Uri, headers: &HeaderMap, client: Option<ClientAddr>) -> Option<String> {
        let is_local = client.is_some_and(|ClientAddr(peer)| peer.ip().to_canonical().is_loopback());
        if self.audience != Audience::Trusted || !is_local {
            return None;
        }
        let host = headers.get(header::HOST).map(|host| String::from_utf8_lossy(host.as_bytes()));
        let named = uri.authority().map(|authority| authority.as_str()).or(host.as_deref())?;
        (!is_own_name(named)).then(|| {
            format!(
                "This request uses the name {named:?}, which anyone could make resolve to this machine. Use localhost \
                 or an address, or open {} to everyone with {} any.\n",
                uri.path(),
                self.flag,
            )
        })
    }
}

/// Whether no other site can use this name, with or without a port.
fn is_own_name(named: &str) -> bool {
    let host = named.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_ascii_lowercase));
    let Some(host) = host else { return false };
    let addr = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    addr.is_ok() || host == "localhost" || host.ends_with(".localhost")
}

async fn pass(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let client = ClientAddr::of(request.extensions());
    let (uri, headers) = (request.uri(), request.headers());
    match gate.refusal(uri.path(), client, headers).or_else(|| gate.borrowed_name(uri, headers, client)) {
        None => next.run(request).await,
        Some(text) => (StatusCode::FORBIDDEN, text).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn refusal(audience: Audience, addr: &str, header: Option<&'static str>) -> Option<String> {
        let trust = Trust {
            everyone: true,
            own: Some([10, 0, 0, 1].into()),
            nets: vec!["10.1.0.0/16".parse().expect("a network")],
            nodes: true,
            ..Trust::default()
        };
        let gate = Gate { audience, trust: Arc::new(trust), flag: "--debug-from" };
        let mut headers = HeaderMap::new();
        headers.extend(header.map(|name| (HeaderName::from_static(name), HeaderValue::from_static("127.0.0.1"))));
        gate.refusal("/debug/state", Some(ClientAddr(addr.parse().expect("an address"))), &headers)
    }

    #[test]
    fn trusted_are_this_machine_and_named_networks_even_where_views_are_for_everyone() {
        for addr in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "10.0.0.1:1", "10.1.2.3:1"] {
            assert_eq!(refusal(Audience::Trusted, addr, None), None, "{addr}");
        }
        for addr in ["127.0.0.2:1", "10.2.0.1:1", "[2001:db8::1]:1"] {
            let text = refusal(Audience::Trusted, addr, None).expect("refused");
            let canonical = addr.parse::<std::net::SocketAddr>().expect("an address").ip().to_string();
            for said in [&*canonical, "/debug/state", "--trusted-net", "--debug-from any"] {
                assert!(text.contains(said), "{said} is not in: {text}");
            }
        }
    }

    #[test]
    fn who_comes_through_a_proxy_is_not_this_machine_and_a_header_opens_nothing() {
        for header in OF_PROXIES {
            let text = refusal(Audience::Trusted, "127.0.0.1:1", Some(header)).expect("refused");
            assert!(text.contains(header), "{text}");
            assert!(refusal(Audience::Trusted, "10.2.0.1:1", Some(header)).is_some());
            assert_eq!(refusal(Audience::Any, "10.2.0.1:1", Some(header)), None);
        }
    }

    #[test]
    fn names_that_anyone_can_have_are_not_ours() {
        for own in
            ["localhost", "LOCALHOST:9001", "a.localhost:1", "127.0.0.1", "127.0.0.1:9001", "[::1]:9001", "10.0.0.1"]
        {
            assert!(is_own_name(own), "{own}");
        }
        for other in
            ["evil.example", "evil.example:9001", "localhost.evil.example", "127.0.0.1.evil.example:80", "", "a b"]
        {
            assert!(!is_own_name(other), "{other}");
        }
    }

    #[test]
    fn a_borrowed_name_opens_nothing_on_this_machine() {
        let mut gate = Gate { audience: Audience::Trusted, trust: Arc::default(), flag: "--debug-from" };
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("evil.example:9001"));
        let client = |addr: &str| Some(ClientAddr(addr.parse().expect("an address")));
        let refused = |gate: &Gate, uri: &str, from: &str| {
            gate.borrowed_name(&uri.parse().expect("a URI"), &headers, client(from))
        };
        for from in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            let text = refused(&gate, "/debug/state", from).expect("refused");
            assert!(text.contains("evil.example:9001") && text.contains("--debug-from any"), "{text}");
        }
        // Over HTTP/2 the name is in the request itself. Callers from elsewhere may use any name of the relay.
        assert_eq!(refused(&gate, "http://localhost:9001/debug/state", "127.0.0.1:1"), None);
        assert_eq!(refused(&gate, "/debug/state", "10.0.0.1:1"), None);
        gate.audience = Audience::Any;
        assert_eq!(refused(&gate, "/debug/state", "127.0.0.1:1"), None);
    }

    #[test]
    fn nobody_and_everyone_are_so() {
        assert_eq!(refusal(Audience::Any, "10.2.0.1:1", None), None);
        let text = refusal(Audience::Nobody, "127.0.0.1:1", None).expect("refused");
        assert!(text.contains("--debug-from nobody"), "{text}");
    }
}
