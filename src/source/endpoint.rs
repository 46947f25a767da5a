//! [`Endpoint`]: the client URL of one etcd member, or of another relay.
//!
//! Always holds: the scheme is `http` or `https`, there is a host and a port, and nothing after them.

use std::{fmt, str::FromStr};

use http::uri::{Authority, Scheme, Uri};
use thiserror::Error;

/// etcd's client port.
const DEFAULT_PORT: u16 = 2379;

/// A member's client URL, such as `http://10.0.0.1:2379`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    is_secure: bool,
    authority: Authority,
}

/// Why a text is not a usable endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// It does not parse.
    #[error("`{0}` is not an etcd client URL; write it like http://10.0.0.1:2379")]
    Malformed(String),
    /// Some other scheme.
    #[error("`{0}`: the scheme `{1}` isn't supported; use an http:// or https:// client URL of the cluster")]
    Scheme(String, String),
    /// It has more than scheme, host and port.
    #[error("`{0}` has a path, query or user name; an etcd client URL is http://host:port and nothing else")]
    Excess(String),
}

impl Endpoint {
    /// Whether it is reached over TLS.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.is_secure
    }

    /// Its scheme, as requests carry it.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        if self.is_secure { Scheme::HTTPS } else { Scheme::HTTP }
    }

    /// Host and port.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Host and port in the form that the system's resolver takes.
    #[must_use]
    pub fn host_and_port(&self) -> (&str, u16) {
        let host = self.authority.host();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        (host, self.authority.port_u16().unwrap_or(DEFAULT_PORT))
    }

    /// The same as a URL, in the form that etcd's clients take.
    #[must_use]
    pub fn url(&self) -> String {
        self.to_string()
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    /// Accepts `http://host:port` and `https://host:port`, and, as etcd's own tools do, `host:port`, which means
    /// `http`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || EndpointError::Malformed(text.to_owned());
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = url.parse().map_err(|_| malformed())?;
        let is_secure = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) => return Err(EndpointError::Scheme(text.to_owned(), scheme.to_string())),
            None => return Err(malformed()),
        };
        let authority = uri.authority().ok_or_else(malformed)?;
        if authority.as_str().contains('@') || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(EndpointError::Excess(text.to_owned()));
        }
        if authority.host().is_empty() {
            return Err(malformed());
        }
        let authority = match authority.port() {
            Some(port) if port.as_u16() == 0 => return Err(malformed()),
            Some(_) => authority.clone(),
            // `host:` and `host:99999` parse, but have no port.
            None if authority.as_str().len() > authority.host().len() => return Err(malformed()),
            None => format!("{}:{DEFAULT_PORT}", authority.host()).parse().map_err(|_| malformed())?,
        };
        Ok(Self { is_secure, authority })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme(), self.authority)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, EndpointError> {
        text.parse::<Endpoint>().map(|endpoint| endpoint.to_string())
    }

    #[test]
    fn takes_what_etcds_tools_take() {
        for (text, want) in [
            ("http://127.0.0.1:2379", "http://127.0.0.1:2379"),
            ("http://etcd-0.etcd:2379/", "http://etcd-0.etcd:2379"),
            ("127.0.0.1:2379", "http://127.0.0.1:2379"),
            ("etcd-0", "http://etcd-0:2379"),
            ("https://etcd-0", "https://etcd-0:2379"),
            ("http://[::1]:2380", "http://[::1]:2380"),
        ] {
            assert_eq!(parse(text).as_deref(), Ok(want), "{text}");
        }
        let v6: Endpoint = "http://[::1]:2380".parse().expect("an endpoint");
        assert_eq!(v6.host_and_port(), ("::1", 2380));
    }

    #[test]
    fn refuses_the_rest_by_name() {
        for (text, want) in [
            ("unixs://etcd:2379", EndpointError::Scheme("unixs://etcd:2379".into(), "unixs".into())),
            ("unix://etcd:2379", EndpointError::Scheme("unix://etcd:2379".into(), "unix".into())),
            ("http://etcd:2379/v3", EndpointError::Excess("http://etcd:2379/v3".into())),
            ("http://u:p@etcd:2379", EndpointError::Excess("http://u:p@etcd:2379".into())),
            ("", EndpointError::Malformed("".into())),
            ("http://:2379", EndpointError::Malformed("http://:2379".into())),
            ("http://etcd:0", EndpointError::Malformed("http://etcd:0".into())),
            ("http://etcd:", EndpointError::Malformed("http://etcd:".into())),
            ("http://etcd:99999", EndpointError::Malformed("http://etcd:99999".into())),
        ] {
            assert_eq!(parse(text), Err(want), "{text}");
        }
    }
}
