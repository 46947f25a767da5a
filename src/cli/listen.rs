//! [`ListenUrl`]: an address to listen on, in the form of etcd's flags.
//!
//! Always holds: host names are resolved here, so an unknown name ends the start.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket},
    str::FromStr,
};

use crate::front::listen::Address;

/// For example `https://10.0.0.1:23790`, `localhost:23790` or `:23790`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ListenUrl(pub(super) Address);

impl FromStr for ListenUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (secure, rest) = match text.split_once("://") {
            None => (false, text),
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some((scheme, _)) => {
                return Err(format!("`{text}`: the scheme `{scheme}` isn't supported; write http:// or https://"));
            }
        };
        let host_and_port = rest.strip_suffix('/').filter(|_| rest.len() < text.len()).unwrap_or(rest);
        resolve(host_and_port).map(|addr| Self(Address { addr, secure }))
    }
}

/// Resolves `host:port`. If a name has several addresses, the first IPv4 address is used, as in Go programs. `:port`
/// means all of the machine's addresses.
pub(super) fn resolve(text: &str) -> Result<SocketAddr, String> {
    let problem =
        |cause: &str| format!("`{text}` is not an address to listen on ({cause}); write it like 127.0.0.1:23790");
    if let Some(port) = text.strip_prefix(':') {
        let port = port.parse().map_err(|_| problem("the port is not a number"))?;
        return Ok(all(port));
    }
    let found: Vec<_> = text.to_socket_addrs().map_err(|error| problem(&error.to_string()))?.collect();
    let first = found.iter().find(|addr| addr.is_ipv4()).or(found.first());
    first.copied().ok_or_else(|| problem("the name has no address"))
}

/// The unspecified IPv6 address, which covers IPv4 as well, or that of IPv4 on a machine without IPv6.
fn all(port: u16) -> SocketAddr {
    if UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok() {
        (Ipv6Addr::UNSPECIFIED, port).into()
    } else {
        (Ipv4Addr::UNSPECIFIED, port).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_etcds_flags_take() {
        for (text, want) in [
            ("127.0.0.1:1", "http://127.0.0.1:1"),
            ("http://127.0.0.1:1", "http://127.0.0.1:1"),
            ("https://127.0.0.1:1/", "https://127.0.0.1:1"),
            ("localhost:23790", "http://127.0.0.1:23790"),
            ("https://localhost:0", "https://127.0.0.1:0"),
            ("[::1]:5", "http://[::1]:5"),
        ] {
            let url: ListenUrl = text.parse().expect(text);
            assert_eq!(url.0.to_string(), want, "{text}");
        }
        let all: ListenUrl = "https://:5".parse().expect("all addresses");
        assert!(all.0.addr.ip().is_unspecified() && all.0.addr.port() == 5 && all.0.secure, "{all:?}");
    }

    #[test]
    fn refuses_the_rest_and_says_why() {
        for (text, want) in [
            ("nowhere", "`nowhere`"),
            ("", "not an address"),
            ("http://", "not an address"),
            (":http", "not a number"),
            ("unix://etcd.sock", "`unix`"),
            ("http://127.0.0.1:1/v3", "not an address"),
        ] {
            let error = text.parse::<ListenUrl>().expect_err(text);
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
